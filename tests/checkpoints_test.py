"""Interrupted sweeps end as uninterrupted ones do; damage and mix-ups are noticed."""

import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import warnings
from pathlib import Path

import numpy as np
import pytest

import sae_jax
from sae_jax.checkpoints import MANIFEST_NAME, GroupCheckpoints

CONFIGS = sae_jax.grid(d_sae=(24, 64), k=(3, 4), seed=range(2))
TRAIN_CONFIG = sae_jax.TrainConfig(epochs=6, batch_size=64)


def activations() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(300, 32)).astype(np.float32)


def train(checkpoint_dir: Path | None = None, **changes) -> sae_jax.SweepResult:
    x = changes.pop("x", activations())
    configs = changes.pop("configs", CONFIGS)
    train_config = changes.pop("train_config", TRAIN_CONFIG)
    return sae_jax.train_sweep(
        configs, x[:200], x[200:], train_config, checkpoint_dir=checkpoint_dir, progress=False
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
    train(folder)
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


def largest_file(folder: Path) -> Path:
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("damage", [flip_a_bit, truncate, Path.unlink])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    damage, uninterrupted, finished, tmp_path
):
    folder = shutil.copytree(finished, tmp_path / "checkpoints")
    newest = max((folder / "group_00000").iterdir(), key=lambda p: int(p.name))
    damage(largest_file(newest))
    with pytest.warns(UserWarning, match=f"after epoch {newest.name} in .* is damaged"):
        result = train(folder)
    assert_identical(result, uninterrupted)


@pytest.mark.slow
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


def test_when_all_are_damaged_training_starts_over(uninterrupted, finished, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "checkpoints")
    for checkpoint in (folder / "group_00000").iterdir():
        truncate(largest_file(checkpoint))
    with pytest.warns(UserWarning, match="is damaged"):
        result = train(folder)
    assert_identical(result, uninterrupted)


def test_another_sweep_or_other_data_are_refused_with_the_difference(finished):
    longer = sae_jax.TrainConfig(epochs=7, batch_size=64)
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


def test_a_checkpoint_does_not_change_when_its_arrays_do(tmp_path):
    """Training donates the arrays that it has just handed over."""
    state = {"a": np.arange(6, dtype=np.float32).reshape(2, 3)}
    checkpoints = GroupCheckpoints(tmp_path)
    checkpoints.save(1, state, np.zeros((4, 2), np.float32))
    state["a"][:] = -1
    checkpoints.close()
    restored = GroupCheckpoints(tmp_path).restore(state, steps_per_epoch=4)
    np.testing.assert_array_equal(restored.state["a"], [[0, 1, 2], [3, 4, 5]])
    assert restored.epochs == 1
    assert restored.losses.shape == (4, 2)


CHILD = textwrap.dedent(
    """
    import sys
    from pathlib import Path
    sys.path.insert(0, {tests!r})
    import checkpoints_test as here
    print("ready", flush=True)
    try:
        here.train(Path(sys.argv[1]), train_config=here.LONG).save(sys.argv[2])
    except here.sae_jax.Preempted:
        sys.exit(77)
    """
).format(tests=str(Path(__file__).parent))

LONG = sae_jax.TrainConfig(epochs=400, batch_size=64)


def start(folder: Path, output: Path, **environment: str) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(folder), str(output)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=os.environ | environment,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
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
    assert not output.exists()
    assert start(folder, output, XLA_FLAGS="--xla_force_host_platform_device_count=3").wait() == 0
    result = sae_jax.SweepResult.load(output)
    for member, other in zip(result.members, long_run.members, strict=True):
        np.testing.assert_allclose(member.losses, other.losses, rtol=1e-3)


def test_the_signal_handler_is_put_back(finished):
    before = signal.getsignal(signal.SIGTERM)
    train(finished)
    assert signal.getsignal(signal.SIGTERM) is before
