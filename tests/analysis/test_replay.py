"""Rules of stop_when on stored drafts: they agree with real runs to the digit, and generate nothing."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from shutil import copytree

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.graded_tasks import scripted_model, write_task
from helpers.lm_eval_runs import run_lm_eval
from lm_eval_aft import votes
from lm_eval_aft.analysis.replay import VotedDraft, replay
from lm_eval_aft.cli import aft
from lm_eval_aft.core.early_stopping import stop_rule
from lm_eval_aft.core.errors import ConfigError
from lm_eval_aft.core.records import Request, Trace
from lm_eval_aft.storage.traces import read_traces, rewrite_traces, trace_files

pytestmark = pytest.mark.usefixtures("quick_lm_eval")
RULES = ("agree:0.8", "agree:0.9", "agree:0.95", "window:2", "window:4")


def answer_by_seed(request: Request) -> str:
    """0, 1 or 2, and now and then no answer; some questions are easier than others."""
    easy = 1 + int(request.prompt.digest[:2], 16) % 4
    drawn = request.seed % (3 + easy)
    return "#### " + ("2" if drawn >= 3 else str(drawn)) if request.seed % 11 else "no idea" + "." * (request.seed % 7)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    documents = [{"question": f"q{number}", "answer": "2"} for number in range(30)]
    return write_task(tmp_path_factory.mktemp("tasks"), documents=documents)


def run(out: Path, tasks: Path, **given: object) -> float:
    """Run the questions, and return lm-eval's score."""
    model = scripted_model(answer_by_seed, k=10, layers=1, strategy="majority", record=str(out / "traces"), **given)
    score: float = run_lm_eval(out, ["numbers"], tasks, model)["results"]["numbers"]["exact_match,flexible-extract"]
    return score


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory, tasks: Path, quick_lm_eval: None) -> Path:
    """A run without a rule, whose ten drafts are stored."""
    out = tmp_path_factory.mktemp("pool")
    score = run(out, tasks)
    # The vote over all drafts is that of the run, ties included.
    assert votes(out, stop_when="window:4")[0].replays[0].score.estimate == score
    return out


@pytest.mark.parametrize("rule", ["agree:0.9", "window:2", "window:4"])
def test_a_replay_equals_a_real_run(rule: str, pool: Path, tasks: Path, tmp_path: Path):
    (counted,) = votes(pool, stop_when=rule)
    _, replayed = counted.replays
    assert run(tmp_path, tasks, stop_when=rule) == replayed.score.estimate
    traces = sorted(read_traces(tmp_path / "traces"), key=lambda trace: trace.question.doc_id)
    assert replayed.scores == tuple(trace.grades[-1][1].metrics["exact_match"] for trace in traces)
    kept = [trace.layer(0) for trace in traces]
    assert replayed.drafts == pytest.approx(sum(map(len, kept)) / 30)
    tokens = sum(draft.completion.generated_tokens for drafts in kept for draft in drafts)
    assert replayed.generated_tokens == pytest.approx(tokens / 30)
    assert 0 < replayed.drafts_saved < 1


def test_a_grid_has_a_row_for_each_rule_in_every_form(pool: Path):
    def shown(form: str) -> str:
        options = ["--stop-when", "agree:0.8,agree:0.9", "--stop-when", "window:4,agree:0.8", "--format", form]
        result = CliRunner().invoke(aft, ["votes", str(pool), *options])
        assert result.exit_code == 0, result.output
        return result.output

    (table,) = json.loads(shown("json"))
    rows = {row["stop_when"]["text"]: row for row in table["rows"]}
    assert list(rows) == ["all drafts", "agree:0.8", "agree:0.9", "window:4"]
    assert rows["all drafts"]["tokens_saved"]["value"] == 0
    assert rows["all drafts"]["difference"]["value"] is None
    loose, strict = rows["agree:0.8"], rows["agree:0.9"]
    assert loose["tokens_saved"]["value"] > strict["tokens_saved"]["value"] > 0
    assert loose["difference"]["low"] <= loose["difference"]["value"] <= loose["difference"]["high"]
    assert loose["difference"]["value"] == pytest.approx(loose["score"]["value"] - rows["all drafts"]["score"]["value"])
    lines = list(csv.DictReader(io.StringIO(shown("csv"))))
    assert [line["stop_when"] for line in lines] == list(rows)
    assert float(lines[1]["drafts_saved"]) == loose["drafts_saved"]["value"]
    assert "| tokens saved % |" in shown("markdown")
    assert "Nothing is generated" in shown("text")


