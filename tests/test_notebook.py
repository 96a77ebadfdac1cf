"""The notebook runs, cell by cell: with a tiny model, and with the default model it was written for."""

from __future__ import annotations

from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[1] / "docs" / "notebooks" / "first_look.ipynb"


def run_notebook(monkeypatch, model: str | None) -> list:
    """The cells after running them all; `model` in the default model's place."""
    nbclient = pytest.importorskip("nbclient", reason="needs nbclient and ipykernel, which need Python 3.11")
    nbformat = pytest.importorskip("nbformat")
    monkeypatch.setenv("PYTHONPATH", str(NOTEBOOK.parents[2] / "src"))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    if model is not None:
        for cell in notebook.cells:
            cell.source = cell.source.replace('"default"', repr(model))
    nbclient.NotebookClient(notebook, timeout=500, kernel_name="python3").execute()  # an error of a cell is raised
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


@pytest.mark.slow
def test_the_notebook_runs(folder, monkeypatch):
    cells = run_notebook(monkeypatch, folder)
    assert any("text/html" in output.get("data", {}) for cell in cells for output in cell.outputs)


@pytest.mark.slow
@pytest.mark.model
def test_the_notebook_runs_with_the_default_model(monkeypatch):
    cells = run_notebook(monkeypatch, None)
    printed = "".join(output.get("text", "") for output in cells[-1].outputs)
    assert [line.split()[0] for line in printed.splitlines()] == ["own", "filler", "donor"]


def test_the_notebook_holds_no_output():
    assert '"outputs": []' in NOTEBOOK.read_text(encoding="utf-8")
    assert '"output_type"' not in NOTEBOOK.read_text(encoding="utf-8")
