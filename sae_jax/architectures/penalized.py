"""What SAEs share that become sparse by a penalty on firing."""

from typing import ClassVar

import jax
import jax.numpy as jnp

from sae_jax.architectures.base import SAE
from sae_jax.architectures.fields import filled, refuse_unused
from sae_jax.architectures.losses import mean_squared_deviation
from sae_jax.architectures.target_l0 import LogWeight
from sae_jax.architectures.training import Arrays, Batch, Hyperparameters
from sae_jax.configs import SAEConfig

# Samples of which the root mean square deviation is a tenth leave biases room to be of use within
# hundreds of steps: without a unit, that is.
_BIAS_RATE = 10.0


class PenalizedSAE(SAE):
    """An SAE whose training loss weighs a penalty on firing.

    The weight is the config's `sparsity_coefficient`; or, with `target_l0` and no preset, it is
    adapted at every step until so many latents fire.

    Attributes:
      log_weight: the logarithm of a weight that is adapted.
      has_thresholds: whether latents have thresholds, for `bandwidth`, `threshold_init` and
        `sparsity_loss` to be of use.
      damping: what its controller takes the last error for, beside the sum of all.
    """

    damping: ClassVar[float] = 1.0
    has_thresholds: ClassVar[bool] = False

    training_only = ("log_weight",)
    not_per_latent = ("log_weight",)

    @classmethod
    def check(cls, config: SAEConfig) -> None:
        """Refuses a config without a weight or a target, or with fields that are of no use.

        Raises:
          ValueError: naming the field, what was found and what is allowed.
        """
        refuse_unused(config, "k", "prefix_fractions", "aux_coefficient", "aux_k", "dead_after")
        if not cls.has_thresholds:
            refuse_unused(config, "bandwidth", "threshold_init", "sparsity_loss")
        if config.preset is not None:
            if not cls.has_thresholds:
                refuse_unused(config, "target_l0")
            return
        if config.target_l0 is not None:
            if config.sparsity_warmup_steps:
                raise ValueError(
                    f"sparsity_warmup_steps is {config.sparsity_warmup_steps} beside target_l0;"
                    " allowed is 0, as the penalty's weight is adapted from the first step"
                )
        elif config.sparsity_coefficient is None:
            raise ValueError(
                f"sparsity_coefficient is None; {config.architecture} without a preset needs a"
                f" positive number, or target_l0 above 0 to d_sae = {config.d_sae}"
            )

    @classmethod
    def fill(
        cls, config: SAEConfig, scale: float, num_samples: int, d_in: int, batch_size: int
    ) -> SAEConfig:
        """The libraries' coefficients; with a target a first value in the samples' units."""
        coefficient = {"saelens": 1.0, "dictionary_learning": 0.1}.get(config.preset or "", scale)
        return filled(config, sparsity_coefficient=coefficient)

    @classmethod
    def rates(cls, config: SAEConfig, batch: Batch) -> Arrays:
        """Without a preset what is in units of the samples learns in those units.

        The optimizer moves a number by at most the learning rate at a step. Weights are of order 1
        whatever the samples are, but thresholds and biases have as far to go as samples are large;
        those that crawl leave a penalty no way to sparsity but to shrink the encoder.
        """
        if config.preset is not None:
            return {}
        x_scale, y_scale = (
            _BIAS_RATE * jnp.sqrt(mean_squared_deviation(y)) for y in (batch.x, batch.target)
        )
        return dict.fromkeys(("b_enc", *cls.in_latents_units), x_scale) | {"b_dec": y_scale}

    def start_training(self, config: SAEConfig, hyper: Hyperparameters) -> None:
        """Starts a weight that is adapted at the config's coefficient.

        Without a preset `b_enc` starts at zero, since random numbers of order 1 are much or
        nothing in the samples' units.
        """
        if config.preset is None:
            self.b_enc[...] = jnp.zeros_like(self.b_enc[...])
        if config.target_l0 is not None and config.preset is None:
            self.log_weight = LogWeight.start(hyper)

    def weight(self, l0: jax.Array, batch: Batch, hyper: Hyperparameters) -> jax.Array:
        """What the penalty is multiplied by, `[]`.

        Args:
          l0: mean number of latents that fire in the batch, `[]`.
          batch: the batch, for its step.
          hyper: the coefficient, the target and the steps of warm-up.
        """
        if hasattr(self, "log_weight"):
            return self.log_weight.adapt(l0, hyper, self.damping)
        warmup = hyper.sparsity_warmup_steps.astype(jnp.float32)
        grown = batch.step.astype(jnp.float32) / jnp.maximum(warmup, 1.0)
        return hyper.sparsity_coefficient * jnp.where(warmup > 0, jnp.minimum(grown, 1.0), 1.0)
