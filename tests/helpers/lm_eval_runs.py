"""Whole runs of lm-eval in this process, saved as its command line saves them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lm_eval_aft import register, tasks_path


def run_lm_eval(
    output_path: Path,
    tasks: Sequence[Any],
    include_path: Path | None = None,
    model: Any = "aft",
    metadata: dict[str, Any] | None = None,
    options: dict[str, Any] | None = None,
    **model_args: Any,
) -> dict[str, Any]:
    """Evaluate a model, by default --model aft with engine=scripted, and write what --log_samples writes.

    Args:
        output_path: ``--output_path``.
        tasks: ``--tasks``, or the configurations of tasks.
        include_path: Folder of tasks beside ours.
        model: ``--model``, or a loaded model.
        metadata: ``--metadata``.
        options: Further arguments of ``simple_evaluate``.
        **model_args: ``--model_args``.

    Returns:
        lm-eval's results with its samples.
    """
    import lm_eval
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.tasks import TaskManager

    register()
    model_args = model_args or {"engine": "scripted", "k": 2, "layers": 1}
    folders = [str(tasks_path()), *([str(include_path)] if include_path else [])]
    manager = TaskManager(include_defaults=False, include_path=folders, metadata={**model_args, **(metadata or {})})
    tracker = EvaluationTracker(output_path=str(output_path))
    settings = {
        "apply_chat_template": model == "aft" or not isinstance(model, str),
        "bootstrap_iters": 0,
        "device": "cpu",
        **(options or {}),
    }
    results: dict[str, Any] = lm_eval.simple_evaluate(
        model=model,
        model_args=model_args,
        tasks=list(tasks),
        task_manager=manager,
        evaluation_tracker=tracker,
        log_samples=True,
        **settings,
    )
    if not isinstance(model, str):
        results["config"]["model"] = "aft"
    samples = results.pop("samples")
    tracker.save_results_aggregated(results=results, samples=samples)
    for task in results["configs"]:
        tracker.save_results_samples(task_name=task, samples=samples[task])
    return {**results, "samples": samples}
