"""Interrupted sweeps end as uninterrupted ones do; damage and mix-ups are noticed."""

import errno
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import warnings
from pathlib import Path
from unittest import mock

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from orbax.checkpoint import v1 as ocp

import sae_jax
from sae_jax.sweep.checkpoints import MANIFEST_NAME, GroupCheckpoints
from sae_jax.sweep.pace import Pace

CONFIGS = sae_jax.grid(d_sae=(24, 64), k=(3, 4), seed=range(2))
# Two groups.
TRAIN_CONFIG = sae_jax.TrainConfig(epochs=6, batch_size=64, max_padding=0.0)


def activations() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(300, 32)).astype(np.float32)


def train(checkpoint_dir: Path | None = None, **changes) -> sae_jax.SweepResult:
    x = changes.pop("x", activations())
    configs = changes.pop("configs", CONFIGS)
    train_config = changes.pop("train_config", TRAIN_CONFIG)
    return sae_jax.train_sweep(
        configs,
        x[:200],
        x[200:],
        train_config,
        checkpoint_dir=checkpoint_dir,
        progress=False,
        **changes,
    )


def assert_identical(a: sae_jax.SweepResult, b: sae_jax.SweepResult) -> None:
    assert a.table() == b.table()
    for member, other in zip(a.members, b.members, strict=True):
        np.testing.assert_array_equal(member.losses, other.losses)
        np.testing.assert_array_equal(member.firing_rate, other.firing_rate)
        for name, array in member.params.items():
            np.testing.assert_array_equal(array, other.params[name])


@pytest.fixture(scope="module")
def uninterrupted() -> sae_jax.SweepResult:
    return train()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "checkpoints"
    train(folder, checkpoint_every=1)
    return folder


def copy_without_end(finished: Path, folder: Path) -> Path:
    """The checkpoints as a crash after an earlier epoch leaves them."""
    shutil.copytree(finished, folder)
    for group in folder.glob("group_*"):
        epochs = sorted((p for p in group.iterdir()), key=lambda p: int(p.name))
        assert len(epochs) == 2, "two checkpoints are kept"
        shutil.rmtree(epochs[-1])
    return folder


def test_resuming_gives_the_uninterrupted_result(uninterrupted, finished, tmp_path):
    assert_identical(train(copy_without_end(finished, tmp_path / "checkpoints")), uninterrupted)


def test_a_finished_sweep_is_only_scored_again(uninterrupted, finished, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "checkpoints")
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}
    assert_identical(train(folder), uninterrupted)
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()} == before


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def largest_file(folder: Path) -> Path:
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes() or b"\0")
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("damage", [flip_a_bit, truncate, Path.unlink])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    damage, uninterrupted, finished, tmp_path
):
    folder = shutil.copytree(finished, tmp_path / "checkpoints")
    newest = folder / "group_00000" / "6"
    damage(largest_file(newest))
    there = contents(newest)
    place = folder / "group_00000" / "damaged_6"
    with pytest.warns(UserWarning, match=rf"checkpoint 6 in .* is damaged .* kept as {place},"):
        result = train(folder)
    assert_identical(result, uninterrupted)
    assert contents(place) == there
    assert sorted(p.name for p in place.parent.iterdir()) == ["5", "6", "damaged_6"]


def test_one_set_aside_does_not_replace_another(uninterrupted, finished, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "checkpoints")
    places = [folder / "group_00000" / name for name in ("damaged_6", "damaged_6_1")]
    for place in places:
        place.mkdir()
        (place / "note").write_text(place.name)
    truncate(largest_file(folder / "group_00000" / "6"))
    with pytest.warns(UserWarning, match="kept as .*/damaged_6_2, "):
        assert_identical(train(folder), uninterrupted)
    assert [(place / "note").read_text() for place in places] == [p.name for p in places]


def test_any_damage_to_any_file_leads_to_the_same_result(uninterrupted, finished, tmp_path):
    newest = max((finished / "group_00000").iterdir(), key=lambda p: int(p.name))
    files = [p.relative_to(finished) for p in newest.rglob("*") if p.is_file()]
    for i, file in enumerate(files):
        for damage in (flip_a_bit, truncate, Path.unlink):
            folder = shutil.copytree(finished, tmp_path / f"{i}_{damage.__name__}")
            damage(folder / file)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                assert_identical(train(folder), uninterrupted)


PASSING = [
    MemoryError(),
    OSError(errno.EIO, "Input/output error"),
    OSError(errno.EMFILE, "Too many open files"),
    PermissionError(errno.EACCES, "Permission denied"),
    KeyboardInterrupt(),
    jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory"),
    ValueError("Error opening zarr driver: deadline exceeded"),
]


