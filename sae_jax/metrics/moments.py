"""Moments of samples, which neither their number nor a large offset spoils."""

import dataclasses
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array | np.ndarray


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Moments:
    """Count, mean and sum of squared deviations of each dimension.

    Those of a batch are float32 and come from a device, where leading axes may precede the shapes
    below. They are merged on the host in float64, by the update of Chan, Golub and LeVeque (1979),
    http://i.stanford.edu/pub/cstr/reports/cs/tr/79/773/CS-TR-79-773.pdf

    Attributes:
      count: number of samples, `[1]`.
      origin: a point near the mean, `[D]`.
      mean: mean over the samples, from there, `[D]`.
      squared_deviation: sum over the samples of the squared distance from the mean, `[D]`.
    """

    count: Array
    origin: Array
    mean: Array
    squared_deviation: Array

    @classmethod
    def of(cls, values: jax.Array, mask: jax.Array) -> Self:
        """The moments of the masked rows of `values` `[b, D]`."""
        count = count_true(mask)
        rows = mask[:, None]
        # Around a row of the batch: deviations from it keep their digits beside a large
        # offset, and are exactly zero where all rows are equal.
        first = jnp.argmax(mask)
        origin = jnp.where(mask[first], values[first], 0.0)
        shifted = jnp.where(rows, values - origin[None, :], 0.0)
        mean = jnp.sum(shifted, axis=0) / jnp.maximum(count, 1.0)
        deviation = jnp.sum(jnp.where(rows, (shifted - mean[None, :]) ** 2, 0.0), axis=0)
        return cls(count[None], origin, mean, deviation)

    def merge(self, other: Self) -> Self:
        """The moments of both sets of samples, of arrays of NumPy."""
        count = self.count + other.count
        share = other.count / np.maximum(count, 1.0)
        shift = (other.origin - self.origin) + (other.mean - self.mean)
        between = shift**2 * (self.count * share)
        return dataclasses.replace(
            self,
            count=count,
            mean=self.mean + shift * share,
            squared_deviation=self.squared_deviation + other.squared_deviation + between,
        )

    def squared_deviation_from(self, other: Self) -> np.ndarray:
        """Sum over all samples of the squared distance from the mean of others, `[]`."""
        shift = (self.origin - other.origin) + (self.mean - other.mean)
        return np.sum(self.squared_deviation) + self.count[0] * np.sum(shift**2)

    def squared_deviation_of_all_elements(self) -> np.ndarray:
        """Sum of squared deviations from the one scalar mean of all elements, `[]`."""
        # Around the first dimension's mean, for the reasons in `of`.
        mean = (self.origin - self.origin[0]) + (self.mean - self.mean[0])
        between_dims = self.count[0] * np.sum((mean - np.mean(mean)) ** 2)
        return np.sum(self.squared_deviation) + between_dims


def count_true(mask: jax.Array) -> jax.Array:
    """True entries of a mask of a batch, over its first axis, as float32, exact up to 2^24."""
    return jnp.sum(mask, axis=0, dtype=jnp.float32)
