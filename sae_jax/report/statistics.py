"""Statistics over seeds: means with intervals, and paired comparisons.

Rows are those of `SweepResult.table()`: members that agree in every field of their config but
the seeds repeat one setting, and statistics are taken over those alone.
"""

import dataclasses
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from sae_jax.configs import SEED_FIELDS, SAEConfig

CONFIDENCE = 0.95

SETTING_FIELDS = tuple(
    field.name for field in dataclasses.fields(SAEConfig) if field.name not in SEED_FIELDS
)
"""The columns in which members of one setting agree."""

PAIR_COLUMNS = ("feature_stability", "feature_stability_matched")
"""Columns that compare a seed with the others, so that the seeds' values hang together."""

Row = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Summary:
    """Mean over seeds with its interval.

    Attributes:
      mean: mean of the values; NaN if there are none.
      sd: unbiased standard deviation; NaN for fewer than two values.
      low, high: the interval of the mean; NaN where the values are too few for one.
      num_values: how many values there were.
      num_missing: how many more there would be if no member had diverged or lacked the score.
    """

    mean: float
    sd: float
    low: float
    high: float
    num_values: int
    num_missing: int = 0

    @property
    def half_width(self) -> float:
        """Half the interval's width: what follows "+/-"."""
        return (self.high - self.low) / 2


def summarize(
    values: Sequence[float | None] | np.ndarray, *, confidence: float = CONFIDENCE
) -> Summary:
    """Mean, standard deviation and t interval of one number measured with several seeds.

    Student's t assumes about normal means, which few seeds cannot show; it does not
    claim more than they can, as a bootstrap of five values would.

    Args:
      values: one a seed; those that are `None` or NaN count as missing.
      confidence: coverage of the interval.

    Raises:
      ValueError: on no values.
    """
    found, num_missing = _found(values)
    mean, sd = _mean_and_sd(found)
    standard_error = sd / max(found.size, 1) ** 0.5
    return _with_interval(mean, sd, standard_error, found.size, num_missing, confidence)


def summarize_pairs(
    values: Sequence[float | None] | np.ndarray, *, confidence: float = CONFIDENCE
) -> Summary:
    """`summarize` for a score of pairs of seeds, of which each value is a seed's mean.

    Two values share the pair that both seeds are in, so they are not independent: the
    interval is that of a jackknife which leaves out one seed, with all its pairs, at a time.
    Two seeds are one pair and have none.

    Args:
      values: for each seed the mean over its pairs with all others; those that are `None` or
        NaN count as missing.
      confidence: coverage of the interval.

    Raises:
      ValueError: on no values.

    References:
      Arvesen 1969, "Jackknifing U-statistics", https://doi.org/10.1214/aoms/1177697287
    """
    found, num_missing = _found(values)
    n = found.size
    mean, sd = _mean_and_sd(found)
    standard_error = np.nan
    if n > 2:
        # Each pair is in two values: n (n - 1) / 2 pairs sum to (n - 1) sum(found) / 2.
        without = (found.sum() - 2 * found) / (n - 2)
        standard_error = float(((n - 1) / n * ((without - mean) ** 2).sum()) ** 0.5)
    return _with_interval(mean, sd, standard_error, n, num_missing, confidence)


def _found(values: Sequence[float | None] | np.ndarray) -> tuple[np.ndarray, int]:
    array = np.asarray([np.nan if value is None else value for value in values], np.float64)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"need one or more values in a row, found shape {array.shape}")
    missing = np.isnan(array)
    return array[~missing], int(missing.sum())


def _mean_and_sd(found: np.ndarray) -> tuple[float, float]:
    with np.errstate(invalid="ignore"):  # Infinite values have a mean, but no deviation.
        return (
            float(found.mean()) if found.size else np.nan,
            float(found.std(ddof=1)) if found.size > 1 else np.nan,
        )


def _with_interval(
    mean: float, sd: float, error: float, num_values: int, num_missing: int, confidence: float
) -> Summary:
    reach = np.nan
    if num_values > 1:
        reach = float(stats.t.ppf((1 + confidence) / 2, num_values - 1)) * error
    return Summary(mean, sd, mean - reach, mean + reach, num_values, num_missing)