@pytest.mark.parametrize(
    "place", ["checkpoints.ocp.metadata", "checkpoints.ocp.load", "checksums.file_entry"]
)
@pytest.mark.parametrize("fault", PASSING, ids=lambda fault: type(fault).__name__)
def test_a_passing_fault_is_raised_and_touches_nothing(
    fault, place, uninterrupted, finished, tmp_path, monkeypatch
):
    folder = shutil.copytree(finished, tmp_path / "checkpoints")
    before = contents(folder)

    def fail(*args, **kwargs):
        raise fault

    with monkeypatch.context() as patch:
        patch.setattr(f"sae_jax.sweep.{place}", fail)
        with pytest.raises(type(fault)) as caught:
            train(folder)
    assert caught.value is fault
    assert contents(folder) == before
    if place == "checksums.file_entry":
        assert_identical(train(folder), uninterrupted)


def test_a_full_disk_is_raised_and_keeps_what_is_there(uninterrupted, tmp_path, monkeypatch):
    save = ocp.save

    def until_full(path, arrays):
        if path.name == ".unfinished_3":
            path.mkdir()
            (path / "half").write_bytes(b"0" * 100)
            raise OSError(errno.ENOSPC, "No space left on device")
        save(path, arrays)

    folder = tmp_path / "checkpoints"
    with monkeypatch.context() as patch:
        patch.setattr("sae_jax.sweep.checkpoints.ocp.save", until_full)
        with pytest.raises(OSError, match="No space left"):
            train(folder, checkpoint_every=1)
    assert {"1", "2"} <= {p.name for p in (folder / "group_00000").iterdir()}
    assert_identical(train(folder, checkpoint_every=1), uninterrupted)
    assert sorted(p.name for p in (folder / "group_00000").iterdir()) == ["5", "6"]


def test_when_all_are_damaged_training_starts_over(uninterrupted, finished, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "checkpoints")
    for checkpoint in (folder / "group_00000").iterdir():
        truncate(largest_file(checkpoint))
    with pytest.warns(UserWarning, match="is damaged"):
        result = train(folder)
    assert_identical(result, uninterrupted)


def as_earlier_versions_wrote(finished: Path, folder: Path) -> Path:
    """With a digest of the arrays as metadata instead of checksums of the files."""
    shutil.copytree(finished, folder)
    for group in folder.glob("group_*"):
        saved = {int(p.name): ocp.load(p) for p in group.iterdir()}
        shutil.rmtree(group)
        with ocp.training.Checkpointer(group) as checkpointer:
            for epochs, arrays in sorted(saved.items()):
                digest = hashlib.sha256()
                for array in [
                    arrays["losses"],
                    *(arrays["state"][k] for k in sorted(arrays["state"])),
                ]:
                    digest.update(f"{array.shape} {array.dtype}".encode() + array.tobytes())
                checkpointer.save(epochs, arrays, custom_metadata={"sha256": digest.hexdigest()})
    return folder


def test_checkpoints_of_earlier_versions_are_resumed(uninterrupted, finished, tmp_path):
    folder = as_earlier_versions_wrote(finished, tmp_path / "checkpoints")
    assert not list(folder.rglob("checksums.json"))
    for group in folder.glob("group_*"):
        shutil.rmtree(group / "6")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert_identical(train(folder), uninterrupted)


def test_a_damaged_checkpoint_of_earlier_versions_is_kept(uninterrupted, finished, tmp_path):
    folder = as_earlier_versions_wrote(finished, tmp_path / "checkpoints")
    newest = folder / "group_00000" / "6"
    metadata = newest / "_CHECKPOINT_METADATA"
    stored = json.loads(metadata.read_text())
    stored["custom_metadata"]["sha256"] = "0" * 64
    metadata.write_text(json.dumps(stored))
    with pytest.warns(UserWarning, match="arrays are not as saved.* kept as .*damaged_6"):
        assert_identical(train(folder), uninterrupted)

    # What Orbax makes of this one could as well be a fault of the moment.
    truncate(largest_file(folder / "group_00001" / "6"))
    before = contents(folder)
    with pytest.raises(ValueError, match="DATA_LOSS|Error reading") as caught:
        train(folder)
    assert "group_00001/6 has no checksums.json" in caught.value.__notes__[0]
    assert contents(folder) == before


