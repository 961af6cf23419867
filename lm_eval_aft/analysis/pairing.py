"""The scores of two runs on the same questions, side by side, for paired tests.

lm-eval's logged samples are paired on document id, document hash and filter. The prompt is no part of it, since it
depends on the model. The questions of a group are those of all its tasks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from statistics import fmean

from lm_eval_aft.analysis.groups import Weighting, group_weighting, member_scores
from lm_eval_aft.analysis.runs import RunEntry
from lm_eval_aft.core.errors import RecordError
from lm_eval_aft.storage.results import EvalRun, Sample, Score

# Number of ids that a message names.
SHOWN_IDS = 8
# doc_id, doc_hash
Document = tuple[int, str]
# Metrics whose samples hold log-likelihoods.
POOLED = ("perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte")
# Metrics whose samples may hold the gold and the predicted label.
OF_LABELS = ("mcc", "f1")


class UnusableScores(RecordError):
    """A metric of a task in one run that cannot be compared question by question."""


@dataclass(frozen=True, slots=True)
class PairedScores:
    """Paired scores of one metric of one task, or of one group.

    Attributes:
        task: Name of the task or the group.
        metric: Name of the metric.
        filter: lm-eval's filter.
        documents: The question of each pair. If the metric of a question is a list, each of its parts is a pair.
        categories: The category of each pair; empty strings if the documents have none.
        baseline: The baseline's score in each pair.
        other: The other run's score in each pair.
        left_out: Questions that only one of the runs answered.
        strata: The task of each pair, if each task of a group counts alike. Empty if each pair counts alike.
    """

    task: str
    metric: str
    filter: str
    documents: tuple[Document, ...]
    categories: tuple[str, ...]
    baseline: tuple[float, ...]
    other: tuple[float, ...]
    left_out: int = 0
    strata: tuple[str, ...] = ()

    def mean(self, scores: Sequence[float]) -> float:
        """The mean of the scores of one run, as the pairs count."""
        if not self.strata:
            return fmean(scores)
        by_task: dict[str, list[float]] = {}
        for task, score in zip(self.strata, scores, strict=True):
            by_task.setdefault(task, []).append(score)
        return fmean(map(fmean, by_task.values()))

    @property
    def binary(self) -> bool:
        """Whether every score is 0 or 1, and every question has one pair."""
        return {*self.baseline, *self.other} <= {0.0, 1.0} and len(set(self.documents)) == len(self.documents)

    @property
    def questions(self) -> PairedScores:
        """One pair for each question: the means of its parts."""
        pairs: dict[Document, list[int]] = {}
        for number, document in enumerate(self.documents):
            pairs.setdefault(document, []).append(number)
        return replace(
            self,
            documents=tuple(pairs),
            categories=tuple(self.categories[parts[0]] for parts in pairs.values()),
            baseline=tuple(fmean(self.baseline[part] for part in parts) for parts in pairs.values()),
            other=tuple(fmean(self.other[part] for part in parts) for parts in pairs.values()),
            strata=tuple(self.strata[parts[0]] for parts in pairs.values()) if self.strata else (),
        )

    def in_category(self, category: str) -> PairedScores:
        """The pairs of one category."""
        pairs = [number for number, name in enumerate(self.categories) if name == category]
        return replace(
            self,
            documents=tuple(self.documents[pair] for pair in pairs),
            categories=(category,) * len(pairs),
            baseline=tuple(self.baseline[pair] for pair in pairs),
            other=tuple(self.other[pair] for pair in pairs),
        )


def pair_scores(
    baseline: RunEntry, other: RunEntry, task: str, metric: str, filter_name: str, common: bool = False
) -> PairedScores:
    """Pair the logged samples of two runs.

    Args:
        baseline: One run.
        other: Another run.
        task: A task of both runs.
        metric: A metric whose samples are a number, or lists of equally many numbers.
        filter_name: lm-eval's filter.
        common: Compare the questions that both runs answered, if the runs answered different ones.

    Raises:
        RecordError: The runs answered different questions (the message names their ids), or samples were not logged.
        UnusableScores: The metric is no finite number for each question.
    """
    first, second = (samples_by_document(entry, task, filter_name) for entry in (baseline, other))
    for entry, samples in ((baseline, first), (other, second)):
        _refuse_infinite(entry, task, metric, samples)
    shared = [document for document in first if document in second]
    left_out = len(first.keys() ^ second.keys())
    if (left_out and not common) or not shared:
        raise RecordError(_mismatch(baseline.run, other.run, task, list(first), list(second), len(shared)))
    documents: list[Document] = []
    scores: tuple[list[float], list[float]] = ([], [])
    for document in shared:
        values = _numbers(first[document], metric), _numbers(second[document], metric)
        if len(values[0]) != len(values[1]):
            raise RecordError(
                f"{metric} of {task} has {len(values[0])} parts for doc_id {document[0]} in {baseline.run.path} and "
                f"{len(values[1])} in {other.run.path}: other versions of the task scored them; run one of them again."
            )
        documents += [document] * len(values[0])
        for column, numbers in zip(scores, values, strict=True):
            column += numbers
    categories = tuple(first[document].category for document in documents)
    return PairedScores(
        task, metric, filter_name, tuple(documents), categories, tuple(scores[0]), tuple(scores[1]), left_out
    )


def pair_group(baseline: RunEntry, other: RunEntry, score: Score, common: bool = False) -> PairedScores:
    """Pair the logged samples of all tasks in a group.

    Args:
        baseline: One run.
        other: Another run.
        score: The group's score in the other run, which names its metric and filter.
        common: Compare the tasks and questions that both runs have, if they are not the same ones.

    Raises:
        RecordError: See ``pair_scores``; or the group has different tasks in the two runs.
        UnusableScores: See ``pair_scores``; or lm-eval's score is no mean over the tasks.
    """
    weighting = _weighting(other, score)
    ours, theirs = ([each.task for each in member_scores(run, score)] for run in (baseline.run, other.run))
    tasks = [task for task in theirs if task in ours]
    apart = sorted(set(ours) ^ set(theirs))
    if (apart and not common) or not tasks:
        raise RecordError(
            f"{score.task} has different tasks with {score.metric},{score.filter} in {baseline.run.path} "
            f"and in {other.run.path} ({', '.join(apart[:SHOWN_IDS])}): give --common to compare the "
            f"{len(tasks)} that both have."
        )
    parts = [pair_scores(baseline, other, task, score.metric, score.filter, common) for task in tasks]
    # Two tasks may hold the same document.
    documents = ((number, f"{part.task}/{name}") for part in parts for number, name in part.documents)
    joined = PairedScores(
        task=score.task,
        metric=score.metric,
        filter=score.filter,
        documents=tuple(documents),
        categories=("",) * sum(len(part.documents) for part in parts),
        baseline=tuple(value for part in parts for value in part.baseline),
        other=tuple(value for part in parts for value in part.other),
        left_out=sum(part.left_out for part in parts),
    )
    if weighting == "by size":
        return joined
    return replace(joined, strata=tuple(part.task for part in parts for _ in part.documents))


def _weighting(entry: RunEntry, score: Score) -> Weighting:
    weighting = group_weighting(entry.run, score)
    if weighting is None:
        raise UnusableScores(
            f"{score.task}: {score.metric},{score.filter} of {entry.label} is no mean over its tasks, so it cannot be "
            "compared question by question; give --task for a task in it."
        )
    return weighting


def samples_by_document(entry: RunEntry, task: str, filter_name: str) -> Mapping[Document, Sample]:
    """A run's samples of a task under one filter.

    Raises:
        RecordError: The samples were not logged, or the file is damaged.
    """
    samples = entry.scored(task)
    return {(each.key.doc_id, each.key.doc_hash): each for each in samples if each.key.filter == filter_name}


def _numbers(sample: Sample, metric: str) -> list[float]:
    value = sample.metrics.get(metric)
    if metric in POOLED or (metric in OF_LABELS and isinstance(value, list)):
        raise UnusableScores(
            f"{metric} of {sample.key.task} is no mean over questions: lm-eval logs what it is computed from, so "
            "it cannot be compared question by question; give another --metric, or --task for others."
        )
    if isinstance(value, list) and value and all(isinstance(part, int | float) for part in value):
        return [float(part) for part in value]
    try:
        return [sample.score(metric)]
    except RecordError as error:
        raise UnusableScores(str(error)) from error


def _refuse_infinite(entry: RunEntry, task: str, metric: str, samples: Mapping[Document, Sample]) -> None:
    ids = [str(doc_id) for (doc_id, _), sample in samples.items() if not all(map(isfinite, _numbers(sample, metric)))]
    if ids:
        raise UnusableScores(
            f"{task}: {metric} of {entry.label} is not a finite number for {len(ids)} of {len(samples)} questions "
            f"(doc_id {_some(ids)}), so this run is left out."
        )


def _mismatch(
    baseline: EvalRun, other: EvalRun, task: str, first: Sequence[Document], second: Sequence[Document], shared: int
) -> str:
    """The message about two runs that answered different questions."""
    lines = [
        _only(run, sorted(set(mine) - set(theirs)))
        for run, mine, theirs in ((baseline, first, second), (other, second, first))
        if set(mine) - set(theirs)
    ]
    changed = {doc_id for doc_id, _ in set(first) - set(second)} & {doc_id for doc_id, _ in set(second) - set(first)}
    data = f"; {len(changed)} of these ids stand for another text in each run, so the data differ" if changed else ""
    common = f"or give --common to compare the {shared} that both answered" if shared else "they share none"
    return (
        f"the runs did not answer the same questions of {task}: {'; '.join(lines)}{data}: run both with the same "
        f"data and --limit, {common}."
    )


def _only(run: EvalRun, documents: Sequence[Document]) -> str:
    return f"{len(documents)} only in {run.path} (doc_id {_some([str(doc_id) for doc_id, _ in documents])})"


def _some(ids: Sequence[str]) -> str:
    more = f" and {len(ids) - SHOWN_IDS} more" if len(ids) > SHOWN_IDS else ""
    return ", ".join(ids[:SHOWN_IDS]) + more
