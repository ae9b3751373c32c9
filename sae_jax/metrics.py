"""Quality metrics of one SAE, streamed over evaluation batches.

Written for one SAE; `jax.vmap` lifts them over the members of a sweep. Sums are
float32 and compensated, and variances are merged from per-dimension means, so that
neither the evaluation batch size nor a large offset of the activations (which makes a
sum of squares cancel) moves a value beyond rounding.

    sums = MetricSums.zeros(d_in, d_sae)
    for x, mask in batches:
        z = sae.encode(x)
        sums = update(sums, x, z, sae.decode(z), mask)
    metrics = finalize(sums)
"""

import dataclasses
from typing import Self

import chex
import jax
import jax.numpy as jnp

ALMOST_DEAD_RATE = 0.005


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CompensatedSum:
    """A float32 sum that carries its rounding error along (Knuth's two-sum)."""

    total: jax.Array
    error: jax.Array

    @classmethod
    def zeros(cls, shape: tuple[int, ...] = ()) -> Self:
        """The empty sum."""
        return cls(jnp.zeros(shape, jnp.float32), jnp.zeros(shape, jnp.float32))

    @property
    def value(self) -> jax.Array:
        """The sum, rounded once."""
        return self.total + self.error

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

    count: jax.Array
    mean: CompensatedSum
    squared_deviation: CompensatedSum

    @classmethod
    def zeros(cls, num_dims: int) -> Self:
        """The moments of no samples."""
        shape = (num_dims,)
        return cls(
            jnp.zeros((), jnp.int32), CompensatedSum.zeros(shape), CompensatedSum.zeros(shape)
        )

    @classmethod
    def of(cls, values: jax.Array, mask: jax.Array) -> Self:
        """The moments of the masked rows of `values` `[b, D]`."""
        count = jnp.sum(mask, dtype=jnp.int32)
        rows = mask[:, None]
        mean = jnp.sum(jnp.where(rows, values, 0.0), axis=0) / jnp.maximum(count, 1)
        deviation = jnp.sum(jnp.where(rows, (values - mean[None, :]) ** 2, 0.0), axis=0)
        zero = jnp.zeros_like(mean)
        return cls(count, CompensatedSum(mean, zero), CompensatedSum(deviation, zero))

    def merge(self, other: Self) -> Self:
        """The moments of both sets of samples."""
        count = self.count + other.count
        share = other.count / jnp.maximum(count, 1)
        shift = (other.mean.total - self.mean.total) + (other.mean.error - self.mean.error)
        between = shift**2 * (self.count * share)
        return dataclasses.replace(
            self,
            count=count,
            mean=self.mean.add(shift * share),
            squared_deviation=self.squared_deviation.merge(other.squared_deviation).add(between),
        )

    def squared_deviation_of_all_elements(self) -> jax.Array:
        """Sum of squared deviations from the one scalar mean of all elements."""
        mean = self.mean.value
        between_dims = self.count * jnp.sum((mean - jnp.mean(mean)) ** 2)
        return jnp.sum(self.squared_deviation.value) + between_dims


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MetricSums:
    """What the metrics need to remember of the samples seen; see `update`.

    Attributes:
      x: moments of the activations, over samples `[D]`.
      residual: moments of `x - x_hat`, over samples `[D]`.
      cosine: sum over samples of the cosine of `x` and `x_hat`, `[]`.
      num_fired: samples on which each latent is not zero, `[F]`.
      magnitude: sum over samples of |z|, `[F]`.
      max_activation: largest |z| of each latent, `[F]`.
    """

    x: Moments
    residual: Moments
    cosine: CompensatedSum
    num_fired: jax.Array
    magnitude: CompensatedSum
    max_activation: jax.Array

    @classmethod
    def zeros(cls, d_in: int, d_sae: int) -> Self:
        """Sums over no samples."""
        return cls(
            x=Moments.zeros(d_in),
            residual=Moments.zeros(d_in),
            cosine=CompensatedSum.zeros(),
            num_fired=jnp.zeros((d_sae,), jnp.int32),
            magnitude=CompensatedSum.zeros((d_sae,)),
            max_activation=jnp.zeros((d_sae,), jnp.float32),
        )