@pytest.mark.parametrize(
    ("stored", "needed", "message"),
    [
        (
            np.zeros((2, 3), "f8"),
            np.zeros((2, 3), "f4"),
            r"is float64\[2, 3\], needed is float32\[",
        ),
        (
            np.zeros((2, 3), "f4"),
            np.zeros((2, 3), "f8"),
            r"is float32\[2, 3\], needed is float64\[",
        ),
        (
            np.zeros((2, 4), "f4"),
            np.zeros((2, 3), "f4"),
            r"is float32\[2, 4\], needed is float32\[2, 3",
        ),
    ],
)
def test_other_settings_are_refused_by_name(stored, needed, message, tmp_path):
    checkpoints = GroupCheckpoints(tmp_path, Pace())
    checkpoints.save(1, {"a": np.zeros(2), "w": stored}, np.zeros((4, 2), np.float32))
    before = contents(tmp_path)
    checkpoints = GroupCheckpoints(tmp_path, Pace())
    with pytest.raises(ValueError, match=rf"{tmp_path}/1 was saved .*JAX_ENABLE_X64: w {message}"):
        checkpoints.restore({"a": np.zeros(2), "w": needed}, lambda part: 4 * part)
    with pytest.raises(ValueError, match=r"losses is float32\[4, 2\], needed is float32\[5, 2\]"):
        checkpoints.restore({"a": np.zeros(2), "w": stored}, lambda part: 5 * part)
    with pytest.raises(ValueError, match=r"c is absent, needed is float64\[2\]"):
        checkpoints.restore(
            {"a": np.zeros(2), "w": stored, "x": {"c": np.zeros(2)}}, lambda part: 4 * part
        )
    assert contents(tmp_path) == before


def test_what_a_killed_process_left_half_done_is_cleared(uninterrupted, finished, tmp_path):
    folder = copy_without_end(finished, tmp_path / "checkpoints")
    group = folder / "group_00000"
    for name in (".unfinished_6", ".removed_4", "6.orbax-checkpoint-tmp"):
        shutil.copytree(group / "5", group / name)
    (folder / ".lock").touch()
    assert_identical(train(folder, checkpoint_every=1), uninterrupted)
    assert sorted(p.name for p in group.iterdir()) == ["5", "6"]
    assert not (folder / ".lock").exists()


def test_a_folder_whose_process_was_killed_at_once_is_used(uninterrupted, tmp_path):
    (tmp_path / ".lock").touch()
    (tmp_path / "sweep.json.tmp").write_text('{"identity"')
    assert_identical(train(tmp_path), uninterrupted)


def test_a_second_run_is_refused_and_the_first_goes_on(uninterrupted, tmp_path, monkeypatch):
    folder = tmp_path / "checkpoints"
    refusals = []
    train_epoch = sae_jax.sweep.epochs.train_epoch

    def with_a_rival(*args, **kwargs):
        with monkeypatch.context() as patch:
            patch.setattr("sae_jax.sweep.epochs.train_epoch", train_epoch)
            with pytest.raises(ValueError, match=f"another process is writing to {folder}") as it:
                train(folder)
        refusals.append(it)
        return train_epoch(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr("sae_jax.sweep.epochs.train_epoch", with_a_rival)
        assert_identical(train(folder, checkpoint_every=1), uninterrupted)
    assert len(refusals) == 12


@pytest.mark.parametrize("every", [None, 1, 4, 100])
def test_results_do_not_depend_on_how_often_is_saved(every, uninterrupted, tmp_path):
    assert_identical(train(tmp_path, checkpoint_every=every), uninterrupted)
    for group in tmp_path.glob("group_*"):
        epochs = {int(p.name) for p in group.iterdir()}
        assert epochs == {None: epochs | {6}, 1: {5, 6}, 4: {4, 6}, 100: {6}}[every]


@pytest.mark.parametrize("every", [0, -1, 1.5, "2"])
def test_an_interval_that_is_none_is_refused(every, tmp_path):
    with pytest.raises(ValueError, match=f"checkpoint_every is {every!r}; allowed is None, or 1"):
        train(tmp_path / "checkpoints", checkpoint_every=every)
    assert not (tmp_path / "checkpoints").exists()


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=300), st.floats(0.001, 10))
def test_saving_takes_a_twentieth_of_the_time_at_most(epochs, seconds_to_save):
    now = [0.0]
    with mock.patch("time.monotonic", lambda: now[0]):
        pace = Pace()
        spent = waited = 0.0
        for i, epoch in enumerate(epochs):
            now[0] += epoch
            waited += epoch
            if pace.is_due(i + 1):
                now[0] += seconds_to_save
                pace.add(seconds_to_save)
                spent += seconds_to_save
                waited = 0.0
            # What the first one costs is not known before.
            assert spent <= max(seconds_to_save, 0.05 * now[0] * (1 + 1e-9))
            assert spent == 0 or now[0] > 10
            # And one is made when time allows.
            assert waited <= 20 * max(2 * seconds_to_save, 0.5) + epoch


