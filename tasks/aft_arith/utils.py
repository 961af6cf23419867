"""``aft_arith`` in lm-eval: 4,000 test problems of our own generator, and the exact check of an answer."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any

from lm_eval_aft.bundled.arith import Problem, is_right, problems

SIZES = {"test": 4000, "validation": 1000}
SEED = 0


def dataset(**_: Any) -> Any:
    """Both splits as the ``datasets.DatasetDict`` that lm-eval's ``custom_dataset`` wants."""
    from datasets import Dataset, DatasetDict

    return DatasetDict({split: Dataset.from_list(_rows(split, size)) for split, size in SIZES.items()})


def fresh(**_: Any) -> Any:
    """The next 4,000 problems of the test split: for a last look, where the first have been looked at."""
    from datasets import Dataset, DatasetDict

    return DatasetDict({"fresh": Dataset.from_list(_rows("test", SIZES["test"], skip=SIZES["test"]))})


def _rows(split: str, size: int, skip: int = 0) -> list[dict[str, str]]:
    """Different problems of a split, each once."""
    questions = dict[str, None]()
    for problem, _ in problems(split, SEED):
        questions[problem.question] = None
        if len(questions) == skip + size:
            break
    return [{"question": question} for question in islice(questions, skip, skip + size)]


def process_results(doc: dict[str, Any], results: Sequence[str]) -> dict[str, float]:
    """1 where the answer uses each number once, every step is true, and it ends in the target; else 0."""
    return {"exact": float(is_right(Problem.read(doc["question"]), results[0].strip()))}
