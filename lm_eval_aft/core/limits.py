"""Limits of time, memory and network for code that files bring along: templates, regular expressions, tasks."""

from __future__ import annotations

import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

# A template of a 100,000-token chat renders in milliseconds.
MAX_SECONDS = 5.0
# What one template may allocate beyond what the process has.
MAX_BYTES = 1 << 29
# Two threads that change the limit of the process at once would each restore the other's.
_ONE_AT_A_TIME = threading.RLock()


class OutOfTime(Exception):
    """A block ran longer than its limit."""


class NetworkRefused(OSError):
    """A block that may not use the network tried to."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise ``OutOfTime`` in a block that runs longer.

    Python delivers signals to the main thread only, so a block in another thread has no limit. A single call into C
    ends first, unless it handles signals itself, as matching a regular expression does.
    """
    if sys.platform == "win32" or threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        raise OutOfTime(f"it takes more than {seconds:g} seconds")

    handler, started = signal.signal(signal.SIGALRM, end), time.monotonic()
    left_s, interval_s = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL if handler is None else handler)
        if left_s:
            # Somebody else's timer continues.
            signal.setitimer(signal.ITIMER_REAL, max(1e-6, left_s - (time.monotonic() - started)), interval_s)


@contextmanager
def memory_limit(count: int) -> Iterator[None]:
    """Let allocations of a block fail with MemoryError once the process has grown by this many bytes.

    There is no limit where the system does not tell how large the process is.
    """
    used = _address_space()
    if sys.platform == "win32" or used is None:
        yield
        return
    import resource

    with _ONE_AT_A_TIME:
        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        most = used + count
        if any(limit != resource.RLIM_INFINITY and limit < most for limit in (soft, hard)):
            yield
            return
        resource.setrlimit(resource.RLIMIT_AS, (most, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@contextmanager
def no_network() -> Iterator[None]:
    """Let every new connection of this process fail, in all its threads. Unix sockets still connect."""

    def refuse(connection: socket.socket, address: Any) -> None:
        if connection.family != socket.AF_UNIX:
            raise NetworkRefused("the network is not used here")
        connect(connection, address)

    def refuse_name(*arguments: Any, **options: Any) -> Any:
        raise NetworkRefused("the network is not used here")

    connect, find_address = socket.socket.connect, socket.getaddrinfo
    socket.socket.connect, socket.getaddrinfo = refuse, refuse_name  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        socket.socket.connect, socket.getaddrinfo = connect, find_address  # type: ignore[method-assign]


def _address_space() -> int | None:
    """Bytes of the process's address space, or None if the system does not tell."""
    try:
        import resource

        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except (ImportError, OSError, ValueError):
        return None