def test_another_sweep_or_other_data_are_refused_with_the_difference(finished):
    longer = sae_jax.TrainConfig(epochs=7, batch_size=64, max_padding=0.0)
    with pytest.raises(ValueError, match=r"train_config\.epochs was 6, is 7"):
        train(finished, train_config=longer)
    with pytest.raises(ValueError, match=r"configs\.0\.k was 3, is 5"):
        train(finished, configs=[sae_jax.SAEConfig(24, 5), *CONFIGS[1:]])
    with pytest.raises(ValueError, match=r"train\.None, None was [0-9a-f]{64}, is"):
        train(finished, x=activations() + 1)


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("keep me")
    with pytest.raises(ValueError, match=rf"is not empty and holds no {MANIFEST_NAME}"):
        train(tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "keep me"


def test_a_damaged_manifest_is_named(finished, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "checkpoints")
    truncate(folder / MANIFEST_NAME)
    with pytest.raises(ValueError, match=rf"{MANIFEST_NAME} is damaged"):
        train(folder)


CHILD = textwrap.dedent(
    """
    import sys
    from pathlib import Path
    sys.path.insert(0, {tests!r})
    import sweep_checkpoints_test as here
    print("ready", flush=True)
    try:
        result = here.train(Path(sys.argv[1]), train_config=here.LONG, checkpoint_every=7)
        result.save(sys.argv[2], overwrite=True)  # an earlier process may have come this far
    except here.sae_jax.Preempted as notice:
        print(notice)
        sys.exit(77)
    """
).format(tests=str(Path(__file__).parent))

LONG = sae_jax.TrainConfig(epochs=400, batch_size=64, max_padding=0.0)


# As this process has: results of more differ in the last bits.
ONE_DEVICE = {"XLA_FLAGS": "--xla_force_host_platform_device_count=1"}


def start(folder: Path, output: Path, **environment: str) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(folder), str(output)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | ONE_DEVICE | environment,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def kill_and_resume(num_kills: int, folder: Path, output: Path) -> None:
    moments = random.Random(0)
    for _ in range(num_kills):
        process = start(folder, output)
        time.sleep(moments.uniform(0.0, 4.0))
        process.kill()
        process.wait()
    assert start(folder, output).wait() == 0


@pytest.fixture(scope="module")
def long_run() -> sae_jax.SweepResult:
    return train(train_config=LONG)


def test_two_kills_leave_no_trace(long_run, tmp_path):
    kill_and_resume(2, tmp_path / "checkpoints", tmp_path / "result")
    assert_identical(sae_jax.SweepResult.load(tmp_path / "result"), long_run)


@pytest.mark.slow
def test_twenty_kills_leave_no_trace(long_run, tmp_path):
    kill_and_resume(20, tmp_path / "checkpoints", tmp_path / "result")
    assert_identical(sae_jax.SweepResult.load(tmp_path / "result"), long_run)


def test_sigterm_saves_and_another_number_of_devices_resumes(long_run, tmp_path):
    folder, output = tmp_path / "checkpoints", tmp_path / "result"
    process = start(folder, output)
    while not list(folder.glob("group_*/[0-9]*")):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 77
    epoch = re.fullmatch(r"stopped by SIGTERM after epoch (\d+) of .*\n", process.stdout.read())[1]
    assert max(int(p.name) for p in folder.glob("group_*/[0-9]*")) == int(epoch)
    assert not output.exists()
    assert start(folder, output, XLA_FLAGS="--xla_force_host_platform_device_count=3").wait() == 0
    result = sae_jax.SweepResult.load(output)
    for member, other in zip(result.members, long_run.members, strict=True):
        assert member.losses.shape == other.losses.shape
        steps_before = int(epoch) * len(other.losses) // LONG.epochs
        # After hundreds of steps which latents fire begins to depend on the last bits.
        soon = slice(steps_before + 100)
        np.testing.assert_allclose(member.losses[soon], other.losses[soon], rtol=1e-3)


def test_the_signal_handler_is_put_back(finished):
    before = signal.getsignal(signal.SIGTERM)
    train(finished)
    assert signal.getsignal(signal.SIGTERM) is before
