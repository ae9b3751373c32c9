"""JumpReLU: latents above a threshold each; for inference."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from sae_jax.architectures.base import SAE, as_row
from sae_jax.ops.matmul import ComputeDtype


class JumpReLUSAE(SAE):
    """Keeps positive pre-activations above each latent's threshold (Rajamanoharan et al. 2024).

    Reference: arXiv:2407.14435.

    Attributes:
      threshold: `[F]`, in units of the pre-activations.
    """

    def __init__(
        self,
        params: Mapping[str, jax.Array | np.ndarray],
        threshold: jax.Array | np.ndarray,
        *,
        center_input: bool = False,
        normalize_input: bool = False,
        dtype: ComputeDtype | DTypeLike = "float32",
    ):
        super().__init__(
            params, center_input=center_input, normalize_input=normalize_input, dtype=dtype
        )
        if np.shape(threshold) != (self.d_sae,):
            raise ValueError(f"threshold has shape {np.shape(threshold)}; expected ({self.d_sae},)")
        self.threshold = nnx.Param(jnp.asarray(threshold, jnp.float32))

    def activate(self, pre: jax.Array) -> jax.Array:
        """Pre-activations above their threshold and above zero, zero elsewhere."""
        return jnp.where(pre > as_row(self.threshold[...], pre), jax.nn.relu(pre), 0.0)
