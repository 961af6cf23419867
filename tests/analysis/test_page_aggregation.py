"""The pictures of what aggregation did: by the number of right drafts, and copies by position."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.made_runs import log_targets
from helpers.made_traces import trace_of_texts
from lm_eval_aft.analysis.diagnosis import diagnose_traces
from lm_eval_aft.analysis.report.page.aggregation import aggregation
from lm_eval_aft.analysis.report.page.data import Aggregation, PositionCopies, RightDrafts
from lm_eval_aft.analysis.runs import read_entries


def shown(folder: Path, *traces: tuple[list[str], ...]) -> Aggregation:
    made = [trace_of_texts(*layers, doc=doc) for doc, layers in enumerate(traces)]
    log_targets(folder, dict.fromkeys(range(len(made)), "7"))
    (diagnosis,) = diagnose_traces(made, read_entries([folder]))
    return aggregation(diagnosis.diagnostics, "run")


def test_answers_and_votes_are_counted_by_the_number_of_right_drafts(tmp_path: Path):
    each = shown(tmp_path, (["8", "8"], ["8"]), (["7", "8"], ["7"]), (["7", "8"], ["8"]), (["7", "7"], ["7"]))
    assert each.by_right_drafts == (
        RightDrafts(0, "1", 0.0, 0.0, "0%", "0%"),
        RightDrafts(1, "2", 0.5, 0.5, "50%", "50%"),
        RightDrafts(2, "1", 1.0, 1.0, "100%", "100%"),
    )
    assert len(each.panel.findings) == 3


def test_copies_are_shares_of_all_answers_and_of_the_drafts(tmp_path: Path):
    """The answer has layer 1 in its prompt. Copies of the drafts are counted all the same."""
    each = shown(tmp_path, (["a 7", "b 7"], ["c 7", "d 7"], ["b 7"]), (["a 8", "a 8"], ["c 8", "d 8"], ["a 8"]))
    assert each.copies == (PositionCopies(1, 0.25, "25.0% (0.5)"), PositionCopies(2, 0.75, "75.0% (1.5)"))


@pytest.mark.parametrize("layers", [(["7", "8"], ["so 7"]), (["7"],)])
def test_without_a_copy_there_is_no_picture_of_copies(tmp_path: Path, layers: tuple[list[str], ...]):
    assert shown(tmp_path, layers).copies == ()
