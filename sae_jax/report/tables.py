"""Tables of a scored sweep: CSV and Parquet for programs, Markdown for people."""

import csv
from pathlib import Path

from sae_jax.markdown import markdown_table
from sae_jax.report import reference
from sae_jax.report.reference import percent, with_interval
from sae_jax.report.statistics import Rows, by_setting, shown_fields, summarize_rows

# Scored columns: their titles in a table, and the factor and digits of their numbers.
SUMMARIZED = {
    "explained_variance": ("EV %", 100, 2),
    "fvu": ("fvu %", 100, 2),
    "mse": ("MSE", 1, 3),
    "dead_fraction": ("dead %", 100, 1),
    "published_rate": ("published rule %", 100, 1),
    "published_null": ("its null %", 100, 1),
    "num_singletons": ("singletons", 1, 1),
    "calibrated_rate_supported": ("calibrated rule %", 100, 1),
    "calibrated_null": ("its null %", 100, 1),
    "feature_stability": ("stability", 1, 3),
}

# Titles of the setting's fields in a table; a field that is not here keeps its name.
FIELD_NAMES = {"k": "K", "d_sae": "d"}

SINGLETON_NOTE = (
    "The published rule labels a latent by the texts of its top samples, and calls 97 % of"
    " single GSM8K problems specialized: its rate largely counts latents that fire on one"
    " sample (the singletons). The calibrated rule tests all samples, corrects for the"
    " number of tests and asks for 5 samples; its null is the same rate after shuffling the"
    " problems."
)


def write_csv(rows: Rows, path: Path) -> None:
    """Writes a header and one line for each row; an empty file if there are no rows."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]) if rows else [])
        if rows:
            writer.writeheader()
        writer.writerows(rows)


def write_parquet(rows: Rows, path: Path) -> None:
    """Writes the rows as one Parquet table, which keeps numbers, truths and missing values.

    A column that holds words beside numbers, as positions may, becomes one of words.

    Raises:
      ValueError: if there are no rows, and therefore no columns.
    """
    # Of the report extra, and large.
    import pyarrow
    from pyarrow import parquet

    if not rows:
        raise ValueError("there are no rows to write; expected one for each member")
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    for name, values in columns.items():
        if len({isinstance(value, str) for value in values if value is not None}) > 1:
            columns[name] = [None if value is None else str(value) for value in values]
    parquet.write_table(pyarrow.table(columns), path)


def summary_table(rows: Rows) -> str:
    """Markdown table of means over seeds with intervals, one line for each setting.

    A mean over fewer seeds than the setting has says how many they are.

    Args:
      rows: one row for each member, as `score_features` gives.
    """
    fields = shown_fields(rows)
    header = [FIELD_NAMES.get(name, name) for name in fields] + ["seeds"]
    header += [title for title, _, _ in SUMMARIZED.values()]
    lines = []
    for members, row in zip(by_setting(rows), summarize_rows(rows, list(SUMMARIZED)), strict=True):
        cells = [str(row[name]) for name in fields] + [_seeds(members)]
        cells += [
            with_interval(row[name], scale, digits)
            for name, (_, scale, digits) in SUMMARIZED.items()
        ]
        lines.append(cells)
    return markdown_table(header, lines)


def comparison_table(rows: Rows) -> str:
    """Markdown table of the settings that this sweep and the published one have in common."""
    columns = ("explained_variance", "dead_fraction", "published_rate_rarer_half")
    fields = shown_fields(rows)
    header = [FIELD_NAMES.get(name, name) for name in fields]
    for title in ("EV", "dead", "specialized"):
        header += [f"{title} here", f"{title} published"]
    lines = []
    for row in summarize_rows(rows, columns):
        there = reference.RESULTS.get((row["k"], row["d_sae"]))
        if there is None:
            continue
        values = (there["explained_variance"], there["dead_fraction"], there["published_rate"])
        cells = [str(row[name]) for name in fields]
        for name, value in zip(columns, values, strict=True):
            cells += [percent(row[name]), f"{100 * value:.1f} %"]
        lines.append(cells)
    return markdown_table(header, lines)


def interval_note(rows: Rows) -> str:
    """A note on the tables' intervals: how they are computed, and what varies between seeds."""
    varies = " alone: all members saw the data in the same order"
    if any(len({row.get("data_seed") for row in members}) > 1 for members in by_setting(rows)):
        varies = " and the order of the data"
    return (
        "Intervals are 95 % of Student's t over seeds; that of stability, which compares every"
        " pair of seeds, is a jackknife over three seeds or more. A seed varies the"
        f" initialization{varies}."
    )


def write_markdown(rows: Rows, description: str, path: Path) -> None:
    """Writes the tables and the published claims as one page.

    Args:
      rows: one row for each member, as `score_features` gives, of a sweep over `reference.GRID`.
      description: a paragraph that says what was trained on which data.
      path: the file to write.
    """
    path.write_text(
        "\n\n".join(
            [
                "# Dictionary scaling",
                description,
                "## Results",
                summary_table(rows),
                interval_note(rows),
                SINGLETON_NOTE,
                "## Beside the published experiment",
                "Published: LLaMA-3.2-1B with CODI, one seed; its specialized share is over the"
                " rarer ranks, here over the rarer half of the alive latents. Another model"
                " or data set gives other values; what can be compared is how they move.",
                comparison_table(rows),
                "## The published claims",
                "\n".join(f"- {claim}" for claim in reference.claims(rows)),
            ]
        )
        + "\n",
        encoding="utf-8",
    )


def _seeds(members: Rows) -> str:
    """The number of seeds of a setting, and the step at which each that diverged did so."""
    diverged = [
        f"seed {row['seed']} diverged at step {row['diverged_at']}"
        for row in members
        if row.get("diverged_at") is not None
    ]
    return "; ".join([str(len(members)), *diverged])
