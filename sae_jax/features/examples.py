"""Problems that show what a latent does: where it is strongest, and where it fires less."""

from typing import NamedTuple

import numpy as np
from scipy import sparse

NUM_TOP = 10
QUANTILES = (0.75, 0.5, 0.25)
NUM_PER_QUANTILE = 3
NUM_BINS = 20


class Examples(NamedTuple):
    """Samples on which latents fire, those of latent f at `start[f]` to `start[f + 1]`.

    Attributes:
      start: int `[F + 1]`.
      sample: index of each sample, `[total]`.
      activation: the latent's value on it, `[total]`.
      quantile: 1 for the samples with the largest |z|; else the quantile of |z|, over the
        problems on which the latent fires, around which it lies, `[total]`.
    """

    start: np.ndarray
    sample: np.ndarray
    activation: np.ndarray
    quantile: np.ndarray


class Histograms(NamedTuple):
    """How a latent's values are spread over the samples on which it fires.

    Attributes:
      low, high: smallest and largest value, `[F]`; NaN for latents that never fire.
      counts: number of values in each of 20 bins of equal width between them, int `[F, 20]`.
    """

    low: np.ndarray
    high: np.ndarray
    counts: np.ndarray


def examples(z: sparse.csc_array, problem_of_sample: np.ndarray) -> Examples:
    """The 10 strongest samples of each latent, and 3 at each of 3 lower quantiles.

    Looking at the strongest alone makes latents appear purer than they are. A problem with
    several samples stands with its strongest.

    Args:
      z: latents without stored zeros, `[n, F]`.
      problem_of_sample: index of each sample's problem, int `[n]`.

    References:
      Bolukbasi et al. 2021, "An Interpretability Illusion for BERT",
      https://arxiv.org/abs/2104.07143
    """
    latent = np.repeat(np.arange(z.shape[1]), np.diff(z.indptr))
    order = np.lexsort((z.indices, -np.abs(z.data), latent))
    latent, sample, value = latent[order], z.indices[order], z.data[order]
    problems = problem_of_sample[sample]
    _, first = np.unique(latent.astype(np.int64) * (problems.max(initial=0) + 1) + problems, True)
    first.sort()
    latent, sample, value = latent[first], sample[first], value[first]
    starts = np.searchsorted(latent, np.arange(z.shape[1] + 1))
    chosen, quantile = [], []
    lengths = np.zeros(z.shape[1], np.int64)
    for f in range(z.shape[1]):
        begin, end = starts[f], starts[f + 1]
        ranks, marks = _chosen_ranks(end - begin)
        chosen.append(begin + ranks)
        quantile.append(marks)
        lengths[f] = len(ranks)
    taken = np.concatenate(chosen) if chosen else np.empty(0, np.int64)
    return Examples(
        np.concatenate([[0], np.cumsum(lengths)]),
        sample[taken],
        value[taken],
        np.concatenate(quantile) if quantile else np.empty(0),
    )


def histograms(z: sparse.csc_array) -> Histograms:
    """Histograms of the values of each latent that are not zero; z is `[n, F]`."""
    num_latents = z.shape[1]
    latent = np.repeat(np.arange(num_latents), np.diff(z.indptr))
    low, high = np.full(num_latents, np.inf), np.full(num_latents, -np.inf)
    np.minimum.at(low, latent, z.data)
    np.maximum.at(high, latent, z.data)
    width = np.where(high > low, high - low, 1.0)[latent]
    bins = ((z.data - low[latent]) / width * NUM_BINS).astype(np.int64).clip(0, NUM_BINS - 1)
    counts = np.bincount(latent * NUM_BINS + bins, minlength=num_latents * NUM_BINS)
    silent = low > high
    low[silent] = high[silent] = np.nan
    return Histograms(low, high, counts.reshape(num_latents, NUM_BINS))


def _chosen_ranks(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Ranks of the examples among `count` values from the strongest down, and their quantiles."""
    ranks = list(range(min(NUM_TOP, count)))
    marks = [1.0] * len(ranks)
    for quantile in QUANTILES:
        middle = round((1 - quantile) * (count - 1))
        around = range(middle - NUM_PER_QUANTILE // 2, middle + NUM_PER_QUANTILE // 2 + 1)
        new = [rank for rank in around if len(ranks) <= rank < count and rank > ranks[-1]]
        ranks += new
        marks += [quantile] * len(new)
    return np.array(ranks, np.int64), np.array(marks)
