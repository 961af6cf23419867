"""Waking a call that waits for a vLLM process which was killed. Called by the vllm engine and its scorer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread
from typing import Any

WATCH_S = 1.0


@contextmanager
def watched(engine: Any) -> Iterator[None]:
    """Wake a step that waits for a killed process.

    vLLM notices the death, but a caller that waits for output already waits for ever (seen in 0.32, after a kill as
    the system's out-of-memory killer does it).
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

    if hasattr(state, "engine_dead") and outputs is not None:  # the engine runs in a process of its own
        Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        done.set()
