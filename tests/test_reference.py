"""The reference pages: they are equal to what the code makes, and the Python examples print what they show."""

from __future__ import annotations

import contextlib
import io
import json
import re
import sqlite3
from functools import partial
from pathlib import Path

import lm_eval.evaluator
import pytest
from lm_eval.tasks import TaskManager

import lm_eval_aft
from helpers import reference
from helpers.paths import ROOT
from lm_eval_aft.core import config
from lm_eval_aft.core.prompts import Template
from lm_eval_aft.judging.cache import JudgeCache
from lm_eval_aft.judging.mt_bench.replies import Judgement
from lm_eval_aft.model import AFTLM
from lm_eval_aft.storage.draft_store import SQLiteStore
from trainers.fitting.run import TrainingRun
from trainers.rows.result import DataResult
from trainers.rows.row import ALIGNED_KEYS
from trainers.settings import TrainConfig

PAGES = reference.pages()
EXAMPLE = re.compile(r"^```python\n(.*?)^```$(?:\n\n^```text\n(.*?)^```$)?", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_a_committed_page_is_what_the_code_makes(path: Path):
    assert path.read_text(encoding="utf-8") == PAGES[path], "run: make reference"


FILES = (ROOT / "docs" / "reference" / "files.md").read_text(encoding="utf-8")
OLD = ROOT / "tests" / "fixtures" / "version_0_1_0"


@pytest.fixture
def few_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Our tasks alone, since lm-eval would list all of its own for each run."""
    manager = partial(TaskManager, include_path=str(lm_eval_aft.tasks_path()), include_defaults=False)
    monkeypatch.setattr(lm_eval.evaluator, "TaskManager", manager)


@pytest.mark.usefixtures("few_tasks", "quick_lm_eval")
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


def fields_after(phrase: str) -> set[str]:
    """The names in the first table behind a phrase of the page of files."""
    _, found, rest = FILES.partition(phrase)
    assert found, phrase
    table = rest[rest.index("|---|") :].partition("\n\n")[0]
    return set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE))


def test_config_aft_is_listed():
    ours = AFTLM(engine="scripted", k=2, layers=1).get_model_info()["aft"]
    assert ours.keys() - set(config.names()) == fields_after("`config.aft`:") - {"grade_drafts", "template"}


@pytest.mark.parametrize(
    ("phrase", "make"),
    [("table `generations`", SQLiteStore), ("table `judgements`", JudgeCache)],
    ids=["draft store", "cache of judgements"],
)
def test_columns_are_listed(tmp_path: Path, phrase: str, make):
    make(tmp_path / "a.sqlite")
    table = phrase.split("`")[1]
    with contextlib.closing(sqlite3.connect(tmp_path / "a.sqlite")) as db:
        columns = {name for _, name, *_ in db.execute(f"PRAGMA table_info({table})")}
    assert columns == fields_after(phrase)


def test_files_of_a_training_run_are_listed(tmp_path: Path):
    run = TrainingRun("sft", TrainConfig(output=str(tmp_path)), "", Template.load(None), 1)
    run.write_state(finished=False)
    assert json.loads((tmp_path / "run.json").read_text()).keys() == fields_after("`run.json`:")
    logged = json.loads((OLD / "whole" / "log.jsonl").read_text().splitlines()[0])
    assert {*logged, "eval_loss"} == fields_after("A line of `log.jsonl`:")


def test_files_of_rows_are_listed(tmp_path: Path):
    DataResult([], [], {}, []).write(tmp_path / "rows.jsonl")
    card = json.loads((tmp_path / "rows.jsonl.card.json").read_text())
    assert card.keys() == fields_after("`OUT.card.json` holds")
    row = json.loads((OLD / "rows.jsonl").read_text().splitlines()[0])
    assert {*row, *ALIGNED_KEYS} <= fields_after("`aft train` reads")


def test_a_judgement_is_listed():
    row = Judgement(1, "m", "j", "p", "t", 1, 0, "", "", None).row(0)
    assert row.keys() == fields_after("A line of `model_judgment/")
