"""Each core a device of its own: how many there are, who decides, and equal results."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from sae_jax.sweep.cores import num_cores

SWEEP = """
import json, sys
import jax, numpy as np
before = sys.argv[1] == "before" and jax.devices()
if sys.argv[1].isdecimal():
    jax.config.update("jax_num_cpu_devices", int(sys.argv[1]))
import sae_jax
from sae_jax.sweep import cores
cores.num_cores = lambda: 3
x = np.random.default_rng(0).standard_normal((203, 24), np.float32)
configs = sae_jax.grid(d_sae=(16, 24, 40), k=4, seed=range(2))
train_config = sae_jax.TrainConfig(epochs=2, batch_size=50, kernel=sys.argv[2])
result = sae_jax.train_sweep(configs, x[:160], x[160:], train_config, progress=False)
found = [
    [member.losses.tolist(), member.params["w_enc"].tolist(), dict(member.metrics)]
    for member in result.members
]
plan = sae_jax.plan_for(configs, x[:160], train_config)
print(json.dumps([len(jax.devices()), plan.devices, found]))
"""


def swept(how, kernel="dense", **environment):
    """Number of devices, the plan's, and what a process trains in which there are three cores."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu"} | environment
    command = [sys.executable, "-c", SWEEP, how, kernel]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def on_one_device():
    """By kernel."""
    return {kernel: swept("1", kernel)[2] for kernel in ("dense", "firing_rows")}


@pytest.mark.parametrize("kernel", ["dense", "firing_rows"])
def test_a_sweep_makes_each_core_a_device_and_trains_the_same(on_one_device, kernel):
    num_devices, devices, found = swept("", kernel)
    assert (num_devices, devices) == (3, "3 cpu devices, members:3")
    for one, other in zip(found, on_one_device[kernel], strict=True):
        losses, w_enc, metrics = one
        assert losses == pytest.approx(other[0], rel=1e-6)
        np.testing.assert_allclose(w_enc, other[1], rtol=1e-5, atol=1e-6)
        assert metrics == pytest.approx(other[2], rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("how", ["before", "1"])
def test_what_was_said_or_computed_before_decides(how):
    num_devices, devices, _ = swept(how)
    assert (num_devices, devices) == (1, "")


def test_the_flag_of_xla_decides():
    num_devices, devices, _ = swept("", XLA_FLAGS="--xla_force_host_platform_device_count=2")
    assert (num_devices, devices) == (2, "2 cpu devices, members:2")


def test_cores_are_those_that_the_process_may_run_on():
    assert num_cores() == len(os.sched_getaffinity(0))
