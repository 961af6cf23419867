"""What the drafts alone would score: mean draft, majority vote and oracle, from traces; the command ``aft votes``.

Votes by the task's own extraction (or a regex) on the drafts of the traces, with the gold answers of lm-eval's samples.
Knows nothing of engines; imports neither torch nor lm_eval. ``plot`` and ``report`` call ``count_votes``, ``diagnose``
takes gold answers and intervals from here: nobody else extracts answers from drafts. A little over 200 lines for the
fields' meanings.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass, replace
from typing import Literal

from lm_eval_aft.analysis.runs import RunEntry, by_run
from lm_eval_aft.analysis.stats import Interval, mean_interval
from lm_eval_aft.analysis.voting import score_drafts
from lm_eval_aft.core.errors import RecordError
from lm_eval_aft.core.records import Trace
from lm_eval_aft.core.usage import ModelShape
from lm_eval_aft.inference.dialogue import answer_in
from lm_eval_aft.inference.extraction import Extraction, choose_extraction

Order = Literal["subsets", "prefix"]


@dataclass(frozen=True, slots=True)
class Ballot:
    """What one trace has to say: an answer a draft (None where there is none), and what each cost."""

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
    """The three scores of n drafts.

    Attributes:
        n: Drafts.
        mean: Mean accuracy of a draft.
        majority: Accuracy of the most frequent answer, the expected one where several are.
        oracle: Share of questions that at least one draft answers rightly.
        generated_tokens: A question, for n drafts.
        flops: A question, for n drafts and their prompt once; None where the model's shape is unknown.
    """

    n: int
    mean: Interval
    majority: Interval
    oracle: Interval
    generated_tokens: float
    flops: float | None


@dataclass(frozen=True, slots=True)
class Votes:
    """Drafts against their aggregate, over the questions of one task under one setting.

    Attributes:
        task: Name of the task.
        k: Drafts a question.
        layers: Aggregation passes after them.
        settings: The traces' settings, as JSON.
        extraction: How answers were found.
        silent: Share of drafts in which no answer was found; they do not vote.
        without_gold: Questions left out for want of a gold answer.
        points: For n = 1 to k.
        aggregate: Accuracy of the last layer's text by the same extraction.
        aggregate_tokens: Tokens generated a question for it, drafts included.
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


@dataclass(frozen=True, slots=True)
class _How:
    """What the caller chose; see ``count_votes``."""

    regex: str | None
    order: Order
    level: float


def count_votes(
    traces: Iterable[Trace],
    entries: Sequence[RunEntry],
    regex: str | None = None,
    order: Order = "subsets",
    level: float = 0.95,
) -> tuple[Votes, ...]:
    """Score the drafts of traces, one result for each task and setting among them.

    Args:
        traces: Of any runs; read once, one at a time.
        entries: Their logged samples hold the gold answers; paired on task and hash of the document.
        regex: Instead of the task's own extraction.
        order: "subsets" takes the mean over all choices of n of the k drafts, exactly; "prefix" the first n.
        level: Of the intervals.

    Raises:
        ConfigError: A task has no extraction of its own, or the regex is not valid.
        RecordError: No gold answers are to be had for a task.
    """
    groups = by_run(traces, lambda trace: _ballot(trace, choose_extraction(trace.question.task, regex)))
    wanted = {(ballot.task, ballot.doc_hash) for group in groups.values() for ballot in group.values()}
    gold = gold_answers(entries, wanted, regex)
    how, shapes = _How(regex, order, level), _shapes(entries)
    return tuple(
        _votes(list(group.values()), gold, shapes.get(json.loads(settings).get("fingerprint")), how)
        for (settings, *_), group in groups.items()
    )


def _shapes(entries: Sequence[RunEntry]) -> dict[str, ModelShape]:
    """Sizes of the models that were run, by the fingerprint that their traces carry too."""
    ours = [entry.run.settings for entry in entries if entry.run.settings]
    return {row["fingerprint"]: ModelShape(**row["model_shape"]) for row in ours if row.get("model_shape")}


def _ballot(trace: Trace, extraction: Extraction) -> Ballot:
    asked, drafts = trace.question, [draft.completion for draft in trace.layer(0)]
    return Ballot(
        asked.task,
        asked.doc_id,
        asked.doc_hash,
        json.dumps(trace.set_settings, sort_keys=True),
        tuple(extraction.answer(answer_in(asked, draft.text)) for draft in drafts),
        drafts[0].prompt_tokens,
        tuple(draft.generated_tokens for draft in drafts),
        extraction.answer(answer_in(asked, trace.answer)),
        trace.usage.generated_tokens,
    )


