"""Numbers do not depend on what a program has set in JAX, nor on the version of this library."""

from contextlib import contextmanager

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from metric_oracle import samples
from random_saes import random_jumprelu, random_params, random_topk

import sae_jax
from sae_jax.architectures.initialization import init_params
from sae_jax.metrics import quality as metrics
from sae_jax.metrics.evaluate import evaluate_group
from sae_jax.sweep.batches import epoch_order
from sae_jax.sweep.hyperparameters import hyperparameters
from sae_jax.sweep.step import Program, init_group

# Of versions up to 2026-11-25.
RECORDED_ORDER = [0, 8, 2, 4, 1, 7, 9, 5, 3, 6]
RECORDED_LATER_ORDER = [2, 0, 1, 4, 7, 9, 3, 8, 5, 6]
RECORDED_PARAMS = {
    "w_enc": [
        [-0.30728036, -0.55961794, -0.3839802, 0.0],
        [0.40743104, -0.22063488, 0.3367147, 0.0],
    ],
    "b_enc": [-0.60973674, 0.3474539, 0.34319976, 0.0],
    "w_dec": [
        [0.27154478, -0.9624259],
        [-0.9477032, -0.31915292],
        [0.65521336, 0.75544393],
        [0.0, 0.0],
    ],
    "b_dec": [-0.2690574, 0.27014235],
}


@contextmanager
def settings():
    """A program that wants 64 bits, low precision, and to hear of every promotion of ranks."""
    with (
        jax.enable_x64(True),
        jax.numpy_rank_promotion("raise"),
        jax.default_matmul_precision("bfloat16"),
    ):
        yield


def assert_equal_trees(found, expected, **tolerance):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for got, want in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert np.asarray(got).dtype == np.asarray(want).dtype
        np.testing.assert_allclose(got, want, **tolerance)


def test_random_numbers_are_the_same_to_the_bit():
    def drawn():
        configs = sae_jax.grid(d_sae=7, k=2, seed=(0, 2**32 - 1))
        hyper = hyperparameters(configs, sae_jax.TrainConfig(), num_samples=10, d_in=4)
        return jax.device_get(
            [
                epoch_order(0, 3, 100),
                epoch_order(jnp.uint32(2**32 - 1), jnp.int32(3), 100),
                init_params(jax.random.key(5), 4, 7, 9),
                init_group(
                    hyper,
                    jnp.zeros(4, jnp.float32),
                    program=Program(configs[0].template),
                    d_in=4,
                    width=7,
                ).params,
            ]
        )

    expected = drawn()
    with settings():
        found = drawn()
    assert_equal_trees(found, expected, rtol=0)


@pytest.mark.parametrize("options", [{}, {"center_input": True, "normalize_input": True}])
@pytest.mark.parametrize("make", [random_topk, random_jumprelu])
@pytest.mark.parametrize("shape", [(8,), (5, 8), (2, 5, 8)])
def test_modules(make, options, shape):
    x = np.random.default_rng(0).normal(size=shape)  # float64

    def values():
        sae = make(**options)
        z = sae.encode(x)
        gradient = jax.grad(lambda x: jnp.sum(sae(x)))(jnp.asarray(x, jnp.float32))
        return jax.device_get([sae.params, z, sae.decode(z, x), gradient])

    expected = values()
    assert {leaf.dtype for leaf in jax.tree.leaves(expected)} == {np.dtype(np.float32)}
    with settings():
        found = values()
    assert_equal_trees(found, expected, rtol=1e-5, atol=1e-5)


def test_float64_parameters_become_float32():
    with jax.enable_x64(True):
        params = {name: np.float64(array) for name, array in random_params(0).items()}
        sae = sae_jax.TopKSAE(params, 3)
        jump = sae_jax.JumpReLUSAE(params, np.zeros(24))
        leaves = [*sae.params.values(), *jump.params.values(), jump.threshold[...]]
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype("float32")}


def test_metrics():
    x, z, x_hat = samples()

    def scores():
        found = metrics.score(x, z, x_hat, outliers=metrics.outlier_rows(x))
        return jax.device_get(found | metrics.decoder_coherence(z[:40], np.arange(40) < 30))

    expected = scores()
    with settings():
        found = scores()
    assert_equal_trees(found, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("kernel", "dtype"),
    [
        ("dense", "float32"),
        ("dense", "bfloat16"),
        ("firing_rows", "float32"),
        ("selected_rows", "bfloat16"),
    ],
)
def test_whole_sweeps(kernel, dtype):
    x = samples(n=90)[0]
    configs = sae_jax.grid(d_sae=(40, 34), k=3)

    def trained():
        config = sae_jax.TrainConfig(
            epochs=2, batch_size=40, compute_dtype=dtype, kernel=kernel, max_padding=0.5
        )
        result = sae_jax.train_sweep(configs, x, x[:30], config, progress=False)
        return [(dict(m.params), m.losses, m.firing_rate, m.metrics) for m in result.members]

    expected = trained()
    with settings():
        found = trained()
    for got, want in zip(found, expected, strict=True):
        assert_equal_trees(got[:2], want[:2], rtol=1e-3, atol=1e-3)
        assert got[2].dtype == want[2].dtype
        np.testing.assert_allclose(got[3]["fvu"], want[3]["fvu"], rtol=1e-3)
        assert got[3].keys() == want[3].keys()


def test_training_on_fewer_samples_than_a_batch():
    x = np.random.default_rng(0).standard_normal((20, 6), np.float32)

    def trained():
        config = sae_jax.TrainConfig(epochs=2, batch_size=32)
        return sae_jax.train_sweep([sae_jax.SAEConfig(8, k=2)], x, x, config, progress=False)

    expected = trained().members[0].losses
    with settings(), jax.numpy_dtype_promotion("strict"):
        found = trained().members[0].losses
    assert_equal_trees(found, expected, rtol=1e-5)
    assert expected.dtype == np.float32


def test_evaluation():
    params = {name: array[None] for name, array in random_params(0).items()}
    params["w_enc_t"] = params.pop("w_enc").swapaxes(1, 2)
    config = sae_jax.SAEConfig(24, 3)
    x = np.random.default_rng(0).normal(size=(70, 8)).astype(np.float32)

    def scores():
        hyper = hyperparameters([config], sae_jax.TrainConfig(), *x.shape)
        return evaluate_group(config.template, params, {}, hyper, x, batch_size=16)

    expected = scores()
    with settings():
        found = scores()
    assert_equal_trees(found, expected, rtol=1e-5)


def test_recorded_numbers_of_a_seed():
    """Results of a seed may not change between versions unnoticed."""
    np.testing.assert_array_equal(epoch_order(0, 0, 10), RECORDED_ORDER)
    np.testing.assert_array_equal(epoch_order(7, 3, 10), RECORDED_LATER_ORDER)
    params = init_params(jax.random.key(0), 2, 3, 4)
    for name, recorded in RECORDED_PARAMS.items():
        np.testing.assert_allclose(params[name], recorded, rtol=1e-6, atol=0, err_msg=name)
