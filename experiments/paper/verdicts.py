"""The comparisons behind the document's verdicts, and the words that follow from them."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from stages.study import ARMS, CENTRAL

from paper.comparisons import Comparison, Outcome
from paper.correlation import rank_correlation
from paper.tables import Tables
from sae_jax.markdown import markdown_table
from sae_jax.report.reference import with_interval

_HARDLY_ANY = 0.01
# Columns that are no shares, with the digits of their numbers.
_PLAIN = {"feature_stability": 3, "recovery_f1": 3, "mean_max_cosine": 3, "change_sae": 2}


def _within_arms() -> Iterator[Comparison]:
    """What changes with d and K, in each arm."""
    changes = {
        "dead, d 250 to 512": ("dead_fraction", (50, 250), (50, 512)),
        "dead, d 512 to 1000": ("dead_fraction", (50, 512), (50, 1000)),
        "dead, K 50 to 100": ("dead_fraction", (50, 512), (100, 512)),
        "dead, K 25 to 50": ("dead_fraction", (25, 512), (50, 512)),
        "published rule, d 250 to 512": ("published_rate", (50, 250), (50, 512)),
        "published rule, d 512 to 1000": ("published_rate", (50, 512), (50, 1000)),
        "published rule with support, d 250 to 512": (
            "published_rate_supported",
            (50, 250),
            (50, 512),
        ),
        "calibrated, d 100 to 250": ("calibrated_rate_supported", (50, 100), (50, 250)),
        "calibrated, d 250 to 512": ("calibrated_rate_supported", (50, 250), (50, 512)),
        "calibrated, d 512 to 1000": ("calibrated_rate_supported", (50, 512), (50, 1000)),
        "calibrated, K 50 to 25": ("calibrated_rate_supported", (50, 512), (25, 512)),
        "calibrated, K 50 to 100": ("calibrated_rate_supported", (50, 512), (100, 512)),
        "EV, d 250 to 512": ("explained_variance", (50, 250), (50, 512)),
        "fvu, d 100 to 250": ("fvu", (50, 100), (50, 250)),
        "fvu, d 250 to 512": ("fvu", (50, 250), (50, 512)),
        "fvu, d 512 to 1000": ("fvu", (50, 512), (50, 1000)),
        "fvu, K 100, d 300 to 750": ("fvu", (100, 300), (100, 750)),
        "fvu, K 200, d 512 to 1000": ("fvu", (200, 512), (200, 1000)),
        "stability, d 250 to 512": ("feature_stability", (50, 250), (50, 512)),
    }
    for arm in ARMS:
        for name, (column, *sides) in changes.items():
            a, b = ({"normalize": arm, "k": k, "d_sae": d_sae} for k, d_sae in sides)
            yield Comparison(f"{arm}: {name}", "grid", column, a, b)


def _between_arms() -> Iterator[Comparison]:
    """What centering changes, and scaling beside it."""
    columns = {
        "dead": "dead_fraction",
        "fvu": "fvu",
        "calibrated": "calibrated_rate_supported",
        "stability": "feature_stability",
    }
    for k, d_sae in ((25, 512), (50, 250), (50, 512), (50, 1000), (100, 512)):
        for name, column in columns.items():
            a, b = ({"normalize": arm, "k": k, "d_sae": d_sae} for arm in ("none", "center"))
            yield Comparison(f"centering: {name}, K {k}, d {d_sae}", "grid", column, a, b)
    for name, column in columns.items():
        a, b = (CENTRAL | {"normalize": arm} for arm in ("center", "center_and_scale"))
        yield Comparison(f"scaling: {name}", "grid", column, a, b)


def _against_baselines() -> Iterator[Comparison]:
    """What training and the trained model are worth."""
    for arm in ("none", "center"):
        for baseline, columns in {
            "frozen decoder": ("fvu", "calibrated_rate_supported"),
            "frozen encoder": ("fvu", "calibrated_rate_supported"),
            "untrained model": ("dead_fraction", "calibrated_rate_supported", "feature_stability"),
            "permuted dimensions": ("dead_fraction", "feature_stability"),
        }.items():
            for column in columns:
                a = {"normalize": arm, "baseline": baseline}
                b = {"normalize": arm, "baseline": "trained"}
                name = f"{arm}: trained against {baseline}, {column}"
                yield Comparison(name, "baselines", column, a, b)


def _on_made_samples() -> Iterator[Comparison]:
    """The offset alone, and known features."""
    yield Comparison("dose: 0 to 1", "dose", "dead_fraction", {"dose": 0.0}, {"dose": 1.0})
    yield Comparison("dose: 1 to 2", "dose", "dead_fraction", {"dose": 1.0}, {"dose": 2.0})
    for column in ("recovery_f1", "mean_max_cosine", "dead_fraction"):
        of = CENTRAL | {"offset": "the study's"}
        a, b = (of | {"normalize": arm} for arm in ("none", "center"))
        yield Comparison(f"synthetic: centering, {column}", "synthetic", column, a, b)


def _of_sizes() -> Iterator[Comparison]:
    """What more samples give, at as many steps."""
    for arm in ("none", "center"):
        for d_sae in (250, 1000):
            of = {"normalize": arm, "d_sae": d_sae}
            a, b = (of | {"num_samples": n, "epochs": e} for n, e in ((3000, 50), (5978, 25)))
            for column in ("fvu", "dead_fraction"):
                name = f"{arm}: {column}, d {d_sae}, n 3000 to 5978"
                yield Comparison(name, "size", column, a, b)


def _of_thoughts() -> Iterator[Comparison]:
    """What centering changes of the answer where a thought is reconstructed."""
    for position in range(6):
        a, b = ({"normalize": arm, "position": position} for arm in ("none", "center"))
        name = f"centering: change of the answer, thought {position}"
        yield Comparison(name, "loss_recovered", "change_sae", a, b)


COMPARISONS = (
    *_within_arms(),
    *_between_arms(),
    *_against_baselines(),
    *_on_made_samples(),
    *_of_sizes(),
    *_of_thoughts(),
)
"""Every comparison of the document."""


class Verdicts:
    """Outcomes of comparisons, as the document says them."""

    def __init__(self, tables: Tables, outcomes: Mapping[str, Outcome]):
        self._tables, self._outcomes = tables, outcomes
        self._column = {c.name: c.column for c in COMPARISONS}

    @property
    def count(self) -> int:
        """Number of comparisons."""
        return len(self._outcomes)

    def difference(self, name: str) -> str:
        """A difference with its interval and adjusted p-value."""
        outcome, column = self._outcomes[name], self._column[name]
        scale, digits = (1, _PLAIN[column]) if column in _PLAIN else (100, 1)
        unit = "" if column in _PLAIN else " points"
        text = with_interval(outcome.difference, scale, digits, sign="+")
        return f"{text}{unit} ({_q(outcome.q)})"

    def says(self, name: str, more: str, less: str, neither: str) -> str:
        """The words for what was found: that it grows, that it falls, or that neither is told."""
        outcome = self._outcomes[name]
        if not outcome.significant:
            return neither
        return more if outcome.difference.mean > 0 else less

    def critical_k(self, arm: str) -> str:
        """The least K tested at the central d with under 1 % of the latents dead."""
        of = {"normalize": arm, "d_sae": CENTRAL["d_sae"]}
        tested = sorted({row["k"] for row in self._tables.rows("grid", of)})
        dead = {k: self._tables.summary("grid", "dead_fraction", k=k, **of).mean for k in tested}
        return f"{next(k for k in tested if dead[k] < _HARDLY_ANY):.0f}"

    def critical_ks(self, arm: str) -> str:
        """On how many slices of the map each K is the least tested with under 1 % dead."""
        rows = self._tables.rows("map", {"normalize": arm, "d_sae": CENTRAL["d_sae"]})
        least: dict[tuple[float, float], float] = {}
        for row in sorted(rows, key=lambda row: row["k"]):
            if row["dead_fraction"] < _HARDLY_ANY:
                least.setdefault((row["layer"], row["position"]), row["k"])
        counts = Counter(least.values())
        found = [f"K = {k:.0f} on {counts[k]}" for k in sorted(counts)]
        if none := len({(row["layer"], row["position"]) for row in rows}) - len(least):
            found.append(f"none tested on {none}")
        return ", ".join(found)

    def pairs(self, table: str, column: str) -> tuple[int, int]:
        """In how many of all pairs of members a column is smaller centered than raw."""
        arms: dict[str, dict[tuple[float, ...], float]] = {"none": {}, "center": {}}
        for row in self._tables[table]:
            setting = tuple(row[name] for name in ("layer", "position", "k", "d_sae"))
            arms[row["normalize"]][setting] = row[column]
        raw, centered = arms["none"], arms["center"]
        return sum(centered[setting] < raw[setting] for setting in raw), len(raw)

    def rank_correlation(self, table: str, column: str, **match: Any) -> str:
        """Spearman's correlation of a column with the offset severity, over slices."""
        rows = self._tables.rows(table, match)
        columns = ([row[name] for row in rows] for name in ("offset_severity", column, "layer"))
        rho, low, high = rank_correlation(*columns)
        return f"{rho:.2f} [{low:.2f}, {high:.2f}]"

    def table(self) -> str:
        """All comparisons, in Markdown."""
        lines = [
            [name, self.difference(name).partition(" (")[0], f"{outcome.q:.2g}"]
            for name, outcome in self._outcomes.items()
        ]
        return markdown_table(["comparison", "difference", "adjusted p"], lines)


def _q(q: float) -> str:
    return "p < 0.001" if q < 0.001 else f"p = {q:.2g}"
