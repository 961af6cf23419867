"""IFEval with lm-eval's own prompts and checkers, scored alike every time.

Two checkers draw: langdetect samples n-grams of the text, and an instruction whose argument is missing from the data
gets one from ``random``. Both are seeded here, per prompt. lm-eval's checkers look for NLTK's sentence tables only when
they are imported, after all answers are written, and go on without them; here they are looked for first.
Nothing of lm-eval's ifeval is imported at the top, because that import downloads. Called by aft_ifeval.yaml.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import chain
from typing import Any

from lm_eval_aft.core.errors import ConfigError

PACKAGES = ("immutabledict", "langdetect", "nltk")
TABLES = "tokenizers/punkt_tab/english/"
SEED = 0


def checked_docs(docs: Any) -> Any:
    """The documents as they are, once all that scoring needs is known to be here.

    Raises:
        ConfigError: If a package or NLTK's tables are missing; lm-eval calls this before anything is generated.
    """
    absent = [name for name in PACKAGES if find_spec(name) is None]
    if absent:
        raise ConfigError(
            f"aft_ifeval cannot score without {', '.join(absent)}: install the extra with "
            "pip install 'lm_eval_aft[ifeval]'."
        )
    if not _tables_are_here():
        raise ConfigError(
            "aft_ifeval cannot score without NLTK's punkt_tab, which is in no folder of nltk.data.path and could not "
            "be downloaded: run python -m nltk.downloader punkt_tab, or set NLTK_DATA to a folder that holds "
            f"{TABLES.rstrip('/')}."
        )
    return docs


def process_results(doc: dict[str, Any], results: Sequence[str]) -> dict[str, Any]:
    """The stock metrics of one answer; the same answer always gets the same."""
    from lm_eval.tasks.ifeval import utils as stock

    with seeded(doc["key"]):
        metrics: dict[str, Any] = stock.process_results(doc, results)
    return metrics


def instruction_mean(items: Sequence[Sequence[bool]]) -> float:
    """The share of instructions followed, over all prompts."""
    followed = list(chain.from_iterable(items))
    return sum(followed) / len(followed)


@contextmanager
def seeded(key: int) -> Iterator[None]:
    """Seed what the checkers draw from by the prompt's key, and leave everyone else's draws as they were."""
    from langdetect import DetectorFactory

    outside, sampled = random.getstate(), DetectorFactory.seed
    random.seed(f"{SEED}/{key}")
    DetectorFactory.seed = SEED
    try:
        yield
    finally:
        random.setstate(outside)
        DetectorFactory.seed = sampled


def _tables_are_here() -> bool:
    import nltk

    if _found():
        return True
    nltk.download("punkt_tab", quiet=True)  # as the stock task does
    return _found()


def _found() -> bool:
    import nltk

    try:
        nltk.data.find(TABLES)
    except LookupError:
        return False
    return True
