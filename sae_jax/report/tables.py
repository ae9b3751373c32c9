"""Tables of a scored sweep: CSV for programs, Markdown for people."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sae_jax.report import published
from sae_jax.report.published import percent
from sae_jax.statistics import summarize_rows

Rows = Sequence[Mapping[str, Any]]

SUMMARIZED = (
    "explained_variance",
    "fvu",
    "mse",
    "dead_fraction",
    "published_rate",
    "published_null",
    "num_singletons",
    "calibrated_rate_supported",
    "calibrated_null",
    "feature_stability",
)

SINGLETON_NOTE = (
    "The published rule labels a latent by the texts of its top samples, and calls 97 % of"
    " single GSM8K problems specialized: its rate largely counts latents that fire on one"
    " sample (the singletons). The calibrated rule tests all samples, corrects for the"
    " number of tests and asks for 5 samples; its null is the same rate after shuffling the"
    " problems. Intervals are 95 % of Student's t over seeds."
)


def write_csv(rows: Rows, path: Path) -> None:
    """Writes one line a member, with a header."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def summary_table(rows: Rows) -> str:
    """Markdown table of means over seeds with intervals, one line a (k, d_sae).

    Args:
      rows: one a member, as `score_features` gives.
    """
    lines = [
        "| K | d | seeds | EV % | fvu % | MSE | dead % | published rule % | its null % |"
        " singletons | calibrated rule % | its null % | stability |",
        "|" + "---|" * 13,
    ]
    for row in summarize_rows(rows, SUMMARIZED, by=("k", "d_sae")):
        cells = [str(row["k"]), str(row["d_sae"]), str(row["mse"].num_values)]
        cells += [_cell(row[name], 100, 2) for name in ("explained_variance", "fvu")]
        cells += [_cell(row["mse"], 1, 3), _cell(row["dead_fraction"], 100, 1)]
        cells += [_cell(row[name], 100, 1) for name in ("published_rate", "published_null")]
        cells += [_cell(row["num_singletons"], 1, 1)]
        cells += [
            _cell(row[name], 100, 1) for name in ("calibrated_rate_supported", "calibrated_null")
        ]
        cells += [_cell(row["feature_stability"], 1, 3)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def comparison_table(rows: Rows) -> str:
    """Markdown table of this sweep beside the published one, where both have the config."""
    columns = ("explained_variance", "dead_fraction", "published_rate_rarer_half")
    lines = [
        "| K | d | EV here | EV published | dead here | dead published |"
        " specialized here | specialized published |",
        "|" + "---|" * 8,
    ]
    for row in summarize_rows(rows, columns, by=("k", "d_sae")):
        there = published.RESULTS.get((row["k"], row["d_sae"]))
        if there is None:
            continue
        values = (there["explained_variance"], there["dead_fraction"], there["published_rate"])
        cells = [str(row["k"]), str(row["d_sae"])]
        for name, value in zip(columns, values, strict=True):
            cells += [percent(row[name]), f"{100 * value:.1f} %"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def write_markdown(rows: Rows, description: str, path: Path) -> None:
    """Writes the tables and the published claims as one page.

    Args:
      rows: one a member, as `score_features` gives, of a sweep over `published.GRID`.
      description: a paragraph that says what was trained on what.
      path: where to.
    """
    path.write_text(
        "\n\n".join(
            [
                "# Dictionary scaling",
                description,
                "## Results",
                summary_table(rows),
                SINGLETON_NOTE,
                "## Beside the published experiment",
                "Published: LLaMA-3.2-1B with CODI, one seed; its specialized share is over the"
                " rarer ranks, here over the rarer half of the alive latents. Another model"
                " or data set gives other values; what can be compared is how they move.",
                comparison_table(rows),
                "## The published claims",
                "\n".join(f"- {claim}" for claim in published.claims(rows)),
            ]
        )
        + "\n",
        encoding="utf-8",
    )


def _cell(summary: Any, scale: float, digits: int) -> str:
    mean = f"{scale * summary.mean:.{digits}f}"
    if summary.num_values == 1:
        return mean
    return f"{mean} ± {scale * summary.half_width:.{digits}f}"
