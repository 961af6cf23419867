"""The data and the metric of ``aft_arith``: 4,000 generated test problems, and an exact check of an answer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

from lm_eval_aft.bundled.arith import Problem, is_right, problems, spelling
from lm_eval_aft.core.thinking import without_thoughts

SIZES = {"test": 4000, "validation": 1000}
SEED = 0
INVALID = "[invalid]"


def dataset(**_: Any) -> Any:
    """The test and validation problems, as the ``DatasetDict`` that lm-eval's ``custom_dataset`` returns."""
    from datasets import Dataset, DatasetDict

    return DatasetDict({split: Dataset.from_list(_rows(split, size)) for split, size in SIZES.items()})


def fresh(**_: Any) -> Any:
    """The next 4,000 problems of the test split, for a final evaluation that nobody has seen before."""
    from datasets import Dataset, DatasetDict

    return DatasetDict({"fresh": Dataset.from_list(_rows("test", SIZES["test"], skip=SIZES["test"]))})


def _rows(split: str, size: int, skip: int = 0) -> list[dict[str, str]]:
    """The first ``size`` distinct problems of a split, after ``skip`` others."""
    questions = dict[str, None]()
    for problem, _ in problems(split, SEED):
        questions[problem.question] = None
        if len(questions) == skip + size:
            break
    return [{"question": question} for question in islice(questions, skip, skip + size)]


def spelled(resps: Iterable[Sequence[str]], docs: Sequence[dict[str, Any]]) -> list[str]:
    """lm-eval filter: each first response in one spelling, so that equal ways vote together."""
    return [spelling(without_thoughts(responses[0]).strip()) or INVALID for responses in resps]


def process_results(doc: dict[str, Any], results: Sequence[str]) -> dict[str, float]:
    """1 if the answer uses each number once, every step is true, and it ends in the target; 0 otherwise."""
    return {"exact": float(is_right(Problem.read(doc["question"]), results[0]))}
