"""docs/tutorial.ipynb runs from top to bottom, and the outputs in it are those of a run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

notebook = pytest.importorskip("helpers.notebook", reason="nbclient, of the extra dev, is not installed")
STORED = notebook.stored_notebook()


@pytest.mark.long
def test_a_run_gives_the_stored_outputs(tmp_path: Path):
    ran = notebook.run_notebook(tmp_path)
    assert notebook.texts(ran) == notebook.texts(STORED)
    assert [cell.execution_count for cell in ran.cells if cell.cell_type == "code"] == [1, 2, 3, 4, 5]


def test_the_stored_outputs_hold_one_figure_and_no_folder():
    outputs = [output for cell in STORED.cells if cell.cell_type == "code" for output in cell.outputs]
    assert [output.output_type for output in outputs].count("error") == 0
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 1
    written = notebook.NOTEBOOK.read_text(encoding="utf-8")
    assert not re.search(r"/(?:home|root|tmp|work|Users)/", written)
    assert len(written) < 100_000
