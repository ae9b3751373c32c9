"""What a sweep's time is estimated from, by hand, and that plans print it."""

import dataclasses

import numpy as np
import pytest

import sae_jax
from sae_jax.ops import native
from sae_jax.ops.tuning import (
    CPU_FIRING_SHARE,
    CPU_HELP,
    CPU_SECONDS_OF_WORK,
    NATIVE_SECONDS_OF_WORK,
)
from sae_jax.sweep.estimate import Work, seconds_of, work_of
from sae_jax.sweep.placement import Placement
from sae_jax.sweep.plan import Group, Plan

CONFIG = sae_jax.SAEConfig(d_sae=32, k=4)
TRAIN_CONFIG = sae_jax.TrainConfig(epochs=3, batch_size=50)
SIZES = {(None, None): (120, 16, 16)}


def work(*groups, **changes):
    train_config = dataclasses.replace(TRAIN_CONFIG, **changes)
    num_members = 1 + max(max(group.members) for group in groups)
    configs = [CONFIG] * num_members
    return work_of(Plan(groups), configs, SIZES, train_config, Placement.default())


def group(*members, **fields):
    return Group(members, (None, None), 32, 0.0, 0, 0, **fields)


def test_the_work_of_two_members_in_turns_is_that_by_hand():
    found = work(group(0, 1))
    samples, steps = 2 * 3 * 120, 2 * 3 * 3
    assert found == Work(
        programs=1,
        scoring_programs=1,
        steps=steps,
        products=2 * samples * 5 * 16 * 32 / CPU_HELP,
        activations=samples * 32,
        parameters=steps * 2 * 16 * 32,
        scores=2 * 2 * 32 * (30 * 32 + 32 * 16),
    )


def test_bfloat16_products_count_by_themselves():
    found, in_float32 = work(group(0, 1), compute_dtype="bfloat16"), work(group(0, 1))
    assert found.bfloat16_products == in_float32.products
    assert found.products == 0


def test_only_the_encoder_multiplies_latents_that_do_not_fire_or_are_not_selected():
    dense = work(group(0)).products
    firing = work(group(0, kernel="firing_rows"))
    assert firing.products == pytest.approx(dense * (1 + 4 * CPU_FIRING_SHARE) / 5)
    assert (firing.programs, firing.firing_programs) == (1, 1)
    selected = work(group(0, kernel="selected_rows", k_max=4))
    assert selected.products == pytest.approx(dense / 5)
    assert selected.row_products == pytest.approx(2 * 3 * 120 * 4 * 16 * 4 / CPU_HELP)


def test_groups_of_equal_shapes_compile_once():
    assert work(group(0, 1), group(2, 3)).programs == 1
    assert work(group(0, 1), group(2)).programs == 2


def test_groups_of_one_scored_width_compile_scoring_once():
    assert work(group(0, 1), group(2)).scoring_programs == 1
    wide = group(2, scored_width=48)
    found = work(group(0, 1), wide)
    assert found.scoring_programs == 2
    assert found.scores - work(group(0, 1), group(2)).scores == pytest.approx(
        2 * (48 * (30 * 32 + 48 * 16) - 32 * (30 * 32 + 32 * 16))
    )


@pytest.mark.parametrize(
    ("is_built", "constants"), [(True, NATIVE_SECONDS_OF_WORK), (False, CPU_SECONDS_OF_WORK)]
)
def test_the_seconds_are_those_of_each_kind_of_work_added_up(is_built, constants, monkeypatch):
    monkeypatch.setattr(native, "is_built", lambda: is_built)
    for kind, seconds in zip(Work._fields, constants, strict=True):
        assert seconds_of(Work(**{kind: 2.0})) == pytest.approx(2 * seconds)
    assert seconds_of(Work(programs=1.0, steps=1.0)) == pytest.approx(constants[0] + constants[3])


def test_a_plan_ends_with_the_time_that_it_should_take():
    x = np.random.default_rng(0).standard_normal((120, 16), np.float32)
    plan = sae_jax.plan_for([CONFIG], x, TRAIN_CONFIG)
    longer = sae_jax.plan_for([CONFIG], x, dataclasses.replace(TRAIN_CONFIG, epochs=100_000))
    assert str(plan).splitlines()[-1] == f"estimated time: {plan.seconds:.0f} s"
    assert longer.seconds > 10 * plan.seconds > 0
