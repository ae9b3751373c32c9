"""Rank correlation over data slices, with an interval for slices that resemble each other."""

from collections.abc import Sequence

import numpy as np
from scipy import stats

NUM_DRAWS = 2000


def rank_correlation(
    x: Sequence[float], y: Sequence[float], groups: Sequence[float], *, seed: int = 0
) -> tuple[float, float, float]:
    """Spearman's correlation, and the ends of its 95 % interval.

    The interval is of percentiles of a bootstrap that draws whole groups, since the positions of
    one layer are not independent of each other.

    Args:
      x, y: one value each for every slice.
      groups: the group of every slice.
      seed: PRNG seed of the draws.
    """
    x, y, groups = (np.asarray(values) for values in (x, y, groups))
    members = [np.flatnonzero(groups == group) for group in np.unique(groups)]
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(NUM_DRAWS):
        chosen = np.concatenate([members[i] for i in rng.integers(len(members), size=len(members))])
        drawn.append(stats.spearmanr(x[chosen], y[chosen]).statistic)
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    return float(stats.spearmanr(x, y).statistic), float(low), float(high)
