"""Long work continues to its end if nobody can read its output any more."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import struct
import subprocess
import termios

import pytest

from helpers.stopping import Program
from lm_eval_aft.core.progress import Bar

COMMAND = """
import logging, sys, time
import click, tqdm
from lm_eval_aft.cli.runner import run
from lm_eval_aft.core.log import log
from lm_eval_aft.core.progress import Bar
from lm_eval_aft.core.terminal import note

logging.basicConfig(level="INFO")

@click.command()
def work():
    with Bar(total=10**9, mininterval=0.05) as bar:
        bar.update()
        ready()
        while not (folder / "go").exists():
            bar.update()
            time.sleep(0.001)
        for _ in range(100):
            bar.update()
    log.warning("a warning")
    note("a note")
    # Other packages draw bars and print too.
    for _ in tqdm.tqdm(range(3), mininterval=0):
        print("a line", file=sys.stderr, flush=True)
    (folder / "results").write_text("whole")

run(work, "work")
"""


@pytest.mark.parametrize("kind", ["pipe", "terminal"])
def test_a_command_outlives_its_terminal(tmp_path, kind):
    reader, writer = pty.openpty() if kind == "terminal" else os.pipe()
    if kind == "terminal":
        # A bar in a terminal without columns is empty.
        fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    program = Program(tmp_path, COMMAND, stderr=writer, stdout=subprocess.DEVNULL, start_new_session=True)
    os.close(writer)
    program.wait_until((tmp_path / "ready").exists)
    assert b"/1000000000" in os.read(reader, 10_000)
    os.close(reader)
    (tmp_path / "go").touch()
    assert program.end()[0] == 0
    assert (tmp_path / "results").read_text() == "whole"


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), BrokenPipeError(32, "Broken pipe"), ValueError()]
)
@pytest.mark.parametrize("failing", [1, 2, 5])
def test_a_bar_that_cannot_be_drawn_switches_itself_off(monkeypatch, error, failing):
    class Lost(io.StringIO):
        calls = 0

        def write(self, text: str) -> int:
            self.calls += 1
            if self.calls >= failing:
                raise error
            return len(text)

    lost = Lost()
    monkeypatch.setattr("sys.stderr", lost)
    with Bar(total=100, mininterval=0) as bar:
        for _ in range(100):
            bar.update()
    assert bar.disable
    # It does not try again and again.
    assert lost.calls <= failing + 2