@given(
    st.lists(
        st.lists(st.tuples(st.sampled_from(["a", "b", None]), st.integers(1, 9)), min_size=1, max_size=9),
        min_size=2,
        max_size=6,
    )
)
@settings(max_examples=30)
def test_savings_and_differences_follow_from_the_drafts_kept(rows: list[list[tuple[str | None, int]]]):
    questions = [
        [
            VotedDraft(answer, float(answer == "a"), tokens, 7 * place % 5)
            for place, (answer, tokens) in enumerate(drafts)
        ]
        for drafts in rows
    ]
    rules = [stop_rule("stop_when", rule) for rule in RULES]
    whole, *replayed = replay(list(range(len(questions))), questions, rules, 0.95)
    assert (whole.drafts_saved, whole.tokens_saved, whole.stopped) == (0, 0, 0)
    for rule, each in zip(rules, replayed, strict=True):
        kept = [drafts[: rule.kept([draft.answer for draft in drafts])] for drafts in questions]
        assert each.drafts_saved == pytest.approx(1 - sum(map(len, kept)) / sum(map(len, questions)))
        assert each.generated_tokens <= whole.generated_tokens
        assert each.difference.estimate == pytest.approx(each.score.estimate - whole.score.estimate)


def test_drafts_of_several_models_have_no_rule(pool: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """A rule follows the order of one model's drafts."""

    def of_several(trace: Trace) -> Trace:
        proposers = [{"model": name, "fingerprint": name} for name in "ab"]
        return replace(trace, settings={**trace.settings, "proposers": proposers})

    out = Path(copytree(pool, tmp_path / "pool"))
    (file,) = trace_files(out)
    rewrite_traces(file, of_several)
    assert votes(out, stop_when="window:4")[0].replays == ()
    assert "--stop-when is left out for drafts of several models of numbers." in caplog.text
    result = CliRunner().invoke(aft, ["votes", str(out), "--stop-when", "window:4"])
    assert (result.exit_code, "majority %" in result.output) == (0, True)


@pytest.mark.parametrize("rule", ["agree:1.5", "agree", "window:1", "often", "", "agree:0.9,"])
def test_a_rule_that_is_none_is_refused(rule: str, pool: Path):
    result = CliRunner().invoke(aft, ["votes", str(pool), "--stop-when", rule], standalone_mode=False)
    assert isinstance(result.exception, ConfigError)
    assert str(result.exception).startswith("--stop-when=")


def test_a_task_without_answers_is_refused(tmp_path: Path):
    tasks = write_task(tmp_path / "tasks", filter_list=None)
    model = scripted_model(lambda request: "2", k=3, layers=1, record=str(tmp_path / "out/traces"))
    run_lm_eval(tmp_path / "out", ["numbers"], tasks, model)
    with pytest.raises(ConfigError, match="--stop-when needs answers to vote on, and none can be found for numbers"):
        votes(tmp_path / "out", stop_when="window:2")


def test_a_drafts_file_is_refused(tmp_path: Path):
    (tmp_path / "drafts.jsonl").write_text(json.dumps({"query": "q", "drafts": ["a", "b"], "right": [True, False]}))
    with pytest.raises(ConfigError, match="leave --stop-when out"):
        votes(tmp_path / "drafts.jsonl", stop_when="window:2")
