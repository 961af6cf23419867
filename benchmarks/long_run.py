"""Do memory, open files or time grow over 100,000 generations in many calls with one draft store?

The scripted engine writes the texts, so only the schedule, the store and the traces are measured. Each window is one
call with new questions, like a task of lm-eval. After the last window the script verifies the store, reads the traces
and compares the number of their generations with that of the store.

Usage: python benchmarks/long_run.py [--windows 100 --questions 91 --k 5 --layers 2 --out benchmarks/results]
"""

from __future__ import annotations

import gc
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
from common import add_point, parser, write
from workload import user_turn

from lm_eval_aft.core.config import AFTConfig
from lm_eval_aft.core.prompts import Template
from lm_eval_aft.core.records import Question, Sampling
from lm_eval_aft.engines.scripted import ScriptedEngine
from lm_eval_aft.inference.schedule import propose_and_aggregate
from lm_eval_aft.storage.draft_store import SQLiteStore
from lm_eval_aft.storage.traces import read_traces, write_traces


@dataclass(frozen=True)
class Window:
    """The state of the process after one call.

    Attributes:
        generations: All generations so far.
        memory_bytes: Resident memory.
        open_files: Open file descriptors.
        threads: Running threads.
        microseconds: Processor time of this call, per generation.
    """

    generations: int
    memory_bytes: int
    open_files: int
    threads: int
    microseconds: float


def run(windows: int, questions: int, config: AFTConfig, folder: Path) -> list[Window]:
    """Run ``windows`` calls of ``questions`` new questions each with one store. Returns the state after each."""
    engine, template, sampling = ScriptedEngine(), Template.load(None), Sampling(0.7, 0.95, 0, 64)
    store, process = SQLiteStore(folder / "drafts.sqlite"), psutil.Process()
    settings = {**config.to_dict(), "model": "scripted"}
    states: list[Window] = []
    for window in range(windows):
        batch = [
            Question(user_turn(f"What is {window} times {n}?"), sampling, sampling, f"t{window}", n, f"{n}")
            for n in range(questions)
        ]
        started = time.process_time()
        traces = propose_and_aggregate(batch, engine, template, config, store, quiet=True)
        write_traces(str(folder / "traces"), settings, traces)
        elapsed_s = time.process_time() - started
        del traces, batch
        gc.collect()
        done = (window + 1) * questions * config.generations
        each = 1e6 * elapsed_s / (questions * config.generations)
        states.append(Window(done, process.memory_info().rss, process.num_fds(), process.num_threads(), each))
    store.close()
    return states


def consistent(folder: Path, expected: int) -> dict[str, Any]:
    """Verify the store, read all traces, and count the generations of both."""
    store = SQLiteStore(folder / "drafts.sqlite", create=False)
    info = store.verify()
    in_traces = sum(len(trace.drafts) for trace in read_traces(folder / "traces"))
    return {"in_store": info.generations, "damaged": len(info.damaged), "in_traces": in_traces, "expected": expected}


def growth(windows: list[Window]) -> dict[str, float]:
    """Compare the last fifth of the windows with the second fifth, because the first warms up.

    Returns:
        Bytes a generation, ratio of the times, and how many more files and threads are open.
    """
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
    options = parser(__doc__)
    options.add_argument("--windows", type=int, default=100, help="Number of calls (default 100).")
    options.add_argument("--questions", type=int, default=91, help="Questions of each call (default 91).")
    add_point(options, k=5, layers=2)
    args = options.parse_args()
    config = AFTConfig(k=args.k, layers=args.layers)
    with tempfile.TemporaryDirectory() as folder:
        windows = run(args.windows, args.questions, config, Path(folder))
        counts = consistent(Path(folder), windows[-1].generations)
    samples = [asdict(window) for window in windows[:: max(1, args.windows // 20)]]
    write("long_run", {"growth": growth(windows), "consistent": counts, "windows": samples}, args.out)


if __name__ == "__main__":
    main()
