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
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256

from lm_eval_aft.core.config import AFTConfig
from lm_eval_aft.core.engine import Engine
from lm_eval_aft.core.prompts import Fitted, Template, aggregate_prompt, draft_prompt
from lm_eval_aft.core.records import Completion, Draft, Question, Request, Sampling, Trace
from lm_eval_aft.core.usage import ModelShape, Usage, total
from lm_eval_aft.inference.generate import generate_or_reuse, show_progress
from lm_eval_aft.inference.given_drafts import GivenDrafts
from lm_eval_aft.inference.probes import apply_probe
from lm_eval_aft.inference.selection import Choice, Selector
from lm_eval_aft.storage.draft_store import Store


@dataclass
class _InFlight:
    """One question on its way through the layers."""

    question: Question
    layers: list[dict[int, Draft]] = field(default_factory=list)
    cut_tokens: list[tuple[int, ...]] = field(default_factory=list)
    choice: Choice | None = None

    def texts(self) -> list[str]:
        newest = self.layers[-1]
        return [newest[index].completion.text for index in sorted(newest)]

    def drafts(self) -> tuple[Draft, ...]:
        return tuple(layer[i] for layer in self.layers for i in sorted(layer))


@dataclass(frozen=True)
class _Machine:
    """What all layers of all questions share."""

    engine: Engine
    template: Template
    config: AFTConfig
    store: Store
    quiet: bool


def propose_and_aggregate(
    questions: Sequence[Question],
    engine: Engine,
    template: Template,
    config: AFTConfig,
    store: Store,
    *,
    selector: Selector | None = None,
    given: GivenDrafts | None = None,
    answer: bool = True,
    quiet: bool = False,
) -> list[Trace]:
    """Answer questions with k drafts and ``layers`` aggregation passes.

    Args:
        questions: What to answer; their order changes nothing.
        engine: Turns requests into completions.
        template: The draft and aggregate prompts.
        config: ``k``, ``layers``, ``seed``, ``strategy`` and ``probe`` are read.
        store: Finished generations are looked up and kept there.
        selector: Chooses the answer in the last layer, if the strategy selects a text instead of writing one.
        given: Drafts of another run, aggregated instead of new ones.
        answer: False leaves out the last pass, for callers that only need what it would read.
        quiet: No progress bar.

    Returns:
        One trace per question, in their order.

    Raises:
        PromptTooLong: Before anything of a layer is generated, if a question does not fit.
        EngineError: If the engine stops working; what had ended by then is in the store.
        RecordError: If a question has no given drafts, or too few.
    """
    machine = _Machine(engine, template, config, store, quiet)
    runs = [_InFlight(question) for question in questions]
    for layer in range(config.layers + answer):
        if given and layer == 0:
            for run in runs:
                run.layers.append(dict(enumerate(given.of(run.question, config.k))))
        elif selector and layer == config.layers:
            _select(runs, layer, selector)
        else:
            _write(runs, layer, machine)
    return [_trace(run, engine, config.beams) for run in runs]


def _write(runs: Sequence[_InFlight], layer: int, machine: _Machine) -> None:
    """One layer of all questions: k texts each, or one in the last layer."""
    config, engine = machine.config, machine.engine
    last = layer == config.layers
    requests, places = [], []
    for number, run in enumerate(runs):
        sampling = _sampling(run.question, config, last)
        fitted = _prompt(run, layer, machine, engine.max_length - sampling.max_tokens)
        if layer:
            run.cut_tokens.append(fitted.cut_tokens)
        for index in range(1 if last else config.k):
            requests.append(Request(fitted.prompt, sampling, generation_seed(config, run.question, layer, index)))
            places.append((number, index))
    for run in runs:
        run.layers.append({})
    name = "answers" if last else f"layer {layer} of {config.layers}" if layer else "drafts"
    started = time.monotonic()
    steps = show_progress(generate_or_reuse(requests, engine, machine.store), name, len(requests), machine.quiet)
    for position, completion, reused in steps:
        number, index = places[position]
        seed, elapsed_s = requests[position].seed, time.monotonic() - started
        runs[number].layers[layer][index] = Draft(layer, index, seed, completion, reused, round(elapsed_s, 3))


