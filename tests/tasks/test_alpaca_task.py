"""aft_alpaca_eval inside lm-eval: answers on disk, judged once if a judge is named, never under --predict_only."""

from __future__ import annotations

import json
import logging
import shlex
from dataclasses import asdict
from pathlib import Path

import pytest

import lm_eval_aft
from helpers.fake_alpaca import FEW, expected_win_rate, make_eval_set, outputs
from helpers.fake_judge import chat_completion
from lm_eval_aft import cli
from lm_eval_aft.core.errors import ConfigError, JudgeError, RecordError
from lm_eval_aft.judging.alpaca_eval.files import find_outputs, read_outputs


@pytest.fixture
def eval_set(tmp_path, monkeypatch):
    return make_eval_set(tmp_path, monkeypatch, FEW)


@pytest.fixture
def server(weighted_judge):
    return weighted_judge


@pytest.fixture
def run(eval_set, quick_lm_eval):
    """lm-eval's own evaluation with a model that gives the made-up answers."""
    from lm_eval import simple_evaluate
    from lm_eval.api.model import LM
    from lm_eval.tasks import TaskManager

    answers = {row.instruction: row.output for row in outputs("ours")}

    class Answers(LM):
        generations = 0

        def generate_until(self, requests, disable_tqdm=False):
            self.generations += len(requests)
            return [f" {answers[request.args[0]]}\n" for request in requests]

        def loglikelihood(self, requests, disable_tqdm=False):
            raise NotImplementedError

        loglikelihood_rolling = loglikelihood

    def evaluate(metadata: dict, lm=None, **options):
        manager = TaskManager(
            include_path=str(lm_eval_aft.tasks_path()),
            include_defaults=False,
            metadata={"pretrained": "x/ours", **metadata},
        )
        files = {"data_files": {"eval": str(eval_set.reference)}}
        spec = {"task": "aft_alpaca_eval", "dataset_path": "json", "dataset_name": None, "dataset_kwargs": files}
        group = {"group": "offline_suite", "task": [spec]}
        return simple_evaluate(lm or Answers(), tasks=[group], task_manager=manager, bootstrap_iters=0, **options)

    evaluate.model = Answers
    return evaluate


@pytest.fixture
def named(server, eval_set):
    """--metadata that names a judge."""
    return {
        "judge_model": "m",
        "judge_base_url": server.url,
        "record": str(eval_set.folder / "rec"),
        "alpaca_reference": str(eval_set.reference),
        "alpaca_difficulty": str(eval_set.difficulty),
    }


def metrics(results) -> dict:
    row = next(row for name, row in results["results"].items() if name.endswith("aft_alpaca_eval"))
    return {
        name.removesuffix(",none"): value
        for name, value in row.items()
        if name.endswith(",none") and "stderr" not in name
    }


def test_without_a_judge_answers_are_written_and_it_is_said_how_to_judge_them(run, tmp_path, caplog, server):
    with caplog.at_level(logging.INFO, "lm_eval.aft"):
        scores = metrics(run({"record": str(tmp_path / "rec")}))
    file = tmp_path / "rec/model_outputs.json"
    assert f"Judge later with: aft judge alpaca_eval {file} --judge-model" in caplog.text
    assert json.loads(file.read_text()) == [asdict(row) for row in outputs("ours")]
    assert scores["avg_length"] == sum(len(row.output) for row in outputs("ours")) / FEW
    assert not any("win" in name for name in scores)


def test_without_record_it_is_said_too(run, caplog, server):
    with caplog.at_level(logging.INFO, "lm_eval.aft"):
        run({})
    assert (
        "Judge later with: aft judge alpaca_eval OUT (OUT is --output_path, and --log_samples must be on)"
        in caplog.text
    )


