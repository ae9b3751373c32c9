"""Null rates: how many latents either rule calls specialized when problems are shuffled.

Shuffling the problems among the samples breaks every tie between firing and content. It keeps
how often each latent fires, how many top samples it has, and which properties come together in
a problem.
"""

import numpy as np
from scipy import sparse

from sae_jax.features import specialization
from sae_jax.features.firing import Firing

NUM_PERMUTATIONS = 20


def published_null_rates(firing: Firing, marks: np.ndarray) -> np.ndarray:
    """Share of alive latents that the published rule calls specialized.

    Args:
      firing: latents of n samples.
      marks: `published_marks` of the text of each sample's solution, bool `[n, 9]`.

    Returns:
      The rate in each of R = 20 independent shuffles, `[R]`.
    """
    top = firing.top_sample_matrix
    counts = _shuffled_counts(top, marks)
    specialized = specialization.published_specialized(counts, top.sum(axis=0)[None])
    return _share_of_alive(specialized, firing)


def calibrated_null_rates(firing: Firing, properties: np.ndarray) -> np.ndarray:
    """Share of alive latents that the calibrated rule calls specialized.

    Args:
      firing: latents of n samples.
      properties: which sample has which property, bool `[n, P]`.

    Returns:
      The rate in each of R = 20 independent shuffles, `[R]`.
    """
    return _share_of_alive(np.any(calibrated_null_labels(firing, properties), axis=-1), firing)


def calibrated_null_labels(firing: Firing, properties: np.ndarray) -> np.ndarray:
    """Which latent the calibrated rule calls specialized in which property, in each shuffle.

    The shuffles are the same for every SAE on these samples, so that what two SAEs share by
    chance can be counted.

    Args:
      firing: latents of n samples.
      properties: which sample has which property, bool `[n, P]`.

    Returns:
      The labels in each of R = 20 independent shuffles, bool `[R, F, P]`.
    """
    hits = _shuffled_counts(firing.fires, properties)
    return specialization.calibrated_from_hits(hits, firing.num_fired, properties).specialized


def _shuffled_counts(belongs: sparse.csc_array, properties: np.ndarray) -> np.ndarray:
    """Counts of shuffled properties over the samples of each latent, `[R, F, P]`."""
    rng = np.random.default_rng(0)
    orders = [rng.permutation(len(properties)) for _ in range(NUM_PERMUTATIONS)]
    shuffled = np.concatenate([properties[order] for order in orders], axis=1)
    counts = specialization.count_hits(belongs, shuffled)
    return counts.reshape(len(counts), NUM_PERMUTATIONS, -1).swapaxes(0, 1)


def _share_of_alive(specialized: np.ndarray, firing: Firing) -> np.ndarray:
    return specialized[:, firing.alive].sum(axis=1) / max(firing.alive.sum(), 1)
