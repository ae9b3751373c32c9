"""The formulas of "Planning on paper" against compiled programs, and the document against them.

XLA counts the body of a loop once, the dearer branch of a condition, and nothing of what is in C++.
"""

import dataclasses
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import planning
import pytest
from hyperparameters import hyperparameters
from mesh_cases import lowered, memory_of
from planning import H100, V5P
from virtual_devices import on_eight_devices

from sae_jax import SAEConfig, TrainConfig
from sae_jax.sweep.batches import Samples
from sae_jax.sweep.placement import Placement
from sae_jax.sweep.plan import plan_sweep
from sae_jax.sweep.step import Program, init_member, train_step

DOCUMENT = (Path(__file__).parents[1] / "docs" / "scale.md").read_text(encoding="utf-8")
BILLION, MILLION = 10**9, 2**20
# Samples a second, from disk, by D: the table `streaming` of experiments/results/streaming.md.
READ_FROM_DISK = {576: 223_000, 2048: 85_200}


def cost_of_a_step(kernel, batch_size, d_in, width, k=8):
    """What XLA counts of one step of one member."""
    k_max = k if kernel == "selected_rows" else None
    program = Program(SAEConfig(width, k).template, kernel=kernel, k_max=k_max)
    hyper = jax.tree.map(lambda leaf: leaf[0], hyperparameters((width, k, 0, 1e-3)))
    center = jnp.zeros(d_in, jnp.float32)
    state = jax.eval_shape(partial(init_member, program, d_in=d_in, width=width), hyper, center)
    samples = Samples(jax.ShapeDtypeStruct((batch_size, d_in), jnp.float32))
    step = jax.jit(partial(train_step, program)).lower(state, hyper, samples, jnp.int32(0))
    return step.compile().cost_analysis()


@pytest.mark.parametrize("size", [(16, 512, 512), (256, 256, 512)])
def test_a_dense_step(size, without_loops):
    batch_size, d_in, width = size
    cost = cost_of_a_step("dense", *size)
    expected = planning.flops(width, d_in, batch_size) + planning.adam_flops(width, d_in)
    assert cost["flops"] == pytest.approx(expected, rel=0.1)
    expected = planning.memory_bytes(width, d_in, batch_size, rounds=1)
    # On a CPU Adam is three passes, and transposes are copied.
    assert expected < cost["bytes accessed"] < 2 * expected


def test_a_step_on_firing_rows_where_all_fire(without_loops):
    batch_size, d_in, width = 64, 256, 512
    found = cost_of_a_step("firing_rows", batch_size, d_in, width)["flops"]
    expected = planning.flops(width, d_in, batch_size, "firing_rows", firing=1.0)
    assert found == pytest.approx(expected + planning.adam_flops(width, d_in), rel=0.1)


