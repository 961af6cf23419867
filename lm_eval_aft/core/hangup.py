"""Keeps long work going if its terminal closes, or the reader of its pipe ends."""

from __future__ import annotations

import os
import select
import sys
from contextlib import suppress
from threading import Thread

STDOUT, STDERR = 1, 2


def outlive_readers(*descriptors: int) -> None:
    """From now on, send output nowhere once nobody can read it. What a program writes then does not fail.

    Other packages print and draw progress bars too, so this holds for the whole process. Where the system cannot watch
    a stream, nothing happens.

    Args:
        *descriptors: ``STDOUT``, ``STDERR`` or both.
    """
    streams = {STDOUT: sys.stdout, STDERR: sys.stderr}
    # A stream that was closed from the start may have left its number to another file.
    watched = [number for number in descriptors if streams[number] is not None]
    if hasattr(select, "poll"):
        for number in watched:
            with suppress(RuntimeError):
                Thread(target=_silence_when_gone, args=(number,), daemon=True).start()


def silence(descriptor: int) -> None:
    """Send what is written to an open file nowhere."""
    with suppress(OSError):
        null = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(null, descriptor)
        finally:
            os.close(null)


def _silence_when_gone(descriptor: int) -> None:
    """Wait until an open file has no reader any more. A file on disk always has one."""
    watch = select.poll()
    watch.register(descriptor, 0)
    for _, event in watch.poll():
        if event & (select.POLLERR | select.POLLHUP):
            silence(descriptor)
