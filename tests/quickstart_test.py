"""The quickstart notebook runs from its first cell to its last, and its page shows the answer."""

import json
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).resolve().parents[1] / "docs" / "quickstart.ipynb"


def test_the_notebook_leads_from_activations_to_a_page(tmp_path, monkeypatch):
    nbformat = pytest.importorskip("nbformat", reason="nbclient is not installed")
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed")
    # The kernel imports the package under test, wherever it starts.
    monkeypatch.setenv("PYTHONPATH", str(NOTEBOOK.parents[1]))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(cells) == 10
    assert not any(cell.outputs for cell in cells)
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=600, resources=resources).execute()
    assert (tmp_path / "quickstart" / "page.html").stat().st_size > 500_000
    # The planted direction is found: some latents divide, and none by chance.
    manifest = json.loads((tmp_path / "quickstart" / "sweep" / "sweep.json").read_text())
    assert len(manifest["members"]) == 24
    table = next(
        output.data["text/markdown"]
        for cell in notebook.cells
        for output in cell.get("outputs", ())
        if "text/markdown" in output.get("data", {})
    )
    assert table.startswith("| K | d | architecture | seeds |")
