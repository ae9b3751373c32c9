"""How latents come from pre-activations, in the two parts that kernels need apart."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sae_jax.ops.top_k import top_k_mask


class Activation(NamedTuple):
    """Latents are `value(pre)` where `keep` says so, and exactly zero elsewhere.

    Both are functions of a module, so that they can be static arguments of a compiled program.

    Attributes:
      value: of pre-activations, elementwise, with a derivative of 0 or 1.
      keep: which values are kept, bool, given the hyperparameter k `[]` and the axis of latents;
        a constant to every derivative.
    """

    value: Callable[[jax.Array], jax.Array]
    keep: Callable[[jax.Array, jax.Array, int], jax.Array]

    def __call__(self, pre: jax.Array, k: jax.Array) -> jax.Array:
        """Latents `[..., F]` of pre-activations `[..., F]`."""
        value = self.value(pre)
        return jnp.where(self.keep(value, k, -1), value, 0.0)


def signed(pre: jax.Array) -> jax.Array:
    """Pre-activations as they are."""
    return pre


def largest_magnitudes(value: jax.Array, k: jax.Array, axis: int) -> jax.Array:
    """Marks the k values of largest magnitude along an axis; see `top_k_mask`."""
    return top_k_mask(jnp.abs(value), k, axis)


ABS_TOP_K = Activation(signed, largest_magnitudes)
"""The k pre-activations of largest magnitude, with their sign."""

TOP_K = Activation(jax.nn.relu, largest_magnitudes)
"""The k largest of the pre-activations that a ReLU leaves; fewer if fewer are positive."""
