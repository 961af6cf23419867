"""How much time does our part of a run take? lm-eval with the scripted engine, compared with lm-eval's dummy model.

Both run the same task on the same questions in this process, in turns. The scripted engine takes almost no time, so the
difference is our part: reading contexts, building prompts, seeds, keys and records for k * layers + 1 generations.

Usage: python benchmarks/overhead.py --questions test.jsonl [--k 5 --layers 2 --turns 3 --out benchmarks/results]
"""

from __future__ import annotations

import resource
import statistics
import time
from typing import Any

import lm_eval
from common import add_point, add_turns, parser, write
from lm_eval.tasks import TaskManager

import lm_eval_aft


def evaluate(model: str, model_args: dict[str, Any], questions: str) -> float:
    """Evaluate aft_gsm8k on a local file. Returns the seconds it took."""
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
    options = parser(__doc__)
    options.add_argument("--questions", required=True, help="GSM8K's test.jsonl.")
    add_point(options, k=5, layers=2)
    add_turns(options)
    args = options.parse_args()
    lm_eval_aft.register()
    ours = {"engine": "scripted", "k": args.k, "layers": args.layers}
    times: dict[str, list[float]] = {"dummy": [], "aft": []}
    # The first turn warms up.
    for turn in range(args.turns + 1):
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
