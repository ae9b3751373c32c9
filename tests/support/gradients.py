"""What the paths that skip latents are held to: the dense path's gradients and sweeps."""

import jax
import jax.numpy as jnp
import numpy as np

import sae_jax
from sae_jax.architectures import losses
from sae_jax.architectures.base import PARAM_NAMES, init_params
from sae_jax.architectures.topk import TopKSAE
from sae_jax.ops import dense

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


def dense_loss(params, x, k, dtype="float32"):
    parameters = (params[name] for name in PARAM_NAMES)
    return losses.mse(dense.reconstruct(*parameters, x, k, dtype), x)


def assert_dense_gradients(loss_of, params, x, k, dtype="float32", tolerance=1e-5):
    """Compares `loss_of(params, x, k)` and its gradients with the dense path's."""
    loss, grads = jax.jit(jax.value_and_grad(dense_loss), static_argnums=3)(params, x, k, dtype)
    found, found_grads = jax.jit(jax.value_and_grad(loss_of))(params, x, k)
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


def assert_dense_sweep(path, members, **options):
    """Trains a sweep on a path and on the dense one, and compares losses and parameters."""
    x = np.asarray(arrays(8)[1])
    found, dense = (
        sae_jax.train_sweep(
            members,
            x,
            x,
            sae_jax.TrainConfig(epochs=4, batch_size=20, path=path, **options),
            progress=False,
        ).members
        for path in (path, "dense")
    )
    for member, expected in zip(found, dense, strict=True):
        np.testing.assert_allclose(member.losses, expected.losses, rtol=1e-5)
        for name in PARAM_NAMES:
            np.testing.assert_allclose(member.params[name], expected.params[name], atol=1e-4)
