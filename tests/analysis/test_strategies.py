"""All strategies on one pool of drafts: each number equals that of the run or command that also computes it."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from helpers.graded_tasks import scripted_model, write_task
from helpers.lm_eval_runs import run_lm_eval
from lm_eval_aft import compare, votes
from lm_eval_aft.analysis import api
from lm_eval_aft.analysis.stats import holm
from lm_eval_aft.analysis.strategies import Strategies, StrategyRow
from lm_eval_aft.cli import aft
from lm_eval_aft.core.errors import AFTError
from lm_eval_aft.core.records import Request

pytestmark = pytest.mark.usefixtures("quick_lm_eval")
QUESTIONS = 40


def drafts_by_seed(request: Request) -> str:
    """Two of five drafts are right, and an aggregated text is right more often. Texts have different lengths."""
    aggregated = "[draft 1]" in request.prompt.chat.messages[-1].content.lower()
    right = request.seed % 10 < (8 if aggregated else 4)
    return "so " * (request.seed % 5) + f"#### {2 if right else request.seed % 2}"


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    documents = [{"question": f"q{number}", "answer": "2"} for number in range(QUESTIONS)]
    return write_task(tmp_path_factory.mktemp("tasks"), documents=documents)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory, tasks: Path, quick_lm_eval: None) -> Path:
    """A pool of eight drafts, and runs of other strategies on the same questions."""
    folder = tmp_path_factory.mktemp("runs")
    runs: dict[str, dict[str, Any]] = {
        "pool": {"k": 8, "layers": 1, "strategy": "majority"},
        "aggregate": {"k": 3, "layers": 1},
        "stopped": {"k": 8, "layers": 1, "strategy": "majority", "stop_when": "agree:0.9"},
        "single": {"k": 1, "layers": 0},
    }
    for name, settings in runs.items():
        model = scripted_model(drafts_by_seed, record=str(folder / name / "traces"), **settings)
        run_lm_eval(folder / name, ["numbers"], tasks, model)
    return folder


def compared(out: Path, *names: str, **options: Any) -> Strategies:
    ((strategies,), _) = api.strategies(out / "pool", *(out / name for name in names), **options)
    return strategies


def row(strategies: Strategies, name: str) -> StrategyRow:
    return next(row for row in strategies.rows if name in row.name)


def test_the_rows_of_the_pool_are_those_of_aft_votes(out: Path):
    strategies = compared(out, stop_when="agree:0.9")
    (counted,) = votes(out / "pool", stop_when="agree:0.9")
    last = counted.points[-1]
    assert (strategies.k, strategies.questions) == (8, QUESTIONS)
    assert row(strategies, "one draft").score.estimate == pytest.approx(last.mean.estimate)
    assert row(strategies, "majority vote of 8").score.estimate == pytest.approx(last.majority.estimate)
    assert row(strategies, "oracle of 8").score.estimate == pytest.approx(last.oracle.estimate)
    assert row(strategies, "oracle of 8").generated_tokens == pytest.approx(last.generated_tokens)
    assert row(strategies, "stop_when=agree:0.9").generated_tokens == pytest.approx(counted.replays[1].generated_tokens)


def test_a_rule_on_the_pool_costs_what_its_run_costs(out: Path):
    strategies = compared(out, "stopped", stop_when="agree:0.9")
    replayed, run = row(strategies, "vote, stop_when=agree:0.9"), strategies.rows[-2]
    assert (replayed.source, run.source) == ("pool", "run")
    assert replayed.generated_tokens == pytest.approx(run.generated_tokens)


def test_a_run_is_compared_with_the_vote_of_as_many_tokens(out: Path):
    strategies = compared(out, "aggregate")
    run = strategies.rows[-2]
    (counted,) = votes(out / "pool")
    tokens = counted.points[0].generated_tokens
    n = int(run.generated_tokens / tokens)
    assert run.vote_drafts == n < 8
    vote = counted.points[n - 1].majority.estimate
    assert run.vote_score == pytest.approx(vote)
    assert run.difference.estimate == pytest.approx(run.score.estimate - vote)
    assert run.difference.low < run.difference.estimate < run.difference.high
    whole, oracle = counted.points[-1].majority.estimate, counted.points[-1].oracle.estimate
    assert run.gap.closed.estimate == pytest.approx((run.score.estimate - whole) / (oracle - whole))


def test_p_is_corrected_over_the_strategies_and_not_for_the_bound(out: Path):
    strategies = compared(out, "aggregate", "stopped")
    tested = [each for each in strategies.rows if each.p_holm is not None]
    assert [each.p_holm for each in tested] == pytest.approx(holm([each.p_value for each in tested]))
    assert len(tested) == 4
    oracle = strategies.rows[-1]
    assert (oracle.source, oracle.p_holm, oracle.verdict) == ("bound", None, None)
    assert row(strategies, "majority vote").difference is None
    assert {each.verdict for each in tested} <= {"better", "worse", "no difference shown"}


def test_the_vote_closes_none_of_the_gap_and_the_oracle_all(out: Path):
    strategies = compared(out)
    assert row(strategies, "majority vote").gap.closed.estimate == pytest.approx(0)
    assert row(strategies, "oracle").gap.closed.estimate == pytest.approx(1)


def changed(out: Path, name: str, change: Callable[[dict[str, Any]], None]) -> Path:
    """A copy of the pool with other traces."""
    folder = out.parent / name
    shutil.copytree(out / "pool", folder, dirs_exist_ok=True)
    for file in (folder / "traces").rglob("*.jsonl"):
        traces = [json.loads(line) for line in file.read_text().splitlines()]
        for trace in traces:
            change(trace)
        file.write_text("".join(json.dumps(trace) + "\n" for trace in traces))
    return folder


def is_right(draft: dict[str, Any]) -> bool:
    return draft["completion"]["text"].endswith("2")


def test_a_pool_with_confidence_has_the_weighted_vote(out: Path):
    """The model is much surer of right texts, so that the weighted vote is the oracle."""

    def make_sure(trace: dict[str, Any]) -> None:
        for draft in trace["drafts"]:
            mean = -0.1 if is_right(draft) else -9.0
            draft["completion"]["confidence"] = {"sum": 0.0, "mean": mean, "tail": 0.0, "window": 0.0}

    ((strategies,), _) = api.strategies(changed(out, "sure", make_sure))
    assert row(strategies, "weighted vote of 8").score == row(strategies, "oracle of 8").score
    assert not [each for each in compared(out).rows if "weighted" in each.name]


def test_stored_rewards_choose_among_a_smaller_pool(out: Path, tasks: Path, tmp_path: Path):
    """The reward knows the right answer, so the best of four is the oracle of four."""
    model = scripted_model(drafts_by_seed, k=4, layers=1, strategy="majority", record=str(tmp_path / "pool/traces"))
    run_lm_eval(tmp_path / "pool", ["numbers"], tasks, model)

    def reward(trace: dict[str, Any]) -> None:
        trace["settings"]["strategy"] = "best_of_n"
        trace["scores"] = [float(is_right(draft)) for draft in trace["drafts"] if draft["layer"] == 0]

    rewarded = changed(out, "rewarded", reward)
    (file,) = rewarded.rglob("results_*.json")
    file.write_text(file.read_text().replace('"strategy": "majority"', '"strategy": "best_of_n"'))
    ((strategies,), _) = api.strategies(tmp_path / "pool", rewarded)
    best = row(strategies, "best of 4, stored rewards")
    assert best.score == row(strategies, "oracle of 4").score
    assert best.flops is None


def test_every_form_has_the_same_rows(out: Path):
    def shown(form: str) -> str:
        arguments = ["compare", "--strategies", out / "pool", out / "aggregate", "--format", form]
        result = CliRunner().invoke(aft, list(map(str, arguments)))
        assert result.exit_code == 0, result.output
        return result.output

    (table,) = json.loads(shown("json"))
    names = [each["strategy"]["text"] for each in table["rows"]]
    assert names[:2] == ["one draft", "majority vote of 8"]
    assert names[2:4] == ["vote, stop_when=agree:0.95", "vote, stop_when=window:4"]
    assert names[-1] == "oracle of 8"
    lines = list(csv.DictReader(io.StringIO(shown("csv"))))
    assert [line["strategy"] for line in lines] == names
    assert float(lines[-2]["score"]) == table["rows"][-2]["score"]["value"]
    assert "| gap closed % |" in shown("markdown")
    assert "The oracle takes a right draft" in shown("text")


def test_runs_on_other_questions_are_refused_or_compared_on_those_they_share(out: Path, tasks: Path, tmp_path: Path):
    model = scripted_model(drafts_by_seed, k=3, layers=1, record=str(tmp_path / "few/traces"))
    run_lm_eval(tmp_path / "few", ["numbers"], tasks, model, options={"limit": 9})
    with pytest.raises(AFTError, match=r"did not answer the same questions of numbers \(doc_id 9, 10, .*--common"):
        api.strategies(out / "pool", tmp_path / "few")
    ((strategies,), _) = api.strategies(out / "pool", tmp_path / "few", common=True)
    assert {each.score.n for each in strategies.rows} == {strategies.questions} == {9}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--strategies", "single"], "has one draft a question, and a pool needs two or more"),
        (["--strategies", "pool", "--price-in", "0"], "--price-in is given, and --strategies has no use for it"),
        (["--strategies", "pool", "--members"], "--members is given, and --strategies has no use for it"),
        (["pool", "aggregate", "--stop-when", "window:4"], "--stop-when is given, and it needs --strategies"),
        (["--strategies", "pool", "--stop-when", "always"], "--stop-when=always is not allowed"),
        (["--strategies", "pool", "--task", "other"], "task other is not in"),
        (["--strategies", "pool", "--metric", "f1"], "--metric f1 is not a metric of numbers"),
        (["--strategies", "pool", "missing"], "missing"),
    ],
)
def test_bad_input_is_one_sentence(arguments: list[str], message: str, out: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(out)
    result = CliRunner().invoke(aft, ["compare", *arguments], standalone_mode=False)
    assert isinstance(result.exception, AFTError), result.output
    assert message in str(result.exception)


def test_a_run_that_is_worse_than_the_vote_fails_on_request(out: Path, tasks: Path, tmp_path: Path):
    model = scripted_model(lambda request: "#### 1", k=2, layers=1, record=str(tmp_path / "bad/traces"))
    run_lm_eval(tmp_path / "bad", ["numbers"], tasks, model)
    arguments = ["compare", "--strategies", str(out / "pool"), str(tmp_path / "bad"), "--fail-on-regression"]
    assert CliRunner().invoke(aft, arguments, standalone_mode=True).exit_code == 1


def test_the_csv_of_a_comparison_has_its_tables_alone(out: Path):
    result = CliRunner().invoke(aft, ["compare", str(out / "single"), str(out / "aggregate"), "--format", "csv"])
    paired, cost, drafts = (list(csv.DictReader(io.StringIO(table))) for table in result.stdout.split("\n\n")[:3])
    assert (paired[0]["n"], float(paired[0]["difference"])) == (str(QUESTIONS), pytest.approx(paired_difference(out)))
    assert [len(cost), len(drafts)] == [2, 1]


def paired_difference(out: Path) -> float:
    return compare(out / "single", out / "aggregate").comparisons[0].difference.estimate
