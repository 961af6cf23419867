"""Completing requests: from the store what it has, from the engine what is missing, each kept the moment it ends.

Knows nothing of layers or questions. Called by ``schedule`` and by the trainers' writer.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence

from lm_eval_aft.core.engine import Engine
from lm_eval_aft.core.progress import Bar
from lm_eval_aft.core.records import Completion, Request
from lm_eval_aft.inference.interrupts import raise_if_stopped
from lm_eval_aft.storage.draft_store import Store


def generate_or_reuse(
    requests: Sequence[Request], engine: Engine, store: Store
) -> Iterator[tuple[int, Completion, bool]]:
    """Yield (position, completion, reused), asking the engine only for what neither store nor layer has."""
    positions: dict[str, list[int]] = {}
    for position, request in enumerate(requests):
        positions.setdefault(store.key(engine.fingerprint, request), []).append(position)
    found = store.get(positions)
    for key, completion in found.items():
        for position in positions[key]:
            yield position, completion, True
    missing = [key for key in positions if key not in found]
    try:
        for number, completion in engine.generate([requests[positions[key][0]] for key in missing]):
            key = missing[number]
            store.put(key, completion)
            raise_if_stopped()
            for position in positions[key]:
                yield position, completion, position != positions[key][0]
    finally:
        store.flush()


def show_progress(
    steps: Iterable[tuple[int, Completion, bool]], name: str, count: int, quiet: bool
) -> Iterator[tuple[int, Completion, bool]]:
    """Show how far a layer is, its new tokens per second and the time left."""
    tokens, started = 0, time.monotonic()
    with Bar(desc=name, total=count, disable=quiet, unit="text", smoothing=0) as bar:
        for step in steps:
            _, completion, reused = step
            tokens += 0 if reused else completion.generated_tokens
            bar.set_postfix_str(f"{tokens / max(1e-9, time.monotonic() - started):.0f} tokens/s", refresh=False)
            bar.update()
            yield step
