"""Matryoshka: a BatchTopK whose first latents have to reconstruct alone, prefix by prefix."""

import dataclasses

import jax
import jax.numpy as jnp

from sae_jax.architectures.batch_topk import BatchTopKSAE
from sae_jax.architectures.losses import mse
from sae_jax.architectures.training import Batch, Hyperparameters
from sae_jax.configs import SAEConfig
from sae_jax.ops.matmul import training_matmul


class MatryoshkaSAE(BatchTopKSAE):
    """A BatchTopK with an error for every nested prefix of its dictionary.

    Reference: Bussmann, Nabeshima, Karvonen and Nanda 2025, arXiv:2503.17547.
    """

    @classmethod
    def check(cls, config: SAEConfig) -> None:
        """Refuses a config without k or prefixes, or with fields that are of no use.

        Raises:
          ValueError: naming the field, what was found and what is allowed.
        """
        if config.prefix_fractions is None:
            raise ValueError(
                "prefix_fractions is None; matryoshka needs numbers that grow to 1, such as"
                " (0.25, 0.5, 1.0)"
            )
        super().check(dataclasses.replace(config, prefix_fractions=None))

    def error(
        self,
        z: jax.Array,
        w_dec: jax.Array,
        y_hat: jax.Array,
        batch: Batch,
        hyper: Hyperparameters,
    ) -> jax.Array:
        """Mean over the prefixes of their errors.

        SAELens adds them up. dictionary_learning weighs each by 1 / P for P prefixes and takes the
        mean of those, so that each counts 1 / P^2: beside it AuxK weighs P^2 times what it does
        beside SAELens' sum.
        """
        latent = jnp.arange(z.shape[1], dtype=jnp.int32)
        b_dec = self.b_dec[...][None, :]
        num_prefixes = len(hyper.prefix_sizes)
        bounds = self.prefix_bounds or (z.shape[1],) * num_prefixes
        total = mse(y_hat, batch.target)
        # The last prefix is the whole dictionary, which is reconstructed already.
        for size, bound in zip(hyper.prefix_sizes[:-1], bounds[:-1], strict=True):
            inside = jnp.where((latent < size)[None, :bound], z[:, :bound], 0.0)
            x_hat = training_matmul(inside, w_dec[:bound], self.dtype) + b_dec
            total = total + mse(x_hat, batch.target)
        weight = {"saelens": 1.0, "dictionary_learning": 1 / num_prefixes**2}
        return total * weight.get(self.preset or "", 1 / num_prefixes)
