"""AuxK: an auxiliary loss by which latents that have not fired for long are revived.

The dead latents of largest pre-activation reconstruct what all others miss, `e = y - y_hat`, which
is a constant, without the bias. Source: Gao et al. 2024, arXiv:2406.04093, section 2.4.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from sae_jax.architectures.losses import mean_squared_deviation, mse, squared_error
from sae_jax.architectures.training import Batch, Hyperparameters
from sae_jax.ops.matmul import ComputeDtype, training_matmul
from sae_jax.ops.top_k import signed_top_k_mask


class SinceFired(nnx.Variable):
    """Samples since each latent fired last, int32 `[F]`."""

    def count(
        self, fired: jax.Array, batch: Batch, hyper: Hyperparameters, preset: str | None
    ) -> jax.Array:
        """Counts a batch, and says which latents are dead, bool `[F]`.

        The batch itself is counted before with preset "dictionary_learning", and else after.

        Args:
          fired: whether each latent fires in the batch, bool `[F]`.
          batch: the batch.
          hyper: `dead_after`, in samples.
          preset: whose definition is followed.
        """
        before = self[...]
        after = jnp.where(fired | ~batch.latents, 0, before + len(batch.x))
        self[...] = after
        counts = after if preset == "dictionary_learning" else before
        return batch.latents & (counts >= hyper.dead_after)


def aux_k_loss(
    candidates: jax.Array,
    ranks: jax.Array,
    missed: jax.Array,
    w_dec: jax.Array,
    dead: jax.Array,
    batch: Batch,
    hyper: Hyperparameters,
    preset: str | None,
    dtype: ComputeDtype,
) -> jax.Array:
    """The auxiliary loss, times its coefficient; 0 where no latent is dead.

    Without a preset it is in units of the mean squared error, and what it weighs beside that does
    not depend on how well the SAE reconstructs: Var(y) * |e_hat - e|^2 / |e|^2. With preset
    "saelens" it is the sum over D of (e_hat - e)^2, times the share of `aux_k` that is dead, and
    with "dictionary_learning" such a sum divided by the variance of e. A batch of one sample has no
    such variance: the loss is 0, where that library's own gradients are not a number.

    Args:
      candidates: what revived latents would be, `[b, F]`.
      ranks: by what the largest are chosen, `[b, F]`.
      missed: e, `[b, D]`.
      w_dec: `[F, D]`.
      dead: which latents are dead, bool `[F]`.
      batch: the batch, for its target y.
      hyper: `aux_coefficient` and `aux_k`.
      preset: whose definition is followed.
      dtype: how the product is computed.
    """
    num_dead = jnp.sum(dead, dtype=jnp.int32)
    chosen = signed_top_k_mask(ranks, dead[None, :], jnp.clip(num_dead, 1, hyper.aux_k))
    missed = lax.stop_gradient(missed)
    revived = training_matmul(jnp.where(chosen, candidates, 0.0), w_dec, dtype)
    if preset == "saelens":
        share = jnp.minimum(num_dead.astype(jnp.float32) / hyper.aux_k.astype(jnp.float32), 1.0)
        auxiliary = squared_error(revived, missed) * share
    else:
        if preset == "dictionary_learning":
            scale = 1.0 / mean_squared_deviation(missed)
        else:
            scale = mean_squared_deviation(batch.target) / jnp.mean(jnp.square(missed))
        # Made finite before the product, for what is masked after it has a derivative of NaN.
        auxiliary = mse(revived, missed) * jnp.where(jnp.isfinite(scale), scale, 0.0)
    return hyper.aux_coefficient * jnp.where(num_dead > 0, auxiliary, 0.0)
