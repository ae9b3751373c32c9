import dataclasses
import json
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from random_saes import random_params
from safetensors.numpy import load_file, save_file

from sae_jax import SAEConfig, SweepResult, TrainConfig, train_sweep
from sae_jax.formats import native
from sae_jax.sweep.result import Member, divergence, writing_sweep


def make_result():
    """Members of two sizes; the second diverged at step 2."""
    rng = np.random.default_rng(0)
    members = []
    for i, (d_sae, k) in enumerate([(24, 5), (9, 9)]):
        losses = np.array([3.0, 2.0, 1.0 if i == 0 else np.inf, 0.5], np.float32)
        metrics = {"mse": 0.25 if i == 0 else np.nan, "num_alive": d_sae - 1}
        config = SAEConfig(d_sae, k, seed=i, layer=14, position=3)
        firing_rate = rng.random(d_sae).astype(np.float32)
        params = random_params(i, 8, d_sae)
        diverged_at = divergence(losses, ended_finite=True)
        members.append(Member(config, params, metrics, firing_rate, losses, diverged_at))
    return SweepResult(members, TrainConfig(epochs=2, max_padding=0.3), {"store": "runs/gsm8k"})


SHAPES = {"w_enc": (64, 2**15), "b_enc": (2**15,), "w_dec": (2**15, 64), "b_dec": (64,)}


@pytest.fixture
def saved(tmp_path):
    make_result().save(tmp_path / "sweep")
    return tmp_path / "sweep"


def test_round_trip(saved):
    result, read = make_result(), SweepResult.load(saved)
    assert read.configs == result.configs
    assert read.train_config == result.train_config
    assert read.data == result.data
    assert len(read) == 2
    for got, want in zip(read.members, result.members, strict=True):
        np.testing.assert_equal(got.metrics, want.metrics)
        np.testing.assert_array_equal(got.losses, want.losses)
        np.testing.assert_array_equal(got.firing_rate, want.firing_rate)
        for name, array in want.params.items():
            np.testing.assert_array_equal(got.params[name], array)


def test_rows_hold_config_metrics_and_divergence():
    first, second = make_result().table()
    assert first == dataclasses.asdict(make_result().configs[0]) | {
        "mse": 0.25,
        "num_alive": 23,
        "diverged_at": None,
    }
    assert second["diverged_at"] == 2
    assert (second["d_sae"], second["k"], second["layer"]) == (9, 9, 14)
    assert (second["mse"], second["num_alive"]) == (None, None)


def test_unknown_table_format():
    with pytest.raises(ValueError, match="format is 'csv'; allowed are 'dicts' and 'pandas'"):
        make_result().table(format="csv")


def test_saes_have_their_true_size_and_k():
    sae = make_result().sae(1)
    assert (sae.d_in, sae.d_sae, sae.k, sae.rule) == (8, 9, 9, "abs")
    np.testing.assert_array_equal(sae.params["w_dec"], random_params(1, 8, 9)["w_dec"])


def test_a_member_is_readable_without_the_sweep(saved):
    sae = native.load(saved / "members" / "00001")
    assert (sae.d_sae, sae.k) == (9, 9)
    metadata = native.load_metadata(saved / "members" / "00001")
    assert metadata["seed"] == 1
    assert metadata["mse"] is None  # It diverged: it has no scores.


def test_a_folder_that_holds_something_is_refused_and_left_alone(saved):
    before = {path: path.read_bytes() for path in saved.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=r"already holds \['members', 'sweep.json'"):
        make_result().save(saved)
    assert {path: path.read_bytes() for path in saved.rglob("*") if path.is_file()} == before


def test_a_file_in_the_folders_place_is_refused_and_left_alone(tmp_path):
    (tmp_path / "sweep").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(ValueError, match="is a file"):
            make_result().save(tmp_path / "sweep", overwrite=overwrite)
    assert (tmp_path / "sweep").read_text() == "mine"


def test_overwriting_replaces_the_sweep_and_spares_what_others_put_there(saved):
    (saved / "features").mkdir()
    (saved / "features" / "mine.csv").write_text("mine")
    (saved / "results.csv").write_text("mine too")
    result = make_result()
    for size in (1, 2, 1):
        replacement = SweepResult(result.members[:size], result.train_config)
        replacement.save(saved, overwrite=True)
        assert len(SweepResult.load(saved)) == size
        assert len(list(saved.glob("members*/*"))) == size
    assert (saved / "features" / "mine.csv").read_text() == "mine"
    assert (saved / "results.csv").read_text() == "mine too"
    assert sorted(path.name for path in saved.parent.iterdir()) == ["sweep"]
    assert not [path.name for path in saved.iterdir() if path.name.startswith(".")]


