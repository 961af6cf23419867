"""Counts of forward passes, by layer."""

from __future__ import annotations

from dataclasses import replace

from lm_eval_aft.core.records import Completion, Draft, LookAhead
from lm_eval_aft.inference.forward_passes import ForwardPasses, PassesByLayer, passes_by_layer


def draft(layer: int, tokens: int, look_ahead: LookAhead | None, *, reused: bool = False) -> Draft:
    return Draft(layer, 0, 1, Completion("a", (), "stop", 5, 5, tokens, look_ahead=look_ahead), reused, 0.0)


def test_each_layer_adds_its_new_texts():
    first, second = draft(0, 10, LookAhead(10, 0)), draft(2, 10, LookAhead(4, 8))
    counts = passes_by_layer([first, second, replace(second, reused=True), replace(second, index=1), draft(1, 9, None)])
    assert counts.layers == (ForwardPasses(10, 10, 0), ForwardPasses(), ForwardPasses(20, 8, 16))
    assert [row["accepted_tokens"] for row in counts.rows] == [0, 0, 12]


def test_counts_of_several_processes_add_by_layer():
    one, two = passes_by_layer([draft(0, 3, LookAhead(2, 1))]), passes_by_layer([draft(1, 5, LookAhead(1, 6))])
    assert (one + two).layers == (two + one).layers == (ForwardPasses(3, 2, 1), ForwardPasses(5, 1, 6))
    assert PassesByLayer() + one == one


def test_nothing_is_counted_without_proposals():
    assert passes_by_layer([draft(0, 3, None)]) == PassesByLayer()
