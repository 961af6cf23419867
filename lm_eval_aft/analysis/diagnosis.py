"""What aggregation did to each question, from traces: selected, fixed, broken or copied; ``aft diagnose``.

A score says that a run is good or bad, these numbers say why: an aggregator that copies a draft at random scores like
a mean draft, and one that selects scores above the vote. Answers are found by ``answers`` and judged by ``verdicts``;
``diagnose_tables`` shows the result. Knows nothing of engines; imports neither torch nor lm_eval. ``report`` calls it.
Over 200 lines because each field's formula stands at its name.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from lm_eval_aft.analysis.grading import GradedTrace, grade
from lm_eval_aft.analysis.runs import RunEntry, by_run
from lm_eval_aft.analysis.stats import Interval
from lm_eval_aft.analysis.votes import accuracy_interval, gold_answers
from lm_eval_aft.analysis.voting import score_drafts
from lm_eval_aft.core.errors import RecordError
from lm_eval_aft.core.records import Trace
from lm_eval_aft.inference.extraction import Extraction, choose_extraction, has_extraction


@dataclass(frozen=True, slots=True)
class LayerStats:
    """The texts of one layer. The last layer has one text a question: there all accuracies are the answer's.

    Attributes:
        layer: 0 for the drafts.
        texts: Texts in it, over all questions.
        mean: Mean accuracy of its texts; for a layer above 0 this is what stopping there would score, an aggregate
            after that many layers. None where nothing is judged.
        majority: Accuracy of the majority vote over its answers, ties drawn by lot.
        oracle: Share of questions that at least one of its texts answers rightly.
        distinct_answers: Different answers a question, those without one left out.
        distinct_texts: Different texts a question, white space normalised.
        generated_tokens: A text.
        silent: Texts without an answer.
        duplicates: Texts equal to an earlier one of their layer, empty ones left out.
        empty: Texts of nothing but white space.
        cut: Texts that ended at the token limit.
    """

    layer: int
    texts: int
    mean: Interval | None
    majority: Interval | None
    oracle: Interval | None
    distinct_answers: float | None
    distinct_texts: float
    generated_tokens: float
    silent: int | None
    duplicates: int
    empty: int
    cut: int


@dataclass(frozen=True, slots=True)
class Reading:
    """How the texts of one layer follow from an earlier layer's: copied, or chosen, or neither.

    Attributes:
        layer: The layer that read.
        read: The layer that was read; 0 for the drafts, which the answer of several layers saw indirectly.
        texts: Texts of ``layer``.
        copies: Those equal to a text of ``read``, white space normalised.
        copies_by_position: The same by the position copied; a copy of several equal texts is shared out evenly.
        nearest_overlap: Mean over texts of the highest share of their word 3-grams found in one text read.
        mean_overlap: The same with a text read at random; both None where the texts were not read directly.
        disputed: Questions whose texts in ``read`` are partly right and partly wrong.
        selected: Accuracy of ``layer`` on these.
        random: Mean accuracy of the texts read, on these: what choosing at random scores.
        majority: Accuracy of their majority vote, on these.
    """

    layer: int
    read: int
    texts: int
    copies: int
    copies_by_position: tuple[float, ...]
    nearest_overlap: float | None
    mean_overlap: float | None
    disputed: int
    selected: Interval | None
    random: Interval | None
    majority: Interval | None

    @property
    def copy_rate(self) -> float:
        """Copies by texts."""
        return self.copies / self.texts


@dataclass(frozen=True, slots=True)
class Change:
    """The answer beside another way to answer.

    Attributes:
        beside: "majority vote", "first draft" or "mean draft".
        fixed: Questions with a right answer that the other way gets wrong: for the vote those it is sure to get
            wrong, for the mean draft the sum of right * (1 - share of right drafts).
        broken: Questions with a wrong answer that the other way gets right, counted likewise.
        tied: Questions whose vote is drawn by lot between a right and a wrong answer: in neither count.
    """

    beside: Literal["majority vote", "first draft", "mean draft"]
    fixed: float
    broken: float
    tied: int = 0


@dataclass(frozen=True, slots=True)
class VoteShare:
    """Questions with the same number of right drafts; below half, a right answer is a minority's rescue.

    Attributes:
        right_drafts: How many of the k drafts are right.
        questions: How many such questions there are.
        answer: Share of them that the answer gets right.
        majority: Share that the vote gets right.
    """

    right_drafts: int
    questions: int
    answer: float
    majority: float


@dataclass(frozen=True, slots=True)
class Diagnostics:
    """One model run on one task.

    Attributes:
        task: Name of the task.
        model: What was run, from the traces' settings.
        k: Drafts a question.
        layers: Aggregation passes that wrote texts.
        scored: True where one more pass scored choices: the texts here are what it read, and none is the answer.
        settings: The traces' settings, as JSON.
        extraction: How answers were found; empty where the task has no answers to find.
        questions: Traces, repeats and turns counted each.
        judged: Those with a gold answer: what every accuracy and count of right and wrong refers to.
        by_layer: From the drafts to the answer.
        readings: Each layer after the one before; for layers above 1, also the answer after the drafts.
        changes: Against the vote, the first and the mean draft; empty where nothing is judged.
        vote_shares: By number of right drafts, from 0 to k; only those that occur.
    """

    task: str
    model: str
    k: int
    layers: int
    scored: bool
    settings: str
    extraction: str
    questions: int
    judged: int
    by_layer: tuple[LayerStats, ...]
    readings: tuple[Reading, ...]
    changes: tuple[Change, ...]
    vote_shares: tuple[VoteShare, ...]


@dataclass(frozen=True, slots=True)
class Diagnosed:
    """A run's numbers, and the verdicts they were counted from, in the traces' order."""

    diagnostics: Diagnostics
    verdicts: tuple[GradedTrace, ...]


def diagnose_traces(
    traces: Iterable[Trace], entries: Sequence[RunEntry], regex: str | None = None, level: float = 0.95
) -> tuple[Diagnosed, ...]:
    """Judge traces, one result for each task and settings among them.

    Tasks whose answers cannot be found are diagnosed too, without accuracies: copies, diversity and lengths need none.

    Args:
        traces: Of any runs; read once, one at a time.
        entries: Their logged samples hold the gold answers; paired on task and hash of the document.
        regex: Instead of the tasks' own extraction.
        level: Of the intervals.
    """
    groups = by_run(traces, lambda trace: grade(trace, find_extraction(trace.question.task, regex)))
    found = [verdict for group in groups.values() for verdict in group.values()]
    wanted = {(each.task, each.doc_hash) for each in found if find_extraction(each.task, regex)}
    gold = gold_answers(entries, wanted, regex)
    judged = (
        (settings, tuple(_against(each, gold.get((each.task, each.doc_hash)), regex) for each in group.values()))
        for (settings, *_), group in groups.items()
    )
    return tuple(Diagnosed(_diagnostics(verdicts, settings, regex, level), verdicts) for settings, verdicts in judged)


def _against(verdict: GradedTrace, gold: str | None, regex: str | None) -> GradedTrace:
    return verdict.against(gold, find_extraction(verdict.task, regex))


def find_extraction(task: str, regex: str | None = None) -> Extraction | None:
    """A task's extraction, or one by regex; None where the task has none."""
    return choose_extraction(task, regex) if regex is not None or has_extraction(task) else None


