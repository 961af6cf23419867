"""How many steps would the hf engine save if waiting prompts took the places of texts that have ended?

The script counts. It reads the lengths of the texts of a run from its traces, and fills batches of several numbers of
rows in the engine's order, longest prompts first. A place of a batch is idle in a step if its text has ended and others
still wait. Without refilling a batch lasts as long as its longest text. With it, the next text starts at once.

Usage: python benchmarks/refill.py TRACES [TRACES ...] [--rows 40,160 --out FOLDER]
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import parser, write

from lm_eval_aft.core.records import Completion
from lm_eval_aft.storage.traces import read_traces, trace_files


def steps_of_batches(lengths: Sequence[int], rows: int) -> int:
    """Steps until all texts have ended, if a batch starts when the one before has ended."""
    return sum(max(lengths[start : start + rows]) for start in range(0, len(lengths), rows))


def steps_refilled(lengths: Sequence[int], rows: int) -> int:
    """Steps until all texts have ended, if each text starts in the first place that is free."""
    ends = [0] * rows
    for length in lengths:
        heapq.heappush(ends, heapq.heappop(ends) + length)
    return max(ends)


def count(texts: Sequence[Completion], rows: int) -> dict[str, Any]:
    """The steps of one layer in batches of so many rows, and the share of places that are idle."""
    ordered = sorted(texts, key=lambda text: -text.prompt_tokens)
    lengths = [text.generated_tokens for text in ordered]
    places = min(rows, len(lengths))
    steps = {"batches": steps_of_batches(lengths, places), "refilled": steps_refilled(lengths, places)}
    idle = {f"idle_{name}": round(1 - sum(lengths) / (places * number), 3) for name, number in steps.items()}
    return {"texts": len(lengths), "tokens": sum(lengths), "longest": max(lengths), **steps, **idle}


def main() -> None:
    """Count every file and write one table."""
    options = parser(__doc__)
    options.add_argument("traces", nargs="+", help="Trace files, or folders of them.")
    options.add_argument("--rows", default="40,160", help="Rows of a batch, with commas (default 40,160).")
    args = options.parse_args()
    figures: dict[str, Any] = {}
    for path in map(Path, args.traces):
        for file in trace_files(path) if path.is_dir() else [path]:
            layers: dict[int, list[Completion]] = {}
            for draft in (draft for trace in read_traces(file) for draft in trace.drafts):
                if draft.completion.generated_tokens:
                    layers.setdefault(draft.layer, []).append(draft.completion)
            figures[file.stem] = {
                f"layer {layer}, {rows} rows": count(texts, int(rows))
                for layer, texts in sorted(layers.items())
                for rows in args.rows.split(",")
            }
    write("refill", {"files": figures}, args.out)


if __name__ == "__main__":
    main()