def gold_answers(
    entries: Sequence[RunEntry], wanted: Set[tuple[str, str]], regex: str | None = None
) -> dict[tuple[str, str], str]:
    """Gold answers by task and document hash, of those wanted, from as few samples files as hold them all."""
    gold: dict[tuple[str, str], str] = {}
    for entry in entries:
        for task in entry.run.tasks:
            lacking = any(name == task and (name, doc) not in gold for name, doc in wanted)
            if not lacking or not entry.logged(task):
                continue
            for sample in entry.samples(task):
                answer = choose_extraction(task, regex).gold(sample.target)
                if answer is not None:
                    gold[task, sample.key.doc_hash] = answer
    return gold


def _votes(ballots: list[Ballot], gold: dict[tuple[str, str], str], shape: ModelShape | None, how: _How) -> Votes:
    task, settings = ballots[0].task, json.loads(ballots[0].settings)
    known = [ballot for ballot in ballots if (task, ballot.doc_hash) in gold]
    if not known:
        raise RecordError(f"there are no gold answers for {task}: give the --output_path of a run with --log_samples.")
    truth = [gold[task, ballot.doc_hash] for ballot in known]
    extraction = choose_extraction(task, how.regex)
    right = [float(bool(extraction.rights([b.final], answer))) for b, answer in zip(known, truth, strict=True)]
    k = min(len(ballot.answers) for ballot in known)
    drafts = [answer for ballot in known for answer in ballot.answers]
    return Votes(
        task=task,
        k=k,
        layers=int(settings["layers"]),
        settings=ballots[0].settings,
        extraction=extraction.name,
        silent=drafts.count(None) / len(drafts),
        without_gold=len(ballots) - len(known),
        points=tuple(_point(known, truth, n, shape, how) for n in range(1, k + 1)),
        aggregate=accuracy_interval([ballot.doc_id for ballot in known], right, how.level),
        aggregate_tokens=_mean([ballot.final_tokens for ballot in known]),
    )


def _point(ballots: list[Ballot], truth: list[str], n: int, shape: ModelShape | None, how: _How) -> VotePoint:
    counted = [_first(ballot, n) for ballot in ballots] if how.order == "prefix" else ballots
    extraction = choose_extraction(ballots[0].task, how.regex)
    rights = [extraction.rights(ballot.answers, gold) for ballot, gold in zip(counted, truth, strict=True)]
    scores = [score_drafts(ballot.answers, right, n) for ballot, right in zip(counted, rights, strict=True)]
    docs = [ballot.doc_id for ballot in ballots]
    mean, majority, oracle = (accuracy_interval(docs, column, how.level) for column in zip(*scores, strict=True))
    tokens = _mean([n * _mean(ballot.tokens) for ballot in counted])
    flops = _mean([_flops(ballot, n, shape) for ballot in counted]) if shape else None
    return VotePoint(n, mean, majority, oracle, tokens, flops)


def _first(ballot: Ballot, n: int) -> Ballot:
    return replace(ballot, answers=ballot.answers[:n], tokens=ballot.tokens[:n])


def _flops(ballot: Ballot, n: int, shape: ModelShape) -> float:
    """Of n drafts of mean cost: their prompt is computed once, as the schedule counts it."""
    start = ballot.prompt_tokens
    return float(shape.flops(0, start)) + n * _mean([shape.flops(start, start + tokens) for tokens in ballot.tokens])


def _mean(values: Sequence[float]) -> float:
    return float(sum(values) / len(values))


def accuracy_interval(doc_ids: Iterable[int], scores: Iterable[float], level: float) -> Interval:
    """Interval of an accuracy, within 0 and 1; repeats of one question are not independent: their mean counts once."""
    groups: dict[int, list[float]] = {}
    for doc_id, score in zip(doc_ids, scores, strict=True):
        groups.setdefault(doc_id, []).append(score)
    found = mean_interval([_mean(group) for group in groups.values()], level)
    return replace(found, low=max(0.0, found.low), high=min(1.0, found.high))  # t knows no bounds


def show(votes: Votes, order: Order) -> str:
    """The table of one task and setting, scores in percent."""
    head = f"{votes.task}, k={votes.k}, layers={votes.layers}: {votes.aggregate.n} questions"
    left_out = f", {votes.without_gold} left out without a gold answer" if votes.without_gold else ""
    how = f"{votes.extraction}; {votes.silent:.1%} of the drafts hold no answer{left_out}"
    which = "all choices of n drafts" if order == "subsets" else "the first n drafts"
    columns = f"{'n':>4}  {'mean draft':<22}{'majority vote':<22}{'oracle':<22}{'generated tokens a question':>28}"
    rows = [
        f"{p.n:>4}  {_cell(p.mean):<22}{_cell(p.majority):<22}{_cell(p.oracle):<22}{p.generated_tokens:>28,.1f}"
        for p in votes.points
    ]
    last = f"{'aggregate' if votes.layers else 'answer'}, k={votes.k}, layers={votes.layers}: {_cell(votes.aggregate)}"
    return "\n".join([head, f"{which}; {how}", columns, *rows, f"{last:<72}{votes.aggregate_tokens:>28,.1f}"])


def _cell(interval: Interval) -> str:
    return f"{100 * interval.estimate:.1f} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"