def update(
    sums: MetricSums,
    x: jax.Array,
    z: jax.Array,
    x_hat: jax.Array,
    mask: jax.Array | None = None,
) -> MetricSums:
    """Adds one evaluation batch.

    Args:
      sums: sums so far.
      x: activations `[b, D]`.
      z: latents `[b, F]`.
      x_hat: reconstructions `[b, D]`.
      mask: bool `[b]`, true for real samples; the rows that pad a last batch are
        false and may hold anything. All rows count without it.

    Returns:
      The sums with the batch's real samples added.
    """
    chex.assert_rank([x, z, x_hat], 2)
    chex.assert_equal_shape([x, x_hat])
    chex.assert_equal_shape_prefix([x, z], 1)
    chex.assert_shape(x, (None, *sums.x.mean.total.shape))
    chex.assert_shape(z, (None, *sums.num_fired.shape))
    mask = jnp.ones(x.shape[0], bool) if mask is None else mask
    chex.assert_shape(mask, (x.shape[0],))

    x, x_hat = x.astype(jnp.float32), x_hat.astype(jnp.float32)
    magnitude = jnp.where(mask[:, None], jnp.abs(z.astype(jnp.float32)), 0.0)
    cosine = jnp.where(mask, _cosine(x, x_hat), 0.0)
    return MetricSums(
        x=sums.x.merge(Moments.of(x, mask)),
        residual=sums.residual.merge(Moments.of(x - x_hat, mask)),
        cosine=sums.cosine.add(jnp.sum(cosine)),
        # Not `magnitude > 0`: a latent that is NaN has not stayed silent.
        num_fired=sums.num_fired + jnp.sum(magnitude != 0, axis=0, dtype=jnp.int32),
        magnitude=sums.magnitude.add(jnp.sum(magnitude, axis=0)),
        max_activation=jnp.maximum(sums.max_activation, jnp.max(magnitude, axis=0)),
    )


