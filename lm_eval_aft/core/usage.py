"""The cost of generations: tokens, and the floating-point operations that follow from them.

The engines count tokens when a completion ends. This module only adds the counts up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add

# A larger count in a file means that the file is damaged. Much larger ones (10**400) overflow a float.
MAX_COUNT = 10**30


@dataclass(frozen=True, slots=True)
class Usage:
    """The cost of generations; usages add with ``+``.

    Attributes:
        generations: Number of texts.
        prompt_tokens: Tokens of the prompts. Every text counts its whole prompt.
        computed_prompt_tokens: Prompt tokens that ran through the model. The others were shared or cached.
        generated_tokens: Tokens written.
        flops: Floating-point operations (see ``ModelShape.flops``); 0 if the model's shape is unknown.
    """

    generations: int = 0
    prompt_tokens: int = 0
    computed_prompt_tokens: int = 0
    generated_tokens: int = 0
    flops: int = 0

    @property
    def shared_prompt_tokens(self) -> int:
        """Prompt tokens that were shared or cached."""
        return self.prompt_tokens - self.computed_prompt_tokens

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.generations + other.generations,
            self.prompt_tokens + other.prompt_tokens,
            self.computed_prompt_tokens + other.computed_prompt_tokens,
            self.generated_tokens + other.generated_tokens,
            self.flops + other.flops,
        )


@dataclass(frozen=True, slots=True)
class TokenCosts:
    """What the tokens of a model cost in money.

    Attributes:
        prompt: Cost of a million prompt tokens.
        generated: Cost of a million generated tokens.
    """

    prompt: float
    generated: float

    def of(self, prompt_tokens: int, generated_tokens: int) -> float:
        """The cost of tokens. Cached prompt tokens count in full, so a server with a discount for them costs less."""
        return (prompt_tokens * self.prompt + generated_tokens * self.generated) / 1e6


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The sizes of a model that decide the cost of a token.

    Attributes:
        parameters: Number of weights without the input embedding and the output head.
        layers: Number of transformer layers.
        attention_width: Number of query heads times head size.
    """

    parameters: int
    layers: int
    attention_width: int

    def flops(self, start: int, end: int) -> int:
        """Operations to process positions ``start`` to ``end`` of one sequence.

        A token costs 2 operations per parameter, plus attention: at position t it reads t keys and t values, which is
        4 * width * t per layer. The sum runs over the positions (Kaplan et al. 2020, section 2.1, with the exact
        position instead of the whole context).
        """
        linear = 2 * self.parameters * (end - start)
        return linear + 2 * self.layers * self.attention_width * (end * end - start * start)


def total(usages: Sequence[Usage]) -> Usage:
    """The sum of usages."""
    return reduce(add, usages, Usage())


def reading_usage(shared: int, ends: Sequence[int], shape: ModelShape | None) -> Usage:
    """The cost of reading texts without generating any.

    Args:
        shared: Number of tokens with which all texts begin. They are computed once.
        ends: Length of each text in tokens, the shared ones included.
        shape: The model's shape. None leaves the operations at 0.
    """
    flops = shape.flops(0, shared) + sum(shape.flops(shared, end) for end in ends) if shape else 0
    return Usage(0, sum(ends), shared + sum(end - shared for end in ends), 0, flops)
