"""A signal ends every command with one sentence and the shell's exit code, wherever it arrives."""

from __future__ import annotations

import os
import signal
import time

import pytest

from helpers.stopping import Program, has_ended
from lm_eval_aft.core.errors import EngineError, RunStopped
from lm_eval_aft.core.stops import SIGNALS, stoppable

COMMAND = """
import os, time
import click
from lm_eval_aft.cli.runner import run
from lm_eval_aft.core.stops import stoppable

def kept():
    (folder / "committed").write_text("all")
    return "3 texts are kept: the same command resumes."

@click.command()
def work():
    {body}

run(work, "work")
"""
LOOP = "ready()\n    while True: time.sleep(0.01)"
SLOW_END = """
    with stoppable(kept):
        try:
            ready()
            while True: time.sleep(0.01)
        finally:
            (folder / "ending").touch()
            time.sleep(600)
"""


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_every_signal_ends_a_command_in_order(tmp_path, number):
    code, errors = Program(tmp_path, COMMAND.format(body=LOOP)).stop(number).end()
    sentence = f"error: stopped by {number.name}; finished work is kept, and the same command resumes.\n"
    assert (code, errors) == (128 + number, sentence)


def test_a_signal_in_a_destructor_prints_no_traceback(tmp_path):
    body = """
    class Late:
        def __del__(self):
            os.kill(os.getpid(), 15)
            time.sleep(0.01)
    with stoppable(kept):
        Late()
    """
    code, errors = Program(tmp_path, COMMAND.format(body=body)).end()
    assert (code, errors) == (143, "error: stopped by SIGTERM; 3 texts are kept: the same command resumes.\n")


@pytest.mark.parametrize(
    "second",
    [signal.SIGINT, *(pytest.param(number, marks=pytest.mark.long) for number in (signal.SIGTERM, signal.SIGHUP))],
    ids=lambda number: number.name,
)
def test_a_second_signal_ends_a_command_that_does_not_end_and_commits_before(tmp_path, second):
    program = Program(tmp_path, COMMAND.format(body=SLOW_END)).stop(signal.SIGINT)
    program.wait_until((tmp_path / "ending").exists)
    code, errors = program.stop(second).end()
    assert (code, errors) == (130, "error: stopped by SIGINT; 3 texts are kept: the same command resumes.\n")
    assert (tmp_path / "committed").read_text() == "all"


def test_a_third_signal_ends_at_once(tmp_path):
    program = Program(tmp_path, COMMAND.format(body=SLOW_END)).stop(signal.SIGTERM)
    program.wait_until((tmp_path / "ending").exists)
    started = time.monotonic()
    code, errors = program.stop(signal.SIGTERM, signal.SIGTERM).end()
    assert code == 143
    assert "Traceback" not in errors
    assert time.monotonic() - started < 1.5


@pytest.mark.long
def test_the_limit_of_processor_time_is_a_stop_although_the_system_repeats_it(tmp_path):
    body = SLOW_END.replace("time.sleep(600)", "end = time.time() + 2.5\n            while time.time() < end: pass")
    limit = "\nimport resource\nresource.setrlimit(resource.RLIMIT_CPU, (1, 60))\n"
    body = body.replace("while True: time.sleep(0.01)", "while True: pass")
    code, errors = Program(tmp_path, limit + COMMAND.format(body=body)).end()
    assert (code, errors) == (
        128 + signal.SIGXCPU,
        "error: stopped by SIGXCPU; 3 texts are kept: the same command resumes.\n",
    )


def test_a_stop_while_a_command_is_imported_or_ends_is_no_traceback(tmp_path):
    slow = "import time\nready()\nwhile True: time.sleep(0.01)\n"
    (tmp_path / "slow_package.py").write_text(Program.HEAD + slow)
    code, errors = Program(tmp_path, COMMAND.format(body="import slow_package")).stop(signal.SIGINT).end()
    assert (code, errors.count("\n")) == (130, 1)
    assert "the same command resumes" in errors
    (tmp_path / "ready").unlink()
    at_exit = "import atexit\n    atexit.register(lambda: (ready(), time.sleep(600)))\n    raise SystemExit(0)"
    code, errors = Program(tmp_path, COMMAND.format(body=at_exit)).stop(signal.SIGTERM).end()
    assert (code, errors) == (143, "")


