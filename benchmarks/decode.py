"""How fast is a decoding step of the hf engine, and what memory does it take, beside those of another commit?

Each turn runs a case with both sides, each side in a process of its own. Without ``--other`` there is one side. The
prompts are cut from the text of the questions, so that all have one length. No token ends a text. A step is the time
from the start of one forward pass to the next, so it includes the draw and the bookkeeping. The token ids of both sides
are compared.

Usage: python benchmarks/decode.py --pretrained FOLDER --questions test.jsonl [--other CHECKOUT --device cuda
           --out FOLDER]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from itertools import chain, cycle, islice, pairwise
from pathlib import Path
from typing import Any

from common import add_turns, parser, write
from workload import first_questions

HERE = Path(__file__).resolve().parents[1]
# Prompts, rows of each, tokens of a prompt, tokens of a text.
CASES = {"80 rows x 300": (16, 5, 300, 24), "5 rows x 1,100": (1, 5, 1100, 48)}
MEMORY_CASES = {"80 rows x 1,100": (16, 5, 1100, 4)}


def measure(engine: Any, path: str, case: tuple[int, int, int, int]) -> dict[str, Any]:
    """Run one case with a loaded hf engine, on prompts made of the questions of a file."""
    from lm_eval_aft.core.records import Chat, Message, Prompt, Request, Sampling

    prompts, k, length, new_tokens = case
    engine.stop_ids = frozenset()
    words = list(chain.from_iterable(engine.tokenizer(first_questions(path, 200))["input_ids"]))
    chat, sampling = Chat((Message("user", "x"),)), Sampling(0.7, 0.95, 0, new_tokens)
    requests = []
    for number in range(prompts):
        ids = tuple(islice(cycle(words), number * length, (number + 1) * length))
        prompt = Prompt(chat, ids, length, str(number))
        requests += [Request(prompt, sampling, 10 * number + index) for index in range(k)]
    stamps: list[tuple[float, float]] = []
    hook = engine.model.register_forward_pre_hook(lambda *_: stamps.append((time.process_time(), time.perf_counter())))
    before_mb = peak_mb()
    texts = {position: list(completion.token_ids) for position, completion in engine.generate(requests)}
    hook.remove()
    # A prefill is one forward pass or several. Each text ends with the same number of steps.
    first = len(stamps) - (new_tokens - 1)
    steps = [(b[0] - a[0], b[1] - a[1]) for a, b in pairwise(stamps[first:])]
    return {
        "step_processor_ms": 1000 * statistics.median(step[0] for step in steps),
        "step_wall_ms": 1000 * statistics.median(step[1] for step in steps),
        "prefill_processor_s": stamps[first][0] - stamps[0][0],
        "peak_mb": peak_mb() - before_mb,
        "load": os.getloadavg()[0],
        "token_ids": [texts[position] for position in range(len(requests))],
    }


def peak_mb() -> float:
    """Peak memory in MiB: of the GPU if this process uses one, otherwise of the process."""
    import torch

    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def load(args: argparse.Namespace) -> Any:
    """The hf engine of the package that this process imports. Every case fits into one of its batches."""
    from lm_eval_aft.core.engine import HostArgs
    from lm_eval_aft.engines.hf.engine import HFEngine

    settings = {"pretrained": args.pretrained, "dtype": args.dtype, "batch_tokens": 10**7}
    return HFEngine.load(settings, HostArgs("auto", None, args.device))


def run_side(folder: Path, args: argparse.Namespace, case: tuple[int, int, int, int]) -> dict[str, Any]:
    """Measure a case in a new process that imports the package of this folder."""
    options = ["--pretrained", args.pretrained, "--questions", args.questions, "--dtype", args.dtype]
    command = [sys.executable, __file__, *options, "--device", args.device, "--case", json.dumps(case)]
    environment = {**os.environ, "PYTHONPATH": str(folder), "LM_EVAL_AFT_AUTOLOAD": "0"}
    output = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if output.returncode:
        raise SystemExit(f"the case {case} failed with the package in {folder}:\n{output.stderr[-2000:]}")
    figures: dict[str, Any] = json.loads(output.stdout.splitlines()[-1])
    return figures


def compare(args: argparse.Namespace, case: tuple[int, int, int, int], turns: int) -> dict[str, Any]:
    """Measure the sides in turns. A ratio is that of the medians, theirs over ours."""
    folders = {**({"other": Path(args.other).resolve()} if args.other else {}), "this": HERE}
    sides: dict[str, list[dict[str, Any]]] = {name: [] for name in folders}
    for turn in range(turns):
        for name in list(folders)[:: 1 if turn % 2 == 0 else -1]:
            sides[name].append(run_side(folders[name], args, case))
    table: dict[str, Any] = {}
    for field in ("step_processor_ms", "step_wall_ms", "prefill_processor_s", "peak_mb"):
        values = {name: [round(figures[field], 1) for figures in turns_of] for name, turns_of in sides.items()}
        table[field] = values
        if args.other:
            other, this = (statistics.median(values[name]) for name in ("other", "this"))
            # The memory of a small case may stay below that of loading the model.
            table[field] = {**values, "ratio": round(other / this, 2) if this else None}
    first, second = (sides[name][0]["token_ids"] for name in (next(iter(folders)), "this"))
    table["tokens"] = sum(map(len, first))
    if args.other:
        table["texts_that_differ"] = sum(a != b for a, b in zip(first, second, strict=True))
    table["load"] = {name: [round(figures["load"], 1) for figures in turns_of] for name, turns_of in sides.items()}
    return table


def main() -> None:
    """Run all cases and write one table."""
    options = parser(__doc__)
    options.add_argument("--pretrained", required=True, help="Folder of the checkpoint.")
    options.add_argument("--questions", required=True, help="JSON lines file with a field `question`.")
    options.add_argument("--other", help="Folder of a checkout of the commit to compare with.")
    options.add_argument("--dtype", default="float32", help="Type of the weights (default float32).")
    options.add_argument("--device", default="cpu", help="Device of the model (default cpu).")
    options.add_argument("--memory", action="store_true", help="Measure the memory of 80 rows of 1,100 tokens too.")
    options.add_argument(
        "--divide", type=int, default=1, help="Divide the tokens of prompts by this number (default 1)."
    )
    options.add_argument("--case", help=argparse.SUPPRESS)
    add_turns(options)
    args = options.parse_args()
    if args.case:
        print(json.dumps(measure(load(args), args.questions, tuple(json.loads(args.case)))))
        return
    cases = {name: (prompts, k, length // args.divide, new) for name, (prompts, k, length, new) in CASES.items()}
    figures = {name: compare(args, case, args.turns) for name, case in cases.items()}
    if args.memory:
        figures |= {name: compare(args, case, 1) for name, case in MEMORY_CASES.items()}
    settings = {"dtype": args.dtype, "device": args.device, "prompt_tokens_divided_by": args.divide}
    write("decode", {**settings, "cases": figures}, args.out)


if __name__ == "__main__":
    main()
