"""Quality metrics of one SAE, streamed over evaluation batches.

Written for one SAE; `jax.vmap` lifts them over the members of a sweep. A metric is one object in
`METRICS`. Sums, counts among them, are float32 and compensated, and variances are merged from
per-dimension means, so that neither the number of samples, the evaluation batch size nor a
large offset of the activations (which makes a sum of squares cancel) moves a value beyond
rounding.

    sums = zeros(d_in, d_sae)
    for x, mask, outliers in batches:
        z = sae.encode(x)
        sums = update(sums, x, z, sae.decode(z), mask, outliers)
    scores = finalize(sums)
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from sae_jax.activations.matrix import Matrix, blocks
from sae_jax.metrics.moments import CompensatedSum, Moments, count_true
from sae_jax.ops.matmul import matmul

ALMOST_DEAD_RATE = 0.005

# One row in so many is left out of `fvu_without_outliers`: the 1 % of largest norm.
_ROWS_PER_OUTLIER = 100

Sums = tuple[Any, ...]
"""What each of `METRICS` remembers of the samples seen."""


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
      init: the sums over no samples, of d_in and d_sae.
      update: the sums with a batch added.
      merge: the sums over the samples of both.
      value: scalars, or arrays `[F]`, by name, of sums over a whole split and of a mask `[F]`
        that is false for latents which only pad the SAE.
    """

    init: Callable[[int, int], Any]
    update: Callable[[Any, Batch], Any]
    merge: Callable[[Any, Any], Any]
    value: Callable[[Any, jax.Array], dict[str, jax.Array]]


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
    error_of_inliers: CompensatedSum
    error_of_outliers: CompensatedSum


def _reconstruction_init(d_in: int, d_sae: int) -> ReconstructionSums:
    moments, total = Moments.zeros(d_in), CompensatedSum.zeros()
    return ReconstructionSums(moments, moments, moments, total, total)


def _reconstruction_update(sums: ReconstructionSums, batch: Batch) -> ReconstructionSums:
    residual = batch.x - batch.x_hat
    error = jnp.sum(residual**2, axis=1)
    inliers, outliers = batch.mask & ~batch.outliers, batch.mask & batch.outliers
    return ReconstructionSums(
        x_inliers=sums.x_inliers.merge(Moments.of(batch.x, inliers)),
        x_outliers=sums.x_outliers.merge(Moments.of(batch.x, outliers)),
        residual=sums.residual.merge(Moments.of(residual, batch.mask)),
        error_of_inliers=sums.error_of_inliers.add(_total(inliers, error)),
        error_of_outliers=sums.error_of_outliers.add(_total(outliers, error)),
    )


def _merge_each(a: Any, b: Any) -> Any:
    return type(a)(*(part.merge(other) for part, other in zip(a, b, strict=True)))


def _reconstruction_value(sums: ReconstructionSums, latents: jax.Array) -> dict[str, jax.Array]:
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
    error = sums.error_of_inliers.value + sums.error_of_outliers.value
    variance = jnp.sum(x.squared_deviation.value)
    fvu = _relative(error, variance)
    inlier_variance = jnp.sum(sums.x_inliers.squared_deviation.value)
    return {
        "mse": error / residual.count.value / len(residual.mean.total),
        "explained_variance": 1.0
        - _relative(
            residual.squared_deviation_of_all_elements(), x.squared_deviation_of_all_elements()
        ),
        "fvu": fvu,
        "r2": 1.0 - fvu,
        "fvu_without_outliers": _relative(sums.error_of_inliers.value, inlier_variance),
        "outlier_variance_share": _relative(
            sums.x_outliers.squared_deviation_from(x.mean), variance
        ),
        "explained_variance_dictionary_learning": 1.0
        - _relative(jnp.sum(residual.squared_deviation.value), variance),
    }


class CosineSums(NamedTuple):
    """Cosines of samples and reconstructions.

    Attributes:
      cosine: sum over samples of the cosine of `x` and `x_hat`, 0 where one is zero, `[]`.
      num_samples: number of samples, `[]`.
    """

    cosine: CompensatedSum
    num_samples: CompensatedSum


def _cosine_init(d_in: int, d_sae: int) -> CosineSums:
    return CosineSums(CompensatedSum.zeros(), CompensatedSum.zeros())


