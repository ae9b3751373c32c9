"""Every comparison that a verdict of the document rests on, tested together.

A comparison is of two settings by seed: members of one seed share their initial numbers and the
order of the samples, so differences are paired. The test is Student's for paired values. Its
p-values are adjusted over all comparisons of the document, so that of those called significant
one in 20 is expected to be false, however they depend on each other.

References:
  Benjamini and Yekutieli 2001, "The control of the false discovery rate in multiple testing under
  dependency", https://doi.org/10.1214/aos/1013699998
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from paper.tables import Tables
from sae_jax.report.statistics import Summary, compare_paired

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
    """The outcome of each comparison, by its name.

    Equal values on both sides in every seed differ by nothing, with a p-value of 1.

    Raises:
      ValueError: if the two sides of a comparison do not have the same seeds, each once.
    """
    pairs = [_pairs(tables, comparison) for comparison in comparisons]
    adjusted = stats.false_discovery_control([_p(a, b) for a, b in pairs], method="by")
    return {
        comparison.name: Outcome(compare_paired(a, b), float(q))
        for comparison, (a, b), q in zip(comparisons, pairs, adjusted, strict=True)
    }


def _pairs(tables: Tables, comparison: Comparison) -> tuple[list[float], list[float]]:
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
    return list(a.values()), [b[seed] for seed in a]


def _p(a: Sequence[float], b: Sequence[float]) -> float:
    differences = np.asarray(b) - np.asarray(a)
    if not np.any(differences):
        return 1.0
    if np.ptp(differences) == 0:
        return 0.0
    return float(stats.ttest_rel(a, b).pvalue)
