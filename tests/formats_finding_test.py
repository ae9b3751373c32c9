"""Folders that hold something else than one SAE: the error says what, and what to name instead."""

import json

import numpy as np
import pytest
from random_saes import random_params, random_topk

from sae_jax import SAEConfig, SweepResult, TrainConfig, formats
from sae_jax.sweep.result import Member


def save_sweep(folder, num_members=3):
    members = [
        Member(
            SAEConfig(d_sae=24, k=5, seed=seed),
            random_params(seed),
            {"mse": 0.5},
            np.zeros(24),
            np.ones(2),
        )
        for seed in range(num_members)
    ]
    SweepResult(members, TrainConfig()).save(folder)
    return folder


def refusal(path):
    with pytest.raises(ValueError) as caught:
        formats.load(path)
    with pytest.raises(ValueError) as again:
        formats.load_metadata(path)
    assert str(again.value) == str(caught.value)
    return str(caught.value)


def test_a_folder_of_folders_names_those_with_an_sae(tmp_path):
    for layer in (3, 14):
        formats.save(random_topk(), tmp_path / f"layers.{layer}", format="sparsify")
    (tmp_path / "layers.99").mkdir()
    message = refusal(tmp_path)
    assert "holds 0 SAEs" in message
    assert message.endswith("SAEs are in the folders ['layers.14', 'layers.3']")


def test_files_of_a_training_run_do_not_hide_the_folders(tmp_path):
    torch = pytest.importorskip("torch", reason="the .pt formats need PyTorch")
    formats.save(random_topk(), tmp_path / "layers.3", format="sparsify")
    torch.save({"step": 3}, tmp_path / "state.pt")
    assert refusal(tmp_path).endswith("SAEs are in the folders ['layers.3']")


def test_folders_are_found_where_releases_have_them(tmp_path):
    place = tmp_path / "layer_12" / "width_16k" / "average_l0_71"
    place.mkdir(parents=True)
    np.savez(place / "params.npz", W_enc=np.zeros(1))
    assert "layer_12/width_16k/average_l0_71" in refusal(tmp_path)


def test_not_more_than_a_few_folders_are_named(tmp_path):
    for layer in range(40):
        (tmp_path / f"layer_{layer:02d}").mkdir()
        (tmp_path / f"layer_{layer:02d}" / "params.npz").touch()
    message = refusal(tmp_path)
    assert "layer_00" in message and "layer_39" not in message and "and more" in message
    assert len(message) < 1000


def test_many_files_are_not_all_named(tmp_path):
    for i in range(1000):
        (tmp_path / f"shard_{i:05d}.npy").touch()
    assert len(refusal(tmp_path)) < 1000


def test_a_path_that_is_not_there_names_what_is_beside_it(tmp_path):
    save_sweep(tmp_path / "sweep")
    message = refusal(tmp_path / "sweep" / "members" / "0")
    assert "no file or folder" in message and "00000" in message
    assert "no file or folder" in refusal(tmp_path / "a" / "b" / "c")


def test_a_sweep_is_named(tmp_path):
    message = refusal(save_sweep(tmp_path / "sweep"))
    assert "a sweep of 3 SAEs" in message
    assert "SweepResult.load" in message and "members/00000" in message


def test_a_folder_of_sweeps_names_their_members(tmp_path):
    save_sweep(tmp_path / "runs" / "first")
    message = refusal(tmp_path / "runs")
    names = [f"first/members/{i:05d}" for i in range(3)]
    assert message.endswith(f"SAEs are in the folders {names}")


@pytest.fixture
def checkpoint_folder(tmp_path):
    (tmp_path / "group_00000").mkdir()
    manifest = {"identity": {"train_config": {}}, "groups": [], "versions": {"jax": "0.10.2"}}
    (tmp_path / "sweep.json").write_text(json.dumps(manifest))
    return tmp_path


def test_a_checkpoint_folder_is_named(checkpoint_folder):
    message = refusal(checkpoint_folder)
    assert "checkpoints of a sweep" in message and "checkpoint_dir" in message
    assert "damaged" not in message


def test_a_checkpoint_folder_is_not_a_damaged_sweep(checkpoint_folder):
    with pytest.raises(ValueError, match="checkpoints of a sweep.*checkpoint_dir") as caught:
        SweepResult.load(checkpoint_folder)
    assert "damaged" not in str(caught.value)


@pytest.mark.parametrize("content", ["{}", "[]", "{", '{"format": "other"}'])
def test_another_sweep_json_is_no_reason_to_fail(tmp_path, content):
    (tmp_path / "sweep.json").write_text(content)
    with pytest.raises(ValueError, match="holds 0 SAEs"):
        formats.load(tmp_path)
    formats.save(random_topk(), tmp_path, format="native")
    assert formats.load(tmp_path).k == 5
