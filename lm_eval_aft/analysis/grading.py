"""Grading of a trace: the answer in each text, whether it is right, and what the text repeats of the layer before.

A ``GradedTrace`` keeps no texts, so that a run of any size can be graded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Set
from dataclasses import dataclass, replace

from lm_eval_aft.analysis.voting import score_drafts
from lm_eval_aft.core.cuts import Cuts, cuts_of
from lm_eval_aft.core.records import Trace
from lm_eval_aft.inference.dialogue import answer_of, without_thinking
from lm_eval_aft.inference.extraction import Extraction

# Words in a row. Shared 3-grams mean shared wording, not only a shared subject.
GRAM = 3


@dataclass(frozen=True, slots=True)
class GradedText:
    """One generated text.

    Attributes:
        layer: 0 for the drafts.
        index: Position in the layer, from 0.
        answer: The answer found in it; None if there is none.
        right: Whether that is the gold answer; None if there is no gold answer.
        tokens: Generated tokens.
        empty: Whether it holds no answer: only white space, or a thought that does not end.
        cut: Whether it ended at the token limit.
        identity: Equal for texts of this trace that are equal without thoughts and once white space is normalised.
        overlaps: For each text of the layer before, the share of this text's word 3-grams that occur in it, counted as
            multisets: |A n B| / |A|. A text of fewer than three words is compared by single words. Empty for drafts.
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
    """The grades of one question's drafts, layers and answer.

    Attributes:
        task: Name of the task.
        doc_id: Row of the document.
        doc_hash: lm-eval's hash of the document.
        repeat: Which of the task's repeats.
        turn: Which turn of a dialogue.
        gold: The gold answer. If it is None, then ``vote`` and ``right`` are None too.
        texts: All texts, the answer last.
        vote: Chance that the drafts' majority vote is right, ties drawn by lot.
        right: Whether the answer is right.
        fixed: The answer is right and the vote is wrong for certain (``vote`` = 0).
        broken: The answer is wrong and the vote is right for certain (``vote`` = 1).
        cuts: For each aggregation layer with a prompt, whether and by how much its drafts were cut.
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
    cuts: tuple[Cuts, ...] = ()

    def with_gold(self, gold: str | None, extraction: Extraction | None) -> GradedTrace:
        """The same trace, graded by a gold answer.

        Args:
            gold: The gold answer, as ``extraction`` normalises answers; None leaves the trace as it is.
            extraction: The extraction that found the answers; None leaves the trace as it is.
        """
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
        """Positions in layer ``read`` of the texts that a text repeats word for word; none for an empty text."""
        return () if text.empty else tuple(t.index for t in self.layer(read) if t.identity == text.identity)


def grade(trace: Trace, extraction: Extraction | None, gold: str | None = None) -> GradedTrace:
    """Grade every text of a trace. The last text is the answer.

    Args:
        trace: The trace.
        extraction: Finds the answer in a text; None if the task has no answers to find, as essays have none.
        gold: The gold answer; ``GradedTrace.with_gold`` can add it later.
    """
    question = trace.question
    graded = GradedTrace(
        task=question.task,
        doc_id=question.doc_id,
        doc_hash=question.doc_hash,
        repeat=question.repeat,
        turn=question.turn,
        gold=None,
        texts=_texts(trace, extraction),
        cuts=cuts_of(trace),
    )
    return graded.with_gold(gold, extraction)


def _vote(drafts: tuple[GradedText, ...], rights: Set[str]) -> float:
    answers = [draft.answer for draft in drafts]
    return score_drafts(answers, rights, len(answers))[1]


def _texts(trace: Trace, extraction: Extraction | None) -> tuple[GradedText, ...]:
    words = [without_thinking(trace.question, draft).split() for draft in trace.drafts]
    grams = [_grams(each) for each in words]
    identities: dict[tuple[str, ...], int] = {}
    texts = []
    for number, draft in enumerate(trace.drafts):
        answer = extraction.answer(answer_of(trace.question, draft)) if extraction else None
        before = [grams[i] for i, other in enumerate(trace.drafts) if other.layer == draft.layer - 1]
        texts.append(
            GradedText(
                layer=draft.layer,
                index=draft.index,
                answer=answer,
                right=None,
                tokens=draft.completion.generated_tokens,
                empty=not words[number],
                cut=draft.cut,
                identity=identities.setdefault(tuple(words[number]), number),
                overlaps=tuple(_overlap(grams[number], other) for other in before),
            )
        )
    return tuple(texts)


def _grams(words: list[str]) -> Counter[tuple[str, ...]]:
    size = GRAM if len(words) >= GRAM else 1
    return Counter(zip(*(words[start:] for start in range(size)), strict=False))


def _overlap(text: Counter[tuple[str, ...]], other: Counter[tuple[str, ...]]) -> float:
    shared = sum(min(text[gram], other[gram]) for gram in text.keys() & other.keys())
    return shared / text.total() if text else 0.0
