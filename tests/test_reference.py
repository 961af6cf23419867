"""The reference pages: they are equal to what the code makes, and the Python examples print what they show."""

from __future__ import annotations

import contextlib
import io
import re
import shutil
from functools import partial
from pathlib import Path

import lm_eval.evaluator
import pytest
from lm_eval.tasks import TaskManager

import lm_eval_aft
from helpers import reference
from helpers.paths import ROOT

PAGES = reference.pages()
EXAMPLE = re.compile(r"^```python\n(.*?)^```$(?:\n\n^```text\n(.*?)^```$)?", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_a_committed_page_is_what_the_code_makes(path: Path):
    assert path.read_text(encoding="utf-8") == PAGES[path], "run: make reference"


FEW = """
from itertools import islice

from datasets import Dataset, DatasetDict

from lm_eval_aft.bundled.arith import problems


def dataset(**_):
    rows = [{"question": problem.question} for problem, _ in islice(problems("test", 0), 40)]
    return DatasetDict({"test": Dataset.from_list(rows)})
"""


@pytest.fixture
def first_problems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first 40 problems of aft_arith, since lm-eval would make all 5,000 for each run, and list all its tasks."""
    folder = tmp_path / "tasks"
    shutil.copytree(lm_eval_aft.tasks_path() / "aft_arith", folder)
    (folder / "few.py").write_text(FEW)
    task = folder / "aft_arith.yaml"
    task.write_text(task.read_text().replace("utils.dataset", "few.dataset"))
    manager = partial(TaskManager, include_path=str(folder), include_defaults=False)
    monkeypatch.setattr(lm_eval.evaluator, "TaskManager", manager)


@pytest.mark.usefixtures("first_problems", "quick_lm_eval")
def test_the_python_examples_print_what_the_page_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    examples = EXAMPLE.findall((ROOT / "docs" / "reference" / "python.md").read_text(encoding="utf-8"))
    assert len(examples) == 10
    for code, output in examples:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, "python.md", "exec"), names)
        assert printed.getvalue() == output, code
