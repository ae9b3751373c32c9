"""From trained parameters to metrics: a group's members side by side."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from sae_jax import metrics
from sae_jax.activations.slices import padded_batches
from sae_jax.architectures.base import Params
from sae_jax.sweep.step import member_sae

EVAL_BATCH_SIZE = 512


def evaluate_group(
    params: Params,
    k: jax.Array,
    d_sae: jax.Array,
    x: np.ndarray,
    batch_size: int = EVAL_BATCH_SIZE,
) -> list[dict[str, float | int | np.ndarray]]:
    """Every metric of every member.

    Args:
      params: of M members, leading axis M, padded to one width F.
      k: `[M]`.
      d_sae: true dictionary sizes, `[M]`.
      x: validation samples `[n, D]`.
      batch_size: samples at a time; the metrics do not depend on it beyond rounding.

    Returns:
      One dict a member: scalars, and `firing_rate` and `mean_magnitude` of length d_sae.
    """
    batch_size = min(batch_size, len(x))
    batches, mask = padded_batches(x, batch_size)
    outliers, _ = padded_batches(metrics.outlier_rows(x)[:, None], batch_size)
    stacked = jax.device_get(_group_metrics(params, k, d_sae, batches, mask, outliers[..., 0]))
    return [
        {
            name: values[i].item() if values[i].ndim == 0 else values[i][: int(size)]
            for name, values in stacked.items()
        }
        for i, size in enumerate(d_sae)
    ]


@jax.jit
def _group_metrics(
    params: Params,
    k: jax.Array,
    d_sae: jax.Array,
    batches: jax.Array,
    mask: jax.Array,
    outliers: jax.Array,
) -> dict[str, jax.Array]:
    _, d_in, width = params["w_enc"].shape

    def one(
        params: Params,
        k: jax.Array,
        sums: metrics.MetricSums,
        x: jax.Array,
        mask: jax.Array,
        outliers: jax.Array,
    ) -> metrics.MetricSums:
        sae = member_sae(params, k)
        z = sae.encode(x)
        return metrics.update(sums, x, z, sae.decode(z), mask, outliers)

    def step(
        sums: metrics.MetricSums, batch: tuple[jax.Array, jax.Array, jax.Array]
    ) -> tuple[metrics.MetricSums, None]:
        return jax.vmap(one, in_axes=(0, 0, 0, None, None, None))(params, k, sums, *batch), None

    zeros = jax.vmap(lambda _: metrics.MetricSums.zeros(d_in, width))(k)
    sums, _ = lax.scan(step, zeros, (batches, mask, outliers))
    return jax.vmap(partial(_finalize, width=width))(sums, d_sae, params["w_dec"])


def _finalize(
    sums: metrics.MetricSums, d_sae: jax.Array, w_dec: jax.Array, *, width: int
) -> dict[str, jax.Array]:
    scores = metrics.finalize(sums, jnp.arange(width, dtype=jnp.int32) < d_sae)
    return scores | metrics.decoder_coherence(w_dec, scores["firing_rate"] > 0)
