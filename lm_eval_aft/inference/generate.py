"""Generating or reusing: completions come from the draft store if it holds them, and from the engine otherwise."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from lm_eval_aft.core.engine import Engine
from lm_eval_aft.core.errors import BudgetReached, EngineError, StoreError
from lm_eval_aft.core.progress import Bar
from lm_eval_aft.core.records import Completion, Confidence, Request
from lm_eval_aft.core.stops import raise_if_stopped
from lm_eval_aft.inference.budget import Budget, Meter
from lm_eval_aft.storage.draft_store import Store, kept_in


def generate_or_reuse(
    requests: Sequence[Request], engine: Engine, store: Store, meter: Meter | None = None
) -> Iterator[tuple[int, Completion, bool]]:
    """Complete requests and keep each new completion in the store as soon as it ends.

    Args:
        requests: The requests of a layer.
        engine: Completes those that the store does not hold.
        store: The store.
        meter: Counts the completions, each once. None counts nothing and has no bound.

    Yields:
        The position of a request, its completion, and whether the completion was reused. A completion is reused if
        it comes from the store or from an equal request of this call.

    Raises:
        EngineError: If the engine stops working, or cannot score a stored text that must have its confidence.
        StoreError: If the store cannot be read or written.
        BudgetReached: If a bound is reached and requests are left.
    """
    meter = meter or Meter(Budget())
    positions: dict[str, list[int]] = {}
    for position, request in enumerate(requests):
        positions.setdefault(store.key(engine.fingerprint, request), []).append(position)
    stored = store.get(positions)
    missing = {key: requests[positions[key][0]] for key in positions if key not in stored}
    try:
        for key, completion in _with_confidence(stored, requests, positions, engine, store):
            meter.add(completion)
            for position in positions[key]:
                yield position, completion, True
        for key, completion in _generate(missing, engine, store, meter):
            raise_if_stopped()
            for position in positions[key]:
                yield position, completion, position != positions[key][0]
    finally:
        store.flush()


def _with_confidence(
    stored: Mapping[str, Completion],
    requests: Sequence[Request],
    positions: Mapping[str, Sequence[int]],
    engine: Engine,
    store: Store,
) -> Iterator[tuple[str, Completion]]:
    """Stored completions by their keys. One that must have its confidence and has none is scored, and kept so.

    Raises:
        EngineError: If the engine cannot score.
    """
    of_key = {key: requests[positions[key][0]] for key in stored}
    unscored = []
    for key, completion in stored.items():
        if of_key[key].confidence and completion.confidence is None and (completion.text or completion.token_ids):
            unscored.append(key)
        else:
            yield key, completion
    if not unscored:
        return
    if engine.scorer is None:
        raise EngineError(
            f"{len(unscored)} stored texts have no confidence, and this engine cannot score them: give cache= another "
            "file, so that they are generated again, or leave out confidence= and strategy=weighted."
        )
    prompts = [of_key[key].prompt.token_ids or () for key in unscored]
    scores = engine.scorer.token_logprobs(prompts, [stored[key].token_ids for key in unscored], quiet=True)
    for number, logprobs in scores:
        raise_if_stopped()
        key = unscored[number]
        completion = replace(stored[key], confidence=Confidence.of(logprobs))
        store.put(key, completion)
        yield key, completion


def _generate(
    requests: Mapping[str, Request], engine: Engine, store: Store, meter: Meter
) -> Iterator[tuple[str, Completion]]:
    """Complete requests by their keys, and put each completion into the store.

    If a bound is reached, the engine finishes, and the store gets the texts that it still yields. If the store fails,
    calls to a server that are under way are waited for, because they are paid for, and the store gets their texts too.

    Raises:
        StoreError: If the store failed.
        BudgetReached: If a bound is reached and requests are left.
    """
    keys, failure, left = list(requests), None, len(requests)
    if left:
        _check_budget(meter, store)
    for number, completion in engine.generate(list(requests.values())):
        left -= 1
        meter.add(completion)
        try:
            store.put(keys[number], completion)
            if engine.commits_each and failure is None:
                store.flush()
        except StoreError as error:
            if not engine.commits_each:
                raise
            failure = failure or error
            engine.finish()
        if failure is None:
            yield keys[number], completion
        if left and meter.budget.reached():
            engine.finish()
    if failure is not None:
        raise failure
    if left:
        _check_budget(meter, store)


def _check_budget(meter: Meter, store: Store) -> None:
    """Raise ``BudgetReached`` if a bound is reached. The message says what is kept and how to resume."""
    if reached := meter.budget.reached():
        name, sentence = reached
        kept = kept_in(store, f": the same command with a higher {name} resumes there.")
        raise BudgetReached(f"{sentence}; {kept}")


def show_progress(
    steps: Iterable[tuple[int, Completion, bool]], name: str, count: int, quiet: bool
) -> Iterator[tuple[int, Completion, bool]]:
    """Pass on the steps of ``generate_or_reuse`` and show a bar with new tokens per second and the time left.

    Args:
        steps: The steps.
        name: What the bar calls them.
        count: Number of steps.
        quiet: No bar.
    """
    tokens, started = 0, time.monotonic()
    with Bar(desc=name, total=count, disable=quiet, unit="text", smoothing=0) as bar:
        for step in steps:
            _, completion, reused = step
            tokens += 0 if reused else completion.generated_tokens
            bar.set_postfix_str(f"{tokens / max(1e-9, time.monotonic() - started):.0f} tokens/s", refresh=False)
            bar.update()
            yield step
