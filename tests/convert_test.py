import ast
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from random_saes import random_params, random_topk

from sae_jax import SAEConfig, SweepResult, TrainConfig, formats
from sae_jax.sweep.result import Member

SCRIPT = Path(__file__).resolve().parents[1] / "experiments" / "convert.py"


def run(*flags, folder):
    command = [sys.executable, str(SCRIPT), *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=folder)


def test_the_documented_command(tmp_path):
    """It names a member of a sweep as `SweepResult.save` lays it out."""
    config = SAEConfig(d_sae=24, k=5)
    member = Member(config, random_params(1), {"mse": 0.5}, np.zeros(24), np.ones(2))
    SweepResult([member], TrainConfig()).save(tmp_path / "runs" / "sweep")
    lines = ast.get_docstring(ast.parse(SCRIPT.read_text("utf-8"))).splitlines()
    (command,) = (line.split() for line in lines if "experiments/convert.py" in line)
    result = run(*command[1:], folder=tmp_path)
    assert result.returncode == 0, result.stderr
    assert formats.load(tmp_path / "runs" / "saelens").k == 5
    assert formats.load_metadata(tmp_path / "runs" / "saelens")["mse"] == 0.5


@pytest.mark.parametrize(
    "flags, says",
    [
        (["--input=absent", "--output=b"], "no file or folder absent"),
        (["--input=a", "--output=b", "--format=published"], "layer"),
        (["--input=a", "--output=a", "--format=native"], "exists already"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(tmp_path, flags, says):
    formats.save(random_topk(), tmp_path / "a", format="native")
    result = run(*flags, folder=tmp_path)
    assert result.returncode == 1
    # absl shows what JAX logs when it starts.
    (line,) = (line for line in result.stderr.splitlines() if "xla_bridge" not in line)
    assert line.startswith("error: ") and says in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]


def test_from_the_command_line(tmp_path):
    pytest.importorskip("torch", reason="the .pt formats need PyTorch")
    sae = random_topk()
    formats.save(sae, tmp_path / "a", format="native", metadata={"layer": 1, "note": "kept"})
    flags = [f"--input={tmp_path / 'a'}", f"--output={tmp_path / 'b'}", "--format=published"]
    command = [sys.executable, str(SCRIPT), *flags, "--layer=14", "--position=3"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert "TopKSAE, d_in = 8, d_sae = 24" in result.stdout
    assert "moved by 0.0e+00" in result.stdout

    file = tmp_path / "b" / "pos3_layer14_d24_k5.pt"
    for name, array in sae.params.items():
        np.testing.assert_array_equal(formats.load(file).params[name], array)
    metadata = formats.load_metadata(file)
    assert (metadata["layer"], metadata["position"], metadata["note"]) == (14, 3, "kept")
