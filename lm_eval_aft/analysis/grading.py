"""How each text of a trace is judged: its answer, whether it is right, and what it repeats of the texts it was shown.

One trace in, one frozen ``GradedTrace`` out, so that a run of any size is graded without keeping its texts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Set
from dataclasses import dataclass, replace

from lm_eval_aft.analysis.voting import score_drafts
from lm_eval_aft.core.records import Trace
from lm_eval_aft.inference.dialogue import answer_in
from lm_eval_aft.inference.extraction import Extraction

GRAM = 3  # words in a row: shared ones mean shared wording, not only a shared subject


@dataclass(frozen=True, slots=True)
class GradedText:
    """One generated text.

    Attributes:
        layer: 0 for the drafts.
        index: Position in the layer, from 0.
        answer: The answer found in it, or None.
        right: Whether that is the gold answer; None where there is no gold answer.
        tokens: Tokens generated.
        empty: Nothing but white space was written.
        cut: It ended at the token limit.
        identity: Equal for texts of this trace that are equal once white space is normalised.
        overlaps: For each text of the layer before, the share of this one's word 3-grams that occur in it:
            |A n B| / |A| as multisets; single words where the text has fewer than three. Empty for drafts.
    """

    layer: int
    index: int
    answer: str | None
    right: bool | None
    tokens: int
    empty: bool
    cut: bool
    identity: int
    overlaps: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class GradedTrace:
    """One question: what its drafts and its answer are worth.

    Attributes:
        task: Name of the task.
        doc_id: Row of the document.
        doc_hash: lm-eval's hash of the document.
        repeat: Which of the task's repeats.
        turn: Which turn of a dialogue.
        gold: The gold answer; None where there is none, and then nothing below is known.
        texts: Everything generated, the answer last.
        vote: Chance that the drafts' majority vote is right, ties drawn by lot; None without gold.
        right: Whether the answer is.
        fixed: The answer is right and the vote wrong, whatever the lot (``vote`` = 0).
        broken: The answer is wrong and the vote right, whatever the lot (``vote`` = 1).
    """

    task: str
    doc_id: int
    doc_hash: str
    repeat: int
    turn: int
    gold: str | None
    texts: tuple[GradedText, ...]
    vote: float | None = None
    right: bool | None = None
    fixed: bool = False
    broken: bool = False

    def against(self, gold: str | None, extraction: Extraction | None) -> GradedTrace:
        """The same texts judged by this gold answer, as the extraction that found their answers says."""
        if gold is None or extraction is None:
            return self
        rights = extraction.rights((text.answer for text in self.texts), gold)
        texts = tuple(replace(text, right=text.answer in rights) for text in self.texts)
        vote, right = _vote(self.layer(0), rights), texts[-1].answer in rights
        fixed, broken = right and vote == 0, not right and vote == 1
        return replace(self, gold=gold, texts=texts, vote=vote, right=right, fixed=fixed, broken=broken)

    def layer(self, number: int) -> tuple[GradedText, ...]:
        """The texts of one layer, by index."""
        return tuple(text for text in self.texts if text.layer == number)

    def copies(self, text: GradedText, read: int) -> tuple[int, ...]:
        """Positions in layer ``read`` of the texts that this one repeats word for word; an empty text repeats none."""
        return () if text.empty else tuple(t.index for t in self.layer(read) if t.identity == text.identity)


def grade(trace: Trace, extraction: Extraction | None, gold: str | None = None) -> GradedTrace:
    """Judge every text of a trace; its last one is the answer.

    Args:
        trace: What was generated.
        extraction: Finds an answer in a text; None where the task has no such thing (an essay).
        gold: The gold answer, as ``extraction`` normalises answers; ``GradedTrace.against`` can add it later.
    """
    asked = trace.question
    texts = _texts(trace, extraction)
    found = GradedTrace(asked.task, asked.doc_id, asked.doc_hash, asked.repeat, asked.turn, None, texts)
    return found.against(gold, extraction)


def _vote(drafts: tuple[GradedText, ...], rights: Set[str]) -> float:
    answers = [draft.answer for draft in drafts]
    return score_drafts(answers, rights, len(answers))[1]


def _texts(trace: Trace, extraction: Extraction | None) -> tuple[GradedText, ...]:
    drafts = trace.drafts
    words = [draft.completion.text.split() for draft in drafts]
    grams = [_grams(each) for each in words]
    found: dict[tuple[str, ...], int] = {}
    texts = []
    for number, draft in enumerate(drafts):
        answer = extraction.answer(answer_in(trace.question, draft.completion.text)) if extraction else None
        shown = [grams[i] for i, other in enumerate(drafts) if other.layer == draft.layer - 1]
        texts.append(
            GradedText(
                layer=draft.layer,
                index=draft.index,
                answer=answer,
                right=None,
                tokens=draft.completion.generated_tokens,
                empty=draft.empty,
                cut=draft.cut,
                identity=found.setdefault(tuple(words[number]), number),
                overlaps=tuple(_overlap(grams[number], other) for other in shown),
            )
        )
    return tuple(texts)


def _grams(words: list[str]) -> Counter[tuple[str, ...]]:
    size = GRAM if len(words) >= GRAM else 1
    return Counter(zip(*(words[start:] for start in range(size)), strict=False))


def _overlap(text: Counter[tuple[str, ...]], other: Counter[tuple[str, ...]]) -> float:
    shared = sum(min(text[gram], other[gram]) for gram in text.keys() & other.keys())
    return shared / text.total() if text else 0.0
