"""Figures of a scored sweep."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sae_jax.statistics import summarize_rows
from sae_jax.sweep.result import Member, SweepResult

Rows = Sequence[Mapping[str, Any]]

PANELS = {
    "explained_variance": "explained variance [%]",
    "dead_fraction": "dead latents [%]",
    "published_rate": "specialized, published rule [%]",
    "calibrated_rate_supported": "specialized, calibrated rule [%]",
}
"""Columns to draw, all of them shares, and what their axes say."""


def plot_against_size(rows: Rows, path: Path) -> None:
    """Draws each panel against d_sae, one line a k, with 95 % intervals over seeds."""
    _plot_panels(rows, "d_sae", "k", "dictionary size d", path)


def plot_against_sparsity(rows: Rows, path: Path) -> None:
    """Draws each panel against k, one line a d_sae, with 95 % intervals over seeds."""
    _plot_panels(rows, "k", "d_sae", "latents kept K", path)


def plot_firing_rates(result: SweepResult, path: Path) -> None:
    """Draws firing rate against rank for one seed of each config."""
    figure, axes = _figure(1)
    first_seed: dict[tuple[int, int], Member] = {}
    for member in result.members:
        first_seed.setdefault((member.config.k, member.config.d_sae), member)
    colors = matplotlib.colormaps["viridis"](np.linspace(0, 0.92, len(first_seed)))
    for member, color in zip(first_seed.values(), colors, strict=True):
        rates = np.sort(member.firing_rate)[::-1]
        rates = rates[rates > 0]
        label = f"K = {member.config.k}, d = {member.config.d_sae}"
        axes[0].plot(np.arange(1, len(rates) + 1), rates, label=label, color=color, linewidth=1.2)
    axes[0].set(xscale="log", yscale="log", xlabel="rank", ylabel="firing rate")
    axes[0].legend(fontsize="x-small", ncols=2)
    figure.savefig(path)


def _plot_panels(rows: Rows, x_name: str, line_name: str, x_label: str, path: Path) -> None:
    figure, axes = _figure(len(PANELS))
    summaries = summarize_rows(rows, list(PANELS), by=(line_name, x_name))
    lines = sorted({row[line_name] for row in summaries})
    colors = matplotlib.colormaps["viridis"](np.linspace(0, 0.92, len(lines)))
    for axis, (column, label) in zip(axes, PANELS.items(), strict=True):
        for line, color in zip(lines, colors, strict=True):
            points = sorted(
                (row for row in summaries if row[line_name] == line), key=lambda row: row[x_name]
            )
            axis.errorbar(
                [row[x_name] for row in points],
                [100 * row[column].mean for row in points],
                # One seed has no interval.
                yerr=[100 * np.nan_to_num(row[column].half_width) for row in points],
                label=f"{'K' if line_name == 'k' else 'd'} = {line}",
                color=color,
                marker="o",
                markersize=4,
                linewidth=1.2,
                capsize=2,
            )
        axis.set(xlabel=x_label, ylabel=label)
    axes[0].legend(fontsize="small", ncols=2)
    figure.savefig(path)


def _figure(num_panels: int) -> tuple[Figure, list[Axes]]:
    """A figure of its own, outside pyplot's global state."""
    num_columns = min(2, num_panels)
    num_rows = -(-num_panels // num_columns)
    figure = Figure(figsize=(5.5 * num_columns, 3.8 * num_rows), dpi=150, layout="constrained")
    axes = figure.subplots(num_rows, num_columns, squeeze=False)
    for axis in axes.flat:
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, list(axes.flat)
