"""Injects faults into runs and trainings, repeats each, and reports what was kept, the message and the exit code.

Each round is a whole run of AFTLM, or a whole training, in a process of its own. The fault is a signal or a limit of
the operating system, at a random moment (from a fixed seed). The same command again must give the result of an
undisturbed one: the same texts, token ids, seeds and counts, or the same weights. Nothing that is on disk may be made
again.

Usage: python tests/faults/inject.py TINY_MODEL WORK_FOLDER [--share 1.0] [--json FILE]
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import random
import re
import resource
import shutil
import signal
import sqlite3
import struct
import sys
import tempfile
import termios
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from bench import Bench, Fault, Outcome
from lm_eval.api import task  # noqa: F401
from lm_eval.api.instance import Instance
from table import as_markdown
from trainings import Trainings

# These are imported before the forks, because every run needs them.
from transformers.models.llama import modeling_llama  # noqa: F401

import lm_eval_aft.engines.api.engine
import lm_eval_aft.engines.hf.engine  # noqa: F401
from lm_eval_aft.core.errors import AFTError
from lm_eval_aft.core.hangup import STDERR, STDOUT, outlive_readers
from lm_eval_aft.model import AFTLM
from lm_eval_aft.storage import draft_store as store
from lm_eval_aft.storage import sqlite, traces

QUESTIONS, K, LAYERS = 5, 3, 2
TOTAL = QUESTIONS * (K * LAYERS + 1)
SEED = 20250121
# Frequent commits give many moments at which a run can be ended.
store.COMMIT_AFTER_S = 0.01


class Runs:
    """Runs of AFTLM. The units of work are generations, and those on disk are in the draft store."""

    def __init__(self, bench: Bench, model: str) -> None:
        self.bench, self.model = bench, model
        self.expected: dict[str, Any] = {}
        put = store.SQLiteStore.put

        def counted(self: Any, *given: Any) -> None:
            try:
                put(self, *given)
            finally:
                bench.add()

        store.SQLiteStore.put = counted  # type: ignore[method-assign]
        bench.wait(self.start(bench.work / "whole"))
        self.expected["hf"] = self.results(bench.work / "whole")
        with served() as engine_args:
            bench.wait(self.start(bench.work / "whole-server", **engine_args))
        self.expected["server"] = self.results(bench.work / "whole-server")
        if not all(len(traces) == QUESTIONS for traces in self.expected.values()):
            raise RuntimeError("an undisturbed run failed")

    def run(self, folder: Path, loaded: Callable[[], None] = lambda: None, quiet: bool = True, **changes: Any) -> None:
        """Run in this process; ``loaded`` is called after the model is loaded."""
        arguments = {"pretrained": self.model, "dtype": "float32", "device": "cpu", "batch_size": 1, **changes}
        arguments = {name: value for name, value in arguments.items() if value is not None}
        questions = [f"Question number {n}?" for n in range(QUESTIONS)]
        requests = [Instance("generate_until", {"n": n}, (q, {}), 0, ("t", n, 1)) for n, q in enumerate(questions)]
        model = AFTLM(k=K, layers=LAYERS, max_gen_toks=40, record=str(folder), **arguments)
        loaded()
        model.generate_until(requests, disable_tqdm=quiet)

    def start(
        self, folder: Path, prepare: Callable[[], object] = int, streams: int | None = None, **changes: Any
    ) -> int:
        """Run in a child process, after ``prepare``. Returns its process id."""
        return self.bench.start(folder, lambda: self.run(folder, **changes), prepare, streams)

    def reach(self, pid: int, folder: Path, generations: int) -> None:
        """Wait until the store holds this many generations."""
        self.bench.reach(pid, lambda: self.rows(folder) >= generations)

    def rows(self, folder: Path) -> int:
        """The number of committed generations."""
        try:
            with contextlib.closing(
                sqlite3.connect(f"file:{folder}/drafts.sqlite?mode=ro", uri=True, timeout=10)
            ) as db:
                return int(db.execute("SELECT count(*) FROM generations").fetchone()[0])
        # The store may not exist yet, or be under construction.
        except sqlite3.Error:
            return 0

    def results(self, folder: Path) -> list[dict[str, Any]]:
        """The traces without times and without what each run computed itself, which may differ."""
        files = list(folder.glob("*.jsonl"))
        if len(files) != 1:
            return []
        rows = [json.loads(line) for line in files[0].read_text(encoding="utf-8").splitlines()]
        for trace in rows:
            del trace["spent"]
            for draft in trace["drafts"]:
                del draft["elapsed_s"], draft["reused"]
                # Log-probabilities are equal up to the rounding of a batch, which another run forms otherwise.
                draft["completion"].pop("confidence", None)
            for usage in (trace["usage"], *(draft["completion"] for draft in trace["drafts"])):
                usage.pop("computed_prompt_tokens")
                usage.pop("flops", None)
        return rows

    def round(self, inject: Inject, counts: bool = True) -> Callable[[Fault, Path, random.Random], Outcome]:
        """A round: inject a fault into a run, and repeat the run.

        Args:
            inject: Runs once with the fault. Returns the exit code.
            counts: Whether the generations that were finished and not committed are counted.
        """

        def play(fault: Fault, folder: Path, draw: random.Random) -> Outcome:
            code = inject(self, folder, draw)
            kept, finished, message = self.rows(folder), self.bench.count(), self.bench.message(folder)
            kind = "server" if inject is server_gone else "hf"
            with served() if kind == "server" else contextlib.nullcontext({}) as engine_args:
                repeated = self.bench.wait(self.start(folder, **engine_args))
            whole = repeated == 0 and self.results(folder) == self.expected[kind] and self.rows(folder) == TOTAL
            again = kept + self.bench.count() - TOTAL
            uncommitted = finished - kept if counts else None
            known = self.bench.tracebacks(folder), self.bench.key_characters(folder)
            return Outcome(fault.name, fault.codes, code, message, TOTAL, kept, again, uncommitted, whole, *known)

        return play


Inject = Callable[[Runs, Path, random.Random], int]


def by_signal(*numbers: signal.Signals) -> Inject:
    """A fault that sends signals when the store holds a random number of generations."""

    def inject(runs: Runs, folder: Path, draw: random.Random) -> int:
        pid = runs.start(folder)
        runs.reach(pid, folder, draw.randint(1, TOTAL - 5))
        for number in numbers:
            os.kill(pid, number)
            time.sleep(draw.random() / 100)
        return runs.bench.wait(pid)

    return inject


def while_loading(runs: Runs, folder: Path, draw: random.Random) -> int:
    """Send SIGINT before a text is generated."""
    pid = runs.start(folder)
    runs.bench.reach(pid, folder.with_suffix(".started").exists)
    time.sleep(draw.random() / 10)
    os.kill(pid, signal.SIGINT)
    return runs.bench.wait(pid)


def while_saving(runs: Runs, folder: Path, draw: random.Random) -> int:
    """Send SIGINT after the last text is generated, while the traces are written."""
    pid = runs.start(folder)
    with contextlib.suppress(RuntimeError, ProcessLookupError):
        runs.bench.reach(pid, lambda: runs.bench.count() >= TOTAL)
        time.sleep(draw.random() / 500)
        os.kill(pid, signal.SIGINT)
        return runs.bench.wait(pid)
    return 0


def terminal_gone(runs: Runs, folder: Path, draw: random.Random) -> int:
    """Close the terminal, or the pipe, that a run draws its progress bar to."""
    reader, writer = os.openpty() if draw.random() < 0.5 else os.pipe()
    if os.isatty(writer):
        # A bar in a terminal without columns is empty.
        fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    pid = runs.start(folder, lambda: outlive_readers(STDOUT, STDERR), writer, quiet=False)
    os.close(writer)
    runs.reach(pid, folder, draw.randint(1, TOTAL - 5))
    os.close(reader)
    return runs.bench.wait(pid)


def full_disk(runs: Runs, folder: Path, draw: random.Random) -> int:
    """Limit the size of files to some kilobytes. The kernel then refuses to write, as on a full disk."""
    limit = draw.randint(32, 56) * 1024

    def prepare() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return runs.bench.wait(runs.start(folder, prepare))


def out_of_memory(runs: Runs, folder: Path, draw: random.Random) -> int:
    """Limit the address space after the model is loaded to little more than is in use."""
    spare = draw.randint(0, 8) << 14

    def limit() -> None:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + spare, used + spare))

    return runs.bench.wait(runs.start(folder, loaded=limit))


def read_only(runs: Runs, folder: Path, draw: random.Random) -> int:
    """Run as a user who may not write to the output folder."""
    folder.mkdir(mode=0o755)

    def prepare() -> None:
        # Root may write anywhere, the user nobody may not.
        os.setgid(65534)
        os.setuid(65534)

    # The user nobody cannot read the folders of the tests, so the model is copied.
    with tempfile.TemporaryDirectory() as readable:
        shutil.copytree(runs.model, Path(readable, "model"))
        for path in (Path(readable), Path(readable, "model")):
            path.chmod(0o755)
        return runs.bench.wait(runs.start(folder, prepare, pretrained=str(Path(readable, "model"))))


def locked(runs: Runs, folder: Path, draw: random.Random) -> int:
    """Lock the store from another process for longer than a run waits."""
    pid = runs.start(folder, lambda: setattr(sqlite, "BUSY_S", 0.2))
    runs.reach(pid, folder, 1)
    with contextlib.closing(sqlite3.connect(folder / "drafts.sqlite", timeout=10, isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        code = runs.bench.wait(pid)
        db.execute("ROLLBACK")
    return code


def half_written(runs: Runs, folder: Path, draw: random.Random) -> int:
    """Cut a trace file at a random byte, as an incomplete copy may be."""
    runs.bench.wait(runs.start(folder))
    (file,) = folder.glob("*.jsonl")
    whole = file.read_bytes()
    file.write_bytes(whole[: draw.randint(1, len(whole) - 2)])
    try:
        list(traces.read_traces(folder))
    except AFTError as error:
        folder.with_suffix(".message").write_text(f"error: {error}")
        return error.exit_code
    return 0


def two_runs(runs: Runs, folder: Path, draw: random.Random) -> int:
    """Run the same command twice at once in one folder."""
    pids = [runs.start(folder), runs.start(folder)]
    time.sleep(draw.random() / 50)
    return max(runs.bench.wait(pid) for pid in pids)


def server_gone(runs: Runs, folder: Path, draw: random.Random) -> int:
    """Use a server that stops answering after some replies."""
    with served(replies=draw.randint(2, TOTAL - 5)) as engine_args:
        return runs.bench.wait(runs.start(folder, **engine_args))


@contextlib.contextmanager
def served(replies: int = 10**9) -> Iterator[dict[str, Any]]:
    """Run a chat server on 127.0.0.1 that closes connections after ``replies``. Yields the model arguments for it.

    Its texts are a function of prompt and seed.
    """
    left, lock = [replies], threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer({"data": [{"id": "m", "max_model_len": 4096}]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                left[0] -= 1
            if left[0] < 0:
                self.connection.close()
                return
            text = f"{len(str(body['messages']))} {body.get('seed')}"
            usage = {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12}
            choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
            self.answer({"choices": [choice], "usage": usage})

        def answer(self, content: dict[str, Any]) -> None:
            data = json.dumps(content).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args: Any) -> None:
            pass

        def handle(self) -> None:
            with contextlib.suppress(OSError, ValueError):
                super().handle()

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{http.server_port}/v1"
    try:
        server = {"engine": "api", "base_url": url, "model": "m", "concurrency": 2, "max_retries": 0}
        yield {**server, "pretrained": None, "dtype": None}
    finally:
        http.shutdown()
        http.server_close()


def faults_of(runs: Runs) -> tuple[Fault, ...]:
    """All faults of runs."""
    return (
        Fault("kill -9", 40, runs.round(by_signal(signal.SIGKILL)), (-9,)),
        Fault("SIGTERM", 20, runs.round(by_signal(signal.SIGTERM)), (143,)),
        Fault("SIGINT", 20, runs.round(by_signal(signal.SIGINT)), (130,)),
        Fault("SIGHUP", 8, runs.round(by_signal(signal.SIGHUP)), (129,)),
        Fault("SIGXCPU", 8, runs.round(by_signal(signal.SIGXCPU)), (128 + signal.SIGXCPU,)),
        Fault("SIGUSR1", 8, runs.round(by_signal(signal.SIGUSR1)), (128 + signal.SIGUSR1,)),
        Fault("SIGINT, then SIGTERM", 15, runs.round(by_signal(signal.SIGINT, signal.SIGTERM)), (130,)),
        Fault("SIGINT twice", 8, runs.round(by_signal(signal.SIGINT, signal.SIGINT)), (130,)),
        Fault("SIGINT while loading", 8, runs.round(while_loading), (130,)),
        Fault("SIGINT while saving", 8, runs.round(while_saving), (0, 130)),
        Fault("terminal gone", 10, runs.round(terminal_gone), (0,)),
        Fault("disk full", 15, runs.round(full_disk)),
        # The engine halves its batches, which may suffice or not.
        Fault("out of memory", 8, runs.round(out_of_memory), (0, 2)),
        Fault("read-only output", 3, runs.round(read_only)),
        Fault("locked store", 4, runs.round(locked)),
        Fault("half-written traces", 8, runs.round(half_written)),
        Fault("two runs, one folder", 6, runs.round(two_runs, counts=False), (0,)),
        Fault("server gone", 15, runs.round(server_gone)),
    )


def run_all(model: str, work: Path, share: float = 1.0) -> list[Outcome]:
    """Inject every fault in ``share`` of its rounds, at least once. Faults that this machine forbids are left out."""
    work.mkdir(parents=True, exist_ok=True)
    bench = Bench(work)
    outcomes = []
    for fault in (*faults_of(Runs(bench, model)), *Trainings(bench, model).faults()):
        draw = random.Random(f"{SEED} {fault.name}")
        for number in range(max(1, round(fault.rounds * share))):
            folder = work / f"{re.sub(r'[ ,]+', '-', fault.name)}-{number}"
            outcome = fault.round(fault, folder, draw)
            outcomes += [outcome] if outcome else []
    return outcomes


def main() -> None:
    """Inject the faults and print the table. The exit code is 1 if a repeated run was not whole."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="Folder of a tiny model.")
    parser.add_argument("work", type=Path, help="Folder for the runs.")
    parser.add_argument("--share", type=float, default=1.0, help="Share of the rounds that are run (default 1).")
    parser.add_argument("--json", type=Path, help="JSON file that the outcomes are written to.")
    args = parser.parse_args()
    outcomes = run_all(args.model, args.work, args.share)
    if args.json:
        args.json.write_text(json.dumps([asdict(outcome) for outcome in outcomes]))
    print(as_markdown(outcomes))
    sys.exit(0 if all(outcome.whole for outcome in outcomes) else 1)


if __name__ == "__main__":
    main()
