from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from sae_jax.activations.batches import padded_batches
from sae_jax.activations.slices import slices_of
from sae_jax.activations.writer import write_store
from sae_jax.problems import Problem
from sae_jax.sweep.batches import epoch_order


def array(n=4, d_in=3, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d_in)).astype(np.float32)


def make_store(folder):
    arrays = {(layer, position): array(seed=layer) for layer in (2, 5) for position in (0, 3)}
    problems = [Problem(f"p{i}", "?", "1", ()) for i in range(4)]
    return write_store(folder, arrays, problems, {}, model="tiny"), arrays


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "bfloat16"])
def test_an_array_becomes_one_float32_slice(dtype):
    x = jnp.asarray(array(), dtype) if dtype == "bfloat16" else array().astype(dtype)
    slices = slices_of(x, "train")
    assert list(slices) == [(None, None)]
    assert slices[None, None].dtype == np.float32
    np.testing.assert_array_equal(slices[None, None], np.asarray(x, np.float32))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.bfloat16, torch.float64])
def test_a_tensor_becomes_an_array_with_or_without_a_gradient(dtype):
    x = torch.tensor(array()).to(dtype)
    for tensor in (x, x.clone().requires_grad_()):
        np.testing.assert_array_equal(slices_of(tensor, "train")[None, None], x.float().numpy())


def test_a_store_and_a_split_are_no_activations(tmp_path):
    store, _ = make_store(tmp_path / "store")
    for data in (store, store.select(2, 0).split(train_fraction=0.5)):
        with pytest.raises(ValueError, match=r"expected .* or a selection, as store.select\(layer"):
            slices_of(data, "train")


def test_a_selection_is_read_when_asked_for_and_not_kept(tmp_path):
    store, arrays = make_store(tmp_path / "store")
    selection = store.select(2, 0)
    slices = slices_of(selection, "train")
    assert slices.shapes == {(2, 0): (4, 3)}
    np.testing.assert_array_equal(slices[2, 0], arrays[2, 0])
    assert "activations" not in vars(selection)


def test_selections_name_their_slices(tmp_path):
    store, arrays = make_store(tmp_path / "store")
    one = slices_of(store.select(5, 3), "train")
    assert list(one) == [(5, 3)]
    several = slices_of([store.select(2, 0), store.select(5, 3)], "train")
    assert list(several) == [(2, 0), (5, 3)]
    for data_slice, x in several.items():
        np.testing.assert_array_equal(x, arrays[data_slice])


def test_the_same_slice_twice_is_refused(tmp_path):
    store, _ = make_store(tmp_path / "store")
    with pytest.raises(ValueError, match=r"train holds layer 2, position 0 more than once"):
        slices_of([store.select(2, 0), store.select(2, 0)], "train")


def with_value(value, row=2):
    x = array()
    x[row, 1] = value
    return x


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (array()[0], r"train has shape \(3,\); expected \[n, d_in\]"),
        (array()[None], r"train has shape \(1, 4, 3\); expected \[n, d_in\]"),
        (array()[:0], r"train has shape \(0, 3\); expected .* neither of them 0"),
        (array()[:, :0], r"train has shape \(4, 0\)"),
        (
            np.ones((4, 3), np.int64),
            r"train has dtype int64; expected float16, bfloat16, float32 or",
        ),
        (np.ones((4, 3), complex), r"train has dtype complex128"),
        (np.full((4, 3), "a"), r"train has dtype <U1"),
        (with_value(np.nan), r"train is not finite in 1 of 4 rows, the first of them row 2;"),
        (with_value(-np.inf, row=0), r"train is not finite in 1 of 4 rows, .* row 0;"),
        (
            with_value(1.0).astype(np.float64) * 1e39,
            r"train has the value .*, which is beyond float32",
        ),
        ({}, r"train holds no activations"),
        ([], r"train holds no activations"),
        ({(3, 0): array(), (4, 0): array()[0]}, r"train of layer 4, position 0 has shape \(3,\)"),
        ({(3, 0): array(), (4, 0): with_value(np.nan)}, r"train of layer 4, position 0 is not fin"),
        ({(3, 0): array(), (4, 0): array(d_in=5)}, r"train mixes activations of widths \[3, 5\]"),
        ({3: array()}, r"train names a slice 3; expected \(layer, position\)"),
        ("runs/store", r"train is a str; expected a float array \[n, d_in\] or a selection"),
        (Path("runs/store"), r"train is a PosixPath; expected a float array"),
        (np.ma.masked_less(array(), 0), r"train has \d+ masked values"),
        (array().astype(object), r"train has dtype object; expected float16"),
        (torch.ones((4, 3), dtype=torch.int64), r"train has dtype int64; expected float16"),
        (torch.full((4, 3), torch.nan), r"train is not finite in 4 of 4 rows"),
    ],
)
def test_refused(data, message):
    with pytest.raises(ValueError, match=message):
        slices_of(data, "train").check_values()


@pytest.mark.parametrize("num_samples", [1, 7, 64])
def test_an_epoch_visits_every_sample_once(num_samples):
    order = np.asarray(epoch_order(0, 3, num_samples))
    np.testing.assert_array_equal(np.sort(order), np.arange(num_samples))


def test_orders_differ_between_epochs_and_data_seeds_only():
    order = np.asarray(epoch_order(0, 0, 100))
    np.testing.assert_array_equal(order, epoch_order(0, 0, 100))
    assert (order != np.asarray(epoch_order(0, 1, 100))).any()
    assert (order != np.asarray(epoch_order(1, 0, 100))).any()


@pytest.mark.parametrize(("n", "batch_size", "num_batches"), [(7, 3, 3), (6, 3, 2), (2, 5, 1)])
def test_padded_batches_keep_order_and_say_what_pads(n, batch_size, num_batches):
    x = array(n) + 10
    batches, mask = padded_batches(x, batch_size)
    assert batches.shape == (num_batches, batch_size, 3)
    assert mask.sum() == n
    np.testing.assert_array_equal(batches[mask], x)
    assert (batches[~mask] == 0).all()
