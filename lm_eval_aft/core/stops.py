"""Ends a command in order on a signal, wherever the signal arrives.

- The first signal raises ``Stopped`` in the main thread. The block that knows what is kept turns it into
  ``RunStopped``, whose message says so.
- The second signal commits what is finished and ends the process after ``GRACE_S`` seconds.
- The third signal ends the process at once.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from types import FrameType
from typing import Any, NoReturn

from lm_eval_aft.core.errors import RESUMES, RunStopped, Stopped, stop_sentence
from lm_eval_aft.core.terminal import note

# SIGHUP: the terminal has gone. SIGXCPU: the limit of processor time. SIGUSR1, SIGUSR2: batch systems such as Slurm
# send them before a job's limit. Not every system has all of them.
_NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGXCPU", "SIGUSR1", "SIGUSR2")
SIGNALS = tuple(signal.Signals[name] for name in _NAMES if name in signal.Signals.__members__)
GRACE_S = 2.0
# Commits what is finished, and says what is kept and how to resume.
Kept = Callable[[], str]


class _Handler:
    """Raises ``Stopped`` at the first signal, and remembers the signal in case Python drops the exception.

    Attributes:
        number: The first signal; None before it.
        kept: The ``kept`` of each ``stoppable`` block that runs, from the outer one.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self.kept: list[Kept] = []
        self._process = os.getpid()
        self._further = 0
        self._explained = False

    @property
    def is_own(self) -> bool:
        """Whether this process installed the handler, and not the one that it is a fork of."""
        return self._process == os.getpid()

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if not self.is_own:
            # A fork of a command, such as a worker of a data loader, ends as if there were no handler.
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif not threading.main_thread().is_alive():
            # The program has ended, and Python calls what was registered for its end.
            _end_process(self.number or number)
        elif self.number is None:
            self.number = number
            raise Stopped(number)
        # The system repeats SIGXCPU every second.
        elif signal.Signals(number).name != "SIGXCPU":
            self._leave(self.number)

    def raise_if_signalled(self) -> None:
        if self.number is not None:
            raise Stopped(self.number)

    def explain(self, number: int) -> RunStopped:
        """Commit what is finished, and make the error that says what is kept."""
        kept = self.kept[-1]() if self.kept else RESUMES
        self._explained = True
        return RunStopped(stop_sentence(number, kept), 128 + number)

    def _leave(self, number: int) -> None:
        self._further += 1
        if self._further > 1:
            _end_process(number)
        # The main thread may hold a lock that a commit needs, so it continues meanwhile.
        with suppress(RuntimeError):
            threading.Thread(target=self._leave_soon, args=(number,), daemon=True).start()

    def _leave_soon(self, number: int) -> None:
        explained = self._explained
        try:
            sentence = str(self.explain(number))
            time.sleep(GRACE_S)
            if not explained:
                note(f"error: {sentence}")
        finally:
            _end_process(number)


def take_signals() -> bool:
    """Handle the signals from now until the process ends.

    Returns:
        False if they are handled already, or outside the main thread, where Python allows no handlers.
    """
    if not _in_main_thread() or _active() is not None:
        return False
    _install(_Handler())
    _hide_dropped_stops()
    return True


@contextmanager
def stoppable(kept: Kept = lambda: RESUMES) -> Iterator[None]:
    """Turn the first signal of a block into ``RunStopped``.

    If the program has not taken the signals, their former handlers are restored afterwards.

    Args:
        kept: Commits what is finished, and returns the part of the message that says what is kept.

    Raises:
        RunStopped: If a signal came. An error that follows the signal, such as that of an engine process which got the
            signal too, is not shown.
    """
    if not _in_main_thread():
        yield
        return
    handler, before = _active(), {}
    if handler is None:
        handler = _Handler()
        before = _install(handler)
    handler.kept.append(kept)
    try:
        yield
        handler.raise_if_signalled()
    except (Stopped, Exception) as error:
        if handler.number is None or isinstance(error, RunStopped):
            raise
        raise handler.explain(handler.number) from None
    finally:
        handler.kept.remove(kept)
        for number, previous in before.items():
            signal.signal(number, previous)


def raise_if_stopped() -> None:
    """End the command if a signal came and Python dropped its exception, as it does while an object is deleted."""
    if handler := _active():
        handler.raise_if_signalled()


def _end_process(number: int) -> NoReturn:
    """End this process and those that it started, such as vLLM's, without any clean-up."""
    try:
        for child in multiprocessing.active_children():
            child.terminate()
    finally:
        os._exit(128 + number)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _active() -> _Handler | None:
    handler = signal.getsignal(signal.SIGINT)
    return handler if isinstance(handler, _Handler) and handler.is_own else None


def _hide_dropped_stops() -> None:
    """Print no traceback if a signal arrives where Python drops exceptions, such as ``__del__``. It is remembered."""
    report = sys.unraisablehook

    def report_others(dropped: Any) -> None:
        if not isinstance(dropped.exc_value, Stopped):
            report(dropped)

    sys.unraisablehook = report_others


def _install(handler: _Handler) -> dict[signal.Signals, Any]:
    """Handle the signals, and return the former handlers of those that are handled.

    A signal with a handler of the program's own, or one that is ignored as nohup ignores SIGHUP, stays as it is. SIGINT
    and SIGTERM are always handled, since a shell's background command ignores SIGINT.
    """
    before = {number: signal.getsignal(number) for number in SIGNALS}
    always = (signal.SIGINT, signal.SIGTERM)
    replaced = {
        number: previous
        for number, previous in before.items()
        if previous is not None and (number in always or previous == signal.SIG_DFL or isinstance(previous, _Handler))
    }
    _keep_signals_of_forks()
    for number in replaced:
        signal.signal(number, handler)
    return replaced


@cache
def _keep_signals_of_forks() -> None:
    """Block the signals in this thread while it forks.

    Python drops a signal that has a handler and reaches a fork before its first instruction. The parent would then wait
    for a child that nothing ends. A blocked signal waits in the system.
    """
    if sys.platform == "win32":
        return
    before = threading.local()

    def block() -> None:
        before.mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)

    def restore() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, before.mask)

    os.register_at_fork(before=block, after_in_parent=restore, after_in_child=restore)
