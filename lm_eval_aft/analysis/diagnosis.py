"""What aggregation did to each question: selected, fixed, broken or copied.

A score says whether a run is good. These numbers say why. An aggregator that copies a draft at random scores like a
mean draft, and one that selects among the drafts scores above the vote.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Literal

from lm_eval_aft.analysis.gap import Gap, gap_closed
from lm_eval_aft.analysis.grading import GradedTrace, grade
from lm_eval_aft.analysis.marking import Marking, choose_marking, extraction_of, gold_answers
from lm_eval_aft.analysis.runs import RunEntry, by_run
from lm_eval_aft.analysis.scores import accuracy_interval
from lm_eval_aft.analysis.stats import Interval
from lm_eval_aft.analysis.voting import score_texts
from lm_eval_aft.core.cuts import Cuts
from lm_eval_aft.core.errors import RecordError
from lm_eval_aft.core.records import Trace


@dataclass(frozen=True, slots=True)
class LayerStats:
    """The texts of one layer. The last layer has one text a question, so all its accuracies are the answer's.

    Attributes:
        layer: 0 for the drafts.
        texts: Texts in it, over all questions.
        mean: Mean accuracy of its texts. For a layer above 0 this is the score of a run that ends at this layer. None
            if nothing says which texts are right.
        majority: Accuracy of the majority vote over its answers, ties drawn by lot. None if there are no answers.
        oracle: Share of questions that at least one of its texts answers correctly.
        distinct_answers: Different answers a question; texts without an answer do not count.
        distinct_texts: Different texts a question, white space normalised.
        generated_tokens: Mean generated tokens of a text.
        silent: Texts without an answer.
        duplicates: Texts equal to an earlier text of their layer; empty texts do not count.
        empty: Texts without an answer: only white space, or a thought that does not end.
        cut: Texts that ended at the token limit.
        cuts: Prompts of the layer, and those whose drafts were cut to fit the context.
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
    cuts: Cuts = field(default_factory=Cuts)


@dataclass(frozen=True, slots=True)
class Reading:
    """How the texts of one layer follow from the texts of an earlier layer: copied, selected, or neither.

    Attributes:
        layer: The later layer.
        read: The earlier layer; 0 for the drafts. The answer of several layers has the drafts in its prompt indirectly.
        texts: Texts of ``layer``.
        copies: Texts of ``layer`` that are equal to a text of ``read``, white space normalised.
        copies_by_position: Copies by the position in ``read``. A copy of n equal texts counts 1/n for each.
        nearest_overlap: Mean over the texts of the highest share of their word 3-grams that one text of ``read`` has.
        mean_overlap: The same for a random text of ``read``. Both are None if ``read`` is not the layer before.
        disputed: Questions on which the texts of ``read`` disagree in correctness.
        selected: Accuracy of ``layer`` on the disputed questions.
        random: Mean accuracy of ``read`` on the disputed questions, which is the score of a random choice.
        majority: Accuracy of the majority vote of ``read`` on the disputed questions; None if there are no answers.
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
        """Share of the texts that are copies."""
        return self.copies / self.texts


@dataclass(frozen=True, slots=True)
class Change:
    """The answer compared with another way to answer.

    Attributes:
        beside: The other way: "majority vote", "first draft" or "mean draft".
        fixed: Questions that the answer gets right and the other way wrong. The vote counts if it is wrong for certain.
            For the mean draft it is the sum of right * (1 - share of right drafts).
        broken: Questions that the answer gets wrong and the other way right, counted in the same way. In each count a
            repeat of a question is its part.
        tied: Questions whose vote is drawn by lot between a right and a wrong answer. They are in neither count.
    """

    beside: Literal["majority vote", "first draft", "mean draft"]
    fixed: float
    broken: float
    tied: float = 0


@dataclass(frozen=True, slots=True)
class VoteShare:
    """Questions with the same number of right drafts.

    Attributes:
        right_drafts: How many of the k drafts are right.
        questions: Number of such questions. A repeat of a question counts as its part.
        answer: Share of these questions that the answer gets right.
        majority: Share of these questions that the vote gets right; None if there are no answers to vote on.
    """

    right_drafts: int
    questions: float
    answer: float
    majority: float | None


@dataclass(frozen=True, slots=True)
class Diagnostics:
    """One model run on one task.

    Attributes:
        task: Name of the task.
        model: What was run, from the traces' settings.
        k: Drafts a question.
        layers: Aggregation layers that wrote texts.
        scored: Whether one more layer scored choices. The texts here stood in its prompt, and none is the answer.
        settings: The traces' settings, as JSON.
        extraction: How answers were found; empty if the task has no answers to find.
        questions: Number of questions. The repeats and turns of a question belong to it.
        judged: Questions with a gold answer or grades, to which every accuracy and count of right and wrong refers.
        by_layer: From the drafts to the answer.
        readings: Each layer with the layer before; for more than one layer, also the answer with the drafts.
        changes: Against the vote, the first and the mean draft; the vote is missing if there are no answers to vote on.
            Empty if nothing says which texts are right.
        vote_shares: By number of right drafts, from 0 to k; numbers that do not occur are left out.
        cuts: How often drafts were cut to fit the context, over all layers.
        gap_closed: (answer - vote) / (oracle - vote), in accuracies over the same drafts. It is 0 for an answer as good
            as the majority vote and 1 for one as good as the oracle, and may be negative. None if nothing says which
            texts are right, if there is no vote, or if the gap is too near to 0.
        measure: The task's metric that says which texts are right; "" if gold answers say it.
        gap: The gap itself, and why there is no ``gap_closed``; None if there is no vote or nothing is marked.
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
    cuts: Cuts = field(default_factory=Cuts)
    gap_closed: Interval | None = None
    measure: str = ""
    gap: Gap | None = None


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """A run's numbers on one task, and the graded traces from which they were counted, in the traces' order."""

    diagnostics: Diagnostics
    traces: tuple[GradedTrace, ...]


