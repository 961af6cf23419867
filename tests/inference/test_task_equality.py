"""Answers that a task's own code takes as equal vote together, within bounds of time, whatever their order."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.graded_tasks import scripted_model, texts
from helpers.lm_eval_runs import run_lm_eval
from lm_eval_aft import votes
from lm_eval_aft.inference import task_equality
from lm_eval_aft.inference.task_equality import TaskEquality, has_equality
from lm_eval_aft.storage.traces import read_traces

DOCUMENT = {"problem": "What is one half?", "solution": "It is $\\boxed{\\frac{1}{2}}$.", "answer": "\\frac{1}{2}"}


def hendrycks() -> Any:
    from lm_eval.tasks.hendrycks_math import utils

    return utils


def minerva() -> Any:
    for name in ("math_verify", "antlr4", "sympy"):
        pytest.importorskip(name)
    from lm_eval.tasks.minerva_math import utils

    return utils


def dataset(**_: Any) -> Any:
    from datasets import Dataset, DatasetDict

    return DatasetDict({"test": Dataset.from_list([DOCUMENT])})


def task(utils: Any) -> dict[str, Any]:
    """A stock task on one document of ours."""
    return {
        "task": "math",
        "custom_dataset": dataset,
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "Problem: {{problem}}\nAnswer:",
        "doc_to_target": "{{answer}}",
        "process_results": utils.process_results,
        "generation_kwargs": {"until": ["Problem:"], "max_gen_toks": 64},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }


@pytest.mark.usefixtures("quick_lm_eval")
def test_a_vote_of_hendrycks_math_counts_equal_expressions_together(tmp_path: Path):
    """Three spellings of one half outvote two equal wrong answers. By their strings they would not."""
    written = ("is $3$", "is $0.5$", "so $3$", "is $\\frac12$", "is $\\frac{1}{2}$")
    model = scripted_model(texts(*written), k=5, layers=1, strategy="majority", record=str(tmp_path / "traces"))
    results = run_lm_eval(tmp_path / "out", [task(hendrycks())], model=model)
    assert results["results"]["math"]["exact_match,none"] == 1.0
    (trace,) = read_traces(tmp_path / "traces")
    assert trace.scores == (2.0, 3.0, 2.0, 3.0, 3.0)
    (counted,) = votes(tmp_path)
    assert (counted.points[4].majority.estimate, counted.silent) == (1.0, 0.0)


def test_the_answer_is_what_the_task_compares():
    equality = TaskEquality(hendrycks().process_results)
    assert equality.answer(DOCUMENT, "so $x = 3$ is it") == "x = 3"
    assert equality.answer(DOCUMENT, "no mark") == "no mark"
    assert equality.answer(DOCUMENT, "") is None
    assert equality.answer(DOCUMENT, "$" + "1 + " * 1000 + "1$") is None


def test_minerva_math_finds_and_compares_by_sympy():
    equality = TaskEquality(minerva().process_results)
    final = "Final Answer: The final answer is ${}$. I hope it is correct."
    found = [equality.answer(DOCUMENT, final.format(each)) for each in ("x+1", "1+x", "2", "\\frac{4}{2}")]
    assert equality.spellings([*found, equality.answer(DOCUMENT, "no answer")]) == ["1+x", "1+x", "2", "2", None]


@given(st.permutations(["0.5", "\\frac12", "3", "\\frac{1}{2}", "03"]))
@settings(max_examples=30)
def test_the_order_of_answers_changes_no_spelling(answers: list[str]):
    equality = TaskEquality(hendrycks().process_results)
    spelled = dict(zip(answers, equality.spellings(answers), strict=True))
    assert spelled == {"0.5": "0.5", "\\frac12": "0.5", "\\frac{1}{2}": "0.5", "3": "3", "03": "03"}


# ------------------------------------------------------------------ tasks of other kinds


def is_equiv(first: str, second: str) -> bool:
    return first.lower() == second.lower()


def compares(doc: dict, results: list[str]) -> dict[str, int]:
    return {"exact_match": int(is_equiv(results[0], doc["answer"]))}


def compares_unless_equal(doc: dict, results: list[str]) -> dict[str, int]:
    try:
        return {"exact_match": int(results[0] == doc["answer"] or is_equiv(results[0], doc["answer"]))}
    except:  # noqa: E722
        return {"exact_match": 0}


def fails(doc: dict, results: list[str]) -> dict[str, int]:
    return {"exact_match": int(is_equiv(results[0][99], doc["answer"]))}


def test_a_right_answer_is_found_too_if_the_task_compares_others_alone():
    equality = TaskEquality(compares_unless_equal)
    assert equality.answer({"answer": "Yes"}, "Yes") == "Yes"
    assert equality.spellings(["Yes", "yes", "YES", "no"]) == ["YES", "YES", "YES", "no"]


def test_a_task_that_fails_on_a_text_finds_no_answer_in_it():
    assert TaskEquality(fails).answer({"answer": "x"}, "short") is None


def test_only_a_function_that_compares_by_its_own_is_equiv_has_an_equality():
    assert has_equality(compares)
    assert not has_equality(None)
    assert not has_equality("utils.process_results")
    assert not has_equality(dataset)
    assert not has_equality(len)


# ------------------------------------------------------------------ time


def test_a_comparison_that_does_not_end_says_different(monkeypatch: pytest.MonkeyPatch):
    def endless(first: str, second: str) -> bool:
        while first != second:
            pass
        return True

    monkeypatch.setattr(task_equality, "COMPARISON_SECONDS", 0.1)
    monkeypatch.setattr(task_equality, "QUESTION_SECONDS", 0.3)
    monkeypatch.setitem(globals(), "is_equiv", endless)
    started = time.monotonic()
    answers = [str(number) for number in range(20)]
    assert TaskEquality(compares).spellings(answers) == answers
    assert time.monotonic() - started < 2


def test_a_task_that_sets_an_alarm_of_its_own_leaves_the_outer_one(monkeypatch: pytest.MonkeyPatch):
    def with_alarm(first: str, second: str) -> bool:
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
        signal.alarm(5)
        signal.alarm(0)
        return first == second

    monkeypatch.setitem(globals(), "is_equiv", with_alarm)
    ended = []
    before = signal.signal(signal.SIGALRM, lambda *_: ended.append(True))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        TaskEquality(compares).spellings(["a", "b"])
        time.sleep(0.4)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert ended == [True]


def test_many_answers_take_little_time():
    equality = TaskEquality(hendrycks().process_results)
    answers = [f"{random.Random(number).random()}" for number in range(64)]
    started = time.monotonic()
    assert len(set(equality.spellings(answers))) == 64
    assert time.monotonic() - started < 2
