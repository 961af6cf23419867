"""Grading of a trace: the answer in each text, whether it is right, and what the text repeats of the layer before.

A ``GradedTrace`` keeps no texts, so that a run of any size can be graded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from lm_eval_aft.analysis.marking import TaskRule
from lm_eval_aft.analysis.voting import score_texts
from lm_eval_aft.core.cuts import Cuts, cuts_of
from lm_eval_aft.core.records import Grade, Trace
from lm_eval_aft.inference.dialogue import answer_of, without_thinking
from lm_eval_aft.inference.extraction import Extraction

# Words in a row. Shared 3-grams mean shared wording, not only a shared subject.
GRAM = 3


@dataclass(frozen=True, slots=True)
class GradedText:
    """One generated text.

    Attributes:
        layer: 0 for the drafts. The answer is in the run's last layer, also if ``stop_layers`` took fewer layers.
        index: Position in the layer, from 0.
        answer: The answer found in it; None if there is none.
        right: Whether it is right, by the gold answer or by the task's grade; None if neither is known.
        tokens: Generated tokens.
        empty: Whether it holds no answer: only white space, or a thought that does not end.
        cut: Whether it ended at the token limit.
        identity: Equal for texts of this trace that are equal without thoughts and once white space is normalised.
        overlaps: For each text that it read of the layer before, the share of this text's word 3-grams that it holds,
            counted as multisets: |A n B| / |A|. A text of fewer than three words is compared by single words. Empty for
            drafts.
        grades: The task's own grades; empty if there are none.
        read: Positions of the texts that it read of the layer before.
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
    grades: tuple[Grade, ...] = ()
    read: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class GradedTrace:
    """The grades of one question's drafts, layers and answer.

    Attributes:
        task: Name of the task.
        doc_id: Row of the document.
        doc_hash: lm-eval's hash of the document.
        repeat: Which of the task's repeats.
        turn: Which turn of a dialogue.
        gold: The gold answer; None if it is not known, or the task graded the texts.
        texts: All texts, the answer last.
        vote: Chance that the drafts' majority vote is right, ties drawn by lot. If the task has no answers to vote on,
            it is 1 if all drafts are right, 0 if none is, and None otherwise.
        right: Whether the answer is right; None if nothing says so.
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
        return replace(self, gold=gold)._marked(texts, votes=True)

    def with_rule(self, rule: TaskRule | None) -> GradedTrace:
        """The same trace, graded by the task's grades. A trace without grades, or without a rule, stays as it is."""
        if rule is None or not self.graded:
            return self
        texts = tuple(
            replace(text, answer=rule.answer(text.grades), right=rule.right(text.grades)) for text in self.texts
        )
        return self._marked(texts, votes=bool(rule.answers))

    @property
    def graded(self) -> bool:
        """Whether the task graded the texts."""
        return bool(self.texts[0].grades)

    def _marked(self, texts: tuple[GradedText, ...], votes: bool) -> GradedTrace:
        right = texts[-1].right
        vote = None if right is None else _vote([text for text in texts if text.layer == 0], votes)
        fixed, broken = right is True and vote == 0, right is False and vote == 1
        return replace(self, texts=texts, vote=vote, right=right, fixed=fixed, broken=broken)

    def layer(self, number: int) -> tuple[GradedText, ...]:
        """The texts of one layer, by index."""
        return tuple(text for text in self.texts if text.layer == number)

    def copies(self, text: GradedText, read: int) -> tuple[int, ...]:
        """Positions in layer ``read`` of the texts that a text repeats word for word; none for an empty text.

        In the layer before it, only the texts that it read count.
        """
        if text.empty:
            return ()
        shown = [t for t in self.layer(read) if read != text.layer - 1 or t.index in text.read]
        return tuple(t.index for t in shown if t.identity == text.identity)


def grade(trace: Trace, extraction: Extraction | None, gold: str | None = None) -> GradedTrace:
    """Grade every text of a trace. The last text is the answer.

    Args:
        trace: The trace.
        extraction: Finds the answer in a text; None if the task's grades hold the answers, or there are none to find.
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


def _vote(drafts: Sequence[GradedText], votes: bool) -> float | None:
    """Chance that a vote of the drafts is right. Without answers to vote on it is known only if all drafts agree."""
    values = [float(draft.right is True) for draft in drafts]
    if votes:
        return score_texts([draft.answer for draft in drafts], values, len(drafts))[1]
    return values[0] if len(set(values)) == 1 else None


def _texts(trace: Trace, extraction: Extraction | None) -> tuple[GradedText, ...]:
    words = [without_thinking(trace.question, draft).split() for draft in trace.drafts]
    grams = [_grams(each) for each in words]
    identities: dict[tuple[str, ...], int] = {}
    texts = []
    for number, draft in enumerate(trace.drafts):
        answer = extraction.answer(answer_of(trace.question, draft)) if extraction else None
        read = trace.read_by(draft.layer, draft.index) if draft.layer else ()
        before = [
            grams[i] for i, other in enumerate(trace.drafts) if other.layer == draft.layer - 1 and other.index in read
        ]
        texts.append(
            GradedText(
                layer=draft.layer if draft is not trace.drafts[-1] else _answer_layer(trace),
                index=draft.index,
                answer=answer,
                right=None,
                tokens=draft.completion.generated_tokens,
                empty=not words[number],
                cut=draft.cut,
                identity=identities.setdefault(tuple(words[number]), number),
                overlaps=tuple(_overlap(grams[number], other) for other in before),
                grades=trace.grades[number] if trace.grades else (),
                read=read,
            )
        )
    return tuple(texts)


def _answer_layer(trace: Trace) -> int:
    """The layer of the answer. A question that needs fewer layers than others is compared with them by its answer."""
    layer = trace.drafts[-1].layer
    return max(layer, int(trace.settings["layers"])) if trace.settings.get("stop_layers") is not None else layer


def _grams(words: list[str], size: int = 0) -> Counter[tuple[str, ...]]:
    size = size or (GRAM if len(words) >= GRAM else 1)
    return Counter(zip(*(words[start:] for start in range(size)), strict=False))


def _overlap(text: Counter[tuple[str, ...]], other: Counter[tuple[str, ...]]) -> float:
    shared = sum(min(text[gram], other[gram]) for gram in text.keys() & other.keys())
    return shared / text.total() if text else 0.0


def nearest_text(text: str, others: Sequence[str]) -> int:
    """The place of the text that has the highest share of this text's word 3-grams; the first of several.

    If one of the texts has fewer than three words, they are compared by single words.
    """
    words, *other_words = [each.split() for each in (text, *others)]
    size = GRAM if all(len(each) >= GRAM for each in (words, *other_words) if each) else 1
    overlaps = [_overlap(_grams(words, size), _grams(each, size)) for each in other_words]
    return overlaps.index(max(overlaps))