def diagnose_traces(
    traces: Iterable[Trace], entries: Sequence[RunEntry], regex: str | None = None, level: float = 0.95
) -> tuple[Diagnosis, ...]:
    """Grade traces and count, one result for each task and setting among them.

    Tasks whose texts were not graded and whose answers cannot be found have no accuracies, but copies, diversity and
    lengths.

    Args:
        traces: Of any runs; read once, one at a time.
        entries: Runs whose logged samples hold the gold answers, paired on task and hash of the document.
        regex: Finds answers instead of the tasks' own filters.
        level: Confidence of the intervals, in (0, 1).

    Raises:
        ConfigError: The regex is not valid.
        RecordError: A file is damaged.
    """
    groups = by_run(traces, lambda trace: grade(trace, extraction_of(trace, regex)))
    diagnoses = []
    for (settings, task, _), group in groups.items():
        marking, marked = mark_traces(task, list(group.values()), entries, regex)
        diagnoses.append(Diagnosis(_diagnostics(marked, settings, marking, level), tuple(marked)))
    return tuple(diagnoses)


def mark_traces(
    task: str, traces: Sequence[GradedTrace], entries: Sequence[RunEntry], regex: str | None = None
) -> tuple[Marking, list[GradedTrace]]:
    """Say which texts are right, by the task's grades or by gold answers.

    Args:
        task: Name of the task.
        traces: Traces of it, from ``grade`` with the extraction of ``extraction_of``.
        entries: Runs whose logged samples hold the gold answers.
        regex: Finds answers instead of the task's own filter.
    """
    graded = [text.grades for trace in traces for text in trace.texts if trace.graded]
    marking = choose_marking(task, graded, entries, regex)
    if marking.extraction is None:
        return marking, [trace.with_rule(marking.rule) for trace in traces]
    gold = gold_answers(entries, {(task, trace.doc_hash) for trace in traces}, regex)
    return marking, [trace.with_gold(gold.get((task, trace.doc_hash)), marking.extraction) for trace in traces]


