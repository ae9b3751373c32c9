"""Limits of containers, in copies of what the kernel shows.

The files are as documented in https://docs.kernel.org/admin-guide/cgroup-v2.html and
https://docs.kernel.org/admin-guide/cgroup-v1/memory.html.
"""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import psutil
import pytest

import sae_jax
from sae_jax import SAEConfig, TrainConfig
from sae_jax.sweep import placement, plan
from sae_jax.sweep.memory import memory_limit

GIB = 2**30
V1_NONE = "9223372036854771712"
PHYSICAL = psutil.virtual_memory().total


def machine(root, cgroup, limits):
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(cgroup)
    for path, limit in limits.items():
        file = root / "sys/fs/cgroup" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{limit}\n")
    return root


@pytest.mark.parametrize(
    ("cgroup", "limits", "expected"),
    [
        # A container of version 2 sees its own group as the root.
        ("0::/\n", {"memory.max": GIB}, GIB),
        ("0::/\n", {"memory.max": "max"}, PHYSICAL),
        ("0::/\n", {}, PHYSICAL),
        # A systemd service or a Slurm job: the tightest group on the way up counts.
        ("0::/a/b\n", {"a/b/memory.max": 3 * GIB, "a/memory.max": 2 * GIB}, 2 * GIB),
        ("0::/a/b\n", {"a/b/memory.max": GIB, "a/memory.max": "max"}, GIB),
        ("0::/a/b\n", {"a/b/memory.max": "max", "a/memory.max": 2 * GIB}, 2 * GIB),
        # The group of another process.
        ("0::/a/b\n", {"a/c/memory.max": GIB}, PHYSICAL),
        ("0::/../other\n", {"memory.max": GIB, "other/memory.max": 1}, GIB),
        ("0::/a\n", {"a/memory.max": 10**18}, PHYSICAL),
        # A container of version 1 names its path on the host and sees only itself.
        (
            "5:cpu,cpuacct:/docker/1f\n4:memory:/docker/1f\n",
            {"memory/memory.limit_in_bytes": GIB, "memory.limit_in_bytes": 1},
            GIB,
        ),
        (
            "4:hugetlb,memory:/slurm/job_1\n0::/x\n",
            {
                "memory/slurm/job_1/memory.limit_in_bytes": 2 * GIB,
                "memory/slurm/memory.limit_in_bytes": V1_NONE,
                "memory/memory.limit_in_bytes": V1_NONE,
            },
            2 * GIB,
        ),
        ("4:memory:/\n", {"memory/memory.limit_in_bytes": V1_NONE}, PHYSICAL),
        # A controller whose name only begins alike.
        ("4:memory_x:/a\n", {"memory/a/memory.limit_in_bytes": GIB}, PHYSICAL),
    ],
)
def test_the_tightest_limit_counts(cgroup, limits, expected, tmp_path):
    assert memory_limit(machine(tmp_path, cgroup, limits)) == expected


def test_a_machine_without_control_groups_has_its_memory(tmp_path):
    assert memory_limit(tmp_path) == PHYSICAL


def test_this_machine_has_no_more_than_its_memory():
    assert 0 < memory_limit() <= PHYSICAL


def test_the_plan_keeps_to_half_of_it(monkeypatch):
    assert jax.default_backend() == "cpu", "accelerators know their own memory"
    configs = [SAEConfig(512, 4, seed) for seed in range(8)]
    sizes = {(None, None): (1000, 256, 256)}
    (whole,) = plan.plan_sweep(configs, sizes, TrainConfig()).groups
    monkeypatch.setattr(placement, "memory_limit", lambda: whole.num_bytes)
    groups = plan.plan_sweep(configs, sizes, TrainConfig()).groups
    assert len(groups) > 1
    assert all(group.num_bytes <= whole.num_bytes // 2 for group in groups)


MEASURED = """
    import re, sys, tempfile
    from pathlib import Path
    import numpy as np
    import sae_jax
    from sae_jax.sweep.memory import give_back_free_memory

    def mib(name):
        found = re.search(rf"{name}:\\s*(\\d+) kB", Path("/proc/self/status").read_text())
        return int(found[1]) / 1024

    def forget_peak():
        Path("/proc/self/clear_refs").write_text("5")

    def watch(event):
        if event.kind in ("epoch", "scored"):
            peaks[event.kind] = max(peaks.get(event.kind, 0.0), mib("VmHWM"))
            forget_peak()

    x = np.random.default_rng(0).standard_normal((2560, 2048), np.float32)
    configs = sae_jax.grid(d_sae=1024, k=20, seed=range(24))
    train_config = sae_jax.TrainConfig(1, memory_budget=MIB * 2**20)
    # Compiling takes memory too, in the first run alone.
    for run in range(2):
        give_back_free_memory()
        before, peaks = mib("VmRSS"), {}
        forget_peak()
        with tempfile.TemporaryDirectory() as folder:
            options = {"progress": False, "callbacks": [watch], "output": folder + "/sweep"}
            sae_jax.train_sweep(configs, x, x[:2000], train_config, **options)
    print(*(peaks[kind] - before for kind in ("epoch", "scored")))
"""


def measured(budget):
    """MiB that training and scoring add to a process, with a budget of so many MiB."""
    program = textwrap.dedent(MEASURED).replace("MIB", str(budget))
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(sae_jax.__file__).parents[1])},
    )
    assert done.returncode == 0, done.stderr
    return [float(number) for number in done.stdout.split()]


@pytest.mark.slow
def test_training_and_scoring_keep_to_the_budget():
    assert min(measured(8192)) > 1024
    # A twentieth is for what is not an array.
    assert max(measured(1024)) < 1.05 * 1024
    assert max(measured(512)) < 1.05 * 512
