"""Worker threads that make calls to a server, a limited number at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from queue import SimpleQueue
from threading import Event, Thread
from typing import TypeVar

from lm_eval_aft.engines.api.client import Cancelled

Call = TypeVar("Call")
Result = TypeVar("Result")


def run_calls(
    calls: Iterable[Call],
    make: Callable[[Call, Event], Result],
    stop: Event,
    *,
    concurrency: int,
    disconnect: Callable[[], None],
) -> Iterator[tuple[Call, Result | Exception]]:
    """Make calls in worker threads and yield each with its result, or with the exception it raised.

    After the first exception no further call begins. Calls under way are still waited for and yielded, except those
    that give up because ``stop`` is set. The threads are daemons, so an interrupted command need not wait for the
    server.

    Args:
        calls: What to call, in this order.
        make: Makes one call. It runs in a worker thread and raises ``Cancelled`` if it gives up.
        stop: Set it to begin no further call. It is set when the iteration ends for any reason.
        concurrency: Maximum calls under way at a time.
        disconnect: Closes what a worker thread holds open. It runs in that thread, after its last call.
    """
    waiting = deque(calls)
    outcomes: SimpleQueue[tuple[Call, Result | Exception] | None] = SimpleQueue()

    def work() -> None:
        while not stop.is_set():
            try:
                call = waiting.popleft()
            except IndexError:
                break
            try:
                outcomes.put((call, make(call, stop)))
            except Cancelled:
                break
            except Exception as error:
                stop.set()
                outcomes.put((call, error))
        disconnect()
        outcomes.put(None)

    running = min(concurrency, len(waiting))
    try:
        running = _start_threads(work, running)
        while running:
            outcome = outcomes.get()
            if outcome is None:
                running -= 1
            else:
                yield outcome
    finally:
        stop.set()


def _start_threads(work: Callable[[], None], count: int) -> int:
    """Start threads, and return how many: fewer if the system allows no more. One there must be."""
    for number in range(count):
        try:
            Thread(target=work, daemon=True).start()
        except RuntimeError:
            if not number:
                raise
            return number
    return count
