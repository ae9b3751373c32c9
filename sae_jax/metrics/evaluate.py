"""From trained arrays to metrics: members side by side."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import numpy as np

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
      One dict a member: scalars, and `firing_rate` and `mean_magnitude`, float32 of length d_sae.
    """
    num_samples, _ = x.shape
    batch_size = min(batch_size, num_samples)
    part_size = max(1, (part_size or num_samples + batch_size) // batch_size) * batch_size
    sums = last = None
    for batch in _batches(x, target, batch_size, part_size):
        following = group_sums(params, kept, hyper, *batch, template=template)
        # One batch behind, so that the device computes the next while the host adds up.
        sums, last = _merged(sums, last, fetch), following
    sums, sizes = _merged(sums, last, fetch), fetch(hyper.d_sae)
    latents = np.arange(params["w_dec"].shape[1]) < sizes[:, None]
    scores = [
        quality.finalize(jax.tree.map(lambda leaf, i=i: leaf[i], sums), mask)
        for i, mask in enumerate(latents)
    ]
    alive = np.stack([score["firing_rate"] > 0 for score in scores])
    coherence = fetch(group_coherence(params["w_dec"], alive))
    return [
        _of_true_size(score | {name: values[i] for name, values in coherence.items()}, size)
        for i, (score, size) in enumerate(zip(scores, sizes, strict=True))
    ]


@partial(jax.jit, static_argnames="template")
def group_sums(
    params: Arrays,
    kept: Arrays,
    hyper: Hyperparameters,
    x: jax.Array,
    mask: jax.Array,
    outliers: jax.Array,
    target: jax.Array | None = None,
    *,
    template: SAEConfig,
) -> quality.Sums:
    """What the metrics of every member remember of one batch, as one device program.

    Args:
      params, kept, hyper, template: as in `evaluate_group`.
      x: `[b, D]`.
      mask: which rows are samples, bool `[b]`.
      outliers: which samples are outliers, bool `[b]`.
      target: what is to be reconstructed, `[b, D_out]`, if not the samples.

    Returns:
      The sums, leading axis M.
    """

    def one(params: Arrays, kept: Arrays, hyper: Hyperparameters) -> quality.Sums:
        sae = merge(template, params, kept, hyper)
        z = sae.encode(x)
        return quality.batch_sums(
            x if target is None else target, z, sae.decode(z, x), mask, outliers
        )

    return jax.vmap(one)(params, kept, hyper)


@jax.jit
def group_coherence(w_dec: jax.Array, alive: jax.Array) -> dict[str, jax.Array]:
    """How much decoder directions overlap, `[M]` by name, of decoders `[M, F, D]`; `alive` is
    `[M, F]`."""
    return jax.vmap(quality.decoder_coherence)(w_dec, alive)


def _batches(
    x: Matrix, target: Matrix | None, batch_size: int, part_size: int
) -> Iterator[tuple[np.ndarray | None, ...]]:
    """Samples `[b, D]`, which of them count, which are outliers, and targets, batch by batch."""
    outliers = quality.outlier_rows(x if target is None else target)[:, None]
    for start in range(0, len(outliers), part_size):
        part = slice(start, min(start + part_size, len(outliers)))
        batches, mask = padded_batches(x[part], batch_size)
        marks = padded_batches(outliers[part], batch_size)[0][..., 0]
        targets = None if target is None else padded_batches(target[part], batch_size)[0]
        for i, batch in enumerate(batches):
            yield batch, mask[i], marks[i], None if targets is None else targets[i]


def _merged(
    sums: quality.Sums | None, more: quality.Sums | None, fetch: Callable[[Any], Any]
) -> quality.Sums | None:
    """The sums of both, if there are."""
    if more is None:
        return sums
    fetched = fetch(more)
    return fetched if sums is None else quality.merge(sums, fetched)


def _of_true_size(
    score: dict[str, np.ndarray], size: np.ndarray
) -> dict[str, float | int | np.ndarray]:
    """Scores without the latents that only pad an SAE."""
    return {
        name: value.item() if value.ndim == 0 else value[: int(size)].astype(np.float32)
        for name, value in score.items()
    }