def _cosine_update(sums: CosineSums, batch: Batch) -> CosineSums:
    cosine = _total(batch.mask, _cosine(batch.x, batch.x_hat))
    return CosineSums(sums.cosine.add(cosine), sums.num_samples.add(count_true(batch.mask)))


def _cosine_value(sums: CosineSums, latents: jax.Array) -> dict[str, jax.Array]:
    """`cosine_similarity`, the mean over samples."""
    return {"cosine_similarity": sums.cosine.value / sums.num_samples.value}


class FiringSums(NamedTuple):
    """How often and how strongly latents fire.

    Attributes:
      num_fired: samples on which each latent is not zero, `[F]`.
      magnitude: sum over samples of |z|, `[F]`.
      num_samples: number of samples, `[]`.
      max_activation: largest |z| of each latent, `[F]`.
    """

    num_fired: CompensatedSum
    magnitude: CompensatedSum
    num_samples: CompensatedSum
    max_activation: jax.Array


def _firing_init(d_in: int, d_sae: int) -> FiringSums:
    shape = (d_sae,)
    return FiringSums(
        CompensatedSum.zeros(shape),
        CompensatedSum.zeros(shape),
        CompensatedSum.zeros(),
        jnp.zeros(shape, jnp.float32),
    )


def _firing_update(sums: FiringSums, batch: Batch) -> FiringSums:
    magnitude = jnp.where(batch.mask[:, None], jnp.abs(batch.z), 0.0)
    return FiringSums(
        # Not `magnitude > 0`: a latent that is NaN has not stayed silent.
        num_fired=sums.num_fired.add(count_true(magnitude != 0)),
        magnitude=sums.magnitude.add(jnp.sum(magnitude, axis=0)),
        num_samples=sums.num_samples.add(count_true(batch.mask)),
        max_activation=jnp.maximum(sums.max_activation, jnp.max(magnitude, axis=0)),
    )


def _firing_merge(a: FiringSums, b: FiringSums) -> FiringSums:
    return FiringSums(
        a.num_fired.merge(b.num_fired),
        a.magnitude.merge(b.magnitude),
        a.num_samples.merge(b.num_samples),
        jnp.maximum(a.max_activation, b.max_activation),
    )


def _firing_value(sums: FiringSums, latents: jax.Array) -> dict[str, jax.Array]:
    """What the latents do.

    Returns:
      `l0`: mean number of latents that are not zero. `dead_fraction`: share of the latents
      that never fire; `num_alive`: how many do. `almost_dead_fraction`: share with a firing
      rate above 0 and below 0.005. `mean_activation`: mean of |z| over active entries;
      `max_activation`: the largest. `firing_rate` `[F]`: share of the samples on which a latent
      is not zero; `mean_magnitude` `[F]`: mean of |z| over all samples.
    """
    num_latents = count_true(latents)
    num_fired = jnp.where(latents, sums.num_fired.value, 0.0)
    magnitude = jnp.where(latents, sums.magnitude.value, 0.0) / sums.num_samples.value
    firing_rate = num_fired / sums.num_samples.value
    alive = num_fired > 0
    almost_dead = (num_fired > 0) & (firing_rate < ALMOST_DEAD_RATE)
    l0 = jnp.sum(firing_rate)
    return {
        "l0": l0,
        "dead_fraction": (num_latents - count_true(alive)) / num_latents,
        "num_alive": jnp.sum(alive, dtype=jnp.int32),
        "almost_dead_fraction": count_true(almost_dead) / num_latents,
        "mean_activation": jnp.sum(magnitude) / l0,
        "max_activation": jnp.max(jnp.where(latents, sums.max_activation, 0.0)),
        "firing_rate": firing_rate,
        "mean_magnitude": magnitude,
    }


