"""Ends real runs in every way a machine can, starts each again, and says what was kept, what was said and how it ended.

Each round is a whole run of AFTLM in a process of its own (a fork of this one, since importing takes far longer than
the tiny model), with a real signal or a real limit of the operating system, at a moment drawn from a fixed seed while
generation is under way. The same run again must end as one that nothing befell: same texts, token ids, seeds and
counts, nothing finished lost.

Usage: python tests/faults/inject.py TINY_MODEL WORK_FOLDER [--share 1.0] [--json FILE]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
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
from transformers.models.llama import modeling_llama  # noqa: F401  before the forks: they all need it

import lm_eval_aft.engines.api.engine
import lm_eval_aft.engines.hf.engine  # noqa: F401
from lm_eval_aft.core.errors import AFTError
from lm_eval_aft.model import AFTLM
from lm_eval_aft.storage import draft_store as store
from lm_eval_aft.storage import sqlite, traces

QUESTIONS, K, LAYERS = 5, 3, 2
TOTAL = QUESTIONS * (K * LAYERS + 1)
SEED = 20250121
HANGS_S = 30
HUNG = 98
CRASH = 99  # exit code of a run that ended with something else than an error of ours
store.COMMIT_AFTER_S = 0.01  # commits close together leave many moments to end a run at


@dataclass(frozen=True)
class Outcome:
    """One round.

    Attributes:
        fault: Its name.
        exit_code: Of the run it befell; -9 where the system ended it.
        said: What that run printed last.
        kept: Generations in the store when it had ended.
        new: Generations the second run had to make.
        whole: Whether the second run ended as an undisturbed one: texts, ids, seeds, counts.
    """

    fault: str
    exit_code: int
    said: str
    kept: int
    new: int
    whole: bool


@dataclass(frozen=True)
class Fault:
    """A kind of fault: its name, how often it is injected in a full run, and one round of it."""

    name: str
    rounds: int
    inject: Callable[[Bench, Path, random.Random], int]


class Bench:
    """Starts runs and looks at what they left."""

    def __init__(self, model: str, work: Path) -> None:
        self.model, self.work = model, work
        self.expected: dict[str, Any] = {}

    def run(self, folder: Path, loaded: Callable[[], None] = lambda: None, **changes: Any) -> None:
        """The run itself, in this process; ``loaded`` is called when the model is."""
        arguments = {"pretrained": self.model, "dtype": "float32", "device": "cpu", "batch_size": 1, **changes}
        arguments = {name: value for name, value in arguments.items() if value is not None}
        questions = [f"Question number {n}?" for n in range(QUESTIONS)]
        requests = [Instance("generate_until", {"n": n}, (q, {}), 0, ("t", n, 1)) for n, q in enumerate(questions)]
        model = AFTLM(k=K, layers=LAYERS, max_gen_toks=40, record=str(folder), **arguments)
        loaded()
        model.generate_until(requests, disable_tqdm=True)

    def start(self, folder: Path, prepare: Callable[[], None] = lambda: None, **changes: Any) -> int:
        """The run in a child; returns its process id."""
        said = os.open(folder.with_suffix(".said"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)  # open before any limit
        pid = os.fork()
        if pid:
            os.close(said)
            return pid
        code = CRASH
        try:
            prepare()
            self.run(folder, **changes)
            code = 0
        except AFTError as error:
            code = error.exit_code
            os.write(said, f"error: {error}".encode())
        except BaseException as error:
            os.write(said, f"{type(error).__name__}: {error}".encode())
        finally:
            os._exit(code)

    def wait(self, pid: int) -> int:
        """Exit code, negative where a signal ended it; a run that hangs is ended, and counts as a crash."""
        deadline = time.monotonic() + HANGS_S
        while time.monotonic() < deadline:
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.005)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        return HUNG

    def reach(self, pid: int, folder: Path, wanted: int) -> int | None:
        """Wait until the store holds this many; the exit code if the run ended before."""
        while self.rows(folder) < wanted:
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.001)
        return None

    def rows(self, folder: Path) -> int:
        """Committed generations."""
        try:
            with sqlite3.connect(f"file:{folder}/drafts.sqlite?mode=ro", uri=True, timeout=10) as db:
                return int(db.execute("SELECT count(*) FROM generations").fetchone()[0])
        except sqlite3.Error:  # not there yet, or being made
            return 0

    def essence(self, folder: Path) -> list[dict[str, Any]]:
        """What must be equal: everything but times, and who paid for what."""
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
        """One injected fault and the same run again."""
        folder = self.work / f"{fault.name.replace(' ', '-').replace(',', '')}-{number}"
        code = fault.inject(self, folder, draw)
        kept, last = self.rows(folder), folder.with_suffix(".said").read_text()
        changes = SERVED if fault.name == "server gone" else {}
        with served() if changes else contextlib.nullcontext({}) as where:
            again = self.wait(self.start(folder, **where))
        kind = "server" if changes else "hf"
        whole = again == 0 and self.essence(folder) == self.expected[kind]
        return Outcome(fault.name, code, last, kept, self.rows(folder) - kept, whole)


# ---------------------------------------------------------------- the faults


def by_signal(number: signal.Signals) -> Callable[[Bench, Path, random.Random], int]:
    """A signal while the store holds a number of generations drawn at random."""

    def inject(bench: Bench, folder: Path, draw: random.Random) -> int:
        pid = bench.start(folder)
        ended = bench.reach(pid, folder, draw.randint(1, TOTAL - 5))
        if ended is not None:
            raise RuntimeError(f"the run ended with {ended} before the signal")
        os.kill(pid, number)
        return bench.wait(pid)

    return inject


def full_disk(bench: Bench, folder: Path, draw: random.Random) -> int:
    """No file may grow beyond some kilobytes: the kernel refuses the write, as on a full disk."""
    limit = draw.randint(40, 90) * 1024

    def prepare() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return bench.wait(bench.start(folder, prepare))


def out_of_memory(bench: Bench, folder: Path, draw: random.Random) -> int:
    """The address space may not grow any more once the model is loaded and some texts are generated."""
    spare = draw.randint(0, 8) << 14

    def no_more() -> None:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + spare, used + spare))

    return bench.wait(bench.start(folder, loaded=no_more))


def read_only(bench: Bench, folder: Path, draw: random.Random) -> int:
    """The output belongs to somebody else."""
    folder.mkdir(mode=0o755)

    def prepare() -> None:
        os.setgid(65534)
        os.setuid(65534)  # root may write anywhere; nobody may not

    with tempfile.TemporaryDirectory() as readable:  # test folders are closed to nobody, who has to read the model
        shutil.copytree(bench.model, Path(readable, "model"))
        for place in (Path(readable), Path(readable, "model")):
            place.chmod(0o755)
        return bench.wait(bench.start(folder, prepare, pretrained=str(Path(readable, "model"))))


def locked(bench: Bench, folder: Path, draw: random.Random) -> int:
    """Another process holds the store for longer than a run waits."""
    pid = bench.start(folder, lambda: setattr(sqlite, "BUSY_S", 0.2))
    bench.reach(pid, folder, 1)
    with contextlib.closing(sqlite3.connect(folder / "drafts.sqlite", timeout=10, isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        code = bench.wait(pid)
        db.execute("ROLLBACK")
    return code


def half_written(bench: Bench, folder: Path, draw: random.Random) -> int:
    """A trace file cut at a random byte, as another program's copy of it may be."""
    bench.wait(bench.start(folder))
    (file,) = folder.glob("*.jsonl")
    whole = file.read_bytes()
    file.write_bytes(whole[: draw.randint(1, len(whole) - 2)])
    try:
        list(traces.read_traces(folder))
    except AFTError as error:
        folder.with_suffix(".said").write_text(f"error: {error}")
        return error.exit_code
    return 0


