"""From trained arrays to metrics: members side by side."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from sae_jax.activations.batches import padded_batches
from sae_jax.architectures.functional import merge
from sae_jax.architectures.training import Arrays, Hyperparameters
from sae_jax.configs import SAEConfig
from sae_jax.metrics import quality

EVAL_BATCH_SIZE = 512


def evaluate_group(
    template: SAEConfig,
    params: Arrays,
    kept: Arrays,
    hyper: Hyperparameters,
    x: np.ndarray,
    batch_size: int = EVAL_BATCH_SIZE,
    *,
    target: np.ndarray | None = None,
) -> list[dict[str, float | int | np.ndarray]]:
    """Every metric of every member.

    Args:
      template: `SAEConfig.template` of the members.
      params: trained arrays of M members, leading axis M, padded to one width F.
      kept: arrays that they keep but do not train, likewise.
      hyper: their hyperparameters, `[M]` each.
      x: validation samples `[n, D]`.
      batch_size: samples at a time; the metrics do not depend on it beyond rounding.
      target: what is to be reconstructed, `[n, D_out]`; the samples themselves if `None`.

    Returns:
      One dict a member: scalars, and `firing_rate` and `mean_magnitude` of length d_sae.
    """
    batch_size = min(batch_size, len(x))
    batches, mask = padded_batches(x, batch_size)
    targets = None if target is None else padded_batches(target, batch_size)[0]
    scored = x if target is None else target
    outliers, _ = padded_batches(quality.outlier_rows(scored)[:, None], batch_size)
    stacked = jax.device_get(
        group_metrics(
            params, kept, hyper, batches, mask, outliers[..., 0], targets, template=template
        )
    )
    return [
        {
            name: values[i].item() if values[i].ndim == 0 else values[i][: int(size)]
            for name, values in stacked.items()
        }
        for i, size in enumerate(hyper.d_sae)
    ]


@partial(jax.jit, static_argnames="template")
def group_metrics(
    params: Arrays,
    kept: Arrays,
    hyper: Hyperparameters,
    batches: jax.Array,
    mask: jax.Array,
    outliers: jax.Array,
    targets: jax.Array | None = None,
    *,
    template: SAEConfig,
) -> dict[str, jax.Array]:
    """`evaluate_group` as one device program.

    Args:
      params, kept, hyper, template: as there.
      batches: `[num_batches, b, D]`.
      mask: which rows are samples, bool `[num_batches, b]`.
      outliers: which samples are outliers, bool `[num_batches, b]`.
      targets: what is to be reconstructed, `[num_batches, b, D_out]`, if not the samples.

    Returns:
      Scalars `[M]`, and arrays `[M, F]`, by name.
    """
    _, width, d_out = params["w_dec"].shape

    def one(
        params: Arrays,
        kept: Arrays,
        hyper: Hyperparameters,
        sums: quality.Sums,
        x: jax.Array,
        mask: jax.Array,
        outliers: jax.Array,
        target: jax.Array | None,
    ) -> quality.Sums:
        sae = merge(template, params, kept, hyper)
        z = sae.encode(x)
        x_hat = sae.decode(z, x)
        return quality.update(sums, x if target is None else target, z, x_hat, mask, outliers)

    def step(sums: quality.Sums, batch: tuple[Any, ...]) -> tuple[quality.Sums, None]:
        lifted = jax.vmap(one, in_axes=(0, 0, 0, 0, None, None, None, None))
        return lifted(params, kept, hyper, sums, *batch), None

    zeros = jax.vmap(lambda _: quality.zeros(d_out, width))(hyper.d_sae)
    sums, _ = lax.scan(step, zeros, (batches, mask, outliers, targets))
    return jax.vmap(partial(_finalize, width=width))(sums, hyper.d_sae, params["w_dec"])


def _finalize(
    sums: quality.Sums, d_sae: jax.Array, w_dec: jax.Array, *, width: int
) -> dict[str, jax.Array]:
    scores = quality.finalize(sums, jnp.arange(width, dtype=jnp.int32) < d_sae)
    return scores | quality.decoder_coherence(w_dec, scores["firing_rate"] > 0)
