"""How much a text repeats another, in words, and what that says about targets and their drafts.

Which position the nearest draft has (free shuffling makes it even: any rule about position is learnt), how many targets
copy a draft word for word, and whether targets look at their drafts at all. Called by ``train`` and the data commands.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lm_eval_aft.core.records import Chat
from trainers.rows.row import query_chat, visible
from trainers.rows.samples import Sample

WORD = re.compile(r"\w+|[^\w\s]")
LONGEST = 3  # words of the n-grams that are compared, with all shorter ones
COPIES_ALLOWED = 0.2  # a first trial with nothing but copies as targets learnt to copy, nearly at random


def ngrams(text: str, longest: int = LONGEST, shortest: int = 1) -> frozenset[tuple[str, ...]]:
    """The word n-grams of a text, of all lengths from shortest to longest."""
    words = WORD.findall(text)
    sizes = range(shortest, longest + 1)
    return frozenset(tuple(words[i : i + size]) for size in sizes for i in range(len(words) - size + 1))


def nearest(target: str, drafts: Sequence[str]) -> tuple[float, tuple[int, ...]]:
    """The highest overlap of a target with a draft (share of its n-grams), and the positions of drafts that have it."""
    grams = ngrams(visible(target))
    shares = [len(grams & ngrams(visible(draft))) / max(1, len(grams)) for draft in drafts]
    best = max(shares, default=0.0)
    return best, tuple(number for number, share in enumerate(shares) if share == best)


@dataclass(frozen=True, slots=True)
class Overlap:
    """Targets beside their drafts.

    Attributes:
        positions: By k, how often the nearest draft stood at each position; ties are shared out, but where all drafts
            are equally near nothing is counted.
        samples: Samples with drafts.
        copies: Of these, targets that are a draft word for word.
        overlap: Mean share of a target's n-grams in its nearest draft.
    """

    positions: dict[int, tuple[float, ...]]
    samples: int
    copies: int
    overlap: float

    @property
    def copy_rate(self) -> float:
        """Share of targets that copy a draft."""
        return self.copies / max(1, self.samples)

    def lines(self) -> list[str]:
        """The table, for the terminal and the card."""
        rows = [f"position of the draft nearest to the target ({self.samples} examples with drafts):"]
        for k, counts in sorted((k, counts) for k, counts in self.positions.items() if k > 1):
            rows.append(f"  k={k}: {' '.join(f'{count:.1f}' for count in counts)}   even: {sum(counts) / k:.1f} each")
        rows.append(f"  targets that copy a draft: {self.copy_rate:.1%}; overlap with it: {self.overlap:.2f}")
        return rows


def measure(samples: Iterable[Sample]) -> Overlap:
    """Compare the target of each sample with its drafts."""
    positions: dict[int, list[float]] = {}
    count, copies, overlap = 0, 0, 0.0
    for sample in samples:
        if not sample.drafts:
            continue
        share, places = nearest(sample.target, sample.drafts)
        counts = positions.setdefault(len(sample.drafts), [0.0] * len(sample.drafts))
        for place in places if len(places) < len(counts) or len(counts) == 1 else ():
            counts[place] += 1 / len(places)
        count, overlap = count + 1, overlap + share
        copies += visible(sample.target).split() in [visible(draft).split() for draft in sample.drafts]
    return Overlap({k: tuple(counts) for k, counts in positions.items()}, count, copies, overlap / max(1, count))


def overlap_of(rows: Sequence[Mapping[str, Any]]) -> Overlap:
    """How the targets of rows relate to their drafts."""
    chats = [query_chat(row, "a row") for row in rows]
    return measure(Sample(c, tuple(r["drafts"]), r["target"], "") for c, r in zip(chats, rows, strict=True))


def with_strange_drafts(samples: Iterable[Sample]) -> list[Sample]:
    """The samples with drafts of the next query in place of their own: what chance shares; none for one query."""
    by_query: dict[Chat, list[Sample]] = {}
    for sample in samples:
        if sample.drafts:
            by_query.setdefault(sample.chat, []).append(sample)
    own = list(by_query.values())
    if len(own) < 2:
        return []
    return [
        replace(sample, drafts=strange[number % len(strange)].drafts)
        for group, strange in zip(own, own[1:] + own[:1], strict=True)
        for number, sample in enumerate(group)
    ]


def warnings(targets: Overlap, samples: Sequence[Sample], pseudo: Sequence[Sample], same: bool) -> list[str]:
    """What is wrong with targets, in sentences.

    Args:
        targets: Of the samples.
        samples: What is to be trained on.
        pseudo: The same draws with targets that were not made from them; where there are none, the drafts of other
            queries take their place.
        same: Whether every target is its row's sft_target.
    """
    found = []
    if targets.samples and targets.copy_rate > COPIES_ALLOWED:
        found.append(
            f"{targets.copy_rate:.0%} of the targets are a draft word for word, which teaches copying: write them "
            "afresh (aft data aggregate)."
        )
    others = pseudo or with_strange_drafts(samples)
    draws = {(sample.chat, sample.drafts) for sample in pseudo}
    beside = measure(s for s in samples if (s.chat, s.drafts) in draws).overlap if pseudo else targets.overlap
    than = "sft_target, which was not made from them" if pseudo else "with the drafts of other queries"
    if targets.samples and others and beside <= (level := measure(others).overlap):
        found.append(
            f"the targets overlap with their drafts no more ({beside:.2f}) than {than} ({level:.2f}): they "
            "seem to ignore the drafts (aft data aggregate writes others)."
        )
    if targets.samples and same:
        found.append(
            "every target is its row's sft_target, so that aft and aft-pseudo learn the same: write targets from the "
            "drafts (aft data aggregate)."
        )
    return found
