"""The published experiment: its grid, its table and its claims, put to the test.

Source: the public repository GusSand/CoT_Exploration (2025), report of 2025-10-27; one
seed each, LLaMA-3.2-1B with CODI, layer 14, position 3, GSM8K validation split.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sae_jax import configs
from sae_jax.configs import SAEConfig
from sae_jax.report.statistics import (
    PairedComparison,
    Summary,
    compare_rows,
    rows_of_setting,
    summarize,
)

Rows = Sequence[Mapping[str, Any]]

GRID = {
    25: (512,),
    50: (100, 150, 250, 512, 750, 1000),
    75: (375, 512),
    100: (300, 512, 750),
    200: (512, 1000),
}
"""Dictionary sizes by k: those published, and those that its open questions name."""

RESULTS = {
    (50, 250): {"explained_variance": 0.844, "dead_fraction": 0.172, "published_rate": 8 / 108},
    (50, 512): {"explained_variance": 0.8492, "dead_fraction": 0.320, "published_rate": 29 / 149},
    (75, 512): {"explained_variance": 0.8679, "dead_fraction": 0.111, "published_rate": 30 / 156},
    (100, 512): {"explained_variance": 0.8783, "dead_fraction": 0.0, "published_rate": 5 / 109},
    (200, 512): {"explained_variance": 0.9018, "dead_fraction": 0.0, "published_rate": 0.0},
}
"""Published values by (k, d_sae). Specialization is over the rarer ranks alone."""


def grid(num_seeds: int) -> list[SAEConfig]:
    """The members of `GRID`, each with seeds from 0."""
    return [
        config
        for k, sizes in GRID.items()
        for config in configs.grid(d_sae=sizes, k=k, seed=range(num_seeds))
    ]


def claims(rows: Rows) -> list[str]:
    """The published claims (a) to (d), each with what this sweep measures.

    Args:
      rows: one a member, as `score_features` gives, of a sweep of one data slice over `GRID`.

    Returns:
      One line of Markdown a claim. Intervals are 95 % of Student's t over seeds;
      differences are paired by seed.
    """
    death = {k: _summary(rows, "dead_fraction", 512, k) for k in (25, 50, 75, 100, 200)}
    death_250 = _summary(rows, "dead_fraction", 250, 50)
    explained = _compare(rows, "explained_variance", 250, 512)
    fvu = _compare(rows, "fvu", 250, 512)
    rates = {
        name: _compare(rows, name, 250, 512)
        for name in ("published_rate", "published_rate_supported", "calibrated_rate_supported")
    }
    return [
        "(a) *d = 5K does not remove dead latents at K = 50*: "
        f"at d = 250, {percent(death_250)} of the latents are dead.",
        "(b) *Death needs K below about 100*: dead at d = 512: "
        + ", ".join(f"K = {k} {percent(summary)}" for k, summary in death.items())
        + ".",
        "(c) *Oversized dictionaries raise specialization* (K = 50, d = 512 minus d = 250): "
        f"published rule over alive latents {points(rates['published_rate'])}, over those that"
        f" fire on 5 or more samples {points(rates['published_rate_supported'])}; calibrated"
        f" rule over the latter {points(rates['calibrated_rate_supported'])}.",
        "(d) *Explained variance hardly depends on d* (K = 50, d = 512 minus d = 250): "
        f"published definition {points(explained)}, fvu {points(fvu)}.",
    ]


def with_interval(summary: Summary, scale: float, digits: int, sign: str = "") -> str:
    """A mean with its interval where it has one, and how many of the seeds it is of."""
    if summary.num_values == 0:
        return "-"
    text = f"{scale * summary.mean:{sign}.{digits}f}"
    if np.isfinite(summary.half_width):
        text += f" ± {scale * summary.half_width:.{digits}f}"
    if summary.num_missing:
        text += f" ({summary.num_values} of {summary.num_values + summary.num_missing})"
    return text


def percent(summary: Summary) -> str:
    """A share as a percentage with its interval."""
    return f"{with_interval(summary, 100, 1)} %"


def points(comparison: PairedComparison) -> str:
    """A difference of shares in percentage points with its interval."""
    return f"{with_interval(comparison.difference, 100, 2, sign='+')} points"


def _summary(rows: Rows, column: str, d_sae: int, k: int) -> Summary:
    return summarize([row[column] for row in rows_of_setting(rows, {"d_sae": d_sae, "k": k})])


def _compare(rows: Rows, column: str, small: int, large: int, k: int = 50) -> PairedComparison:
    return compare_rows(rows, column, {"d_sae": small, "k": k}, {"d_sae": large, "k": k})
