"""How a run ends in order: on SIGINT and SIGTERM, and at the end of one process of several.

The first signal ends a run, and says what is kept and how to go on; a second one ends the process at once. Knows
signals, the store's path and torch's process group; nothing of engines. Called by ``model`` around the schedule, which
commits what is finished while the exception passes through it, and by what makes a process group.
"""

from __future__ import annotations

import atexit
import signal
import sys
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


def leave_group_at_exit() -> None:
    """Have torch's process group, if there is one, destroyed while the interpreter is whole.

    Gloo's threads may hold tensors of the last collective; freed after the interpreter, they abort a process that had
    finished, and torchrun calls the run failed (seen once, in CI, not reproduced; pytorch/pytorch pull request 179291).
    """
    atexit.unregister(_leave_group)
    atexit.register(_leave_group)


def _leave_group() -> None:
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return
    if distributed.get_backend() == "gloo":  # others may wait for a process that has failed
        distributed.destroy_process_group()
