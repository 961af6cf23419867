"""The strategies by name: what each one is, and what makes its last layer.

A new strategy that selects is a file in ``lm_eval_aft/inference`` and an entry here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Strategy:
    """How the answer is made from the texts before it.

    Attributes:
        meaning: What the last layer does, in a few words.
        label: What tables call a run. It may hold {k}, {layers} and {hidden}, which names the layers that wrote.
        defaults: Values of model arguments that the strategy changes.
        selector: Import path of the function that loads the selector, "module:function". It takes the configuration,
            the draft store and lm-eval's host arguments. "" if the last layer writes its text.
        selects: Whether the last layer never writes.
        needs_confidence: Whether every text must have its confidence.
        writes_choice: Whether the last layer writes which text to take.
        finds_answers: Whether the strategy looks for answers in texts, so that ``vote_regex`` has a meaning.
    """

    meaning: str
    label: str
    defaults: Mapping[str, int] = field(default_factory=dict)
    selector: str = ""
    selects: bool = False
    finds_answers: bool = False
    needs_confidence: bool = False
    writes_choice: bool = False


STRATEGIES: Mapping[str, Strategy] = {
    "aggregate": Strategy("writes one text", "({k}, {layers})"),
    "refine": Strategy("revises one text", "refined {layers} times", {"k": 1}),
    "majority": Strategy(
        "selects the most frequent answer",
        "majority of {k}{hidden}",
        {"layers": 1},
        "lm_eval_aft.inference.selection:load_majority",
        selects=True,
        finds_answers=True,
    ),
    "weighted": Strategy(
        "selects the most frequent answer; a text counts more if the model was surer of it",
        "weighted vote of {k}{hidden}",
        {"layers": 1},
        "lm_eval_aft.inference.weighted_vote:load_weighted",
        selects=True,
        finds_answers=True,
        needs_confidence=True,
    ),
    "best_of_n": Strategy(
        "selects the best text by reward_model",
        "best of {k}{hidden}",
        {"layers": 1},
        "lm_eval_aft.inference.selection:load_best_of_n",
        selects=True,
    ),
    "beam": Strategy("searches with k beams", "beam of {k}", {"layers": 0}),
    "rsa": Strategy(
        "selects the most frequent answer, or writes one text if answers cannot be found",
        "rsa ({k}, {layers})",
        # The setting of RSA's main results (arXiv 2509.26626): N=16, K=4, T=10.
        {"k": 16, "subset": 4, "layers": 10},
        "lm_eval_aft.inference.selection:load_rsa_vote",
        finds_answers=True,
    ),
    "select": Strategy(
        "writes the number of the best text, which is then the answer",
        "selected of {k}{hidden}",
        {"layers": 1},
        "lm_eval_aft.inference.written_choice:load_written_choice",
        finds_answers=True,
        writes_choice=True,
    ),
    "mbr": Strategy(
        "selects the text that agrees most with all others",
        "mbr of {k}{hidden}",
        {"layers": 1},
        "lm_eval_aft.inference.mbr:load_mbr",
        selects=True,
    ),
}
# The last layer of these selects a text instead of writing one.
SELECTIONS = tuple(name for name, strategy in STRATEGIES.items() if strategy.selects)