def test_a_step_on_selected_rows_where_latents_are_crowded(without_loops):
    batch_size, d_in, width, k = 64, 256, 1024, 4
    found = cost_of_a_step("selected_rows", batch_size, d_in, width, k)["flops"]
    encoder = planning.flops(width, d_in, batch_size, "selected_rows", k=0)
    crowded = 4 * batch_size * d_in * min(batch_size * k // 9, width)
    gathered = 2 * 8 * 2 * width * d_in  # Eight slots of two gradients, once and not b times.
    expected = encoder + crowded + gathered + planning.adam_flops(width, d_in)
    assert found == pytest.approx(expected, rel=0.1)


def test_eight_devices():
    num_members, batch_size, d_in, width = 8, 64, 128, 256
    meshes = {
        "members:8": (8, 1, 1),
        "data:8": (1, 8, 1),
        "latents:8": (1, 1, 8),
        "data:4,latents:2": (1, 4, 2),
    }
    found = on_eight_devices("costs", *map(str, (num_members, batch_size, d_in, width)), *meshes)
    assert sorted(found) == sorted(meshes)
    configs = [SAEConfig(width, 3, seed) for seed in range(num_members)]
    train_config = TrainConfig(batch_size=batch_size, kernel="dense", stream=False)
    num_samples = 2 * batch_size
    data_sizes = {(None, None): (num_samples, d_in, d_in)}
    for mesh, (flops, messages, memory) in found.items():
        members, data, latents = meshes[mesh]
        each = num_members // members
        products = planning.flops(width, d_in, batch_size) / (data * latents)
        adam = planning.adam_flops(width, d_in, meshes[mesh])
        assert flops == pytest.approx(each * (products + adam), rel=0.1)
        expected = each * sum(planning.reduced_numbers(width, d_in, batch_size, meshes[mesh]))
        # Beside them are counts of top-k, one round, and flags.
        assert expected <= sum(messages) <= 1.03 * expected
        placement = Placement(devices(H100, 8, "gpu"), meshes[mesh])
        (group,) = plan_sweep(configs, data_sizes, train_config, placement).groups
        assert memory + 4 * num_samples * d_in <= group.num_bytes


@pytest.mark.parametrize("kernel", ["dense", "firing_rows", "selected_rows"])
def test_the_plan_gives_a_group_the_memory_that_its_epoch_needs(kernel):
    num_members, batch_size, d_in, width = 2, 512, 128, 256
    num_samples = 2 * batch_size
    configs = [SAEConfig(width, 3, seed) for seed in range(num_members)]
    train_config = TrainConfig(batch_size=batch_size, kernel=kernel, stream=False)
    sizes = {(None, None): (num_samples, d_in, d_in)}
    (group,) = plan_sweep(configs, sizes, train_config).groups
    program = Program(
        configs[0].template, kernel=kernel, k_max=group.k_max, sequential=group.sequential
    )
    epoch = lowered(program, num_members, num_rest=0, size=(batch_size, d_in, width))
    # Samples lie beside the epoch's copy of them.
    needed = memory_of(epoch.compile()) + 4 * num_samples * d_in
    assert needed <= group.num_bytes <= 1.8 * needed


@pytest.mark.parametrize(
    ("products", "memory", "milliseconds"), [(165e9, 54e9, 17.6), (235e9, 50e9, 12.1)]
)
def test_two_processors_take_somewhat_less_than_formulas_say(products, memory, milliseconds):
    # The tables headline_zen4 and headline_intel of experiments/results/speed.md.
    size = 512, 2048, 256
    num_bytes = planning.memory_bytes(*size, rounds=planning.CPU_TOP_K_ROUNDS)
    expected = planning.flops(*size) / products + num_bytes / memory
    assert 1.0 < 1000 * expected / milliseconds < 1.15
    assert f"{1000 * expected:.1f}" in DOCUMENT


@pytest.mark.parametrize(
    ("dtype", "milliseconds"), [("float32", 4.48), ("tf32", 2.23), ("bfloat16", 2.04)]
)
def test_an_h100_takes_what_formulas_say(dtype, milliseconds):
    # The table gpu_step of experiments/results/speed.md.
    found = 1000 * planning.step_seconds(H100, dtype, 12, 2048, 2048, 256)
    assert found == pytest.approx(milliseconds, rel=0.05)


def devices(chip, number, platform):
    stats = {"bytes_limit": chip.memory}
    return (
        SimpleNamespace(process_index=0, platform=platform, memory_stats=lambda: stats),
    ) * number


def grid_rows():
    for mesh in [(1, 1, 1), (8, 1, 1), (4, 2, 1)]:
        for dtype in ("float32", "tf32", "bfloat16"):
            seconds = planning.step_seconds(H100, dtype, 12, 2048, 2048, 256, mesh)
            totals = [96 * seconds * planning.num_steps(5978, 256, epochs) for epochs in (2, 25)]
            name = {1: "", 8: "`members:8`", 4: "`members:4,data:2`"}[mesh[0]]
            yield (
                f"| {mesh[0] * mesh[1]} | {name} | {dtype} | {1000 * seconds:.1f}"
                f" | {totals[0]:.0f} s | {totals[1]:.0f} s |"
            )


def million_rows():
    for mesh, batch_size in [((1, 1, 64), 4096), ((1, 1, 64), 16384), ((1, 8, 8), 4096)]:
        placement = Placement(devices(V5P, 64, "tpu"), mesh)
        sizes = {(None, None): (BILLION, 4096, 4096)}
        train_config = TrainConfig(batch_size=batch_size)
        (group,) = plan_sweep([SAEConfig(MILLION, 64)], sizes, train_config, placement).groups
        seconds = planning.step_seconds(V5P, "bfloat16", 1, MILLION, 4096, batch_size, mesh)
        hours = seconds * planning.num_steps(BILLION, batch_size) / 3600
        sent = planning.sent_bytes(MILLION, 4096, batch_size, mesh)
        name = "`latents:64`" if mesh[1] == 1 else "`data:8,latents:8`"
        yield (
            f"| {name} | {batch_size:,} | {group.num_bytes / 1e9:.0f} GB | {sent / 1e9:.2f} GB"
            f" | {1000 * seconds:.0f} | {hours:.1f} h |"
        )


def disk_rows():
    for d_in, speed in READ_FROM_DISK.items():
        store = 2 * d_in * BILLION
        yield (
            f"| {d_in} | {store / 1e12:.2f} TB | {BILLION / speed / 3600:.1f} h"
            f" | {BILLION / 1e5 / 3600:.1f} h | {store / 6.5e9 / 60:.0f} min |"
        )


@pytest.mark.parametrize("rows", [grid_rows, million_rows, disk_rows])
def test_the_document_says_what_the_formulas_give(rows):
    assert "\n".join(rows()) in DOCUMENT


def test_the_document_says_what_the_text_between_its_tables_does():
    demand = 4096 / planning.step_seconds(H100, "tf32", 1, 16384, 2048, 4096)
    assert f"{round(demand, -3):,.0f} samples a second" in DOCUMENT.replace("\n", " ")
    assert f"{demand / READ_FROM_DISK[2048]:.1f} times what two cores gave" in DOCUMENT
    assert f"State is {12 * planning.num_params(MILLION, 4096) / 1e9:.0f} GB" in DOCUMENT
    batch_sizes = [planning.balanced_batch_size(H100, dtype) for dtype in ("float32", "tf32")]
    assert "{:.0f} samples in float32, {:,.0f} in TF32".format(*batch_sizes) in DOCUMENT


def test_the_document_says_what_one_gpu_takes_without_padding():
    def seconds(dtype):
        widths = (512, 1024, 2048)
        steps = (planning.step_seconds(H100, dtype, 4, width, 2048, 256) for width in widths)
        return 96 * planning.num_steps(5978, 256, 25) * sum(steps)

    found = f"{seconds('float32'):.0f} s in float32 and {seconds('tf32'):.0f} s in TF32"
    assert found in DOCUMENT.replace("\n", " ")


def test_the_document_says_what_network_cards_make_of_a_mesh():
    def milliseconds(link_speed, mesh):
        chip = dataclasses.replace(H100, link_speed=link_speed)
        return 1000 * planning.step_seconds(chip, "bfloat16", 1, MILLION, 4096, 4096, mesh)

    together, alone = milliseconds(8 * 50e9, (1, 1, 64)), milliseconds(50e9, (1, 8, 8))
    document = DOCUMENT.replace("\n", " ")
    assert f"would take {together:.0f} ms: one ring through all" in document
    assert f"a step would take {alone:.0f} ms" in document


def test_the_plan_makes_the_groups_that_the_document_says():
    configs = [
        SAEConfig(d_sae, k, layer=layer, position=position)
        for layer in range(16)
        for position in range(6)
        for k in (5, 10, 20, 100)
        for d_sae in (512, 1024, 2048)
    ]
    sizes = {config.data_slice: (5978, 2048, 2048) for config in configs}
    plan = plan_sweep(configs, sizes, TrainConfig(), Placement(devices(H100, 1, "gpu")))
    found = {
        (len(g.members), g.width, f"{g.padding:.1%}", f"{g.num_bytes / 1e9:.1f}")
        for g in plan.groups
    }
    assert (len(plan.groups), found) == (96, {(12, 2048, "41.7%", "2.3")})
