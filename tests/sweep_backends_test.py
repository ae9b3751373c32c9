"""What XLA is told of its GPU backend, and that it knows the word."""

import os
import subprocess
import sys

import pytest

from sae_jax.sweep import backends

OFF = "--xla_gpu_enable_triton_gemm=false"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, OFF),
        ("--xla_dump_to=folder", f"--xla_dump_to=folder {OFF}"),
        ("--xla_gpu_enable_triton_gemm=true", "--xla_gpu_enable_triton_gemm=true"),
        ("folder/file_of.flags", "folder/file_of.flags"),
    ],
)
def test_products_on_gpus_are_left_to_cublas_unless_somebody_chose(monkeypatch, before, after):
    environment = {} if before is None else {"XLA_FLAGS": before}
    monkeypatch.setattr(os, "environ", environment)
    backends.leave_products_to_cublas()
    assert environment == {"XLA_FLAGS": after}


@pytest.mark.parametrize("plugins", [(), ("jax_cuda13_plugin",)])
def test_xla_is_told_only_where_jax_has_a_cuda_plugin(monkeypatch, plugins):
    environment = {}
    monkeypatch.setattr(os, "environ", environment)
    monkeypatch.setattr(backends, "make_cores_devices", lambda: None)  # It lasts.
    monkeypatch.setattr(backends, "find_spec", lambda name: name if name in plugins else None)
    backends.prepare_backends()
    assert environment == ({"XLA_FLAGS": OFF} if plugins else {})


@pytest.mark.parametrize(
    ("flag", "is_known"), [(OFF, True), ("--xla_gpu_no_such_word=false", False)]
)
def test_xla_knows_the_word(flag, is_known):
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flag}
    command = [sys.executable, "-c", "import jax; print(jax.devices())"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode == 0) == is_known, done.stderr
