"""Propose and aggregate: from questions to answers, layer by layer. Read this file first.

    layer 0    k drafts: texts that answer the question
    layer 1    k texts; each is written after reading the question and the drafts
    ...
    layer L    1 text, written after reading the texts of layer L-1: the answer

``propose_and_aggregate`` is one loop over the layers. The engine gets the requests of all questions for a layer at
once, and the draft store keeps each completion as soon as it ends. A killed run therefore resumes where it stopped.

The method is described in "From Drafts to Answers" (arXiv 2501.11877), section 3.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256

from lm_eval_aft.core.chat import TokenizerRenderer
from lm_eval_aft.core.config import AFTConfig
from lm_eval_aft.core.engine import Engine
from lm_eval_aft.core.log import warn_once
from lm_eval_aft.core.prompts import Fitted, Template, aggregate_prompt, draft_prompt
from lm_eval_aft.core.records import Completion, Draft, Question, Request, Sampling, Trace
from lm_eval_aft.core.thinking import has_marks, unopened_thought
from lm_eval_aft.core.usage import ModelShape, Usage, total
from lm_eval_aft.inference.dialogue import is_empty, without_thinking
from lm_eval_aft.inference.equal_drafts import equal_drafts
from lm_eval_aft.inference.generate import generate_or_reuse, show_progress
from lm_eval_aft.inference.given_drafts import GivenDrafts
from lm_eval_aft.inference.probes import apply_probe
from lm_eval_aft.inference.selection import Choice, Selector
from lm_eval_aft.storage.draft_store import Store
from lm_eval_aft.storage.run_state import RunRecorder


@dataclass
class _InFlight:
    """One question and what is written for it so far.

    Attributes:
        question: The question.
        layers: The texts of each layer by their index. Texts of the newest layer arrive in any order.
        fitted: For each aggregation layer, its prompt and what was cut from the texts that it read.
        choice: Which text is the answer, if the strategy selects one.
    """

    question: Question
    layers: list[dict[int, Draft]] = field(default_factory=list)
    fitted: list[Fitted] = field(default_factory=list)
    choice: Choice | None = None

    def newest(self) -> list[Draft]:
        """The texts of the newest layer, by index."""
        return [self.layers[-1][index] for index in sorted(self.layers[-1])]

    def find_cut_thoughts(self) -> None:
        """Record which texts of the newest layer were cut inside a thought that the prompt opened unseen.

        A server does not show the prompt that it renders. But if one text of the question ends a thought only, the chat
        template opened a thought for all of them.
        """
        opened = unopened_thought(draft.completion.text for layer in self.layers for draft in layer.values())
        for index, draft in self.layers[-1].items() if opened else ():
            if draft.cut and not draft.opened_thought and not has_marks(draft.completion.text):
                self.layers[-1][index] = replace(draft, opened_thought=opened)

    def drafts(self) -> tuple[Draft, ...]:
        return tuple(layer[index] for layer in self.layers for index in sorted(layer))


@dataclass(frozen=True)
class _Setup:
    """What all questions and layers share."""

    engine: Engine
    template: Template
    config: AFTConfig
    store: Store
    recorder: RunRecorder
    quiet: bool


def propose_and_aggregate(
    questions: Sequence[Question],
    engine: Engine,
    template: Template,
    config: AFTConfig,
    store: Store,
    *,
    selector: Selector | None = None,
    given_drafts: GivenDrafts | None = None,
    recorder: RunRecorder | None = None,
    answer: bool = True,
    quiet: bool = False,
) -> list[Trace]:
    """Answer questions with k drafts and ``layers`` aggregation layers.

    Args:
        questions: The questions. Their order changes nothing.
        engine: Turns requests into completions.
        template: The draft and aggregate prompts.
        config: ``k``, ``layers``, ``seed``, ``strategy`` and ``probe`` are read.
        store: Holds finished generations. A generation that it holds is not generated again.
        selector: If given, the last layer selects a text of the layer before instead of writing one.
        given_drafts: If given, the drafts of another run, which replace layer 0.
        recorder: Counts the generations that are done.
        answer: False leaves out the last layer, for callers that only need the texts it would read.
        quiet: No progress bar.

    Returns:
        One trace per question, in the order of the questions.

    Raises:
        PromptTooLong: If a question does not fit the context. Nothing of the layer is generated then.
        EngineError: If the engine stops working. The store holds what had ended by then.
        RecordError: If a question has too few given drafts.
    """
    setup = _Setup(engine, template, config, store, recorder or RunRecorder(), quiet)
    runs = [_InFlight(question) for question in questions]
    for layer in range(config.layers + answer):
        if given_drafts and layer == 0:
            for run in runs:
                run.layers.append(dict(enumerate(given_drafts.of(run.question, config.k))))
                run.find_cut_thoughts()
        elif selector and layer == config.layers:
            _select(runs, layer, selector)
        else:
            _write(runs, layer, setup)
    return [_trace(run, engine, config.beams) for run in runs]


def _write(runs: Sequence[_InFlight], layer: int, setup: _Setup) -> None:
    """Generate a layer for all questions: k texts each, or one text each if it is the last layer."""
    requests, places = _requests(runs, layer, setup)
    for run in runs:
        run.layers.append({})
    setup.recorder.begin_layer(_name(layer, setup), len(requests))
    steps = generate_or_reuse(requests, setup.engine, setup.store)
    started = time.monotonic()
    for position, completion, reused in show_progress(steps, _name(layer, setup), len(requests), setup.quiet):
        number, index = places[position]
        elapsed_s = round(time.monotonic() - started, 3)
        request = requests[position]
        opened = request.prompt.unshown_mark
        completion = _with_mark(completion, runs[number].question, setup.engine)
        draft = Draft(layer, index, request.seed, completion, reused, elapsed_s, opened)
        runs[number].layers[layer][index] = draft
        setup.recorder.add(draft, empty=is_empty(runs[number].question, draft))
    for run in runs:
        run.find_cut_thoughts()
    if setup.engine.seed_advice and not layer:
        equal = equal_drafts((run.question, list(run.layers[0].values())) for run in runs).sentence()
        if equal:
            warn_once(f"With k={setup.config.k} {equal}. {setup.engine.seed_advice}")


def _with_mark(completion: Completion, question: Question, engine: Engine) -> Completion:
    """The completion, with the user's mark of the end of a thought in its text, even if the mark is a control token."""
    renderer = engine.renderer
    if not question.think_end or not isinstance(renderer, TokenizerRenderer):
        return completion
    return replace(completion, text=renderer.show_mark(completion.text, completion.token_ids, question.think_end))


