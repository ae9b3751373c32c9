import dataclasses
import json

import numpy as np
import pytest
from random_saes import random_params

from sae_jax import SAEConfig, SweepResult, TrainConfig
from sae_jax.formats import native
from sae_jax.sweep.result import Member


def make_result():
    """Members of two sizes; the second diverged at step 2."""
    rng = np.random.default_rng(0)
    members = []
    for i, (d_sae, k) in enumerate([(24, 5), (9, 9)]):
        losses = np.array([3.0, 2.0, 1.0 if i == 0 else np.inf, 0.5], np.float32)
        metrics = {"mse": 0.25 if i == 0 else np.nan, "num_alive": d_sae - 1}
        config = SAEConfig(d_sae, k, seed=i, layer=14, position=3)
        firing_rate = rng.random(d_sae).astype(np.float32)
        members.append(Member(config, random_params(i, 8, d_sae), metrics, firing_rate, losses))
    return SweepResult(members, TrainConfig(epochs=2, max_padding=0.3), {"store": "runs/gsm8k"})


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
    assert metadata["mse"] is None  # JSON has no NaN


def test_a_folder_that_holds_something_is_refused_and_left_alone(saved):
    before = {path: path.read_bytes() for path in saved.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=r"already holds \['arrays.npz', 'members', 'sweep.json'"):
        make_result().save(saved)
    assert {path: path.read_bytes() for path in saved.rglob("*") if path.is_file()} == before


def test_a_file_in_the_folders_place_is_refused_and_left_alone(tmp_path):
    (tmp_path / "sweep").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(ValueError, match="is a file"):
            make_result().save(tmp_path / "sweep", overwrite=overwrite)
    assert (tmp_path / "sweep").read_text() == "mine"


def test_overwriting_replaces_all(saved):
    result = make_result()
    SweepResult(result.members[:1], result.train_config).save(saved, overwrite=True)
    assert len(SweepResult.load(saved)) == 1
    assert sorted(path.name for path in (saved / "members").iterdir()) == ["00000"]
    assert sorted(path.name for path in saved.parent.iterdir()) == ["sweep"]


def test_overwriting_spares_a_folder_that_holds_no_sweep(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(ValueError, match="holds no sweep"):
        make_result().save(tmp_path, overwrite=True)
    assert (tmp_path / "thesis.tex").read_text() == "mine"


def test_a_save_that_fails_leaves_the_old_result(saved):
    result = make_result()
    broken = SweepResult(result.members, result.train_config, {"store": object()})
    with pytest.raises(TypeError):
        broken.save(saved, overwrite=True)
    assert len(SweepResult.load(saved)) == 2


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
    "no arrays": lambda folder: (folder / "arrays.npz").unlink(),
    "arrays cut off": lambda folder: truncate(folder / "arrays.npz"),
    "arrays empty": lambda folder: (folder / "arrays.npz").write_bytes(b""),
    "arrays of another sweep": lambda folder: np.savez(folder / "arrays.npz", losses=np.zeros(1)),
    "no member": lambda folder: (folder / "members" / "00001" / "sae.safetensors").unlink(),
    "member cut off": lambda folder: truncate(folder / "members" / "00001" / "sae.safetensors"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_a_clear_error(saved, damage):
    DAMAGES[damage](saved)
    with pytest.raises(ValueError, match=r"sweep|sae\.safetensors"):
        SweepResult.load(saved)


def test_arrays_that_need_unpickling_are_not_read(saved):
    np.savez(saved / "arrays.npz", losses_00000=np.array([object()]), firing_rate_00000=np.zeros(1))
    with pytest.raises(ValueError, match="damaged"):
        SweepResult.load(saved)
