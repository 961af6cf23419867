"""Programs that a test starts, stops by signals, and cuts off from their terminal."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

DEADLINE_S = 60.0


class Program:
    """A Python program in a process of its own, in the folder of a test.

    The text of the program may use ``folder`` and ``ready()``, which the test waits for.
    """

    HEAD = """
import pathlib, warnings
# Python 3.12 warns if a process with threads forks.
warnings.filterwarnings("ignore", "This process", DeprecationWarning)
folder = pathlib.Path.cwd()
def ready():
    (folder / "ready").touch()
"""

    def __init__(self, folder: Path, text: str, **settings: Any) -> None:
        self.folder = folder
        (folder / "program.py").write_text(self.HEAD + text, encoding="utf-8")
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **settings}
        self.process = subprocess.Popen([sys.executable, "program.py"], cwd=folder, text=True, **streams)

    def wait_until(self, reached: Callable[[], bool]) -> None:
        """Wait until the program has come to a point. A program that ends before fails the test."""
        deadline = time.monotonic() + DEADLINE_S
        while not reached():
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < deadline, "the program does not get there"
            time.sleep(0.005)

    def stop(self, *numbers: signal.Signals, pause_s: float = 0.1) -> Program:
        """Send signals once the program is at work."""
        self.wait_until((self.folder / "ready").exists)
        for position, number in enumerate(numbers):
            if position:
                time.sleep(pause_s)
            self.process.send_signal(number)
        return self

    def end(self) -> tuple[int, str]:
        """Wait for the end. Returns the exit code, and what the program wrote to stderr."""
        _, errors = self.process.communicate(timeout=DEADLINE_S)
        return self.process.returncode, errors or ""


def has_ended(process: int) -> bool:
    """Whether a process ends within five seconds."""
    deadline = time.monotonic() + 5
    while _is_running(process) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not _is_running(process)


def _is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
