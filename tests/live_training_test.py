"""A sweep trains on activations while they are extracted, and they never all lie on the disk."""

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import live_rows
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from live_rows import D_IN, LAYERS, WINDOW

import sae_jax
from sae_jax.activations import live as live_module
from sae_jax.activations.locks import lock
from sae_jax.activations.manifest import shard_file
from sae_jax.activations.released import read_released
from sae_jax.activations.slices import slices_of
from sae_jax.activations.writer import StoreWriter, write_store
from sae_jax.extraction import extract as extract_module
from sae_jax.extraction.models import load_model
from sae_jax.problems import Problem
from sae_jax.sweep.batches import WindowedOrder
from sae_jax.sweep.placement import Placement
from sae_jax.sweep.samples import SweepSamples
from sae_jax.sweep.streamed import Streamed

SUPPORT = Path(live_rows.__file__).parent
PLAN = live_rows.plan_of()
SHARDS = [live_rows.shard_of(PLAN, shard) for shard in range(PLAN.num_shards)]
ROWS = {layer: np.concatenate([s[i, 0] for s in SHARDS]) for i, layer in enumerate(LAYERS)}
ENDS = [sum(s.shape[2] for s in SHARDS[: end + WINDOW]) for end in range(0, 14, WINDOW)]
NUM_ROWS = ENDS[-1]
BATCH_SIZE = 32
# A batch has 1.5 KiB; two of them, one of 64 KiB, are a part.
CONFIG = sae_jax.TrainConfig(epochs=1, batch_size=BATCH_SIZE, memory_budget=2**19)
# Three groups.
CONFIGS = [
    sae_jax.SAEConfig(16, k=3, layer=1, position="all"),
    sae_jax.SAEConfig(16, k=2, layer=1, position="all"),
    sae_jax.SAEConfig(20, k=3, layer=2, position="all"),
    sae_jax.SAEConfig(16, k=3, layer=2, position="all", data_seed=7),
]
VAL = {
    (layer, "all"): np.random.default_rng(99 + layer).normal(size=(60, D_IN)).astype(np.float32)
    for layer in LAYERS
}


def windowed_order(data_seed):
    """All rows in the order in which they are trained on."""
    windows = np.split(np.arange(NUM_ROWS), ENDS[:-1])
    draws = [np.random.default_rng([data_seed, w]) for w in range(len(windows))]
    return np.concatenate([w[d.permutation(len(w))] for w, d in zip(windows, draws, strict=True)])


@contextmanager
def made(folder, **options):
    """Another thread writes the shards meanwhile; gives what says how many were there at once."""
    with ThreadPoolExecutor(1) as thread:
        most = thread.submit(live_rows.make, folder, **options)
        while not most.done() and not (folder / "problems.jsonl").exists():
            time.sleep(0.01)
        yield most


def train(folder, checkpoints, configs=CONFIGS, **options):
    live = sae_jax.LiveStore.open(folder)
    train = [live.select(layer, "all") for layer in sorted({c.layer for c in configs})]
    val = {(part.layer, "all"): VAL[part.layer, "all"] for part in train}
    return sae_jax.train_sweep(
        configs, train, val, CONFIG, checkpoint_dir=checkpoints, progress=False, **options
    )


def assert_identical(result, expected, *, but=()):
    for member, other in zip(result.members, expected.members, strict=True):
        np.testing.assert_array_equal(member.losses, other.losses)
        for name, array in other.params.items():
            np.testing.assert_array_equal(member.params[name], array, err_msg=name)
        scores, others = ({**m.metrics, **dict.fromkeys(but)} for m in (member, other))
        assert scores == others


@pytest.fixture(scope="module")
def whole():
    """Training on the same rows in memory, in parts of the same size, and in the same order."""

    def order(data_seed, epoch, num_samples):
        assert epoch == 0
        assert num_samples == NUM_ROWS
        return windowed_order(data_seed)

    train = {(layer, "all"): ROWS[layer] for layer in LAYERS}
    config = sae_jax.TrainConfig(1, BATCH_SIZE, memory_budget=2**19, stream=True)
    groups = sae_jax.plan_for(CONFIGS, train, config).groups
    assert [group.steps_per_part for group in groups] == [2, 2, 2]
    with mock.patch("sae_jax.sweep.streamed.epoch_order", order):
        return sae_jax.train_sweep(CONFIGS, train, VAL, config, progress=False)


