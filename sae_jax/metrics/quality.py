"""Quality metrics of one SAE, streamed over evaluation batches.

A metric is one object in `METRICS`. A device sums up a batch in float32; `jax.vmap` lifts that over
the members of a sweep. The host adds batches up in float64, and merges variances from
per-dimension means, so that neither the number of samples, the evaluation batch size nor a
large offset of the activations (which makes a sum of squares cancel) moves a value beyond
rounding.

    sums = []
    for x, mask, outliers in batches:
        z = sae.encode(x)
        sums.append(batch_sums(x, z, sae.decode(z), mask, outliers))
    scores = finalize(functools.reduce(merge, sums))
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from sae_jax.activations.matrix import Matrix, blocks
from sae_jax.metrics.moments import Array, Moments, count_true
from sae_jax.ops.matmul import matmul

ALMOST_DEAD_RATE = 0.005

# One row in so many is left out of `fvu_without_outliers`: the 1 % of largest norm.
_ROWS_PER_OUTLIER = 100

# Rows of a decoder whose cosines with all others are held at a time.
_ROWS_AT_ONCE = 512

Sums = tuple[Any, ...]
"""What each of `METRICS` remembers of samples: float32 of one batch, float64 of several."""


class Batch(NamedTuple):
    """Samples with what an SAE makes of them.

    Attributes:
      x: activations, float32 `[b, D]`.
      z: latents, float32 `[b, F]`.
      x_hat: reconstructions, float32 `[b, D]`.
      mask: true for real samples, false for the rows that pad a last batch, bool `[b]`.
      outliers: true for the samples that `fvu_without_outliers` leaves out, bool `[b]`.
    """

    x: jax.Array
    z: jax.Array
    x_hat: jax.Array
    mask: jax.Array
    outliers: jax.Array


class Metric(NamedTuple):
    """One metric, or several that come from the same sums.

    Attributes:
      sums: the sums over a batch, on a device.
      merge: the sums over the samples of both, of arrays of NumPy.
      value: scalars, or arrays `[F]`, by name, of sums over a whole split and of a mask `[F]`
        that is false for latents which only pad the SAE; of arrays of NumPy.
    """

    sums: Callable[[Batch], Any]
    merge: Callable[[Any, Any], Any]
    value: Callable[[Any, np.ndarray], dict[str, np.ndarray]]


class ReconstructionSums(NamedTuple):
    """Moments of samples and of what their reconstructions miss.

    Attributes:
      x_inliers: moments over samples of the activations that are no outliers, `[D]`.
      x_outliers: moments over samples of those that are, `[D]`.
      residual: moments of `x - x_hat`, over samples `[D]`.
      error_of_inliers: sum of |x - x_hat|^2 over the samples that are no outliers, `[]`.
      error_of_outliers: sum of |x - x_hat|^2 over those that are, `[]`.
    """

    x_inliers: Moments
    x_outliers: Moments
    residual: Moments
    error_of_inliers: Array
    error_of_outliers: Array


def _reconstruction_sums(batch: Batch) -> ReconstructionSums:
    residual = batch.x - batch.x_hat
    error = jnp.sum(residual**2, axis=1)
    inliers, outliers = batch.mask & ~batch.outliers, batch.mask & batch.outliers
    return ReconstructionSums(
        x_inliers=Moments.of(batch.x, inliers),
        x_outliers=Moments.of(batch.x, outliers),
        residual=Moments.of(residual, batch.mask),
        error_of_inliers=_total(inliers, error),
        error_of_outliers=_total(outliers, error),
    )


def _reconstruction_merge(a: ReconstructionSums, b: ReconstructionSums) -> ReconstructionSums:
    return ReconstructionSums(
        a.x_inliers.merge(b.x_inliers),
        a.x_outliers.merge(b.x_outliers),
        a.residual.merge(b.residual),
        a.error_of_inliers + b.error_of_inliers,
        a.error_of_outliers + b.error_of_outliers,
    )


def _reconstruction_value(sums: ReconstructionSums, latents: np.ndarray) -> dict[str, np.ndarray]:
    """How much of the samples the reconstructions miss.

    Returns:
      `mse`: mean over all elements of (x_hat - x)^2.

      `explained_variance`: 1 - Var(x - x_hat) / Var(x), both over all elements around one scalar
      mean: the definition of the published experiment. It counts the offsets between the
      dimensions' means as variance to be explained, which a decoder bias explains alone;
      prefer `fvu` for anything but comparing with published numbers.

      `fvu`: sum |x - x_hat|^2 / sum |x - mean(x)|^2 with the vector mean of the split, so that 1
      is what a constant achieves.

      `r2`: 1 - `fvu`. SAELens calls it `explained_variance` from 6.45.1 (July 2026) on. From
      March 2025 until then its figure of that name was about zero instead of the mean,
      roughly 1 - sum |x - x_hat|^2 / sum |x|^2, which grows with the offset of the
      activations. Its `explained_variance_legacy`, a mean of per-sample ratios around the
      mean of each evaluation batch, depends on the batch size.

      `fvu_without_outliers`: the `fvu` of the samples that are no outliers, around their own
      mean. A few samples of huge norm (attention sinks) hold most of the variance of a split,
      and are reconstructed by a latent of their own, so that `fvu` says little of all others.

      `outlier_variance_share`: share of the outliers in sum |x - mean(x)|^2 over all samples.

      `explained_variance_dictionary_learning`: 1 - sum_d Var(x - x_hat)_d / sum_d Var(x)_d,
      that library's `frac_variance_explained` over the whole split. A constant offset of
      the reconstruction goes unpunished, as the residual's variance is taken around the
      residual's own mean.

    References:
      SAELens, `sae_lens/evals.py`, and its pull requests 443 and 665,
      https://github.com/decoderesearch/SAELens/pull/665

      dictionary_learning, `evaluation.py`, 2024,
      https://github.com/saprmarks/dictionary_learning
    """
    x, residual = sums.x_inliers.merge(sums.x_outliers), sums.residual
    error_of_inliers = np.asarray(sums.error_of_inliers)
    error = error_of_inliers + np.asarray(sums.error_of_outliers)
    variance = np.sum(x.squared_deviation)
    fvu = _relative(error, variance)
    inlier_variance = np.sum(sums.x_inliers.squared_deviation)
    unexplained = _relative(
        residual.squared_deviation_of_all_elements(), x.squared_deviation_of_all_elements()
    )
    unexplained_but_for_offset = _relative(np.sum(residual.squared_deviation), variance)
    return {
        "mse": error / np.asarray(residual.count[0]) / len(residual.mean),
        "explained_variance": 1.0 - unexplained,
        "fvu": fvu,
        "r2": 1.0 - fvu,
        "fvu_without_outliers": _relative(error_of_inliers, inlier_variance),
        "outlier_variance_share": _relative(sums.x_outliers.squared_deviation_from(x), variance),
        "explained_variance_dictionary_learning": 1.0 - unexplained_but_for_offset,
    }


class CosineSums(NamedTuple):
    """Cosines of samples and reconstructions.

    Attributes:
      cosine: sum over samples of the cosine of `x` and `x_hat`, 0 where one is zero, `[]`.
      num_samples: number of samples, `[]`.
    """

    cosine: Array
    num_samples: Array


def _cosine_sums(batch: Batch) -> CosineSums:
    cosine = _total(batch.mask, _cosine(batch.x, batch.x_hat))
    return CosineSums(cosine, count_true(batch.mask))


def _cosine_merge(a: CosineSums, b: CosineSums) -> CosineSums:
    return CosineSums(a.cosine + b.cosine, a.num_samples + b.num_samples)


def _cosine_value(sums: CosineSums, latents: np.ndarray) -> dict[str, np.ndarray]:
    """`cosine_similarity`, the mean over samples."""
    return {"cosine_similarity": np.asarray(sums.cosine) / np.asarray(sums.num_samples)}


class FiringSums(NamedTuple):
    """How often and how strongly latents fire.

    Attributes:
      num_fired: samples on which each latent is not zero, `[F]`.
      magnitude: sum over samples of |z|, `[F]`.
      num_samples: number of samples, `[]`.
      max_activation: largest |z| of each latent, `[F]`.
    """

    num_fired: Array
    magnitude: Array
    num_samples: Array
    max_activation: Array


def _firing_sums(batch: Batch) -> FiringSums:
    magnitude = jnp.where(batch.mask[:, None], jnp.abs(batch.z), 0.0)
    return FiringSums(
        # Not `magnitude > 0`: a latent that is NaN has not stayed silent.
        num_fired=count_true(magnitude != 0),
        magnitude=jnp.sum(magnitude, axis=0),
        num_samples=count_true(batch.mask),
        max_activation=jnp.max(magnitude, axis=0),
    )


def _firing_merge(a: FiringSums, b: FiringSums) -> FiringSums:
    return FiringSums(
        a.num_fired + b.num_fired,
        a.magnitude + b.magnitude,
        a.num_samples + b.num_samples,
        np.maximum(a.max_activation, b.max_activation),
    )


def _firing_value(sums: FiringSums, latents: np.ndarray) -> dict[str, np.ndarray]:
    """What the latents do.

    Returns:
      `l0`: mean number of latents that are not zero. `dead_fraction`: share of the latents
      that never fire; `num_alive`: how many do. `almost_dead_fraction`: share with a firing
      rate above 0 and below 0.005. `mean_activation`: mean of |z| over active entries;
      `max_activation`: the largest. `firing_rate` `[F]`: share of the samples on which a latent
      is not zero; `mean_magnitude` `[F]`: mean of |z| over all samples.
    """
    num_latents = np.sum(latents)
    num_fired = np.where(latents, sums.num_fired, 0.0)
    magnitude = np.where(latents, sums.magnitude, 0.0) / sums.num_samples
    firing_rate = num_fired / sums.num_samples
    alive = num_fired > 0
    almost_dead = alive & (firing_rate < ALMOST_DEAD_RATE)
    l0 = np.sum(firing_rate)
    return {
        "l0": l0,
        "dead_fraction": (num_latents - np.sum(alive)) / num_latents,
        "num_alive": np.sum(alive),
        "almost_dead_fraction": np.sum(almost_dead) / num_latents,
        "mean_activation": np.sum(magnitude) / l0,
        "max_activation": np.max(np.where(latents, sums.max_activation, 0.0)),
        "firing_rate": firing_rate,
        "mean_magnitude": magnitude,
    }


METRICS = (
    Metric(_reconstruction_sums, _reconstruction_merge, _reconstruction_value),
    Metric(_cosine_sums, _cosine_merge, _cosine_value),
    Metric(_firing_sums, _firing_merge, _firing_value),
)
"""All metrics of a streamed split; a new one is one more object here."""


def outlier_rows(x: Matrix) -> np.ndarray:
    """Marks the 1 % of the samples `[n, D]` of largest norm, at least one, bool `[n]`.

    1 % is rounded down; of equal norms the lower index goes first.
    """
    squared_norms = np.concatenate(
        [np.einsum("nd,nd->n", rows, rows, dtype=np.float64) for rows in blocks(x)]
    )
    largest_first = np.argsort(-squared_norms, kind="stable")
    marks = np.zeros(len(squared_norms), bool)
    marks[largest_first[: max(1, len(marks) // _ROWS_PER_OUTLIER)]] = True
    return marks


def batch_sums(
    x: jax.Array,
    z: jax.Array,
    x_hat: jax.Array,
    mask: jax.Array | None = None,
    outliers: jax.Array | None = None,
) -> Sums:
    """The sums over one evaluation batch, float32.

    Args:
      x: activations `[b, D]`.
      z: latents `[b, F]`.
      x_hat: reconstructions `[b, D]`.
      mask: bool `[b]`, true for real samples; the rows that pad a last batch are
        false and may hold anything. All rows count without it.
      outliers: bool `[b]`, true for the samples that `fvu_without_outliers` leaves out:
        those of `outlier_rows` of the whole split. No sample is left out without it.
    """
    chex.assert_rank([x, z, x_hat], 2)
    chex.assert_equal_shape([x, x_hat])
    chex.assert_equal_shape_prefix([x, z], 1)
    mask = jnp.ones(x.shape[0], bool) if mask is None else mask
    outliers = jnp.zeros(x.shape[0], bool) if outliers is None else outliers
    chex.assert_shape([mask, outliers], (x.shape[0],))
    x, z, x_hat = (array.astype(jnp.float32) for array in (x, z, x_hat))
    batch = Batch(x, z, x_hat, mask, outliers)
    return tuple(metric.sums(batch) for metric in METRICS)


def merge(a: Sums, b: Sums) -> Sums:
    """Sums over the samples of both, float64, on the host.

    All arrays may have the same leading axes.
    """
    a, b = _in_float64(a), _in_float64(b)
    chex.assert_trees_all_equal_shapes(a, b)
    with np.errstate(all="ignore"):  # A diverged SAE has sums that are no numbers.
        return tuple(metric.merge(*parts) for metric, *parts in zip(METRICS, a, b, strict=True))


def finalize(
    sums: Sums, latent_mask: np.ndarray | jax.Array | None = None
) -> dict[str, np.ndarray]:
    """Turns sums into metrics, on the host.

    Args:
      sums: sums over a whole split.
      latent_mask: bool `[F]`, true for the latents that the SAE has; false for those
        that only pad it to the width of its group.

    Returns:
      Scalars, and arrays `[F]`, of every metric by name, float64. What a variance of 0 divides is
      NaN, as where all samples are equal.
    """
    sums = _in_float64(sums)
    (width,) = {part.max_activation.shape for part in sums if isinstance(part, FiringSums)}
    latents = np.ones(width, bool) if latent_mask is None else np.asarray(latent_mask)
    chex.assert_shape(latents, width)
    with np.errstate(all="ignore"):
        return {
            name: value
            for metric, part in zip(METRICS, sums, strict=True)
            for name, value in metric.value(part, latents).items()
        }


def score(
    x: jax.Array,
    z: jax.Array,
    x_hat: jax.Array,
    latent_mask: np.ndarray | jax.Array | None = None,
    outliers: jax.Array | None = None,
) -> dict[str, np.ndarray]:
    """The metrics of samples that fit one batch: `[n, D]`, `[n, F]`, `[n, D]`."""
    return finalize(batch_sums(x, z, x_hat, outliers=outliers), latent_mask)


def decoder_coherence(w_dec: jax.Array, alive: jax.Array) -> dict[str, jax.Array]:
    """How much decoder directions overlap.

    Args:
      w_dec: `[F, D]`.
      alive: bool `[F]`, latents that fire at least once; the others do not count.

    Returns:
      `decoder_coherence_max` and `decoder_coherence_mean`, of the absolute cosine
      between distinct alive rows; NaN with fewer than two of them.
    """
    chex.assert_rank(w_dec, 2)
    chex.assert_shape(alive, (w_dec.shape[0],))
    rows = w_dec.astype(jnp.float32)
    rows = rows / jnp.maximum(jnp.linalg.norm(rows, axis=1, keepdims=True), 1e-30)
    # By blocks of rows: all F x F cosines at once do not fit memory for large F.
    block_size = min(len(rows), _ROWS_AT_ONCE)
    padding = -len(rows) % block_size
    padded_rows, padded_alive = jnp.pad(rows, ((0, padding), (0, 0))), jnp.pad(alive, (0, padding))
    index = jnp.arange(len(padded_rows), dtype=jnp.int32)

    def overlaps_of(block: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        some_rows, some_alive, some_index = block
        cosines = jnp.abs(matmul(some_rows, padded_rows.T, "float32"))
        distinct = some_index[:, None] != index[None, :]
        pairs = some_alive[:, None] & padded_alive[None, :] & distinct
        cosines = jnp.where(pairs, cosines, 0.0)
        return jnp.max(cosines, axis=1), jnp.sum(cosines, axis=1)

    blocks_of_rows = jax.tree.map(
        lambda a: a.reshape(-1, block_size, *a.shape[1:]), (padded_rows, padded_alive, index)
    )
    largest, total = jax.lax.map(overlaps_of, blocks_of_rows)
    num_alive = count_true(alive)
    num_pairs = num_alive * (num_alive - 1.0)
    return {
        "decoder_coherence_max": jnp.where(num_pairs > 0, jnp.max(largest), jnp.nan),
        "decoder_coherence_mean": jnp.sum(total) / num_pairs,
    }


def _in_float64(sums: Sums) -> Sums:
    return jax.tree.map(lambda a: np.asarray(a, np.float64), sums)


def _cosine(a: jax.Array, b: jax.Array) -> jax.Array:
    """Cosine of each row; 0 where a row is zero."""
    norms = jnp.linalg.norm(a, axis=1) * jnp.linalg.norm(b, axis=1)
    return jnp.where(norms == 0, 0.0, jnp.sum(a * b, axis=1) / jnp.where(norms == 0, 1.0, norms))


def _total(rows: jax.Array, values: jax.Array) -> jax.Array:
    return jnp.sum(jnp.where(rows, values, 0.0))


def _relative(deviation: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """`deviation / variance`; NaN, and not infinity, where there is no variance."""
    return deviation / np.where(variance == 0, np.nan, variance)
