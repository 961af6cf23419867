"""Which runs may be compared: the conditions of each task, the main score of a task, and a label for each run.

These functions look at settings and conditions, never at the value of a score.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lm_eval_aft.core.config import DEFAULT_CONFIDENCE
from lm_eval_aft.core.names import display_name, joined_name
from lm_eval_aft.core.strategies import STRATEGIES, Strategy
from lm_eval_aft.storage.results import Conditions, EvalRun, Score

# The generation settings in which two runs of a task must agree.
SAMPLING = ("temperature", "top_p", "top_k", "do_sample", "max_gen_toks", "until")
# Metrics that are 0 or 1 for each question.
RIGHT_OR_WRONG = ("exact_match", "exact", "acc")
# Engine arguments that name an adapter.
ADAPTERS = ("peft", "lora_local_path")
PROMPTS = {
    "chat": "a chat prompt",
    "bare": "a bare prompt",
    "wrapped": "a bare prompt made a user turn",
}


def differences(usual: Conditions, other: Conditions) -> tuple[str, ...]:
    """The reasons why ``other`` is another test than ``usual``, a phrase each; empty if they agree."""
    return tuple(_differences(usual, other))


def _differences(usual: Conditions, other: Conditions) -> Iterator[str]:
    if other.version != usual.version:
        yield f"task version {other.version or 'unknown'} instead of {usual.version or 'unknown'}"
    if other.questions != usual.questions:
        yield f"{other.questions:,} questions instead of {usual.questions:,}"
    if other.shots != usual.shots:
        yield f"{_shots(other)} instead of {_shots(usual)}"
    elif other.shots and other.multiturn != usual.multiturn:
        yield f"shots {'as turns' if other.multiturn else 'in one turn'}"
    if other.prompt != usual.prompt:
        yield f"{PROMPTS[other.prompt]} instead of {PROMPTS[usual.prompt]}"
    if other.system != usual.system:
        yield "another system instruction"
    if other.judge != usual.judge:
        yield f"judged by {other.judge or 'nobody'} instead of {usual.judge or 'nobody'}"
    for name in SAMPLING:
        value, usual_value = other.generation.get(name), usual.generation.get(name)
        if value != usual_value:
            yield f"{name} {value!r} instead of {usual_value!r}"


def _shots(conditions: Conditions) -> str:
    return "unknown shots" if conditions.shots is None else f"{conditions.shots} shots"


def conditions_of(run: EvalRun, name: str) -> Mapping[str, Conditions]:
    """How a run put a task, or each task in a group; empty if it has no such task."""
    return {task: run.conditions[task] for task in run.tasks_of(name)}


def group_differences(usual: Mapping[str, Conditions], other: Mapping[str, Conditions]) -> tuple[str, ...]:
    """The reasons why some tasks are together another test than they usually are, a phrase each.

    Args:
        usual: The usual conditions of each task.
        other: The conditions of each task in the other run.
    """
    shared = [task for task in other if task in usual]
    phrases: dict[str, list[str]] = {}
    for task in shared:
        for phrase in differences(replace(usual[task], questions=other[task].questions), other[task]):
            phrases.setdefault(phrase, []).append(task)
    reasons = [
        phrase if len(tasks) == len(shared) else f"{phrase} in {len(tasks)} of {len(shared)} tasks, such as {tasks[0]}"
        for phrase, tasks in phrases.items()
    ]
    counts = [sum(conditions[task].questions for task in shared) for conditions in (other, usual)]
    if counts[0] != counts[1]:
        reasons.append(f"{counts[0]:,} questions instead of {counts[1]:,}")
    if other.keys() != usual.keys():
        reasons.append(f"{_tasks(other)} instead of {_tasks(usual)}, {len(shared)} of them shared")
    return tuple(reasons)


def _tasks(conditions: Mapping[str, Conditions]) -> str:
    return f"{len(conditions)} task{'s' * (len(conditions) != 1)}"


def unusual_conditions(run: EvalRun, runs: Sequence[EvalRun], name: str) -> tuple[str, ...]:
    """The reasons why a task or a group of a run is another test than in most of the runs, a phrase each.

    If several conditions are equally common, the first counts.
    """
    found = [each for other in runs if (each := conditions_of(other, name))]
    counts = Counter(map(repr, found))
    return group_differences(max(found, key=lambda each: counts[repr(each)]), conditions_of(run, name))


def primary_score(run: EvalRun, name: str) -> Score:
    """The score that represents a task or a group. The run must have at least one score of it.

    It is the first score under a flexible filter, since a strict filter also measures the form of an answer. Without a
    flexible filter it is the first score that can be better or worse, as a length cannot.
    """
    scores = run.scores_of(name)
    ranked = [score for score in scores if score.ranked] or list(scores)
    return next((score for score in ranked if score.filter.startswith("flexible")), ranked[0])


def votable(score: Score) -> bool:
    """Whether a majority vote can be compared with a score: it is right or wrong, whatever the form of the answer."""
    return score.metric in RIGHT_OR_WRONG and not score.filter.startswith("strict")


def measure_name(metric: str, filter_name: str) -> str:
    """A metric with its filter, if it has one, such as "exact_match, strict-match"."""
    return metric if filter_name == "none" else f"{metric}, {filter_name}"


def labels(runs: Sequence[EvalRun]) -> tuple[str, ...]:
    """A short label for each run, all different.

    A label has the model and how it was run, such as (k, layers). Runs of one label also get the settings in which they
    differ, or a number if they differ in none.
    """
    names = [_label(run) for run in runs]
    settings = [
        _distinctive(run, [other for other, label in zip(runs, names, strict=True) if label == name])
        for run, name in zip(runs, names, strict=True)
    ]
    longer = [f"{name} {extra}".rstrip() for name, extra in zip(names, settings, strict=True)]
    counts = Counter(longer)
    return tuple(name if counts[name] == 1 else f"{name} [{number}]" for number, name in enumerate(longer, 1))


def _label(run: EvalRun) -> str:
    main = str((run.settings or {}).get("model", run.model))
    name = joined_name((Path(main).name or main) + _adapter(run), run.settings or {})
    if not run.settings:
        return f"{name}, --model {run.config.get('model', '?')}"
    system = _system(str(run.settings.get("strategy", "aggregate")), run.shown_k, run.layers)
    if run.settings.get("scored_after_drafts"):
        return f"{name} scored after {system}"
    if run.settings.get("scored_without_aggregation") and not run.answers:
        return f"{name} scored at once"
    return f"{name} {system}"


def _adapter(run: EvalRun) -> str:
    """The name of the adapter on the model, after a plus sign; empty if there is none."""
    model_args = run.config.get("model_args")
    given = (model_args.get(name) for name in ADAPTERS) if isinstance(model_args, Mapping) else ()
    return next((f"+{Path(str(value)).name}" for value in given if value), "")


def _system(strategy: str, k: int | str | None, layers: int | None) -> str:
    """How a run made its answers: (k, layers), with the name of a strategy that does not aggregate."""
    kind = STRATEGIES.get(strategy, Strategy("", f"{strategy} ({{k}}, {{layers}})"))
    hidden = f" after {layers - 1}" if layers and layers > 1 else ""
    # A single answer has k = 1, whatever k was set.
    return kind.label.format(k=k if layers or strategy == "beam" else 1, layers=layers, hidden=hidden)


def _distinctive(run: EvalRun, namesakes: Sequence[EvalRun]) -> str:
    """The settings in which a run differs from others of its label, as name=value."""
    settings, others = _telling_settings(run), [_telling_settings(each) for each in namesakes]
    names = [name for name in settings if any(other.get(name) != settings[name] for other in others)]
    return " ".join(f"{name}={settings[name]}" for name in names)


def _telling_settings(run: EvalRun) -> dict[str, Any]:
    """The settings that may be part of a label."""
    settings: Mapping[str, Any] = run.settings or {}
    names = (
        "subset",
        "carry",
        "stop_when",
        "stop_layers",
        "probe",
        "drafts_from",
        "engine",
        "seed",
        "temperature",
        "top_p",
        "final_temperature",
        "draft_max_tokens",
    )
    template, source = settings.get("template") or {}, settings.get("drafts_from")
    weighs = settings.get("strategy") == "weighted"
    return (
        {name: settings.get(name) for name in (*names, "mcq_orders") if name in settings}
        | ({"confidence": settings.get("confidence") or DEFAULT_CONFIDENCE} if weighs else {})
        # What the run knows of the other run would make a label of several lines.
        | (
            {"drafts_from": joined_name(display_name(str(source.get("model"))), source)}
            if isinstance(source, Mapping)
            else {}
        )
        | ({"template": Path(str(template.get("name"))).name} if template else {})
        | dict(settings.get("engine_args") or {})
    )
