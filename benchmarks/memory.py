"""How much memory does a question take? Peak memory of lm-eval runs with 1,000 and with 10,000 questions.

Each run is a process of its own with the scripted engine, traces and a draft store. Its questions are generated, as
long as those of GSM8K. The figure is the growth from the smaller to the larger run, per question, minus the growth of
lm-eval's dummy model.

Usage: python benchmarks/memory.py [--k 5 --layers 2 --sizes 1000 10000 --out benchmarks/results]
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
from argparse import SUPPRESS
from pathlib import Path
from typing import Any

from common import add_point, parser, write

TEXT = (
    "Question {0}: a farmer owns {1} hens, and each of them lays {2} eggs a week. She keeps {3} eggs for breakfast, "
    "bakes with {4} more, and sells the rest at the market for 2 dollars each. How many dollars does she make in all?"
)


def write_questions(path: Path, count: int) -> None:
    """Write ``count`` distinct problems in the form of GSM8K's files."""
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            question = TEXT.format(number, number % 97 + 5, number % 7 + 1, number % 5, number % 3)
            file.write(json.dumps({"question": question, "answer": f"It is so.\n#### {number % 100}"}) + "\n")


def run_here(model: str, model_args: dict[str, Any], questions: str) -> None:
    """Evaluate in this process and print its peak memory (kB)."""
    from overhead import evaluate

    import lm_eval_aft

    lm_eval_aft.register()
    evaluate(model, model_args, questions)
    print(f"PEAK {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}")


def peak_kb(model: str, model_args: dict[str, Any], questions: Path) -> int:
    """Peak memory (kB) of an evaluation in a process of its own."""
    command = [sys.executable, __file__, "--child", json.dumps([model, model_args, str(questions)])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("PEAK ")]
    if done.returncode or not lines:
        raise SystemExit(f"the run with {model} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return int(lines[-1].split()[1])


def measure(sizes: list[int], k: int, layers: int) -> dict[str, dict[str, int]]:
    """Peak memory (kB) of both models at each size."""
    peaks: dict[str, dict[str, int]] = {"dummy": {}, "aft": {}}
    with tempfile.TemporaryDirectory() as folder:
        for size in sizes:
            questions = Path(folder, f"{size}.jsonl")
            write_questions(questions, size)
            ours = {"engine": "scripted", "k": k, "layers": layers, "record": f"{folder}/traces-{size}"}
            for model, model_args in (("dummy", {}), ("aft", ours)):
                peaks[model][str(size)] = peak_kb(model, model_args, questions)
    return peaks


def main() -> None:
    """Measure and write the figures, or, with ``--child``, be one of the measured runs."""
    options = parser(__doc__)
    add_point(options, k=5, layers=2)
    options.add_argument(
        "--sizes",
        type=int,
        nargs=2,
        default=[1000, 10000],
        help="Number of questions of the smaller and of the larger run (default 1000 10000).",
    )
    options.add_argument("--child", help=SUPPRESS)
    args = options.parse_args()
    if args.child:
        run_here(*json.loads(args.child))
        return
    peaks = measure(args.sizes, args.k, args.layers)
    small, large = map(str, args.sizes)
    more = args.sizes[1] - args.sizes[0]
    growth = {model: round((peak[large] - peak[small]) / more, 2) for model, peak in peaks.items()}
    figures = {
        "k": args.k,
        "layers": args.layers,
        "peak_kb": peaks,
        "growth_kb_a_question": growth,
        "beyond_dummy_kb_a_question": round(growth["aft"] - growth["dummy"], 2),
    }
    write("memory", figures, args.out)


if __name__ == "__main__":
    main()
