"""The data and the metric of ``aft_arith``: 4,000 test problems, and an exact check of an answer.

``test.txt`` and ``validation.txt`` hold the first distinct questions that ``problems(split, SEED)`` gives. Making them
takes seconds, and reading them takes none.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lm_eval_aft.bundled.arith import Problem, is_right, spelling
from lm_eval_aft.core.thinking import without_thoughts

SEED = 0
TEST_SIZE = 4000
INVALID = "[invalid]"


def dataset(**_: Any) -> Any:
    """The test problems, as the ``DatasetDict`` that lm-eval's ``custom_dataset`` returns."""
    return _dataset("test", questions("test")[:TEST_SIZE])


def validation(**_: Any) -> Any:
    """The 1,000 validation problems."""
    return _dataset("validation", questions("validation"))


def fresh(**_: Any) -> Any:
    """The next 4,000 problems of the test split, for a final evaluation that nobody has seen before."""
    return _dataset("fresh", questions("test")[TEST_SIZE:])


def questions(split: str) -> list[str]:
    """The questions of a split, ``"test"`` or ``"validation"``."""
    return (Path(__file__).parent / f"{split}.txt").read_text(encoding="ascii").splitlines()


def _dataset(split: str, questions: Sequence[str]) -> Any:
    from datasets import Dataset, DatasetDict

    return DatasetDict({split: Dataset.from_dict({"question": list(questions)})})


def spelled(resps: Iterable[Sequence[str]], docs: Sequence[dict[str, Any]]) -> list[list[str]]:
    """lm-eval filter: each response in one spelling, so that equal ways vote together."""
    return [[spelling(without_thoughts(text).strip()) or INVALID for text in responses] for responses in resps]


def process_results(doc: dict[str, Any], results: Sequence[str]) -> dict[str, float]:
    """1 if the answer uses each number once, every step is true, and it ends in the target; 0 otherwise."""
    return {"exact": float(is_right(Problem.read(doc["question"]), results[0]))}
