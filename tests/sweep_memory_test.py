"""Limits of containers, in copies of what the kernel shows.

The files are as documented in https://docs.kernel.org/admin-guide/cgroup-v2.html and
https://docs.kernel.org/admin-guide/cgroup-v1/memory.html.
"""

import jax
import psutil
import pytest

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
