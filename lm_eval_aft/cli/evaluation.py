"""Run lm-eval in this process, and save the run as lm-eval's own command line saves it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def evaluate(output_path: Path, machine: dict[str, Any], **settings: Any) -> dict[str, Any]:
    """Run lm-eval once, with ``--log_samples``.

    Args:
        output_path: As for ``--output_path``.
        machine: lm-eval's description of the machine. If it is empty, this run fills it; making it takes seconds.
        **settings: Further arguments of lm-eval's ``simple_evaluate``.

    Returns:
        lm-eval's results without the samples.
    """
    # Both import torch.
    import lm_eval
    from lm_eval.loggers import EvaluationTracker

    tracker = EvaluationTracker(output_path=str(output_path))
    with _described_by(machine):
        results: dict[str, Any] = lm_eval.simple_evaluate(evaluation_tracker=tracker, log_samples=True, **settings)
    # lm-eval writes the name of a class here if it gets a loaded model.
    results["config"]["model"] = "aft"
    samples = results.pop("samples")
    tracker.save_results_aggregated(results=results, samples=samples)
    for task in results["configs"]:
        tracker.save_results_samples(task_name=task, samples=samples[task])
    return results


@contextmanager
def _described_by(machine: dict[str, Any]) -> Iterator[None]:
    """Let lm-eval use a description of the machine instead of making its own after each run."""
    from lm_eval import evaluator

    describe = evaluator.add_env_info

    def add_env_info(storage: dict[str, Any]) -> None:
        if not machine:
            describe(machine)
        storage.update(machine)

    evaluator.add_env_info = add_env_info
    try:
        yield
    finally:
        evaluator.add_env_info = describe
