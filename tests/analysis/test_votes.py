"""Votes over drafts: exact scores compared with brute force, extraction as in the tasks, and whole runs from files."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from helpers.made_runs import log_targets as log
from helpers.scripted_runs import make_drafts
from lm_eval_aft.analysis.diagnosis import diagnose_traces
from lm_eval_aft.analysis.grading import grade
from lm_eval_aft.analysis.runs import read_entries
from lm_eval_aft.analysis.votes import VotePoint, Votes, count_votes
from lm_eval_aft.analysis.voting import majority_chance, score_texts
from lm_eval_aft.cli import aft
from lm_eval_aft.core.errors import AFTError, ConfigError, RecordError
from lm_eval_aft.core.records import Chat, Completion, Draft, Message, Question, Sampling, Trace
from lm_eval_aft.core.usage import ModelShape, Usage
from lm_eval_aft.inference.extraction import choose_extraction
from lm_eval_aft.inference.selection import Candidates, Majority
from lm_eval_aft.storage.traces import read_traces, write_traces

PLAIN = Sampling(0.7, 0.95, 0, 64)
GOLD = "7"


def trace(texts: list[str], answer: str, doc: int = 0, task: str = "gsm8k", **settings: object) -> Trace:
    """A trace whose drafts have 10, 11, 12, ... tokens."""
    question = Question(Chat((Message("user", f"q{doc}"),)), PLAIN, PLAIN, task, doc, f"h{doc}")
    drafts = [
        Draft(0, i, i, Completion(text, (), "stop", 5, 5, 10 + i), reused=False, elapsed_s=0.0)
        for i, text in enumerate(texts)
    ]
    last = Draft(1, 0, 9, Completion(answer, (), "stop", 5, 5, 20), reused=False, elapsed_s=0.0)
    values = {"k": len(texts), "layers": 1, **settings}
    usage = Usage(len(texts) + 1, 0, 0, sum(10 + i for i in range(len(texts))) + 20)
    return Trace(question, (*drafts, last), ((0,) * len(texts),), answer, usage, usage, values)


def score_drafts(answers: list[str | None], n: int) -> tuple[float, float | None, float]:
    return score_texts(answers, [float(answer == GOLD) for answer in answers], n)


def by_hand(answers: list[str | None], n: int) -> tuple[float, float, float]:
    """Mean, majority and oracle, counted over every choice of n drafts."""
    means, votes, oracles = [], [], []
    for chosen in combinations(answers, n):
        counts = Counter(answer for answer in chosen if answer is not None)
        top = [answer for answer, count in counts.items() if count == max(counts.values())]
        means.append(chosen.count(GOLD) / n)
        votes.append((GOLD in top) / len(top) if top else 0.0)
        oracles.append(GOLD in chosen)
    return tuple(sum(column) / len(column) for column in (means, votes, oracles))


@given(st.lists(st.sampled_from(["7", "7", "8", "9", "10", None]), min_size=1, max_size=8))
def test_scores_equal_the_mean_over_every_choice_of_drafts(answers: list[str | None]):
    for n in range(1, len(answers) + 1):
        assert score_drafts(answers, n) == pytest.approx(by_hand(answers, n))


def test_ties_are_drawn_by_lot_and_silent_drafts_do_not_vote():
    assert score_drafts(["7", "8"], 2)[1] == 0.5
    assert score_drafts(["7", "8", "9"], 3)[1] == pytest.approx(1 / 3)
    assert score_drafts(["7", None, None], 3) == (pytest.approx(1 / 3), 1.0, 1.0)
    assert score_drafts([None, None], 2) == (0.0, 0.0, 0.0)
    assert score_drafts(["8", "8", "7"], 3) == (pytest.approx(1 / 3), 0.0, 1.0)


def test_sixty_four_drafts_take_no_enumeration():
    assert majority_chance(30, (4, 10, 20), 0, 64) == 1.0
    assert 0.6 < majority_chance(30, (4, 10, 20), 0, 16) < 1.0
    assert majority_chance(1, (), 63, 1) == 1 / 64


@pytest.mark.parametrize(
    ("text", "answer"),
    [("So 3 + 4 = 7.", "7"), ("The answer is $1,007.00", "1007"), ("#### 7", "7"), ("no number", None), ("", None)],
)
def test_numeric_tasks_use_their_own_extraction(text: str, answer: str | None):
    for task in ("gsm8k", "gsm8k_cot_llama", "aft_gsm8k", "aft_demo"):
        assert choose_extraction(task).answer(text) == answer


def test_gold_is_read_from_either_form_of_target():
    assert choose_extraction("gsm8k").gold("3 + 4 = <<3+4=7>>7\n#### 7") == "7"
    assert choose_extraction("aft_demo").gold("7.0") == "7"


def test_of_a_regex_the_last_match_wins():
    letter = choose_extraction("arc", r"\(([A-D])\)")
    assert [letter.answer(text) for text in ("(A) or (B)", "none", "")] == ["B", None, None]
    assert (letter.gold("(C)"), letter.gold(" C ")) == ("C", "C")
    assert choose_extraction("arc", "[A-D]").answer("A, so C") == "C"


def test_a_task_without_extraction_and_a_broken_regex_are_refused():
    with pytest.raises(ConfigError, match="the answers of ifeval cannot be extracted: give --regex"):
        choose_extraction("ifeval")
    with pytest.raises(ConfigError, match=r"the regex '\(' is not a valid"):
        choose_extraction("gsm8k", "(")


def test_what_follows_a_tasks_stop_string_is_no_answer(tmp_path: Path):
    """A text may go on after the stop string. lm-eval scores the part before it, and so do votes."""
    going_on = trace(["is 7\n\nQuestion: 2 + 2?\nis 4"] * 2, "so 7\n\nQuestion: 2 + 2?\nis 4")
    going_on = replace(going_on, question=replace(going_on.question, until=("Question:",)))
    write_traces(str(tmp_path / "traces"), going_on.settings, [going_on])
    log(tmp_path / "hf", {0: "#### 7"})
    (votes,) = count(tmp_path)
    assert (row(votes.points[1]), votes.aggregate.estimate) == ((1.0, 1.0, 1.0), 1.0)
    graded = grade(going_on, choose_extraction("gsm8k"), "7")
    assert [text.right for text in graded.texts] == [True, True, True]
    choices = Majority().select([Candidates(going_on.question, [*going_on.layer(0), *make_drafts("is 4", "is 4")])])
    assert choices[0].scores == (2.0, 2.0, 2.0, 2.0)


def test_two_runs_that_draw_otherwise_are_two(tmp_path: Path):
    short = trace(["is 8"] * 2, "so 8")
    short = replace(short, question=replace(short.question, drafts=replace(PLAIN, max_tokens=4)))
    write_traces(str(tmp_path / "traces"), short.settings, [short])
    write_traces(str(tmp_path / "traces"), short.settings, [trace(["is 7"] * 2, "so 7")])
    log(tmp_path / "hf", {0: "#### 7"})
    assert sorted(votes.aggregate.estimate for votes in count(tmp_path)) == [0.0, 1.0]
    diagnosed = diagnose_traces(read_traces(tmp_path / "traces"), read_entries([tmp_path]))
    assert [len(each.traces) for each in diagnosed] == [1, 1]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Two questions of four drafts each, with gold answers that another run logged."""
    traces = [
        trace(["is 7", "is 7", "is 8", "no idea"], "so 7", 0),
        trace(["is 1", "is 2", "is 7", "is 1"], "so 2", 1),
    ]
    write_traces(str(tmp_path / "traces"), traces[0].settings, traces)
    log(tmp_path / "hf", {0: "#### 7", 1: "#### 2"})
    return tmp_path


