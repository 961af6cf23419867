"""Samples of the page: traces, grades and lm-eval's samples joined into one record a question."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

from helpers.made_traces import trace_of_texts as trace
from helpers.page_data import sample as page_sample
from lm_eval_aft.analysis.report.page.samples import featured, run_samples
from lm_eval_aft.analysis.runs import RunEntry
from lm_eval_aft.core.chat import ChatContext
from lm_eval_aft.core.records import Completion, Draft
from lm_eval_aft.core.usage import Usage
from lm_eval_aft.storage.results import read_run
from lm_eval_aft.storage.traces import write_traces


def log_run(folder: Path, task: str, rows: list[dict], settings: dict | None = None) -> None:
    """A run as lm-eval writes it; with ``settings`` it is a run of --model aft."""
    folder.mkdir(parents=True, exist_ok=True)
    config: dict = {"model": "hf", "model_args": {}}
    if settings:
        usage = asdict(Usage(generations=3 * len(rows)))
        config["aft"] = {**settings, "generations_per_question": 3, "usage": usage, "engine": "scripted"}
    results = {
        "results": {task: {"exact_match,flexible-extract": 0.5}},
        "n-samples": {task: {"effective": len(rows)}},
        "config": config,
    }
    (folder / "results_1.json").write_text(json.dumps(results))
    (folder / f"samples_{task}_1.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def row(number: int, **more: object) -> dict:
    return {
        "doc_id": number,
        "doc_hash": f"h{number}",
        "doc": {"question": f"How many, {number}?"},
        "target": "#### 7",
        "filter": "flexible-extract",
        "arguments": {"gen_args_0": {"arg_0": f"Question: How many, {number}?\nAnswer:", "arg_1": {}}},
        "resps": [["so 8"]],
        "filtered_resps": ["8"],
        "metrics": ["exact_match"],
        "exact_match": 0.0,
        **more,
    }


def test_a_traced_question_has_its_texts_grade_and_score(tmp_path: Path):
    made = trace(["is 7", "is 8"], ["is 8"], model="m")
    log_run(tmp_path, "gsm8k", [row(0)], made.settings)
    write_traces(str(tmp_path / "traces"), made.settings, [made])
    (diagnostics,), (sample,) = run_samples(RunEntry(read_run(tmp_path), "ours", tmp_path / "traces"))
    assert (diagnostics.task, diagnostics.k) == ("gsm8k", 2)
    assert (sample.run, sample.task, sample.question, sample.gold) == ("ours", "gsm8k", "How many, 0?", "7")
    assert (sample.right, sample.score, sample.answer) == (False, "exact_match (flexible-extract): 0", "is 8")
    assert [(text.layer, text.index, text.answer, text.right, text.copies) for text in sample.texts] == [
        (0, 0, "7", True, ()),
        (0, 1, "8", False, ()),
        (1, 0, "8", False, (1,)),
    ]
    assert [message.text for message in sample.messages] == ["q0"]


def test_fixed_and_broken_answers_reach_the_page(tmp_path: Path):
    traces = [trace(["is 8", "is 8"], ["is 7"], doc=0), trace(["is 7", "is 7"], ["is 8"], doc=1)]
    log_run(tmp_path, "gsm8k", [row(0, exact_match=1.0), row(1)], traces[0].settings)
    write_traces(str(tmp_path / "traces"), traces[0].settings, traces)
    _, samples = run_samples(RunEntry(read_run(tmp_path), "ours", tmp_path / "traces"))
    assert [(s.fixed, s.broken) for s in samples] == [(True, False), (False, True)]


def test_another_models_run_is_shown_from_the_log(tmp_path: Path):
    chat = ChatContext.of([{"role": "system", "content": "be brief"}, {"role": "user", "content": "How many?"}])
    rows = [
        row(0),
        row(1, exact_match=1.0, arguments={"gen_args_0": {"arg_0": str(chat)}}, doc={}),
        row(2, arguments=[["other", "versions"]], doc={}, exact_match=0.5, target=""),
        {**row(2), "filter": "strict-match"},
    ]
    log_run(tmp_path, "gsm8k", rows)
    diagnostics, samples = run_samples(RunEntry(read_run(tmp_path), "hf", None))
    assert diagnostics == ()
    assert [(s.doc_id, s.right, s.gold) for s in samples] == [(0, False, "#### 7"), (1, True, "#### 7"), (2, None, "")]
    assert [s.question for s in samples] == ["How many, 0?", "How many?", ""]
    assert [[m.role for m in s.messages] for s in samples] == [["user"], ["system", "user"], ["user"]]
    assert samples[0].texts[0].text == samples[0].answer == "so 8"
    assert samples[2].score == "exact_match (flexible-extract): 0.5"


def test_messages_beside_a_rendered_prompt_are_shown_as_turns(tmp_path: Path):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "How many?"}]
    request = {"arg_0": "<|im_start|>user\nHow many?", "arg_1": {"until": []}, "arg_2": {"messages": messages}}
    broken = {"arg_0": "rendered", "arg_1": {}, "arg_2": {"messages": [{"role": "user"}]}}
    log_run(
        tmp_path,
        "gsm8k",
        [row(0, arguments={"gen_args_0": request}), row(1, arguments={"gen_args_0": broken})],
    )
    _, samples = run_samples(RunEntry(read_run(tmp_path), "ours", None))
    assert [[(m.role, m.text) for m in s.messages] for s in samples] == [
        [("system", "Be brief."), ("user", "How many?")],
        [("user", "rendered")],
    ]


def test_a_single_answer_has_no_panel(tmp_path: Path):
    made = trace(["is 7"])
    log_run(tmp_path, "gsm8k", [row(0, exact_match=1.0)], made.settings)
    write_traces(str(tmp_path / "traces"), made.settings, [made])
    diagnostics, (sample,) = run_samples(RunEntry(read_run(tmp_path), "single", tmp_path / "traces"))
    assert diagnostics == ()
    assert (sample.right, len(sample.texts)) == (True, 1)


def test_an_essay_is_graded_by_its_metric_alone(tmp_path: Path):
    made = trace(["one", "two"], ["two"], task="essay")
    log_run(tmp_path, "essay", [row(0, exact_match=1.0)], made.settings)
    write_traces(str(tmp_path / "traces"), made.settings, [made])
    (diagnostics,), (sample,) = run_samples(RunEntry(read_run(tmp_path), "ours", tmp_path / "traces"))
    assert (sample.right, sample.gold, [text.right for text in sample.texts]) == (True, "#### 7", [None] * 3)
    assert (diagnostics.judged, diagnostics.gap_closed) == (0, None)


def test_a_sample_says_which_drafts_are_right_and_which_layer_changed_the_answer(tmp_path: Path):
    """In the first question layer 1 finds another answer; in the second a draft has it already."""
    traces = [
        trace(["it is 8", "it is 8", "see 7"], ["so 7", "so 7", "so 8"], ["see 7 then"], doc=0),
        trace(["it is 8", "it is 7", "it is 9"], ["is 7", "is 7", "is 7"], ["is 7"], doc=1),
        trace(["none", "none", "none"], ["none", "none", "none"], ["none"], doc=2),
    ]
    rows = [row(number, doc={"question": "How many?", "category": "sums"}) for number in range(3)]
    log_run(tmp_path, "gsm8k", rows, traces[0].settings)
    write_traces(str(tmp_path / "traces"), traces[0].settings, traces)
    _, samples = run_samples(RunEntry(read_run(tmp_path), "ours", tmp_path / "traces"))
    assert [(s.right_drafts, s.changed, s.category) for s in samples] == [
        (1, 1, "sums"),
        (1, 0, "sums"),
        (0, None, "sums"),
    ]
    # The answer resembles the third draft, though its prompt held a text of layer 1.
    assert [text.nearest for text in samples[0].texts] == [None, None, None, 2, 2, 0, 2]


def test_what_a_text_says_is_kept_apart_from_its_thought(tmp_path: Path):
    made = trace(["<think>8?</think>is 7", "is 8"], ["<think>no end"])
    log_run(tmp_path, "gsm8k", [row(0)], made.settings)
    write_traces(str(tmp_path / "traces"), made.settings, [made])
    _, (sample,) = run_samples(RunEntry(read_run(tmp_path), "ours", tmp_path / "traces"))
    assert [(text.spoken, text.nearest) for text in sample.texts] == [("is 7", None), (None, None), ("", None)]


def test_a_rendered_prompt_is_kept_beside_its_messages(tmp_path: Path):
    messages = [{"role": "user", "content": "How many?"}]
    request = {"arg_0": "<|im_start|>user\nHow many?", "arg_1": {}, "arg_2": {"messages": messages}}
    log_run(tmp_path, "gsm8k", [row(0, arguments={"gen_args_0": request}), row(1)])
    _, samples = run_samples(RunEntry(read_run(tmp_path), "ours", None))
    assert [sample.rendered for sample in samples] == ["<|im_start|>user\nHow many?", ""]


def test_a_gold_answer_that_is_the_question_is_not_repeated(tmp_path: Path):
    made = trace(["is 7", "is 8"], ["is 7"], task="essay")
    log_run(tmp_path, "essay", [row(0, target="How many, 0?")], made.settings)
    write_traces(str(tmp_path / "traces"), made.settings, [made])
    _, (sample,) = run_samples(RunEntry(read_run(tmp_path), "ours", tmp_path / "traces"))
    assert sample.gold == ""


def test_the_featured_sample_was_fixed_with_the_fewest_right_drafts():
    samples = (
        page_sample(0, "a", right=True, fixed=True, right_drafts=1),
        page_sample(1, "b", right=True, fixed=True, right_drafts=0),
        page_sample(2, "b", right=True, fixed=True, right_drafts=2),
        page_sample(3, "b", right=True, right_drafts=1),
    )
    assert [featured(samples, run) for run in ("b", "a", "c")] == [2, 0, 0]


def test_without_a_fixed_question_the_featured_sample_is_one_that_the_run_won():
    lost, won = page_sample(0, "a", right=False), page_sample(1, "a", right=False)
    samples = (lost, won, page_sample(2, "b", right=True), page_sample(1, "b", right=True))
    assert featured(samples, "b") == 3
    assert featured(samples[:3], "b") == 2
    assert featured((), "b") is None


def test_what_named_the_best_text_is_shown(tmp_path: Path):
    choice = Draft(1, 0, 0, Completion("<think>hm</think>Best draft: 2", (), "stop", 5, 5, 3), False, 0.0)
    made = replace(trace(["is 7", "is 8"], ["is 8"], model="m", strategy="select"), choice=choice)
    log_run(tmp_path, "gsm8k", [row(0)], made.settings)
    write_traces(str(tmp_path / "traces"), made.settings, [made])
    _, (sample,) = run_samples(RunEntry(read_run(tmp_path), "ours", tmp_path / "traces"))
    assert sample.choice == "Best draft: 2"
