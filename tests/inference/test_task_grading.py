"""Drafts are graded by the task's own filters and metrics while lm-eval runs. A failure of grading ends no run."""

from __future__ import annotations

import logging
import random
import socket
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from helpers.graded_tasks import graded_task, scripted_model, texts
from helpers.lm_eval_runs import run_lm_eval
from helpers.lm_eval_version import IS_0_5
from lm_eval_aft.core.errors import ConfigError, RecordError
from lm_eval_aft.core.records import Chat, Grade, Message, Question, Sampling, Trace
from lm_eval_aft.inference import task_grading
from lm_eval_aft.storage.results import read_run, read_samples
from lm_eval_aft.storage.traces import read_traces

SAMPLING = Sampling(0.7, 0.95, 0, 8)

pytestmark = pytest.mark.usefixtures("quick_lm_eval")


def evaluate(tmp_path: Path, script, tasks: list[Any], options: dict | None = None, **settings) -> list[Trace]:
    settings = {"k": 3, "layers": 1, "record": str(tmp_path / "traces"), **settings}
    model = scripted_model(script, **settings)
    run_lm_eval(tmp_path / "out", tasks, model=model, options=options, **{"pretrained": "x"})
    return list(read_traces(tmp_path / "traces"))


def test_every_text_is_graded_by_every_filter_of_the_task(tmp_path: Path):
    traces = evaluate(tmp_path, texts("#### 1", "so 1", "no idea"), [graded_task()])
    assert [trace.question.doc_id for trace in traces] == [0, 1, 2]
    for doc_id, trace in enumerate(traces):
        right = float(doc_id == 1)
        assert trace.grades[:3] == (
            (
                Grade("strict-match", {"exact_match": right}, "1", True),
                Grade("flexible-extract", {"exact_match": right}, "1", True),
            ),
            (
                Grade("strict-match", {"exact_match": 0.0}, None, True),
                Grade("flexible-extract", {"exact_match": right}, "1", True),
            ),
            (
                Grade("strict-match", {"exact_match": 0.0}, None, True),
                Grade("flexible-extract", {"exact_match": 0.0}, None, True),
            ),
        )


def test_the_grade_of_the_answer_is_lm_evals_own_score(tmp_path: Path):
    model = scripted_model(texts("is 1", "is 2", "is 0"), k=3, layers=1, record=str(tmp_path / "traces"))
    results = run_lm_eval(tmp_path / "out", [graded_task()], model=model, pretrained="x")
    scores = {(row["doc_id"], row["filter"]): row["exact_match"] for row in results["samples"]["numbers"]}
    for trace in read_traces(tmp_path / "traces"):
        for grade in trace.grades[-1]:
            assert grade.metrics == {"exact_match": scores[trace.question.doc_id, grade.filter]}
    assert results["config"]["aft"]["graded_texts"] == 12


def test_a_whole_number_as_target_is_graded_as_this_lm_eval_scores_it(tmp_path: Path):
    task = graded_task(process_results=None)
    model = scripted_model(texts("#### 1"), k=1, layers=1, record=str(tmp_path / "traces"))
    results = run_lm_eval(tmp_path / "out", [task], model=model, pretrained="x")
    expected = 0.0 if IS_0_5 else 1 / 3
    assert results["results"]["numbers"]["exact_match,strict-match"] == expected
    grades = [trace.grades[-1][0].metrics["exact_match"] for trace in read_traces(tmp_path / "traces")]
    assert sum(grades) / 3 == expected


@pytest.mark.skipif(not IS_0_5, reason="lm-eval 0.4 has no --repeats and no reducers")
def test_repeats_and_reducers_count_each_answer_once(tmp_path: Path):
    metric = {"metric": "exact_match", "aggregation": "mean", "higher_is_better": True, "reduction": "pass@k"}
    task = graded_task(
        filter_list=None, process_results=None, doc_to_target="so {{answer}}", metric_list=[metric], repeats=1
    )
    # Of the three answers to each question, the second one is right for question 1.
    model = scripted_model(texts("so 2", "so 1", "no"), k=1, layers=0, record=str(tmp_path / "traces"))
    results = run_lm_eval(tmp_path / "out", [task], model=model, options={"repeats": 3}, pretrained="x")
    row = results["results"]["numbers"]
    assert row["pass@1(exact_match),none"] == pytest.approx(2 / 9)
    assert row["pass@3(exact_match),none"] == pytest.approx(2 / 3)
    traces = list(read_traces(tmp_path / "traces"))
    assert [(t.question.doc_id, t.question.repeat) for t in traces] == [(d, r) for d in range(3) for r in range(3)]
    assert [t.grades[-1][0].metrics["exact_match"] for t in traces] == [0, 0, 0, 0, 1, 0, 1, 0, 0]
    run = read_run(tmp_path / "out")
    assert run.answers == 9
    assert {score.metric: score.value for score in run.scores}["pass@3(exact_match)"] == pytest.approx(2 / 3)
    assert [sample.score("pass@3(exact_match)") for sample in read_samples(run, "numbers")] == [0.0, 1.0, 1.0]


