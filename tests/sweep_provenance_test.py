"""A sweep finds the samples that it was trained on again, and takes no others for them."""

import shutil

import numpy as np
import pytest

import sae_jax
from sae_jax.activations.writer import write_store
from sae_jax.problems import Problem
from sae_jax.sweep.provenance import described, samples_of


def make_store(folder, seed=0):
    x = np.random.default_rng(seed).normal(size=(40, 6)).astype(np.float32)
    problems = [Problem(f"p{i}", "?", "1", ()) for i in range(40)]
    return write_store(folder, {(2, 3): x, (5, 3): x + 1}, problems)


def train(store, folder, data=None):
    split = store.select(2, 3).split(train_fraction=0.7, seed=5)
    config = sae_jax.TrainConfig(epochs=1, batch_size=16)
    result = sae_jax.train_sweep(
        [sae_jax.SAEConfig(8, 2)], split.train, split.val, config, data=data, progress=False
    )
    result.save(folder)
    return split


@pytest.fixture
def folders(tmp_path):
    store = make_store(tmp_path / "here" / "store")
    split = train(store, tmp_path / "here" / "sweep")
    return tmp_path, split


def samples(folder, **given):
    result = sae_jax.SweepResult.load(folder)
    return samples_of(result.data, folder, result.configs[0].data_slice, **given)


def test_selections_describe_themselves(folders):
    tmp_path, split = folders
    found = samples(tmp_path / "here" / "sweep")
    np.testing.assert_array_equal(found.val.rows, split.val.rows)
    np.testing.assert_array_equal(found.train.rows, split.train.rows)
    assert (found.val.layer, found.val.position) == (2, 3)
    assert described(*[np.ones((3, 2), np.float32)] * 2) == {}


def test_both_move_together_or_one_alone(folders):
    tmp_path, split = folders
    shutil.move(tmp_path / "here", tmp_path / "there")
    found = samples(tmp_path / "there" / "sweep")
    np.testing.assert_array_equal(found.val.rows, split.val.rows)
    shutil.move(tmp_path / "there" / "sweep", tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"are no longer at .*; name .*new place \(--activations"):
        samples(tmp_path / "elsewhere")
    found = samples(tmp_path / "elsewhere", activations=tmp_path / "there" / "store")
    np.testing.assert_array_equal(found.val.rows, split.val.rows)


def test_other_activations_are_refused_by_fingerprint(folders):
    tmp_path, _ = folders
    make_store(tmp_path / "other", seed=1)
    with pytest.raises(ValueError, match="trained on .*: those are other activations"):
        samples(tmp_path / "here" / "sweep", activations=tmp_path / "other")


def test_what_a_sweep_does_not_say_is_asked_for(tmp_path):
    store = make_store(tmp_path / "store")
    x = store.select(2, 3).activations
    result = sae_jax.train_sweep([sae_jax.SAEConfig(8, 2)], x, x, progress=False)
    result.save(tmp_path / "sweep")
    with pytest.raises(ValueError, match=r"does not say where its activations are; .*--activat"):
        samples(tmp_path / "sweep")
    with pytest.raises(ValueError, match="does not say its layer and position"):
        samples(tmp_path / "sweep", activations=tmp_path / "store")
    data = {"layer": 2, "position": 3}
    with pytest.raises(ValueError, match=r"train_fraction and split_seed; .*--train_fraction, --s"):
        samples_of(data, tmp_path, (None, None), activations=tmp_path / "store")
    found = samples_of(
        data,
        tmp_path,
        (None, None),
        activations=tmp_path / "store",
        train_fraction=0.7,
        split_seed=5,
    )
    expected = store.select(2, 3).split(0.7, 5)
    np.testing.assert_array_equal(found.val.rows, expected.val.rows)


def test_rows_of_extreme_norm_stay_out_of_both_sides(tmp_path):
    x = np.ones((50, 4), np.float32)
    x[[7, 30]] = 40.0
    problems = [Problem(f"p{i}", "?", "1", ()) for i in range(50)]
    split = write_store(tmp_path / "store", {(0, 0): x}, problems).select(0, 0).split(0.8, 42)
    assert {7, 30} <= {*split.train.rows, *split.val.rows}
    kept = split.within_norm(10)
    rows = np.concatenate([kept.train.rows, kept.val.rows])
    assert sorted(rows) == sorted({*range(50)} - {7, 30})
    assert set(kept.val.rows) == set(split.val.rows) - {7, 30}
    # 40 times the median is the largest norm that 40 allows.
    assert len(split.within_norm(40).train) == len(split.train)
    data = described(kept.train, kept.val)
    found = samples_of(data, tmp_path, (0, 0))
    np.testing.assert_array_equal(found.val.rows, kept.val.rows)
    with pytest.raises(ValueError, match="max_norm_ratio is 0.5; allowed is 1 or more"):
        split.within_norm(0.5)
