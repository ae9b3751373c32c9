"""The weight of a penalty on firing that makes a chosen number of latents fire."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from sae_jax.architectures.training import Hyperparameters

# Chosen on real activations, raw and centered, at 600 steps of Adam with a rate of 1e-3.
_RATE = 0.05
# A first weight that is far off is made up for slowly, lest latents die that would be needed.
_MOST_ADDED = 0.3
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

    def adapt(self, l0: jax.Array, hyper: Hyperparameters, damping: float) -> jax.Array:
        """The weight for a batch in which `l0` latents fire on average, `[]`; a constant.

        Args:
          l0: mean number of latents that fire, `[]`.
          hyper: the target.
          damping: what the last error counts beside the sum of all.
        """
        error = jnp.log(jnp.maximum(lax.stop_gradient(l0), 1e-3) / hyper.target_l0)
        self[...] = self[...] + _RATE * jnp.clip(error, -_MOST_ADDED, _MOST_ADDED)
        return jnp.exp(self[...] + damping * jnp.clip(error, -_MOST, _MOST))
