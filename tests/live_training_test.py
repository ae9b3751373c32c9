"""A sweep trains on activations while they are extracted, and they never all lie on the disk."""

import dataclasses
import os
import signal
import subprocess
import sys
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
from sae_jax.activations.released import read_released, write_released
from sae_jax.activations.slices import slices_of
from sae_jax.activations.writer import StoreWriter, write_store
from sae_jax.extraction import extract as extract_module
from sae_jax.extraction.models import load_model
from sae_jax.problems import Problem
from sae_jax.sweep.batches import WindowedOrder
from sae_jax.sweep.normalization import center_of
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
        try:
            yield most
        except BaseException:
            write_released(folder, len(ENDS))  # Or the thread would wait for room.
            raise


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
    train_epoch, calls = sae_jax.sweep.epochs.train_epoch, []

    def crashing(*args, **kwargs):
        calls.append(args)
        if len(calls) == num_calls:
            raise Crash
        return train_epoch(*args, **kwargs)

    folder, checkpoints = tmp_path / "live", tmp_path / "checkpoints"
    with made(folder) as most:
        with (
            mock.patch("sae_jax.sweep.epochs.train_epoch", crashing),
            pytest.raises(Crash),
        ):
            train(folder, checkpoints)
        assert_identical(train(folder, checkpoints), whole, but=["offset_severity"])
    assert most.result() <= 3 * WINDOW


def test_a_finished_training_is_only_scored_again(tmp_path, whole):
    folder, checkpoints = tmp_path / "live", tmp_path / "checkpoints"
    with made(folder):
        train(folder, checkpoints)
    with mock.patch("sae_jax.sweep.epochs.train_epoch", side_effect=Crash):
        assert_identical(train(folder, checkpoints), whole, but=["offset_severity"])
    with pytest.raises(ValueError, match="start in window 0 of .* 7 of 7 windows were trained on"):
        train(folder, tmp_path / "others")


def test_a_dead_extraction_is_noticed_in_seconds_and_both_sides_go_on(tmp_path, whole, monkeypatch):
    monkeypatch.setattr(live_module, "_PATIENCE", 1.0)
    folder, checkpoints = tmp_path / "live", tmp_path / "checkpoints"
    with made(folder, last=5):
        began = time.monotonic()
        missing = folder / shard_file(5)
        with pytest.raises(ValueError, match=f"{missing} is missing and no process extracts"):
            train(folder, checkpoints)
        assert time.monotonic() - began < 60, "most of it compiles"
    with made(folder, resume=True) as most:
        assert_identical(train(folder, checkpoints), whole, but=["offset_severity"])
    assert most.result() <= 3 * WINDOW


def started(program, *arguments):
    paths = [Path(sae_jax.__file__).parents[1], SUPPORT, Path(__file__).parent]
    return subprocess.Popen(
        [sys.executable, *program, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))},
    )


TRAINER = """
import sys
from pathlib import Path
import live_training_test
folder, checkpoints, output = map(Path, sys.argv[1:])
live_training_test.train(folder, checkpoints, output=output)
"""


@pytest.mark.slow
def test_either_process_may_be_killed_and_both_go_on_exactly(tmp_path, whole):
    folder, output = tmp_path / "live", tmp_path / "sweep"
    processes = []

    def extraction(*flags):
        processes.append(started([SUPPORT / "live_rows.py"], folder, 0.2, *flags))
        return processes[-1]

    def training():
        processes.append(started(["-c", TRAINER], folder, tmp_path / "checkpoints", output))
        return processes[-1]

    def wait_for(condition, process):
        while not condition():
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)

    try:
        extractor = extraction()
        wait_for((folder / "problems.jsonl").exists, extractor)
        trainer = training()
        wait_for(lambda: read_released(folder) >= 2, trainer)
        trainer.kill()
        extractor.kill()
        trainer.wait()
        extractor.wait()
        before = read_released(folder)
        assert before < len(ENDS)
        extractor, trainer = extraction("--resume"), training()
        wait_for(lambda: read_released(folder) > before, trainer)
        extractor.kill()
        killed = time.monotonic()
        _, errors = trainer.communicate(timeout=60)
        assert time.monotonic() - killed < 30
        assert "no process extracts to" in errors
        extractor = extraction("--resume")
        wait_for(lambda: lock_is_held(folder), extractor)
        trainer = training()
        _, errors = trainer.communicate(timeout=300)
        assert trainer.returncode == 0, errors
        most, errors = extractor.communicate(timeout=60)
        assert int(most) <= 3 * WINDOW, errors
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert_identical(sae_jax.SweepResult.load(output), whole, but=["offset_severity"])