def _diagnostics(verdicts: Sequence[GradedTrace], settings: str, regex: str | None, level: float) -> Diagnostics:
    chosen, task = json.loads(settings), verdicts[0].task
    extraction = find_extraction(task, regex)
    judged = [verdict for verdict in verdicts if verdict.gold is not None]
    layers = max(text.layer for text in verdicts[0].texts)
    _check_depth(verdicts, layers)
    scored = layers < int(chosen.get("layers", layers))
    steps = [(layer, layer - 1) for layer in range(1, layers + 1)] + ([(layers, 0)] if layers > 1 else [])
    return Diagnostics(
        task=task,
        model=str(chosen.get("model", "")),
        k=len(verdicts[0].layer(0)),
        layers=layers,
        scored=scored,
        settings=settings,
        extraction=extraction.name if extraction else "",
        questions=len(verdicts),
        judged=len(judged),
        by_layer=tuple(_layer(verdicts, layer, extraction is not None, level) for layer in range(layers + 1)),
        readings=tuple(_reading(verdicts, *step, level) for step in steps),
        changes=_changes(judged) if judged and layers and not scored else (),
        vote_shares=() if scored else _vote_shares(judged),
    )


def _check_depth(verdicts: Sequence[GradedTrace], layers: int) -> None:
    for verdict in verdicts:
        found = max(text.layer for text in verdict.texts)
        if found != layers:
            raise RecordError(
                f"the trace of {verdict.task}, doc_id {verdict.doc_id}, has texts up to layer {found} and that of "
                f"doc_id {verdicts[0].doc_id} up to {layers}: one of their files is damaged; the same lm_eval command "
                "writes it again from the store."
            )


