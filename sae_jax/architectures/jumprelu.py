"""JumpReLU: latents above a threshold each, which is trained by straight-through estimators."""

from collections.abc import Mapping
from typing import Self, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from sae_jax.architectures.base import Options, as_row, options_of
from sae_jax.architectures.fields import filled, refuse_unused
from sae_jax.architectures.losses import row_norms, squared_error
from sae_jax.architectures.penalized import PenalizedSAE
from sae_jax.architectures.training import Arrays, Batch, Hyperparameters, Kernel
from sae_jax.configs import SAEConfig
from sae_jax.ops.matmul import training_matmul, training_matmul_transposed

# Anthropic's and SAELens' scale of what `sparsity_loss="tanh"` takes the tangent of.
_TANH_SCALE = 4.0


@jax.custom_jvp
def step(margin: jax.Array, bandwidth: jax.Array) -> jax.Array:
    """1 where a pre-activation exceeds its threshold by `margin` > 0, 0 elsewhere.

    Its derivative is estimated: 1 / bandwidth in the window |margin| < bandwidth / 2.
    """
    return (margin > 0).astype(jnp.float32)


@step.defjvp
def _step_jvp(
    primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    margin, bandwidth = primals
    window = jnp.abs(margin / bandwidth) < 0.5
    return step(margin, bandwidth), jnp.where(window, tangents[0] / bandwidth, 0.0)


def jump(pre: jax.Array, threshold: jax.Array, fires: jax.Array) -> jax.Array:
    """Pre-activations that fire, with the estimated derivative -threshold / bandwidth by the
    threshold in its window.

    Args:
      pre: pre-activations, `[b, F]`.
      threshold: `[1, F]`.
      fires: `step` of `pre` less `threshold`, `[b, F]`.
    """
    constant = lax.stop_gradient(fires)
    # The second term is 0 and has but a derivative.
    return pre * constant + lax.stop_gradient(threshold) * (fires - constant)


class JumpReLUSAE(PenalizedSAE):
    """Keeps positive pre-activations above each latent's threshold (Rajamanoharan et al. 2024).

    Reference: arXiv:2407.14435.

    Attributes:
      threshold: `[F]`, in units of the pre-activations.
      sparsity_loss: what training penalizes, as `SAEConfig.sparsity_loss`.
      targets_each: whether it penalizes each sample's distance from the target.
    """

    # Thresholds answer at once, where a sum of latents has to turn the encoder first.
    damping = 3.0
    has_thresholds = True
    in_latents_units = ("threshold",)
    sparsity_loss = "step"
    targets_each = False

    def __init__(
        self,
        params: Mapping[str, jax.Array | np.ndarray],
        threshold: jax.Array | np.ndarray,
        **options: Unpack[Options],
    ):
        super().__init__(params, **options)
        if np.shape(threshold) != (self.d_sae,):
            raise ValueError(f"threshold has shape {np.shape(threshold)}; expected ({self.d_sae},)")
        self.threshold = nnx.Param(jnp.asarray(threshold, jnp.float32))

    @classmethod
    def from_params(cls, params: Mapping[str, jax.Array | np.ndarray], config: SAEConfig) -> Self:
        """The SAE of a config around parameters that were drawn, trained or read.

        Where they are drawn, `start_training` sets the threshold.
        """
        cls.check(config)
        params = dict(params)
        zeros = np.zeros(np.shape(params["b_enc"]), np.float32)
        sae = cls(params, params.pop("threshold", zeros), **options_of(config))
        sae.sparsity_loss = config.sparsity_loss
        sae.targets_each = config.preset == "saelens" and config.target_l0 is not None
        return sae

    @classmethod
    def check(cls, config: SAEConfig) -> None:
        """Refuses a config without a weight or a target, or with fields that are of no use.

        Raises:
          ValueError: naming the field, what was found and what is allowed.
        """
        super().check(config)
        if config.preset == "dictionary_learning":
            refuse_unused(config, "sparsity_loss")
        if config.preset == "saelens" and config.sparsity_loss == "tanh":
            refuse_unused(config, "target_l0")

    @classmethod
    def fill(
        cls, config: SAEConfig, scale: float, num_samples: int, d_in: int, batch_size: int
    ) -> SAEConfig:
        """The libraries' constants; without a preset multiples of the samples' scale."""
        if config.preset == "saelens":
            return filled(config, sparsity_coefficient=1.0, bandwidth=0.05, threshold_init=0.01)
        if config.preset == "dictionary_learning":
            # That library counts 20 latents, of however many there are.
            config = filled(config, sparsity_coefficient=1.0, target_l0=min(20.0, config.d_sae))
            return filled(config, bandwidth=0.001, threshold_init=0.001)
        return filled(
            config, sparsity_coefficient=scale**2, bandwidth=2.0 * scale, threshold_init=scale
        )

    @classmethod
    def allowed(cls, arrays: Arrays, config: SAEConfig) -> Arrays:
        """With thresholds of 0 or more, but for preset "dictionary_learning"."""
        if config.preset == "dictionary_learning":
            return arrays
        return arrays | {"threshold": jnp.maximum(arrays["threshold"], 0.0)}

    def start_training(self, config: SAEConfig, hyper: Hyperparameters) -> None:
        """Sets all thresholds to their start; those of padding latents stay there."""
        super().start_training(config, hyper)
        self.threshold[...] = jnp.full_like(self.threshold[...], hyper.threshold_init)

    def activate(self, pre: jax.Array) -> jax.Array:
        """Pre-activations above their threshold and above zero, zero elsewhere."""
        return jnp.where(pre > as_row(self.threshold[...], pre), jax.nn.relu(pre), 0.0)

    def loss(self, batch: Batch, hyper: Hyperparameters, kernel: Kernel) -> jax.Array:
        """Squared error, and a penalty on the latents that fire, weighed.

        The penalty is the mean over the samples of how many fire, or with `sparsity_loss="tanh"` of
        the sum of tanh(4 f |w|), where f is a latent and |w| the norm of its decoder row. Without
        a preset estimators give their derivative to thresholds and pre-activations alike (as
        Anthropic's do), so that encoders learn to be sparse as fast as to reconstruct, whatever
        units samples have.

        With preset "saelens" they give it to thresholds alone, which move by no more than the
        learning rate at a step; with `target_l0` the penalty is 2 / target * (L0 - target)^2 of
        each sample's L0, so that an L0 that varies costs something even where its mean is right.

        With preset "dictionary_learning" the penalty is (L0 / target - 1)^2 of the batch's L0, and
        again thresholds alone learn by it. Two faults of that library are kept: it counts what
        exceeds the threshold among latents, not pre-activations, so that the window has no part
        below the threshold, unless the threshold is under half the bandwidth, when every latent
        that is silent is in the window; and nothing keeps thresholds from falling under zero,
        where all silent latents count as firing.

        See `SAE.loss` for the arguments.
        """
        x, w_enc_t, b_enc, w_dec = self.encoder_and_decoder(batch.x)
        pre = training_matmul_transposed(x, w_enc_t, self.dtype) + b_enc[None, :]
        threshold = self.threshold[...][None, :]
        through = pre if self.preset is None else lax.stop_gradient(pre)
        fires = step(through - threshold, hyper.bandwidth)
        z = jump(pre, threshold, fires)
        y_hat = training_matmul(z, w_dec, self.dtype) + self.b_dec[...][None, :]
        if self.preset == "dictionary_learning":
            fires = step(lax.stop_gradient(z) - threshold, hyper.bandwidth)
        l0_each = jnp.sum(jnp.where(batch.latents[None, :], fires, 0.0), axis=1)
        l0 = jnp.mean(l0_each)
        if self.preset == "dictionary_learning":
            penalty = jnp.square(l0 / hyper.target_l0 - 1.0)
        elif self.targets_each:
            penalty = jnp.mean(2.0 / hyper.target_l0 * jnp.square(l0_each - hyper.target_l0))
        elif self.sparsity_loss == "tanh":
            sizes = jnp.tanh(_TANH_SCALE * z * row_norms(w_dec)[None, :])
            penalty = jnp.mean(jnp.sum(sizes, axis=1))
        else:
            penalty = l0
        return squared_error(y_hat, batch.target) + self.weight(l0, batch, hyper) * penalty
