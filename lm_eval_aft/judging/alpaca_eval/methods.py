"""The two ways in which a judge's reply becomes a preference, and what the annotator is then called.

Knows the parsers of alpaca_eval by name; imports nothing of it. Called by ``alpaca``, ``alpaca_judge`` and
``alpaca_verdict``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

PUBLIC_ANNOTATOR, PUBLIC_JUDGE, PUBLIC_TOP = "weighted_alpaca_eval_gpt4_turbo", "gpt-4-1106-preview", 5


@dataclass(frozen=True, slots=True)
class Method:
    """How a reply becomes a preference.

    Attributes:
        name: "weighted" reads the probabilities of m and M, "regex" the letter written.
        prefix: Set before each metric's name, so that another method's scores are never taken for AlpacaEval's.
        config: The package's settings for reading a reply.
        temperature: Of a request, as are the next two.
        max_tokens: Of a reply.
        top_logprobs: Likely first tokens to ask for; 0 is none.
    """

    name: str
    prefix: str
    config: Mapping[str, Any]
    temperature: float
    max_tokens: int
    top_logprobs: int


def weighted(top_logprobs: int = PUBLIC_TOP) -> Method:
    """AlpacaEval 2's own way: the probability of m against that of M as the first token."""
    config = {
        "fn_completion_parser": "logprob_parser",
        "completion_parser_kwargs": {"numerator_token": "m", "denominator_tokens": ["m", "M"], "is_binarize": False},
        "completion_key": "completions_all",
    }
    return Method("weighted", "", config, temperature=1.0, max_tokens=1, top_logprobs=top_logprobs)


def regex() -> Method:
    """For a server without probabilities: the reply must be m or M and nothing else but punctuation."""
    config = {
        "fn_completion_parser": "regex_parser",
        "completion_parser_kwargs": {"outputs_to_match": {1: r"^\W*m\W*$", 2: r"^\W*M\W*$"}},
        "completion_key": "completions",
    }
    return Method("regex", "regex_", config, temperature=0.0, max_tokens=8, top_logprobs=0)


def annotator_name(method: Method, judge: str) -> str:
    """The public annotator's name for the public judge asked in its way, another for every other.

    How many likely tokens are asked for is part of it: a letter that is not among them counts as impossible.
    """
    if method.name == "weighted" and judge == PUBLIC_JUDGE and method.top_logprobs == PUBLIC_TOP:
        return PUBLIC_ANNOTATOR
    asked = f"_top{method.top_logprobs}" if method.top_logprobs not in (0, PUBLIC_TOP) else ""
    return f"{method.name}_{judge}{asked}"
