"""BatchTopK: the latents that rank highest in a whole batch; a threshold for inference."""

from collections.abc import Mapping, Sequence
from typing import Any, Self, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from sae_jax.architectures.base import Options, options_of
from sae_jax.architectures.k_sparse import KSparseSAE
from sae_jax.architectures.losses import mse
from sae_jax.architectures.training import Batch, Hyperparameters, Kernel
from sae_jax.configs import SAEConfig
from sae_jax.ops.matmul import training_matmul, training_matmul_transposed
from sae_jax.ops.top_k import batch_top_k_mask

# dictionary_learning estimates no threshold up to this step.
_FIRST_STEP = 1000


class Threshold(nnx.Variable):
    """Above which latents fire at inference, float32 `[]`; negative before the first estimate."""

    def follow(self, kept: jax.Array, step: jax.Array, preset: str | None) -> None:
        """Moves towards the smallest latent that a batch keeps.

        Without a preset the first estimate is that value, and later ones are an exponential mean
        of decay 0.99, which a batch that keeps nothing leaves alone. SAELens' mean starts from 0.
        dictionary_learning's starts after step 1,000 with the first value, has decay 0.999, and
        takes 0 for a batch that keeps nothing, where that library cannot start: it raises an error.

        Args:
          kept: latents that the batch keeps, none negative, 0 elsewhere, `[b, F]`.
          step: steps taken before, `[]`.
          preset: whose definition is followed.
        """
        before = self[...]
        smallest = jnp.min(jnp.where(kept > 0, lax.stop_gradient(kept), jnp.inf))
        none = jnp.isinf(smallest)
        if preset == "dictionary_learning":
            smallest = jnp.where(none, 0.0, smallest)
            after = jnp.where(before < 0, smallest, 0.999 * before + 0.001 * smallest)
            self[...] = jnp.where(step > _FIRST_STEP, after, before)
            return
        after = 0.99 * before + 0.01 * smallest
        if preset is None:
            after = jnp.where(before < 0, smallest, after)
        self[...] = jnp.where(none, before, after)


class BatchTopKSAE(KSparseSAE):
    """Keeps the k * b largest latents of a batch of b samples in training.

    At inference it keeps latents above a threshold, so that a sample's latents do not depend on
    the others (Bussmann, Leask and Nanda 2024, arXiv:2412.06410).

    Attributes:
      threshold: the threshold, `[]`.
      prefix_sizes: latents of each nested prefix that `MatryoshkaSAE` trains.
    """

    not_per_latent = ("threshold",)
    in_latents_units = ("threshold",)

    def __init__(
        self,
        params: Mapping[str, jax.Array | np.ndarray],
        threshold: jax.Array | np.ndarray | float,
        *,
        k: int | None = None,
        prefix_sizes: Sequence[int] = (),
        **options: Unpack[Options],
    ):
        super().__init__(params, **options)
        if np.shape(threshold) != ():
            raise ValueError(f"threshold has shape {np.shape(threshold)}; expected a number, []")
        self.threshold = Threshold(jnp.asarray(threshold, jnp.float32))
        self.k = k
        self.prefix_sizes = tuple(prefix_sizes)

    @classmethod
    def from_params(cls, params: Mapping[str, jax.Array | np.ndarray], config: SAEConfig) -> Self:
        """The SAE of a config around parameters that were drawn, trained or read."""
        cls.check(config)
        params = dict(params)
        # SAELens' mean starts from 0, others from the first value.
        threshold = params.pop("threshold", 0.0 if config.preset == "saelens" else -1.0)
        known: dict[str, Any] = {"k": config.k, "prefix_sizes": config.prefix_sizes}
        return cls(params, threshold, **known, **options_of(config))

    def activate(self, pre: jax.Array) -> jax.Array:
        """Pre-activations above zero and above the threshold, zero elsewhere."""
        value = jax.nn.relu(pre)
        return jnp.where(value > self.threshold[...], value, 0.0)

    def activate_batch(self, pre: jax.Array, k: jax.Array | int) -> jax.Array:
        """Latents in training, the k * b largest above zero, of pre-activations `[b, F]`."""
        value = jax.nn.relu(pre)
        return jnp.where(batch_top_k_mask(value, k * len(pre)), value, 0.0)

    def loss(self, batch: Batch, hyper: Hyperparameters, kernel: Kernel) -> jax.Array:
        """Mean squared error, and where it has a coefficient the auxiliary loss AuxK.

        With a preset errors are summed, not averaged, over an activation's dimensions; "saelens"
        also ranks latents by what they are times the norm of their decoder row. dictionary_learning
        estimates no threshold in its first 1,000 steps: an SAE that has trained for less keeps
        every positive latent at inference.

        See `SAE.loss` for the arguments.
        """
        x, w_enc_t, b_enc, w_dec = self.encoder_and_decoder(batch.x)
        pre = training_matmul_transposed(x, w_enc_t, self.dtype) + b_enc[None, :]
        z = self.activate_batch(pre, hyper.k)
        self.threshold.follow(z, batch.step, self.preset)
        scale = 1.0 if self.preset is None else float(self.d_out)
        y_hat = training_matmul(z, w_dec, self.dtype) + self.b_dec[...][None, :]
        error = scale * self.error(z, w_dec, y_hat, batch, hyper)
        return error + self.aux_k(pre, z, batch.target - y_hat, w_dec, batch, hyper)

    def error(
        self,
        z: jax.Array,
        w_dec: jax.Array,
        y_hat: jax.Array,
        batch: Batch,
        hyper: Hyperparameters,
    ) -> jax.Array:
        """The error of the reconstructions `[b, D]` of latents `[b, F]`, averaged over D."""
        return mse(y_hat, batch.target)