def merge(a: MetricSums, b: MetricSums) -> MetricSums:
    """Sums over the samples of both, as when several hosts evaluate shares of a split."""
    return MetricSums(
        x=a.x.merge(b.x),
        residual=a.residual.merge(b.residual),
        cosine=a.cosine.merge(b.cosine),
        num_fired=a.num_fired + b.num_fired,
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
      `mse`, `explained_variance`, `fvu`, `r2`, `cosine_similarity`, `l0`,
      `dead_fraction`, `num_alive`, `almost_dead_fraction` (0 < firing rate < 0.005),
      `mean_activation` (of |z| over active entries), `max_activation`,
      `explained_variance_sae_lens`, `explained_variance_dictionary_learning`,
      `firing_rate` `[F]` and `mean_magnitude` `[F]` (of |z| over all samples).
    """
    latent_mask = jnp.ones_like(sums.num_fired, bool) if latent_mask is None else latent_mask
    chex.assert_equal_shape([sums.num_fired, latent_mask])
    num_samples = sums.x.count
    num_latents = jnp.sum(latent_mask)
    num_fired = jnp.where(latent_mask, sums.num_fired, 0)
    magnitude = jnp.where(latent_mask, sums.magnitude.value, 0.0)
    firing_rate = num_fired / num_samples
    num_alive = jnp.sum(num_fired > 0)
    l0 = jnp.sum(firing_rate)
    unexplained = fvu(sums)
    return {
        "mse": mse(sums),
        "explained_variance": explained_variance(sums),
        "fvu": unexplained,
        "r2": 1.0 - unexplained,
        "cosine_similarity": sums.cosine.value / num_samples,
        "l0": l0,
        "dead_fraction": (num_latents - num_alive) / num_latents,
        "num_alive": num_alive,
        "almost_dead_fraction": jnp.sum((num_fired > 0) & (firing_rate < ALMOST_DEAD_RATE))
        / num_latents,
        "mean_activation": jnp.sum(magnitude / num_samples) / l0,
        "max_activation": jnp.max(jnp.where(latent_mask, sums.max_activation, 0.0)),
        "explained_variance_sae_lens": explained_variance_sae_lens(sums),
        "explained_variance_dictionary_learning": explained_variance_dictionary_learning(sums),
        "firing_rate": firing_rate,
        "mean_magnitude": magnitude / num_samples,
    }


def score(
    x: jax.Array, z: jax.Array, x_hat: jax.Array, latent_mask: jax.Array | None = None
) -> dict[str, jax.Array]:
    """The metrics of `finalize` for samples that fit one batch: `[n, D]`, `[n, F]`, `[n, D]`."""
    sums = MetricSums.zeros(x.shape[-1], z.shape[-1])
    return finalize(update(sums, x, z, x_hat), latent_mask)


def mse(sums: MetricSums) -> jax.Array:
    """Mean over all elements of (x_hat - x)^2."""
    return _residual_sum_of_squares(sums) / (sums.x.count * _num_dims(sums))


def explained_variance(sums: MetricSums) -> jax.Array:
    """1 - Var(x - x_hat) / Var(x), both over all elements around one scalar mean.

    The definition of the published experiment. It counts the offsets between the
    dimensions' means as variance to be explained, which a decoder bias explains alone;
    prefer `fvu` for anything but comparing with published numbers.
    """
    return 1.0 - (
        sums.residual.squared_deviation_of_all_elements()
        / sums.x.squared_deviation_of_all_elements()
    )


def fvu(sums: MetricSums) -> jax.Array:
    """Fraction of variance unexplained: sum |x - x_hat|^2 / sum |x - mean(x)|^2.

    The mean is the vector mean of the split, so 1 is what a constant achieves.
    """
    return _residual_sum_of_squares(sums) / jnp.sum(sums.x.squared_deviation.value)


def explained_variance_sae_lens(sums: MetricSums) -> jax.Array:
    """SAELens' `explained_variance`: 1 - E|x - x_hat|^2 / (E|x|^2 - |E x|^2).

    Equal to `1 - fvu`. Its `explained_variance_legacy`, a mean of per-sample ratios
    around the mean of each evaluation batch, depends on the batch size and is left out.

    References:
      SAELens 6, `sae_lens/evals.py`, 2025, https://github.com/decoderesearch/SAELens
    """
    return 1.0 - fvu(sums)


def explained_variance_dictionary_learning(sums: MetricSums) -> jax.Array:
    """`frac_variance_explained`: 1 - sum_d Var(x - x_hat)_d / sum_d Var(x)_d.

    Like `1 - fvu`, but a constant offset of the reconstruction goes unpunished, as the
    residual's variance is taken around the residual's own mean. That library evaluates
    one batch; here the variances are those of the whole split.

    References:
      dictionary_learning, `evaluation.py`, 2024,
      https://github.com/saprmarks/dictionary_learning
    """
    return 1.0 - (
        jnp.sum(sums.residual.squared_deviation.value) / jnp.sum(sums.x.squared_deviation.value)
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
    index = jnp.arange(rows.shape[0])

    def overlap_of(row_and_index: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        row, i = row_and_index
        cosine = jnp.where(alive & (index != i), jnp.abs(rows @ row), 0.0)
        return jnp.max(cosine), jnp.sum(cosine)

    # By blocks of rows: all F x F cosines at once do not fit memory for large F.
    largest, total = jax.lax.map(overlap_of, (rows, index), batch_size=512)
    num_alive = jnp.sum(alive)
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


def _num_dims(sums: MetricSums) -> int:
    return sums.x.mean.total.shape[0]


def _residual_sum_of_squares(sums: MetricSums) -> jax.Array:
    residual = sums.residual
    return jnp.sum(residual.squared_deviation.value) + residual.count * jnp.sum(
        residual.mean.value**2
    )