class Killed(BaseException):
    """Nothing in the library catches it."""


def overwrite_until_killed(folder, num_changes):
    """Saves over a sweep; after some changes of the disk none succeeds, as after a kill."""
    made = 0

    def mortal(change):
        def changed(*arguments, **options):
            nonlocal made
            made += 1
            if made > num_changes:
                raise Killed
            return change(*arguments, **options)

        return changed

    result = make_result()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("rename", "replace", "unlink", "mkdir", "rmdir"):
            patch.setattr(Path, name, mortal(getattr(Path, name)))
        for name in ("rmdir", "unlink"):
            patch.setattr(os, name, mortal(getattr(os, name)))
        SweepResult(result.members[:1], result.train_config).save(folder, overwrite=True)


def test_a_kill_at_any_moment_leaves_the_old_sweep_or_the_new_one(tmp_path):
    sizes = []
    for num_changes in range(100):
        folder = tmp_path / str(num_changes)
        make_result().save(folder)
        try:
            overwrite_until_killed(folder, num_changes)
        except Killed:
            sizes.append(len(SweepResult.load(folder)))
            make_result().save(folder, overwrite=True)  # What was left is no obstacle.
            assert len(SweepResult.load(folder)) == 2
        else:
            break
    assert len(sizes) > 5
    assert sizes == sorted(sizes, reverse=True)
    assert set(sizes) == {1, 2}


def test_one_process_writes_at_a_time(tmp_path):
    with writing_sweep(tmp_path / "sweep") as writer:
        with pytest.raises(ValueError, match="another process is writing to"):
            make_result().save(tmp_path / "sweep")
        result = make_result()
        for i, member in enumerate(result.members):
            writer.write(i, member)
        writer.finish(result.train_config, result.data)
    assert len(SweepResult.load(tmp_path / "sweep")) == 2


def test_overwriting_spares_a_folder_that_holds_no_sweep(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(ValueError, match="holds no sweep"):
        make_result().save(tmp_path, overwrite=True)
    assert (tmp_path / "thesis.tex").read_text() == "mine"


def test_a_save_that_fails_leaves_the_old_result(saved):
    members = make_result().members
    broken = [members[0], dataclasses.replace(members[1], params={})]
    with pytest.raises(ValueError, match="parameters are"):
        SweepResult(broken, TrainConfig()).save(saved, overwrite=True)
    assert len(SweepResult.load(saved)) == 2
    with pytest.raises(ValueError, match="parameters are"):
        SweepResult(broken, TrainConfig()).save(saved.parent / "another")
    assert sorted(path.name for path in saved.parent.iterdir()) == ["sweep"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"store": Path("runs")}, r"data\['store'\] is PosixPath\('runs'\), a PosixPath; allowed"),
        ({"seed": np.int64(3)}, r"data\['seed'\] is np.int64\(3\), a int64; allowed are JSON"),
        ({3: "layer"}, "allowed is a mapping from names to JSON values"),
        ("runs/gsm8k", "allowed is a mapping from names to JSON values"),
    ],
)
def test_data_that_cannot_be_saved_is_refused_at_once(data, message):
    with pytest.raises(ValueError, match=message):
        SweepResult([], TrainConfig(), data)


def test_metrics_that_are_not_finite_survive_the_disk(tmp_path):
    member = make_result().members[0]
    metrics = {"mse": np.inf, "fvu": np.nan, "r2": -np.inf, "l0": 5.0}
    result = SweepResult([dataclasses.replace(member, metrics=metrics)], TrainConfig())
    result.save(tmp_path / "sweep")
    assert "Infinity" not in (tmp_path / "sweep" / "sweep.json").read_text()
    (row,) = SweepResult.load(tmp_path / "sweep").table()
    np.testing.assert_equal({name: row[name] for name in metrics}, metrics)
    # Infinite scores are no divergence: its losses and parameters are finite.
    assert row["diverged_at"] is None


def test_divergence_is_of_losses_or_of_what_the_last_step_left():
    assert divergence(np.array([1.0, 2.0]), ended_finite=True) is None
    assert divergence(np.array([1.0, np.inf, np.nan]), ended_finite=True) == 1
    assert divergence(np.array([1.0, 2.0]), ended_finite=False) == 2