def test_a_judge_named_by_the_run_scores_in_lm_evals_table(run, named, server, tmp_path):
    results = run(named)
    scores = metrics(results)
    assert scores["win_rate"] == pytest.approx(expected_win_rate(FEW), abs=1e-6)
    assert 0 < scores["length_controlled_winrate"] < 100
    assert scores["standard_error"] > 0
    assert scores["judge_missing"] == 0
    # one judging serves all metrics
    assert len(server.calls) == FEW
    (samples,) = results["samples"].values()
    # a length here would be compared as if it were a score
    assert {row["win_rate"] for row in samples} == {None}
    assert {row["length_controlled_winrate"] for row in samples} == {""}
    # reports show the first metric
    assert next(iter(scores)) == "length_controlled_winrate"
    assert samples[0]["avg_length"] == len(outputs("ours")[0].output)
    assert {file.name for file in (tmp_path / "rec/alpaca_eval").iterdir()} >= {
        "annotations.json",
        "leaderboard.csv",
        "scores.json",
    }
    assert metrics(run(named)) == scores
    assert len(server.calls) == FEW


def test_a_part_of_the_set_needs_no_difficulty_and_has_no_length_control(run, named, server, eval_set):
    (eval_set.difficulty / "df_gamed.csv").unlink()
    scores = metrics(run(named, limit=8))
    assert scores["length_controlled_winrate"] == "N/A"
    assert isinstance(scores["win_rate"], float)
    assert len(server.calls) == 8


def test_a_judge_that_fails_costs_the_scores_but_not_the_answers(run, named, server, tmp_path, caplog):
    server.trouble = lambda number, body: (200, chat_completion("m"), {})
    scores = metrics(run(named))
    assert "aft_alpaca_eval has no scores: the replies of m hold no log-probabilities" in caplog.text
    assert (
        f"judge the rest with: aft judge alpaca_eval {tmp_path / 'rec'} --judge-model m --judge-base-url {server.url}"
        in caplog.text
    )
    assert scores["win_rate"] == scores["length_controlled_winrate"] == "N/A"
    assert isinstance(scores["avg_length"], float)
    assert len(read_outputs(find_outputs(tmp_path / "rec"))) == FEW
    assert len(server.calls) == 1


def test_the_command_that_goes_on_judges_as_the_run_would_have(run, named, server, tmp_path, caplog):
    server.trouble = lambda number, body: (401, {"error": {"message": "no"}}, {})
    record = tmp_path / "my rec"
    more = {"alpaca_regex": True, "alpaca_no_lc": True, "alpaca_allow_missing": True, "judge_revision": "r 7"}
    assert metrics(run({**named, **more, "record": str(record)}))["regex_win_rate"] == "N/A"
    (line,) = [line for line in caplog.text.splitlines() if "judge the rest with: aft" in line]
    server.trouble = lambda number, body: (200, chat_completion("m"), {})
    words = shlex.split(line.partition("judge the rest with: aft ")[2])
    assert words[words.index("--judge-revision") + 1] == "r 7"
    assert {"--allow-missing", "--no-lc"} < set(words)
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert ended.value.code in (0, None)
    scores = json.loads((record / "alpaca_eval/scores.json").read_text())
    assert "regex" in json.dumps(scores)


def test_the_letter_judge_has_metrics_of_its_own(run, named, server):
    server.trouble = lambda number, body: (200, chat_completion("m"), {})
    scores = metrics(run({**named, "alpaca_regex": "true"}))
    assert "regex_win_rate" in scores
    assert "win_rate" not in scores


