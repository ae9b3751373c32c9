"""The weight of a penalty on firing that makes a chosen number of latents fire."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from sae_jax.architectures.training import Hyperparameters

# Chosen on real activations, raw and centered, at 600 steps of Adam with a rate of 1e-3.
_RATE = 0.03
_DAMPING = 1.0
_MOST = 1.0


class LogWeight(nnx.Variable):
    """Logarithm of the penalty's weight, float32 `[]`, which a controller sets.

    The weight's logarithm is a sum of errors and of the last one, a proportional-integral
    controller; the error is log(L0 / target), so that neither units nor sizes matter.
    """

    @classmethod
    def start(cls, hyper: Hyperparameters) -> "LogWeight":
        """The logarithm of the config's coefficient."""
        return cls(jnp.log(hyper.sparsity_coefficient))

    def adapt(self, l0: jax.Array, hyper: Hyperparameters) -> jax.Array:
        """The weight for a batch in which `l0` latents fire on average, `[]`; a constant."""
        error = jnp.log(jnp.maximum(lax.stop_gradient(l0), 1e-3) / hyper.target_l0)
        error = jnp.clip(error, -_MOST, _MOST)
        self[...] = self[...] + _RATE * error
        return jnp.exp(self[...] + _DAMPING * error)
