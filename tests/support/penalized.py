"""SAEs with a penalty on firing on one batch, and their gradients."""

import jax
import jax.numpy as jnp
import numpy as np

from sae_jax.architectures.functional import merge, split
from sae_jax.architectures.registry import architecture_of
from sae_jax.architectures.training import Batch, Hyperparameters

_INTEGERS = (
    "seed",
    "d_sae",
    "k",
    "aux_k",
    "dead_after",
    "sparsity_warmup_steps",
    "warmup_steps",
    "decay_steps",
    "num_steps",
    "k_anneal_steps",
)


def hyper_of(config):
    """Hyperparameters of one member; what its config leaves open is 0."""
    values = {name: getattr(config, name, None) or 0 for name in Hyperparameters._fields}
    return Hyperparameters(
        **{
            name: jnp.asarray(value, jnp.int32 if name in _INTEGERS else jnp.float32)
            for name, value in values.items()
        }
    )


def batch_of(x, d_sae, width=None, *, step=0, target=None):
    latents = jnp.arange(width or d_sae) < d_sae
    x = jnp.asarray(x)
    return Batch(x, x if target is None else jnp.asarray(target), latents, jnp.int32(step))


def trained_arrays(config, params):
    """What is trained and what is kept of an SAE around parameters, before the first step."""
    sae = architecture_of(config).from_params(params, config)
    own = {name: np.asarray(params[name]) for name in params if name in split(sae)[0]}
    sae.start_training(config, hyper_of(config))
    arrays, kept = split(sae)
    return arrays | {name: jnp.asarray(array) for name, array in own.items()}, kept


def loss_and_gradients(config, arrays, kept, batch):
    """Loss, gradients by name, and what is kept after the batch."""
    hyper = hyper_of(config)

    def loss_of(arrays):
        sae = merge(config.template, arrays, kept, hyper)
        loss = sae.loss(batch, hyper, None)
        return loss, split(sae)[1]

    (loss, kept), gradients = jax.value_and_grad(loss_of, has_aux=True)(arrays)
    return loss, gradients, kept


def padded(arrays, width):
    """Arrays with latents of zeros behind their own."""

    def wide(name, array):
        if name == "b_dec":
            return array
        return jnp.pad(array, [(0, width - len(array))] + [(0, 0)] * (array.ndim - 1))

    return {name: wide(name, array) for name, array in arrays.items()}


def assert_padding_is_nothing(config, arrays, kept, x, width):
    """The loss and all gradients are those of the SAE without padding, and padding has none."""
    d_sae = config.d_sae
    loss, gradients, kept_after = loss_and_gradients(config, arrays, kept, batch_of(x, d_sae))
    wide = padded(arrays, width)
    if "threshold" in wide:
        wide["threshold"] = wide["threshold"].at[d_sae:].set(0.1)  # As they start.
    loss_wide, wider, kept_wide = loss_and_gradients(config, wide, kept, batch_of(x, d_sae, width))
    np.testing.assert_allclose(loss_wide, loss, rtol=1e-6)
    for name, gradient in gradients.items():
        assert np.any(np.asarray(gradient)), name
        found = wider[name]
        if name != "b_dec":
            assert not np.any(np.asarray(found[d_sae:])), name
            found = found[:d_sae]
        scale = float(np.abs(gradient).max())
        np.testing.assert_allclose(found, gradient, rtol=1e-5, atol=1e-6 * scale, err_msg=name)
    for name, array in kept_after.items():
        np.testing.assert_allclose(kept_wide[name], array, rtol=1e-6)
