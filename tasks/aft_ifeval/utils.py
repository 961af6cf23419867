"""The checks and metrics of ``aft_ifeval``: lm-eval's own prompts and checkers, with equal scores every time.

Two checkers are random. langdetect samples n-grams of the text, and an instruction without its argument in the data
gets a random one. Both are seeded here, per prompt.

lm-eval's checkers look for NLTK's sentence tables when they are imported, after all answers are written. Here the
tables are looked for before the run. lm-eval's ifeval is imported late, since its import downloads.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import chain
from typing import Any

from lm_eval_aft.core.errors import ConfigError
from lm_eval_aft.core.thinking import without_thoughts

PACKAGES = ("immutabledict", "langdetect", "nltk")
TABLES = "tokenizers/punkt_tab/english/"
SEED = 0


def checked_docs(docs: Any) -> Any:
    """Check that scoring has all it needs, and return the documents unchanged.

    lm-eval calls this before anything is generated.

    Raises:
        ConfigError: If a package or NLTK's tables are missing.
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
    """The stock metrics of one answer. Equal answers to a prompt get equal metrics."""
    from lm_eval.tasks.ifeval import utils as stock

    with seeded(doc["key"]):
        metrics: dict[str, Any] = stock.process_results(doc, list(map(without_thoughts, results)))
    return metrics


def instruction_mean(items: Sequence[Sequence[bool]]) -> float:
    """The share of followed instructions, over all prompts."""
    followed = list(chain.from_iterable(items))
    return sum(followed) / len(followed)


@contextmanager
def seeded(key: int) -> Iterator[None]:
    """Seed the random generators of the checkers by the prompt's key, and restore them afterwards."""
    from langdetect import DetectorFactory

    random_state, detector_seed = random.getstate(), DetectorFactory.seed
    random.seed(f"{SEED}/{key}")
    DetectorFactory.seed = SEED
    try:
        yield
    finally:
        random.setstate(random_state)
        DetectorFactory.seed = detector_seed


def _tables_are_here() -> bool:
    import nltk

    if _tables_are_installed():
        return True
    # The stock task downloads them too.
    nltk.download("punkt_tab", quiet=True)
    return _tables_are_installed()


def _tables_are_installed() -> bool:
    import nltk

    try:
        nltk.data.find(TABLES)
    except LookupError:
        return False
    return True