def count(out: Path, **options: object) -> tuple[Votes, ...]:
    return count_votes(read_traces(out), read_entries([out]), **options)


def row(point: VotePoint) -> tuple[float, float, float]:
    return point.mean.estimate, point.majority.estimate, point.oracle.estimate


def test_a_run_is_scored_at_every_number_of_drafts(out: Path):
    (votes,) = count(out)
    assert (votes.task, votes.k, votes.layers, votes.silent, votes.without_gold) == ("gsm8k", 4, 1, 1 / 8, 0)
    assert [point.n for point in votes.points] == [1, 2, 3, 4]
    assert row(votes.points[0]) == pytest.approx((3 / 8, 3 / 8, 3 / 8))
    assert row(votes.points[3]) == pytest.approx((3 / 8, 1 / 2, 1))
    assert [point.generated_tokens for point in votes.points] == [11.5, 23, 34.5, 46]
    assert (votes.aggregate.estimate, votes.aggregate_tokens) == (1.0, 66)
    for point in votes.points:
        for interval in (point.mean, point.majority, point.oracle):
            assert 0 <= interval.low <= interval.estimate <= interval.high <= 1


def test_flops_count_the_prompt_once(out: Path):
    shape = {"parameters": 100, "layers": 2, "attention_width": 8}
    ours = {"k": 4, "layers": 1, "generations_per_question": 5, "model": "m", "fingerprint": "f", "model_shape": shape}
    usage = dict.fromkeys(("generations", "prompt_tokens", "computed_prompt_tokens", "generated_tokens", "flops"), 1)
    results = json.loads((out / "hf" / "results_1.json").read_text())
    results["config"]["aft"] = {**ours, "usage": usage}
    (out / "hf" / "results_1.json").write_text(json.dumps(results))
    traces = [trace(["7"] * 3, "7", doc, fingerprint="f") for doc in (0, 1)]
    (votes,) = count_votes(traces, read_entries([out]))
    draft = sum(ModelShape(**shape).flops(5, 5 + tokens) for tokens in (10, 11, 12)) / 3
    prompt = ModelShape(**shape).flops(0, 5)
    assert [point.flops for point in votes.points] == pytest.approx([prompt + n * draft for n in (1, 2, 3)])
    assert count(out)[0].points[0].flops is None


