"""Judged models for ``aft compare``: FastChat's judgement files and alpaca_eval's annotations.

A judge's ratings lie in files of their own, not in lm-eval's samples. They become scores by question here, so that the
same paired tests apply. MT-Bench gives a rating for each turn. AlpacaEval gives a preference for the model over a
reference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

from lm_eval_aft.analysis.pairing import PairedScores, UnusableScores
from lm_eval_aft.analysis.runs import RunEntry
from lm_eval_aft.core.errors import ConfigError, RecordError
from lm_eval_aft.judging.alpaca_eval.files import read_annotations
from lm_eval_aft.judging.mt_bench.replies import read_judgements

# The question, and the turn from 1.
JudgedTurn = tuple[str, int]


@dataclass(frozen=True, slots=True)
class JudgedModel:
    """The judgements on one model.

    Attributes:
        path: The file.
        model: The model whose answers were judged.
        task: "mt_bench" or "alpaca_eval".
        metric: What a score is: "rating" or "preference".
        setting: Judge, and prompts or reference. Two models can be compared if it is equal.
        scores: The score of each turn; the mean over repeats.
        missing: Judgements without a score.
    """

    path: Path
    model: str
    task: str
    metric: str
    setting: str
    scores: Mapping[JudgedTurn, float]
    missing: int


def is_judgement_file(path: Path) -> bool:
    """Whether a path is a file of judgements rather than a run of lm-eval."""
    return path.is_file() and (path.suffix == ".jsonl" or path.name.startswith("annotations"))


def read_judged_models(path: Path) -> tuple[JudgedModel, ...]:
    """Every judged model in a file.

    Raises:
        RecordError: The file is neither FastChat's nor alpaca_eval's.
    """
    return _ratings(path) if path.suffix == ".jsonl" else (_preferences(path),)


def judgements_of(models: Sequence[JudgedModel], tasks: Sequence[str], metric: str | None) -> list[JudgedModel]:
    """The models that were judged in some benchmarks.

    Args:
        models: Judged models.
        tasks: Names of benchmarks, or of their tasks such as aft_mt_bench; empty for all.
        metric: NAME or NAME,FILTER of the score; None for any.

    Raises:
        ConfigError: No model was judged in them, or the score has another name.
    """
    wanted = {task.removeprefix("aft_") for task in tasks}
    found = [model for model in models if not wanted or model.task in wanted]
    have = ", ".join(dict.fromkeys(model.task for model in models))
    for task in tasks:
        if task.removeprefix("aft_") not in {model.task for model in models}:
            raise ConfigError(f"--task {task}: these files hold judgements of {have}; give that, or leave --task out.")
    metrics = list(dict.fromkeys(model.metric for model in found))
    if metric is not None and metric.removesuffix(",none") not in metrics:
        raise ConfigError(f"--metric {metric}: these judgements have {', '.join(metrics)}; give that, or leave it out.")
    return [model for model in found if metric is None or model.metric == metric.removesuffix(",none")]


def _ratings(path: Path) -> tuple[JudgedModel, ...]:
    models = []
    for judgements in read_judgements(path):
        ratings: dict[JudgedTurn, list[float]] = {}
        for judgement in judgements:
            if judgement.score is not None:
                ratings.setdefault((str(judgement.question_id), judgement.turn), []).append(judgement.score)
        scores = {turn: fmean(values) for turn, values in ratings.items()}
        setting = f"judge {judgements[0].judge}, prompts {judgements[0].prompts}"
        missing = sum(judgement.score is None for judgement in judgements)
        models.append(JudgedModel(path, judgements[0].model, "mt_bench", "rating", setting, scores, missing))
    return tuple(models)


def _preferences(path: Path) -> JudgedModel:
    annotations = read_annotations(path)
    scores = {(each.instruction, 1): each.preference - 1 for each in annotations if each.preference is not None}
    first, missing = annotations[0], len(annotations) - len(scores)
    setting = f"judge {first.annotator}, reference {first.generator_1}"
    return JudgedModel(path, first.generator_2, "alpaca_eval", "preference", setting, scores, missing)


def pair_stored_judgements(baseline: RunEntry, other: RunEntry, task: str, common: bool) -> PairedScores:
    """Pair the judgements that ``aft judge``, or a judge within the run, left beside two runs.

    Args:
        baseline: One run.
        other: Another run.
        task: The judged task.
        common: See ``pair_judgements``.

    Raises:
        UnusableScores: A run is not judged, or the runs were judged differently or on different questions.
    """
    first, second = (stored_model(entry, task) for entry in (baseline, other))
    try:
        pairs = pair_judgements(first, second, common)
    except RecordError as error:
        raise UnusableScores(f"{task}: {error}") from error
    # AlpacaEval states preferences in percent.
    scale = 100 if first.task == "alpaca_eval" else 1
    return replace(
        pairs,
        task=task,
        metric=other.judged[task].paired,
        baseline=tuple(scale * value for value in pairs.baseline),
        other=tuple(scale * value for value in pairs.other),
    )


def stored_model(entry: RunEntry, task: str) -> JudgedModel:
    """The judgements that a judge left beside a run.

    Raises:
        UnusableScores: The run is not judged.
        RecordError: The file of judgements cannot be read.
    """
    stored = entry.judged.get(task)
    if stored is None:
        benchmark = task.rpartition("::")[2].removeprefix("aft_")
        raise UnusableScores(
            f"{task}: {entry.label} is not judged, or its judgements are not beside it: run aft judge "
            f"{benchmark} {entry.run.path}."
        )
    models = read_judged_models(stored.judgements)
    return next((model for model in models if stored.judge in model.setting), models[0])


def pair_judgements(baseline: JudgedModel, other: JudgedModel, common: bool) -> PairedScores:
    """Pair the scores of two models by question and turn.

    Args:
        baseline: One model.
        other: Another model.
        common: Compare the turns on which both have a score, if they have scores on different ones.

    Raises:
        RecordError: The models were judged differently, or on different questions.
    """
    for name, mine, theirs in (("task", baseline.task, other.task), ("setting", baseline.setting, other.setting)):
        if mine != theirs:
            raise RecordError(
                f"{baseline.path} ({baseline.model}) and {other.path} ({other.model}) were not judged alike: {mine} "
                f"against {theirs}; judge both with the same {'benchmark' if name == 'task' else 'judge and prompts'}."
            )
    shared = [turn for turn in baseline.scores if turn in other.scores]
    apart = baseline.scores.keys() ^ other.scores.keys()
    if (apart and not common) or not shared:
        ids = ", ".join(sorted({question[:40] for question, _ in apart})[:8])
        raise RecordError(
            f"{baseline.model} and {other.model} were judged on different questions ({len(apart)} differ: {ids}): "
            f"judge what is missing, or give --common to compare the {len(shared)} they share."
        )
    numbers = {question: number for number, question in enumerate(dict.fromkeys(q for q, _ in shared))}
    return PairedScores(
        task=baseline.task,
        metric=baseline.metric,
        filter="none",
        documents=tuple((numbers[question], question) for question, _ in shared),
        categories=("",) * len(shared),
        baseline=tuple(baseline.scores[turn] for turn in shared),
        other=tuple(other.scores[turn] for turn in shared),
        left_out=len(apart),
    )