def _requests(runs: Sequence[_InFlight], layer: int, setup: _Setup) -> tuple[list[Request], list[tuple[int, int]]]:
    """The requests of a layer, and for each one the number of its question and its index in the layer."""
    config = setup.config
    last = layer == config.layers
    requests, places = [], []
    for number, run in enumerate(runs):
        sampling = _sampling(run.question, config, last)
        fitted = _prompt(run, layer, setup, setup.engine.max_length - sampling.max_tokens)
        if layer:
            run.fitted.append(fitted)
        for index in range(1 if last else config.k):
            requests.append(Request(fitted.prompt, sampling, generation_seed(config, run.question, layer, index)))
            places.append((number, index))
    return requests, places


def _sampling(question: Question, config: AFTConfig, last: bool) -> Sampling:
    """The sampling of a layer. Beam search is greedy and keeps k texts at a time."""
    if config.strategy == "beam":
        return replace(question.final, temperature=0.0, beams=config.beams)
    return question.final if last else question.drafts


def _prompt(run: _InFlight, layer: int, setup: _Setup, budget: int) -> Fitted:
    """The prompt of a layer, in at most ``budget`` tokens."""
    chat, renderer, template = run.question.chat, setup.engine.renderer, setup.template
    last = layer == setup.config.layers
    if not layer:
        return draft_prompt(template, renderer, chat, budget, final=last)
    read = [without_thinking(run.question, draft) for draft in run.newest()]
    texts = apply_probe(read, setup.config, run.question, layer)
    return aggregate_prompt(template, renderer, chat, texts, budget, final=last)


