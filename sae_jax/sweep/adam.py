"""Adam as PyTorch and the published experiment have it: Optax's, and on a CPU in one pass."""

import jax
import jax.numpy as jnp
import optax

from sae_jax.architectures.training import Arrays
from sae_jax.ops import native

MEAN_DECAY, SQUARE_DECAY, EPSILON = 0.9, 0.999, 1e-8


def adam(learning_rate: jax.Array) -> optax.GradientTransformation:
    """Optax's Adam; epsilon outside the root."""
    return optax.chain(
        optax.scale_by_adam(b1=MEAN_DECAY, b2=SQUARE_DECAY, eps=EPSILON),
        optax.scale_by_learning_rate(learning_rate),
    )


def adam_in_one_pass(
    params: Arrays, gradient: Arrays, state: optax.OptState, learning_rate: jax.Array
) -> tuple[Arrays, optax.OptState]:
    """Parameters after a step of `adam`, and its state; needs `sae_jax.ops.native`.

    What XLA compiles of Optax's reads and writes parameters and moments more than once.
    """
    scaling, *others = state
    count = optax.safe_increment(scaling.count)
    steps = count.astype(jnp.float32)
    numbers = jnp.stack(
        [
            jnp.asarray(number, jnp.float32)
            for number in (
                *(MEAN_DECAY, 1.0 - MEAN_DECAY, SQUARE_DECAY, 1.0 - SQUARE_DECAY, EPSILON),
                learning_rate,
                1.0 / (1.0 - jnp.float32(MEAN_DECAY) ** steps),
                1.0 / (1.0 - jnp.float32(SQUARE_DECAY) ** steps),
            )
        ]
    )
    arrays = (gradient, params, scaling.mu, scaling.nu)
    updated = native.adam(numbers, *([each[name] for name in params] for each in arrays))
    after, mu, nu = (dict(zip(params, updated[i * len(params) :], strict=False)) for i in range(3))
    return after, (scaling._replace(count=count, mu=mu, nu=nu), *others)
