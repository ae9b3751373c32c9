"""Adam as PyTorch and the published experiment have it: Optax's, and on a CPU in one pass."""

import jax
import jax.numpy as jnp
import optax

from sae_jax.architectures.training import Arrays
from sae_jax.ops import native

_MEAN_DECAY, _SQUARE_DECAY, _EPSILON = 0.9, 0.999, 1e-8


def adam(learning_rate: jax.Array) -> optax.GradientTransformation:
    """Optax's Adam; epsilon outside the root."""
    return optax.chain(
        optax.scale_by_adam(b1=_MEAN_DECAY, b2=_SQUARE_DECAY, eps=_EPSILON),
        optax.scale_by_learning_rate(learning_rate),
    )


def adam_in_one_pass(
    params: Arrays, gradient: Arrays, state: optax.OptState, learning_rate: jax.Array
) -> tuple[Arrays, optax.OptState]:
    """Parameters after a step of `adam`, and its state; needs the loops of `sae_jax.ops.native`.

    What XLA compiles of Optax's reads and writes parameters and moments more than once.
    """
    return native.on_cpu(_in_one_pass, _by_optax, params, gradient, state, learning_rate)


def _by_optax(
    params: Arrays, gradient: Arrays, state: optax.OptState, learning_rate: jax.Array
) -> tuple[Arrays, optax.OptState]:
    with jax.numpy_dtype_promotion("standard"):  # Optax promotes its integer counts of steps.
        updates, state = adam(learning_rate).update(gradient, state)
    return optax.apply_updates(params, updates), state


def _in_one_pass(
    params: Arrays, gradient: Arrays, state: optax.OptState, learning_rate: jax.Array
) -> tuple[Arrays, optax.OptState]:
    scaling, *others = state
    count = optax.safe_increment(scaling.count)
    steps = count.astype(jnp.float32)
    numbers = (
        *(_MEAN_DECAY, 1.0 - _MEAN_DECAY, _SQUARE_DECAY, 1.0 - _SQUARE_DECAY, _EPSILON),
        learning_rate,
        1.0 / (1.0 - jnp.float32(_MEAN_DECAY) ** steps),
        1.0 / (1.0 - jnp.float32(_SQUARE_DECAY) ** steps),
    )
    arrays = (gradient, params, scaling.mu, scaling.nu)
    updated = native.adam(
        jnp.stack([jnp.asarray(number, jnp.float32) for number in numbers]),
        *([each[name] for name in params] for each in arrays),
    )
    after, mu, nu = (dict(zip(params, part, strict=True)) for part in updated)
    return after, (scaling._replace(count=count, mu=mu, nu=nu), *others)
