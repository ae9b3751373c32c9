"""Sums and moments over samples that neither their number nor a large offset spoils."""

import dataclasses
from typing import Self

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CompensatedSum:
    """A float32 sum that carries its rounding error along (Knuth's two-sum).

    It counts exactly up to 2^48, where int32 ends at 2^31 and float32 alone at 2^24.

    Attributes:
      total: the sum as float32 rounds it, of any shape.
      error: what the rounding lost, of the same shape.
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

    Attributes:
      count: number of samples, `[]`.
      mean: mean over the samples, `[D]`.
      squared_deviation: sum over the samples of the squared distance from the mean, `[D]`.
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
        count = count_true(mask)
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


def count_true(mask: jax.Array) -> jax.Array:
    """True entries of a mask, over its first axis, as float32."""
    return jnp.sum(mask, axis=0, dtype=jnp.int32).astype(jnp.float32)