def test_predict_only_writes_the_answers_and_calls_no_judge(run, named, server, tmp_path):
    results = run(named, predict_only=True)
    assert server.calls == []
    assert metrics(results) == {"bypass": 999}
    assert len(read_outputs(find_outputs(tmp_path / "rec"))) == FEW


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"judge_base_url": ""}, ConfigError, "names only a part of a judge"),
        ({"alpaca_reference": "/nowhere.json"}, RecordError, "nowhere.json cannot be read"),
        ({"alpaca_difficulty": "/nowhere"}, JudgeError, "holds 0 files df_gamed"),
        ({"generator": "base"}, RecordError, "both called base"),
        ({"record": ""}, ConfigError, "must keep its answers and judgements: give record=DIR"),
        ({"judge_base_url": "not an address"}, ConfigError, "base_url"),
        ({"alpaca_top_logprobs": "many"}, ConfigError, "alpaca_top_logprobs=many is not allowed"),
        ({"alpaca_regex": "perhaps"}, ConfigError, "alpaca_regex=perhaps is not allowed"),
        ({"judge_api_key": "sk-1"}, ConfigError, "judge_api_key must not be given in --metadata"),
    ],
)
def test_what_the_judge_lacks_is_found_before_anything_is_generated(run, named, change, error, message):
    model = run.model()
    with pytest.raises(error, match=message):
        run({**named, **change}, lm=model)
    assert model.generations == 0


SCRIPT = """
import json, sys
import lm_eval, lm_eval.evaluator, lm_eval_aft
from lm_eval.tasks import TaskManager

# it takes seconds, and this test does not need it
lm_eval.evaluator.add_env_info = lambda storage: None
lm_eval_aft.register()
metadata = json.loads(sys.argv[1])
files = dict(data_files=dict(eval=metadata["alpaca_reference"]))
task = dict(task="aft_alpaca_eval", dataset_path="json", dataset_name=None, dataset_kwargs=files)
manager = TaskManager(include_path=str(lm_eval_aft.tasks_path()), include_defaults=False, metadata=metadata)
results = lm_eval.simple_evaluate(
    model="aft", model_args=dict(pretrained=sys.argv[2], dtype="float32", k=2, layers=1, record=metadata["record"]),
    tasks=[dict(group="offline_suite", task=[task])], task_manager=manager, bootstrap_iters=0, device="cpu",
    batch_size="auto", apply_chat_template=True, gen_kwargs=dict(max_gen_toks=8), limit=7)
print("rank", "none" if results is None else "zero")
"""


@pytest.mark.long
def test_two_processes_judge_once_and_write_in_order(named, server, warm, tiny, tmp_path):
    server.trouble = lambda number, body: (200, chat_completion("m", "length", {"m": -0.1, "M": -2.4}), {})
    (tmp_path / "script.py").write_text(SCRIPT)
    done = warm.ranks([str(tmp_path / "script.py"), json.dumps(named), tiny])
    assert done.returncode == 0, done.stderr[-3000:]
    assert sorted(done.stdout.split()) == ["none", "rank", "rank", "zero"]
    rows = read_outputs(find_outputs(tmp_path / "rec"))
    assert [row.instruction for row in rows] == [f"Task {n}" for n in range(7)]
    assert {row.generator for row in rows} == {f"{Path(tiny).name}-k2-l1"}
    assert len(server.calls) == 7


def test_a_run_judged_by_its_samples_is_judged_alike(run, named, server, tmp_path, eval_set):
    """A run of any model has --output_path with --log_samples, and no record=."""
    from click.testing import CliRunner
    from lm_eval.loggers import EvaluationTracker

    from lm_eval_aft.cli.judge_alpaca_eval import alpaca_eval

    tracker = EvaluationTracker(output_path=str(tmp_path / "out"))
    results = run({}, evaluation_tracker=tracker, log_samples=True)
    samples = results.pop("samples")
    tracker.save_results_aggregated(results=results, samples=samples)
    (task,) = samples
    tracker.save_results_samples(task_name=task, samples=samples[task])
    options = ["--judge-model", "m", "--judge-base-url", server.url, "--reference", str(eval_set.reference), "--no-lc"]
    result = CliRunner().invoke(alpaca_eval, [str(tmp_path / "out"), *options])
    assert result.exception is None, result.output
    assert f"{expected_win_rate(FEW):.2f}" in result.output
    assert "a) no length-controlled win rate (--no-lc)." in result.output
