"""``aft_arith``: make a target number out of given numbers, every step written with its result.

A question reads ``7 3 4 5 make 20``; an answer reads ``7 * 3 = 21 ; 21 + 4 = 25 ; 25 - 5 = 20``. Each given number is
used once, with ``+``, ``-`` and ``*``, and every result lies in 1..99, so that a whole number is one token of a small
model. Finding a way is a search, checking one is not: what an aggregator needs. Many ways may lead to one target.
Knows nothing of models. Called by the task ``aft_arith``, by ``answers`` and by ``trainers.family``.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from zlib import crc32

LIMIT = 99  # the largest result of a step
LARGEST = 20  # the largest number given
COUNT = 4  # numbers given
SPLITS = ("train", "train", "train", "train", "train", "train", "train", "train", "validation", "test")
OPERATORS = "+-*"


@dataclass(frozen=True, slots=True)
class Problem:
    """Numbers to use once each, and the number to make of them."""

    numbers: tuple[int, ...]
    target: int

    @property
    def question(self) -> str:
        """The text a model reads."""
        return f"{' '.join(map(str, self.numbers))} make {self.target}"

    @property
    def split(self) -> str:
        """Which split it belongs to: a function of its numbers in any order and its target, so splits are disjoint."""
        return SPLITS[crc32(f"{sorted(self.numbers)} {self.target}".encode()) % len(SPLITS)]

    @classmethod
    def read(cls, question: str) -> Problem:
        """The problem that a question states."""
        *numbers, _make, target = question.split()
        return cls(tuple(map(int, numbers)), int(target))


@dataclass(frozen=True, slots=True)
class Step:
    """One line of an answer, as written: the result may be false."""

    left: int
    operator: str
    right: int
    result: int

    def __str__(self) -> str:
        return f"{self.left} {self.operator} {self.right} = {self.result}"

    @property
    def true(self) -> bool:
        """Whether the result is right."""
        return self.result == apply(self.operator, self.left, self.right)


Way = tuple[Step, ...]


def apply(operator: str, left: int, right: int) -> int:
    """The result of one step."""
    return left + right if operator == "+" else left - right if operator == "-" else left * right


def write(way: Sequence[Step]) -> str:
    """The answer that shows a way."""
    return " ; ".join(map(str, way))


def parse(text: str) -> Way | None:
    """The steps of an answer, true or not; None where it is not of the form."""
    steps = []
    for part in text.split(";"):
        words = part.split()
        if len(words) != 5 or words[1] not in OPERATORS or words[3] != "=":
            return None
        if not all(word.isascii() and word.isdigit() for word in (words[0], words[2], words[4])):
            return None
        steps.append(Step(int(words[0]), words[1], int(words[2]), int(words[4])))
    return tuple(steps)


def follows_rules(problem: Problem, way: Way) -> bool:
    """Whether each step is true and every given number is used exactly once."""
    at_hand = list(problem.numbers)
    for step in way:
        for number in (step.left, step.right):
            if number not in at_hand:
                return False
            at_hand.remove(number)
        if not step.true:
            return False
        at_hand.append(step.result)
    return len(at_hand) == 1


def is_right(problem: Problem, text: str) -> bool:
    """Whether an answer follows the rules and ends in the target."""
    way = parse(text)
    return way is not None and follows_rules(problem, way) and way[-1].result == problem.target


def problems(split: str, seed: int) -> Iterator[tuple[Problem, Way]]:
    """Endless problems of a split, each with a way that solves it; the same for the same seed."""
    rng = random.Random(f"{split} {seed}")
    while True:
        numbers = tuple(rng.randint(1, LARGEST) for _ in range(COUNT))
        way = random_way(numbers, rng)
        if way is not None and (problem := Problem(numbers, way[-1].result)).split == split:
            yield problem, way


def random_way(numbers: Sequence[int], rng: random.Random) -> Way | None:
    """Some way to use all numbers, each result in 1..LIMIT; None where the steps taken led to a dead end."""
    at_hand, way = list(numbers), []
    while len(at_hand) > 1:
        steps = possible_steps(at_hand)
        if not steps:
            return None
        left, right, step = rng.choice(steps)
        way.append(step)
        at_hand = [number for place, number in enumerate(at_hand) if place not in (left, right)] + [step.result]
    return tuple(way)


def possible_steps(numbers: Sequence[int]) -> list[tuple[int, int, Step]]:
    """Every step that two of the numbers allow, with their places; none that multiplies by one."""
    return [
        (left, right, Step(numbers[left], operator, numbers[right], result))
        for left in range(len(numbers))
        for right in range(len(numbers))
        for operator in OPERATORS
        if left != right
        and 1 <= (result := apply(operator, numbers[left], numbers[right])) <= LIMIT
        and not (operator == "*" and 1 in (numbers[left], numbers[right]))
    ]


def spelling(text: str) -> str | None:
    """The answer in one spelling: equal for answers that differ in the order of summands, factors or free steps alone.

    False steps are kept, since a vote is about what was written; None where the text is not of the form.
    """
    way = parse(text)
    if way is None:
        return None
    left = [_ordered(step) for step in way]
    if any(_reads(step, later) for place, step in enumerate(left) for later in left[place + 1 :]):
        return write(left)  # a number is used before it is made: moving steps could make a wrong answer right
    written: list[Step] = []
    while left:
        free = [step for step in left if not any(_reads(step, other) for other in left if other is not step)]
        step = min(free or left[:1], key=str)
        left.remove(step)
        written.append(step)
    return write(written)


def _ordered(step: Step) -> Step:
    """Larger number first where the order does not matter."""
    if step.operator == "-" or step.left >= step.right:
        return step
    return Step(step.right, step.operator, step.left, step.result)


def _reads(step: Step, other: Step) -> bool:
    return other.result in (step.left, step.right)


def solves(answer: str, question: str) -> bool:
    """Whether an answer is right for the problem that a question states: what a vote is scored by."""
    return is_right(Problem.read(question), answer)
