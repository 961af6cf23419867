"""Propose and aggregate: the file to read first.

    drafts   k texts that answer the question                            (layer 0)
    layer 1  k texts, each of which has read the question and the drafts
    ...
    layer L  one text: the answer

One loop over the layers. Each time, all requests of a layer go to the engine at once and every completion is kept
the moment it ends. Knows nothing of lm-eval, tasks, tokenizers or devices. Called by ``model.AFTLM``, the sweep
and the trainers.

Source of the method: "From Drafts to Answers" (arXiv 2501.11877), inference as in section 3 there.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from hashlib import sha256

from tqdm import tqdm

from lm_eval_aft.config import AFTConfig
from lm_eval_aft.engines.base import Engine
from lm_eval_aft.prompts import Fitted, Template, aggregate_prompt, draft_prompt
from lm_eval_aft.records import Completion, Draft, Question, Request, Trace
from lm_eval_aft.store import Store
from lm_eval_aft.usage import ModelShape, Usage, total


class _Bar(tqdm):
    """A progress bar without tqdm's monitor thread, whose start can wait for ever where memory has run out."""

    monitor_interval = 0


class _Run:
    """One question on its way through the layers."""

    def __init__(self, question: Question) -> None:
        self.question = question
        self.layers: list[dict[int, Draft]] = []
        self.cut_tokens: list[tuple[int, ...]] = []

    def texts(self) -> list[str]:
        newest = self.layers[-1]
        return [newest[index].completion.text for index in sorted(newest)]

    def drafts(self) -> tuple[Draft, ...]:
        return tuple(layer[i] for layer in self.layers for i in sorted(layer))


def propose_and_aggregate(
    questions: Sequence[Question],
    engine: Engine,
    template: Template,
    config: AFTConfig,
    store: Store,
    *,
    quiet: bool = False,
) -> list[Trace]:
    """Answer questions with k drafts and ``layers`` aggregation passes.

    Args:
        questions: What to answer; their order changes nothing.
        engine: Turns requests into completions.
        template: The draft and aggregate prompts.
        config: ``k``, ``layers`` and ``seed`` are read.
        store: Finished generations are looked up and kept there.
        quiet: No progress bar.

    Returns:
        One trace per question, in their order, each with k * layers + 1 generations.

    Raises:
        PromptTooLong: Before anything of a layer is generated, if a question does not fit.
        EngineError: If the engine stops working; what had ended by then is in the store.
    """
    runs = [_Run(question) for question in questions]
    for layer in range(config.layers + 1):
        last = layer == config.layers
        requests, places = [], []
        for number, run in enumerate(runs):
            sampling = run.question.final if last else run.question.drafts
            fitted = _prompt(run, engine, template, engine.max_length - sampling.max_tokens, last)
            if layer:
                run.cut_tokens.append(fitted.cut_tokens)
            for index in range(1 if last else config.k):
                requests.append(Request(fitted.prompt, sampling, generation_seed(config, run.question, layer, index)))
                places.append((number, index))
        for run in runs:
            run.layers.append({})
        name = "answers" if last else f"layer {layer} of {config.layers}" if layer else "drafts"
        started = time.monotonic()
        for position, completion, reused in _bar(_complete(requests, engine, store), name, len(requests), quiet):
            number, index = places[position]
            seed, elapsed_s = requests[position].seed, time.monotonic() - started
            runs[number].layers[layer][index] = Draft(layer, index, seed, completion, reused, round(elapsed_s, 3))
    return [_trace(run, engine.shape) for run in runs]


def generation_seed(config: AFTConfig, question: Question, layer: int, index: int) -> int:
    """The seed of one generation, a 63-bit number: servers take signed 64-bit seeds.

    A hash of the run's seed, what is asked, its repeat and the place in the schedule; never of k, layers, the
    document's position, rank, batch, or of being last: so drafts 1 to 3 of k=5 are the drafts of k=3.
    """
    parts = f"{config.seed}/{question.chat.identity}/{question.repeat}/{layer}/{index}"
    return int.from_bytes(sha256(parts.encode()).digest()[:8]) >> 1


def _prompt(run: _Run, engine: Engine, template: Template, budget: int, last: bool) -> Fitted:
    chat, renderer = run.question.chat, engine.renderer
    if not run.layers:
        return draft_prompt(template, renderer, chat, budget, final=last)
    return aggregate_prompt(template, renderer, chat, run.texts(), budget, final=last)


def _complete(requests: Sequence[Request], engine: Engine, store: Store) -> Iterator[tuple[int, Completion, bool]]:
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
            for position in positions[key]:
                yield position, completion, position != positions[key][0]
    finally:
        store.flush()


def _bar(
    steps: Iterable[tuple[int, Completion, bool]], name: str, count: int, quiet: bool
) -> Iterator[tuple[int, Completion, bool]]:
    """Show how far a layer is, its new tokens per second and the time left."""
    tokens, started = 0, time.monotonic()
    with _Bar(desc=name, total=count, disable=quiet, unit="text", smoothing=0) as bar:
        for step in steps:
            _, completion, reused = step
            tokens += 0 if reused else completion.generated_tokens
            bar.set_postfix_str(f"{tokens / max(1e-9, time.monotonic() - started):.0f} tokens/s", refresh=False)
            bar.update()
            yield step


def _trace(run: _Run, shape: ModelShape | None) -> Trace:
    drafts = run.drafts()
    return Trace(
        question=run.question,
        drafts=drafts,
        cut_tokens=tuple(run.cut_tokens),
        answer=drafts[-1].completion.text,
        usage=total([_cost(draft.completion, shape) for draft in drafts]),
        spent=total([_cost(draft.completion, shape) for draft in drafts if not draft.reused]),
    )


def _cost(completion: Completion, shape: ModelShape | None) -> Usage:
    """What one completion cost when it was computed."""
    start = completion.prompt_tokens - completion.computed_prompt_tokens
    end = completion.prompt_tokens + completion.generated_tokens
    return Usage(
        generations=1,
        prompt_tokens=completion.prompt_tokens,
        computed_prompt_tokens=completion.computed_prompt_tokens,
        generated_tokens=completion.generated_tokens,
        flops=shape.flops(start, end) if shape else 0,
    )
