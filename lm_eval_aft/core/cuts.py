"""Counts of the drafts that were cut so that an aggregation prompt fits the context."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import astuple, dataclass
from itertools import islice
from typing import Any

from lm_eval_aft.core.records import Trace
from lm_eval_aft.core.usage import MAX_COUNT


@dataclass(frozen=True, slots=True)
class Cuts:
    """Counts of aggregation prompts; they add with ``+``.

    Attributes:
        prompts: Number of aggregation prompts.
        cut_prompts: Number of those whose drafts were cut.
        draft_tokens: Tokens of all drafts of ``cut_prompts``, before the cut.
        cut_tokens: Tokens that were cut from them.
    """

    prompts: int = 0
    cut_prompts: int = 0
    draft_tokens: int = 0
    cut_tokens: int = 0

    def __add__(self, other: Cuts) -> Cuts:
        return Cuts(
            self.prompts + other.prompts,
            self.cut_prompts + other.cut_prompts,
            self.draft_tokens + other.draft_tokens,
            self.cut_tokens + other.cut_tokens,
        )

    def sentence(self) -> str:
        """What was cut, without a full stop; "" if nothing was."""
        if not self.cut_prompts:
            return ""
        share = f" ({self.cut_tokens / self.draft_tokens:.1%})" if self.draft_tokens else ""
        return (
            f"drafts were cut to fit the context in {self.cut_prompts:,} of {self.prompts:,} aggregation prompts "
            f"({self.cut_prompts / self.prompts:.1%}), which lost {self.cut_tokens:,} of their {self.draft_tokens:,} "
            f"draft tokens{share}"
        )


def cuts_of(trace: Trace) -> tuple[Cuts, ...]:
    """The counts of each aggregation layer of a trace that has a prompt."""
    return tuple(_cuts_of_layer(trace, number) for number in range(len(trace.cut_tokens)))


def total_cuts(traces: Iterable[Trace]) -> Cuts:
    """The counts of all layers of traces."""
    return sum((cuts for trace in traces for cuts in cuts_of(trace)), Cuts())


def check_cuts(row: Any) -> None:
    """Raise TypeError or ValueError if a row of a results file is not ``asdict`` of counts. None is allowed."""
    for count in astuple(Cuts(**row)) if row is not None else ():
        if not isinstance(count, int) or not 0 <= count < MAX_COUNT:
            raise ValueError(f"a count of cut drafts is {count!r}")


def _cuts_of_layer(trace: Trace, number: int) -> Cuts:
    cut = sum(trace.cut_tokens[number])
    prompts = _tokens_cut_by_prompt(trace, number)
    if not cut:
        return Cuts(prompts=len(prompts))
    # A trace of an older version does not state how long the drafts were.
    written = sum(draft.completion.generated_tokens for draft in trace.layer(number))
    draft_tokens = trace.draft_tokens[number] if number < len(trace.draft_tokens) else max(written, cut)
    return Cuts(len(prompts), sum(map(bool, prompts)), draft_tokens, cut)


def _tokens_cut_by_prompt(trace: Trace, number: int) -> list[int]:
    """The tokens cut from the texts of each prompt of a layer. A layer without subsets has one prompt."""
    if number >= len(trace.subsets):
        return [sum(trace.cut_tokens[number])]
    cuts = iter(trace.cut_tokens[number])
    return [sum(islice(cuts, len(subset))) for subset in dict.fromkeys(trace.subsets[number])]
