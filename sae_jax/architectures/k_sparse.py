"""What SAEs share that keep a number of latents, and may revive those that are dead."""

from typing import Any

import jax
import jax.numpy as jnp

from sae_jax.architectures.aux_k import SinceFired, aux_k_loss
from sae_jax.architectures.base import SAE
from sae_jax.architectures.fields import filled, refuse_unused
from sae_jax.architectures.training import Batch, Hyperparameters
from sae_jax.configs import SAEConfig

_OF_PENALTIES = (
    "target_l0",
    "sparsity_coefficient",
    "sparsity_loss",
    "sparsity_warmup_steps",
    "bandwidth",
    "threshold_init",
)


class KSparseSAE(SAE):
    """An SAE that keeps k latents a sample, and may have the auxiliary loss AuxK.

    Attributes:
      k: latents kept a sample; an integer or `None`, or a traced scalar inside a transformation.
      since_fired: samples since each latent fired last, `[F]`, where AuxK needs to know.
    """

    training_only = ("since_fired",)
    k: Any

    @classmethod
    def is_rescaled(cls, config: SAEConfig) -> bool:
        """As SAELens does."""
        return config.preset == "saelens"

    @classmethod
    def check(cls, config: SAEConfig) -> None:
        """Refuses a config without k, or with fields that are of no use.

        Raises:
          ValueError: naming the field, what was found and what is allowed.
        """
        if config.k is None:
            raise ValueError(f"k is None; {config.architecture} needs 1 to d_sae = {config.d_sae}")
        refuse_unused(config, *_OF_PENALTIES, "prefix_fractions")

    @classmethod
    def fill(
        cls, config: SAEConfig, scale: float, num_samples: int, d_in: int, batch_size: int
    ) -> SAEConfig:
        """What AuxK needs, if it has a coefficient; see `SAE.fill`.

        It may revive half the activations' width, and waits for an epoch or as the preset's library
        does.
        """
        if not config.aux_coefficient:
            return config
        # SAELens counts steps, and a latent is dead after more than 1,000.
        waits = {"saelens": 1000 * batch_size + 1, "dictionary_learning": 10_000_000}
        return filled(
            config,
            aux_k=min(max(d_in // 2, 1), config.d_sae),
            dead_after=waits.get(config.preset or "", num_samples),
        )

    def start_training(self, config: SAEConfig, hyper: Hyperparameters) -> None:
        """Keeps what AuxK needs to know, where there is one."""
        if config.aux_coefficient:
            self.since_fired = SinceFired(jnp.zeros(self.d_sae, jnp.int32))

    def aux_k(
        self,
        pre: jax.Array,
        z: jax.Array,
        missed: jax.Array,
        w_dec: jax.Array,
        batch: Batch,
        hyper: Hyperparameters,
    ) -> jax.Array | float:
        """The auxiliary loss times its coefficient, `[]`; 0 where there is none.

        Args:
          pre: pre-activations, `[b, F]`.
          z: latents, `[b, F]`.
          missed: what the reconstructions miss, `[b, D]`.
          w_dec: the decoder that they come from, `[F, D]`.
          batch: the batch.
          hyper: hyperparameters, all `[]`.
        """
        if not hasattr(self, "since_fired"):
            return 0.0
        # SAELens revives pre-activations as they are, negative ones included.
        candidates = pre if self.preset == "saelens" else self.value(pre)
        dead = self.since_fired.count(jnp.any(z != 0, axis=0), batch, hyper, self.preset)
        return aux_k_loss(
            candidates,
            self.rank(candidates),
            missed,
            w_dec,
            dead,
            batch,
            hyper,
            self.preset,
            self.dtype,
        )

    def value(self, pre: jax.Array) -> jax.Array:
        """What latents are where they are kept, of pre-activations."""
        return jax.nn.relu(pre)

    def rank(self, value: jax.Array) -> jax.Array:
        """By what the largest are kept."""
        return value
