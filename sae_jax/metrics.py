"""Quality metrics of one SAE, streamed over evaluation batches.

Written for one SAE; `jax.vmap` lifts them over the members of a sweep. Sums, counts
among them, are float32 and compensated, and variances are merged from per-dimension
means, so that neither the number of samples, the evaluation batch size nor a large offset
of the activations (which makes a sum of squares cancel) moves a value beyond rounding.

    sums = MetricSums.zeros(d_in, d_sae)
    for x, mask, outliers in batches:
        z = sae.encode(x)
        sums = update(sums, x, z, sae.decode(z), mask, outliers)
    metrics = finalize(sums)
"""

import dataclasses
from typing import Self

import chex
import jax
import jax.numpy as jnp
import numpy as np

from sae_jax.products import product

ALMOST_DEAD_RATE = 0.005

# One row in so many is left out of `fvu_without_outliers`: the 1 % of largest norm.
_ROWS_PER_OUTLIER = 100


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CompensatedSum:
    """A float32 sum that carries its rounding error along (Knuth's two-sum).

    It counts exactly up to 2^48, where int32 ends at 2^31 and float32 alone at 2^24.
    """

    total: jax.Array
    error: jax.Array

    @classmethod
    def zeros(cls, shape: tuple[int, ...] = ()) -> Self:
        """The empty sum."""
        return cls(jnp.zeros(shape, jnp.float32), jnp.zeros(shape, jnp.float32))

    @property
    def value(self) -> jax.Array:
        """The sum, rounded once."""
        # The error of an infinite sum is not a number.
        return jnp.where(jnp.isfinite(self.total), self.total + self.error, self.total)

    def add(self, term: jax.Array) -> Self:
        """The sum with `term` of the same shape added."""
        total = self.total + term
        term_seen = total - self.total
        lost = (self.total - (total - term_seen)) + (term - term_seen)
        return dataclasses.replace(self, total=total, error=self.error + lost)

    def merge(self, other: Self) -> Self:
        """The sum of both."""
        return self.add(other.total).add(other.error)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Moments:
    """Count, mean and sum of squared deviations of each dimension.

    Merged by the update of Chan, Golub and LeVeque (1979),
    http://i.stanford.edu/pub/cstr/reports/cs/tr/79/773/CS-TR-79-773.pdf
    """

    count: CompensatedSum
    mean: CompensatedSum
    squared_deviation: CompensatedSum

    @classmethod
    def zeros(cls, num_dims: int) -> Self:
        """The moments of no samples."""
        shape = (num_dims,)
        return cls(CompensatedSum.zeros(), CompensatedSum.zeros(shape), CompensatedSum.zeros(shape))

    @classmethod
    def of(cls, values: jax.Array, mask: jax.Array) -> Self:
        """The moments of the masked rows of `values` `[b, D]`."""
        count = _count(mask)
        rows = mask[:, None]
        # Around a row of the batch: deviations from it keep their digits beside a large
        # offset, and are exactly zero where all rows are equal.
        origin = jnp.where(jnp.any(mask), values[jnp.argmax(mask)], 0.0)
        shifted = jnp.where(rows, values - origin[None, :], 0.0)
        mean = jnp.sum(shifted, axis=0) / jnp.maximum(count, 1.0)
        deviation = jnp.sum(jnp.where(rows, (shifted - mean[None, :]) ** 2, 0.0), axis=0)
        return cls(
            CompensatedSum(count, jnp.zeros_like(count)),
            CompensatedSum(origin, mean),
            CompensatedSum(deviation, jnp.zeros_like(deviation)),
        )

    def merge(self, other: Self) -> Self:
        """The moments of both sets of samples."""
        count = self.count.merge(other.count)
        share = other.count.value / jnp.maximum(count.value, 1.0)
        high, low = other.mean.total - self.mean.total, other.mean.error - self.mean.error
        shift = high + low
        # Not a square times a weight that may be 0: the square of a finite shift may overflow.
        between = shift * (self.count.value * share) * shift
        return dataclasses.replace(
            self,
            count=count,
            mean=self.mean.add(high * share).add(low * share),
            squared_deviation=self.squared_deviation.merge(other.squared_deviation).add(between),
        )

    def squared_deviation_from(self, center: CompensatedSum) -> jax.Array:
        """Sum over all samples of the squared distance from a point `[D]`."""
        shift = (self.mean.total - center.total) + (self.mean.error - center.error)
        return jnp.sum(self.squared_deviation.value) + self.count.value * jnp.sum(shift**2)

    def squared_deviation_of_all_elements(self) -> jax.Array:
        """Sum of squared deviations from the one scalar mean of all elements."""
        # Around the first dimension's mean, for the reasons in `of`.
        origin = jax.tree.map(lambda part: part[0], self.mean)
        mean = (self.mean.total - origin.total) + (self.mean.error - origin.error)
        between_dims = self.count.value * jnp.sum((mean - jnp.mean(mean)) ** 2)
        return jnp.sum(self.squared_deviation.value) + between_dims


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MetricSums:
    """What the metrics need to remember of the samples seen; see `update`.

    Attributes:
      x_inliers: moments over samples of the activations that are no outliers, `[D]`.
      x_outliers: of those that are, `[D]`.
      residual: moments of `x - x_hat`, over samples `[D]`.
      error_of_inliers: sum of |x - x_hat|^2 over the samples that are no outliers, `[]`.
      error_of_outliers: over those that are, `[]`.
      cosine: sum over samples of the cosine of `x` and `x_hat`, `[]`.
      num_fired: samples on which each latent is not zero, `[F]`.
      magnitude: sum over samples of |z|, `[F]`.
      max_activation: largest |z| of each latent, `[F]`.
    """

    x_inliers: Moments
    x_outliers: Moments
    residual: Moments
    error_of_inliers: CompensatedSum
    error_of_outliers: CompensatedSum
    cosine: CompensatedSum
    num_fired: CompensatedSum
    magnitude: CompensatedSum
    max_activation: jax.Array

    @classmethod
    def zeros(cls, d_in: int, d_sae: int) -> Self:
        """Sums over no samples."""
        return cls(
            x_inliers=Moments.zeros(d_in),
            x_outliers=Moments.zeros(d_in),
            residual=Moments.zeros(d_in),
            error_of_inliers=CompensatedSum.zeros(),
            error_of_outliers=CompensatedSum.zeros(),
            cosine=CompensatedSum.zeros(),
            num_fired=CompensatedSum.zeros((d_sae,)),
            magnitude=CompensatedSum.zeros((d_sae,)),
            max_activation=jnp.zeros((d_sae,), jnp.float32),
        )

    @property
    def x(self) -> Moments:
        """Moments of all activations, `[D]`."""
        return self.x_inliers.merge(self.x_outliers)

    @property
    def error(self) -> jax.Array:
        """Sum of |x - x_hat|^2 over all samples, `[]`."""
        return self.error_of_inliers.value + self.error_of_outliers.value


