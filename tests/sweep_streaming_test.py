"""Samples that do not fit memory train as those that do."""

import json
import os
import resource
import signal
import subprocess
import sys
import textwrap
import tracemalloc
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sae_jax
from sae_jax.activations.manifest import MANIFEST_NAME, file_entry, shard_file
from sae_jax.activations.matrix import OnDemand
from sae_jax.activations.slices import offset_severity, slices_of
from sae_jax.activations.store import open_shard
from sae_jax.activations.writer import StorePlan, StoreWriter
from sae_jax.metrics.quality import outlier_rows
from sae_jax.problems import Problem
from sae_jax.sweep.batches import InMemory, epoch_order
from sae_jax.sweep.checksums import fingerprint, fingerprint_of_samples
from sae_jax.sweep.loop import plan_for
from sae_jax.sweep.normalization import center_of, geometric_median, mean_and_scale
from sae_jax.sweep.placement import Placement
from sae_jax.sweep.plan import plan_sweep
from sae_jax.sweep.samples import SweepSamples
from sae_jax.sweep.streamed import Streamed

D_IN = 12
LAYERS = (1, 2)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def writer_of(folder, counts, layers=LAYERS, d_in=D_IN, shard_size=16, dtype="float16"):
    """Of a store of all tokens of some problems, which have so many each."""
    problems = [Problem(f"p{i}", "?", "1", ()) for i in range(len(counts))]
    plan = StorePlan("tiny", layers, ("all",), d_in, problems, {}, dtype, shard_size, counts)
    folder.mkdir()
    writer = StoreWriter(folder, plan)
    writer.prepare()
    return writer


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """793 rows of 200 problems in 13 shards."""
    writer = writer_of(tmp_path_factory.mktemp("streaming") / "store", [i % 9 for i in range(200)])
    for shard in writer.missing_shards():
        # An offset and dimensions of other spread, for normalization to find.
        x = normal(*writer.plan.shard_shape(shard), seed=shard)
        writer.write_shard(shard, x * np.linspace(0.5, 2, D_IN, dtype=np.float32) + 1)
    return writer.finish()


def samples_of(part):
    """All samples of a part in the order in which they are trained on."""
    return np.concatenate([np.asarray(part.full.x).reshape(-1, D_IN), np.asarray(part.rest.x)])


