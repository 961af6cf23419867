"""Comparisons of judged models, from FastChat's judgements and alpaca_eval's annotations."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from helpers.commands import refusal_of
from lm_eval_aft.analysis.comparison import compare_judgements
from lm_eval_aft.analysis.stats import paired_permutation
from lm_eval_aft.cli import aft
from lm_eval_aft.core.errors import ConfigError, RecordError


def judgement(question: int, model: str, score: float, turn: int = 1, judge: str = "gpt-4") -> dict:
    row = {"question_id": question, "model": model, "judge": [judge, "single-v1"], "user_prompt": "", "judgment": ""}
    return {**row, "score": score, "turn": turn}


def write(path: Path, rows: list[dict]) -> Path:
    lines = json.dumps(rows) if path.suffix == ".json" else "".join(json.dumps(row) + "\n" for row in rows)
    path.write_text(lines)
    return path


def test_ratings_are_paired_by_question_and_turn_and_questions_drawn_whole(tmp_path: Path):
    first = [judgement(n, "a", 5, turn) for n in range(6) for turn in (1, 2)]
    second = [judgement(n, "b", 7 + n % 2, turn) for n in reversed(range(6)) for turn in (1, 2)]
    (row,) = compare_judgements(write(tmp_path / "a.jsonl", first), [write(tmp_path / "b.jsonl", second)]).comparisons
    assert (row.baseline, row.other, row.n) == ("a", "b", 12)
    assert row.difference.estimate == pytest.approx(2.5)
    groups = [n for n in range(6) for _ in (1, 2)]
    scores = [7 + n % 2 for n in groups]
    assert row.p_value == paired_permutation([5] * 12, scores, groups=groups).p_value == 2 / 2**6


def test_repeats_count_once_and_missing_ratings_are_named(tmp_path: Path):
    rows = [judgement(1, "a", 4), {**judgement(1, "a", 6), "repeat": 1}, judgement(2, "a", -1), judgement(2, "a", 3, 2)]
    rows += [judgement(1, "b", 5), judgement(2, "b", 3, 2)]
    (row,) = compare_judgements(write(tmp_path / "a.jsonl", rows), []).comparisons
    assert (row.n, row.counts.ties) == (2, 2)
    assert "judgements without a score: 1 of the baseline, 0 of this one" in row.notes


def test_another_judge_or_other_questions_are_refused(tmp_path: Path):
    a = write(tmp_path / "a.jsonl", [judgement(1, "a", 5)])
    with pytest.raises(RecordError, match=r"judge gpt-4, prompts \S+ against judge me"):
        compare_judgements(a, [write(tmp_path / "b.jsonl", [judgement(1, "b", 5, judge="me")])])
    with pytest.raises(RecordError, match="2 differ: 1, 2"):
        compare_judgements(a, [write(tmp_path / "c.jsonl", [judgement(2, "b", 5)])], common=True)
    with pytest.raises(ConfigError, match="judgements on a alone"):
        compare_judgements(a, [a])
    with pytest.raises(RecordError, match=r"d\.jsonl"):
        compare_judgements(a, [write(tmp_path / "d.jsonl", [{"question_id": 1}])])


def test_a_task_and_a_metric_of_judgements_are_honoured(tmp_path: Path):
    file = write(tmp_path / "a.jsonl", [judgement(n, model, 5 + n) for n in range(3) for model in ("a", "b")])
    for task, metric in (("mt_bench", "rating"), ("aft_mt_bench", "rating,none")):
        (row,) = compare_judgements(file, [], tasks=[task], metric=metric).comparisons
        assert (row.score.task, row.score.metric) == ("mt_bench", "rating")
    with pytest.raises(ConfigError, match="--task gsm8k: these files hold judgements of mt_bench; give that"):
        CliRunner().invoke(aft, ["compare", str(file), "--task", "gsm8k"], catch_exceptions=False)
    with pytest.raises(ConfigError, match="--metric acc: these judgements have rating; give that"):
        CliRunner().invoke(aft, ["compare", str(file), "--metric", "acc"], catch_exceptions=False)


def test_published_judgements_and_annotations(shared: Path):
    ratings = shared / "data/mt_bench/model_judgment/gpt-4_single.claude-3.jsonl"
    done = CliRunner().invoke(aft, ["compare", str(ratings)])
    assert done.exit_code == 0, done.output
    assert "claude-3-opus-20240229 is 0.53 worse than claude-3-5-sonnet-20240620" in done.output
    files = [str(shared / f"data/alpaca_eval/results/{name}/annotations.json") for name in ("alpaca-7b", "claude-2.1")]
    done = CliRunner().invoke(aft, ["compare", *files, "--format", "json"])
    (row,) = json.loads(done.output)
    assert row["n"] == 805
    assert 100 * row["baseline_mean"] == pytest.approx(2.591450540223603)
    assert 100 * row["other_mean"] == pytest.approx(15.733506736409938)
    assert CliRunner().invoke(aft, ["compare", *reversed(files), "--fail-on-regression"]).exit_code == 1


@pytest.mark.parametrize(
    "words",
    [["--members"], ["--regex", "x"], ["--drafts", "d"], ["--traces", "t"], ["--price-in", 0, "--price-out", 0]],
)
def test_options_without_a_use_are_refused(tmp_path: Path, words: list[object]):
    file = write(tmp_path / "a.jsonl", [judgement(1, "a", 5), judgement(1, "b", 6)])
    (tmp_path / "t").mkdir()
    (tmp_path / "d").mkdir()
    paths = [str(tmp_path / word) if word in ("d", "t") else word for word in words]
    sentence = f"{words[0]} is given, and files of judgements have no use for it: leave it out."
    assert refusal_of("compare", file, *paths) == sentence
