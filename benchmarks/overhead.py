"""What the schedule costs by itself: lm-eval with the scripted engine against lm-eval with its own dummy model.

Both run the same task over the same questions in this process, in turns; the scripted engine answers at once, so the
difference is decoding contexts, building prompts, seeds, keys and records for k * layers + 1 generations a question.

Usage: python benchmarks/overhead.py --questions test.jsonl [--k 5 --layers 2 --turns 3 --out benchmarks/results]
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from typing import Any

import lm_eval
from common import write
from lm_eval.tasks import TaskManager

import lm_eval_aft


def evaluate(model: str, model_args: dict[str, Any], questions: str) -> float:
    """Seconds of one evaluation of aft_gsm8k over a local file."""
    files = {"train": questions, "test": questions}
    task = {"task": "aft_gsm8k", "dataset_path": "json", "dataset_name": None, "dataset_kwargs": {"data_files": files}}
    manager = TaskManager(include_path=str(lm_eval_aft.tasks_path()), include_defaults=False)
    started = time.perf_counter()
    lm_eval.simple_evaluate(
        model=model,
        model_args=model_args,
        tasks=[{"group": "local", "task": [task]}],
        task_manager=manager,
        bootstrap_iters=0,
    )
    return time.perf_counter() - started


def main() -> None:
    """Take turns and write the difference of the medians."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--questions", required=True, help="GSM8K's test.jsonl")
    parser.add_argument("--k", type=int, default=5)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--out")
    args = parser.parse_args()
    lm_eval_aft.register()
    ours = {"engine": "scripted", "k": args.k, "layers": args.layers}
    times: dict[str, list[float]] = {"dummy": [], "aft": []}
    for turn in range(args.turns + 1):  # the first turn warms up
        for model, model_args in (("dummy", {}), ("aft", ours)):
            seconds = evaluate(model, model_args, args.questions)
            if turn:
                times[model].append(seconds)
    medians = {model: statistics.median(values) for model, values in times.items()}
    figures = {
        "k": args.k,
        "layers": args.layers,
        "seconds": {model: [round(value, 2) for value in values] for model, values in times.items()},
        "extra_s": round(medians["aft"] - medians["dummy"], 2),
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }
    write("overhead", figures, args.out)


if __name__ == "__main__":
    main()