def generation_seed(config: AFTConfig, question: Question, layer: int, index: int) -> int:
    """The seed of one generation: a 63-bit number, since servers take signed 64-bit seeds.

    It is a hash of the run's seed, the chat, its repeat and the generation's place in the schedule. It does not depend
    on k, layers, the document's position, rank, batch, or on being last. So drafts 1 to 3 of k=5 are the drafts of k=3.
    """
    parts = f"{config.seed}/{question.chat.identity}/{question.repeat}/{layer}/{index}"
    return int.from_bytes(sha256(parts.encode()).digest()[:8]) >> 1


def _name(layer: int, setup: _Setup) -> str:
    """What the progress bar calls a layer."""
    if layer == setup.config.layers:
        return "answers"
    return f"layer {layer} of {setup.config.layers}" if layer else "drafts"


def _select(runs: Sequence[_InFlight], layer: int, selector: Selector) -> None:
    """Make the last layer a copy of one text of the layer before, which costs no tokens."""
    started = time.monotonic()
    choices = selector.select([(run.question, run.newest()) for run in runs])
    for run, choice in zip(runs, choices, strict=True):
        selected = run.layers[-1][choice.index]
        copy = replace(selected.completion, prompt_tokens=0, computed_prompt_tokens=0, generated_tokens=0)
        elapsed_s = round(time.monotonic() - started, 3)
        draft = replace(selected, layer=layer, index=0, completion=copy, reused=True, elapsed_s=elapsed_s)
        run.layers.append({0: draft})
        run.choice = choice


def _trace(run: _InFlight, engine: Engine, beams: int) -> Trace:
    drafts, shape = run.drafts(), engine.shape
    written = drafts[:-1] if run.choice else drafts
    selection = [run.choice.usage] if run.choice else []
    logical = [_with_canonical_prompt_cost(d) if engine.counts_shared_prefill else d.completion for d in written]
    computed = [draft.completion for draft in written if not draft.reused]
    return Trace(
        question=run.question,
        drafts=drafts,
        cut_tokens=tuple(fitted.cut_tokens for fitted in run.fitted),
        draft_tokens=tuple(fitted.draft_tokens for fitted in run.fitted),
        answer=drafts[-1].completion.text,
        usage=total([_usage(completion, shape, beams) for completion in logical] + selection),
        computed_usage=total([_usage(completion, shape, beams) for completion in computed] + selection),
        scores=run.choice.scores if run.choice else (),
    )


def _with_canonical_prompt_cost(draft: Draft) -> Completion:
    """The completion, with the cost of the layer's shared prompt counted for the first text only.

    Which text computed the prompt depends on what the store held and on how batches were formed. The cost of an answer
    must not depend on either.
    """
    return replace(draft.completion, computed_prompt_tokens=draft.completion.prompt_tokens * (draft.index == 0))


def _usage(completion: Completion, shape: ModelShape | None, beams: int) -> Usage:
    """The cost of one completion. Its beams share the prompt."""
    prompt, cached = completion.prompt_tokens, completion.prompt_tokens - completion.computed_prompt_tokens
    end = prompt + completion.generated_tokens // beams
    return Usage(
        generations=1,
        prompt_tokens=completion.prompt_tokens,
        computed_prompt_tokens=completion.computed_prompt_tokens,
        generated_tokens=completion.generated_tokens,
        flops=shape.flops(cached, prompt) + beams * shape.flops(prompt, end) if shape else 0,
    )
