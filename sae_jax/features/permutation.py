"""Null rates: how many latents either rule calls specialized when problems are shuffled.

Permuting the problems among the samples breaks every tie between firing and content and
keeps all else: how often each latent fires, how many of its top samples there are, and
which properties come together in a problem.
"""

from collections.abc import Sequence

import numpy as np
from scipy import sparse

from sae_jax.features import specialization
from sae_jax.features.firing import Firing

NUM_PERMUTATIONS = 20


def published_null_rates(
    firing: Firing,
    texts: Sequence[str],
    *,
    num_permutations: int = NUM_PERMUTATIONS,
    seed: int = 0,
) -> np.ndarray:
    """Share of alive latents that the published rule calls specialized, `[num_permutations]`."""
    marks = _permuted(specialization.published_marks(texts), num_permutations, seed)
    top = firing.top_sample_matrix()
    specialized = specialization.published_specialized(_count(top, marks), top.sum(axis=0)[None])
    return _share_of_alive(specialized, firing)


def calibrated_null_rates(
    firing: Firing,
    properties: np.ndarray,
    *,
    num_permutations: int = NUM_PERMUTATIONS,
    seed: int = 0,
    q: float = specialization.FALSE_DISCOVERY_RATE,
    min_lift: float = specialization.MIN_LIFT,
    min_support: int = specialization.MIN_SUPPORT,
) -> np.ndarray:
    """Share of alive latents that the calibrated rule calls specialized, `[num_permutations]`.

    Args:
      firing: of an SAE over n samples.
      properties: which sample has which property, bool `[n, P]`.
      num_permutations: independent shuffles.
      seed: of the shuffles.
      q, min_lift, min_support: of `calibrated_specialization`.
    """
    result = specialization.calibrate_counts(
        hits=_count(firing.fires, _permuted(properties, num_permutations, seed)),
        support=firing.num_fired,
        num_with_property=properties.sum(axis=0),
        num_samples=firing.num_samples,
        q=q,
        min_lift=min_lift,
        min_support=min_support,
    )
    return _share_of_alive(np.any(result.specialized, axis=-1), firing)


def _permuted(properties: np.ndarray, num_permutations: int, seed: int) -> np.ndarray:
    """Rows in random orders, `[n, num_permutations, P]`."""
    rng = np.random.default_rng(seed)
    orders = [rng.permutation(len(properties)) for _ in range(num_permutations)]
    return np.stack([properties[order] for order in orders], axis=1)


def _count(belongs: sparse.csc_array, properties: np.ndarray) -> np.ndarray:
    """Counts over the samples of each latent, `[n, F], [n, R, P] -> [R, F, P]`."""
    num_samples, num_permutations, num_properties = properties.shape
    flat = properties.reshape(num_samples, -1)
    counts = specialization.count_hits(belongs, flat)
    return counts.reshape(-1, num_permutations, num_properties).swapaxes(0, 1)


def _share_of_alive(specialized: np.ndarray, firing: Firing) -> np.ndarray:
    return specialized[:, firing.alive].sum(axis=1) / max(firing.alive.sum(), 1)
