"""Memory a question costs: peak memory of whole lm-eval runs with 1,000 and 10,000 questions, less the dummy model's.

Each run is a process of its own over made-up questions as long as GSM8K's, with the scripted engine and traces and
draft store on. The figure is the growth from the smaller to the larger run, beyond that of lm-eval's dummy model, a
question.

Usage: python benchmarks/memory.py [--k 5 --layers 2 --sizes 1000 10000 --out benchmarks/results]
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import write

TEXT = (
    "Question {0}: a farmer owns {1} hens, and each of them lays {2} eggs a week. She keeps {3} eggs for breakfast, "
    "bakes with {4} more, and sells the rest at the market for 2 dollars each. How many dollars does she make in all?"
)


def write_questions(path: Path, count: int) -> None:
    """Distinct made-up problems, as a file of GSM8K's form."""
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            question = TEXT.format(number, number % 97 + 5, number % 7 + 1, number % 5, number % 3)
            file.write(json.dumps({"question": question, "answer": f"It is so.\n#### {number % 100}"}) + "\n")


def run_here(model: str, model_args: dict[str, Any], questions: str) -> None:
    """Evaluate in this process and print its peak memory in kB."""
    from overhead import evaluate

    import lm_eval_aft

    lm_eval_aft.register()
    evaluate(model, model_args, questions)
    print(f"PEAK {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}")


def peak_kb(model: str, model_args: dict[str, Any], questions: Path) -> int:
    """Peak memory of an evaluation in a process of its own."""
    command = [sys.executable, __file__, "--child", json.dumps([model, model_args, str(questions)])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = [line for line in done.stdout.splitlines() if line.startswith("PEAK ")]
    if done.returncode or not found:
        raise SystemExit(f"the run with {model} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return int(found[-1].split()[1])


def measure(sizes: list[int], k: int, layers: int) -> dict[str, dict[str, int]]:
    """Peak memory of both models at each size."""
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
    """Measure and write, or be one of the measured runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--k", type=int, default=5)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--sizes", type=int, nargs=2, default=[1000, 10000])
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--out", help="folder for the JSON file")
    args = parser.parse_args()
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
