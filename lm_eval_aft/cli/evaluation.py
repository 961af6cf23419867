"""Run lm-eval in this process, and save the run as lm-eval's own command line saves it."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def evaluate(output_path: Path, **settings: Any) -> dict[str, Any]:
    """Run lm-eval once, with ``--log_samples``.

    Args:
        output_path: As for ``--output_path``.
        **settings: Further arguments of lm-eval's ``simple_evaluate``.

    Returns:
        lm-eval's results without the samples.
    """
    # Both import torch.
    import lm_eval
    from lm_eval.loggers import EvaluationTracker

    tracker = EvaluationTracker(output_path=str(output_path))
    results: dict[str, Any] = lm_eval.simple_evaluate(evaluation_tracker=tracker, log_samples=True, **settings)
    # lm-eval writes the name of a class here if it gets a loaded model.
    results["config"]["model"] = "aft"
    samples = results.pop("samples")
    tracker.save_results_aggregated(results=results, samples=samples)
    for task in results["configs"]:
        tracker.save_results_samples(task_name=task, samples=samples[task])
    return results
