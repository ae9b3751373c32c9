"""A sweep tells what it does, as it is, and is the same whoever listens."""

import dataclasses
import time
from pathlib import Path

import numpy as np
import pytest
from sweeps import samples

from sae_jax import SAEConfig, TrainConfig, grid, train_sweep
from sae_jax.sweep.events import Announcer, Event
from sae_jax.sweep.plan import Group
from sae_jax.sweep.progress import line
from sae_jax.sweep.tensorboard import log_to

GUIDE = Path(__file__).resolve().parents[1] / "docs" / "guide.md"
CONFIG = TrainConfig(epochs=3, batch_size=32)
# Two programs, therefore two groups.
SWEEP = [*grid(d_sae=16, k=(2, 3)), SAEConfig(16, 2, architecture="topk")]


@pytest.fixture(scope="module")
def split():
    x = samples(160)
    return x[:128], x[128:]


@pytest.fixture(scope="module")
def told(split):
    events = []
    result = train_sweep(SWEEP, *split, CONFIG, progress=False, callbacks=[events.append])
    return events, result


def test_events_come_in_order_with_the_losses_and_scores_of_the_result(told):
    events, result = told
    kinds = [(event.group, event.kind, event.epoch) for event in events]
    assert kinds == [
        (group, kind, epoch)
        for group in range(2)
        for kind, epoch in [("compiling", 0), *(("epoch", e) for e in (1, 2, 3)), ("scored", 3)]
    ]
    for event in events:
        assert (event.num_groups, event.num_epochs) == (2, 3)
        for place, i in enumerate(event.plan.members):
            member = result.members[i]
            assert event.configs[place] == member.config
            if event.kind == "epoch":
                steps = member.losses.reshape(3, 4)[event.epoch - 1]
                assert event.losses[place] == pytest.approx(steps.mean(), rel=1e-5)
            if event.kind == "scored":
                assert event.scores[place] == member.metrics


def test_who_listens_changes_nothing(told, split):
    _, result = told
    alone = train_sweep(SWEEP, *split, CONFIG, progress=False)
    for a, b in zip(alone.members, result.members, strict=True):
        assert all(np.array_equal(a.params[name], b.params[name]) for name in a.params)


def test_an_error_of_a_listener_ends_the_sweep_and_checkpoints_go_on(told, split, tmp_path):
    _, result = told

    def stop(event):
        if event.group == 1:
            raise RuntimeError("enough")

    arguments = {"progress": False, "checkpoint_dir": tmp_path / "checkpoints"}
    with pytest.raises(RuntimeError, match="enough"):
        train_sweep(SWEEP, *split, CONFIG, callbacks=[stop], **arguments)
    events = []
    resumed = train_sweep(SWEEP, *split, CONFIG, callbacks=[events.append], **arguments)
    assert [(e.kind, e.epoch) for e in events if e.group == 0] == [("compiling", 3), ("scored", 3)]
    for a, b in zip(resumed.members, result.members, strict=True):
        assert all(np.array_equal(a.params[name], b.params[name]) for name in a.params)


def test_without_a_terminal_every_event_is_a_line(split, capsys):
    train_sweep(SWEEP, *split, dataclasses.replace(CONFIG, kernel="dense"))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 * (1 + 3 + 1) + 1
    assert lines[0] == "group 1 of 2: compiling dense for 2 SAEs of d_sae <= 16"
    assert lines[2].startswith("group 1 of 2, epoch 2 of 3: loss ")
    assert lines[2].endswith(" left")
    assert lines[-2].startswith("group 2 of 2: fvu ")
    assert lines[-1].startswith("compiled ")


def test_the_time_left_follows_from_pace_and_preparation(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    groups = [Group((i,), (None, None), 8, 0.0, 0, 0) for i in range(3)]
    events: list[Event] = []
    # An epoch of the last group is three times the work.
    configs = grid(d_sae=8, k=2, seed=range(3))
    announcer = Announcer(groups, [1, 1, 3], configs, 5, [events.append])

    def epoch(group, number, at):
        clock[0] = at
        announcer.epoch(group, number, np.ones((2, 1)))
        return events[-1].seconds_left

    announcer.compiling(0, 0)
    # 10 seconds to the first epoch, then 2 an epoch.
    assert epoch(0, 1, 10.0) is None
    # 3 + 5 + 15 epochs' work at 2 seconds, and twice 10 seconds to prepare.
    assert epoch(0, 2, 12.0) == 2 * (3 + 5 + 15) + 2 * 10
    for number, at in ((3, 14.0), (4, 16.0), (5, 18.0)):
        epoch(0, number, at)
    clock[0] = 19.0
    announcer.compiling(1, 0)
    # Preparation now took 10 and 6 seconds.
    assert epoch(1, 1, 25.0) == 2 * (4 + 15) + 8
    announcer.scored(2, [{"fvu": 0.5}])
    assert events[-1].seconds_left == 0
    assert line(events[-1]) == "group 3 of 3: fvu 50.00% to 50.00% of 1 SAEs of d_sae <= 8"
    assert line(events[2]) == "group 1 of 3, epoch 2 of 5: loss 1, 0:01:06 left"


def test_tensorboard_reads_what_was_logged(split, tmp_path):
    pytest.importorskip("tensorboardX", reason="tensorboardX is not installed")
    reader = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator",
        reason="tensorboard is not installed",
    )
    with log_to(tmp_path) as log:
        result = train_sweep(SWEEP, *split, CONFIG, progress=False, callbacks=[log])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000", "00001", "00002"]
    for i, member in enumerate(result.members):
        events = reader.EventAccumulator(str(tmp_path / f"{i:05d}"))
        events.Reload()
        losses = events.Scalars("loss")
        assert [event.step for event in losses] == [1, 2, 3]
        means = member.losses.reshape(3, 4).mean(axis=1)
        assert [event.value for event in losses] == pytest.approx(means, rel=1e-5)
        for name, value in member.metrics.items():
            (event,) = events.Scalars(f"metrics/{name}")
            assert event.value == pytest.approx(value, rel=1e-6)


def test_the_guides_hook_keeps_a_run_of_weights_and_biases(split, tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    code = GUIDE.read_text("utf-8").partition("```python\nimport wandb\n")[2].partition("```")[0]
    assert code
    logged = []
    log = wandb.sdk.wandb_run.Run.log
    monkeypatch.setattr(
        wandb.sdk.wandb_run.Run,
        "log",
        lambda run, values, **rest: (logged.append(values), log(run, values, **rest))[1],
    )
    names = {"configs": SWEEP, "train": split[0], "val": split[1]}
    exec("import sae_jax\nimport wandb\n" + code, names)
    files = list(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))
    assert len(files) == 1
    assert files[0].stat().st_size > 0
    assert any("member 2/loss" in values for values in logged)
    assert any("member 2/fvu" in values for values in logged)
