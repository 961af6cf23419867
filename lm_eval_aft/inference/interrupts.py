"""Ends a run in order on SIGINT or SIGTERM.

The first signal ends the run, and the message says what is kept and how to resume. A second signal ends the process
at once. The schedule commits finished generations while the exception passes through it.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from lm_eval_aft.core.errors import RunStopped
from lm_eval_aft.storage.draft_store import SQLiteStore, Store

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class _Interrupt(BaseException):
    """A signal. It is not an Exception, so that no code between here and the engine handles it as a failure."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class _Handler:
    """Raises ``_Interrupt`` at a signal, and remembers the signal in case Python drops the exception."""

    def __init__(self) -> None:
        self.number: int | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        # A second signal ends the process at once.
        signal.signal(number, signal.SIG_DFL)
        self.number = number
        raise _Interrupt(number)

    def raise_if_signalled(self) -> None:
        if self.number is not None:
            raise _Interrupt(self.number)


@contextmanager
def stoppable(store: Store) -> Iterator[None]:
    """Turn the first SIGINT or SIGTERM of a block into ``RunStopped``, and restore the handlers afterwards.

    Args:
        store: The draft store that the message names.

    Raises:
        RunStopped: If a signal came.
    """
    # Python allows signal handlers in the main thread only.
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = _Handler()
    before = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield
        handler.raise_if_signalled()
    except _Interrupt as interrupt:
        raise RunStopped(_message(interrupt.number, store), 128 + interrupt.number) from None
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


def raise_if_stopped() -> None:
    """End the run if a signal came and Python dropped its exception, as it does while an object is deleted."""
    for number in SIGNALS:
        handler = signal.getsignal(number)
        if isinstance(handler, _Handler):
            handler.raise_if_signalled()


def _message(number: int, store: Store) -> str:
    name = signal.Signals(number).name
    if not isinstance(store, SQLiteStore):
        return f"stopped by {name}; nothing is kept without a draft store: give record=DIR or cache=FILE next time."
    kept = store.info().generations
    return f"stopped by {name}; {kept:,} finished generations are in {store.path}: the same command resumes there."
