"""Scores that aft judge left beside a run: report, plot, page and compare read them, and a run has one judge cache."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from helpers.fake_alpaca import FEW, make_eval_set, weighted_reply
from helpers.fake_judge import FakeJudge, quick_judge
from helpers.lm_eval_runs import run_lm_eval
from helpers.mt_bench_suite import write_suite
from lm_eval_aft.analysis.api import read_sides
from lm_eval_aft.analysis.comparison import compare_entries
from lm_eval_aft.analysis.report.leaderboard import leaderboard
from lm_eval_aft.analysis.runs import read_entries
from lm_eval_aft.cli import aft
from lm_eval_aft.core.errors import RecordError
from lm_eval_aft.judging.mt_bench.data import MT_BENCH_TASK

pytestmark = pytest.mark.usefixtures("quick_lm_eval")
SCORE = f"{MT_BENCH_TASK}/aft-v1_score/none"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch):
    with quick_judge(monkeypatch) as fake:
        yield fake


def answer(folder: Path, name: str, layers: int = 0, record: Path | None = None, **metadata: object) -> Path:
    """A run of MT-Bench with engine=scripted, whose traces are not below its results. Returns its --output_path."""
    model_args = {"engine": "scripted", "pretrained": name, "k": 2, "layers": layers}
    model_args["record"] = str(record or folder / "rec" / name)
    out = folder / "out" / name
    run_lm_eval(out, ["offline_suite"], write_suite(folder), metadata=metadata, **model_args)
    return out


def command(*arguments: object) -> str:
    done = CliRunner().invoke(aft, [str(each) for each in arguments])
    assert done.exit_code == 0, (done.output, done.exception)
    return done.output


def judge(server: FakeJudge, run: Path) -> str:
    return command("judge", "mt_bench", run, "--judge-model", "m", "--judge-base-url", server.url)


def test_scores_beside_a_run_are_those_of_a_judge_within_it(server: FakeJudge, tmp_path: Path):
    server.say = lambda body: "[[8]]" if "second of" in body["messages"][-1]["content"] else "[[6]]"
    after, within = answer(tmp_path, "after"), answer(tmp_path, "within", judge_model="m", judge_base_url=server.url)
    judge(server, after)
    entries = {entry.run.model: entry for entry in read_entries([after, within])}
    scores = {
        model: {score.key: (score.value, score.ranked, score.higher_is_better) for score in entry.run.scores}
        for model, entry in entries.items()
    }
    assert scores["after"] == scores["within"]
    assert scores["after"][MT_BENCH_TASK, "aft-v1_score", "none"] == (7.0, True, True)
    assert [entry.run.conditions[MT_BENCH_TASK].judge for entry in entries.values()] == ["m", "m"]
    table = leaderboard(list(entries.values()))
    place = [column.key for column in table.columns].index(SCORE)
    assert [row.cells[place].value for row in table.rows] == [7.0, 7.0]
    # No row is marked as another test.
    assert [row.notes for row in table.rows] == [(), ()]


def test_a_judged_run_beside_an_unjudged_one(server: FakeJudge, tmp_path: Path):
    judged, plain = answer(tmp_path, "judged"), answer(tmp_path, "plain")
    judge(server, judged)
    table = leaderboard(read_entries([judged, plain]))
    place = [column.key for column in table.columns].index(SCORE)
    assert [row.cells[place].text for row in table.rows] == ["7.00 ± 0.00", "-"]
    assert "judged by nobody instead of m" in table.rows[1].notes[0]
    page = tmp_path / "page.html"
    command("report", judged, plain, "--html", page)
    assert "aft-v1_score" in page.read_text()
    with pytest.raises(RecordError, match=r"plain .* is not judged, .*run aft judge mt_bench"):
        compare_entries(*read_sides(judged, [plain], None))


def test_one_cache_serves_the_command_and_the_run(server: FakeJudge, tmp_path: Path):
    """The same run with --metadata neither asks the judge again nor is a second row."""
    out = answer(tmp_path, "m")
    judge(server, out)
    assert len(server.calls) == 16
    assert (tmp_path / "rec/m/mt_bench/judgements.sqlite").is_file()
    answer(tmp_path, "m", judge_model="m", judge_base_url=server.url)
    judge(server, out)
    judge(server, tmp_path / "rec/m")
    assert len(server.calls) == 16
    (entry,) = read_entries([out])
    assert entry.run.conditions[MT_BENCH_TASK].judge == "m"
    assert len(leaderboard([entry]).rows) == 1


def test_a_cache_beside_the_results_of_an_older_version_goes_on(server: FakeJudge, tmp_path: Path):
    out = answer(tmp_path, "m")
    (results,) = out.rglob("results_*.json")
    command(
        *("judge", "mt_bench", out, "--judge-model", "m", "--judge-base-url", server.url),
        *("--output", results.parent / "mt_bench"),
    )
    judge(server, out)
    assert len(server.calls) == 16
    assert not (tmp_path / "rec/m/mt_bench/judgements.sqlite").exists()
    assert read_entries([out])[0].judged


def test_scores_of_other_answers_are_named_and_not_taken(
    server: FakeJudge, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    """Two runs of one name share a record= folder; only one of them is judged."""
    record = tmp_path / "rec"
    first = answer(tmp_path / "a", "m", record=record)
    judge(server, first)
    second = tmp_path / "b"
    run_lm_eval(
        second / "out", ["offline_suite"], write_suite(second), options={"gen_kwargs": {"temperature": 1.0}},
        engine="scripted", pretrained="m", k=2, layers=0, record=str(record),
    )  # fmt: skip
    (judged,), (other,) = read_entries([first]), read_entries([second / "out"])
    assert judged.judged
    assert not other.judged
    assert "it scores other answers than those of" in caplog.text


def test_damaged_scores_are_named_and_the_run_is_shown(
    server: FakeJudge, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    out = answer(tmp_path, "m")
    judge(server, out)
    (file,) = tmp_path.rglob("scores_*.json")
    for content in ("{", "[]", json.dumps({"scores": {}})):
        file.write_text(content)
        (entry,) = read_entries([out])
        assert not entry.judged
        assert f"{file} is left out: " in caplog.text
        caplog.clear()


def test_judged_runs_are_compared_by_their_judgements(server: FakeJudge, tmp_path: Path):
    """One of them was judged within the run and one after it."""
    server.say = lambda body: "[[9]]" if "answer is 4" in body["messages"][-1]["content"] else "[[5]]"
    sides = answer(tmp_path, "a"), answer(tmp_path, "b", 1, judge_model="m", judge_base_url=server.url)
    judge(server, sides[0])
    (row,) = compare_entries(*read_sides(sides[0], [sides[1]], None)).comparisons
    assert (row.score.key, row.n) == ((MT_BENCH_TASK, "aft-v1_score", "none"), 16)
    reported = [entry.run.scores_of(MT_BENCH_TASK) for entry in read_entries(sides)]
    means = [next(score.value for score in scores if score.metric == "aft-v1_score") for scores in reported]
    assert [row.baseline_mean, row.other_mean] == pytest.approx(means)
    words = compare_entries(*read_sides(sides[0], [sides[1]], None), metric="words_per_turn").comparisons[0]
    assert (words.score.metric, words.n) == ("words_per_turn", 8)


@pytest.mark.long
def test_plots_draw_a_judges_scores(server: FakeJudge, tmp_path: Path):
    for layers in (0, 1):
        judge(server, answer(tmp_path / str(layers), "m", layers))
    output = command("plot", tmp_path / "0/out", tmp_path / "1/out", "--curves", "--png", tmp_path / "png")
    assert f"{MT_BENCH_TASK}_aft-v1_score_none.png" in output


def test_alpaca_evals_scores_are_read_too(server: FakeJudge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    eval_set = make_eval_set(tmp_path, monkeypatch, FEW)
    server.trouble = lambda number, body: weighted_reply(body)
    files = {"data_files": {"eval": str(eval_set.reference)}}
    task = {"task": "aft_alpaca_eval", "dataset_path": "json", "dataset_name": None, "dataset_kwargs": files}
    model_args = {"engine": "scripted", "pretrained": "ours", "k": 2, "layers": 0, "record": str(tmp_path / "rec")}
    group = {"group": "offline_suite", "task": [task]}
    run_lm_eval(tmp_path / "out", [group], options={"limit": FEW}, **model_args)
    options = ["--judge-model", "m", "--judge-base-url", server.url, "--reference", eval_set.reference, "--no-lc"]
    for run in (tmp_path / "out", tmp_path / "rec"):
        command("judge", "alpaca_eval", run, *options)
    assert len(server.calls) == FEW
    (entry,) = read_entries([tmp_path / "out"])
    (task_name,) = entry.run.tasks
    scores = {score.metric: score for score in entry.run.scores_of(task_name)}
    facts = json.loads((tmp_path / "rec/alpaca_eval/scores.json").read_text())
    assert scores["win_rate"].value == facts["metrics"]["win_rate"]
    assert scores["win_rate"].stderr == facts["metrics"]["standard_error"]
    assert {name: score.ranked for name, score in scores.items()} == {
        "win_rate": True, "discrete_win_rate": True, "standard_error": False, "judge_missing": False,
        "avg_length": False,
    }  # fmt: skip
    assert entry.run.conditions[task_name].judge == "m"
