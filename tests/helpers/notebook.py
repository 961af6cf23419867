"""Runs docs/tutorial.ipynb from top to bottom. As a program it also stores the outputs in the file."""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import nbformat
from nbclient import NotebookClient

from helpers.paths import ROOT

NOTEBOOK = ROOT / "docs" / "tutorial.ipynb"
# The addresses of objects, which differ in each run.
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def stored_notebook() -> nbformat.NotebookNode:
    """The notebook as its file has it."""
    return nbformat.read(NOTEBOOK, as_version=4)


def run_notebook(folder: Path) -> nbformat.NotebookNode:
    """The notebook with the outputs of a run in a folder.

    Raises:
        nbclient.exceptions.CellExecutionError: A cell raised an error.
    """
    client = NotebookClient(stored_notebook(), timeout=600, kernel_name="python3", record_timing=False)
    return client.execute(cwd=str(folder))


def texts(notebook: nbformat.NotebookNode) -> list[str]:
    """The outputs of each cell of code, as plain text without addresses."""
    cells = (cell for cell in notebook.cells if cell.cell_type == "code")
    return [_ADDRESS.sub("", "\n".join(map(_plain, cell.outputs))) for cell in cells]


def _plain(output: nbformat.NotebookNode) -> str:
    return str(output.get("text") or output.get("data", {}).get("text/plain", ""))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        nbformat.write(run_notebook(Path(made)), NOTEBOOK)