METRICS = (
    Metric(_reconstruction_init, _reconstruction_update, _merge_each, _reconstruction_value),
    Metric(_cosine_init, _cosine_update, _merge_each, _cosine_value),
    Metric(_firing_init, _firing_update, _firing_merge, _firing_value),
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


def zeros(d_in: int, d_sae: int) -> Sums:
    """The sums over no samples."""
    return tuple(metric.init(d_in, d_sae) for metric in METRICS)


def update(
    sums: Sums,
    x: jax.Array,
    z: jax.Array,
    x_hat: jax.Array,
    mask: jax.Array | None = None,
    outliers: jax.Array | None = None,
) -> Sums:
    """Adds one evaluation batch.

    Args:
      sums: sums so far.
      x: activations `[b, D]`.
      z: latents `[b, F]`.
      x_hat: reconstructions `[b, D]`.
      mask: bool `[b]`, true for real samples; the rows that pad a last batch are
        false and may hold anything. All rows count without it.
      outliers: bool `[b]`, true for the samples that `fvu_without_outliers` leaves out:
        those of `outlier_rows` of the whole split. No sample is left out without it.

    Returns:
      The sums with the batch's real samples added.
    """
    chex.assert_rank([x, z, x_hat], 2)
    chex.assert_equal_shape([x, x_hat])
    chex.assert_equal_shape_prefix([x, z], 1)
    mask = jnp.ones(x.shape[0], bool) if mask is None else mask
    outliers = jnp.zeros(x.shape[0], bool) if outliers is None else outliers
    chex.assert_shape([mask, outliers], (x.shape[0],))
    expected = jax.eval_shape(lambda: zeros(x.shape[1], z.shape[1]))
    chex.assert_trees_all_equal_shapes(sums, expected)
    x, z, x_hat = (array.astype(jnp.float32) for array in (x, z, x_hat))
    batch = Batch(x, z, x_hat, mask, outliers)
    return tuple(metric.update(part, batch) for metric, part in zip(METRICS, sums, strict=True))


def merge(a: Sums, b: Sums) -> Sums:
    """Sums over the samples of both, as when several hosts evaluate shares of a split."""
    return tuple(metric.merge(*parts) for metric, *parts in zip(METRICS, a, b, strict=True))


def finalize(sums: Sums, latent_mask: jax.Array | None = None) -> dict[str, jax.Array]:
    """Turns sums into metrics.

    Args:
      sums: sums over a whole split.
      latent_mask: bool `[F]`, true for the latents that the SAE has; false for those
        that only pad it to the width of its group. May be traced.

    Returns:
      Scalars, and arrays `[F]`, of every metric by name. What a variance of 0 divides is NaN, as
      where all samples are equal.
    """
    (width,) = {part.max_activation.shape for part in sums if isinstance(part, FiringSums)}
    latents = jnp.ones(width, bool) if latent_mask is None else latent_mask
    chex.assert_shape(latents, width)
    return {
        name: value
        for metric, part in zip(METRICS, sums, strict=True)
        for name, value in metric.value(part, latents).items()
    }


def score(
    x: jax.Array,
    z: jax.Array,
    x_hat: jax.Array,
    latent_mask: jax.Array | None = None,
    outliers: jax.Array | None = None,
) -> dict[str, jax.Array]:
    """The metrics of samples that fit one batch: `[n, D]`, `[n, F]`, `[n, D]`."""
    sums = zeros(x.shape[-1], z.shape[-1])
    return finalize(update(sums, x, z, x_hat, outliers=outliers), latent_mask)


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
    index = jnp.arange(rows.shape[0], dtype=jnp.int32)

    def overlap_of(row_and_index: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        row, i = row_and_index
        cosine = jnp.where(alive & (index != i), jnp.abs(matmul(rows, row, "float32")), 0.0)
        return jnp.max(cosine), jnp.sum(cosine)

    # By blocks of rows: all F x F cosines at once do not fit memory for large F.
    largest, total = jax.lax.map(overlap_of, (rows, index), batch_size=512)
    num_alive = count_true(alive)
    num_pairs = num_alive * (num_alive - 1.0)
    return {
        "decoder_coherence_max": jnp.where(
            num_pairs > 0, jnp.max(jnp.where(alive, largest, 0.0)), jnp.nan
        ),
        "decoder_coherence_mean": jnp.sum(jnp.where(alive, total, 0.0)) / num_pairs,
    }


def _cosine(a: jax.Array, b: jax.Array) -> jax.Array:
    """Cosine of each row; 0 where a row is zero."""
    norms = jnp.linalg.norm(a, axis=1) * jnp.linalg.norm(b, axis=1)
    return jnp.where(norms == 0, 0.0, jnp.sum(a * b, axis=1) / jnp.where(norms == 0, 1.0, norms))


def _total(rows: jax.Array, values: jax.Array) -> jax.Array:
    return jnp.sum(jnp.where(rows, values, 0.0))


def _relative(deviation: jax.Array, variance: jax.Array) -> jax.Array:
    """`deviation / variance`; NaN, and not infinity, where there is no variance."""
    return jnp.where(variance == 0, jnp.nan, deviation / variance)
