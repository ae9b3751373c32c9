import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from random_saes import random_topk

from sae_jax import formats

SCRIPT = Path(__file__).resolve().parents[1] / "experiments" / "convert.py"


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
