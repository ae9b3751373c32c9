"""Latents that several seeds share: how many, how often they fire, and what chance gives."""

from collections.abc import Sequence
from itertools import permutations
from typing import NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment

SHARED_COSINE = 0.7
"""Above which a matched pair of latents counts as one feature (Paulo and Belrose 2025,
arXiv:2501.16615)."""


class RateBin(NamedTuple):
    """Latents whose firing rate lies in one range.

    Attributes:
      low, high: the range, the upper end left out.
      num_latents: latents in it, of all seeds.
      cosine: mean over them, and over the other seeds, of the largest absolute cosine with an
        alive latent of the other seed; NaN if there are none.
    """

    low: float
    high: float
    num_latents: int
    cosine: float


def shared_fraction(decoders: Sequence[np.ndarray], alive: Sequence[np.ndarray]) -> float:
    """Share of alive latents that another seed has too, averaged over pairs of seeds.

    Alive latents of two seeds are matched one to one by the Hungarian algorithm, so that the sum
    of absolute cosines is largest; those above 0.7 are shared, out of as many as the smaller set
    has.

    Args:
      decoders: decoder `[F, D]` of each seed.
      alive: whether each latent fires at least once, bool `[F]` for each seed.

    Returns:
      The share; NaN if there are not two seeds with alive latents.
    """
    shares = []
    for i in range(len(decoders)):
        for j in range(i):
            cosine = _cosines(decoders[i][alive[i]], decoders[j][alive[j]])
            if cosine.size:
                matched = cosine[linear_sum_assignment(cosine, maximize=True)]
                shares.append(np.mean(matched > SHARED_COSINE))
    return float(np.mean(shares)) if shares else float("nan")


def stability_by_rate(
    decoders: Sequence[np.ndarray], rates: Sequence[np.ndarray], edges: Sequence[float]
) -> list[RateBin]:
    """Stability of latents by how often they fire.

    Rare latents are less stable than frequent ones, and a mean over all says more of how many are
    rare than of how stable any are.

    Args:
      decoders: decoder `[F, D]` of each seed.
      rates: firing rate of each latent, `[F]` for each seed; those of rate 0 do not count.
      edges: ends of the ranges of firing rates, growing.

    Raises:
      ValueError: if the edges do not grow.
    """
    if list(edges) != sorted(set(edges)) or len(edges) < 2:
        raise ValueError(f"edges are {list(edges)}; allowed are two or more numbers that grow")
    of_latents, best = [], []
    for i, j in permutations(range(len(decoders)), 2):
        alive_i, alive_j = rates[i] > 0, rates[j] > 0
        cosine = _cosines(decoders[i][alive_i], decoders[j][alive_j])
        if cosine.size:
            of_latents.append(rates[i][alive_i])
            best.append(cosine.max(axis=1))
    rate_of, cosine_of = (np.concatenate([np.empty(0), *parts]) for parts in (of_latents, best))
    bins = []
    for low, high in zip(edges, edges[1:], strict=False):
        inside = (rate_of >= low) & (rate_of < high)
        num_latents = sum(int(((r > 0) & (r >= low) & (r < high)).sum()) for r in rates)
        mean = float(cosine_of[inside].mean()) if inside.any() else float("nan")
        bins.append(RateBin(low, high, num_latents, mean))
    return bins


def _cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Absolute cosines of rows, `[Fa, Fb]`."""
    units = (
        rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-30) for rows in (a, b)
    )
    first, second = units
    return np.abs(first @ second.T)
