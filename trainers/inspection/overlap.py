"""The overlap of targets with their drafts, in word n-grams, and warnings about targets.

It shows three things. The position of the nearest draft should be even, since a model learns any rule about positions.
A target that copies a draft word for word teaches copying. A target that ignores its drafts teaches nothing about them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from lm_eval_aft.core.records import Chat
from trainers.rows.row import DataRow, query_chat, shown_text
from trainers.rows.samples import Sample

WORD = re.compile(r"\w+|[^\w\s]")
# Words of the longest n-grams that are compared; all shorter ones are too.
LONGEST = 3
# In a first trial all targets were copies, and the model learnt to copy nearly at random.
COPIES_ALLOWED = 0.2


def ngrams(text: str, longest: int = LONGEST, shortest: int = 1) -> frozenset[tuple[str, ...]]:
    """The word n-grams of a text, of all lengths from shortest to longest."""
    words = WORD.findall(text)
    sizes = range(shortest, longest + 1)
    return frozenset(tuple(words[i : i + size]) for size in sizes for i in range(len(words) - size + 1))


def nearest(target: str, drafts: Sequence[str]) -> tuple[float, tuple[int, ...]]:
    """The largest share of a target's n-grams that one draft holds, and the positions of the drafts that hold it."""
    grams = ngrams(shown_text(target))
    shares = [len(grams & ngrams(shown_text(draft))) / max(1, len(grams)) for draft in drafts]
    best = max(shares, default=0.0)
    return best, tuple(number for number, share in enumerate(shares) if share == best)


@dataclass(frozen=True, slots=True)
class Overlap:
    """The overlap of targets with their drafts.

    Attributes:
        positions: By k, how often the nearest draft had each position. Ties are divided; if all drafts are equally
            near, the sample is not counted.
        samples: Number of samples with drafts.
        copies: Samples whose target is one of its drafts, word for word.
        overlap: Mean share of a target's n-grams that its nearest draft holds.
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
        """The figures as lines, for the terminal and cards."""
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
        copies += shown_text(sample.target).split() in [shown_text(draft).split() for draft in sample.drafts]
    return Overlap({k: tuple(counts) for k, counts in positions.items()}, count, copies, overlap / max(1, count))


def overlap_of(rows: Sequence[DataRow]) -> Overlap:
    """The overlap of the targets of rows with their drafts."""
    return measure(Sample(query_chat(row, "a row"), tuple(row["drafts"]), row["target"], "") for row in rows)


def with_foreign_drafts(samples: Iterable[Sample]) -> list[Sample]:
    """The samples with the drafts of the next query, to measure overlap by chance; none if there is one query only."""
    by_query: dict[Chat, list[Sample]] = {}
    for sample in samples:
        if sample.drafts:
            by_query.setdefault(sample.chat, []).append(sample)
    groups = list(by_query.values())
    if len(groups) < 2:
        return []
    return [
        replace(sample, drafts=foreign[number % len(foreign)].drafts)
        for group, foreign in zip(groups, groups[1:] + groups[:1], strict=True)
        for number, sample in enumerate(group)
    ]


def warnings(targets: Overlap, samples: Sequence[Sample], pseudo: Sequence[Sample], same: bool) -> list[str]:
    """Warnings about targets, as sentences.

    Args:
        targets: Overlap of the samples.
        samples: Samples of the training.
        pseudo: The same draws with sft_targets. If there are none, drafts of other queries give the level.
        same: Whether every target is its row's sft_target.
    """
    messages = []
    if targets.samples and targets.copy_rate > COPIES_ALLOWED:
        messages.append(
            f"{targets.copy_rate:.0%} of the targets are a draft word for word, which teaches copying: write new ones "
            "(aft data aggregate)."
        )
    others = pseudo or with_foreign_drafts(samples)
    draws = {(sample.chat, sample.drafts) for sample in pseudo}
    overlap = measure(s for s in samples if (s.chat, s.drafts) in draws).overlap if pseudo else targets.overlap
    level_of = "sft_target, which was not made from them" if pseudo else "with the drafts of other queries"
    if targets.samples and others and overlap <= (level := measure(others).overlap):
        messages.append(
            f"the targets overlap with their drafts no more ({overlap:.2f}) than {level_of} ({level:.2f}): they "
            "seem to ignore the drafts (aft data aggregate writes others)."
        )
    if targets.samples and same:
        messages.append(
            "every target is its row's sft_target, so that aft and aft-pseudo learn the same: write targets from the "
            "drafts (aft data aggregate)."
        )
    return messages
