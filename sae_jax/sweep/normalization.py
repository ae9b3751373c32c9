"""What is done to samples before training, with statistics of the training split."""

from typing import NamedTuple, Self

import numpy as np

from sae_jax.activations.matrix import Matrix, OnDemand, blocks, live_of, measured
from sae_jax.architectures.base import STD_EPS


class Normalization(NamedTuple):
    """Samples become `(x - mean) / scale`, and with `per_sample` their own mean and scale are used.

    Attributes:
      mean: float32 `[D]`.
      scale: float32 `[D]`.
      per_sample: whether each sample is standardized by itself before.
    """

    mean: np.ndarray
    scale: np.ndarray
    per_sample: bool = False

    @classmethod
    def of(cls, x: Matrix, kind: str) -> Self:
        """The normalization of a kind that `SAEConfig.normalize` allows, of samples `[n, D]`."""
        zeros, ones = np.zeros(x.shape[1], np.float32), np.ones(x.shape[1], np.float32)
        if kind in ("none", "layer_norm"):
            return cls(zeros, ones, per_sample=kind == "layer_norm")
        mean, scale = mean_and_scale(x)
        return cls(mean, ones * (scale or 1.0) if kind == "center_and_scale" else ones)

    @property
    def changes(self) -> bool:
        """Whether a trained SAE has to be rewritten to take samples as they are."""
        return bool(self.mean.any() or (self.scale != 1).any())

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Normalized samples, float32 `[n, D]`."""
        if self.per_sample:
            mean, std = x.mean(axis=1, keepdims=True), x.std(axis=1, ddof=1, keepdims=True)
            return (x - mean) / (std + np.float32(STD_EPS))
        return (x - self.mean) / self.scale if self.changes else x

    def on_demand(self, x: Matrix) -> Matrix:
        """Samples that are normalized when they are read."""
        num_rows, width = x.shape
        return OnDemand((num_rows, width), lambda rows: self(x[rows]), live_of(x))


def mean_and_scale(x: Matrix) -> tuple[np.ndarray, float]:
    """Mean of samples, float32 `[D]`, and the root mean square of their deviations from it."""
    x = measured(x)
    mean = _mean(x).astype(np.float32)
    total = sum(np.sum((block - mean) ** 2, dtype=np.float64) for block in blocks(x))
    return mean, float(np.sqrt(total / (x.shape[0] * x.shape[1])))


def center_of(x: Matrix, kind: str) -> np.ndarray:
    """What `b_dec` starts from where `SAEConfig.b_dec_init` names a statistic, float32 `[D]`."""
    x = measured(x)
    if kind == "mean":
        return _mean(x).astype(np.float32)
    return geometric_median(x) if kind == "geometric_median" else np.zeros(x.shape[1], np.float32)


def geometric_median(x: Matrix, max_steps: int = 100, tolerance: float = 1e-5) -> np.ndarray:
    """The point `[D]` of least summed distance to samples `[n, D]`, by Weiszfeld's algorithm.

    Starts from the mean, and ends when a step is shorter than the tolerance times the mean
    distance. Every step reads all samples.
    """
    median = _mean(x)
    for _ in range(max_steps):
        weighted, total_weight, total_distance = np.zeros_like(median), 0.0, 0.0
        for block in blocks(x):
            distances = np.linalg.norm(block - median, axis=1)
            weights = 1.0 / np.maximum(distances, np.finfo(np.float32).tiny)
            weighted += weights @ block
            total_weight += weights.sum()
            total_distance += distances.sum()
        before, median = median, weighted / total_weight
        if np.linalg.norm(median - before) <= tolerance * total_distance / x.shape[0]:
            break
    return median.astype(np.float32)


def _mean(x: Matrix) -> np.ndarray:
    """Mean of samples `[n, D]`, float64 `[D]`."""
    return sum(block.sum(axis=0, dtype=np.float64) for block in blocks(x)) / x.shape[0]
