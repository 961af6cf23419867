"""A sweep over k and layers against the same points as separate runs, and what the draft store adds.

The sweep and every separate run are commands of their own, started one after another with one thread each; the
separate ones keep nothing (``cache=none``). Both wall time and processor time are taken, since only the second holds
on a machine that does other work. The store's share is measured on the sweep's own store: all of its generations are
written into a new one and looked up again.

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
from pathlib import Path
from typing import Any

from common import conditions, write

from lm_eval_aft.storage.draft_store import SQLiteStore
from lm_eval_aft.storage.results import read_run

K, LAYERS = (1, 3, 5), (0, 1, 2, 3)
BIN = Path(sys.executable).parent


def timed(command: list[str], log: Path) -> dict[str, float]:
    """Run a command; seconds by the clock and on the processor."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    with log.open("w") as out:
        subprocess.run(command, check=True, stdout=out, stderr=out, env={**os.environ, "OMP_NUM_THREADS": "1"})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall_s": round(time.perf_counter() - started, 1), "cpu_s": round(cpu, 1)}


def store_seconds(path: Path, work: Path) -> dict[str, Any]:
    """Seconds to write every generation of a store into a new one, commits included, and to look all of them up."""
    with sqlite3.connect(path) as connection:
        keys = [key.hex() for (key,) in connection.execute("SELECT key FROM generations")]
    kept = SQLiteStore(path, create=False).get(keys)
    fresh = work / "copy.sqlite"
    fresh.unlink(missing_ok=True)
    store = SQLiteStore(fresh)
    started = time.perf_counter()
    for key, completion in kept.items():
        store.put(key, completion)
    store.flush()
    written = time.perf_counter()
    assert store.get(keys) == kept
    return {"rows": len(kept), "write_s": written - started, "look_up_s": time.perf_counter() - written}


def scores(folder: Path) -> dict[str, float]:
    """The scores of one run, by task and filter."""
    return {f"{score.task},{score.filter}": score.value for score in read_run(folder).scores}


def _finished(work: Path) -> dict[str, Any]:
    """What an earlier call of the same command has measured; empty where there was none."""
    path = work / "sweep.json"
    if not path.is_file():
        return {}
    figures: dict[str, Any] = json.loads(path.read_text())
    return {name: value for name, value in figures.items() if name not in conditions()}


def main() -> None:
    """Run the sweep, then its twelve points one by one; a call that was ended goes on where it stopped."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--include_path", required=True)
    parser.add_argument("--tasks", required=True)
    parser.add_argument("--limit", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--batch_size", default="16")
    parser.add_argument("--work", type=Path, default=Path("out/sweep-benchmark"))
    parser.add_argument("--out")
    args = parser.parse_args()
    work: Path = args.work
    work.mkdir(parents=True, exist_ok=True)
    model_args = f"pretrained={args.model},dtype=bfloat16,draft_max_tokens={args.tokens},final_max_tokens={args.tokens}"
    shared = ["--include_path", args.include_path, "--tasks", args.tasks, "--limit", str(args.limit)]
    shared += ["--apply_chat_template", "--batch_size", args.batch_size, "--device", "cpu"]
    grid = ["--k", ",".join(map(str, K)), "--layers", ",".join(map(str, LAYERS))]
    swept = work / "swept"
    command = [str(BIN / "aft"), "sweep", "--model_args", model_args, *grid, *shared, "--output_path", str(swept)]
    figures: dict[str, Any] = _finished(work)
    if not figures:
        figures = {"limit": args.limit, "tokens": args.tokens, "sweep": timed(command, work / "sweep.log")}
        figures["plans"] = json.loads((swept / "summary.json").read_text())["plans"]
        figures["store"] = store_seconds(swept / "drafts.sqlite", work)
        figures["separate"] = []
        write("sweep", figures, str(work))
    done = {(row["k"], row["layers"]) for row in figures["separate"]}
    for k in K:
        for layers in LAYERS:
            if (k, layers) in done:
                continue
            folder = work / f"separate_k{k}_l{layers}"
            point = f"{model_args},k={k},layers={layers},cache=none,record={folder / 'traces'}"
            command = [str(BIN / "lm_eval"), "--model", "aft", "--model_args", point, *shared]
            command += ["--output_path", str(folder), "--log_samples"]
            row: dict[str, Any] = {"k": k, "layers": layers, **timed(command, work / f"{folder.name}.log")}
            row["scores"] = scores(folder)
            row["swept_scores"] = scores(swept / f"k{k if layers else 1}_l{layers}")
            figures["separate"].append(row)
            write("sweep", figures, str(work))
    for kind in ("wall_s", "cpu_s"):
        figures[f"separate_{kind}"] = round(sum(row[kind] for row in figures["separate"]), 1)
        figures[f"ratio_{kind}"] = round(figures[f"separate_{kind}"] / figures["sweep"][kind], 2)
    figures["store_share"] = (figures["store"]["write_s"] + figures["store"]["look_up_s"]) / figures["sweep"]["wall_s"]
    write("sweep", figures, args.out)


if __name__ == "__main__":
    main()
