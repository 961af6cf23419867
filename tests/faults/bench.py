"""Processes that faults are injected into, and what is recorded of each."""

from __future__ import annotations

import mmap
import os
import random
import signal
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lm_eval_aft.core.errors import AFTError, Stopped
from lm_eval_aft.core.stops import stoppable, take_signals

# A process that takes longer than this is ended.
TIMEOUT_S = 60
# Exit code of a process that was ended after TIMEOUT_S.
HUNG = 98
# Exit code of a process that ended with another exception than ours.
CRASH = 99
# Keys in the environment of all processes. None of their characters may appear anywhere.
KEYS = {"OPENAI_API_KEY": "sk-planted-5d0c77a1", "HF_TOKEN": "hf_plantedToken93b1e2"}


@dataclass(frozen=True)
class Outcome:
    """The result of one round: a disturbed run and the same command again.

    Attributes:
        fault: Name of the fault.
        codes: The exit codes that the disturbed run may have.
        exit_code: The one that it had; negative if a signal ended it.
        message: Its error message.
        total: Units of work of a whole run: generations, or steps of a training.
        kept: Units on disk after the disturbed run.
        again: Units on disk that the second run made again.
        uncommitted: Units that the disturbed run finished and that are not on disk; None if they are not counted.
        whole: Whether the second run has the result of an undisturbed one.
        tracebacks: Number of tracebacks in all output.
        key_characters: Characters of keys in all files and output.
    """

    fault: str
    codes: tuple[int, ...]
    exit_code: int
    message: str
    total: int
    kept: int
    again: int
    uncommitted: int | None
    whole: bool
    tracebacks: int
    key_characters: int


@dataclass(frozen=True)
class Fault:
    """A kind of fault.

    Attributes:
        name: Its name.
        rounds: How often a full test injects it.
        round: Injects it into a run in a folder and repeats the run. Returns None if this machine does not allow it.
        codes: The exit codes that the disturbed run may have.
    """

    name: str
    rounds: int
    round: Callable[[Fault, Path, random.Random], Outcome | None]
    codes: tuple[int, ...] = (2,)


class Bench:
    """Starts processes. Each is a fork of this one, because importing takes far longer than a tiny model.

    Attributes:
        work: The folder of all rounds.
        finished: Number of units of work that the newest process has finished, as 8 bytes that it shares.
    """

    def __init__(self, work: Path) -> None:
        self.work, self.finished = work, mmap.mmap(-1, 8)
        os.environ.update(KEYS)

    def count(self) -> int:
        """Units of work that the newest process has finished."""
        return int.from_bytes(self.finished[:], "little")

    def add(self) -> None:
        """Count one more, in the process that finished it."""
        self.finished[:] = (self.count() + 1).to_bytes(8, "little")

    def start(
        self, label: Path, job: Callable[[], object], prepare: Callable[[], object] = int, streams: int | None = None
    ) -> int:
        """Run a job in a child process, after ``prepare``. Returns its process id.

        Args:
            label: Its error and its output are beside this path.
            job: The work.
            prepare: Takes rights away or sets limits.
            streams: Open file for stdout and stderr; None for the file of the output.
        """
        # The files are opened before a limit or a right is taken away.
        message = os.open(label.with_suffix(".message"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        output = os.open(label.with_suffix(".output"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        label.with_suffix(".started").unlink(missing_ok=True)
        self.finished[:] = bytes(8)
        pid = os.fork()
        if pid:
            os.close(message)
            os.close(output)
            return pid
        code = CRASH
        try:
            for stream in (1, 2):
                os.dup2(output if streams is None else streams, stream)
            # A suite under nohup ignores SIGHUP.
            signal.signal(signal.SIGHUP, signal.SIG_DFL)
            take_signals()
            label.with_suffix(".started").touch()
            prepare()
            with stoppable():
                job()
            code = 0
        except (AFTError, Stopped) as error:
            code = error.exit_code
            os.write(message, f"error: {error}".encode())
        except BaseException:
            os.write(output, traceback.format_exc().encode())
        finally:
            os._exit(code)

    def wait(self, pid: int) -> int:
        """Wait for a process. Returns its exit code, negative if a signal ended it, or ``HUNG``."""
        deadline = time.monotonic() + TIMEOUT_S
        while time.monotonic() < deadline:
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.005)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        return HUNG

    def reach(self, pid: int, reached: Callable[[], bool]) -> None:
        """Wait until a process has come to a point.

        Raises:
            RuntimeError: If it ends before.
        """
        while not reached():
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                raise RuntimeError(f"a process ended with {os.waitstatus_to_exitcode(status)} before its fault")
            time.sleep(0.001)

    def message(self, label: Path) -> str:
        """The error message of the newest process of this label."""
        return label.with_suffix(".message").read_text()

    def tracebacks(self, label: Path) -> int:
        """Tracebacks in the output of all processes of this label."""
        return label.with_suffix(".output").read_text(errors="replace").count("Traceback (most recent call last)")

    def key_characters(self, label: Path) -> int:
        """Characters of keys in all files of this label."""
        files = [path for path in label.rglob("*") if path.is_file()]
        files += [label.with_suffix(suffix) for suffix in (".message", ".output")]
        content = [path.read_bytes() for path in files]
        return sum(text.count(key.encode()) * len(key) for text in content for key in KEYS.values())
