"""Which runs may stand side by side: the reasons why two runs of one task are not the same test.

Looks at how a task was put (``results.Conditions``), and which score stands for it, never at its value. Called by
``report``, ``compare`` and ``plot``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lm_eval_aft.storage.results import Conditions, EvalRun, Score

SAMPLING = ("temperature", "top_p", "top_k", "do_sample", "max_gen_toks", "until")
RIGHT_OR_WRONG = ("exact_match", "exact", "acc")  # metrics
PROMPTS = {
    "chat": "a chat prompt",
    "bare": "a bare prompt",
    "wrapped": "a bare prompt made a user turn",
}


def differences(usual: Conditions, other: Conditions) -> tuple[str, ...]:
    """Why ``other`` is another test than ``usual``, a phrase each; empty where they agree."""
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
        ours, theirs = other.generation.get(name), usual.generation.get(name)
        if ours != theirs:
            yield f"{name} {ours!r} instead of {theirs!r}"


def _shots(conditions: Conditions) -> str:
    return "unknown shots" if conditions.shots is None else f"{conditions.shots} shots"


def usual_conditions(runs: Sequence[EvalRun], task: str) -> Conditions:
    """How most of the runs put a task; of equally many, the first. At least one of them has it."""
    found = [run.conditions[task] for run in runs if task in run.conditions]
    counts = Counter(map(repr, found))
    return max(found, key=lambda each: counts[repr(each)])


def primary(run: EvalRun, task: str) -> Score:
    """The score that stands for a task: the first one under a flexible filter, else the first that can be better.

    A strict filter measures the form of an answer too, and a length is neither better nor worse; at least one score of
    the task must be there.
    """
    scores = [score for score in run.scores if score.task == task]
    ranked = [score for score in scores if score.ranked] or scores
    return next((score for score in ranked if score.filter.startswith("flexible")), ranked[0])


def votable(score: Score) -> bool:
    """Whether a vote over drafts may stand beside a score: right or wrong, whatever the form of the answer."""
    return score.metric in RIGHT_OR_WRONG and not score.filter.startswith("strict")


def labels(runs: Sequence[EvalRun]) -> tuple[str, ...]:
    """A short name for each run, all different: model, (k, layers), and where that is not enough what differs."""
    names = [_label(run) for run in runs]
    settings = [
        _distinctive(run, [r for r, n in zip(runs, names, strict=True) if n == name])
        for run, name in zip(runs, names, strict=True)
    ]
    longer = [f"{name} {extra}".rstrip() for name, extra in zip(names, settings, strict=True)]
    counts = Counter(longer)
    return tuple(name if counts[name] == 1 else f"{name} [{number}]" for number, name in enumerate(longer, 1))


def _label(run: EvalRun) -> str:
    name = Path(run.model).name or run.model
    if not run.settings:
        return f"{name}, --model {run.config.get('model', '?')}"
    place = _place(run.settings.get("strategy", "aggregate"), run.k, run.layers)
    if run.settings.get("scored_after_drafts"):
        return f"{name} scored after {place}"
    if run.settings.get("scored_without_aggregation") and not run.answers:  # nothing was written
        return f"{name} scored at once"
    return f"{name} {place}"


def _place(strategy: str, k: int | None, layers: int | None) -> str:
    """Where a run stands among those of its model: (k, layers), and by name what does not aggregate."""
    passes = f" after {layers - 1}" if layers and layers > 1 else ""
    names = {
        "majority": f"majority of {k}{passes}",
        "best_of_n": f"best of {k}{passes}",
        "beam": f"beam of {k}",
        "refine": f"refined {layers} times",
    }
    return names.get(strategy, f"({k if layers else 1}, {layers})")  # a plain answer, whatever k was left at


def _distinctive(run: EvalRun, alike: Sequence[EvalRun]) -> str:
    """The settings in which a run differs from others of its name, as name=value."""
    chosen = [_chosen(each) for each in alike]
    mine = _chosen(run)
    names = [name for name in mine if any(other.get(name) != mine[name] for other in chosen)]
    return " ".join(f"{name}={mine[name]}" for name in names)


def _chosen(run: EvalRun) -> dict[str, Any]:
    settings: Mapping[str, Any] = run.settings or {}
    names = ("probe", "drafts_from", "engine", "seed", "temperature", "top_p", "final_temperature", "draft_max_tokens")
    template = settings.get("template") or {}
    return {name: settings.get(name) for name in (*names, "mcq_orders") if name in settings} | (
        {"template": Path(str(template.get("name"))).name} if template else {}
    )
