"""Made-up activations: sparse sums of known features, and real ones without their structure."""

from typing import NamedTuple

import numpy as np


class KnownFeatures(NamedTuple):
    """Samples whose features are known.

    Attributes:
      x: `codes @ features`, with a mean that all samples share added, float32 `[n, D]`.
      codes: how strongly each feature is in each sample, zero or more, float32 `[n, G]`.
      features: directions of norm 1, float32 `[G, D]`.
    """

    x: np.ndarray
    codes: np.ndarray
    features: np.ndarray


def known_features(
    num_samples: int,
    d_in: int,
    num_features: int,
    num_active: float,
    *,
    offset_severity: float = 0.0,
    seed: int = 0,
) -> KnownFeatures:
    """Draws samples that are sparse sums of known features, as SAEs suppose activations to be.

    Feature g is in a sample with a probability in proportion to 1 / (g + 1), as words are in a
    text, but never above one half; its strength is uniform from 0.5 to 1.5. Directions are
    uniform on the sphere, so that more features than dimensions overlap.

    Args:
      num_samples: n.
      d_in: width D.
      num_features: G.
      num_active: mean number of features in a sample.
      offset_severity: norm of the samples' mean over that of their standard deviations that is
        aimed at, by a vector added to all; 0 for none.
      seed: PRNG seed.

    Raises:
      ValueError: if `num_active` is not above 0 and at most half of `num_features`.
    """
    if not 0 < num_active <= num_features / 2:
        raise ValueError(
            f"num_active is {num_active}; allowed is above 0, up to half of num_features ="
            f" {num_features}"
        )
    rng = np.random.default_rng(seed)
    probability = _zipf(num_features, num_active)
    present = rng.random((num_samples, num_features)) < probability
    codes = np.where(present, rng.uniform(0.5, 1.5, present.shape), 0.0).astype(np.float32)
    features = rng.normal(size=(num_features, d_in))
    features = (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)
    x = codes @ features
    x -= x.mean(axis=0)
    offset = rng.normal(size=d_in)
    length = offset_severity * np.linalg.norm(x.std(axis=0)) / np.linalg.norm(offset)
    return KnownFeatures(x + (offset * length).astype(np.float32), codes, features)


def permuted_dimensions(x: np.ndarray, seed: int = 0) -> np.ndarray:
    """Samples `[n, D]` with each dimension permuted by itself over the samples.

    Every dimension keeps its values, and with them mean and variance; what the dimensions say of
    each other is gone. What an SAE finds in them is chance.
    """
    return np.random.default_rng(seed).permuted(x, axis=0)


def _zipf(num_features: int, num_active: float) -> np.ndarray:
    """Probabilities in proportion to 1 / rank, at most 1/2, that sum to `num_active`."""
    weights = 1.0 / np.arange(1, num_features + 1)
    low, high = 0.0, num_active * num_features
    for _ in range(100):
        middle = (low + high) / 2
        enough = np.minimum(middle * weights, 0.5).sum() >= num_active
        low, high = (low, middle) if enough else (middle, high)
    return np.minimum(high * weights, 0.5)