@settings(max_examples=40, deadline=None)
@given(
    n=st.sampled_from([1, 7, 50]),
    batch_size=st.integers(1, 60),
    steps_per_part=st.integers(1, 9),
    data_seed=st.sampled_from([0, 2**32 - 1]),
    skipped=st.integers(0, 6),
)
def test_batches_are_the_samples_in_the_order_of_their_epoch_from_any_part_on(
    n, batch_size, steps_per_part, data_seed, skipped
):
    x = normal(n, D_IN)
    source = Streamed(x, batch_size, steps_per_part, Placement.default())
    last = 2 * source.parts_per_epoch
    first = min(skipped, last)
    parts = list(source.parts(data_seed, first, last))
    steps = [source.first_step(part) for part in range(first, last + 1)]
    for part, before, after in zip(parts, steps[:-1], steps[1:], strict=True):
        assert part.full.x.shape[1:] == (batch_size, D_IN)
        assert len(part.full.x) + (len(part.rest.x) > 0) == after - before <= steps_per_part + 1
    assert steps[-1] == 2 * -(-n // batch_size)
    of_steps = np.concatenate([x[np.asarray(epoch_order(data_seed, e, n))] for e in range(2)])
    epoch, step = divmod(steps[0], -(-n // batch_size))
    expected = of_steps[epoch * n + step * batch_size :]
    found = np.concatenate([samples_of(part) for part in parts]) if parts else x[:0]
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("kind", ["none", "center_and_scale", "layer_norm"])
def test_batches_of_a_store_are_those_in_memory_bit_for_bit(store, kind):
    split = store.select(1, "all").split()
    data = (split.train, split.val, store.select(2, "all").split().train, split.val)
    samples = SweepSamples.of(*data, target_weights=[1.0, 4.0])
    in_memory, streamed = (
        samples.normalized((1, "all"), kind, streamed=streamed) for streamed in (False, True)
    )
    assert isinstance(in_memory.x, np.ndarray)
    assert isinstance(streamed.x, OnDemand)
    memory = InMemory(in_memory.x, 50, Placement.default(), in_memory.y)
    source = Streamed(streamed.x, 50, 2, Placement.default(), streamed.y)
    (whole,) = memory.parts(3, 1, 2)
    parts = list(source.parts(3, source.parts_per_epoch, 2 * source.parts_per_epoch))
    assert [len(part.full.x) for part in parts] == [2] * 6
    assert 0 < len(parts[-1].rest.x) < 50
    for name in ("x", "target"):
        found = [np.asarray(getattr(part.full, name)) for part in parts]
        np.testing.assert_array_equal(np.concatenate(found), getattr(whole.full, name))
        np.testing.assert_array_equal(getattr(parts[-1].rest, name), getattr(whole.rest, name))


def test_an_error_in_reading_ends_the_epoch():
    def read(rows):
        raise OSError("the disk is gone")

    source = Streamed(OnDemand((20, D_IN), read), 5, 2, Placement.default())
    with pytest.raises(OSError, match="the disk is gone"):
        list(source.parts(0, 0, 1))


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of 64 rows of 16."""
    monkeypatch.setattr("sae_jax.activations.matrix.BLOCK_BYTES", 64 * 16 * 4)


def test_statistics_of_many_blocks_are_those_of_all_samples(small_blocks):
    x = normal(500, 16) * np.linspace(0.1, 3, 16, dtype=np.float32) + 0.3
    exact = x.astype(np.float64)
    read = []

    def rows_of(rows):
        read.append(rows)
        return x[rows]

    lazy = OnDemand(x.shape, rows_of)
    mean, scale = mean_and_scale(lazy)
    assert len(read) == 16, "eight blocks, each read twice"
    np.testing.assert_allclose(mean, exact.mean(axis=0), rtol=1e-6)
    assert scale == pytest.approx(np.sqrt(np.mean((exact - exact.mean(axis=0)) ** 2)), rel=1e-6)
    severity = np.linalg.norm(exact.mean(axis=0)) / np.linalg.norm(exact.std(axis=0))
    assert offset_severity(lazy) == pytest.approx(severity, rel=1e-9)
    np.testing.assert_array_equal(center_of(lazy, "mean"), mean)
    median = geometric_median(lazy)
    to_median, to_mean = (np.linalg.norm(exact - c, axis=1).sum() for c in (median, mean))
    assert to_median < to_mean
    directions = (exact - median) / np.linalg.norm(exact - median, axis=1, keepdims=True)
    assert np.linalg.norm(directions.mean(axis=0)) < 1e-3, "they pull to all sides alike"
    norms = np.linalg.norm(exact, axis=1)
    assert set(np.flatnonzero(outlier_rows(lazy))) == set(np.argsort(-norms)[:5])
    assert fingerprint_of_samples(lazy) == fingerprint(x)


def test_bad_values_are_found_in_every_block(small_blocks):
    x = normal(500, 16)
    x[[450, 70, 71], 3] = np.nan
    slices = slices_of(OnDemand(x.shape, x.__getitem__), "train")
    with pytest.raises(ValueError, match="in 3 of 500 rows, the first of them row 70;"):
        slices.check_values()
    x = np.zeros((500, 16), np.float32)
    assert slices_of(x, "train").constant == [(None, None)]
    x[-1, -1] = 1
    assert slices_of(x, "train").constant == []


def test_memory_maps_are_not_read_into_memory(tmp_path):
    x = normal(20_000, 64).astype(np.float16)
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    matrix = slices_of(mapped, "train")[None, None]
    np.testing.assert_array_equal(matrix[np.array([7, 3])], x[[7, 3]].astype(np.float32))
    assert isinstance(matrix, OnDemand)


def test_the_header_of_a_shard_is_parsed_once(store):
    again = sae_jax.ActivationStore.open(store.path)
    with mock.patch("sae_jax.activations.store.open_shard", wraps=open_shard) as opened:
        for _ in range(2):
            again.select(1, "all").read()
    assert opened.call_count == 13


def test_layers_of_a_store_lie_side_by_side_when_they_are_read(store):
    one, two = (store.select(layer, "all") for layer in LAYERS)
    both = sae_jax.side_by_side(one, two)
    rows = np.array([200, 3, 3])
    np.testing.assert_array_equal(both[rows], np.hstack([one.read(rows), two.read(rows)]))
    assert slices_of(both, "train").shapes == {(None, None): (len(one), 2 * D_IN)}
    with pytest.raises(ValueError, match="1 of 2 layers are selections; expected all"):
        sae_jax.side_by_side(one, two.read())


def test_what_takes_over_half_of_the_budget_is_streamed_unless_it_is_forced():
    def planned(num_samples, stream=None, d_sae=64):
        config = sae_jax.SAEConfig(d_sae, k=4)
        train_config = sae_jax.TrainConfig(memory_budget=2**26, stream=stream)
        plan = plan_sweep([config], {(None, None): (num_samples, 128, 128)}, train_config)
        (group,) = plan.groups
        assert ("streamed" in str(plan)) == (group.steps_per_part is not None)
        assert group.num_bytes <= 2**26
        return group.steps_per_part

    # Samples and their copy take 1 KiB a row, 32 MiB in all.
    assert planned(2**15) is None
    # A part is 1/128 of 64 MiB, and a batch of 256 rows 128 KiB.
    assert planned(2**15 + 1) == 4
    assert planned(2**20) == 4
    assert planned(2**14, stream=False) is None
    with pytest.raises(ValueError, match="memory_budget"):
        planned(2**16, stream=False)
    assert planned(300, stream=True) == 1
    # 28 MiB of samples and 23 of a member fit; 41 of one do only without them.
    assert planned(7 * 2**12, d_sae=1500) is None
    assert planned(7 * 2**12, d_sae=3500) == 4
    with pytest.raises(ValueError, match="stream is 1; allowed is None, True or False"):
        sae_jax.TrainConfig(stream=1)


CONFIGS = [
    sae_jax.SAEConfig(16, k=3, layer=1, position="all"),
    sae_jax.SAEConfig(20, k=3, layer=2, position="all", normalize="center_and_scale"),
]


def train(store, stream, **options):
    splits = [store.select(layer, "all").split() for layer in LAYERS]
    train, val = [split.train for split in splits], [split.val for split in splits]
    # A batch has 3 KiB, and a part 8.
    config = sae_jax.TrainConfig(epochs=2, batch_size=64, stream=stream, memory_budget=2**20)
    plan = plan_for(CONFIGS, train, config)
    assert [group.steps_per_part for group in plan.groups] == [2 if stream else None] * 2
    return sae_jax.train_sweep(CONFIGS, train, val, config, progress=False, **options)


@pytest.fixture(scope="module")
def streamed(store):
    return train(store, stream=True)


def test_a_streamed_sweep_is_the_one_in_memory(store, streamed):
    events = []
    in_memory = train(store, stream=False, callbacks=[events.append])
    assert [event.kind for event in events] == ["compiling", "epoch", "epoch", "scored"] * 2
    for member, expected in zip(streamed.members, in_memory.members, strict=True):
        np.testing.assert_allclose(member.losses, expected.losses, rtol=1e-5)
        for name, array in expected.params.items():
            np.testing.assert_allclose(member.params[name], array, atol=1e-5, err_msg=name)
        assert member.metrics == pytest.approx(expected.metrics, rel=1e-4, nan_ok=True)


def test_a_stopped_run_continues_at_the_exact_batch(store, streamed, tmp_path):
    train_epoch, calls, events = sae_jax.sweep.epochs.train_epoch, [], []

    def counted(*args, **kwargs):
        calls.append(int(args[3]))
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return train_epoch(*args, **kwargs)

    def run():
        with mock.patch("sae_jax.sweep.epochs.train_epoch", counted):
            return train(store, True, checkpoint_dir=tmp_path / "c", callbacks=[events.append])

    with pytest.raises(sae_jax.Preempted, match=r"after epoch 0\.\d+ of a group"):
        run()
    assert calls == [0, 2, 4]
    result = run()
    per_epoch = len(streamed.members[0].losses) // 2
    each = [*range(0, per_epoch - 1, 2), *range(per_epoch, 2 * per_epoch - 1, 2)]
    assert calls == each * 2, "each part once"
    epochs = [(event.group, event.epoch) for event in events if event.kind == "epoch"]
    assert epochs == [(0, 1), (0, 2), (1, 1), (1, 2)]
    for member, expected in zip(result.members, streamed.members, strict=True):
        np.testing.assert_array_equal(member.losses, expected.losses)
        for name, array in expected.params.items():
            np.testing.assert_array_equal(member.params[name], array, err_msg=name)
        assert member.metrics == expected.metrics


def test_rows_of_a_large_store_are_no_objects(tmp_path):
    counts, shards = [500] * 2000, 4
    writer = writer_of(tmp_path / "store", counts, (0,), 2, 2000 // shards)
    for shard in range(shards):
        writer.write_shard(shard, np.ones(writer.plan.shard_shape(shard), np.float32))
    store = writer.finish()
    tracemalloc.start()
    try:
        split = store.select(0, "all").split()
        assert len(split.train) == 800_000
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # A list of integers takes 36 bytes a row, and these are seven arrays of 8.
    assert peak < 64 * 1_000_000


ROOM = 2**28
SHARD_BYTES = 2**25
WIDTH = 8192


def large_store(folder, num_shards):
    """A store whose shards are one file under many names, which a process cannot tell."""
    rows = SHARD_BYTES // (4 * WIDTH)
    writer = writer_of(folder, [rows] * num_shards, (0,), WIDTH, shard_size=1, dtype="float32")
    writer.write_shard(0, normal(1, 1, rows, WIDTH))
    first = folder / shard_file(0)
    for shard in range(1, num_shards):
        os.link(first, folder / shard_file(shard))
    manifest = writer.plan.manifest()
    entry = file_entry(first)
    manifest["shards"] = [shard | entry for shard in manifest["shards"]]
    text = json.dumps(manifest | {"finished": True})
    (folder / MANIFEST_NAME).write_text(text, encoding="utf-8")
    return str(folder)


TRAINING = """
    import re
    from pathlib import Path
    import sae_jax, sae_jax.sweep.epochs as epochs

    train_epoch, resident = epochs.train_epoch, []

    def num_bytes(name):
        found = re.search(rf"{name}:\\s*(\\d+) kB", Path("/proc/self/status").read_text())
        return 1024 * int(found[1])

    def watched(*args, **kwargs):
        resident.append(num_bytes("VmRSS"))
        return train_epoch(*args, **kwargs)

    epochs.train_epoch = watched
    split = sae_jax.ActivationStore.open(FOLDER).select(0, "all").split(0.9)
    config = sae_jax.TrainConfig(1, batch_size=128, stream=True, memory_budget=2**27)
    (member,) = sae_jax.train_sweep(
        [sae_jax.SAEConfig(8, k=2)], split.train, split.val, config, progress=False
    ).members
    quarter = len(resident) // 4
    early, late = max(resident[quarter : 2 * quarter]), max(resident[3 * quarter :])
    print(len(member.losses), early, late, num_bytes("VmPeak"))
"""


def trained_in_a_process(folder, address_space=resource.RLIM_INFINITY):
    """Number of steps, memory early and late, and most address space, in bytes."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(TRAINING).replace("FOLDER", repr(folder))],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(sae_jax.__file__).parents[1])},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (address_space,) * 2),
    )
    assert done.returncode == 0, done.stderr
    return map(int, done.stdout.split())


@pytest.mark.slow
def test_a_store_of_ten_times_the_address_space_trains_in_flat_memory(tmp_path):
    *_, address_space = trained_in_a_process(large_store(tmp_path / "small", 64))
    limit = address_space + ROOM
    large = large_store(tmp_path / "large", 10 * limit // SHARD_BYTES + 1)
    num_steps, early, late, most = trained_in_a_process(large, limit)
    assert most <= limit
    assert num_steps * 128 * 4 * WIDTH > 8.9 * limit
    # 70 MiB of growth were seen, where 40 GB were read.
    assert late < early + limit / 32, f"{early} bytes resident early, {late} late"