def _layer(verdicts: Sequence[GradedTrace], layer: int, has_answers: bool, level: float) -> LayerStats:
    groups = [verdict.layer(layer) for verdict in verdicts]
    texts = [text for group in groups for text in group]
    mean, majority, oracle = _accuracies([v for v in verdicts if v.gold is not None], layer, level)
    answers = [{text.answer for text in group} - {None} for group in groups]
    written = [[text.identity for text in group if not text.empty] for group in groups]
    return LayerStats(
        layer=layer,
        texts=len(texts),
        mean=mean,
        majority=majority,
        oracle=oracle,
        distinct_answers=_mean([len(each) for each in answers]) if has_answers else None,
        distinct_texts=_mean([len({text.identity for text in group}) for group in groups]),
        generated_tokens=_mean([text.tokens for text in texts]),
        silent=sum(text.answer is None for text in texts) if has_answers else None,
        duplicates=sum(len(each) - len(set(each)) for each in written),
        empty=sum(text.empty for text in texts),
        cut=sum(text.cut for text in texts),
    )


def _accuracies(verdicts: Sequence[GradedTrace], layer: int, level: float) -> tuple[Interval | None, ...]:
    """Mean, majority and oracle of a layer's texts; all None without a question."""
    if not verdicts:
        return None, None, None
    rows = []
    for verdict in verdicts:
        answers = [text.answer for text in verdict.layer(layer)]
        rights = {str(text.answer) for text in verdict.layer(layer) if text.right}
        rows.append(score_drafts(answers, rights, len(answers)))
    docs = [verdict.doc_id for verdict in verdicts]
    return tuple(accuracy_interval(docs, column, level) for column in zip(*rows, strict=True))


def _reading(verdicts: Sequence[GradedTrace], layer: int, read: int, level: float) -> Reading:
    texts = [(verdict, text) for verdict in verdicts for text in verdict.layer(layer)]
    copied = [copies for verdict, text in texts if (copies := verdict.copies(text, read))]
    overlaps = [text.overlaps for _, text in texts if not text.empty] if layer == read + 1 else []
    disputed = [verdict for verdict in verdicts if 0 < _share_right(verdict, read) < 1]
    random, majority, _ = _accuracies(disputed, read, level)
    selected, _, _ = _accuracies(disputed, layer, level)
    shares = [sum(1 / len(copies) for copies in copied if spot in copies) for spot in range(_width(verdicts, read))]
    return Reading(
        layer=layer,
        read=read,
        texts=len(texts),
        copies=len(copied),
        copies_by_position=tuple(shares),
        nearest_overlap=_mean([max(each) for each in overlaps]) if overlaps else None,
        mean_overlap=_mean([_mean(each) for each in overlaps]) if overlaps else None,
        disputed=len(disputed),
        selected=selected,
        random=random,
        majority=majority,
    )


def _width(verdicts: Sequence[GradedTrace], layer: int) -> int:
    return max(len(verdict.layer(layer)) for verdict in verdicts)


def _share_right(verdict: GradedTrace, layer: int = 0) -> float:
    """Share of a layer's texts that are right; 0 where nobody judged them."""
    return _mean([text.right is True for text in verdict.layer(layer)])


def _changes(judged: Sequence[GradedTrace]) -> tuple[Change, ...]:
    first = [verdict.texts[0].right for verdict in judged]
    right = [verdict.right is True for verdict in judged]
    shares = [_share_right(verdict) for verdict in judged]
    tied = sum(0 < verdict.vote < 1 for verdict in judged if verdict.vote is not None)
    return (
        Change("majority vote", sum(v.fixed for v in judged), sum(v.broken for v in judged), tied),
        Change(
            "first draft",
            sum(now and not then for now, then in zip(right, first, strict=True)),
            sum(bool(then) and not now for now, then in zip(right, first, strict=True)),
        ),
        Change(
            "mean draft",
            sum(1 - share for now, share in zip(right, shares, strict=True) if now),
            sum(share for now, share in zip(right, shares, strict=True) if not now),
        ),
    )


def _vote_shares(judged: Sequence[GradedTrace]) -> tuple[VoteShare, ...]:
    groups: dict[int, list[GradedTrace]] = {}
    for verdict in judged:
        groups.setdefault(sum(text.right is True for text in verdict.layer(0)), []).append(verdict)
    return tuple(
        VoteShare(count, len(group), _mean([v.right is True for v in group]), _mean([v.vote or 0.0 for v in group]))
        for count, group in sorted(groups.items())
    )


def _mean(values: Sequence[float]) -> float:
    return float(sum(values) / len(values))
