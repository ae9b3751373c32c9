"""The study keeps each stage's table, goes on after a kill, and refuses other settings."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from study import STAGES, shortened

from sae_jax.activations.writer import write_store
from sae_jax.problems import Problem

SCRIPT = Path(__file__).resolve().parents[1] / "experiments" / "study.py"


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    rng = np.random.default_rng(0)
    problems = [
        Problem(id=str(i), question=f"Question {i}?", steps=(f"{i + 2}{'+-*/'[i % 4]}2=0",))
        for i in range(150)
    ]
    flags = []
    for name in ("activations", "untrained_activations"):
        path = tmp_path_factory.mktemp("stores") / name
        slices = {
            (layer, position): rng.normal(loc=layer, size=(150, 32)).astype(np.float32)
            for layer in (1, 2)
            for position in (0, 1)
        }
        write_store(path, slices, problems)
        flags.append(f"--{name}={path}")
    return flags


def command(stores: list[str], output: Path, *flags: str) -> list[str]:
    settings = ["--layer=2", "--position=1", "--map_layers=1,2", "--seeds=2", "--map_epochs=1"]
    return [sys.executable, str(SCRIPT), *stores, *settings, f"--output={output}", *flags]


def run(stores: list[str], output: Path, *flags: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        command(stores, output, *flags),
        capture_output=True,
        text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )


def test_fields_that_no_member_sets_are_left_out():
    rows = [{"k": 2, "seed": 0, "normalize": "none", "fvu": 0.5, "arm": "a"}]
    assert shortened(rows) == [{"k": 2, "fvu": 0.5, "arm": "a"}]
    assert "normalize" in shortened([*rows, rows[0] | {"normalize": "center"}])[0]


def test_bad_settings_are_refused_before_any_work(stores, tmp_path):
    for flags, complaint in (
        (["--stages=pca,nap"], "error: --stages has ['nap']; allowed are ['grid'"),
        (["--map_layers=1,9"], "layer 9 is not in the store"),
    ):
        refused = run(stores, tmp_path / "run", *flags)
        assert refused.returncode == 1
        assert complaint in refused.stderr.splitlines()[-1]
        assert not list(tmp_path.rglob("*.csv"))
    refused = run(stores[:1], tmp_path / "other", "--stages=pca,baselines")
    assert refused.returncode == 1
    assert "need --untrained_activations" in refused.stderr.splitlines()[-1]
    assert not list(tmp_path.rglob("*.csv"))


def test_a_killed_study_goes_on_where_it_was_and_finished_stages_stay(stores, tmp_path):
    flags = ["--epochs=300", "--stages=pca,dose"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finished = run(stores, whole, *flags)
    assert finished.returncode == 0, finished.stderr
    process = subprocess.Popen(
        command(stores, killed, *flags),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )
    deadline = time.monotonic() + 300
    while not list(killed.glob("checkpoints/dose/group_*")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    pca = killed / "tables" / "pca.csv"
    before = pca.stat().st_mtime_ns
    assert not (killed / "tables" / "dose.csv").exists()
    resumed = run(stores, killed, *flags)
    assert resumed.returncode == 0, resumed.stderr
    assert "pca.csv" not in resumed.stdout
    assert pca.stat().st_mtime_ns == before
    for name in ("pca", "dose"):
        ours, theirs = ((of / "tables" / f"{name}.csv").read_text() for of in (killed, whole))
        assert ours == theirs
    refused = run(stores, killed, "--epochs=1")
    assert refused.returncode == 1
    assert "holds another study: epochs was 300, is 1" in refused.stderr


@pytest.mark.slow
def test_every_stage_gives_its_table(stores, tmp_path):
    stages = [name for name in STAGES if name not in ("causality", "loss_recovered")]
    done = run(stores, tmp_path, "--epochs=2", f"--stages={','.join(stages)}")
    assert done.returncode == 0, done.stderr
    for name in stages:
        with (tmp_path / "tables" / f"{name}.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert rows, name
        assert all(set(row) == set(rows[0]) for row in rows), name
        if name == "grid":
            assert len(rows) == 3 * 14 * 2
            assert {row["normalize"] for row in rows} == {"none", "center", "center_and_scale"}
            assert all(row["seed"] == row["data_seed"] for row in rows)
        if name == "map":
            assert len(rows) == 2 * 2 * 2 * 5 * 3
