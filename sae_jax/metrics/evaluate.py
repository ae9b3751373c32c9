"""From trained arrays to metrics: members side by side."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from sae_jax.activations.batches import padded_batches
from sae_jax.activations.matrix import Matrix
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
    x: Matrix,
    batch_size: int = EVAL_BATCH_SIZE,
    *,
    target: Matrix | None = None,
    part_size: int | None = None,
    fetch: Callable[[Any], Any] = jax.device_get,
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
      part_size: samples that are read at a time, rounded down to whole batches, but at least one;
        all of them if `None`.
      fetch: gives a pytree of arrays as arrays of NumPy.

    Returns:
      One dict a member: scalars, and `firing_rate` and `mean_magnitude` of length d_sae.
    """
    num_samples, _ = x.shape
    batch_size = min(batch_size, num_samples)
    outliers = quality.outlier_rows(x if target is None else target)[:, None]
    batches_per_part = max(1, (part_size or num_samples + batch_size) // batch_size)
    part_size = batches_per_part * batch_size
    sums = None
    for start in range(0, num_samples, part_size):
        part = slice(start, min(start + part_size, num_samples))
        batches, mask = padded_batches(x[part], batch_size)
        targets = None if target is None else padded_batches(target[part], batch_size)[0]
        marks = padded_batches(outliers[part], batch_size)[0][..., 0]
        sums = group_sums(
            params, kept, hyper, batches, mask, marks, targets, sums, template=template
        )
        # Or parts would be read faster than they are scored.
        jax.block_until_ready(sums)
    stacked, sizes = fetch((group_metrics(params, hyper, sums), hyper.d_sae))
    return [
        {
            name: values[i].item() if values[i].ndim == 0 else values[i][: int(size)]
            for name, values in stacked.items()
        }
        for i, size in enumerate(sizes)
    ]


@partial(jax.jit, static_argnames="template")
def group_sums(
    params: Arrays,
    kept: Arrays,
    hyper: Hyperparameters,
    batches: jax.Array,
    mask: jax.Array,
    outliers: jax.Array,
    targets: jax.Array | None = None,
    sums: quality.Sums | None = None,
    *,
    template: SAEConfig,
) -> quality.Sums:
    """What the metrics of every member remember of samples, as one device program.

    Args:
      params, kept, hyper, template: as in `evaluate_group`.
      batches: `[num_batches, b, D]`.
      mask: which rows are samples, bool `[num_batches, b]`.
      outliers: which samples are outliers, bool `[num_batches, b]`.
      targets: what is to be reconstructed, `[num_batches, b, D_out]`, if not the samples.
      sums: sums over the samples before, if there were any.

    Returns:
      The sums with these samples added, leading axis M.
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

    before = jax.vmap(lambda _: quality.zeros(d_out, width))(hyper.d_sae) if sums is None else sums
    return lax.scan(step, before, (batches, mask, outliers, targets))[0]


@jax.jit
def group_metrics(
    params: Arrays, hyper: Hyperparameters, sums: quality.Sums
) -> dict[str, jax.Array]:
    """Every metric of every member, of sums over a whole split: scalars `[M]`, and arrays
    `[M, F]`, by name."""

    def one(d_sae: jax.Array, w_dec: jax.Array, sums: quality.Sums) -> dict[str, jax.Array]:
        scores = quality.finalize(sums, jnp.arange(len(w_dec), dtype=jnp.int32) < d_sae)
        return scores | quality.decoder_coherence(w_dec, scores["firing_rate"] > 0)

    return jax.vmap(one)(hyper.d_sae, params["w_dec"], sums)
