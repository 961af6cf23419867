"""How far is a decoding step of the hf engine from what the machine allows?

A step must read all weights, and the keys and values of every prompt and row, from memory. It must also compute two
operations a row and weight. The script measures how fast this machine reads memory and multiplies matrices, and then a
step. A matrix product is measured with as many rows as the batch, since few rows run at a lower rate. The peak is the
rate at 1,024 rows.

Usage: python benchmarks/roofline.py --pretrained FOLDER --questions test.jsonl [--dtype float32 --out FOLDER]
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from common import parser, write
from decode import load, measure

from lm_eval_aft.core.model_shape import attention_width

# Prompts and rows of each.
BATCHES = {1: (1, 1), 16: (16, 1), 80: (16, 5)}
PROMPT_TOKENS, NEW_TOKENS = 100, 24
REPEATS = 9


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """The median processor time of some work on a CPU, and its median wall time elsewhere."""
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    times = []
    for _ in range(REPEATS):
        started = clock()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(clock() - started)
    return statistics.median(times)


def bytes_a_second(device: torch.device) -> float:
    """How fast a sum reads 512 MB."""
    numbers = torch.ones(128 * 1024**2, device=device)
    return numbers.nbytes / seconds(numbers.sum, device)


def operations_a_second(model: Any, rows: int) -> float:
    """The rate of all products of a row with the weights of one layer, two operations a row and weight."""
    weights = [weight for weight in model.model.layers[0].parameters() if weight.dim() == 2]
    inputs = [weight.new_ones(rows, weight.shape[1]) for weight in weights]
    work = sum(weight.numel() for weight in weights) * 2 * rows

    def multiply() -> None:
        for given, weight in zip(inputs, weights, strict=True):
            torch.nn.functional.linear(given, weight)

    return work / seconds(multiply, model.device)


@torch.inference_mode()
def row_of_table(engine: Any, path: str, rows: int, bandwidth: float, peak: float) -> dict[str, float]:
    """The least time of a step by bytes and by operations, and the measured one, in milliseconds."""
    prompts, k = BATCHES[rows]
    model, shape = engine.model, engine.shape
    # The head reads its weights too, and they may be those of the embedding.
    weights = shape.parameters + model.get_output_embeddings().weight.numel()
    token_bytes = 2 * shape.layers * attention_width(model.config, keys=True) * model.dtype.itemsize
    tokens = prompts * PROMPT_TOKENS + rows * NEW_TOKENS / 2
    step = measure(engine, path, (prompts, k, PROMPT_TOKENS, NEW_TOKENS))
    field = "step_processor_ms" if model.device.type == "cpu" else "step_wall_ms"
    by_bytes = 1000 * (weights * model.dtype.itemsize + tokens * token_bytes) / bandwidth
    by_operations = 2000 * weights * rows / operations_a_second(model, rows)
    return {
        "bytes_ms": round(by_bytes, 1),
        "operations_ms": round(by_operations, 1),
        "operations_at_peak_ms": round(2000 * weights * rows / peak, 1),
        "step_ms": round(step[field], 1),
        "over_the_limit": round(step[field] / max(by_bytes, by_operations), 2),
        "over_the_limit_at_peak": round(step[field] / max(by_bytes, 2000 * weights * rows / peak), 2),
    }


def main() -> None:
    """Measure the machine, then a step of each batch, and write one table."""
    options = parser(__doc__)
    options.add_argument("--pretrained", required=True, help="Folder of the checkpoint.")
    options.add_argument("--questions", required=True, help="JSON lines file with a field `question`.")
    options.add_argument("--dtype", default="float32", help="Type of the weights (default float32).")
    options.add_argument("--device", default="cpu", help="Device of the model (default cpu).")
    args = options.parse_args()
    engine = load(args)
    bandwidth, peak = bytes_a_second(engine.model.device), operations_a_second(engine.model, 1024)
    table = {str(rows): row_of_table(engine, args.questions, rows, bandwidth, peak) for rows in BATCHES}
    figures = {
        "dtype": args.dtype,
        "device": args.device,
        "prompt_tokens": PROMPT_TOKENS,
        "gigabytes_a_second": round(bandwidth / 1e9, 1),
        "peak_gigaflops": round(peak / 1e9, 1),
        "rows": table,
    }
    write("roofline", figures, args.out)


if __name__ == "__main__":
    main()