def outlier_rows(x: np.ndarray) -> np.ndarray:
    """Marks the 1 % of the samples `[n, D]` of largest norm, at least one, bool `[n]`.

    1 % is rounded down; of equal norms the lower index goes first.
    """
    squared_norms = np.einsum("nd,nd->n", x, x, dtype=np.float64)
    largest_first = np.argsort(-squared_norms, kind="stable")
    marks = np.zeros(len(x), bool)
    marks[largest_first[: max(1, len(x) // _ROWS_PER_OUTLIER)]] = True
    return marks


def update(
    sums: MetricSums,
    x: jax.Array,
    z: jax.Array,
    x_hat: jax.Array,
    mask: jax.Array | None = None,
    outliers: jax.Array | None = None,
) -> MetricSums:
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
    chex.assert_shape(x, (None, *sums.residual.mean.total.shape))
    chex.assert_shape(z, (None, *sums.num_fired.total.shape))
    mask = jnp.ones(x.shape[0], bool) if mask is None else mask
    outliers = jnp.zeros(x.shape[0], bool) if outliers is None else outliers
    chex.assert_shape([mask, outliers], (x.shape[0],))

    x, x_hat = x.astype(jnp.float32), x_hat.astype(jnp.float32)
    magnitude = jnp.where(mask[:, None], jnp.abs(z.astype(jnp.float32)), 0.0)
    residual = x - x_hat
    error = jnp.sum(residual**2, axis=1)
    inliers, outliers = mask & ~outliers, mask & outliers

    def total(rows: jax.Array, values: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(rows, values, 0.0))

    return MetricSums(
        x_inliers=sums.x_inliers.merge(Moments.of(x, inliers)),
        x_outliers=sums.x_outliers.merge(Moments.of(x, outliers)),
        residual=sums.residual.merge(Moments.of(residual, mask)),
        error_of_inliers=sums.error_of_inliers.add(total(inliers, error)),
        error_of_outliers=sums.error_of_outliers.add(total(outliers, error)),
        cosine=sums.cosine.add(total(mask, _cosine(x, x_hat))),
        # Not `magnitude > 0`: a latent that is NaN has not stayed silent.
        num_fired=sums.num_fired.add(_count(magnitude != 0)),
        magnitude=sums.magnitude.add(jnp.sum(magnitude, axis=0)),
        max_activation=jnp.maximum(sums.max_activation, jnp.max(magnitude, axis=0)),
    )


def merge(a: MetricSums, b: MetricSums) -> MetricSums:
    """Sums over the samples of both, as when several hosts evaluate shares of a split."""
    return MetricSums(
        x_inliers=a.x_inliers.merge(b.x_inliers),
        x_outliers=a.x_outliers.merge(b.x_outliers),
        residual=a.residual.merge(b.residual),
        error_of_inliers=a.error_of_inliers.merge(b.error_of_inliers),
        error_of_outliers=a.error_of_outliers.merge(b.error_of_outliers),
        cosine=a.cosine.merge(b.cosine),
        num_fired=a.num_fired.merge(b.num_fired),
        magnitude=a.magnitude.merge(b.magnitude),
        max_activation=jnp.maximum(a.max_activation, b.max_activation),
    )


def finalize(sums: MetricSums, latent_mask: jax.Array | None = None) -> dict[str, jax.Array]:
    """Turns sums into metrics.

    Args:
      sums: sums over a whole split.
      latent_mask: bool `[F]`, true for the latents that the SAE has; false for those
        that only pad it to the width of its group. May be traced.

    Returns:
      Scalars, and arrays `[F]` where said:
      `mse`, `explained_variance`, `fvu`, `r2`, `fvu_without_outliers`,
      `outlier_variance_share`, `cosine_similarity`, `l0`, `dead_fraction`, `num_alive`,
      `almost_dead_fraction` (0 < firing rate < 0.005), `mean_activation` (of |z| over active
      entries), `max_activation`, `explained_variance_dictionary_learning`,
      `firing_rate` `[F]` and `mean_magnitude` `[F]` (of |z| over all samples).
      What a variance of 0 divides is NaN, as where all samples are equal.
    """
    if latent_mask is None:
        latent_mask = jnp.ones_like(sums.max_activation, bool)
    chex.assert_equal_shape([sums.max_activation, latent_mask])
    num_samples = sums.residual.count.value
    num_latents = _count(latent_mask)
    num_fired = jnp.where(latent_mask, sums.num_fired.value, 0.0)
    magnitude = jnp.where(latent_mask, sums.magnitude.value, 0.0)
    firing_rate = num_fired / num_samples
    num_alive = jnp.sum(num_fired > 0, dtype=jnp.int32)
    almost_dead = (num_fired > 0) & (firing_rate < ALMOST_DEAD_RATE)
    l0 = jnp.sum(firing_rate)
    return {
        "mse": mse(sums),
        "explained_variance": explained_variance(sums),
        "fvu": fvu(sums),
        "r2": r2(sums),
        "fvu_without_outliers": fvu_without_outliers(sums),
        "outlier_variance_share": outlier_variance_share(sums),
        "cosine_similarity": sums.cosine.value / num_samples,
        "l0": l0,
        "dead_fraction": (num_latents - num_alive) / num_latents,
        "num_alive": num_alive,
        "almost_dead_fraction": _count(almost_dead) / num_latents,
        "mean_activation": jnp.sum(magnitude / num_samples) / l0,
        "max_activation": jnp.max(jnp.where(latent_mask, sums.max_activation, 0.0)),
        "explained_variance_dictionary_learning": explained_variance_dictionary_learning(sums),
        "firing_rate": firing_rate,
        "mean_magnitude": magnitude / num_samples,
    }


def score(
    x: jax.Array,
    z: jax.Array,
    x_hat: jax.Array,
    latent_mask: jax.Array | None = None,
    outliers: jax.Array | None = None,
) -> dict[str, jax.Array]:
    """The metrics of `finalize` for samples that fit one batch: `[n, D]`, `[n, F]`, `[n, D]`."""
    sums = MetricSums.zeros(x.shape[-1], z.shape[-1])
    return finalize(update(sums, x, z, x_hat, outliers=outliers), latent_mask)


def mse(sums: MetricSums) -> jax.Array:
    """Mean over all elements of (x_hat - x)^2."""
    return sums.error / sums.residual.count.value / len(sums.residual.mean.total)


def explained_variance(sums: MetricSums) -> jax.Array:
    """1 - Var(x - x_hat) / Var(x), both over all elements around one scalar mean.

    The definition of the published experiment. It counts the offsets between the
    dimensions' means as variance to be explained, which a decoder bias explains alone;
    prefer `fvu` for anything but comparing with published numbers.
    """
    return 1.0 - _relative(
        sums.residual.squared_deviation_of_all_elements(),
        sums.x.squared_deviation_of_all_elements(),
    )


def fvu(sums: MetricSums) -> jax.Array:
    """Fraction of variance unexplained: sum |x - x_hat|^2 / sum |x - mean(x)|^2.

    The mean is the vector mean of the split, so 1 is what a constant achieves.
    """
    return _relative(sums.error, jnp.sum(sums.x.squared_deviation.value))


def r2(sums: MetricSums) -> jax.Array:
    """1 - `fvu`.

    SAELens calls it `explained_variance` from 6.45.1 (July 2026) on. From March 2025 until
    then its figure of that name was about zero instead of the mean, roughly
    1 - sum |x - x_hat|^2 / sum |x|^2, which grows with the offset of the activations. Its
    `explained_variance_legacy`, a mean of per-sample ratios around the mean of each evaluation
    batch, depends on the batch size.

    References:
      SAELens, `sae_lens/evals.py`, and its pull requests 443 and 665,
      https://github.com/decoderesearch/SAELens/pull/665
    """
    return 1.0 - fvu(sums)


def fvu_without_outliers(sums: MetricSums) -> jax.Array:
    """The `fvu` of the samples that are no outliers, around their own mean.

    A few samples of huge norm (attention sinks) hold most of the variance of a split, and
    are reconstructed by a latent of their own, so that `fvu` says little of all others.
    """
    return _relative(sums.error_of_inliers.value, jnp.sum(sums.x_inliers.squared_deviation.value))


def outlier_variance_share(sums: MetricSums) -> jax.Array:
    """Share of the outliers in sum |x - mean(x)|^2 over all samples."""
    x = sums.x
    return _relative(
        sums.x_outliers.squared_deviation_from(x.mean), jnp.sum(x.squared_deviation.value)
    )


def explained_variance_dictionary_learning(sums: MetricSums) -> jax.Array:
    """`frac_variance_explained`: 1 - sum_d Var(x - x_hat)_d / sum_d Var(x)_d.

    Like `1 - fvu`, but a constant offset of the reconstruction goes unpunished, as the
    residual's variance is taken around the residual's own mean. That library evaluates
    one batch; here the variances are those of the whole split.

    References:
      dictionary_learning, `evaluation.py`, 2024,
      https://github.com/saprmarks/dictionary_learning
    """
    return 1.0 - _relative(
        jnp.sum(sums.residual.squared_deviation.value), jnp.sum(sums.x.squared_deviation.value)
    )


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
        cosine = jnp.where(alive & (index != i), jnp.abs(product(rows, row, "float32")), 0.0)
        return jnp.max(cosine), jnp.sum(cosine)

    # By blocks of rows: all F x F cosines at once do not fit memory for large F.
    largest, total = jax.lax.map(overlap_of, (rows, index), batch_size=512)
    num_alive = _count(alive)
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


def _count(mask: jax.Array) -> jax.Array:
    """True entries of a mask, over its first axis, as float32."""
    return jnp.sum(mask, axis=0, dtype=jnp.int32).astype(jnp.float32)


def _relative(deviation: jax.Array, variance: jax.Array) -> jax.Array:
    """`deviation / variance`; NaN, and not infinity, where there is no variance."""
    return jnp.where(variance == 0, jnp.nan, deviation / variance)