def _select(runs: Sequence[_InFlight], layer: int, selector: Selector) -> None:
    """The last layer of an election: one of the texts again, which costs no token."""
    started = time.monotonic()
    for run, choice in zip(runs, selector.select([(run.question, run.texts()) for run in runs]), strict=True):
        chosen = run.layers[-1][choice.index]
        free = replace(chosen.completion, prompt_tokens=0, computed_prompt_tokens=0, generated_tokens=0)
        run.layers.append({0: Draft(layer, 0, chosen.seed, free, True, round(time.monotonic() - started, 3))})
        run.choice = choice


def generation_seed(config: AFTConfig, question: Question, layer: int, index: int) -> int:
    """The seed of one generation, a 63-bit number: servers take signed 64-bit seeds.

    A hash of the run's seed, what is asked, its repeat and the place in the schedule; never of k, layers, the
    document's position, rank, batch, or of being last: so drafts 1 to 3 of k=5 are the drafts of k=3.
    """
    parts = f"{config.seed}/{question.chat.identity}/{question.repeat}/{layer}/{index}"
    return int.from_bytes(sha256(parts.encode()).digest()[:8]) >> 1


def _sampling(question: Question, config: AFTConfig, last: bool) -> Sampling:
    """How the texts of a layer are drawn; beam search draws nothing and keeps k texts side by side."""
    if config.strategy == "beam":
        return replace(question.final, temperature=0.0, beams=config.beams)
    return question.final if last else question.drafts


def _prompt(run: _InFlight, layer: int, machine: _Machine, budget: int) -> Fitted:
    chat, renderer, template = run.question.chat, machine.engine.renderer, machine.template
    last = layer == machine.config.layers
    if not layer:
        return draft_prompt(template, renderer, chat, budget, final=last)
    texts = apply_probe(run.texts(), machine.config, run.question, layer)
    return aggregate_prompt(template, renderer, chat, texts, budget, final=last)


def _trace(run: _InFlight, engine: Engine, beams: int) -> Trace:
    drafts, shape = run.drafts(), engine.shape
    written = drafts[:-1] if run.choice else drafts
    chosen = [run.choice.usage] if run.choice else []
    cost = [
        _with_canonical_prompt_cost(draft) if engine.counts_shared_prefill else draft.completion for draft in written
    ]
    return Trace(
        question=run.question,
        drafts=drafts,
        cut_tokens=tuple(run.cut_tokens),
        answer=drafts[-1].completion.text,
        usage=total([_cost(completion, shape, beams) for completion in cost] + chosen),
        computed_usage=total([_cost(draft.completion, shape, beams) for draft in written if not draft.reused] + chosen),
        scores=run.choice.scores if run.choice else (),
    )


def _with_canonical_prompt_cost(draft: Draft) -> Completion:
    """Its completion as if its layer had been written in one go, whose first text pays for the prompt they share.

    Who paid when they were born depends on the store and on how batches were cut; the cost of an answer must not.
    """
    return replace(draft.completion, computed_prompt_tokens=draft.completion.prompt_tokens * (draft.index == 0))


def _cost(completion: Completion, shape: ModelShape | None, beams: int) -> Usage:
    """What one completion cost when it was computed; its beams share the prompt."""
    prompt, cached = completion.prompt_tokens, completion.prompt_tokens - completion.computed_prompt_tokens
    end = prompt + completion.generated_tokens // beams
    return Usage(
        generations=1,
        prompt_tokens=completion.prompt_tokens,
        computed_prompt_tokens=completion.computed_prompt_tokens,
        generated_tokens=completion.generated_tokens,
        flops=shape.flops(cached, prompt) + beams * shape.flops(prompt, end) if shape else 0,
    )
