"""What the page shows of a sweep as a whole."""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from sae_jax.configs import SAEConfig
from sae_jax.features.matching import best_cosine_by_chance
from sae_jax.report.dashboard.glossary import CHANCE, glossary
from sae_jax.report.dashboard.pack import numbers
from sae_jax.report.statistics import Rows, by_setting, shown_fields, summarize_rows
from sae_jax.sweep.result import Member, SweepResult

# Points of a loss curve: as many as can be told apart in a plot.
NUM_CURVE_POINTS = 60
STABILITY_BY_CHANCE = "stability_by_chance"


def overview(result: SweepResult, rows: Rows) -> dict[str, Any]:
    """Columns of the table, settings with intervals and chance levels, and loss curves.

    Args:
      result: the sweep.
      rows: one row for each member, as `score_features` or `result.table` give.
    """
    fields = [field.name for field in dataclasses.fields(SAEConfig)]
    names = [*fields, *(name for name in rows[0] if name not in fields)]
    measured = [
        name
        for name in names
        if name not in fields and any(isinstance(row[name], int | float) for row in rows)
    ]
    indices = {id(row): i for i, row in enumerate(rows)}
    settings = [
        {
            "members": [indices[id(row)] for row in members],
            "fields": {name: _plain(members[0][name]) for name in shown_fields(rows)},
            "summaries": {
                # Mean, half the interval's width, and the number of seeds.
                name: numbers([*summary[name][:2], summary[name].num_values])
                for name in measured
            },
            STABILITY_BY_CHANCE: numbers(
                [_stability_by_chance(result, [indices[id(row)] for row in members])]
            )[0],
        }
        for members, summary in zip(by_setting(rows), summarize_rows(rows, measured), strict=True)
    ]
    return {
        "columns": {name: numbers([_plain(row[name]) for row in rows], digits=6) for name in names},
        "fields": fields,
        "shown_fields": shown_fields(rows),
        "settings": settings,
        "chance": CHANCE,
        "glossary": glossary(names),
        "curves": [loss_curve(member.losses) for member in result.members],
        "train_config": dataclasses.asdict(result.train_config),
    }


def loss_curve(losses: np.ndarray) -> list[list[Any]]:
    """Last step of each bin and the mean loss in it, of bins that grow with the step.

    Args:
      losses: loss of every step, `[num_steps]`.

    Returns:
      Steps, counted from 1, and means; `None` where a loss of the bin is not finite.
    """
    if not len(losses):
        return [[], []]
    ends = np.unique(np.geomspace(1, len(losses), NUM_CURVE_POINTS).round().astype(int))
    with np.errstate(invalid="ignore", over="ignore"):
        means = np.add.reduceat(losses.astype(np.float64), [0, *ends[:-1]])
    return [ends.tolist(), numbers(means / np.diff([0, *ends]))]


def _stability_by_chance(result: SweepResult, members: Sequence[int]) -> float:
    """Stability that as many random directions as the members have alive latents would have."""
    trained = [result.members[i] for i in members if result.members[i].diverged_at is None]
    if len(trained) < 2:
        return float("nan")
    alive = round(float(np.mean([(member.firing_rate > 0).sum() for member in trained])))
    return best_cosine_by_chance(alive, _d_out(trained[0]))


def _d_out(member: Member) -> int:
    return int(member.params["b_dec"].shape[0])


def _plain(value: Any) -> Any:
    """A value that a cell can show: tuples as text."""
    return json.dumps(value) if isinstance(value, tuple | list) else value
