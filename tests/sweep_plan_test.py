import itertools
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_jax import SAEConfig, TrainConfig, grid
from sae_jax.ops import native
from sae_jax.sweep import placement
from sae_jax.sweep.loop import plan_for
from sae_jax.sweep.placement import Placement
from sae_jax.sweep.plan import Group, Plan, plan_sweep
from sae_jax.sweep.widths import cheapest_widths

SLICE = (14, 3)
SIZES = {SLICE: (5978, 2048, 2048)}
MIB = 2**20


@pytest.fixture(autouse=True, scope="module")
def _kernels_are_those_of_xla():
    """With the loops in C++ others are chosen: see `sweep_kernels_test`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "is_built", lambda: False)
        yield


def on(platform, stats=None):
    """A placement on a device that is not there."""
    return Placement(
        (SimpleNamespace(process_index=0, platform=platform, memory_stats=lambda: stats),)
    )


def on_many(shape, platform="gpu"):
    """A placement on devices that are not there."""
    devices = on(platform).devices * (shape[0] * shape[1] * shape[2])
    return Placement(devices, shape)


def members(*sizes, layer=14, position=3):
    return [SAEConfig(d_sae=d, k=1, layer=layer, position=position) for d in sizes]


def widths_and_members(plan):
    return [(group.width, group.members) for group in plan.groups]


def test_equal_sizes_make_one_group():
    plan = plan_sweep(members(512, 512, 512), SIZES, TrainConfig(max_padding=0.0))
    assert widths_and_members(plan) == [(512, (0, 1, 2))]
    assert plan.groups[0].padding == 0.0


def test_no_padding_allowed_makes_a_group_a_size():
    plan = plan_sweep(members(250, 512, 250, 100), SIZES, TrainConfig(max_padding=0.0))
    assert widths_and_members(plan) == [(512, (1,)), (250, (0, 2)), (100, (3,))]


def test_padding_share_by_hand():
    # 512 + 480 + 250 = 1242 of 3 * 512 = 1536: 19.1 % is padding; 512 + 480 alone, 3.1 %.
    loose = plan_sweep(members(512, 480, 250), SIZES, TrainConfig(kernel="dense", max_padding=0.2))
    assert widths_and_members(loose) == [(512, (0, 1, 2))]
    assert loose.groups[0].padding == pytest.approx(1 - 1242 / 1536)
    tight = plan_sweep(members(512, 480, 250), SIZES, TrainConfig(kernel="dense", max_padding=0.19))
    assert widths_and_members(tight) == [(512, (0, 1)), (250, (2,))]


@pytest.mark.parametrize(
    ("backend", "sizes", "num_groups"),
    [
        # A padding latent takes 10 * 2048 * 5978 * 25 operations, 19.1 ms, and programs 3.5 s.
        ("cpu", (1000, 820), 1),
        ("cpu", (1000, 814), 2),
        # 49 % of 3 * 1000, and 51 %.
        ("gpu", (1000, 300, 230), 1),
        ("gpu", (1000, 270, 200), 2),
    ],
)
def test_padding_allowed_by_default(backend, sizes, num_groups):
    plan = plan_sweep(members(*sizes), SIZES, TrainConfig(kernel="dense"), on(backend))
    assert len(plan.groups) == num_groups


def test_padding_latents_cost_a_third_where_they_do_not_fire():
    config = TrainConfig(kernel="firing_rows", max_padding=0.09)
    (group,) = plan_sweep(members(512, 480, 250), SIZES, config).groups
    # The others are spared a fifth.
    assert group.padding == pytest.approx(294 / 3 / (294 / 3 + 0.8 * 1242))
    # The encoder takes all latents of the group, the other four products only a member's own.
    assert group.flops_per_step == 2 * 256 * 2048 * (3 * 512 + 4 * 1242)


def test_flops_are_ten_for_each_sample_dimension_and_latent():
    config = TrainConfig(kernel="dense", max_padding=0.2)
    (group,) = plan_sweep(members(500, 512), SIZES, config).groups
    assert group.flops_per_step == 10 * 256 * 2048 * 512 * 2


def test_groups_of_other_widths_are_scored_alike_where_that_takes_less_than_compiling():
    def scored(num_samples, platform="cpu"):
        sizes, config = {SLICE: (num_samples, 576, 576)}, TrainConfig(max_padding=0)
        plan = plan_sweep(members(1000, 512, 512, 300), sizes, config, on(platform))
        return [group.scored_width for group in plan.groups]

    # A latent takes 2 * (1152 * 6000 / 4 + 2 * 576 * 1000) operations, 0.25 ms, and programs 1.6 s.
    assert scored(6000) == [None, 1000, 1000]
    # 3.6 ms: 212 for the third group are less than programs of its own, and 2 * 488 more.
    assert scored(140_000) == [None, None, 512]
    assert scored(2_000_000) == [None, None, None]
    assert scored(6000, "gpu") == [None, None, None]


def test_members_are_not_scored_wider_than_memory_allows():
    # Results of three of 500 latents are more than those of one of 1000, by 16,500 floats; what is
    # scored is the same.
    configs, sizes = members(1000, 500, 500, 500), {SLICE: (9, 16, 16)}
    least = plan_sweep(configs[:1], sizes, TrainConfig()).groups[0].num_bytes
    for budget, scored_width in ((least, None), (2 * least, 1000)):
        config = TrainConfig(max_padding=0, memory_budget=budget)
        wide, narrow = plan_sweep(configs, sizes, config).groups
        assert (wide.scored_width, narrow.scored_width) == (None, scored_width)
        assert narrow.num_bytes <= budget


def test_slices_are_never_mixed():
    configs = members(512, 512) + members(512, layer=15) + members(512, position=0)
    sizes = {(14, 3): (100, 64, 64), (15, 3): (100, 64, 64), (14, 0): (100, 64, 64)}
    plan = plan_sweep(configs, sizes, TrainConfig(max_padding=0.5))
    assert [(g.data_slice, g.members) for g in plan.groups] == [
        ((14, 3), (0, 1)),
        ((15, 3), (2,)),
        ((14, 0), (3,)),
    ]


def test_members_train_in_turns_on_a_cpu():
    for num_members, d_sae in ((1, 512), (2, 512), (3, 512), (8, 4)):
        config = TrainConfig(kernel="dense")
        (group,) = plan_sweep(members(*[d_sae] * num_members), SIZES, config).groups
        assert group.sequential


def test_accelerators_train_side_by_side_with_the_dense_kernel():
    for num_members in (1, 3):
        (group,) = plan_sweep(
            members(*[4096] * num_members), SIZES, TrainConfig(), on("gpu")
        ).groups
        assert (group.kernel, group.sequential) == ("dense", False)


def test_a_group_takes_four_fifths_of_an_accelerators_memory():
    configs = members(*[512] * 10)
    (whole,) = plan_sweep(configs, SIZES, TrainConfig()).groups
    for share, num_groups in ((0.79, 1), (0.81, 2)):
        stats = {"bytes_limit": int(whole.num_bytes / share), "bytes_in_use": 0}
        plan = plan_sweep(configs, SIZES, TrainConfig(), on("cpu", stats))
        assert len(plan.groups) == num_groups


@pytest.mark.parametrize(
    ("d_in", "d_sae", "k", "dtype", "kernel"),
    [
        (64, 1023, 1, "float32", "dense"),
        (64, 1024, 16, "float32", "selected_rows"),
        (64, 1087, 17, "float32", "dense"),
        (64, 1088, 17, "float32", "selected_rows"),
        (64, 1087, 17, "tf32", "dense"),
        (64, 1088, 17, "tf32", "selected_rows"),
        (64, 1359, 17, "bfloat16", "dense"),
        (64, 1360, 17, "bfloat16", "selected_rows"),
        (200, 999, 50, "float32", "dense"),
        (200, 1000, 50, "float32", "firing_rows"),
        (200, 1000, 50, "tf32", "firing_rows"),
        (200, 1000, 50, "bfloat16", "dense"),
    ],
)
def test_the_kernel_that_was_fastest_on_a_cpu_is_chosen(d_in, d_sae, k, dtype, kernel):
    config = TrainConfig(compute_dtype=dtype, epochs=200)
    sizes = {(None, None): (20_000, d_in, d_in)}
    (group,) = plan_sweep([SAEConfig(d_sae, k)], sizes, config).groups
    assert group.kernel == kernel


def kernels_and_widths(num_members, epochs, **config):
    """Of members of which the last is too small for the kernel on firing rows."""
    configs = members(*[512] * num_members, 64)
    plan = plan_sweep(configs, SIZES, TrainConfig(epochs=epochs, **config))
    return [(group.kernel, group.width) for group in plan.groups]


# A latent takes p = 10 * 2048 * 5978 / 1.6e11 = 0.000765 seconds an epoch. Programs of a width
# compile for 3.5 seconds, and 1.3 longer on firing rows, which spare a fifth of what the larger
# members take, and two thirds of padding.
def test_the_kernel_on_firing_rows_is_compiled_for_those_who_train_long_enough():
    # One member takes 3.5 + 512 p E seconds dense, and 4.8 + 409.6 p E on firing rows.
    assert kernels_and_widths(1, 16, max_padding=0) == [("dense", 512), ("dense", 64)]
    assert kernels_and_widths(1, 17, max_padding=0) == [("firing_rows", 512), ("dense", 64)]
    # Two take 3.5 + 1024 p E and 4.8 + 819.2 p E.
    assert kernels_and_widths(2, 8, max_padding=0.9) == [("dense", 512)]
    assert kernels_and_widths(2, 9, max_padding=0.9) == [("firing_rows", 512), ("dense", 64)]
    assert kernels_and_widths(1, 1, kernel="firing_rows") == [("firing_rows", 512)]


def test_a_small_member_joins_larger_ones_on_firing_rows_where_a_program_costs_more():
    # All dense takes 3.5 + 1024 p E seconds, all on firing rows 4.8 + 622.9 p E, and a program
    # for each of both 8.3 + 473.6 p E.
    assert kernels_and_widths(1, 4) == [("dense", 512)]
    assert kernels_and_widths(1, 5) == [("firing_rows", 512)]
    assert kernels_and_widths(1, 30) == [("firing_rows", 512)]
    assert kernels_and_widths(1, 31) == [("firing_rows", 512), ("dense", 64)]
    # Padding that the user bounds joins nobody.
    assert kernels_and_widths(1, 30, max_padding=0.9) == [("firing_rows", 512), ("dense", 64)]


def test_nobody_joins_members_that_see_other_batches():
    configs = [*members(512), *members(64, layer=15)]
    sizes = SIZES | {(15, 3): SIZES[SLICE]}
    plan = plan_sweep(configs, sizes, TrainConfig(epochs=16))
    assert [(group.kernel, group.width) for group in plan.groups] == [("dense", 512), ("dense", 64)]
    plan = plan_sweep(configs, sizes, TrainConfig(epochs=17))
    assert [group.kernel for group in plan.groups] == ["firing_rows", "dense"]


def test_equal_groups_of_other_batches_share_what_firing_rows_take_to_compile():
    configs = [*members(512), *members(512, layer=15)]
    sizes = SIZES | {(15, 3): SIZES[SLICE]}
    for epochs, kernel in ((8, "dense"), (9, "firing_rows")):
        plan = plan_sweep(configs, sizes, TrainConfig(epochs=epochs))
        assert [group.kernel for group in plan.groups] == [kernel] * 2


def test_sizes_that_may_not_be_padded_compile_firing_rows_each():
    # 3 times 1.3 seconds for a fifth of 1344 p E: from 19 epochs on.
    configs = members(512, 448, 384)
    for epochs, kernel in ((18, "dense"), (19, "firing_rows")):
        plan = plan_sweep(configs, SIZES, TrainConfig(epochs=epochs, max_padding=0))
        assert [group.kernel for group in plan.groups] == [kernel] * 3


def test_members_that_firing_rows_do_not_serve_stay_dense():
    configs = [*members(512, 512), *grid(d_sae=64, k=1, layer=14, position=3, k_anneal_steps=9)]
    plan = plan_sweep(configs, SIZES, TrainConfig(epochs=12))
    assert [group.kernel for group in plan.groups] == ["firing_rows", "dense"]


def test_memory_budget_cuts_a_sweep_into_groups():
    configs = members(*[512] * 10)
    (whole,) = plan_sweep(configs, SIZES, TrainConfig()).groups
    params = 2 * 2048 * 512 + 512 + 2048
    data = 5978 * 2048
    # At the least: parameters and two moments of all, gradients of one, and the samples.
    assert whole.num_bytes > 4 * (3 * 10 * params + params + data)
    assert whole.num_bytes < 4 * (8 * 10 * params + 2 * data)

    budget = whole.num_bytes // 2
    plan = plan_sweep(configs, SIZES, TrainConfig(memory_budget=budget))
    assert len(plan.groups) > 1
    assert all(group.num_bytes <= budget for group in plan.groups)
    assert sorted(i for group in plan.groups for i in group.members) == list(range(10))


def test_scoring_is_part_of_the_memory_and_takes_as_many_at_once_as_fit():
    # 3 members of d_sae 64 at D 64: 2 * 64 * 64 + 64 + 64 = 8,320 parameters each. To train:
    # 3 copies, 2 more for gradients, 256 x (4 * 64 + 3 * 64) activations, of all. To score: 2
    # copies of all; of those at once 1.5 and 512 x (6 * 64 + 4 * 64) activations.
    training = 3 * (5 * 8320 + 256 * 448) + 100 * 64
    scoring = [3 * 2 * 8320 + 100 * 64 + n * (1.5 * 8320 + 512 * 640) for n in (1, 2, 3)]
    sizes = {SLICE: (100, 64, 64)}
    for n, budget in ((3, 2**30), (3, 4 * scoring[2]), (2, 4 * scoring[2] - 4)):
        config = TrainConfig(memory_budget=int(budget))
        (group,) = plan_sweep(members(64, 64, 64), sizes, config, on("gpu")).groups
        assert group.scored_at_once == n
        assert isinstance(group.scored_at_once, int)
        assert group.num_bytes == 4 * max(training, scoring[n - 1]) <= budget
    # One after the other where they train so.
    (group,) = plan_sweep(members(*[512] * 10), SIZES, TrainConfig()).groups
    assert (group.sequential, group.scored_at_once) == (True, 1)


@pytest.mark.parametrize(
    ("num_members", "num_samples", "d_in", "batch_size", "num_floats"),
    [
        # To train: 3 copies of all parameters and 5 of one member's, its activations, the data.
        (3, 5978, 2048, 256, (9 + 5) * 2_099_712 + 256 * (4 * 512 + 3 * 2048) + 2 * 5978 * 2048),
        # To read a checkpoint: 3 copies of all, and half of each three times more.
        (10, 256, 2048, 256, 45 * 2_099_712),
        # To score: 2 copies of all and 1.5 of one, its activations, the data.
        (2, 10, 16, 1, (4 + 1.5) * 16_912 + 512 * (6 * 512 + 4 * 16) + 10 * 16),
    ],
    ids=["training", "reading", "scoring"],
)
def test_memory_of_members_that_take_turns(num_members, num_samples, d_in, batch_size, num_floats):
    config = TrainConfig(kernel="firing_rows", batch_size=batch_size)
    sizes = {SLICE: (num_samples, d_in, d_in)}
    (group,) = plan_sweep(members(*[512] * num_members), sizes, config).groups
    assert group.num_bytes == 4 * num_floats


def test_flops_of_the_kernel_on_selected_rows_follow_the_largest_k():
    configs = [SAEConfig(512, 3), SAEConfig(512, 5)]
    config = TrainConfig(kernel="selected_rows")
    (group,) = plan_sweep(configs, {(None, None): (100, 64, 64)}, config).groups
    assert group.flops_per_step == 2 * 256 * 64 * 2 * (512 + 4 * 5)


def test_a_member_that_does_not_fit_is_named_with_its_need():
    with pytest.raises(
        ValueError, match=r"a member of d_sae 512 needs about [\d,]+ bytes; memory_budget is 1,048"
    ):
        plan_sweep(members(512), SIZES, TrainConfig(memory_budget=MIB))


def test_a_member_that_just_fits_is_planned():
    (group,) = plan_sweep(members(512), SIZES, TrainConfig()).groups
    just, less = (
        TrainConfig(memory_budget=group.num_bytes - lack, stream=False) for lack in (0, 1)
    )
    assert plan_sweep(members(512), SIZES, just).groups == (group,)
    with pytest.raises(ValueError, match="a member of d_sae 512 needs"):
        plan_sweep(members(512), SIZES, less)


def test_half_of_the_machines_memory_is_a_whole_number(monkeypatch):
    monkeypatch.setattr(placement, "memory_limit", lambda: 2 * MIB + 1)
    with pytest.raises(ValueError, match="; memory_budget is 1,048,576$"):
        plan_sweep(members(512), SIZES, TrainConfig())


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 600), st.sampled_from([0, 3])), min_size=1, max_size=20),
    st.floats(0, 0.9),
    st.integers(30, 200),
)
def test_every_member_is_planned_once_within_the_limits(sizes, max_padding, budget_mib):
    configs = [SAEConfig(d_sae=d, k=1, layer=14, position=p) for d, p in sizes]
    data_sizes = {(14, 0): (500, 512, 512), (14, 3): (500, 512, 512)}
    train_config = TrainConfig(max_padding=max_padding, memory_budget=budget_mib * MIB)
    plan = plan_sweep(configs, data_sizes, train_config)
    assert sorted(i for group in plan.groups for i in group.members) == list(range(len(configs)))
    for group in plan.groups:
        d_sae = np.array([configs[i].d_sae for i in group.members])
        assert group.width == d_sae.max()
        cost, others = {"dense": (1, 1), "firing_rows": (1 / 3, 0.8)}[group.kernel]
        padding = cost * (group.width - d_sae).sum()
        assert group.padding == pytest.approx(padding / (padding + others * d_sae.sum()))
        assert group.padding <= max_padding + 1e-9
        assert group.num_bytes <= budget_mib * MIB
        assert {configs[i].data_slice for i in group.members} == {group.data_slice}
    assert plan == plan_sweep(configs, data_sizes, train_config)


def test_the_published_grid_wastes_little_by_default():
    sizes = (100, 150, 250, 300, 375, 512, 750, 1000)
    plan = plan_sweep(members(*sizes * 2), SIZES, TrainConfig())
    assert all(group.padding <= 0.5 for group in plan.groups)
    assert sorted(i for group in plan.groups for i in group.members) == list(range(16))


def test_a_group_prints_under_the_names_of_its_columns():
    group = Group(
        (0, 1), (14, 3), 512, 0.125, 3 * MIB, 2_500_000_000, "firing_rows", sequential=True
    )
    assert str(Plan((group,), {(14, 3): 1.947})).splitlines() == [
        "group  members  order         width  kernel         samples    layer  position  padding"
        "  memory [MiB]  GFLOP/step  offset severity",
        "    0        2  in turns        512  firing_rows    on device     14         3    12.5%"
        "           3.0        2.50             1.95",
    ]


def test_plan_prints_as_a_table_before_training():
    x = np.random.default_rng(0).normal(size=(100, 64)).astype(np.float32)
    plan = plan_for(grid(d_sae=(64, 32), k=4, seed=range(3)), x, TrainConfig(max_padding=0.0))
    severity = f"{np.linalg.norm(x.mean(0)) / np.linalg.norm(x.std(0)):.2f}"
    # The second group is scored with 64 latents: results 6 * 4192 + 6400 floats, and of one member
    # 4192, 1.5 * 8320 and 512 * 10 * 64.
    header, *rows, _ = str(plan).splitlines()
    assert header.split()[:4] == ["group", "members", "order", "width"]
    assert [row.split() for row in rows] == [
        [
            *(str(i), "3", "in", "turns", width, "dense", "on", "device"),
            *("-", "-", "0.0%", mib, gflop, severity),
        ]
        for i, (width, mib, gflop) in enumerate((("64", "1.5", "0.03"), ("32", "1.4", "0.02")))
    ]


def test_members_on_devices_of_their_own_take_the_memory_of_fewer():
    configs = members(*[512] * 8)
    (whole,) = plan_sweep(configs, SIZES, TrainConfig(), on("gpu")).groups
    (two,) = plan_sweep(configs[:2], SIZES, TrainConfig(), on("gpu")).groups
    (spread,) = plan_sweep(configs, SIZES, TrainConfig(), on_many((4, 1, 1))).groups
    assert spread.members == whole.members
    assert spread.num_bytes == two.num_bytes


def test_a_dictionary_among_devices_takes_the_memory_of_a_part():
    small = {SLICE: (10, 2048, 2048)}
    configs = members(65_536)
    config = TrainConfig(batch_size=1)
    (quarter,) = plan_sweep(configs, small, config, on_many((1, 1, 4))).groups
    # Scoring takes most: parameters and results of a quarter of the latents, half of them again for
    # directions, activations of 512 samples, the directions of all latents, and the samples.
    own = (2048 + 2048 + 1) * 16_384 + 2048
    floats = 3.5 * own + 512 * (6 * 16_384 + 4 * 2048) + 65_536 * 2048 + 10 * 2048
    assert quarter.num_bytes == 4 * floats
    assert quarter.width == 65_536
    (odd,) = plan_sweep(members(65_533), small, config, on_many((1, 1, 4))).groups
    assert odd.width == 65_536


@pytest.mark.parametrize("shape", [(1, 2, 1), (1, 1, 2)])
def test_a_member_among_devices_has_the_dense_kernel(shape):
    sizes, placement = {SLICE: (5978, 2048, 2048)}, on_many(shape, "cpu")
    (group,) = plan_sweep(members(4096), sizes, TrainConfig(), placement).groups
    assert group.kernel == "dense"
    with pytest.raises(ValueError, match=r"on 2 cpu devices, .* is served by 'auto', 'dense'$"):
        plan_sweep(members(4096), sizes, TrainConfig(kernel="firing_rows"), placement)
    spread = on_many((2, 1, 1), "cpu")
    (group,) = plan_sweep(members(4096), sizes, TrainConfig(), spread).groups
    assert group.kernel == "selected_rows"


def seconds_of(sizes, widths, per_latent, per_program, at_once, per_idle_latent):
    padding = sum(widths[size] - size for size in sizes)
    seconds = per_latent * padding + per_program * len(set(widths.values()))
    for width in set(widths.values()):
        turns = np.ceil(sum(widths[size] == width for size in sizes) / at_once)
        idle = turns * at_once - sum(widths[size] == width for size in sizes)
        idle = min(idle, sum(widths[size] == width for size in sizes))
        seconds += per_idle_latent * idle * width
    return seconds


@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=8),
    per_latent=st.floats(0.01, 10),
    per_program=st.floats(0.01, 100),
    at_once=st.integers(1, 3),
    per_idle_latent=st.floats(0, 10),
)
def test_no_choice_of_widths_is_cheaper(sizes, per_latent, per_program, at_once, per_idle_latent):
    costs = per_latent, per_program, at_once, per_idle_latent
    widths = cheapest_widths(sizes, *costs)
    assert all(widths[size] >= size and widths[size] in sizes for size in sizes)
    distinct = sorted(set(sizes))
    every_choice = (
        {size: min(w for w in chosen if w >= size) for size in distinct}
        for number in range(len(distinct))
        for smaller in itertools.combinations(distinct[:-1], number)
        for chosen in [(*smaller, distinct[-1])]
    )
    least = min(seconds_of(sizes, each, *costs) for each in every_choice)
    assert seconds_of(sizes, widths, *costs) == pytest.approx(least)


def test_a_short_sweep_compiles_fewer_programs_than_a_long_one():
    def sizes_of(epochs, num_slices=1):
        configs = [
            SAEConfig(d_sae, 5, layer=layer)
            for layer in range(num_slices)
            for d_sae in (1000, 750, 512, 300)
        ]
        sizes = {(layer, None): (5978, 576, 576) for layer in range(num_slices)}
        plan = plan_sweep(configs, sizes, TrainConfig(epochs, kernel="dense"))
        groups = [group for group in plan.groups if group.data_slice == (0, None)]
        return [[configs[i].d_sae for i in group.members] for group in groups]

    # A padding latent costs 10 * 576 * 5978 operations an epoch, 0.22 ms, and a program 5.5 s,
    # of which forty slices bear 0.1 s each. With all at 1000 there are 1,438 padding latents: 0.3 s
    # of one epoch, 9.3 s of 30. With two at 1000 and two at 512 there are 462.
    assert sizes_of(1) == [[1000, 750, 512, 300]]
    assert sizes_of(30) == [[1000, 750], [512, 300]]
    assert sizes_of(30, 40) == [[1000], [750], [512], [300]]
