"""What does the study say? Makes its document, with tables and figures, from its tables.

    python experiments/study_report.py      (or `make study`)

Reads the CSVs of `experiments/results/dictionary_scaling/`, and writes docs/dictionary_scaling.md,
from the text beside it in which numbers are named and not written, and its figures. With
--tables=RUN/tables the tables of a run of study.py are taken over first.
"""

import shutil
from pathlib import Path

import command
from absl import flags
from paper import figures
from paper.document import DOCUMENT, RESULTS, rendered
from paper.tables import Tables

_TABLES = flags.DEFINE_string("tables", None, "Folder of tables to take over first.")


def work() -> None:
    """Takes tables over, renders the document and draws."""
    if _TABLES.value:
        RESULTS.mkdir(parents=True, exist_ok=True)
        for path in sorted(Path(_TABLES.value).glob("*.csv")):
            shutil.copy(path, RESULTS / path.name)
    tables = Tables(RESULTS)
    DOCUMENT.write_text(rendered(tables), encoding="utf-8")
    figures.draw(tables, DOCUMENT.with_suffix(""))


if __name__ == "__main__":
    command.start(work)
