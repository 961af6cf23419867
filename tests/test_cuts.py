"""Drafts that were cut to fit the context: warned of, counted in the results, and said by every report."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from helpers.instances import make_instance
from helpers.made_runs import make_run
from helpers.made_traces import trace_of_texts
from helpers.scripted_runs import TEMPLATE
from lm_eval_aft.analysis.diagnosis import diagnose_traces
from lm_eval_aft.analysis.report.diagnosis_tables import diagnostics_panel
from lm_eval_aft.analysis.report.leaderboard import leaderboard
from lm_eval_aft.analysis.runs import read_entries
from lm_eval_aft.cli import aft
from lm_eval_aft.core.config import AFTConfig
from lm_eval_aft.core.cuts import Cuts, cuts_of
from lm_eval_aft.core.errors import RecordError
from lm_eval_aft.core.usage import Usage
from lm_eval_aft.engines.scripted import ScriptedEngine
from lm_eval_aft.model import AFTLM
from lm_eval_aft.storage.draft_store import NoStore
from lm_eval_aft.storage.results import read_run
from lm_eval_aft.storage.traces import read_traces

CUT = {"prompts": 40, "cut_prompts": 12, "draft_tokens": 216, "cut_tokens": 180}
SENTENCE = (
    "rafts were cut to fit the context in 12 of 40 aggregation prompts (30.0%), which lost 180 of their 216 draft "
    "tokens (83.3%)"
)


def answer(words: int, max_length: int, questions: int = 2, **settings) -> AFTLM:
    """A run of texts of this many words."""
    engine = ScriptedEngine(lambda request: " ".join(["word"] * words), max_length)
    config = AFTConfig(k=2, layers=1, engine="scripted", max_gen_toks=60, **settings)
    lm = AFTLM.around(engine, config, TEMPLATE, NoStore(), "scripted")
    for kind in ("short", "other"):
        requests = [
            make_instance("generate_until", {}, (f"{kind} {number}", {"until": []}), 0, (kind, number, 1))
            for number in range(questions)
        ]
        lm.generate_until(requests, disable_tqdm=True)
    return lm


def counts(lm: AFTLM) -> dict:
    return lm.get_model_info()["aft"]["cut_drafts"]


def test_a_run_says_once_how_many_prompts_and_tokens_were_cut(caplog, tmp_path):
    caplog.set_level(logging.WARNING)
    lm = answer(50, 230, record=str(tmp_path))
    cut = counts(lm)
    # Both drafts of each of the four prompts have 50 tokens.
    assert (cut["prompts"], cut["cut_prompts"], cut["draft_tokens"]) == (4, 4, 400)
    traces = list(read_traces(tmp_path))
    assert cut["cut_tokens"] == sum(sum(layer) for trace in traces for layer in trace.cut_tokens) > 0
    assert [trace.draft_tokens for trace in traces] == [(100,)] * 4
    warnings = [record.getMessage() for record in caplog.records if "cut to fit" in record.getMessage()]
    assert len(warnings) == 1
    assert warnings[0].startswith(
        "With max_length=230 drafts were cut to fit the context in 2 of 2 aggregation prompts"
    )
    assert warnings[0].endswith("lower k or draft_max_tokens, or use a model with a longer context.")


def test_a_run_without_cuts_says_nothing(caplog):
    caplog.set_level(logging.WARNING)
    assert counts(answer(5, 8192)) == {"prompts": 4, "cut_prompts": 0, "draft_tokens": 0, "cut_tokens": 0}
    assert "cut to fit" not in caplog.text


def test_texts_without_an_answer_are_counted(caplog):
    caplog.set_level(logging.WARNING)
    texts = ["<think>hm hm", "It is 4", "", "<think>hm</think>It is 4", "It is 4", "It is 4"] * 2
    engine = ScriptedEngine(lambda request: texts.pop(0), 8192)
    config = AFTConfig(k=2, layers=1, engine="scripted")
    lm = AFTLM.around(engine, config, TEMPLATE, NoStore(), "scripted")
    requests = [make_instance("generate_until", {}, (f"q{n}", {"until": []}), 0, ("t", n, 1)) for n in range(2)]
    lm.generate_until(requests, disable_tqdm=True)
    assert lm.get_model_info()["aft"]["texts_without_answer"] == 2
    assert "1 of 6 texts end inside their thought and hold no answer: raise draft_max_tokens" in caplog.text


def with_cuts(folder: Path, scores: list[int], cut: object = CUT, **changes) -> Path:
    file = make_run(folder, scores, **changes)
    data = json.loads(file.read_text())
    data["config"]["aft"]["cut_drafts"] = cut
    file.write_text(json.dumps(data))
    return file


def test_report_and_page_remark_on_the_row(tmp_path):
    with_cuts(tmp_path / "a", [1, 0])
    make_run(tmp_path / "b", [1, 0], model="n")
    cut, whole = leaderboard(read_entries([tmp_path])).rows
    assert cut.notes == (f"D{SENTENCE}.",)
    assert whole.notes == ()
    page = tmp_path / "page.html"
    assert CliRunner().invoke(aft, ["report", str(tmp_path), "--html", str(page)]).exit_code == 0
    assert SENTENCE in page.read_text()


def test_compare_names_the_run_whose_drafts_were_cut(tmp_path):
    make_run(tmp_path / "a", [1, 0, 1, 0], k=1, layers=0)
    with_cuts(tmp_path / "b", [1, 1, 1, 1])
    result = CliRunner().invoke(aft, ["compare", str(tmp_path / "a"), str(tmp_path / "b"), "--format", "json"])
    assert f'"m (5, 2): d{SENTENCE}"' in result.stdout


def cut_trace(doc: int, cut: tuple[int, ...], draft_tokens: tuple[int, ...] = ()):
    trace = trace_of_texts(["is 7 for sure"] * 2, ["is 7"], doc=doc, task="essay")
    return replace(trace, cut_tokens=(cut,), draft_tokens=draft_tokens)


def test_diagnose_has_a_column_and_a_sentence():
    traces = [cut_trace(0, (3, 1), (10,)), cut_trace(1, (0, 0), (0,))]
    (diagnosed,) = diagnose_traces(traces, [])
    diagnostics = diagnosed.diagnostics
    assert diagnostics.cuts == Cuts(2, 1, 10, 4)
    panel = diagnostics_panel(diagnostics)
    sentence = "which lost 4 of their 10 draft tokens (40.0%)."
    assert any(finding.startswith("Drafts were cut") and finding.endswith(sentence) for finding in panel.remarks)
    (table,) = (table for table in panel.tables if "length" in table.title)
    place = [column.label for column in table.columns].index("prompts cut")
    assert [row.cells[place].text for row in table.rows] == ["-", "1"]


def test_traces_of_older_versions_count_generated_tokens():
    assert cuts_of(cut_trace(0, (3, 1))) == (Cuts(1, 1, 8, 4),)
    assert cuts_of(cut_trace(0, (0, 0))) == (Cuts(1, 0, 0, 0),)


@pytest.mark.parametrize("cut", [[], {"prompts": -1}, {"prompts": "x"}, {"other": 1}, {"prompts": 10**40}])
def test_a_damaged_count_is_refused(tmp_path, cut):
    with pytest.raises(RecordError, match="results_"):
        read_run(with_cuts(tmp_path, [1], cut))


def test_counts_add_field_by_field() -> None:
    assert Cuts(1, 2, 3, 4) + Cuts(10, 20, 30, 40) == Cuts(11, 22, 33, 44)
    assert Usage(1, 2, 3, 4, 5) + Usage(10, 20, 30, 40, 50) == Usage(11, 22, 33, 44, 55)
