"""What does the study say? Makes its document, with tables and figures, from its tables.

    python experiments/study_report.py      (or `make study`)

Reads the CSVs of `experiments/results/dictionary_scaling/`, and writes docs/dictionary_scaling.md,
from the text beside it in which numbers are named and not written, and its figures. With
--tables=RUN/tables the tables of a run of study.py are taken over first.
"""

import shutil
from pathlib import Path

import command
import jinja2
from absl import flags
from paper import figures
from paper.comparisons import outcomes
from paper.tables import Tables
from paper.verdicts import COMPARISONS, Verdicts

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "experiments" / "results" / "dictionary_scaling"
TEXT = ROOT / "docs" / "dictionary_scaling.md.j2"

_TABLES = flags.DEFINE_string("tables", None, "Folder of tables to take over first.")


def work() -> None:
    """Takes tables over, renders the document and draws."""
    if _TABLES.value:
        RESULTS.mkdir(parents=True, exist_ok=True)
        for path in sorted(Path(_TABLES.value).glob("*.csv")):
            shutil.copy(path, RESULTS / path.name)
    tables = Tables(RESULTS)
    TEXT.with_suffix("").write_text(rendered(tables), encoding="utf-8")
    figures.draw(tables, TEXT.parent / "dictionary_scaling")


def rendered(tables: Tables) -> str:
    """The document, its numbers put in."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEXT.parent),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        # The document is Markdown, read from files of this repository alone.
        autoescape=False,  # noqa: S701
    )
    verdicts = Verdicts(tables, outcomes(tables, COMPARISONS))
    return environment.get_template(TEXT.name).render(t=tables, v=verdicts)


if __name__ == "__main__":
    command.start(work)
