"""ReLU: latents that are positive, with a penalty on their size."""

from collections.abc import Mapping
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np

from sae_jax.architectures.base import options_of
from sae_jax.architectures.losses import row_norms, squared_error
from sae_jax.architectures.penalized import PenalizedSAE
from sae_jax.architectures.training import Batch, Hyperparameters, Kernel
from sae_jax.configs import SAEConfig
from sae_jax.ops.matmul import settled, training_matmul, training_matmul_transposed


class ReLUSAE(PenalizedSAE):
    """Keeps positive pre-activations, and penalizes their sum.

    References:
      Bricken et al. 2023, "Towards Monosemanticity"
      Conerly et al. 2024, "Update on how we train SAEs", transformer-circuits.pub, April 2024

    Attributes:
      norms_count: whether the penalty takes a latent times the norm of its decoder row.
    """

    norms_count = True

    @classmethod
    def from_params(cls, params: Mapping[str, jax.Array | np.ndarray], config: SAEConfig) -> Self:
        """The SAE of a config around parameters that were drawn, trained or read."""
        cls.check(config)
        sae = cls(params, **options_of(config))
        # Of dictionary_learning's two trainers the one with a unit decoder takes no norms.
        sae.norms_count = not (config.preset == "dictionary_learning" and config.unit_decoder)
        return sae

    def activate(self, pre: jax.Array) -> jax.Array:
        """Pre-activations above zero, zero elsewhere."""
        return jax.nn.relu(pre)

    def loss(self, batch: Batch, hyper: Hyperparameters, kernel: Kernel) -> jax.Array:
        """Squared error, and the sum of latents times the norms of their decoder rows, weighed.

        With preset "dictionary_learning" and a unit decoder norms do not count, as in that
        library's `StandardTrainer`; without one it is its `StandardTrainerAprilUpdate`, and with
        preset "saelens" the "standard" SAE. `StandardTrainer` draws decoder rows of norm 0.1, so
        that its first step alone sees others than of norm 1.

        See `SAE.loss` for the arguments.
        """
        x, w_enc_t, b_enc, w_dec = self.encoder_and_decoder(batch.x)
        pre = training_matmul_transposed(x, w_enc_t, self.dtype) + b_enc[None, :]
        z = settled(self.activate(pre))
        y_hat = training_matmul(z, w_dec, self.dtype) + self.b_dec[...][None, :]
        sizes = z * row_norms(w_dec)[None, :] if self.norms_count else z
        penalty = jnp.mean(jnp.sum(sizes, axis=1))
        l0 = jnp.mean(jnp.sum(z > 0, axis=1, dtype=jnp.float32))
        return squared_error(y_hat, batch.target) + self.weight(l0, batch, hyper) * penalty
