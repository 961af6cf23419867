"""The problems of ``aft_arith``: combine numbers to reach a target, and write every step with its result.

A question is ``7 3 4 5 make 20``, and an answer is ``7 * 3 = 21 ; 21 + 4 = 25 ; 25 - 5 = 20``. An answer uses each
number once, with ``+``, ``-`` and ``*``. Every result is between 1 and 99, so a number is one token of a small model.
To find a way needs a search, to check one does not, so aggregation can help. Several ways may lead to one target.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from zlib import crc32

# The largest result of a step.
LIMIT = 99
# The largest number of a question, and how many numbers it has.
LARGEST = 20
COUNT = 4
# A hash of a problem chooses its split from this list.
SPLITS = ("train", "train", "train", "train", "train", "train", "train", "train", "validation", "test")
OPERATORS = "+-*"


@dataclass(frozen=True, slots=True)
class Problem:
    """Numbers to use once each, and the target."""

    numbers: tuple[int, ...]
    target: int

    @property
    def question(self) -> str:
        """The problem as text."""
        return f"{' '.join(map(str, self.numbers))} make {self.target}"

    @property
    def split(self) -> str:
        """The split of the problem. It depends only on the set of numbers and the target, so splits are disjoint."""
        return SPLITS[crc32(f"{sorted(self.numbers)} {self.target}".encode()) % len(SPLITS)]

    @classmethod
    def read(cls, question: str) -> Problem:
        """The problem of a question."""
        *numbers, _make, target = question.split()
        return cls(tuple(map(int, numbers)), int(target))


@dataclass(frozen=True, slots=True)
class Step:
    """One step of an answer, as written. Its result may be false."""

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
    """The text of a way."""
    return " ; ".join(map(str, way))


def parse(text: str) -> Way | None:
    """The steps of an answer, true or not. None if the text does not have the form of an answer."""
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
    """Whether each step is true and every number of the problem is used exactly once."""
    available = list(problem.numbers)
    for step in way:
        for number in (step.left, step.right):
            if number not in available:
                return False
            available.remove(number)
        if not step.true:
            return False
        available.append(step.result)
    return len(available) == 1


def is_right(problem: Problem, text: str) -> bool:
    """Whether an answer follows the rules and ends in the target."""
    way = parse(text)
    return way is not None and follows_rules(problem, way) and way[-1].result == problem.target


def problems(split: str, seed: int) -> Iterator[tuple[Problem, Way]]:
    """Problems of a split without end, each with a way that solves it. Equal seeds give equal problems."""
    rng = random.Random(f"{split} {seed}")
    while True:
        numbers = tuple(rng.randint(1, LARGEST) for _ in range(COUNT))
        way = random_way(numbers, rng)
        if way is not None and (problem := Problem(numbers, way[-1].result)).split == split:
            yield problem, way


def random_way(numbers: Sequence[int], rng: random.Random) -> Way | None:
    """A random way to use all numbers, each result in 1..LIMIT. None if no further step is possible."""
    available, way = list(numbers), []
    while len(available) > 1:
        steps = possible_steps(available)
        if not steps:
            return None
        left, right, operator, result = rng.choice(steps)
        way.append(Step(available[left], operator, available[right], result))
        available = [number for place, number in enumerate(available) if place not in (left, right)] + [result]
    return tuple(way)


def possible_steps(numbers: Sequence[int]) -> list[tuple[int, int, str, int]]:
    """Positions of two of the numbers, operator and result of every step that is allowed. No step multiplies by one."""
    return [
        (left, right, operator, result)
        for left in range(len(numbers))
        for right in range(len(numbers))
        for operator in OPERATORS
        if left != right
        and 1 <= (result := apply(operator, numbers[left], numbers[right])) <= LIMIT
        and not (operator == "*" and 1 in (numbers[left], numbers[right]))
    ]


def spelling(text: str) -> str | None:
    """One spelling for answers that differ only in the order of summands, factors or independent steps.

    False steps are kept, since a vote counts what was written. None if the text does not have the form of an answer.
    """
    way = parse(text)
    if way is None:
        return None
    left = [_ordered(step) for step in way]
    if any(_reads(step, later) for place, step in enumerate(left) for later in left[place + 1 :]):
        # A number is used before it is computed. Moving the steps could make this wrong answer right.
        return write(left)
    written: list[Step] = []
    while left:
        free = [step for step in left if not any(_reads(step, other) for other in left if other is not step)]
        step = min(free or left[:1], key=str)
        left.remove(step)
        written.append(step)
    return write(written)


def _ordered(step: Step) -> Step:
    """The step with the larger number first if the order does not matter."""
    if step.operator == "-" or step.left >= step.right:
        return step
    return Step(step.right, step.operator, step.left, step.result)


def _reads(step: Step, other: Step) -> bool:
    return other.result in (step.left, step.right)


def solves(answer: str, question: str) -> bool:
    """Whether an answer is right for the problem of a question."""
    return is_right(Problem.read(question), answer)
