"""The dense kernel against the public module, in values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from gradients import arrays, assert_dense_gradients, assert_gradients_of_samples, dense_loss

from sae_jax.architectures import losses
from sae_jax.architectures.topk import TopKSAE


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 2e-2)])
def test_values_and_gradients_are_the_modules(dtype, tolerance):
    params, x = arrays(100)

    def module_loss(params, x, k):
        sae = TopKSAE(params, 1, dtype=dtype)
        sae.k = nnx.data(k)
        return losses.mse(sae(x), x)

    assert_dense_gradients(module_loss, params, x, jnp.int32(7), dtype, tolerance)


def test_gradients_of_samples_are_the_modules():
    params, x = arrays(100)
    assert_gradients_of_samples(dense_loss, params, x, jnp.int32(7))


def test_bfloat16_rounds_and_there_is_no_forward_mode():
    params, x = arrays(100)
    expected = losses.mse(TopKSAE(params, 7, dtype="bfloat16")(x), x)
    got = dense_loss(params, x, jnp.int32(7), "bfloat16")
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    assert got != dense_loss(params, x, jnp.int32(7), "float32")
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(lambda x: dense_loss(params, x, jnp.int32(7)), (x,), (x,))
