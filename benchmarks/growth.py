"""How do the schedule's time and tokens grow with k, layers and the number of questions?

The scripted engine takes almost no time, so what remains is the schedule's: prompts, seeds, keys and records. The time
is the processor time of this process outside the engine, as the median over the turns. No draft store is used;
benchmarks/sweep.py measures the store.

Usage: python benchmarks/growth.py --questions test.jsonl [--k 1 2 4 8 16 --layers 0 1 2 3 4
           --sizes 100 400 1319 --turns 3 --out benchmarks/results]
"""

from __future__ import annotations

import statistics
import time
from typing import Any

from common import add_turns, write
from workload import MeasuredEngine, engine_of, parser, read_questions

from lm_eval_aft.core.config import AFTConfig
from lm_eval_aft.core.engine import Engine
from lm_eval_aft.core.prompts import Template
from lm_eval_aft.core.records import Question
from lm_eval_aft.inference.schedule import propose_and_aggregate
from lm_eval_aft.storage.draft_store import NoStore


def point(engine: Engine, questions: list[Question], k: int, layers: int, turns: int) -> dict[str, Any]:
    """Run one setting ``turns`` times. Returns its median time and its tokens."""
    times = []
    for _ in range(turns):
        measured, started = MeasuredEngine(engine), time.process_time()
        traces = propose_and_aggregate(
            questions, measured, Template.load(None), AFTConfig(k=k, layers=layers), NoStore(), quiet=True
        )
        times.append(time.process_time() - started - measured.inside_processor_s)
    usages = [trace.usage for trace in traces]
    generations = sum(usage.generations for usage in usages)
    return {
        "k": k,
        "layers": layers,
        "questions": len(questions),
        "generations": generations,
        "generated_tokens": sum(usage.generated_tokens for usage in usages),
        "asked_prompt_tokens": sum(usage.prompt_tokens for usage in usages),
        "computed_prompt_tokens": sum(usage.computed_prompt_tokens for usage in usages),
        "schedule_s": round(statistics.median(times), 4),
        "schedule_us_a_generation": round(statistics.median(times) / generations * 1e6, 1),
    }


def main() -> None:
    """Increase one of the three at a time and write three tables."""
    options = parser(__doc__, engine="scripted", count=1319)
    options.add_argument("--k", type=int, nargs="+", default=[1, 2, 4, 8, 16], help="Values of k, at layers=2.")
    options.add_argument("--layers", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="Values of layers, at k=5.")
    options.add_argument(
        "--sizes", type=int, nargs="+", default=[100, 400, 1319], help="Numbers of questions, at k=5 and layers=2."
    )
    add_turns(options)
    args = options.parse_args()
    args.count = max(args.sizes)
    engine, questions = engine_of(args), read_questions(args)
    # A short run first warms up.
    point(engine, questions[:100], 5, 2, 1)
    middle = questions[: sorted(args.sizes)[len(args.sizes) // 2]]
    figures = {
        "engine": args.engine,
        "with_k": [point(engine, middle, k, 2, args.turns) for k in args.k],
        "with_layers": [point(engine, middle, 5, layers, args.turns) for layers in args.layers],
        "with_questions": [point(engine, questions[:size], 5, 2, args.turns) for size in args.sizes],
    }
    write("growth", figures, args.out)


if __name__ == "__main__":
    main()
