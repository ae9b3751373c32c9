"""Statistics over seeds: means with intervals, and paired comparisons."""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Summary:
    """Mean over seeds with its interval.

    Attributes:
      mean: of the values.
      sd: unbiased standard deviation; NaN for one value.
      low, high: the interval of the mean by Student's t distribution; NaN for one value.
      num_values: how many values there were.
    """

    mean: float
    sd: float
    low: float
    high: float
    num_values: int

    @property
    def half_width(self) -> float:
        """Half the interval's width: what follows "+/-"."""
        return (self.high - self.low) / 2


def summarize(values: Sequence[float] | np.ndarray, *, confidence: float = CONFIDENCE) -> Summary:
    """Mean, standard deviation and t interval of one number measured with several seeds.

    Student's t assumes about normal means, which few seeds cannot show; it does not
    claim more than they can, as a bootstrap of five values would.

    Raises:
      ValueError: on no values.
    """
    array = np.asarray(values, np.float64)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"need one or more values in a row, found shape {array.shape}")
    mean = float(array.mean())
    if array.size == 1:
        return Summary(mean, np.nan, np.nan, np.nan, 1)
    sd = float(array.std(ddof=1))
    reach = float(stats.t.ppf((1 + confidence) / 2, array.size - 1)) * sd / array.size**0.5
    return Summary(mean, sd, mean - reach, mean + reach, array.size)


@dataclass(frozen=True)
class PairedComparison:
    """How two configurations differ, seed by seed.

    Attributes:
      difference: of b minus a; its interval tells whether the sizes differ.
      p_value: two-sided, of the paired t test; NaN for one pair.
    """

    difference: Summary
    p_value: float


def compare_paired(
    a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray
) -> PairedComparison:
    """Compares measurements that share their random numbers pair by pair.

    Members of a sweep with the same seed see the same batches, so their difference
    varies less than each does; `a` and `b` list the same seeds in the same order.

    Raises:
      ValueError: if they differ in length.
    """
    first, second = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if first.shape != second.shape:
        raise ValueError(f"pairs need equally many values, found {first.shape} and {second.shape}")
    difference = summarize(second - first)
    if difference.num_values == 1:
        return PairedComparison(difference, np.nan)
    if difference.sd == 0:  # the t test divides by it
        return PairedComparison(difference, 1.0 if difference.mean == 0 else 0.0)
    return PairedComparison(difference, float(stats.ttest_rel(second, first).pvalue))


Row = Mapping[str, Any]


def summarize_rows(
    rows: Iterable[Row], columns: Sequence[str], *, by: Sequence[str] = ("d_sae", "k")
) -> list[dict[str, Any]]:
    """Summarizes a table's columns over the rows that agree in `by`.

    Args:
      rows: one a member, as `result.table()` gives.
      columns: numeric columns to summarize.
      by: columns that tell groups apart.

    Returns:
      One mapping a group, in order of first appearance: the `by` columns, and a
      `Summary` under each of `columns`.
    """
    groups: dict[tuple[Hashable, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in by), []).append(row)
    return [
        dict(zip(by, key, strict=True))
        | {name: summarize([row[name] for row in members]) for name in columns}
        for key, members in groups.items()
    ]


def compare_rows(
    rows: Iterable[Row], column: str, a: Row, b: Row, *, pair_by: str = "seed"
) -> PairedComparison:
    """Compares one column between the rows matching `a` and those matching `b`, by seed.

    For example `compare_rows(table, "fvu", {"d_sae": 250, "k": 50}, {"d_sae": 512, "k": 50})`.

    Raises:
      ValueError: if the two do not have the same seeds, each once.
    """
    rows = list(rows)
    sides = []
    for match in (a, b):
        found = [row for row in rows if all(row[name] == value for name, value in match.items())]
        side = {row[pair_by]: row[column] for row in found}
        if not found or len(side) < len(found):
            raise ValueError(f"{dict(match)} matches {len(found)} rows of {len(side)} {pair_by}s")
        sides.append(side)
    if set(sides[0]) != set(sides[1]):
        raise ValueError(f"{pair_by}s do not pair: {sorted(sides[0])} and {sorted(sides[1])}")
    return compare_paired(list(sides[0].values()), [sides[1][seed] for seed in sides[0]])