def test_parameters_stay_on_disk_until_they_are_asked_for(saved):
    result = make_result()
    big = {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}
    config = SAEConfig(2**15, 4)
    member = Member(config, big, {"mse": 0.0}, np.zeros(2**15, np.float32), np.zeros(3, np.float32))
    SweepResult([member] * 2, result.train_config).save(saved, overwrite=True)
    tracemalloc.start()
    read = SweepResult.load(saved)
    assert [row["d_sae"] for row in read.table()] == [2**15] * 2
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < big["w_dec"].nbytes / 2
    np.testing.assert_array_equal(read.members[1].params["w_dec"], big["w_dec"])


def test_an_empty_folder_is_used(tmp_path):
    (tmp_path / "sweep").mkdir()
    make_result().save(tmp_path / "sweep")
    assert len(SweepResult.load(tmp_path / "sweep")) == 2


def test_nothing_there(tmp_path):
    with pytest.raises(ValueError, match="no sweep in .*sweep.json is missing"):
        SweepResult.load(tmp_path / "nowhere")


def edit_manifest(folder, edit):
    path = folder / "sweep.json"
    manifest = json.loads(path.read_text())
    edit(manifest)
    path.write_text(json.dumps(manifest))


def truncate(path):
    path.write_bytes(path.read_bytes()[:-200])


DAMAGES = {
    "manifest cut off": lambda folder: truncate(folder / "sweep.json"),
    "manifest not text": lambda folder: (folder / "sweep.json").write_bytes(b"\xff\xfe"),
    "manifest a list": lambda folder: (folder / "sweep.json").write_text("[]"),
    "no members": lambda folder: edit_manifest(folder, lambda m: m.pop("members")),
    "no data": lambda folder: edit_manifest(folder, lambda m: m.pop("data")),
    "unknown setting": lambda folder: edit_manifest(
        folder, lambda m: m["train_config"].update(speed=1)
    ),
    "impossible k": lambda folder: edit_manifest(
        folder, lambda m: m["members"][0]["config"].update(k=25)
    ),
    "another k": lambda folder: edit_manifest(
        folder, lambda m: m["members"][0]["config"].update(k=4)
    ),
    "another version": lambda folder: edit_manifest(folder, lambda m: m.update(version=99)),
    "another format": lambda folder: edit_manifest(folder, lambda m: m.update(format="zip")),
    "metrics no mapping": lambda folder: edit_manifest(
        folder, lambda m: m["members"][0].update(metrics=[])
    ),
    "another folder": lambda folder: edit_manifest(folder, lambda m: m.update(folder="../x")),
    "no history": lambda folder: (folder / "members/00001/history.safetensors").unlink(),
    "history cut off": lambda folder: (folder / "members/00001/history.safetensors").write_bytes(
        (folder / "members/00001/history.safetensors").read_bytes()[:-8]
    ),
    "history empty": lambda folder: (folder / "members/00001/history.safetensors").write_bytes(b""),
    "history of another member": lambda folder: (
        folder / "members/00000/history.safetensors"
    ).replace(folder / "members/00001/history.safetensors"),
    "no member": lambda folder: (folder / "members" / "00001" / "sae.safetensors").unlink(),
    "member cut off": lambda folder: truncate(folder / "members" / "00001" / "sae.safetensors"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_a_clear_error(saved, damage):
    DAMAGES[damage](saved)
    with pytest.raises(ValueError, match=r"sweep|sae\.safetensors"):
        SweepResult.load(saved)


def test_a_passing_fault_is_no_damage(saved, monkeypatch):
    def fail(*_, **__):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Path, "read_text", fail)
    with pytest.raises(OSError, match="Input/output error"):
        SweepResult.load(saved)


@pytest.mark.parametrize(
    ("architecture", "own"), [("jumprelu", "threshold"), ("gated", "r_mag"), ("gated", "b_mag")]
)
def test_a_member_whose_file_lacks_an_array_of_its_own_is_damaged(tmp_path, architecture, own):
    x = np.random.default_rng(0).normal(size=(16, 6)).astype(np.float32)
    config = SAEConfig(d_sae=8, architecture=architecture, target_l0=2.0)
    result = train_sweep([config], x, x, TrainConfig(epochs=1), progress=False)
    result.save(tmp_path / "sweep")
    file = tmp_path / "sweep" / "members" / "00000" / "sae.safetensors"
    arrays = load_file(file)
    del arrays[own]
    save_file(arrays, file)
    with pytest.raises(ValueError, match=rf"lacks \['{own}'\]"):
        SweepResult.load(tmp_path / "sweep")