def _diagnostics(traces: Sequence[GradedTrace], settings: str, marking: Marking, level: float) -> Diagnostics:
    values = json.loads(settings)
    judged = [trace for trace in traces if trace.right is not None]
    layers = max(text.layer for text in traces[0].texts)
    _check_depth(traces, layers)
    # If all questions stop early, hidden layers have no texts.
    written = {text.layer for trace in traces for text in trace.texts}
    scored = layers < int(values.get("layers", layers))
    steps = [(layer, layer - 1) for layer in range(1, layers + 1)] + ([(layers, 0)] if layers > 1 else [])
    gap = _gap(judged, level) if judged and layers and not scored and marking.votes else None
    return Diagnostics(
        task=traces[0].task,
        model=str(values.get("model", "")),
        k=max(len(trace.layer(0)) for trace in traces),
        layers=layers,
        scored=scored,
        settings=settings,
        extraction=marking.name,
        questions=_question_count(traces),
        judged=_question_count(judged),
        by_layer=tuple(_layer(traces, layer, marking.votes, level) for layer in sorted(written)),
        readings=tuple(_reading(traces, *step, marking.votes, level) for step in steps if written.issuperset(step)),
        changes=_changes(judged, marking.votes) if judged and layers and not scored else (),
        vote_shares=() if scored else _vote_shares(judged, marking.votes),
        cuts=sum((cuts for trace in traces for cuts in trace.cuts), Cuts()),
        gap_closed=gap.closed if gap else None,
        measure=marking.measure,
        gap=gap,
    )


def _check_depth(traces: Sequence[GradedTrace], layers: int) -> None:
    for trace in traces:
        deepest = max(text.layer for text in trace.texts)
        if deepest != layers:
            raise RecordError(
                f"the trace of {trace.task}, doc_id {trace.doc_id}, has texts up to layer {deepest} and that of "
                f"doc_id {traces[0].doc_id} up to {layers}: one of their files is damaged; the same lm_eval command "
                "writes it again from the store."
            )


def _layer(traces: Sequence[GradedTrace], layer: int, has_answers: bool, level: float) -> LayerStats:
    # With ``stop_layers`` some questions skip a layer.
    groups = [group for trace in traces if (group := trace.layer(layer))]
    texts = [text for group in groups for text in group]
    judged = [trace for trace in traces if trace.right is not None and trace.layer(layer)]
    mean, majority, oracle = _accuracies(judged, layer, has_answers, level)
    answers = [{text.answer for text in group} - {None} for group in groups]
    written = [[text.identity for text in group if not text.empty] for group in groups]
    return LayerStats(
        layer=layer,
        texts=len(texts),
        mean=mean,
        majority=majority,
        oracle=oracle,
        distinct_answers=fmean(map(len, answers)) if has_answers else None,
        distinct_texts=fmean(len({text.identity for text in group}) for group in groups),
        generated_tokens=fmean(text.tokens for text in texts),
        silent=sum(text.answer is None for text in texts) if has_answers else None,
        duplicates=sum(len(each) - len(set(each)) for each in written),
        empty=sum(text.empty for text in texts),
        cut=sum(text.cut for text in texts),
        cuts=sum((each for trace in traces for each in trace.cuts[layer - 1 : layer] if layer), Cuts()),
    )


def _accuracies(
    traces: Sequence[GradedTrace], layer: int, votes: bool, level: float
) -> tuple[Interval | None, Interval | None, Interval | None]:
    """Mean, majority and oracle of a layer's texts; all None without a trace, no majority without answers."""
    if not traces:
        return None, None, None
    scores = []
    for trace in traces:
        texts = trace.layer(layer)
        answers = [text.answer for text in texts] if votes else None
        scores.append(score_texts(answers, [float(text.right is True) for text in texts], len(texts)))
    documents = [trace.doc_id for trace in traces]
    means, majorities, oracles = zip(*scores, strict=True)
    voted = [score for score in majorities if score is not None]
    return (
        accuracy_interval(documents, means, level),
        accuracy_interval(documents, voted, level) if voted else None,
        accuracy_interval(documents, oracles, level),
    )


