"""MT-Bench: files, prompts, ratings, scores, and judging by a fake judge that fails in every way."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from helpers.fake_judge import KEY, chat_completion, quick_judge
from lm_eval_aft import cli
from lm_eval_aft.core.errors import ConfigError, JudgeError, RecordError
from lm_eval_aft.judging.judge import Judge
from lm_eval_aft.judging.mt_bench.data import (
    CATEGORIES,
    CATEGORIES_WITH_REFERENCE,
    AnswerSet,
    MTBenchAnswer,
    MTBenchQuestion,
    find_answers,
    parse_question,
    parse_response,
    read_answers,
    read_question_file,
    read_references,
    write_answers,
)
from lm_eval_aft.judging.mt_bench.prompts import FASTCHAT_PROMPTS, OWN_PROMPTS, prompt_set
from lm_eval_aft.judging.mt_bench.rate import RatingOptions, judge_answers
from lm_eval_aft.judging.mt_bench.replies import Judgement, parse_rating, read_judgements
from lm_eval_aft.judging.mt_bench.scores import score_judgements
from lm_eval_aft.storage.traces import read_traces


@pytest.fixture(scope="module")
def published(shared) -> Path:
    """FastChat's files."""
    return shared / "data" / "mt_bench"


@pytest.fixture
def server(monkeypatch):
    with quick_judge(monkeypatch) as fake:
        yield fake


def make_answers(folder: Path, per_category: int = 1) -> AnswerSet:
    """Questions of every category, with answers that name their question."""
    questions = [
        MTBenchQuestion(
            81 + 10 * c + n, category, (f"first of {category} {n}", f"second of {category} {n}"), ("42", "")
        )
        for c, category in enumerate(CATEGORIES)
        for n in range(per_category)
    ]
    answers = [MTBenchAnswer(d.question_id, (f"A1 of {d.question_id}", f"A2 of {d.question_id}")) for d in questions]
    return AnswerSet("tiny-k2-l1", tuple(questions), tuple(answers), folder)


def judged(server, answer_set: AnswerSet, options: RatingOptions | None = None, notify=lambda text: None, **settings):
    settings = {"timeout_s": 10, "retries": 2, "quiet": True, **settings}
    prompts = prompt_set(None, None, answer_set.questions)
    with closing(Judge("m", server.url, cache=answer_set.folder / "c.sqlite", **settings)) as judge:
        return judge_answers(answer_set, prompts, judge, options or RatingOptions(), notify)


def run_cli(capfd, *arguments: str) -> tuple[int, str, str]:
    code = 0
    try:
        cli.main(["judge", "mt_bench", *map(str, arguments)])
    except SystemExit as stopped:
        code = int(stopped.code or 0)
    return code, *capfd.readouterr()


class TestRating:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("Good. Rating: [[7]]", 7.0),
            ("[[8.5]]", 8.5),
            ("[[3]] and later [[9]]", 3.0),
            # the double bracket counts, also after a single one
            ("as [1] says, [[6]]", 6.0),
            ("Rating: [4]", 4.0),
            ("[[10]]", 10.0),
            ("[[0]]", None),
            ("[[11]]", None),
            ("[[75]]", None),
            ("[[rating]]", None),
            ("[[-5]]", None),
            ("7/10", None),
            # A judge's thought is no rating, whatever marks it.
            ("<think>Perhaps [[3]]. Or not.</think> Rating: [[9]]", 9.0),
            ("Perhaps [[3]].</think> Rating: [[9]]", 9.0),
            ("[THINK][[3]][/THINK][[9]]", 9.0),
            ("<|channel|>analysis<|message|>[[3]]<|end|><|start|>assistant<|channel|>final<|message|>[[9]]", 9.0),
            ("<think>Perhaps [[3]]", None),
            ("<think>Perhaps [[3]].</think> It is good.", None),
            ("", None),
        ],
    )
    def test_first_double_bracket_else_first_bracket(self, text, expected):
        assert parse_rating(text) == expected


