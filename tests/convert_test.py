import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from random_saes import random_topk

from sae_jax import formats

SCRIPT = Path(__file__).resolve().parents[1] / "experiments" / "convert.py"


def run(*arguments):
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_there_and_back(tmp_path):
    pytest.importorskip("torch", reason="the .pt formats need PyTorch")
    sae = random_topk()
    formats.save(sae, tmp_path / "a", format="native", metadata={"layer": 1, "note": "kept"})
    there = run(
        f"--input={tmp_path / 'a'}",
        f"--output={tmp_path / 'b'}",
        "--format=published",
        "--layer=14",
        "--position=3",
    )
    assert there.returncode == 0, there.stderr
    assert "TopKSAE, d_in = 8, d_sae = 24" in there.stdout
    assert "moved by 0.0e+00" in there.stdout
    file = tmp_path / "b" / "pos3_layer14_d24_k5.pt"
    back = run(f"--input={file}", f"--output={tmp_path / 'c'}", "--format=saelens")
    assert back.returncode == 0, back.stderr
    for name, array in sae.params.items():
        np.testing.assert_array_equal(formats.load(tmp_path / "c").params[name], array)
    metadata = formats.load_metadata(tmp_path / "c")
    assert (metadata["layer"], metadata["position"], metadata["note"]) == (14, 3, "kept")
