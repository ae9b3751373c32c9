"""The study's document: its text, in which numbers are named, with the numbers of its tables."""

from pathlib import Path

import jinja2

from paper.comparisons import outcomes
from paper.tables import Tables
from paper.verdicts import COMPARISONS, Verdicts

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "experiments" / "results" / "dictionary_scaling"
TEXT = ROOT / "docs" / "dictionary_scaling.md.j2"
DOCUMENT = TEXT.with_suffix("")


def rendered(tables: Tables) -> str:
    """The document, its numbers put in; sections of stages that were not run are left out."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEXT.parent),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        # The document is Markdown, made from files of this repository alone.
        autoescape=False,
    )
    verdicts = Verdicts(tables, outcomes(tables, COMPARISONS))
    return environment.get_template(TEXT.name).render(t=tables, v=verdicts)
