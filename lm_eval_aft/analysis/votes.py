"""What the drafts alone would score: the mean draft, the majority vote and the oracle of n drafts.

Answers are found in the drafts of traces by the task's own extraction or by a regex. Gold answers come from lm-eval's
samples.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from statistics import fmean

from lm_eval_aft.analysis.runs import RunEntry, by_run
from lm_eval_aft.analysis.stats import Interval, mean_interval
from lm_eval_aft.analysis.voting import score_drafts
from lm_eval_aft.core.errors import RecordError
from lm_eval_aft.core.records import Trace
from lm_eval_aft.core.usage import ModelShape
from lm_eval_aft.inference.dialogue import answer_of, final_answer
from lm_eval_aft.inference.extraction import Extraction, choose_extraction


@dataclass(frozen=True, slots=True)
class Ballot:
    """What a vote needs of one trace.

    Attributes:
        task: Name of the task.
        doc_id: Row of the document.
        doc_hash: lm-eval's hash of the document.
        settings: The trace's settings, as JSON.
        answers: The answer in each draft; None if there is none.
        prompt_tokens: Length of the drafts' prompt.
        tokens: Generated tokens of each draft.
        final: The answer in the text of the last layer; None if there is none.
        final_tokens: Generated tokens of the whole trace.
    """

    task: str
    doc_id: int
    doc_hash: str
    settings: str
    answers: tuple[str | None, ...]
    prompt_tokens: int
    tokens: tuple[int, ...]
    final: str | None
    final_tokens: int


@dataclass(frozen=True, slots=True)
class VotePoint:
    """The three scores of n drafts, each a mean over all choices of n of the k drafts.

    Attributes:
        n: Number of drafts.
        mean: Mean accuracy of a draft.
        majority: Accuracy of the most frequent answer. Ties are drawn by lot, so this is the expected accuracy.
        oracle: Share of questions that at least one draft answers correctly.
        generated_tokens: A question, for n drafts.
        flops: A question, for n drafts and their prompt once; None if the shape of the model is unknown.
    """

    n: int
    mean: Interval
    majority: Interval
    oracle: Interval
    generated_tokens: float
    flops: float | None


@dataclass(frozen=True, slots=True)
class Votes:
    """The drafts and their aggregate, over the questions of one task under one setting.

    Attributes:
        task: Name of the task.
        k: Drafts a question.
        layers: Aggregation layers after them.
        settings: The traces' settings, as JSON.
        extraction: How answers were found.
        silent: Share of drafts in which no answer was found. They do not vote.
        without_gold: Questions that are left out since they have no gold answer.
        points: For n = 1 to k.
        aggregate: Accuracy of the last layer's text by the same extraction.
        aggregate_tokens: Generated tokens a question for that text, drafts included.
    """

    task: str
    k: int
    layers: int
    settings: str
    extraction: str
    silent: float
    without_gold: int
    points: tuple[VotePoint, ...]
    aggregate: Interval
    aggregate_tokens: float


def count_votes(
    traces: Iterable[Trace], entries: Sequence[RunEntry], regex: str | None = None, level: float = 0.95
) -> tuple[Votes, ...]:
    """Score the drafts of traces, one result for each task and setting among them.

    Args:
        traces: Of any runs; read once, one at a time.
        entries: Runs whose logged samples hold the gold answers, paired on task and hash of the document.
        regex: Finds answers instead of the task's own extraction.
        level: Confidence of the intervals, in (0, 1).

    Raises:
        ConfigError: A task has no extraction of its own, or the regex is not valid.
        RecordError: There are no gold answers for a task.
    """
    groups = by_run(traces, lambda trace: _ballot(trace, choose_extraction(trace.question.task, regex)))
    documents = {(ballot.task, ballot.doc_hash) for group in groups.values() for ballot in group.values()}
    gold = gold_answers(entries, documents, regex)
    shapes = _shapes(entries)
    return tuple(
        _votes(list(group.values()), gold, shapes, choose_extraction(task, regex), level)
        for (_, task, _), group in groups.items()
    )


def _shapes(entries: Sequence[RunEntry]) -> dict[str, ModelShape]:
    """The shapes of the models, by the fingerprint that their traces carry too."""
    settings = [entry.run.settings for entry in entries if entry.run.settings]
    return {row["fingerprint"]: ModelShape(**row["model_shape"]) for row in settings if row.get("model_shape")}


def _ballot(trace: Trace, extraction: Extraction) -> Ballot:
    question, drafts = trace.question, trace.layer(0)
    return Ballot(
        task=question.task,
        doc_id=question.doc_id,
        doc_hash=question.doc_hash,
        settings=json.dumps(trace.set_settings, sort_keys=True),
        answers=tuple(extraction.answer(answer_of(question, draft)) for draft in drafts),
        prompt_tokens=drafts[0].completion.prompt_tokens,
        tokens=tuple(draft.completion.generated_tokens for draft in drafts),
        final=extraction.answer(final_answer(trace)),
        final_tokens=trace.usage.generated_tokens,
    )


def gold_answers(
    entries: Sequence[RunEntry], documents: Set[tuple[str, str]], regex: str | None = None
) -> dict[tuple[str, str], str]:
    """Gold answers by task and document hash, from as few samples files as hold them all.

    Args:
        entries: Runs whose logged samples may hold the gold answers.
        documents: Task and hash of the documents whose gold answers are needed.
        regex: Finds answers instead of the tasks' own extraction.
    """
    gold: dict[tuple[str, str], str] = {}
    for entry in entries:
        for task in entry.run.tasks:
            lacking = any(name == task and (name, doc) not in gold for name, doc in documents)
            if not lacking or not entry.logged(task):
                continue
            for sample in entry.samples(task):
                answer = choose_extraction(task, regex).gold(sample.target)
                if answer is not None:
                    gold[task, sample.key.doc_hash] = answer
    return gold


def _votes(
    ballots: Sequence[Ballot],
    gold: Mapping[tuple[str, str], str],
    shapes: Mapping[str, ModelShape],
    extraction: Extraction,
    level: float,
) -> Votes:
    task, settings = ballots[0].task, json.loads(ballots[0].settings)
    known = [ballot for ballot in ballots if (task, ballot.doc_hash) in gold]
    if not known:
        raise RecordError(f"there are no gold answers for {task}: give the --output_path of a run with --log_samples.")
    truth = [gold[task, ballot.doc_hash] for ballot in known]
    right = [float(bool(extraction.rights([b.final], answer))) for b, answer in zip(known, truth, strict=True)]
    k = min(len(ballot.answers) for ballot in known)
    drafts = [answer for ballot in known for answer in ballot.answers]
    shape = shapes.get(settings.get("fingerprint"))
    return Votes(
        task=task,
        k=k,
        layers=int(settings["layers"]),
        settings=ballots[0].settings,
        extraction=extraction.name,
        silent=drafts.count(None) / len(drafts),
        without_gold=len(ballots) - len(known),
        points=tuple(_point(known, truth, n, shape, extraction, level) for n in range(1, k + 1)),
        aggregate=accuracy_interval([ballot.doc_id for ballot in known], right, level),
        aggregate_tokens=fmean(ballot.final_tokens for ballot in known),
    )


def _point(
    ballots: Sequence[Ballot],
    truth: Sequence[str],
    n: int,
    shape: ModelShape | None,
    extraction: Extraction,
    level: float,
) -> VotePoint:
    rights = [extraction.rights(ballot.answers, gold) for ballot, gold in zip(ballots, truth, strict=True)]
    scores = [score_drafts(ballot.answers, right, n) for ballot, right in zip(ballots, rights, strict=True)]
    documents = [ballot.doc_id for ballot in ballots]
    mean, majority, oracle = (accuracy_interval(documents, column, level) for column in zip(*scores, strict=True))
    tokens = fmean(n * fmean(ballot.tokens) for ballot in ballots)
    flops = fmean(_flops(ballot, n, shape) for ballot in ballots) if shape else None
    return VotePoint(n, mean, majority, oracle, tokens, flops)


def _flops(ballot: Ballot, n: int, shape: ModelShape) -> float:
    """FLOPs of n drafts of mean cost. Their prompt is computed once, as in inference."""
    start = ballot.prompt_tokens
    return float(shape.flops(0, start)) + n * fmean(shape.flops(start, start + tokens) for tokens in ballot.tokens)


def accuracy_interval(doc_ids: Iterable[int], scores: Iterable[float], level: float) -> Interval:
    """Interval of an accuracy, within 0 and 1.

    Repeats of one question are not independent, so their mean counts as one score.

    Args:
        doc_ids: The question of each score.
        scores: Each in [0, 1].
        level: Confidence in (0, 1).
    """
    groups: dict[int, list[float]] = {}
    for doc_id, score in zip(doc_ids, scores, strict=True):
        groups.setdefault(doc_id, []).append(score)
    interval = mean_interval([fmean(group) for group in groups.values()], level)
    # Student's t knows no bounds.
    return replace(interval, low=max(0.0, interval.low), high=min(1.0, interval.high))