def lock_is_held(folder):
    try:
        with lock(folder):
            return False
    except ValueError:
        return True


def test_preemption_stops_at_a_part_and_goes_on(tmp_path, whole):
    train_epoch, calls = sae_jax.sweep.epochs.train_epoch, []

    def counted(*args, **kwargs):
        calls.append(args)
        if len(calls) == 8:
            os.kill(os.getpid(), signal.SIGTERM)
        return train_epoch(*args, **kwargs)

    folder, checkpoints = tmp_path / "live", tmp_path / "checkpoints"
    with made(folder), mock.patch("sae_jax.sweep.epochs.train_epoch", counted):
        with pytest.raises(sae_jax.Preempted):
            train(folder, checkpoints)
        assert len(calls) == 8
        result = train(folder, checkpoints)
    parts_of_each = -(-(NUM_ROWS // BATCH_SIZE) // 2)
    assert len(calls) == 3 * parts_of_each, "no part twice"
    assert_identical(result, whole, but=["offset_severity"])


def test_preemption_does_not_wait_for_rows_that_do_not_come(tmp_path, whole):
    folder, checkpoints = tmp_path / "live", tmp_path / "checkpoints"
    live_rows.make(folder, last=3)  # As many as there is room for are four.

    def stop_when_it_waits(*arguments):
        # The shard that training waits for is the last of its window.
        os.kill(os.getpid(), signal.SIGTERM)
        return True

    # An extraction that lives and does nothing.
    with (
        mock.patch("sae_jax.activations.live.is_locked", stop_when_it_waits),
        pytest.raises(sae_jax.Preempted),
    ):
        train(folder, checkpoints)
    with made(folder, resume=True):
        assert_identical(train(folder, checkpoints), whole, but=["offset_severity"])


def test_what_was_trained_on_meanwhile_is_not_extracted_again(tmp_path):
    folder = tmp_path / "live"
    folder.mkdir()
    writer = StoreWriter(folder, PLAN)
    writer.prepare()
    assert writer.missing_shards() == [*range(PLAN.num_shards)]
    write_released(folder, 3)
    released = [shard for shard in range(PLAN.num_shards) if writer.is_released(shard)]
    # Of three windows of two, the first stays for its statistics.
    assert released == [2, 3, 4, 5]
    assert writer.missing_shards() == [0, 1, *range(6, PLAN.num_shards)]


def test_statistics_are_those_of_the_first_window(tmp_path):
    """Also after it was trained on."""
    folder = tmp_path / "live"
    first, val = ROWS[1][: ENDS[0]], {(1, "all"): VAL[1, "all"]}
    with made(folder):
        live = sae_jax.LiveStore.open(folder).select(1, "all")
        samples = SweepSamples.of(live, val)
        of_x = samples.normalized((1, "all"), "center_and_scale", streamed=True)
        mean, scale = first.mean(axis=0), (first - first.mean(axis=0)).std()
        np.testing.assert_allclose(of_x.x_norm.mean, mean, rtol=1e-5)
        np.testing.assert_allclose(of_x.x_norm.scale, scale, rtol=1e-5)
        np.testing.assert_allclose(of_x.x[np.arange(9)], (first[:9] - mean) / scale, atol=1e-5)
        severity = np.linalg.norm(mean) / np.linalg.norm(first.std(axis=0))
        assert samples.offset_severity[1, "all"] == pytest.approx(severity, rel=1e-5)
        median = center_of(live.matrix, "geometric_median")
        np.testing.assert_array_equal(median, center_of(first, "geometric_median"))
        config = dataclasses.replace(CONFIGS[0], normalize="center_and_scale")
        (member,) = train(folder, tmp_path / "checkpoints", [config]).members
    assert read_released(folder) == len(ENDS)
    samples = SweepSamples.of(live, val)
    again = samples.normalized((1, "all"), "center_and_scale", streamed=True)
    np.testing.assert_array_equal(again.x_norm.mean, of_x.x_norm.mean)
    assert len(member.losses) == -(-NUM_ROWS // BATCH_SIZE)
    # A mean predicts a centered and scaled sample with an error of 1, as it comes with one of 2.6.
    assert 0.8 < member.losses[0] < 1.5


def test_layers_are_targets_and_lie_side_by_side(tmp_path):
    with made(tmp_path / "live"):
        live = sae_jax.LiveStore.open(tmp_path / "live")
        one, two = (live.select(layer, "all") for layer in LAYERS)
        both, val = sae_jax.side_by_side(one, two), np.hstack([VAL[1, "all"], VAL[2, "all"]])
        result = sae_jax.train_sweep(
            [sae_jax.SAEConfig(16, k=3)],
            both,
            val,
            sae_jax.TrainConfig(1, 16, memory_budget=2**19),
            targets=both,
            val_targets=val,
            target_weights=[1, 2],
            checkpoint_dir=tmp_path / "checkpoints",
            progress=False,
        )
    assert result.members[0].params["w_dec"].shape == (16, 2 * D_IN)
    rows = np.array([700, 3])
    with made(tmp_path / "again", last=14, window=14):
        again = sae_jax.LiveStore.open(tmp_path / "again")
        one, two = (again.select(layer, "all") for layer in LAYERS)
        expected = np.hstack([ROWS[1][rows], ROWS[2][rows]])
        np.testing.assert_array_equal(sae_jax.side_by_side(one, two)[rows], expected)
        with pytest.raises(ValueError, match="layers are not all of one LiveStore"):
            sae_jax.side_by_side(one, live.select(2, "all"))
        with pytest.raises(ValueError, match="train and targets are not of one LiveStore"):
            SweepSamples.of(one, {(1, "all"): val[:, :D_IN]}, ROWS[2], val[:, D_IN:])
        with pytest.raises(ValueError, match="train is not all of one LiveStore"):
            slices_of([one, live.select(2, "all")], "train")


def test_what_would_need_rows_twice_is_refused_before_any_work(tmp_path):
    folder = tmp_path / "live"
    with made(folder, last=2):
        live = sae_jax.LiveStore.open(folder).select(1, "all")
    for file in (folder / "shards").glob("*.npy"):
        file.unlink()  # No row is needed to refuse, so that none is waited for.

    def refused(match, *, val=VAL[1, "all"], checkpoint_dir="c", **fields):
        val = {(1, "all"): val} if isinstance(val, np.ndarray) else val
        fields = {"epochs": 1, "batch_size": BATCH_SIZE} | fields
        with pytest.raises(ValueError, match=match):
            sae_jax.train_sweep(
                [CONFIGS[0]],
                live,
                val,
                sae_jax.TrainConfig(**fields),
                checkpoint_dir=checkpoint_dir and tmp_path / checkpoint_dir,
                progress=False,
            )

    refused("epochs is 2; a live store is trained on once: epochs=1", epochs=2)
    refused("stream is False; a live store is streamed", stream=False)
    refused("checkpoint_dir is None; a live store needs one", checkpoint_dir=None)
    refused("val is of a live store; expected samples that stay", val=live)
    smallest = min(np.diff([0, *ENDS])[:-1])
    batch_size = smallest // 2 + 1
    refused(
        f"window of the live store has {smallest} rows; expected two batches of {batch_size}",
        batch_size=batch_size,
    )
    with mock.patch("jax.process_count", lambda: 2):
        refused("2 processes train; a live store is trained on by one")
    refused("is missing and no process extracts")
    assert not (tmp_path / "c").exists()


def test_a_live_store_is_opened_as_what_it_is(tmp_path):
    x, problems = ROWS[1][:3], [Problem(f"p{i}", "?", "1", ()) for i in range(3)]
    write_store(tmp_path / "whole", {(1, 0): x}, problems)
    with pytest.raises(ValueError, match="is kept whole; ActivationStore.open reads it"):
        sae_jax.LiveStore.open(tmp_path / "whole")
    with made(tmp_path / "live", last=2) as most:
        assert most.result() == 2
    with pytest.raises(ValueError, match="is live, .*; LiveStore.open reads it"):
        sae_jax.ActivationStore.open(tmp_path / "live")
    with pytest.raises(ValueError, match="another window: 2 there, 3 now"):
        live_rows.make(tmp_path / "live", resume=True, window=3)
    with pytest.raises(ValueError, match="window is 0; it must be at least 1 shard"):
        live_rows.plan_of(window=0)
    live = sae_jax.LiveStore.open(tmp_path / "live")
    assert (live.layers, live.positions) == (LAYERS, ("all",))
    assert (live.d_in, live.num_rows, live.ends) == (D_IN, NUM_ROWS, tuple(ENDS))
    assert live.parse_position("all") == "all"
    with pytest.raises(ValueError, match="layer 3 is not in the store"):
        live.select(3, "all")
    with pytest.raises(ValueError, match=f"row {NUM_ROWS} is not in the store"):
        live.read(1, "all", np.array([NUM_ROWS]))
    np.testing.assert_array_equal(live.select(1, "all").matrix[5:50:2], ROWS[1][5:50:2])
    (tmp_path / "live" / "released.json").write_text('{"num_windows": "all"}')
    with pytest.raises(ValueError, match="released.json says 'all' windows; expected an integer"):
        sae_jax.LiveStore.open(tmp_path / "live")


def test_one_process_trains_on_a_live_store_and_it_is_not_replaced_meanwhile(tmp_path):
    with made(tmp_path, last=4) as most:
        assert most.result() == 4
    one, other = (sae_jax.LiveStore.open(tmp_path) for _ in range(2))
    with one.following():
        with pytest.raises(ValueError, match="another process is writing to .*released.json"):
            other.following().__enter__()
        with lock(tmp_path), pytest.raises(ValueError, match=r"writing to .*released\.json"):
            StoreWriter(tmp_path, PLAN).prepare(overwrite=True)
        one.release(1)
        with pytest.raises(ValueError, match=r"window 0 .* 1 of 7 windows were trained on"):
            one.check_kept(ENDS[0] - 1)
        one.check_kept(ENDS[0])
        one.release(2)
        with pytest.raises(ValueError, match=r"00002\.npy was removed after it was trained on"):
            one.read(1, "all", np.array([ENDS[0]]))
    assert StoreWriter(tmp_path, PLAN).missing_shards() == list(range(4, 14))
    with lock(tmp_path):
        StoreWriter(tmp_path, PLAN).prepare(overwrite=True)
    assert sae_jax.LiveStore.open(tmp_path).num_released == 0


def test_a_reader_that_waits_ends_with_training(tmp_path):
    with made(tmp_path, last=4) as most:
        assert most.result() == 4
    live, failures = sae_jax.LiveStore.open(tmp_path), []

    def read():
        with pytest.raises(ValueError) as failure:
            live.read(1, "all", np.array([NUM_ROWS - 1]))
        failures.append(str(failure.value))

    with lock(tmp_path):
        reader = threading.Thread(target=read)
        with live.following():
            reader.start()
            time.sleep(0.3)
            assert reader.is_alive()
        reader.join(5)
    assert [failure.split(" while ")[0] for failure in failures] == ["training ended"]


def test_a_language_model_is_read_while_a_sweep_trains(tmp_path, tiny_llama_folder, monkeypatch):
    monkeypatch.setattr(extract_module, "_MAX_SHARD_SIZE", 8)
    problems = [Problem(f"p{i}", f"How many are 1+{i}?", str(i), ("1+1=2",)) for i in range(60)]
    model = load_model(tiny_llama_folder, device="cpu")
    options = {"layers": [0, 2], "positions": [-1], "feedback": "none", "batch_size": 4}
    whole = extract_module.extract(
        problems, model, tmp_path / "whole", progress=False, **options
    ).select(2, -1)
    folder = tmp_path / "live"
    with ThreadPoolExecutor(1) as thread:
        extraction = thread.submit(
            extract_module.extract, problems, model, folder, window=2, progress=False, **options
        )
        while not (folder / "problems.jsonl").exists() and not extraction.done():
            time.sleep(0.01)
        live = sae_jax.LiveStore.open(folder).select(2, -1)
        source = Streamed(live.matrix, 4, 3, Placement.default())
        seen = [np.asarray(part.full.x).reshape(1, 12, -1) for part in source.parts(0, 0, 1)]
        result = sae_jax.train_sweep(
            [sae_jax.SAEConfig(8, k=2)],
            live,
            whole.split().val,
            sae_jax.TrainConfig(1, batch_size=4),
            checkpoint_dir=tmp_path / "checkpoints",
            progress=False,
        )
        assert extraction.result().num_rows == 60
    assert len(result.members[0].losses) == 15
    assert np.isfinite(result.members[0].metrics["fvu"])
    assert result.data["activations"] == str(tmp_path / "whole")
    (first,) = np.concatenate(seen)
    order = np.random.default_rng([0, 0]).permutation(16)[:12]
    np.testing.assert_array_equal(first, whole.activations[order])
