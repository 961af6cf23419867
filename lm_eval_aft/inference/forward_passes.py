"""Counts the forward passes behind the texts of each layer, if the engine runs proposed tokens together."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, astuple, dataclass
from itertools import zip_longest

from lm_eval_aft.core.records import Draft


@dataclass(frozen=True, slots=True)
class ForwardPasses:
    """Counts over texts that an engine with ``look_ahead=true`` wrote; they add with ``+``.

    Attributes:
        generated_tokens: Their tokens.
        forward_passes: Forward passes that each text took part in, with that of its prompt, summed over the texts.
        proposed_tokens: Tokens that were proposed for them.
    """

    generated_tokens: int = 0
    forward_passes: int = 0
    proposed_tokens: int = 0

    def __add__(self, other: ForwardPasses) -> ForwardPasses:
        return ForwardPasses(*map(sum, zip(astuple(self), astuple(other), strict=True)))

    @property
    def accepted_tokens(self) -> int:
        """Proposed tokens that the texts kept: each forward pass gives one token without a proposal."""
        return self.generated_tokens - self.forward_passes


@dataclass(frozen=True, slots=True)
class PassesByLayer:
    """The counts of each layer; they add with ``+``. Empty if the engine proposed no tokens to any text."""

    layers: tuple[ForwardPasses, ...] = ()

    def __add__(self, other: PassesByLayer) -> PassesByLayer:
        pairs = zip_longest(self.layers, other.layers, fillvalue=ForwardPasses())
        return PassesByLayer(tuple(first + second for first, second in pairs))

    @property
    def rows(self) -> list[dict[str, int]]:
        """The counts of each layer by name, for the results file."""
        return [asdict(layer) | {"accepted_tokens": layer.accepted_tokens} for layer in self.layers]


def passes_by_layer(drafts: Iterable[Draft]) -> PassesByLayer:
    """Count the forward passes of each layer. Texts from a store or from an equal request count nothing.

    Args:
        drafts: Texts of any layers.
    """
    layers: list[ForwardPasses] = []
    for draft in drafts:
        passes, generated = draft.completion.look_ahead, draft.completion.generated_tokens
        if passes is not None and not draft.reused:
            layers += [ForwardPasses()] * (draft.layer + 1 - len(layers))
            layers[draft.layer] += ForwardPasses(generated, passes.forward_passes, passes.proposed_tokens)
    return PassesByLayer(tuple(layers))