def _reading(traces: Sequence[GradedTrace], layer: int, read: int, votes: bool, level: float) -> Reading:
    traces = [trace for trace in traces if trace.layer(read) and trace.layer(layer)]
    texts = [(trace, text) for trace in traces for text in trace.layer(layer)]
    copied = [positions for trace, text in texts if (positions := trace.copies(text, read))]
    overlaps = [text.overlaps for _, text in texts if text.overlaps and not text.empty] if layer == read + 1 else []
    disputed = [trace for trace in traces if 0 < _share_right(trace, read) < 1]
    random, majority, _ = _accuracies(disputed, read, votes, level)
    selected, _, _ = _accuracies(disputed, layer, votes, level)
    width = max((len(trace.layer(read)) for trace in traces), default=0)
    by_position = [sum(1 / len(each) for each in copied if position in each) for position in range(width)]
    return Reading(
        layer=layer,
        read=read,
        texts=len(texts),
        copies=len(copied),
        copies_by_position=tuple(by_position),
        nearest_overlap=fmean(map(max, overlaps)) if overlaps else None,
        mean_overlap=fmean(map(fmean, overlaps)) if overlaps else None,
        disputed=_question_count(disputed),
        selected=selected,
        random=random,
        majority=majority,
    )


def _share_right(trace: GradedTrace, layer: int = 0) -> float:
    """Share of a layer's texts that are right; 0 if nothing says which are."""
    return fmean(text.right is True for text in trace.layer(layer))


def _question_count(traces: Sequence[GradedTrace]) -> int:
    """The number of questions, to each of which its repeats and turns belong."""
    return len({trace.doc_id for trace in traces})


def _weights(traces: Sequence[GradedTrace]) -> list[float]:
    """The part of its question that each trace is. The repeats and turns of a question are one question together."""
    counts = Counter(trace.doc_id for trace in traces)
    return [1 / counts[trace.doc_id] for trace in traces]


def _changes(traces: Sequence[GradedTrace], votes: bool) -> tuple[Change, ...]:
    """The answer beside the vote, if there is one, the first and the mean draft, for traces that are marked."""
    weights = _weights(traces)
    right = [trace.right is True for trace in traces]
    first = [trace.texts[0].right is True for trace in traces]
    shares = [_share_right(trace) for trace in traces]

    def count(parts: Iterable[float]) -> float:
        return sum(weight * part for weight, part in zip(weights, parts, strict=True))

    vote = Change(
        "majority vote",
        count(trace.fixed for trace in traces),
        count(trace.broken for trace in traces),
        count(trace.vote is not None and 0 < trace.vote < 1 for trace in traces),
    )
    return (
        *((vote,) if votes else ()),
        Change(
            "first draft",
            count(answer and not draft for answer, draft in zip(right, first, strict=True)),
            count(draft and not answer for answer, draft in zip(right, first, strict=True)),
        ),
        Change(
            "mean draft",
            count((1 - share) * answer for answer, share in zip(right, shares, strict=True)),
            count(share * (not answer) for answer, share in zip(right, shares, strict=True)),
        ),
    )


def _gap(traces: Sequence[GradedTrace], level: float) -> Gap | None:
    votes = [trace.vote for trace in traces if trace.vote is not None]
    if len(votes) < len(traces):
        return None
    oracles = [float(any(text.right for text in trace.layer(0))) for trace in traces]
    rights = [float(trace.right is True) for trace in traces]
    return gap_closed(rights, votes, oracles, [trace.doc_id for trace in traces], level)


def _vote_shares(traces: Sequence[GradedTrace], votes: bool) -> tuple[VoteShare, ...]:
    groups: dict[int, list[tuple[GradedTrace, float]]] = {}
    for trace, weight in zip(traces, _weights(traces), strict=True):
        groups.setdefault(sum(text.right is True for text in trace.layer(0)), []).append((trace, weight))
    shares = []
    for count, group in sorted(groups.items()):
        weights = [weight for _, weight in group]
        shares.append(
            VoteShare(
                right_drafts=count,
                questions=sum(weights),
                answer=fmean((trace.right is True for trace, _ in group), weights),
                majority=fmean((trace.vote or 0.0 for trace, _ in group), weights) if votes else None,
            )
        )
    return tuple(shares)