def test_an_empty_text_and_a_bare_thought_are_wrong_and_counted(tmp_path: Path, caplog):
    caplog.set_level(logging.INFO)
    # The task alone would find the empty text right.
    task = graded_task(filter_list=None, process_results=lambda doc, results: {"exact_match": 1.0})
    (trace, *_) = evaluate(tmp_path, texts("is 1", " ", "<think> hm 1 </think>"), [task])
    assert [text[0].metrics for text in trace.grades[:3]] == [{"exact_match": 1.0}, *2 * [{"exact_match": 0.0}]]
    assert "numbers: 12 texts are graded; 6 without an answer are wrong." in caplog.messages


def test_a_filter_that_keeps_the_text_extracts_nothing(tmp_path: Path):
    (trace, *_) = evaluate(tmp_path, texts("0", "1", "0"), [graded_task(filter_list=None)])
    assert [text[0] for text in trace.grades[:2]] == [
        Grade("none", {"exact_match": 1.0}, None, False),
        Grade("none", {"exact_match": 0.0}, None, False),
    ]


def test_grading_changes_no_text_and_no_file_name(tmp_path: Path):
    graded = evaluate(tmp_path / "on", texts("is 1", "is 2"), [graded_task()])
    plain = evaluate(tmp_path / "off", texts("is 1", "is 2"), [graded_task()], grade_drafts=False)
    assert all(not trace.grades for trace in plain)

    def without(trace: Trace) -> Trace:
        return replace(trace, grades=(), drafts=tuple(replace(draft, elapsed_s=0.0) for draft in trace.drafts))

    assert list(map(without, graded)) == list(map(without, plain))
    names = [sorted(file.name for file in (tmp_path / side / "traces").glob("*.jsonl")) for side in ("on", "off")]
    assert names[0] == names[1]


def failing(doc: dict, results: list[str]) -> dict[str, float]:
    if "bad" in results[0]:
        raise KeyError(results[0])
    return {"exact_match": 1.0}


def exiting(doc: dict, results: list[str]) -> dict[str, float]:
    if "bad" in results[0]:
        sys.exit(results[0])
    return {"exact_match": 1.0}


@pytest.mark.parametrize(("process", "reason"), [(failing, "KeyError: 'bad'"), (exiting, "SystemExit: bad")])
def test_a_task_that_fails_costs_a_warning_and_no_run(tmp_path: Path, caplog, process, reason):
    task = graded_task(filter_list=None, process_results=process)
    traces = evaluate(tmp_path, texts("bad", "good", "good"), [task], k=1, layers=2)
    assert [bool(trace.grades) for trace in traces] == [False, False, False]
    (warning,) = [record.message for record in caplog.records if "not graded" in record.message]
    assert warning == f"The texts of 3 documents of numbers are not graded, since grading failed: {reason}."


class ExitingTask:
    """A task whose filter and documents end with sys.exit."""

    name = "numbers"
    task = property(lambda self: self)
    eval_docs = property(lambda self: sys.exit("no data"))

    def answers(self, document: Any, drafts: list[str]) -> list[str | None]:
        sys.exit("no answer")


def test_a_filter_or_documents_that_exit_end_no_command(caplog):
    question = Question(Chat((Message("user", "1?"),)), SAMPLING, SAMPLING, task="numbers")
    grader = task_grading.RunGrader({"numbers": ExitingTask()}, {task_grading.document_key(question): {}})
    assert grader.answers(question, ["1", "2"]) == [None, None]
    assert "The filter of numbers fails, so texts have no vote: no answer." in caplog.text
    with pytest.raises(RecordError, match=r"the documents of numbers cannot be read \(no data\)"):
        task_grading.StoredDocuments(ExitingTask())


def waits(doc: dict, results: list[str]) -> dict[str, float]:
    time.sleep(0.6 if results[0] == "slow" else 0)
    return {"exact_match": 1.0}