@dataclasses.dataclass(frozen=True)
class PairedComparison:
    """How two settings differ, seed by seed.

    Attributes:
      difference: of b minus a; its interval tells whether the sizes differ.
      p_value: two-sided, of the paired t test; NaN for fewer than two pairs.
    """

    difference: Summary
    p_value: float


def compare_paired(
    a: Sequence[float | None] | np.ndarray, b: Sequence[float | None] | np.ndarray
) -> PairedComparison:
    """Compares measurements that share their random numbers pair by pair.

    Members of a sweep with the same seed see the same batches, so their difference
    varies less than each does; `a` and `b` list the same seeds in the same order. A pair
    of which one value is `None` or NaN counts as missing.

    Raises:
      ValueError: if they differ in length.
    """
    if len(a) != len(b):
        raise ValueError(f"pairs need equally many values, found {len(a)} and {len(b)}")
    differences = [
        None if first is None or second is None else second - first
        for first, second in zip(a, b, strict=True)
    ]
    difference = summarize(differences)
    if difference.num_values < 2:
        return PairedComparison(difference, np.nan)
    if difference.sd == 0:  # The t test divides by it.
        return PairedComparison(difference, 1.0 if difference.mean == 0 else 0.0)
    test = stats.ttest_1samp(_found(differences)[0], 0.0)
    return PairedComparison(difference, float(test.pvalue))


def by_setting(rows: Iterable[Row]) -> list[list[Row]]:
    """The rows of each setting, in order of first appearance."""
    settings: dict[tuple[Hashable, ...], list[Row]] = {}
    for row in rows:
        settings.setdefault(tuple(setting_of(row).values()), []).append(row)
    return list(settings.values())


def setting_of(row: Row) -> dict[str, Any]:
    """What a row shares with the other seeds of its setting."""
    return {name: row[name] for name in SETTING_FIELDS if name in row}


def varying_fields(rows: Iterable[Row]) -> list[str]:
    """The fields of the setting in which some rows differ."""
    settings = [setting_of(row) for row in rows]
    return [
        name
        for name in SETTING_FIELDS
        if len({setting[name] for setting in settings if name in setting}) > 1
    ]


def summarize_rows(rows: Iterable[Row], columns: Sequence[str]) -> list[dict[str, Any]]:
    """Summarizes columns of a table over the seeds of each setting.

    Args:
      rows: one a member, as `result.table()` gives.
      columns: numeric columns to summarize.

    Returns:
      One mapping a setting, in order of first appearance: its fields, and a `Summary` under
      each of `columns`.
    """
    return [
        setting_of(members[0])
        | {
            name: (summarize_pairs if name in PAIR_COLUMNS else summarize)(
                [row[name] for row in members]
            )
            for name in columns
        }
        for members in by_setting(rows)
    ]


def rows_of_setting(rows: Iterable[Row], match: Row) -> list[Row]:
    """The rows that match, which all have to be of one setting.

    Raises:
      ValueError: if no row matches, or rows of several settings do.
    """
    found = [row for row in rows if all(row[name] == value for name, value in match.items())]
    if not found:
        raise ValueError(f"{dict(match)} matches 0 rows")
    if varying := varying_fields(found):
        raise ValueError(
            f"{dict(match)} matches {len(found)} rows of several settings, which differ in"
            f" {', '.join(varying)}; expected those of one"
        )
    return found


def compare_rows(rows: Iterable[Row], column: str, a: Row, b: Row) -> PairedComparison:
    """Compares one column between the rows matching `a` and those matching `b`, by seed.

    For example `compare_rows(table, "fvu", {"d_sae": 250, "k": 50}, {"d_sae": 512, "k": 50})`.

    Raises:
      ValueError: if `a` or `b` matches no row, or rows of several settings, or the two do not
        have the same seeds, each once.
    """
    rows = list(rows)
    sides = []
    for match in (a, b):
        found = rows_of_setting(rows, match)
        side = {row["seed"]: row[column] for row in found}
        if len(side) < len(found):
            raise ValueError(f"{dict(match)} matches {len(found)} rows of {len(side)} seeds")
        sides.append(side)
    if set(sides[0]) != set(sides[1]):
        raise ValueError(f"seeds do not pair: {sorted(sides[0])} and {sorted(sides[1])}")
    return compare_paired(list(sides[0].values()), [sides[1][seed] for seed in sides[0]])
