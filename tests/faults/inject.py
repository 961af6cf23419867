"""Injects faults into runs, repeats each run, and reports what was kept, the message and the exit code.

Each round is a whole run of AFTLM in a process of its own. It is a fork of this process, because importing takes far
longer than the tiny model. The fault is a signal or a limit of the operating system, at a random moment (from a fixed
seed) while the run generates. The repeated run must give the result of an undisturbed one: the same texts, token ids,
seeds and counts, with no finished generation lost.

Usage: python tests/faults/inject.py TINY_MODEL WORK_FOLDER [--share 1.0] [--json FILE]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import resource
import shutil
import signal
import sqlite3
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance

# These are imported before the forks, because every run needs them.
from transformers.models.llama import modeling_llama  # noqa: F401

import lm_eval_aft.engines.api.engine
import lm_eval_aft.engines.hf.engine  # noqa: F401
from lm_eval_aft.core.errors import AFTError
from lm_eval_aft.model import AFTLM
from lm_eval_aft.storage import draft_store as store
from lm_eval_aft.storage import sqlite, traces

QUESTIONS, K, LAYERS = 5, 3, 2
TOTAL = QUESTIONS * (K * LAYERS + 1)
SEED = 20250121
# A run that takes longer than this is ended.
TIMEOUT_S = 30
# Exit code of a run that was ended after TIMEOUT_S.
HUNG = 98
# Exit code of a run that ended with another exception than AFTError.
CRASH = 99
# Frequent commits give many moments at which a run can be ended.
store.COMMIT_AFTER_S = 0.01


@dataclass(frozen=True)
class Outcome:
    """The result of one round.

    Attributes:
        fault: Name of the fault.
        exit_code: Exit code of the disturbed run; negative if a signal ended it.
        message: Error message of the disturbed run.
        kept: Generations in the store after the disturbed run.
        new: Generations that the second run computed.
        whole: Whether the second run has the result of an undisturbed one: texts, token ids, seeds, counts.
    """

    fault: str
    exit_code: int
    message: str
    kept: int
    new: int
    whole: bool


@dataclass(frozen=True)
class Fault:
    """A kind of fault.

    Attributes:
        name: Its name.
        rounds: How often a full test injects it.
        inject: Runs once with the fault. Returns the exit code.
    """

    name: str
    rounds: int
    inject: Callable[[Bench, Path, random.Random], int]


class Bench:
    """Starts runs and reads what they have written."""

    def __init__(self, model: str, work: Path) -> None:
        self.model, self.work = model, work
        self.expected: dict[str, Any] = {}

    def run(self, folder: Path, loaded: Callable[[], None] = lambda: None, **changes: Any) -> None:
        """Run in this process; ``loaded`` is called after the model is loaded."""
        arguments = {"pretrained": self.model, "dtype": "float32", "device": "cpu", "batch_size": 1, **changes}
        arguments = {name: value for name, value in arguments.items() if value is not None}
        questions = [f"Question number {n}?" for n in range(QUESTIONS)]
        requests = [Instance("generate_until", {"n": n}, (q, {}), 0, ("t", n, 1)) for n, q in enumerate(questions)]
        model = AFTLM(k=K, layers=LAYERS, max_gen_toks=40, record=str(folder), **arguments)
        loaded()
        model.generate_until(requests, disable_tqdm=True)

    def start(self, folder: Path, prepare: Callable[[], None] = lambda: None, **changes: Any) -> int:
        """Run in a child process, after ``prepare``. Returns its process id."""
        # The file is opened before a limit or a right is taken away.
        message = os.open(folder.with_suffix(".message"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        pid = os.fork()
        if pid:
            os.close(message)
            return pid
        code = CRASH
        try:
            prepare()
            self.run(folder, **changes)
            code = 0
        except AFTError as error:
            code = error.exit_code
            os.write(message, f"error: {error}".encode())
        except BaseException as error:
            os.write(message, f"{type(error).__name__}: {error}".encode())
        finally:
            os._exit(code)

    def wait(self, pid: int) -> int:
        """Wait for a run. Returns its exit code, negative if a signal ended it, or ``HUNG``."""
        deadline = time.monotonic() + TIMEOUT_S
        while time.monotonic() < deadline:
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.005)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        return HUNG

    def reach(self, pid: int, folder: Path, generations: int) -> int | None:
        """Wait until the store holds this many generations. Returns the exit code if the run ends before."""
        while self.rows(folder) < generations:
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.001)
        return None

    def rows(self, folder: Path) -> int:
        """The number of committed generations."""
        try:
            with sqlite3.connect(f"file:{folder}/drafts.sqlite?mode=ro", uri=True, timeout=10) as db:
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
            for usage in (trace["usage"], *(draft["completion"] for draft in trace["drafts"])):
                usage.pop("computed_prompt_tokens")
                usage.pop("flops", None)
        return rows

    def round(self, fault: Fault, number: int, draw: random.Random) -> Outcome:
        """Inject a fault into a run and repeat the run."""
        folder = self.work / f"{fault.name.replace(' ', '-').replace(',', '')}-{number}"
        code = fault.inject(self, folder, draw)
        kept, message = self.rows(folder), folder.with_suffix(".message").read_text()
        kind = "server" if fault.name == "server gone" else "hf"
        with served() if kind == "server" else contextlib.nullcontext({}) as engine_args:
            repeated = self.wait(self.start(folder, **engine_args))
        whole = repeated == 0 and self.results(folder) == self.expected[kind]
        return Outcome(fault.name, code, message, kept, self.rows(folder) - kept, whole)


def by_signal(number: signal.Signals) -> Callable[[Bench, Path, random.Random], int]:
    """A fault that sends a signal when the store holds a random number of generations."""

    def inject(bench: Bench, folder: Path, draw: random.Random) -> int:
        pid = bench.start(folder)
        code = bench.reach(pid, folder, draw.randint(1, TOTAL - 5))
        if code is not None:
            raise RuntimeError(f"the run ended with {code} before the signal")
        os.kill(pid, number)
        return bench.wait(pid)

    return inject


def full_disk(bench: Bench, folder: Path, draw: random.Random) -> int:
    """Limit the size of files to some kilobytes. The kernel then refuses to write, as on a full disk."""
    limit = draw.randint(40, 90) * 1024

    def prepare() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return bench.wait(bench.start(folder, prepare))


def out_of_memory(bench: Bench, folder: Path, draw: random.Random) -> int:
    """Limit the address space after the model is loaded to little more than is in use."""
    spare = draw.randint(0, 8) << 14

    def limit() -> None:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + spare, used + spare))

    return bench.wait(bench.start(folder, loaded=limit))


def read_only(bench: Bench, folder: Path, draw: random.Random) -> int:
    """Run as a user who may not write to the output folder."""
    folder.mkdir(mode=0o755)

    def prepare() -> None:
        # Root may write anywhere, the user nobody may not.
        os.setgid(65534)
        os.setuid(65534)

    # The user nobody cannot read the folders of the tests, so the model is copied.
    with tempfile.TemporaryDirectory() as readable:
        shutil.copytree(bench.model, Path(readable, "model"))
        for path in (Path(readable), Path(readable, "model")):
            path.chmod(0o755)
        return bench.wait(bench.start(folder, prepare, pretrained=str(Path(readable, "model"))))


def locked(bench: Bench, folder: Path, draw: random.Random) -> int:
    """Lock the store from another process for longer than a run waits."""
    pid = bench.start(folder, lambda: setattr(sqlite, "BUSY_S", 0.2))
    bench.reach(pid, folder, 1)
    with contextlib.closing(sqlite3.connect(folder / "drafts.sqlite", timeout=10, isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        code = bench.wait(pid)
        db.execute("ROLLBACK")
    return code


def half_written(bench: Bench, folder: Path, draw: random.Random) -> int:
    """Cut a trace file at a random byte, as an incomplete copy may be."""
    bench.wait(bench.start(folder))
    (file,) = folder.glob("*.jsonl")
    whole = file.read_bytes()
    file.write_bytes(whole[: draw.randint(1, len(whole) - 2)])
    try:
        list(traces.read_traces(folder))
    except AFTError as error:
        folder.with_suffix(".message").write_text(f"error: {error}")
        return error.exit_code
    return 0


def two_runs(bench: Bench, folder: Path, draw: random.Random) -> int:
    """Run the same command twice at once in one folder."""
    pids = [bench.start(folder), bench.start(folder)]
    time.sleep(draw.random() / 50)
    return max(bench.wait(pid) for pid in pids)


def server_gone(bench: Bench, folder: Path, draw: random.Random) -> int:
    """Use a server that stops answering after some replies."""
    with served(replies=draw.randint(2, TOTAL - 5)) as engine_args:
        return bench.wait(bench.start(folder, **engine_args))


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


FAULTS = (
    Fault("kill -9", 50, by_signal(signal.SIGKILL)),
    Fault("SIGTERM", 40, by_signal(signal.SIGTERM)),
    Fault("SIGINT", 40, by_signal(signal.SIGINT)),
    Fault("disk full", 20, full_disk),
    Fault("out of memory", 12, out_of_memory),
    Fault("read-only output", 4, read_only),
    Fault("locked store", 6, locked),
    Fault("half-written traces", 12, half_written),
    Fault("two runs, one folder", 10, two_runs),
    Fault("server gone", 20, server_gone),
)


def run_all(model: str, work: Path, share: float = 1.0) -> list[Outcome]:
    """Inject every fault in ``share`` of its rounds, at least once."""
    work.mkdir(parents=True, exist_ok=True)
    bench = Bench(model, work)
    bench.wait(bench.start(work / "whole"))
    bench.expected["hf"] = bench.results(work / "whole")
    with served() as engine_args:
        bench.wait(bench.start(work / "whole-server", **engine_args))
    bench.expected["server"] = bench.results(work / "whole-server")
    if not all(len(traces) == QUESTIONS for traces in bench.expected.values()):
        raise RuntimeError("an undisturbed run failed")
    draw = random.Random(SEED)
    return [
        bench.round(fault, number, draw) for fault in FAULTS for number in range(max(1, round(fault.rounds * share)))
    ]


def as_markdown(outcomes: list[Outcome]) -> str:
    """The table of docs/reliability.md."""
    head = "| fault | rounds | exit code | kept of " + str(TOTAL) + " | whole after the same command | what it says |"
    lines = [head, "|" + "---|" * 6]
    for fault in FAULTS:
        rounds = [outcome for outcome in outcomes if outcome.fault == fault.name]
        codes = ", ".join(str(code) for code in sorted({outcome.exit_code for outcome in rounds}))
        kept = sorted(outcome.kept for outcome in rounds)
        messages = Counter(_without_details(outcome.message) for outcome in rounds if outcome.message)
        message = messages.most_common(1)[0][0] if messages else "nothing"
        whole = f"{sum(outcome.whole for outcome in rounds)} of {len(rounds)}"
        lines.append(f"| {fault.name} | {len(rounds)} | {codes} | {kept[0]} to {kept[-1]} | {whole} | {message} |")
    return "\n".join(lines)


def _without_details(message: str) -> str:
    """A message with N for each number and PATH for each path."""
    return re.sub(r"\d[\d,]*", "N", re.sub(r"(?:file://)?/[\w./:-]+", "PATH", message)).replace("|", "/")


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