@given(
    sizes=st.lists(st.integers(1, 20), min_size=1, max_size=6),
    data_seed=st.integers(0, 2**32 - 1),
    data=st.data(),
)
def test_rows_are_shuffled_within_their_window_alone(sizes, data_seed, data):
    ends = np.cumsum(sizes).tolist()
    order = WindowedOrder(data_seed, ends)
    whole = order[:]
    for end, size in zip(ends, sizes, strict=True):
        assert sorted(whole[end - size : end]) == list(range(end - size, end))
    first, last = (data.draw(st.integers(0, ends[-1])) for _ in range(2))
    np.testing.assert_array_equal(order[first:last], whole[first:last])
    np.testing.assert_array_equal(WindowedOrder(data_seed, ends)[first:], whole[first:])


def test_every_window_and_seed_has_an_order_of_its_own():
    orders = [WindowedOrder(seed, [50, 100])[:] for seed in (0, 1)]
    halves = [tuple(half) for order in orders for half in (order[:50], order[50:] - 50)]
    assert len(set(halves)) == 4
    assert tuple(range(50)) not in halves


def test_batches_are_the_rows_in_windowed_order_from_any_part_on(tmp_path):
    with made(tmp_path, last=14, window=14):
        live = sae_jax.LiveStore.open(tmp_path)
        live.ends = tuple(ENDS)
        source = Streamed(live.select(2, "all").matrix, BATCH_SIZE, 2, Placement.default())
        for first in (0, 5):
            parts = list(source.parts(3, first, source.parts_per_epoch))
            found = [np.asarray(part.full.x).reshape(-1, D_IN) for part in parts]
            found = np.concatenate([*found, parts[-1].rest.x])
            order = windowed_order(3)[first * 2 * BATCH_SIZE :]
            np.testing.assert_array_equal(found, ROWS[2][order])


def test_training_is_that_on_rows_stored_whole_and_the_disk_holds_three_windows(tmp_path, whole):
    folder = tmp_path / "live"
    with made(folder) as most:
        result = train(folder, tmp_path / "checkpoints")
    # Of the whole, the offset is that of all samples.
    assert_identical(result, whole, but=["offset_severity"])
    assert WINDOW < most.result() <= 3 * WINDOW < PLAN.num_shards
    shards = sorted(int(file.stem) for file in (folder / "shards").iterdir())
    assert shards == [*range(WINDOW)], "the first window stays"
    assert read_released(folder) == len(ENDS)
    assert result.data == {"live": sae_jax.LiveStore.open(folder).fingerprint}


class Crash(Exception):
    pass


@pytest.mark.parametrize("num_calls", [1, 4, 9, 22])
def test_a_crash_in_training_costs_nothing_that_is_gone(tmp_path, whole, num_calls):
    train_epoch, calls = sae_jax.sweep.loop.train_epoch, []

    def crashing(*args, **kwargs):
        calls.append(args)
        if len(calls) == num_calls:
            raise Crash
        return train_epoch(*args, **kwargs)

    folder, checkpoints = tmp_path / "live", tmp_path / "checkpoints"
    with made(folder) as most:
        with (
            mock.patch("sae_jax.sweep.loop.train_epoch", crashing),
            pytest.raises(Crash),
        ):
            train(folder, checkpoints)
        assert_identical(train(folder, checkpoints), whole, but=["offset_severity"])
    assert most.result() <= 3 * WINDOW


def test_a_finished_training_is_only_scored_again(tmp_path, whole):
    folder, checkpoints = tmp_path / "live", tmp_path / "checkpoints"
    with made(folder):
        train(folder, checkpoints)
    with mock.patch("sae_jax.sweep.loop.train_epoch", side_effect=Crash):
        assert_identical(train(folder, checkpoints), whole, but=["offset_severity"])
    with pytest.raises(ValueError, match="start in window 0 of .* 7 of 7 windows were trained on"):
        train(folder, tmp_path / "others")


def test_a_dead_extraction_is_noticed_in_seconds_and_both_sides_go_on(tmp_path, whole, monkeypatch):
    monkeypatch.setattr(live_module, "_PATIENCE", 1.0)
    folder, checkpoints = tmp_path / "live", tmp_path / "checkpoints"
    with made(folder, last=5) as most:
        most.exception()
        began = time.monotonic()
        missing = folder / shard_file(5)
        with pytest.raises(ValueError, match=f"{missing} is missing and no process extracts"):
            train(folder, checkpoints)
        assert time.monotonic() - began < 60, "most of it compiles"
    with made(folder, resume=True) as most:
        assert_identical(train(folder, checkpoints), whole, but=["offset_severity"])
    assert most.result() <= 3 * WINDOW
