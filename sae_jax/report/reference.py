"""The published experiment: its grid, its table and its claims, which a sweep puts to the test.

Source: the public repository GusSand/CoT_Exploration (2025), report of 2025-10-27. It has one
seed of each setting on LLaMA-3.2-1B with CODI, layer 14, position 3, GSM8K validation split.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from sae_jax import configs
from sae_jax.configs import SAEConfig
from sae_jax.report.statistics import Rows, Summary, compare_rows, rows_of_setting, summarize

GRID = {
    25: (512,),
    50: (100, 150, 250, 512, 750, 1000),
    75: (375, 512),
    100: (300, 512, 750),
    200: (512, 1000),
}
"""Dictionary sizes by k: those that were published, and those of the open questions."""

RESULTS = {
    (50, 250): {"explained_variance": 0.844, "dead_fraction": 0.172, "published_rate": 8 / 108},
    (50, 512): {"explained_variance": 0.8492, "dead_fraction": 0.320, "published_rate": 29 / 149},
    (75, 512): {"explained_variance": 0.8679, "dead_fraction": 0.111, "published_rate": 30 / 156},
    (100, 512): {"explained_variance": 0.8783, "dead_fraction": 0.0, "published_rate": 5 / 109},
    (200, 512): {"explained_variance": 0.9018, "dead_fraction": 0.0, "published_rate": 0.0},
}
"""Published values by (k, d_sae). The published rate is over the rarer ranks alone."""


def grid(
    num_seeds: int, normalize: Sequence[str] = ("none",), *, vary_order: bool = False
) -> list[SAEConfig]:
    """The configs of `GRID`, each with the seeds 0 to `num_seeds` - 1.

    Args:
      num_seeds: number of seeds.
      normalize: arms, as `SAEConfig.normalize`; the published one is `"none"`.
      vary_order: whether a seed is that of the order of the samples too.
    """
    members = [
        config
        for arm in normalize
        for k, sizes in GRID.items()
        for config in configs.grid(normalize=arm, d_sae=sizes, k=k, seed=range(num_seeds))
    ]
    if not vary_order:
        return members
    return [dataclasses.replace(config, data_seed=config.seed) for config in members]


def claims(rows: Rows) -> list[str]:
    """The published claims (a) to (d), each with what this sweep measures.

    Args:
      rows: one row for each member, as `score_features` gives, of a sweep of one data slice over
        `GRID`.

    Returns:
      One line of Markdown for each claim, in each arm if there are several. Intervals are 95 % of
      Student's t over seeds; differences are paired by seed.
    """
    arms = list(dict.fromkeys(row.get("normalize") for row in rows))
    if len(arms) > 1:
        return [
            f"normalize = {arm}: {claim}"
            for arm in arms
            for claim in claims([row for row in rows if row["normalize"] == arm])
        ]

    def dead(d_sae: int, k: int) -> str:
        members = rows_of_setting(rows, {"d_sae": d_sae, "k": k})
        return percent(summarize([row["dead_fraction"] for row in members]))

    def difference(column: str) -> str:
        summary = compare_rows(rows, column, {"d_sae": 250, "k": 50}, {"d_sae": 512, "k": 50})
        return f"{with_interval(summary, 100, 2, sign='+')} points"

    return [
        "(a) *d = 5K does not remove dead latents at K = 50*: "
        f"at d = 250, {dead(250, 50)} of the latents are dead.",
        "(b) *Death needs K below about 100*: dead at d = 512: "
        + ", ".join(f"K = {k} {dead(512, k)}" for k, sizes in GRID.items() if 512 in sizes)
        + ".",
        "(c) *Oversized dictionaries raise specialization* (K = 50, d = 512 minus d = 250): "
        f"published rule over alive latents {difference('published_rate')}, over those that"
        f" fire on 5 or more samples {difference('published_rate_supported')}; calibrated"
        f" rule over the latter {difference('calibrated_rate_supported')}.",
        "(d) *Explained variance hardly depends on d* (K = 50, d = 512 minus d = 250): "
        f"published definition {difference('explained_variance')}, fvu {difference('fvu')}.",
    ]


def with_interval(summary: Summary, scale: float, digits: int, sign: str = "") -> str:
    """A mean, its interval if it has one, and the number of its seeds if some are missing."""
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
