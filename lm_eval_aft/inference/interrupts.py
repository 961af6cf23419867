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


class _Signal(BaseException):
    """Raised by the handler; not an Exception, so that nothing between here and the engine takes it for a failure."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


_came: list[int] = []  # signals of this run, until it has ended


@contextmanager
def stoppable(store: Store) -> Iterator[None]:
    """Turn the first SIGINT or SIGTERM into ``RunStopped``; the handlers before are put back at the end.

    Args:
        store: Where finished generations are.

    Raises:
        Stopped: A signal came.
    """
    if threading.current_thread() is not threading.main_thread():  # Python allows handlers there alone
        yield
        return
    before = {number: signal.signal(number, _raise) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
        raise_if_stopped()
    except _Signal as caught:
        raise RunStopped(_sentence(caught.number, store), 128 + caught.number) from None
    finally:
        _came.clear()
        for number, handler in before.items():
            signal.signal(number, handler)


def _raise(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)  # of the next one
    _came.append(number)
    raise _Signal(number)


def raise_if_stopped() -> None:
    """End the run if a signal came whose exception was lost: Python drops what is raised while an object is deleted."""
    if _came:
        raise _Signal(_came[0])


def _sentence(number: int, store: Store) -> str:
    name = signal.Signals(number).name
    if not isinstance(store, SQLiteStore):
        return f"stopped by {name}; nothing is kept without a draft store: give record=DIR or cache=FILE next time."
    kept = store.info().generations
    return f"stopped by {name}; {kept:,} finished generations are in {store.path}: the same command goes on from there."
