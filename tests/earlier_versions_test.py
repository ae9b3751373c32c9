"""Folders that earlier versions wrote still load, and their unfinished runs continue.

`earlier/v0.1.0.zip` was written by version 0.1.0, the commit before the first change of any
file format. It holds `store`, made-up activations `[30, 8]` of layers 1 and 2 and positions 0
and 3; `sweep`, eight members (both layers, d_sae 6 and 10, k 2, two seeds; 3 epochs in batches
of 10) of position 3; and `checkpoints` of that sweep, stopped by SIGTERM in its second group.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import sae_jax

WRITTEN = Path(__file__).parent / "earlier" / "v0.1.0.zip"


@pytest.fixture
def folder(tmp_path):
    shutil.unpack_archive(WRITTEN, tmp_path)
    return tmp_path


def slices(folder):
    store = sae_jax.ActivationStore.open(folder / "store")
    splits = [store.select(layer=layer, position=3).split() for layer in (1, 2)]
    return [split.train for split in splits], [split.val for split in splits]


def test_a_store_opens_and_is_whole(folder):
    store = sae_jax.ActivationStore.open(folder / "store")
    store.verify()
    assert (store.layers, store.positions, store.num_rows) == ((1, 2), (0, 3), 30)
    stored = np.load(folder / "store" / "shards" / "00000.npy")
    np.testing.assert_array_equal(store.select(2, 3).activations, stored[1, 1])


def test_a_sweep_loads_with_what_its_files_say(folder):
    result = sae_jax.SweepResult.load(folder / "sweep")
    manifest = json.loads((folder / "sweep" / "sweep.json").read_text())
    assert len(result) == 8
    for row, written in zip(result.table(), manifest["members"], strict=True):
        there = written["config"] | written["metrics"]
        assert {name: row[name] for name in there} == there
        assert row["diverged_at"] is None
    assert result.data == manifest["data"]
    with np.load(folder / "sweep" / "arrays.npz") as arrays:
        np.testing.assert_array_equal(result.members[5].losses, arrays["losses_00005"])


def test_an_unfinished_run_continues_to_the_same_end(folder):
    train, val = slices(folder)
    there = sae_jax.SweepResult.load(folder / "sweep")
    result = sae_jax.train_sweep(
        there.configs,
        train,
        val,
        there.train_config,
        checkpoint_dir=folder / "checkpoints",
        progress=False,
    )
    for got, want in zip(result.members, there.members, strict=True):
        # Losses of the first epochs come from the checkpoints; other machines round differently.
        np.testing.assert_allclose(got.losses, want.losses, rtol=1e-5)
        for name, array in want.params.items():
            np.testing.assert_allclose(got.params[name], array, atol=1e-5)
