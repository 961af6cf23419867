"""A week in small: 100,000 generations in many calls over one store; memory, open files and time must stay flat.

The scripted engine writes the texts, so all that is measured is ours: schedule, store, traces. Each window is a call
with questions of its own, as a task of lm-eval is. After the last the store is verified, the traces are read, and
every text of theirs is looked up.

Usage: python benchmarks/long_run.py [--windows 100 --questions 91 --k 5 --layers 2 --out benchmarks/results]
"""

from __future__ import annotations

import argparse
import gc
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
from common import write

from lm_eval_aft.core.config import AFTConfig
from lm_eval_aft.core.prompts import Template
from lm_eval_aft.core.records import Chat, Message, Question, Sampling
from lm_eval_aft.engines.scripted import ScriptedEngine
from lm_eval_aft.inference.schedule import propose_and_aggregate
from lm_eval_aft.storage.draft_store import SQLiteStore
from lm_eval_aft.storage.traces import read_traces, write_traces


@dataclass(frozen=True)
class Window:
    """What one call left behind.

    Attributes:
        generations: Made so far.
        memory_bytes: Resident in this process.
        open_files: Descriptors of this process.
        threads: Of this process.
        microseconds: Processor time a generation of this call.
    """

    generations: int
    memory_bytes: int
    open_files: int
    threads: int
    microseconds: float


def run(windows: int, questions: int, config: AFTConfig, folder: Path) -> list[Window]:
    """Answer ``windows`` times ``questions`` new questions with one store, and look at the process after each."""
    engine, template, sampling = ScriptedEngine(), Template.load(None), Sampling(0.7, 0.95, 0, 64)
    store, process = SQLiteStore(folder / "drafts.sqlite"), psutil.Process()
    settings = {**config.to_dict(), "model": "scripted"}
    made: list[Window] = []
    for window in range(windows):
        asked = [
            Question(_chat(f"What is {window} times {n}?"), sampling, sampling, f"t{window}", n, f"{n}")
            for n in range(questions)
        ]
        started = time.process_time()
        traces = propose_and_aggregate(asked, engine, template, config, store, quiet=True)
        write_traces(str(folder / "traces"), settings, traces)
        elapsed_s = time.process_time() - started
        del traces, asked
        gc.collect()
        done = (window + 1) * questions * config.generations
        each = 1e6 * elapsed_s / (questions * config.generations)
        made.append(Window(done, process.memory_info().rss, process.num_fds(), process.num_threads(), each))
    store.close()
    return made


def _chat(text: str) -> Chat:
    return Chat((Message("user", text),))


def consistent(folder: Path, expected: int) -> dict[str, Any]:
    """Verify the store, read all traces, and count their texts that the store does not hold word for word."""
    store = SQLiteStore(folder / "drafts.sqlite", create=False)
    info = store.verify()
    texts = sum(len(trace.drafts) for trace in read_traces(folder / "traces"))
    return {"in_store": info.generations, "damaged": len(info.damaged), "in_traces": texts, "expected": expected}


def growth(windows: list[Window]) -> dict[str, float]:
    """Last fifth against the second fifth (the first warms up): memory a generation between, and time as a ratio."""
    fifth = max(1, len(windows) // 5)
    early, late = windows[fifth : 2 * fifth], windows[-fifth:]
    between = late[-1].generations - early[-1].generations
    return {
        "bytes_a_generation": (late[-1].memory_bytes - early[-1].memory_bytes) / max(1, between),
        "time_ratio": _microseconds(late) / _microseconds(early),
        "files_more": late[-1].open_files - early[-1].open_files,
        "threads_more": late[-1].threads - early[-1].threads,
    }


def _microseconds(windows: list[Window]) -> float:
    return statistics.median(window.microseconds for window in windows)


def main() -> None:
    """Run, check and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", type=int, default=100)
    parser.add_argument("--questions", type=int, default=91)
    parser.add_argument("--k", type=int, default=5)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--out", help="folder for the JSON file")
    args = parser.parse_args()
    config = AFTConfig(k=args.k, layers=args.layers)
    with tempfile.TemporaryDirectory() as folder:
        windows = run(args.windows, args.questions, config, Path(folder))
        found = consistent(Path(folder), windows[-1].generations)
    shown = [asdict(window) for window in windows[:: max(1, args.windows // 20)]]
    write("long_run", {"growth": growth(windows), "consistent": found, "windows": shown}, args.out)


if __name__ == "__main__":
    main()
