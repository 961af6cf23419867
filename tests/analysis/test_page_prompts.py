"""The prompts of aggregation layers, made again from traces."""

from __future__ import annotations

from dataclasses import replace

import pytest

from helpers.made_traces import trace_of_texts
from lm_eval_aft.analysis.report.page.prompts import known_templates, layer_prompts
from lm_eval_aft.core.prompts import Template
from lm_eval_aft.core.records import Trace

DEFAULT = {"template": {"name": "default", "sha256": Template.load(None).digest}}


def prompts(trace: Trace) -> tuple[str, ...]:
    return layer_prompts(trace, [draft.answer() for draft in trace.drafts], known_templates())


def test_each_layer_read_the_texts_of_the_layer_before():
    trace = trace_of_texts(["one 7", "<think>x</think>two 8"], ["three 7", " "], ["so 7"], **DEFAULT)
    first, second = prompts(trace)
    assert first == Template.load(None).aggregate_chat(trace.question.chat, ["one 7", "two 8"]).messages[0].content
    assert "[draft 1]\none 7\n[/draft 1]" in first
    # An empty text is left out of the prompt.
    assert second.startswith("Below are 1 drafts")
    assert "three 7" in second


def test_the_templates_of_the_bundled_checkpoints_are_known():
    assert len(known_templates()) > 1
    assert Template.load(None).digest in known_templates()


@pytest.mark.parametrize(
    "changes",
    [
        {"template": {"name": "other.j2", "sha256": "00"}},
        {"template": None},
        {"strategy": "majority"},
        {"probe": "shuffle"},
        {"carry": "answer"},
        {"aggregator": {"model": "m", "fingerprint": "f", "template": {"name": "other.j2", "sha256": "00"}}},
    ],
)
def test_a_prompt_that_is_not_known_is_not_made_up(changes: dict):
    assert prompts(trace_of_texts(["one", "two"], ["three"], **{**DEFAULT, **changes})) == ()


def test_the_prompts_are_those_of_the_aggregator():
    bundled = next(template for template in known_templates().values() if template.name == "bundled")
    aggregator = {"model": "m", "fingerprint": "f", "template": {"name": "x", "sha256": bundled.digest}}
    trace = trace_of_texts(["1 + 1 = 2"], ["so 2"], **{**DEFAULT, "aggregator": aggregator})
    (prompt,) = prompts(trace)
    assert prompt == bundled.aggregate_chat(trace.question.chat, ["1 + 1 = 2"]).messages[0].content
    assert prompts(replace(trace, subsets=(((0,),),))) == ()


def test_cut_drafts_are_not_shown_whole():
    trace = trace_of_texts(["one", "two"], ["three"], **DEFAULT)
    assert prompts(replace(trace, cut_tokens=((0, 0),))) != ()
    assert prompts(replace(trace, cut_tokens=((0, 4),))) == ()