def test_a_signal_that_a_command_was_started_to_ignore_stays_ignored(tmp_path):
    ignore = "import signal\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
    body = "ready()\n    while not (folder / 'go').exists(): time.sleep(0.01)"
    program = Program(tmp_path, ignore + COMMAND.format(body=body)).stop(signal.SIGHUP)
    (tmp_path / "go").touch()
    assert program.end() == (0, "")


@pytest.mark.parametrize("numbers", [[signal.SIGHUP], [signal.SIGTERM, signal.SIGTERM]], ids=["one", "two"])
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_that_a_command_started_end_with_it(tmp_path, method, numbers):
    child = """
import multiprocessing, time
def sleep():
    time.sleep(600)
if __name__ == "__main__":
    child = multiprocessing.get_context("%s").Process(target=sleep, daemon=True)
"""
    body = "child.start()\n    (folder / 'child').write_text(str(child.pid))\n    ready()"
    command = COMMAND.format(body=body + (SLOW_END if len(numbers) > 1 else "\n    while True: time.sleep(0.01)"))
    indented = "\n".join(f"    {line}" for line in command.splitlines())
    code, errors = Program(tmp_path, child % method + indented).stop(*numbers, pause_s=0.5).end()
    assert code == 128 + numbers[0]
    assert "Traceback" not in errors
    assert has_ended(int((tmp_path / "child").read_text()))


def test_a_fork_of_a_command_ends_without_a_word(tmp_path):
    body = """
    child = os.fork()
    if not child:
        time.sleep(600)
    (folder / "child").write_text(str(child))
    ready()
    (folder / "code").write_text(str(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])))
"""
    program = Program(tmp_path, COMMAND.format(body=body))
    program.wait_until((tmp_path / "ready").exists)
    os.kill(int((tmp_path / "child").read_text()), signal.SIGINT)
    assert program.end() == (0, "")
    assert (tmp_path / "code").read_text() == str(-signal.SIGINT)


def test_a_signal_ends_a_fork_that_has_not_run_yet(tmp_path):
    body = """
    codes = []
    for _ in range(5):
        child = os.fork()
        if not child:
            time.sleep(5)
            os._exit(0)
        os.kill(child, 15)
        codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    (folder / "codes").write_text(repr(codes))
"""
    assert Program(tmp_path, COMMAND.format(body=body)).end() == (0, "")
    assert (tmp_path / "codes").read_text() == repr([-signal.SIGTERM] * 5)


def test_an_error_that_follows_a_signal_is_not_shown():
    def work() -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            raise EngineError("the engine's process got the signal too")

    with (
        pytest.raises(RunStopped, match=r"^stopped by SIGTERM; 3 are kept\.$") as stopped,
        stoppable(lambda: "3 are kept."),
    ):
        work()
    assert stopped.value.exit_code == 143


def test_a_program_that_calls_us_keeps_its_handlers():
    def own(*given: object) -> None:
        calls.append(given)

    calls: list[object] = []
    before = signal.getsignal(signal.SIGINT)
    usual = signal.signal(signal.SIGUSR1, own)
    try:
        with stoppable():
            signal.raise_signal(signal.SIGUSR1)
        assert len(calls) == 1
        with pytest.raises(RunStopped), stoppable():
            signal.raise_signal(signal.SIGUSR2)
        assert signal.getsignal(signal.SIGUSR1) == own
        assert signal.getsignal(signal.SIGUSR2) == signal.SIG_DFL
        assert signal.getsignal(signal.SIGINT) == before
    finally:
        signal.signal(signal.SIGUSR1, usual)