class TestPublished:
    def test_scores_of_published_judgements(self, published):
        groups = read_judgements(published / "model_judgment" / "gpt-4_single.claude-3.jsonl")
        scores = {s.model: s for s in (score_judgements(group, {}) for group in groups)}
        sonnet, opus = scores["claude-3-5-sonnet-20240620"], scores["claude-3-opus-20240229"]
        assert (*sonnet.turns, sonnet.mean) == (9.2375, 9.175, 9.20625)
        assert (*opus.turns, opus.mean) == (9.04375, 8.30625, 8.675)
        assert {(s.prompts, s.judge, s.ratings, s.missing) for s in scores.values()} == {
            (FASTCHAT_PROMPTS, "gpt-4", 160, 0)
        }

    def test_every_published_judgement_is_read_as_fastchat_read_it(self, published):
        for rows in read_judgements(published / "model_judgment" / "gpt-4_single.claude-3.jsonl"):
            assert [parse_rating(row.text) for row in rows] == [row.score for row in rows]

    def test_our_prompts_of_fastchats_templates_are_fastchats(self, published):
        questions = read_question_file(published / "question.jsonl")
        references = read_references(published / "reference_answer" / "gpt-4.jsonl")
        prompts = prompt_set(published / "judge_prompts.jsonl", references, questions)
        assert prompts.name == FASTCHAT_PROMPTS
        compared = 0
        for rows in read_judgements(published / "model_judgment" / "gpt-4_single.claude-3.jsonl"):
            _, answers = read_answers(published / "model_answer" / f"{rows[0].model}.jsonl")
            answer_by_id = {answer.question_id: answer for answer in answers}
            question_by_id = {q.question_id: q for q in questions}
            for row in rows:
                template, messages = prompts.prompt(
                    question_by_id[row.question_id], answer_by_id[row.question_id], row.turn
                )
                assert (template, messages[-1].content) == (row.template, row.prompt)
                compared += 1
        assert compared == 320

    def test_the_command_prints_them(self, published, capfd):
        file = published / "model_judgment" / "gpt-4_single.claude-3.jsonl"
        code, out, _ = run_cli(capfd, "--judgments", file)
        assert code == 0
        assert re.search(r"claude-3-5-sonnet-20240620 a\) +gpt-4 +fastchat +mean +9\.206 ± 0\.176\n", out)
        # the categories are known, since the questions are beside the judgements
        assert re.search(r"claude-3-5-sonnet-20240620 +gpt-4 +fastchat +math +8\.250\n", out)

    def test_a_model_with_missing_ratings_does_not_hide_the_others(self, published, tmp_path, capfd):
        lines = (published / "model_judgment" / "gpt-4_single.claude-3.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        opus = next(row for row in rows if row["model"] == "claude-3-opus-20240229")
        opus["score"] = -1
        file = tmp_path / "judgements.jsonl"
        for ordered in (rows, rows[::-1]):
            file.write_text("".join(json.dumps(row) + "\n" for row in ordered))
            code, out, err = run_cli(capfd, "--judgments", file)
            assert code == 2
            assert re.search(r"claude-3-5-sonnet-20240620 a\) +gpt-4 +fastchat +mean +9\.206", out)
            assert "opus" not in out
            assert "1 of 160 judgements of claude-3-opus-20240229 hold no rating" in err
            code, out, _ = run_cli(capfd, "--judgments", file, "--allow-missing")
            assert code == 0
            assert "claude-3-opus-20240229" in out

    @pytest.mark.parametrize("form", ["markdown", "csv", "json"])
    def test_the_command_prints_them_in_other_forms(self, published, capfd, form):
        file = published / "model_judgment" / "gpt-4_single.claude-3.jsonl"
        code, out, _ = run_cli(capfd, "--judgments", file, "--format", form)
        assert code == 0
        if form == "markdown":
            assert "| claude-3-opus-20240229 | gpt-4 | fastchat | turn 2 | 8.306 |" in out
            return
        rows = list(csv.DictReader(io.StringIO(out))) if form == "csv" else json.loads(out)[0]["rows"]
        ratings = {}
        for row in rows:
            model, score = (row[name]["text"] if form == "json" else row[name] for name in ("model", "score"))
            ratings[model, score] = float(row["rating"]["value"] if form == "json" else row["rating"])
        assert ratings["claude-3-5-sonnet-20240620", "mean"] == 9.20625
        assert ratings["claude-3-opus-20240229", "turn 2"] == 8.30625
        assert len(ratings) == 2 * (3 + len(CATEGORIES))


class TestJudgementFiles:
    @pytest.mark.parametrize("score", [float("nan"), float("inf"), 95, 0, -3, 10.5, -1])
    def test_a_number_that_no_rating_can_be_is_none(self, tmp_path, score):
        row = {"question_id": 81, "model": "m", "judge": ["j", "single-v1"], "judgment": "x", "turn": 1}
        file = tmp_path / "j.jsonl"
        file.write_text("".join(json.dumps({**row, "score": value}) + "\n" for value in (score, 7)))
        ((none, rated),) = read_judgements(file)
        assert (none.score, rated.score) == (None, 7.0)
        with pytest.raises(JudgeError, match="1 of 2 judgements of m hold no rating"):
            score_judgements([none, rated], {})
        assert score_judgements([none, rated], {}, True).mean == 7.0


class TestThoughts:
    def test_a_reply_that_was_cut_in_its_thought_is_no_rating(self, server, tmp_path):
        """The judge's chat template opens the thought, which one finished reply shows."""
        finished = (200, chat_completion("Perhaps [[3]].</think> Rating: [[9]]"), {})
        cut = (200, chat_completion("Perhaps [[3]]. Or", "length"), {})
        server.trouble = lambda number, body: cut if "first of math" in str(body) else finished
        notes: list[str] = []
        scores = judged(server, make_answers(tmp_path), RatingOptions(allow_missing=True), notes.append)
        assert (scores.mean, scores.ratings, scores.missing) == (9.0, 14, 2)
        assert any("2 judgements hold no rating: they are requested once more" in note for note in notes)

    def test_a_cut_reply_of_a_judge_that_does_not_think_counts(self, server, tmp_path):
        server.trouble = lambda number, body: (200, chat_completion("Rating: [[8]]. Because", "length"), {})
        assert judged(server, make_answers(tmp_path)).mean == 8.0

    @pytest.mark.parametrize("thought", ["<think>hm</think>", "hm</think>", "<seed:think>hm</seed:think>"])
    def test_thoughts_in_answers_of_any_model_are_not_judged(self, tmp_path, thought):
        answer_set = make_answers(tmp_path)
        answers = [replace(answer, turns=(thought + answer.turns[0], thought)) for answer in answer_set.answers]
        file = write_answers(tmp_path, "m", answer_set.questions, answers)
        assert [answer.turns for answer in find_answers(file, None).answers] == [
            (answer.turns[0], "") for answer in answer_set.answers
        ]


class TestFiles:
    def test_answers_are_written_as_fastchat_writes_them(self, published, tmp_path):
        theirs = json.loads((published / "model_answer" / "gpt-4.jsonl").read_text().splitlines()[0])
        answer_set = make_answers(tmp_path)
        # a judge reads what a user would read
        response = json.dumps({"turns": ["<think>why</think> said ", "é\u2028x"]})
        first = parse_response(answer_set.questions[0], response)
        assert first == MTBenchAnswer(81, ("said", "é\u2028x"))
        answers = (first, *answer_set.answers[1:])
        file = write_answers(tmp_path, "org/m", answer_set.questions, answers)
        rows = [json.loads(line) for line in file.read_text().split("\n") if line]
        assert rows[0].keys() == theirs.keys()
        assert rows[0]["choices"][0].keys() == theirs["choices"][0].keys()
        assert len({row["answer_id"] for row in rows}) == len(rows)
        assert find_answers(file, None) == AnswerSet("org/m", answer_set.questions, answers, tmp_path)

    @pytest.mark.parametrize("name", ["gpt-4", "gpt-3.5-turbo", "vicuna-13b-v1.3", "claude-3-opus-20240229"])
    def test_published_answers_are_read(self, published, name):
        answer_set = find_answers(published / "model_answer" / f"{name}.jsonl", None)
        assert len(answer_set.answers) == 80
        numbers = [question.question_id for question in answer_set.questions]
        assert numbers == [answer.question_id for answer in answer_set.answers]

    def test_rows_of_the_hub_get_fastchats_numbers(self):
        row = {"prompt": ["a", "b"], "prompt_id": 43_000_000, "category": "math", "reference": ["1", ""]}
        assert parse_question(row, 30) == MTBenchQuestion(111, "math", ("a", "b"), ("1", ""))

    def test_foreign_and_broken_files_are_named(self, tmp_path, published):
        answer_set = make_answers(tmp_path)
        file = write_answers(tmp_path, "m", answer_set.questions, answer_set.answers)
        lines = file.read_text().splitlines()
        bad = tmp_path / "bad.jsonl"
        for text, message in [
            ("\n".join([*lines, lines[0]]), r"answers a question more than once: \[81\]"),
            ("\n".join(lines).replace('"m"', '"n"', 1), "answers of 2 models"),
            (lines[0].replace("81", "999"), r"not among the 8 known ones: \[999\]"),
            (lines[0].replace(', "A2 of 81"', ""), "has 1 answers to the 2 turns of question 81"),
            ("{}", "not a model_answer file"),
            ("half a li", "line 1 is not JSON"),
            ("", "has no rows"),
        ]:
            bad.write_text(text)
            with pytest.raises(RecordError, match=message):
                find_answers(bad, tmp_path / "question.jsonl")
        with pytest.raises(RecordError, match="there is no"):
            find_answers(tmp_path / "nowhere", None)
        (tmp_path / "empty").mkdir()
        with pytest.raises(RecordError, match="no answers to MT-Bench: run lm_eval with --log_samples or record="):
            find_answers(tmp_path / "empty", None)
        with pytest.raises(RecordError, match="not a single-answer judgement"):
            read_judgements(published / "question.jsonl")

    def test_answers_without_their_questions_where_there_is_no_hub(self, tmp_path):
        answer_set = make_answers(tmp_path)
        file = write_answers(tmp_path, "m", answer_set.questions, answer_set.answers).rename(tmp_path / "alone.jsonl")
        (tmp_path / "question.jsonl").rename(tmp_path / "q.jsonl")
        with pytest.raises(RecordError, match=r"cannot be downloaded: give .* --questions FILE"):
            find_answers(file, None)
        assert find_answers(file, tmp_path / "q.jsonl").answers == answer_set.answers

    def test_what_is_kept_in_a_record_folder_is_no_trace(self, tmp_path):
        answer_set = make_answers(tmp_path / "mt_bench")
        write_answers(answer_set.folder, "m", answer_set.questions, answer_set.answers)
        with pytest.raises(RecordError, match="there are no traces"):
            list(read_traces(tmp_path))


class TestPrompts:
    def test_references_only_for_three_categories_and_only_where_there_is_one(self, tmp_path):
        answer_set = make_answers(tmp_path)
        prompts = prompt_set(None, None, answer_set.questions)
        assert prompts.name == OWN_PROMPTS
        for question, answer in zip(answer_set.questions, answer_set.answers, strict=True):
            first, second = (prompts.prompt(question, answer, turn)[1][-1].content for turn in (1, 2))
            assert ("42" in first) == (question.category in CATEGORIES_WITH_REFERENCE)
            # the second turn has no reference
            assert "42" not in second
            assert all(text in first for text in (question.turns[0], answer.turns[0]))
            assert answer.turns[1] not in first
            assert all(text in second for text in (*question.turns, *answer.turns))

    def test_braces_in_an_answer_are_left_alone(self, tmp_path):
        answer_set = make_answers(tmp_path)
        odd = replace(answer_set.answers[0], turns=("{question} {0} }{ {answer_2.x}", "b"))
        _, messages = prompt_set(None, None, answer_set.questions).prompt(answer_set.questions[0], odd, 1)
        assert odd.turns[0] in messages[-1].content

    def test_only_fastchats_own_files_get_its_name(self, published, tmp_path):
        questions = read_question_file(published / "question.jsonl")
        references = read_references(published / "reference_answer" / "gpt-4.jsonl")
        file = tmp_path / "judge_prompts.jsonl"
        file.write_text((published / "judge_prompts.jsonl").read_text().replace("Be as objective", "Be objective"))
        assert prompt_set(file, references, questions).name.startswith("judge_prompts-")
        fewer = {**references, 101: ("other", "words")}
        assert prompt_set(published / "judge_prompts.jsonl", fewer, questions).name != FASTCHAT_PROMPTS
        assert prompt_set(None, references, questions).name.startswith("aft-v1-ref-")

    def test_fastchats_prompts_need_its_references(self, published):
        questions = read_question_file(published / "question.jsonl")
        with pytest.raises(ConfigError, match=r"30 have none \(\[101, 102, 103\]\): give .* --references FILE"):
            prompt_set(published / "judge_prompts.jsonl", None, questions)

    def test_files_that_are_none(self, tmp_path):
        file = tmp_path / "p.jsonl"
        row = {"name": "single-v1", "system_prompt": "x", "prompt_template": "{question.__class__}"}
        for text, message in [
            ("[1]", "is not FastChat's"),
            ("{}", "is not FastChat's"),
            (json.dumps({**row, "name": "other"}), "has no whole template single-v1"),
            (json.dumps(row), r"has fields \['question.__class__'\]"),
            (json.dumps({**row, "prompt_template": "{"}), "stray brace"),
            (json.dumps({**row, "prompt_template": "{answer:d}"}), r"has fields \['answer:d'\]; allowed are answer, "),
            (json.dumps({**row, "prompt_template": "{answer!z}"}), r"has fields \['answer!z'\]"),
        ]:
            file.write_text(text)
            with pytest.raises(ConfigError, match=message):
                prompt_set(file, {}, [])
        with pytest.raises(ConfigError, match="cannot be read"):
            prompt_set(tmp_path / "nowhere", {}, [])


class TestJudging:
    def test_scores_per_turn_category_and_flat(self, server, tmp_path):
        values = {category: 2 + n for n, category in enumerate(CATEGORIES)}

        def say(body):
            text = body["messages"][-1]["content"]
            category = next(name for name in CATEGORIES if f"of {name} " in text)
            return f"Hm. [[{values[category] - ('second' in text)}]]"

        server.say = say
        scores = judged(server, make_answers(tmp_path, per_category=2))
        assert scores.categories == {name: value - 0.5 for name, value in values.items()}
        assert scores.turns == (5.5, 4.5)
        assert scores.mean == 5.0
        assert (scores.ratings, scores.missing, scores.questions, scores.repeats) == (32, 0, 16, 1)
        assert scores.metrics()["aft-v1_score"] == 5.0
        assert scores.metrics()["aft-v1_turn_2"] == 4.5
        kept = json.loads((tmp_path / "scores_m_aft-v1.tiny-k2-l1.json").read_text())
        assert kept["scores"]["mean"] == 5.0
        assert (kept["prompts"]["comparable"], kept["judge_tokens"]) == (
            False,
            {"prompt": 32 * 11, "generated": 32 * 3},
        )
        (again,) = read_judgements(tmp_path / "model_judgment" / "m_aft-v1.tiny-k2-l1.jsonl")
        assert score_judgements(again, {}).mean == 5.0
        assert "Not comparable with published scores" in scores.describe()
        assert "16 of 80 questions, 32 ratings, 0 judgements missing" in scores.describe()

    def test_a_judgement_without_rating_is_asked_once_more_then_left_out_and_counted(self, server, tmp_path):
        answer_set = make_answers(tmp_path)
        unrated, prompts = "A1 of 91", []

        def say(body):
            text = body["messages"][-1]["content"]
            prompts.append(text)
            if unrated in text and "A2" not in text:
                return "I would rather not say."
            return "I cannot decide." if "A1 of 81" in text and prompts.count(text) == 1 else "[[6]]"

        server.say = say
        notices: list[str] = []
        with pytest.raises(JudgeError, match=r"1 of 16 judgements of tiny-k2-l1 hold no rating \(question 91 turn 1\)"):
            judged(server, answer_set, notify=notices.append)
        assert len(server.calls) == 16 + 3
        assert [call["temperature"] for call in server.calls] == [0.0] * 16 + [0.7] * 3
        assert any("3 judgements hold no rating: they are requested once more" in line for line in notices)
        scores = judged(server, answer_set, RatingOptions(allow_missing=True))
        # replies without a rating are kept too
        assert len(server.calls) == 19
        assert (scores.mean, scores.missing, scores.ratings) == (6.0, 1, 15)
        assert "1 judgements missing and left out" in scores.describe()
        kept = (tmp_path / "model_judgment" / "m_aft-v1.tiny-k2-l1.jsonl").read_text()
        rows = [json.loads(line) for line in kept.splitlines()]
        assert [row["score"] for row in rows if row["question_id"] == 91] == [-1, 6.0]

    def test_nothing_but_missing_is_no_score_even_if_allowed(self, server, tmp_path):
        server.say = lambda body: "no"
        with pytest.raises(JudgeError, match=r"16 of 16 .* and others"):
            judged(server, make_answers(tmp_path), RatingOptions(allow_missing=True))

    def test_a_call_too_long_for_the_judge_is_missing_not_bad(self, server, tmp_path):
        long = {"error": {"message": "maximum context length is 10", "code": None}}
        server.trouble = lambda n, body: (400, long, {}) if "A1 of 81" in str(body) else None
        scores = judged(server, make_answers(tmp_path), RatingOptions(allow_missing=True))
        assert (scores.missing, scores.mean) == (2, 7.0)
        # the call is not made once more, since it would be as long
        assert len(server.calls) == 16

    def test_one_that_dies_part_way_is_asked_only_for_the_rest(self, server, tmp_path):
        answer_set = make_answers(tmp_path, per_category=3)
        server.trouble = lambda number, body: (503, "gone", {}) if number >= 20 else None
        with pytest.raises(JudgeError, match="20 of 48 judgements are done, 28 are left"):
            judged(server, answer_set)
        seen = len(server.calls)
        server.trouble = lambda number, body: None
        assert judged(server, answer_set).ratings == 48
        assert len(server.calls) == seen + 28

    def test_repeats_have_a_spread_and_share_what_was_judged(self, server, tmp_path):
        answer_set = make_answers(tmp_path)
        judged(server, answer_set)
        count: dict[str, int] = {}

        def say(body):
            text = body["messages"][-1]["content"]
            count[text] = count.get(text, 0) + 1
            return f"[[{7 + count[text]}]]"

        server.say = say
        scores = judged(server, answer_set, RatingOptions(repeats=3), concurrency=1)
        assert len(server.calls) == 16 * 3
        assert (scores.mean, scores.repeats, scores.ratings, scores.questions) == (8.0, 3, 48, 8)
        assert scores.spread == 1.0
        assert scores.metrics()["aft-v1_spread"] == 1.0
        assert "over 3 repeats" in scores.describe()

    def test_the_estimate_comes_first_and_the_bound_is_kept(self, server, tmp_path):
        notices: list[str] = []
        with pytest.raises(JudgeError, match="--max-judge-calls=15 is too low"):
            judged(
                server, make_answers(tmp_path), RatingOptions(price_in=1.0, price_out=2.0), notices.append, max_calls=15
            )
        assert server.calls == []
        assert "16 judge calls to make" in notices[0]
        assert "by --price-in and --price-out" in notices[0]


class TestStandardError:
    def test_by_question_since_turns_of_one_are_not_independent(self):
        rows = [
            Judgement(q, "m", "j", OWN_PROMPTS, OWN_PROMPTS, turn, 0, "", "", value)
            for q, value in ((81, 4.0), (82, 6.0), (83, 8.0))
            for turn in (1, 2)
        ]
        scores = score_judgements(rows, {81: "math"})
        assert scores.stderr == pytest.approx(2 / 3**0.5)
        assert scores.categories == {"math": 4.0}


class TestCommand:
    def test_a_model_answer_file_of_fastchat(self, server, published, tmp_path, capfd):
        home = tmp_path / "mt_bench"
        shutil.copytree(published / "model_answer", home / "model_answer")
        shutil.copy(published / "question.jsonl", home)
        arguments = ["--judge-model", "m", "--judge-base-url", server.url, "--concurrency", "4"]
        files = ["--judge-prompts", published / "judge_prompts.jsonl"]
        files += ["--references", published / "reference_answer" / "gpt-4.jsonl"]
        code, out, err = run_cli(capfd, home / "model_answer" / "gpt-4.jsonl", *arguments, *files)
        assert code == 0, err
        assert re.search(r"gpt-4 a,b\) +m +fastchat +mean +7\.000", out)
        assert "a) Published scores were judged by gpt-4." in out
        assert "b) All 80 questions, 160 ratings, 0 judgements missing and left out." in out
        assert "160 judge calls to make" in err
        assert len(server.calls) == 160
        assert {call["temperature"] for call in server.calls} == {0.0}
        code, out, _ = run_cli(capfd, "--judgments", home / "model_judgment" / "m_fastchat.gpt-4.jsonl")
        assert re.search(r"gpt-4 a,b\) +m +fastchat +mean +7\.000", out)
        code, _, _ = run_cli(capfd, home / "model_answer" / "gpt-4.jsonl", *arguments)
        assert code == 0
        # other judge prompts need judgements of their own
        assert len(server.calls) == 320
        assert len(list(home.glob("scores_*.json"))) == 2
        code, _, err = run_cli(capfd, home, *arguments)
        assert code == 2
        assert "files of answers to MT-Bench: give one of" in err

    def test_the_key_is_nowhere(self, server, tmp_path, capfd, caplog):
        answer_set = make_answers(tmp_path)
        file = write_answers(tmp_path, "m", answer_set.questions, answer_set.answers)
        arguments = [file, "--judge-model", "m", "--judge-base-url", server.url, "--retries", "0"]
        server.trouble = lambda n, body: (401, {"error": {"message": f"bad {KEY}"}}, {}) if n > 3 else None
        code, out, err = run_cli(capfd, *arguments)
        assert code == 2
        assert "refuses the key in OPENAI_API_KEY" in err
        server.trouble = lambda n, body: None
        assert run_cli(capfd, *arguments)[0] == 0
        assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
        assert KEY not in out + err + caplog.text
        files = [path for path in tmp_path.rglob("*") if path.is_file()]
        assert len(files) >= 4
        assert not any(KEY.encode() in path.read_bytes() for path in files)

    def test_a_bound_of_the_cost_stops_it_and_a_higher_one_resumes_it(self, server, tmp_path, capfd):
        answer_set = make_answers(tmp_path)
        file = write_answers(tmp_path, "m", answer_set.questions, answer_set.answers)
        arguments = [file, "--judge-model", "m", "--judge-base-url", server.url, "--concurrency", "2"]
        code, _, err = run_cli(capfd, *arguments, "--max-cost", "1")
        assert code == 2
        assert "--max-cost 1 needs the cost of tokens: give --price-in and --price-out" in err
        assert server.calls == []
        # A call has 11 prompt tokens and 3 generated ones.
        arguments += ["--price-in", "1000000", "--price-out", "0"]
        code, _, err = run_cli(capfd, *arguments, "--max-cost", "66")
        paid = len(server.calls)
        assert code == 2
        assert 6 <= paid <= 8
        assert f"--max-cost=66 is reached: {11 * paid} are spent; the judgements made are kept in " in err
        assert run_cli(capfd, *arguments, "--max-cost", "66")[0] == 2
        assert len(server.calls) == paid
        code, out, err = run_cli(capfd, *arguments, "--max-cost", "177")
        assert code == 0, err
        assert "7.000" in out
        assert len(server.calls) == 16

    def test_what_is_missing_is_said(self, capfd):
        code, _, err = run_cli(capfd, "somewhere")
        assert code == 2
        assert "--judge-model" in err