def test_a_document_has_a_time_limit(tmp_path: Path, caplog, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(task_grading, "GRADE_SECONDS", 0.2)
    task = graded_task(filter_list=None, process_results=waits)
    traces = evaluate(tmp_path, texts("quick", "slow"), [task], {"limit": 1}, k=2)
    assert not traces[0].grades
    assert "it takes more than 0.2 seconds" in caplog.text


def asks(doc: dict, results: list[str]) -> dict[str, float]:
    if results[0] == "draft":
        with socket.socket() as connection:
            connection.connect(("127.0.0.1", 9))
    return {"exact_match": 1.0}


def test_the_network_is_not_used(tmp_path: Path, caplog):
    task = graded_task(filter_list=None, process_results=asks)
    traces = evaluate(tmp_path, texts("answer", "draft"), [task], {"limit": 1}, k=2)
    assert not traces[0].grades
    assert "the network is not used here" in caplog.text


def draws(doc: dict, results: list[str]) -> dict[str, float]:
    return {"exact_match": float(random.random() < 0.5), "drawn": random.random()}


def test_random_metrics_leave_the_scores_of_lm_eval_as_they_are(tmp_path: Path):
    task = graded_task(filter_list=None, process_results=draws)

    def scores(side: str, grade: bool) -> list[float]:
        model = scripted_model(texts("a", "b"), k=2, layers=1, record=str(tmp_path / side), grade_drafts=grade)
        results = run_lm_eval(tmp_path / "out", [task], model=model, pretrained="x")
        return [row["drawn"] for row in results["samples"]["numbers"]]

    assert scores("on", True) == scores("off", False)
    first, *_ = read_traces(tmp_path / "on")
    assert len({text[0].metrics["drawn"] for text in first.grades}) > 1


@pytest.mark.parametrize("allowed", [True, False])
def test_what_the_model_wrote_runs_only_where_lm_eval_may_run_it(tmp_path: Path, allowed: bool, caplog):
    task = graded_task(filter_list=None, unsafe_code=True)
    if not allowed and IS_0_5:
        caplog.set_level(logging.INFO)
        traces = evaluate(tmp_path, texts("0"), [task])
        assert [trace.grades for trace in traces] == [(), (), ()]
        assert "it runs what the model wrote, which needs --confirm_run_unsafe_code" in caplog.text
        return
    if not allowed:
        with pytest.raises(ValueError, match="confirm_run_unsafe_code"):
            evaluate(tmp_path, texts("a"), [task])
        return
    traces = evaluate(tmp_path, texts("0"), [task], {"confirm_run_unsafe_code": True})
    assert traces[0].grades[0] == (Grade("none", {"exact_match": 1.0}, None, False),)


def test_without_lm_evals_task_one_sentence_says_so(tmp_path: Path, caplog):
    from helpers.instances import make_instance

    caplog.set_level(logging.INFO)
    model = scripted_model(texts("a"), k=1, layers=1, record=str(tmp_path))
    request = make_instance("generate_until", {"q": 1}, ("q", {"until": []}), 0, ("other", 0, 1))
    model.generate_until([request], disable_tqdm=True)
    assert "The drafts of other are not graded: lm-eval's task object was not found; aft grade OUT grades them." in (
        caplog.messages
    )


def test_a_majority_extracts_by_the_tasks_filter(tmp_path: Path):
    written = texts("x 1", "y 2", "z 2", "?")
    traces = evaluate(tmp_path, written, [graded_task()], strategy="majority", k=4)
    assert [trace.answer for trace in traces] == ["y 2"] * 3
    assert traces[0].scores == (1.0, 2.0, 2.0, 0.0)


def test_a_majority_without_answers_to_find_is_refused_before_anything_is_generated(tmp_path: Path):
    settings = {"strategy": "majority", "k": 4, "layers": 1}
    with pytest.raises(ConfigError, match="strategy=majority cannot find the answers of numbers: give vote_regex"):
        evaluate(tmp_path, lambda request: pytest.fail("generated"), [graded_task(filter_list=None)], **settings)


def test_a_vote_regex_that_never_matches_is_said(tmp_path: Path, caplog):
    settings = {"strategy": "majority", "k": 2, "layers": 1, "vote_regex": "<(.*)>"}
    evaluate(tmp_path, texts("1", "2"), [graded_task()], **settings)
    assert (
        "strategy=majority: vote_regex=<(.*)> finds no answer in any text of 3 of 3 questions, and draws one of the "
        "texts there." in caplog.messages
    )


def test_a_run_that_scores_nothing_has_no_grades(tmp_path: Path, caplog):
    caplog.set_level(logging.INFO)
    task = graded_task(process_results=None, doc_to_target="one")
    if IS_0_5:
        pytest.skip("lm-eval 0.5.0.dev1 fails on --predict_only of generated texts")
    traces = evaluate(tmp_path, texts("1"), [task], {"predict_only": True})
    assert [trace.grades for trace in traces] == [(), (), ()]
    assert "3 of the documents of numbers have no metric that is a number, so no grades." in caplog.messages


def test_a_majority_counts_equal_numbers_together(tmp_path: Path):
    number = {"function": "regex", "regex_pattern": r"(\S+)$"}
    task = graded_task(filter_list=[{"name": "last", "filter": [number, {"function": "take_first"}]}])
    traces = evaluate(tmp_path, texts("so 7", "so 18", "is $18.00"), [task], strategy="majority")
    assert [trace.answer for trace in traces] == ["so 18"] * 3
    assert traces[0].scores == (1.0, 2.0, 2.0)
