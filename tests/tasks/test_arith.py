"""The arithmetic problems: disjoint splits, an exact check, one spelling for equal ways, and the lm-eval task."""

from __future__ import annotations

import random
import sys
from hashlib import sha256
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

import lm_eval_aft
from lm_eval_aft.analysis.voting import score_texts
from lm_eval_aft.bundled import arith
from lm_eval_aft.bundled.arith import Problem, is_right, problems, solves, spelling, write
from lm_eval_aft.inference.extraction import choose_extraction

sys.path.insert(0, str(lm_eval_aft.tasks_path() / "aft_arith"))
import utils as task

sys.path.pop(0)
# Other tasks have a module of that name.
del sys.modules["utils"]
PROBLEM = Problem((7, 3, 4, 5), 20)
RIGHT = "7 * 3 = 21 ; 21 + 4 = 25 ; 25 - 5 = 20"


def test_every_problem_is_solved_by_its_way_and_the_same_again():
    first = list(islice(problems("train", 3), 300))
    assert first == list(islice(problems("train", 3), 300))
    assert first != list(islice(problems("train", 4), 300))
    for problem, way in first:
        assert is_right(problem, write(way))
        assert Problem.read(problem.question) == problem
        assert all(1 <= step.result <= arith.LIMIT for step in way)


def test_splits_are_disjoint_whatever_the_order_of_the_numbers():
    keys = {
        split: {(tuple(sorted(problem.numbers)), problem.target) for problem, _ in islice(problems(split, 0), 3000)}
        for split in ("train", "validation", "test")
    }
    assert not keys["train"] & keys["test"]
    assert not keys["train"] & keys["validation"]
    assert not keys["validation"] & keys["test"]


def test_numbers_that_lead_to_a_dead_end_are_left_out():
    assert arith.random_way((99, 99, 99, 99), random.Random(0)) is None
    assert arith.possible_steps([99, 99]) == []


@pytest.mark.parametrize(
    ("text", "right"),
    [
        (RIGHT, True),
        # 21 is not computed yet.
        ("4 + 21 = 25 ; 7 * 3 = 21 ; 25 - 5 = 20", False),
        # The last step is false.
        ("7 * 3 = 21 ; 21 + 4 = 25 ; 25 - 5 = 21", False),
        # 5 is not used.
        ("7 * 3 = 21 ; 21 + 4 = 25", False),
        # 4 is used twice.
        ("7 * 3 = 21 ; 21 + 4 = 25 ; 25 - 4 = 21", False),
        # The result is another number.
        ("7 + 3 = 10 ; 10 + 4 = 14 ; 14 + 5 = 19", False),
        ("7 * 3 = 21 ; 21 + 4 = 25 ; 25 - 5", False),
        ("7 / 3 = 2", False),
        ("\u0667 * 3 = 21", False),
        ("", False),
    ],
)
def test_the_check(text: str, right: bool):
    assert is_right(PROBLEM, text) is right
    assert solves(text, PROBLEM.question) is right


@given(st.text(max_size=80))
def test_no_text_is_too_odd_to_be_checked(text: str):
    assert is_right(PROBLEM, text) in (True, False)
    assert spelling(text) is None or isinstance(spelling(text), str)


def test_one_spelling_for_equal_ways():
    same = ["3 * 7 = 21 ; 4 + 5 = 9 ; 9 + 21 = 30", "5 + 4 = 9 ; 7 * 3 = 21 ; 21 + 9 = 30"]
    assert len({spelling(text) for text in same}) == 1
    assert spelling("3 * 7 = 21 ; 21 - 5 = 16") != spelling("3 + 7 = 10 ; 21 - 5 = 16")
    assert spelling("no way") is None


def test_a_spelling_keeps_what_is_right_right():
    for problem, way in islice(problems("train", 7), 500):
        assert solves(str(spelling(write(way))), problem.question)


def test_two_right_ways_vote_apart():
    other = "7 + 4 = 11 ; 5 - 3 = 2 ; 11 * 2 = 22"
    extraction = choose_extraction("aft_arith")
    # 25 is used before it is computed.
    turned = "3 * 7 = 21 ; 25 - 5 = 20 ; 4 + 21 = 25"
    answers = [extraction.answer(text) for text in (RIGHT, RIGHT, turned, other)]
    gold = extraction.gold(PROBLEM.question)
    rights = extraction.rights(answers, gold)
    assert rights == {extraction.answer(RIGHT)}
    assert score_texts(answers, [float(answer in rights) for answer in answers], 4) == (0.5, 1.0, 1.0)
    assert score_texts(["a", "b", "c", "c"], [1, 1, 0, 0], 4)[1] == 0.0
    assert score_texts(["a", "b"], [1, 1], 2)[1] == 1.0


@pytest.mark.parametrize(("split", "size"), [("test", 8000), ("validation", 1000)])
def test_the_stored_questions_are_those_that_the_code_makes(split: str, size: int):
    made = dict[str, None]()
    for problem, _ in problems(split, task.SEED):
        made[problem.question] = None
        if len(made) == size:
            break
    assert task.questions(split) == list(made)


def test_the_task_in_lm_eval():
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(lm_eval_aft.tasks_path()), include_defaults=False)
    names = ["aft_arith", "aft_arith_validation", "aft_arith_fresh"]
    loaded = manager.load(names)["tasks"]
    test, validation, fresh = (list(loaded[name].test_docs()) for name in names)
    assert (len(test), len(validation), len(fresh)) == (4000, 1000, 4000)
    assert {Problem.read(doc["question"]).split for doc in fresh} == {"test"}
    assert not {doc["question"] for doc in test} & {doc["question"] for doc in fresh}
    assert not {doc["question"] for doc in test} & {doc["question"] for doc in validation}
    questions = "\n".join(doc["question"] for doc in (*test, *validation, *fresh))
    # Other problems would need another version of the task.
    assert sha256(questions.encode()).hexdigest()[:16] == "8ec968ad03478ea7"
    doc = {"question": PROBLEM.question}
    assert loaded["aft_arith"].process_results(doc, [RIGHT]) == {"exact": 1.0}
    assert task.process_results(doc, ["7"]) == {"exact": 0.0}
