"""Ends a call that waits for output of a vLLM process that was killed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread
from typing import Any

WATCH_S = 1.0


@contextmanager
def watched(engine: Any) -> Iterator[None]:
    """Raise an error in a step that waits for a killed process.

    vLLM notices the death, but a caller that already waits for output waits forever (seen in 0.32, after a kill as
    the system's out-of-memory killer does it).

    Args:
        engine: vLLM's ``LLMEngine``. Nothing is watched if it runs in this process.
    """
    core = getattr(engine, "engine_core", None)
    state: Any = getattr(core, "resources", None)
    outputs: Any = getattr(core, "outputs_queue", None)
    done = Event()

    def watch() -> None:
        while not done.wait(WATCH_S):
            if state.engine_dead:
                outputs.put(RuntimeError("its engine process died"))
                return

    if hasattr(state, "engine_dead") and outputs is not None:
        Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        done.set()
