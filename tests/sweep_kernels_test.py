"""The kernels that are planned where the loops in C++ are built; else see `sweep_plan_test`."""

from types import SimpleNamespace

import pytest

from sae_jax import SAEConfig, TrainConfig, grid
from sae_jax.ops import native
from sae_jax.sweep.placement import Placement
from sae_jax.sweep.plan import plan_sweep

CPU = SimpleNamespace(process_index=0, platform="cpu", memory_stats=lambda: None)
SIZES = {(None, None): (5978, 2048, 2048)}


@pytest.fixture(autouse=True, scope="module")
def _loops_are_built():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "is_built", lambda: True)
        yield


def kernels_and_widths(configs, **train_config):
    plan = plan_sweep(configs, SIZES, TrainConfig(**train_config))
    return [(group.kernel, group.width) for group in plan.groups]


@pytest.mark.parametrize(
    ("d_sae", "k", "dtype", "kernel"),
    [
        # 0.42 of each latent and 2 for each kept are as many at d_sae = 3.45 k.
        (344, 100, "float32", "dense"),
        (345, 100, "float32", "selected_rows"),
        (344, 100, "tf32", "dense"),
        (345, 100, "tf32", "selected_rows"),
        # 0.55 and 4.4: at d_sae = 9.78 k.
        (977, 100, "bfloat16", "dense"),
        (978, 100, "bfloat16", "selected_rows"),
        (16384, 64, "float32", "selected_rows"),
    ],
)
def test_the_kernel_that_was_fastest_is_chosen(d_sae, k, dtype, kernel):
    config = [SAEConfig(d_sae, k)]
    assert kernels_and_widths(config, compute_dtype=dtype, epochs=200) == [(kernel, d_sae)]


def test_only_a_cpu_has_loops():
    device = SimpleNamespace(process_index=0, platform="gpu", memory_stats=lambda: None)
    plan = plan_sweep([SAEConfig(512, 8)], SIZES, TrainConfig(), Placement((device,)))
    assert [group.kernel for group in plan.groups] == ["dense"]


def test_members_of_an_auxiliary_loss_are_dense():
    assert kernels_and_widths(grid(d_sae=512, k=8, k_anneal_steps=9)) == [("dense", 512)]


# A latent takes p = 10 * 2048 * 5978 / 1.6e11 = 0.000765 seconds an epoch on the dense kernel;
# programs of a width compile for 1.6 seconds there, and for 1.3 on selected rows.
def test_a_member_that_keeps_many_joins_others_where_a_program_costs_more():
    # Both on selected rows take 1.3 + (2 * 0.42 * 512 + 2 * 288) p E = 1.3 + 1006.1 p E seconds,
    # and the larger k on the dense kernel 2.9 + (231 + 512) p E.
    configs = [SAEConfig(512, 8), SAEConfig(512, 280, seed=1)]
    assert kernels_and_widths(configs, epochs=7) == [("selected_rows", 512)]
    assert kernels_and_widths(configs, epochs=8) == [("selected_rows", 512), ("dense", 512)]
    # On two cores one would have nothing to do while the other trains either.
    two = Placement((CPU, CPU), (2, 1, 1))
    (group,) = plan_sweep(configs, SIZES, TrainConfig(epochs=200), two).groups
    assert group.kernel == "selected_rows"


def test_a_small_member_is_padded_where_a_program_costs_more():
    # 448 padding latents cost 0.42 each, or 1.3 seconds for a width of their own.
    configs = [SAEConfig(512, 8), SAEConfig(64, 8, seed=1)]
    assert kernels_and_widths(configs, epochs=9) == [("selected_rows", 512)]
    assert kernels_and_widths(configs, epochs=10) == [("selected_rows", 512), ("selected_rows", 64)]
    # Alone on two cores the larger costs as much again, 0.42 * 512 + 16, which padding does not.
    two = Placement((CPU, CPU), (2, 1, 1))
    assert len(plan_sweep(configs, SIZES, TrainConfig(epochs=10_000), two).groups) == 1
    (group,) = plan_sweep(configs, SIZES, TrainConfig(epochs=1)).groups
    assert group.padding == pytest.approx(0.42 * 448 / (0.42 * 448 + 0.42 * 576 + 2 * 16))
    assert group.k_max == 8
