"""Make one run for benchmarks/reading.py: lm-eval with --model aft on a local file, with samples and traces.

Usage: python benchmarks/reading_run.py OUT QUESTIONS MODEL_ARGS_AS_JSON
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import lm_eval
from lm_eval.loggers import EvaluationTracker
from lm_eval.tasks import TaskManager

import lm_eval_aft


def main(out: str, questions: str, model_args: str) -> None:
    """Evaluate gsm8k and write what ``lm_eval run --log_samples`` writes."""
    lm_eval_aft.register()
    files = {"train": questions, "test": questions}
    task = {"task": "gsm8k", "dataset_path": "json", "dataset_name": None, "dataset_kwargs": {"data_files": files}}
    # lm-eval's own task alone, with five examples in each prompt and two filters. Indexing all of its tasks is slow.
    folder = str(Path(lm_eval.__file__).parent / "tasks" / "gsm8k")
    tracker = EvaluationTracker(output_path=out)
    results: Any = lm_eval.simple_evaluate(
        model="aft",
        model_args=json.loads(model_args),
        tasks=[{"group": "local", "task": [task]}],
        task_manager=TaskManager(include_path=folder, include_defaults=False),
        evaluation_tracker=tracker,
        log_samples=True,
        apply_chat_template=True,
        bootstrap_iters=0,
    )
    samples = results.pop("samples")
    tracker.save_results_aggregated(results=results, samples=samples)
    for name in results["configs"]:
        tracker.save_results_samples(task_name=name, samples=samples[name])


if __name__ == "__main__":
    main(*sys.argv[1:])
