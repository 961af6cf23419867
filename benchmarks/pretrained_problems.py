"""The problems of ``pretrained``: queries with checkable answers, and the functions that check them.

- ``arith``: reach a target from numbers, as in ``aft_arith``, with the question in words.
- ``ifeval``: a request with one to three of the constraints that IFEval checks. The requests are ours. lm-eval's own
  checkers describe the constraints, draw their arguments, and check the texts.
- ``gsm8k``: the training questions of GSM8K.
"""

from __future__ import annotations

import random
import re
import runpy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_eval_aft import tasks_path
from lm_eval_aft.bundled import arith
from lm_eval_aft.core.jsonl import read_jsonl

Row = dict[str, Any]
FORMS = ("a short note", "a letter", "a product review", "a diary entry", "a news item", "a speech", "a list of advice")
READERS = ("a neighbour", "new colleagues", "a school class", "a museum visitor", "the members of a club", "a pen pal")
SUBJECTS = (
    *("a lost umbrella", "growing tomatoes on a balcony", "the night bus", "repairing an old radio", "a rainy picnic"),
    *(
        "learning the accordion",
        "a lighthouse that is for sale",
        "bees in the city",
        "sourdough bread",
        "a chess match",
    ),
    *("walking along a canal", "the first snow", "a broken elevator", "collecting stamps", "painting a fence green"),
)
# Constraints that need another text, or a question that is answered by yes or no.
LEFT_OUT = ("combination:repeat_prompt", "detectable_format:constrained_response", "language:response_language")


@dataclass(frozen=True)
class Kind:
    """One kind of problems.

    Attributes:
        verifier: What grades a text, as ``--verifier`` names it.
        task: Name of the folder and the file of the task.
        tokens: Most tokens of a text, on a CPU and on a GPU.
        has_votes: Whether the task has answers that can be voted on.
    """

    verifier: str
    task: str
    tokens: tuple[int, int]
    has_votes: bool = True


KINDS = {
    "arith": Kind("pretrained_problems:solves", "aft_arith", (40, 40)),
    "ifeval": Kind("pretrained_problems:follows", "aft_ifeval", (160, 1024), has_votes=False),
    "gsm8k": Kind("exact:", "aft_gsm8k", (192, 512)),
}


def rows(kind: str, split: str, numbers: int, train: str, seed: int) -> Iterator[Row]:
    """Yield rows: a query, what checks its answer, and a solution as ``sft_target`` if there is one.

    Args:
        kind: A key of ``KINDS``.
        split: ``train`` or ``validation``. Only arith has the second.
        numbers: How many numbers a problem of arith has.
        train: GSM8K's train.jsonl; "" for the other kinds.
        seed: Seed of the problems.
    """
    if kind == "arith":
        return _arith(split, numbers, seed)
    return _constraints(seed) if kind == "ifeval" else _gsm8k(train, seed)


def solves(text: str, row: Row) -> bool:
    """Whether a text solves a row of arith."""
    return arith.solves(text.strip(), row["question"])


def follows(text: str, row: Row) -> bool:
    """Whether a text follows all constraints of a row, by lm-eval's strict checks."""
    return bool(_task("aft_ifeval")["process_results"](row["doc"], [text])["prompt_level_strict_acc"])


def _task(name: str) -> dict[str, Any]:
    """The functions of a shipped task."""
    return runpy.run_path(str(tasks_path() / name / "utils.py"))


def _arith(split: str, numbers: int, seed: int) -> Iterator[Row]:
    rng, seen = random.Random(f"{split} {seed}"), set[str]()
    # Two numbers give fewer than a thousand problems.
    for _ in range(100_000):
        drawn = tuple(rng.randint(1, arith.LARGEST) for _ in range(numbers))
        way = arith.random_way(drawn, rng)
        if way is None or (problem := arith.Problem(drawn, way[-1].result)).split != split:
            continue
        if problem.question not in seen:
            seen.add(problem.question)
            words = ", ".join(map(str, drawn[:-1])) + f" and {drawn[-1]}"
            query = f"Use each of the numbers {words} once, with +, - and *, to make {problem.target}."
            yield {"query": query, "question": problem.question, "sft_target": arith.write(way)}


def _constraints(seed: int) -> Iterator[Row]:
    # The drafts take long to sample, so what grades them is looked for first.
    _task("aft_ifeval")["checked_docs"]([])
    from lm_eval.tasks.ifeval.instructions_registry import INSTRUCTION_CONFLICTS, INSTRUCTION_DICT, conflict_make

    conflicts = conflict_make({name: set(others) for name, others in INSTRUCTION_CONFLICTS.items()})
    names = sorted(set(INSTRUCTION_DICT) - set(LEFT_OUT))
    # The checkers draw their arguments from the module's generator.
    random.seed(seed)
    key, seen = 10_000_000 * (seed + 1), set[str]()
    while True:
        chosen: list[str] = []
        for name in random.sample(names, random.choice((1, 1, 2, 3))):
            if not any(name in conflicts.get(other, ()) or other in conflicts.get(name, ()) for other in chosen):
                chosen.append(name)
        checkers = [INSTRUCTION_DICT[name](name) for name in chosen]
        form, subject, reader = (random.choice(words) for words in (FORMS, SUBJECTS, READERS))
        described = " ".join(checker.build_description().strip() for checker in checkers)
        request = f"Write {form} about {subject} for {reader}."
        query = f"{request} {described}"
        arguments = [checker.get_instruction_args() or {} for checker in checkers]
        doc = {"key": key, "prompt": query, "instruction_id_list": chosen, "kwargs": arguments}
        if query not in seen:
            seen.add(query)
            key += 1
            yield {"query": query, "request": request, "doc": doc}


def _gsm8k(train: str, seed: int) -> Iterator[Row]:
    task = _task("aft_gsm8k")
    questions = read_jsonl(Path(train))
    random.Random(seed).shuffle(questions)
    for doc in questions:
        gold = task["doc_to_target"](doc)
        solution = re.sub(r"<<[^>]*>>", "", doc["answer"]).rpartition("####")[0]
        yield {"query": task["doc_to_text"](doc), "gold": gold, "sft_target": f"{solution}The answer is {gold}."}