def two_runs(bench: Bench, folder: Path, draw: random.Random) -> int:
    """The same command twice at once, in one folder."""
    pids = [bench.start(folder), bench.start(folder)]
    time.sleep(draw.random() / 50)
    return max(bench.wait(pid) for pid in pids)


def server_gone(bench: Bench, folder: Path, draw: random.Random) -> int:
    """The server stops answering after some replies."""
    with served(replies=draw.randint(2, TOTAL - 5)) as where:
        return bench.wait(bench.start(folder, **where))


SERVED = {"engine": "api"}


@contextlib.contextmanager
def served(replies: int = 10**9) -> Iterator[dict[str, Any]]:
    """A chat server on 127.0.0.1 whose text is a function of the prompt and seed; it hangs up after ``replies``."""
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
        yield {**SERVED, "base_url": url, "model": "m", "concurrency": 2, "max_retries": 0} | NO_CHECKPOINT
    finally:
        http.shutdown()
        http.server_close()


NO_CHECKPOINT: dict[str, Any] = {"pretrained": None, "dtype": None}

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
    """Every fault, ``share`` of its rounds (at least one)."""
    work.mkdir(parents=True, exist_ok=True)
    bench = Bench(model, work)
    bench.wait(bench.start(work / "whole"))
    bench.expected["hf"] = bench.essence(work / "whole")
    with served() as where:
        bench.wait(bench.start(work / "whole-server", **where))
    bench.expected["server"] = bench.essence(work / "whole-server")
    if not all(len(rows) == QUESTIONS for rows in bench.expected.values()):
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
        rows = [each for each in outcomes if each.fault == fault.name]
        codes = ", ".join(str(code) for code in sorted({row.exit_code for row in rows}))
        kept = sorted(row.kept for row in rows)
        said = Counter(_general(row.said) for row in rows if row.said)
        sentence = said.most_common(1)[0][0] if said else "nothing"
        whole = f"{sum(row.whole for row in rows)} of {len(rows)}"
        lines.append(f"| {fault.name} | {len(rows)} | {codes} | {kept[0]} to {kept[-1]} | {whole} | {sentence} |")
    return "\n".join(lines)


def _general(said: str) -> str:
    """A message without the paths and numbers of one round."""
    import re

    return re.sub(r"\d[\d,]*", "N", re.sub(r"(?:file://)?/[\w./:-]+", "PATH", said)).replace("|", "/")


def main() -> None:
    """Run and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("work", type=Path)
    parser.add_argument("--share", type=float, default=1.0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    outcomes = run_all(args.model, args.work, args.share)
    if args.json:
        args.json.write_text(json.dumps([asdict(each) for each in outcomes]))
    print(as_markdown(outcomes))
    sys.exit(0 if all(each.whole for each in outcomes) else 1)


if __name__ == "__main__":
    main()
