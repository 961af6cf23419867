"""How much faster is a sweep over k and layers than the same points as separate runs, and what does the store cost?

The sweep and the separate runs are commands that run one after another with one thread each. The separate runs have no
draft store (``cache=none``). Wall time and processor time are reported, because wall time varies with other work on the
machine. To measure the store, all generations of the sweep are written to a new store and read again.

Usage: python benchmarks/sweep.py --model FOLDER --include_path SUITE --tasks NAME [--limit 64 --tokens 48]
                                  [--work DIR] [--out benchmarks/results]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from itertools import product
from pathlib import Path
from typing import Any

from common import conditions, parser, write

from lm_eval_aft.storage.draft_store import SQLiteStore
from lm_eval_aft.storage.results import read_run

K, LAYERS = (1, 3, 5), (0, 1, 2, 3)
BIN = Path(sys.executable).parent


def timed(command: list[str], log: Path) -> dict[str, float]:
    """Run a command. Returns its wall time and its processor time in seconds."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    with log.open("w") as out:
        subprocess.run(command, check=True, stdout=out, stderr=out, env={**os.environ, "OMP_NUM_THREADS": "1"})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall_s": round(time.perf_counter() - started, 1), "cpu_s": round(cpu, 1)}


def store_seconds(path: Path, work: Path) -> dict[str, Any]:
    """Seconds to write every generation of a store to a new one, with commits, and seconds to read all of them."""
    with closing(sqlite3.connect(path)) as connection:
        keys = [key.hex() for (key,) in connection.execute("SELECT key FROM generations")]
    completions = SQLiteStore(path, create=False).get(keys)
    fresh = work / "copy.sqlite"
    fresh.unlink(missing_ok=True)
    store = SQLiteStore(fresh)
    started = time.perf_counter()
    for key, completion in completions.items():
        store.put(key, completion)
    store.flush()
    written = time.perf_counter()
    assert store.get(keys) == completions
    return {"rows": len(completions), "write_s": written - started, "look_up_s": time.perf_counter() - written}


def scores(folder: Path) -> dict[str, float]:
    """The scores of one run, by task and filter."""
    return {f"{score.task},{score.filter}": score.value for score in read_run(folder).scores}


def arguments() -> argparse.Namespace:
    """Read the command line."""
    options = parser(__doc__)
    options.add_argument("--model", required=True, help="Folder of the checkpoint.")
    options.add_argument("--include_path", required=True, help="Folder with the YAML file of the task.")
    options.add_argument("--tasks", required=True, help="Name of the task.")
    options.add_argument("--limit", type=int, default=64, help="How many questions are run (default 64).")
    options.add_argument("--tokens", type=int, default=48, help="Bound of each generation in tokens (default 48).")
    options.add_argument("--batch_size", default="16", help="Batch size of the hf engine (default 16).")
    options.add_argument(
        "--work", type=Path, default=Path("out/sweep-benchmark"), help="Folder for runs and unfinished figures."
    )
    return options.parse_args()


def finished(work: Path) -> dict[str, Any]:
    """The figures that an earlier call of the same command has measured; empty if there was none."""
    path = work / "sweep.json"
    if not path.is_file():
        return {}
    figures: dict[str, Any] = json.loads(path.read_text())
    return {name: value for name, value in figures.items() if name not in conditions()}


def run_sweep(args: argparse.Namespace, model_args: str, shared: list[str]) -> dict[str, Any]:
    """Run the sweep and measure its store. Returns the figures, still without separate runs."""
    grid = ["--k", ",".join(map(str, K)), "--layers", ",".join(map(str, LAYERS))]
    swept = args.work / "swept"
    command = [str(BIN / "aft"), "sweep", "--model_args", model_args, *grid, *shared, "--output_path", str(swept)]
    figures: dict[str, Any] = {"limit": args.limit, "tokens": args.tokens}
    figures["sweep"] = timed(command, args.work / "sweep.log")
    figures["plans"] = json.loads((swept / "summary.json").read_text())["plans"]
    figures["store"] = store_seconds(swept / "drafts.sqlite", args.work)
    return figures | {"separate": []}


def run_separate(work: Path, k: int, layers: int, model_args: str, shared: list[str]) -> dict[str, Any]:
    """Run one point without a store. Returns its times, its scores and those that the sweep has for it."""
    folder = work / f"separate_k{k}_l{layers}"
    point = f"{model_args},k={k},layers={layers},cache=none,record={folder / 'traces'}"
    command = [str(BIN / "lm_eval"), "--model", "aft", "--model_args", point, *shared]
    command += ["--output_path", str(folder), "--log_samples"]
    row: dict[str, Any] = {"k": k, "layers": layers, **timed(command, work / f"{folder.name}.log")}
    swept = work / "swept" / f"k{k if layers else 1}_l{layers}"
    return row | {"scores": scores(folder), "swept_scores": scores(swept)}


def main() -> None:
    """Run the sweep, then its points one by one. A call that was interrupted resumes with the next point."""
    args = arguments()
    work: Path = args.work
    work.mkdir(parents=True, exist_ok=True)
    model_args = f"pretrained={args.model},dtype=bfloat16,draft_max_tokens={args.tokens},final_max_tokens={args.tokens}"
    shared = ["--include_path", args.include_path, "--tasks", args.tasks, "--limit", str(args.limit)]
    shared += ["--apply_chat_template", "--batch_size", args.batch_size, "--device", "cpu"]
    figures = finished(work)
    if not figures:
        figures = run_sweep(args, model_args, shared)
        write("sweep", figures, str(work))
    done = {(row["k"], row["layers"]) for row in figures["separate"]}
    for k, layers in product(K, LAYERS):
        if (k, layers) not in done:
            figures["separate"].append(run_separate(work, k, layers, model_args, shared))
            write("sweep", figures, str(work))
    for kind in ("wall_s", "cpu_s"):
        figures[f"separate_{kind}"] = round(sum(row[kind] for row in figures["separate"]), 1)
        figures[f"ratio_{kind}"] = round(figures[f"separate_{kind}"] / figures["sweep"][kind], 2)
    figures["store_share"] = (figures["store"]["write_s"] + figures["store"]["look_up_s"]) / figures["sweep"]["wall_s"]
    write("sweep", figures, args.out)


if __name__ == "__main__":
    main()
