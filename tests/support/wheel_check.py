"""Trains two members with the installed package, far from the checkout."""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

import sae_jax
from sae_jax.ops import native

CHECKOUT = Path(__file__).resolve().parents[2]
package = Path(sae_jax.__file__).resolve()
assert "site-packages" in package.parts and CHECKOUT / "sae_jax" not in package.parents, package
assert (package.parent / "py.typed").exists()
assert (package.parent / "report/dashboard/assets/page.html.jinja").exists()
if shutil.which("c++"):
    assert native.is_built(), "the loops in C++ are not in the wheel"
listed = subprocess.run([Path(sys.executable).with_name("sae-jax")], capture_output=True, text=True)
assert "Which libraries can open this SAE?" in listed.stdout, listed

x = np.random.default_rng(0).normal(size=(200, 16)).astype(np.float32)
configs = sae_jax.grid(d_sae=32, k=4, seed=range(2))
config = sae_jax.TrainConfig(epochs=3, batch_size=32)
result = sae_jax.train_sweep(configs, x[:160], x[160:], config, progress=False)
assert all(member.losses[-1] < member.losses[0] for member in result.members)
with tempfile.TemporaryDirectory() as folder:
    result.save(Path(folder, "sweep"))
    assert sae_jax.SweepResult.load(Path(folder, "sweep")).table() == result.table()
print(f"two members trained by {package.parent}")
