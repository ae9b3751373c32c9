"""The committed tables of the study, and numbers with intervals out of them."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sae_jax.report.reference import with_interval
from sae_jax.report.statistics import PAIR_COLUMNS, Summary, summarize, summarize_pairs

Row = dict[str, Any]


class Tables:
    """The tables of a folder, each read when it is first asked for.

    Numbers are floats, an empty cell is `None`, and other cells stay text.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._tables: dict[str, list[Row]] = {}

    def __contains__(self, name: str) -> bool:
        """Whether there is such a table: a study may leave stages out."""
        return (self._folder / f"{name}.csv").is_file()

    def __getitem__(self, name: str) -> list[Row]:
        """All rows of a table."""
        if name not in self._tables:
            path = self._folder / f"{name}.csv"
            with path.open(newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file))
            self._tables[name] = [{key: _value(cell) for key, cell in r.items()} for r in rows]
        return self._tables[name]

    def rows(self, table: str, match: Mapping[str, Any]) -> list[Row]:
        """The rows that have the values of `match`.

        Raises:
          ValueError: if there are none.
        """
        found = [r for r in self[table] if all(r[name] == v for name, v in match.items())]
        if not found:
            raise ValueError(f"{table} has no rows with {dict(match)}")
        return found

    def summary(self, table: str, column: str, **match: Any) -> Summary:
        """Mean of a column over the seeds of one setting, with its 95 % interval.

        Raises:
          ValueError: if rows of several settings match, so that a seed comes twice.
        """
        found = self.rows(table, match)
        seeds = [row["seed"] for row in found]
        if len(set(seeds)) < len(seeds):
            raise ValueError(f"{table} has several rows of one seed with {match}")
        of = summarize_pairs if column in PAIR_COLUMNS else summarize
        return of([row[column] for row in found])

    def percent(self, table: str, column: str, digits: int = 1, **match: Any) -> str:
        """A share as a percentage, such as "43.2 ± 3.1 %"."""
        return f"{with_interval(self.summary(table, column, **match), 100, digits)} %"

    def number(self, table: str, column: str, digits: int = 3, **match: Any) -> str:
        """A number with its interval, such as "0.207 ± 0.002"."""
        return with_interval(self.summary(table, column, **match), 1, digits)

    def product(self, table: str, a: str, b: str, digits: int = 1, **match: Any) -> str:
        """The product of two columns with its interval: a share times what it is of is a number."""
        found = self.rows(table, match)
        return with_interval(summarize([row[a] * row[b] for row in found]), 1, digits)

    def across(self, table: str, column: str, **match: Any) -> str:
        """The mean of a share over slices as a percentage, with the least and the largest."""
        values = [100 * row[column] for row in self.rows(table, match)]
        return f"{sum(values) / len(values):.1f} % ({min(values):.1f} to {max(values):.1f})"

    def count(self, table: str, column: str, at_most: float, **match: Any) -> int:
        """The number of rows whose value is at most `at_most`."""
        return sum(row[column] <= at_most for row in self.rows(table, match))

    def value(self, table: str, column: str, digits: int = 3, **match: Any) -> str:
        """A number of one row.

        Raises:
          ValueError: if other than one row matches.
        """
        found = self.rows(table, match)
        if len(found) > 1:
            raise ValueError(f"{table} has {len(found)} rows with {match}; expected one")
        return f"{found[0][column]:.{digits}f}"


def _value(cell: str) -> Any:
    if not cell:
        return None
    try:
        return float(cell)
    except ValueError:
        return cell
