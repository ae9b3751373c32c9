"""Every comparison that a verdict of the document rests on, tested together.

A comparison is of two settings by seed: members of one seed share their initial numbers and the
order of the samples, so differences are paired. The test is Student's for paired values; that of
stability, which compares pairs of seeds, has a jackknife's standard error. Their p-values are
adjusted over all comparisons of the document, so that of those called significant one in 20 is
expected to be false, however they depend on each other.

References:
  Benjamini and Yekutieli 2001, "The control of the false discovery rate in multiple testing under
  dependency", https://doi.org/10.1214/aos/1013699998
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from paper.tables import Tables
from sae_jax.report.statistics import (
    CONFIDENCE,
    PAIR_COLUMNS,
    Summary,
    summarize,
    summarize_pairs,
)

LEVEL = 0.05


class Comparison(NamedTuple):
    """What is compared.

    Attributes:
      name: what the document calls it.
      table, column: where the numbers are.
      a, b: what the rows of both sides match; the difference is b minus a.
    """

    name: str
    table: str
    column: str
    a: Mapping[str, Any]
    b: Mapping[str, Any]


class Outcome(NamedTuple):
    """What came out.

    Attributes:
      difference: mean difference with its 95 % interval, not adjusted for other comparisons.
      q: adjusted p-value.
    """

    difference: Summary
    q: float

    @property
    def significant(self) -> bool:
        """Whether the difference is told from none, with all comparisons accounted for."""
        return self.q <= LEVEL


def outcomes(tables: Tables, comparisons: Sequence[Comparison]) -> dict[str, Outcome]:
    """The outcome of each comparison whose table is there, by its name.

    Equal means differ by nothing, with a p-value of 1.

    Raises:
      ValueError: if the two sides of a comparison do not have the same seeds, each once.
    """
    there = [comparison for comparison in comparisons if comparison.table in tables]
    differences = [_difference(tables, comparison) for comparison in there]
    adjusted = stats.false_discovery_control([_p(d) for d in differences], method="by")
    return {
        comparison.name: Outcome(difference, float(q))
        for comparison, difference, q in zip(there, differences, adjusted, strict=True)
    }


def _difference(tables: Tables, comparison: Comparison) -> Summary:
    sides = []
    for match in (comparison.a, comparison.b):
        rows = tables.rows(comparison.table, match)
        side = {row["seed"]: row[comparison.column] for row in rows}
        if len(side) < len(rows):
            raise ValueError(f"{comparison.name}: {dict(match)} has a seed more than once")
        sides.append(side)
    a, b = sides
    if a.keys() != b.keys():
        raise ValueError(f"{comparison.name}: seeds do not pair: {sorted(a)} and {sorted(b)}")
    differences = [b[seed] - a[seed] for seed in a]
    of = summarize_pairs if comparison.column in PAIR_COLUMNS else summarize
    return of(differences)


def _p(difference: Summary) -> float:
    """Two-sided p-value of no difference, of Student's t with the interval's standard error."""
    if difference.mean == 0:
        return 1.0
    freedom = difference.num_values - 1
    error = difference.half_width / stats.t.ppf((1 + CONFIDENCE) / 2, freedom)
    with np.errstate(divide="ignore"):
        return float(2 * stats.t.sf(np.abs(difference.mean) / np.float64(error), freedom))
