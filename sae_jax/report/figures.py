"""Figures of a scored sweep."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sae_jax.configs import SAEConfig
from sae_jax.report.statistics import Rows, shown_fields, summarize_rows
from sae_jax.sweep.result import Member, SweepResult

PANELS = {
    "explained_variance": "explained variance [%]",
    "dead_fraction": "dead latents [%]",
    "published_rate": "specialized, published rule [%]",
    "calibrated_rate_supported": "specialized, calibrated rule [%]",
}
"""Columns to draw, all of them shares, and the labels of their axes."""

X_LABELS = {"d_sae": "dictionary size d", "k": "latents kept K"}


def plot_panels(rows: Rows, x_name: str, path: Path) -> None:
    """Draws the columns of `PANELS` against d_sae or k, with 95 % intervals over seeds.

    Args:
      rows: one row for each member, as `score_features` gives.
      x_name: `d_sae` or `k`. Settings that differ in anything else are different lines.
      path: the file to write.
    """
    figure, axes = _figure(len(PANELS))
    fields = [name for name in shown_fields(rows) if name != x_name]
    lines: dict[str, list[Mapping[str, Any]]] = {}
    summaries = summarize_rows(rows, list(PANELS))
    for row in sorted(summaries, key=lambda row: (row[fields[0]], row[x_name])):
        lines.setdefault(_label(row, fields), []).append(row)
    for axis, (column, label) in zip(axes, PANELS.items(), strict=True):
        for (line, points), color in zip(lines.items(), _colors(len(lines)), strict=True):
            axis.errorbar(
                [row[x_name] for row in points],
                [100 * row[column].mean for row in points],
                # One seed has no interval.
                yerr=[100 * np.nan_to_num(row[column].half_width) for row in points],
                label=line,
                color=color,
                marker="o",
                markersize=4,
                linewidth=1.2,
                capsize=2,
            )
        axis.set(xlabel=X_LABELS[x_name], ylabel=label)
    axes[0].legend(fontsize="small", ncols=2)
    figure.savefig(path)


def plot_firing_rates(result: SweepResult, path: Path) -> None:
    """Draws firing rate against rank for the first seed of each setting that did not diverge."""
    figure, axes = _figure(1)
    first_seed: dict[SAEConfig, Member] = {}
    for member in result.members:
        if member.diverged_at is None:
            first_seed.setdefault(member.config.setting, member)
    fields = shown_fields(result.table())
    colors = _colors(len(first_seed))
    for (setting, member), color in zip(first_seed.items(), colors, strict=True):
        rates = np.sort(member.firing_rate)[::-1]
        rates = rates[rates > 0]
        label = _label(dataclasses.asdict(setting), fields)
        axes[0].plot(np.arange(1, len(rates) + 1), rates, label=label, color=color, linewidth=1.2)
    axes[0].set(xscale="log", yscale="log", xlabel="rank", ylabel="firing rate")
    if first_seed:
        axes[0].legend(fontsize="x-small", ncols=2)
    figure.savefig(path)


def _label(row: Mapping[str, Any], fields: Sequence[str]) -> str:
    names = {"k": "K", "d_sae": "d", "learning_rate": "learning rate"}
    return ", ".join(f"{names.get(name, name)} = {row[name]}" for name in fields)


def _colors(count: int) -> np.ndarray:
    return matplotlib.colormaps["viridis"](np.linspace(0, 0.92, count))


def _figure(num_panels: int) -> tuple[Figure, list[Axes]]:
    """A figure with panels in two columns, outside pyplot's global state."""
    num_columns = min(2, num_panels)
    num_rows = -(-num_panels // num_columns)
    figure = Figure(figsize=(5.5 * num_columns, 3.8 * num_rows), dpi=150, layout="constrained")
    axes = figure.subplots(num_rows, num_columns, squeeze=False)
    for axis in axes.flat:
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, list(axes.flat)
