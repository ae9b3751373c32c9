"""What kernels that skip latents are held to: the dense kernel's gradients and sweeps."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np

import sae_jax
from sae_jax.architectures import losses
from sae_jax.architectures.base import PARAM_NAMES
from sae_jax.architectures.initialization import init_params
from sae_jax.architectures.topk import TopKSAE
from sae_jax.ops import dense
from sae_jax.ops.activation import ABS_TOP_K
from sae_jax.ops.matmul import transposed

D_IN = 24


def arrays(d_sae, seed=0):
    """Initial parameters, and 96 samples with an offset."""
    params = init_params(jax.random.key(seed), D_IN, d_sae, d_sae)
    x = jax.random.normal(jax.random.key(seed + 1), (96, D_IN)) + 0.5
    return params, x


def doubled(params):
    """Each latent twice, the copy with its sign turned: every magnitude ties."""
    return {
        "w_enc": jnp.concatenate([params["w_enc"], -params["w_enc"]], axis=1),
        "b_enc": jnp.concatenate([params["b_enc"], -params["b_enc"]]),
        "w_dec": jnp.concatenate([params["w_dec"], params["w_dec"][::-1]]),
        "b_dec": params["b_dec"],
    }


def loss_with(kernel, activation=ABS_TOP_K, **static):
    """The loss of canonical parameters through a kernel."""

    def loss(params, x, k, dtype="float32"):
        w_enc, *others = (params[name] for name in PARAM_NAMES)
        # A copy: XLA's CPU backend folds a transpose into bfloat16 products, and fails.
        x_hat = kernel(transposed(w_enc), *others, x, k, activation, dtype, *static.values())
        return losses.mse(x_hat, x)

    return loss


dense_loss = loss_with(dense.reconstruct)


@cache
def _value_and_grad(loss_of):
    """Compiled once for all examples of a property."""
    return jax.jit(jax.value_and_grad(loss_of))


@cache
def _dense_value_and_grad(activation, dtype):
    return _value_and_grad(partial(loss_with(dense.reconstruct, activation), dtype=dtype))


def assert_dense_gradients(
    loss_of, params, x, k, dtype="float32", tolerance=1e-5, activation=ABS_TOP_K
):
    """Compares `loss_of(params, x, k)` and its gradients with the dense kernel's."""
    loss, grads = _dense_value_and_grad(activation, dtype)(params, x, k)
    found, found_grads = _value_and_grad(loss_of)(params, x, k)
    np.testing.assert_allclose(found, loss, rtol=tolerance)
    for name in PARAM_NAMES:
        scale = float(jnp.abs(grads[name]).max())
        np.testing.assert_allclose(
            found_grads[name], grads[name], rtol=0, atol=tolerance * scale, err_msg=name
        )


def assert_gradients_of_samples(loss_of, params, x, k, tolerance=1e-5):
    """Compares the gradient of `loss_of(params, x, k)` in `x` with the public module's."""

    def module_loss(x):
        return losses.mse(TopKSAE(params, int(k))(x), x)

    expected = jax.grad(module_loss)(x)
    found = jax.jit(jax.grad(loss_of, argnums=1))(params, x, k)
    scale = float(jnp.abs(expected).max())
    assert scale > 0
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * scale)


def assert_dense_sweep(kernel, members, **options):
    """Trains a sweep with a kernel and with the dense one, and compares losses and parameters."""
    x = np.asarray(arrays(8)[1])
    found, dense = (
        sae_jax.train_sweep(
            members,
            x,
            x,
            sae_jax.TrainConfig(epochs=4, batch_size=20, kernel=name, **options),
            progress=False,
        ).members
        for name in (kernel, "dense")
    )
    for member, expected in zip(found, dense, strict=True):
        np.testing.assert_allclose(member.losses, expected.losses, rtol=1e-5)
        for name in PARAM_NAMES:
            np.testing.assert_allclose(member.params[name], expected.params[name], atol=1e-4)