def test_settings_and_tasks_are_told_apart_and_equal_questions_count_once(out: Path):
    more = [trace(["is 7"], "so 7", 0), trace(["is 7"], "so 7", 1)]
    write_traces(str(out / "more"), more[0].settings, more)
    # The same run with a limit.
    write_traces(str(out / "again"), more[0].settings, more[:1])
    assert [(votes.k, votes.aggregate.n) for votes in count(out)] == [(1, 2), (4, 2)]


def test_questions_without_gold_are_left_out_and_counted(out: Path):
    log(out / "hf", {1: "#### 2"})
    (votes,) = count(out)
    assert (votes.aggregate.n, votes.without_gold, votes.aggregate.estimate) == (1, 1, 1.0)
    log(out / "hf", {5: "#### 2"})
    with pytest.raises(RecordError, match=r"no gold answers for gsm8k: give .* --log_samples"):
        count(out)


def test_repeats_of_a_question_are_no_further_questions(tmp_path: Path):
    from dataclasses import replace

    first = trace(["is 7", "is 8"], "so 7")
    second = replace(first, question=replace(first.question, repeat=1), answer="so 8")
    log(tmp_path, {0: "7"})
    (votes,) = count_votes([first, second], read_entries([tmp_path]))
    assert (votes.aggregate.n, votes.aggregate.estimate) == (1, 0.5)


def test_the_command_prints_a_table(out: Path):
    result = CliRunner().invoke(aft, ["votes", str(out)], catch_exceptions=False)
    assert result.exit_code == 0
    for words in ("gsm8k, k=4, layers=1: 2 questions", "12.5% of the drafts hold no answer", "majority %", "66.0"):
        assert words in result.output
    folder = CliRunner().invoke(aft, ["votes", str(out), "--traces", str(out / "traces")])
    assert folder.output == result.output
    other = CliRunner().invoke(aft, ["votes", str(out), "--regex", r"is (\d)"], catch_exceptions=False)
    assert r"regex is (\d)" in other.output


def test_every_form_has_the_numbers(out: Path):
    def printed(form: str) -> str:
        return CliRunner().invoke(aft, ["votes", str(out), "--format", form], catch_exceptions=False).output

    (votes,) = count(out)
    (table,) = json.loads(printed("json"))
    first, last = table["rows"][0], table["rows"][-1]
    assert [row["drafts"]["value"] for row in table["rows"]] == [1, 2, 3, 4, None]
    assert first["majority"]["value"] == votes.points[0].majority.estimate
    assert (first["oracle"]["low"], first["oracle"]["high"]) == (
        votes.points[0].oracle.low,
        votes.points[0].oracle.high,
    )
    assert (last["drafts"]["text"], last["mean"]["value"]) == ("answer", votes.aggregate.estimate)
    heads, *rows = csv.reader(io.StringIO(printed("csv")))
    assert heads[:4] == ["drafts", "mean", "mean/low", "mean/high"]
    assert (rows[3][0], float(rows[3][heads.index("generated_tokens")])) == ("4", 46)
    assert "| drafts | mean % | majority % | oracle % | tokens |" in printed("markdown")


def test_tasks_without_extraction_are_left_out_and_named(out: Path, caplog: pytest.LogCaptureFixture):
    essay = trace(["is 7", "is 8"], "is 7", task="essay")
    write_traces(str(out / "more"), essay.settings, [essay])
    log(out / "hf2", {0: "7"}, "essay")
    result = CliRunner().invoke(aft, ["votes", str(out)], catch_exceptions=False)
    assert "gsm8k, k=4" in result.stdout
    assert "essay" not in result.stdout
    assert "essay is left out" in caplog.text
    by_regex = CliRunner().invoke(aft, ["votes", str(out), "--task", "essay", "--regex", r"\d"], catch_exceptions=False)
    assert "essay, k=2" in by_regex.stdout
    assert "gsm8k" not in by_regex.output
    for task in ("essay", "poem"):
        with pytest.raises(ConfigError, match=f"no traces of --task {task} that are graded or whose answers"):
            CliRunner().invoke(aft, ["votes", str(out), "--task", task], catch_exceptions=False)


def test_what_is_missing_is_said_in_one_sentence(tmp_path: Path):
    result = CliRunner().invoke(aft, ["votes", str(tmp_path)])
    assert isinstance(result.exception, AFTError)
    assert "\n" not in str(result.exception)


def test_importing_loads_nothing_heavy():
    code = "import sys, lm_eval_aft.analysis.votes; print(sorted({'numpy', 'torch', 'lm_eval'} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
