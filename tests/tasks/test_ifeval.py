"""aft_ifeval: the stock task's prompts, equal scores every time, and errors before the run if something is missing."""

from __future__ import annotations

import importlib.util
import json
import random
import sys
from collections import Counter
from pathlib import Path

import pytest

import lm_eval_aft
from lm_eval_aft.core.errors import ConfigError

FOLDER = lm_eval_aft.tasks_path() / "aft_ifeval"
ENGLISH = "tokenizers/punkt_tab/english"
# langdetect without a seed says es 38 times and en twice.
MIXED = "This is a test en español"


def module(path: Path):
    spec = importlib.util.spec_from_file_location("aft_ifeval_utils", path)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


ifeval = module(FOLDER / "utils.py")


@pytest.fixture
def rows(shared):
    lines = (shared / "data/ifeval/input_data.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def doc(identifier: str, key: int = 1, **kwargs) -> dict:
    return {"key": key, "prompt": "Say it.", "instruction_id_list": [identifier], "kwargs": [kwargs]}


def load(spec):
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(lm_eval_aft.tasks_path()), include_defaults=False)
    return manager.load([spec])["tasks"]


def test_a_text_between_two_languages_scores_alike_every_time(punkt_tables):
    spanish = doc("language:response_language", language="es")
    scores = [ifeval.process_results(spanish, [MIXED])["prompt_level_strict_acc"] for _ in range(60)]
    assert len(set(scores)) == 1


def test_an_argument_that_the_data_lack_is_the_same_every_time(punkt_tables):
    """The checker draws a letter if the data has none, as in prompts 1122 and 1129."""
    missing = doc("keywords:letter_frequency", let_relation="at least", let_frequency=1)
    scores = [ifeval.process_results(missing, ["a m q"])["prompt_level_strict_acc"] for _ in range(60)]
    assert len(set(scores)) == 1
    keys = [ifeval.process_results({**missing, "key": key}, ["a m q"])["prompt_level_strict_acc"] for key in range(60)]
    # Prompts with other keys get other letters.
    assert len(Counter(keys)) == 2


def test_other_random_generators_are_left_alone(punkt_tables):
    from langdetect import DetectorFactory

    random.seed(7)
    expected = random.Random(7).random()
    ifeval.process_results(doc("keywords:letter_frequency", let_relation="at least", let_frequency=1), ["a"])
    assert random.random() == expected
    assert DetectorFactory.seed is None


def test_scores_are_those_of_the_stock_checkers(punkt_tables, rows):
    from lm_eval.tasks.ifeval import utils as stock

    # word_tokenize and the count of sentences need the real tables, which are not here.
    rows = [
        row
        for row in rows
        if not {"length_constraints:number_sentences", "change_case:capital_word_frequency"}
        & set(row["instruction_id_list"])
    ]
    followed = Counter()
    for row in rows:
        answer = f'"<<{row["prompt"].upper()}>>"\n\n* one\n* two\n\nP.S. {row["key"]}'
        ours = ifeval.process_results(row, [answer])
        with ifeval.seeded(row["key"]):
            assert ours == stock.process_results(row, [answer])
        followed[ours["prompt_level_loose_acc"]] += 1
    assert followed[True] > 10 < followed[False]


def test_instruction_mean_is_over_instructions_not_prompts():
    assert ifeval.instruction_mean([[True, True, False], [False]]) == 0.5


def test_the_task_on_a_local_file_asks_the_stock_prompts_and_never_stops_at_a_blank_line(shared, monkeypatch):
    import nltk

    monkeypatch.setattr(nltk.data, "path", [str(shared / "data/nltk_data")])
    files = {"data_files": {"train": str(shared / "data/ifeval/input_data.jsonl")}}
    spec = {"task": "aft_ifeval", "dataset_path": "json", "dataset_name": None, "dataset_kwargs": files}
    # A group can override the data of a task.
    (task,) = load({"group": "local", "task": [spec]}).values()
    task.build_all_requests(limit=3)
    assert len(task.eval_docs) == 541
    assert [request.args[0] for request in task.instances] == [
        document["prompt"] for document in list(task.eval_docs)[:3]
    ]
    assert task.instances[0].args[1] == {"until": [], "do_sample": False, "temperature": 0.0, "max_gen_toks": 1280}
    scores = task.process_results(task.eval_docs[0], ["A summary."])
    assert set(scores) == set(task.aggregation())


def test_missing_tables_are_named_before_anything_is_generated(tmp_path, monkeypatch):
    import nltk

    downloads = []
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    monkeypatch.setattr(nltk, "download", lambda name, quiet: downloads.append(name))
    with pytest.raises(
        ConfigError, match=r"without NLTK's punkt_tab.*python -m nltk.downloader punkt_tab, or set NLTK_D"
    ):
        ifeval.checked_docs([])
    assert downloads == ["punkt_tab"]
    (tmp_path / ENGLISH).mkdir(parents=True)
    assert ifeval.checked_docs([1]) == [1]
    assert downloads == ["punkt_tab"]


@pytest.mark.parametrize("package", ["langdetect", "immutabledict", "nltk"])
def test_a_missing_package_is_named_with_the_extra(package, monkeypatch, punkt_tables):
    real = importlib.util.find_spec
    monkeypatch.setattr(ifeval, "find_spec", lambda name: None if name == package else real(name))
    with pytest.raises(ConfigError, match=rf"without {package}: .*lm_eval_aft\[ifeval\]"):
        ifeval.checked_docs([])


def test_loading_the_task_imports_no_checker(punkt_tables):
    """The import of the checkers downloads missing tables, so it must come after our own check."""
    import subprocess

    code = (
        f"import sys; sys.path.insert(0, {str(FOLDER)!r}); import utils\n"
        "print('langdetect' in sys.modules, 'nltk' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["False", "False"], done.stderr
