"""What generations cost: tokens, and the floating-point operations that follow from them.

Counts only add up here; they are taken where tokens are born (the engines). Everybody imports it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import reduce
from operator import add

MAX_COUNT = 10**30  # of anything: what a file says beyond that was never counted, and 10**400 fits no float


@dataclass(frozen=True, slots=True)
class Usage:
    """What generations cost; add with ``+``.

    Attributes:
        generations: Number of texts.
        prompt_tokens: Prompt tokens asked for, every text counted with its whole prompt.
        computed_prompt_tokens: Prompt tokens that ran through the model; the others were shared or cached.
        generated_tokens: Tokens written.
        flops: Floating-point operations, 0 where the model's shape is unknown (``ModelShape.flops``).
    """

    generations: int = 0
    prompt_tokens: int = 0
    computed_prompt_tokens: int = 0
    generated_tokens: int = 0
    flops: int = 0

    @property
    def shared_prompt_tokens(self) -> int:
        """Prompt tokens asked for that were not computed again."""
        return self.prompt_tokens - self.computed_prompt_tokens

    def __add__(self, other: Usage) -> Usage:
        return Usage(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(Usage)))


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The sizes that decide what a token costs.

    Attributes:
        parameters: Weights without the input embedding and the output head.
        layers: Transformer layers.
        attention_width: Query heads times head size.
    """

    parameters: int
    layers: int
    attention_width: int

    def flops(self, start: int, end: int) -> int:
        """Operations to process positions ``start`` to ``end`` of one sequence.

        2 per parameter and token, plus attention: a token at position t reads t keys and t values, 4 * width * t
        per layer, summed over the positions (Kaplan et al. 2020, section 2.1, with the exact position in the
        place of the whole context).
        """
        linear = 2 * self.parameters * (end - start)
        return linear + 2 * self.layers * self.attention_width * (end * end - start * start)


def total(usages: list[Usage]) -> Usage:
    """The sum of usages; of none, an empty one."""
    return reduce(add, usages, Usage())


def read_only(shared: int, ends: Sequence[int], shape: ModelShape | None) -> Usage:
    """The cost of reading texts without writing any.

    Args:
        shared: Tokens with which all of them begin, computed once.
        ends: Length of each, those tokens included.
        shape: The model's; None leaves operations at 0.
    """
    flops = shape.flops(0, shared) + sum(shape.flops(shared, end) for end in ends) if shape else 0
    return Usage(0, sum(ends), shared + sum(end - shared for end in ends), 0, flops)
