"""The command line lists the scripts, runs them as files do, and refuses what is none."""

import subprocess
import sys
from pathlib import Path

import pytest

from sae_jax.__main__ import COMMANDS, scripts_folder

ROOT = Path(__file__).resolve().parents[1]


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "sae_jax", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=ROOT,
    )


def test_the_list_says_what_each_script_answers():
    done = run()
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines[1:]] == list(COMMANDS)
    assert lines[1 + list(COMMANDS).index("convert")].endswith(
        "Which libraries can open this SAE? Converts one between the formats that the field uses."
    )


def test_an_unknown_command_is_refused_with_the_list():
    done = run("trian")
    assert done.returncode == 2
    assert done.stderr.startswith("there is no command 'trian'")
    assert "  train " in done.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_a_script(name):
    assert scripts_folder() == ROOT / "experiments"
    assert (scripts_folder() / f"{COMMANDS[name]}.py").is_file()


def test_a_script_gets_its_flags_and_gives_its_exit_status(tmp_path):
    done = run("convert", f"--input={tmp_path / 'none'}", f"--output={tmp_path / 'out'}")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: there is no file or folder")
    usage = run("convert", "--help")
    assert "Which libraries can open this SAE?" in usage.stdout
    assert "--format" in usage.stdout
