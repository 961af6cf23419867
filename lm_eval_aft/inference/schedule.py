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

import re
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
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
from lm_eval_aft.inference.answers import AnswerFinder
from lm_eval_aft.inference.budget import Budget, Meter
from lm_eval_aft.inference.dialogue import is_empty, without_thinking
from lm_eval_aft.inference.equal_drafts import equal_drafts
from lm_eval_aft.inference.generate import generate_or_reuse, show_progress
from lm_eval_aft.inference.given_drafts import GivenDrafts
from lm_eval_aft.inference.models import Model, Models, naming
from lm_eval_aft.inference.probes import apply_probe
from lm_eval_aft.inference.selection import Candidates, Choice, Majority, Selector
from lm_eval_aft.storage.draft_store import Store
from lm_eval_aft.storage.run_state import RunRecorder


@dataclass(eq=False)
class _InFlight:
    """One question and what is written for it so far. It equals itself alone.

    Attributes:
        question: The question.
        last_layer: The layer whose text is the answer.
        layers: The texts of each layer by their index. Texts of the newest layer arrive in any order.
        fitted: For each aggregation layer, its prompts and what was cut from the texts that they show.
        subsets: For each aggregation layer and each text of it, the indices of the texts that it reads.
        computing: Layer and index of the texts that count the cost of their prompt. Others share it.
        agrees: Whether the drafts agree, so that ``stop_when`` ended them.
        written_choice: The text that names the chosen one, if the strategy writes one.
        choice: Which text is the answer, if it is selected.
    """

    question: Question
    last_layer: int
    layers: list[dict[int, Draft]] = field(default_factory=list)
    fitted: list[list[Fitted]] = field(default_factory=list)
    subsets: list[tuple[tuple[int, ...], ...]] = field(default_factory=list)
    computing: set[tuple[int, int]] = field(default_factory=set)
    agrees: bool = False
    written_choice: Draft | None = None
    choice: Choice | None = None

    def newest(self) -> list[Draft]:
        """The texts of the newest layer, by index."""
        return [self.layers[-1][index] for index in sorted(self.layers[-1])]

    def find_cut_thoughts(self, setup: _Setup) -> None:
        """Record which texts of the newest layer were cut inside a thought that the prompt opened unseen.

        A server does not show the prompt that it renders. But if one text of the question ends a thought only, the chat
        template of its model opened a thought for all texts of that model.
        """
        by_engine: dict[int, list[Draft]] = {}
        for draft in self.drafts():
            by_engine.setdefault(id(setup.writer(draft.layer, draft.index).engine), []).append(draft)
        for written in by_engine.values():
            opened = unopened_thought(draft.completion.text for draft in written)
            for draft in written if opened else ():
                newest = draft.layer == len(self.layers) - 1
                if newest and draft.cut and not draft.opened_thought and not has_marks(draft.completion.text):
                    self.layers[-1][draft.index] = replace(draft, opened_thought=opened)

    def drafts(self) -> tuple[Draft, ...]:
        return tuple(layer[index] for layer in self.layers for index in sorted(layer))


@dataclass(frozen=True)
class _Setup:
    """What all questions and layers share."""

    models: Models
    config: AFTConfig
    store: Store
    selector: Selector | None
    finder: AnswerFinder
    given_drafts: GivenDrafts | None
    recorder: RunRecorder
    budget: Budget
    quiet: bool

    def writer(self, layer: int, index: int) -> Model:
        """See ``Models.writer``."""
        return self.models.writer(layer, index, self.config.k)

    def naming(self, model: Model) -> AbstractContextManager[None]:
        """Let errors name the model that they are about, if there are several."""
        return naming(model.name if self.models.further else "")


def propose_and_aggregate(
    questions: Sequence[Question],
    engine: Engine,
    template: Template,
    config: AFTConfig,
    store: Store,
    *,
    models: Models | None = None,
    selector: Selector | None = None,
    finder: AnswerFinder | None = None,
    given_drafts: GivenDrafts | None = None,
    recorder: RunRecorder | None = None,
    budget: Budget | None = None,
    answer: bool = True,
    quiet: bool = False,
) -> list[Trace]:
    """Answer questions with k drafts and ``layers`` aggregation layers.

    Args:
        questions: The questions. Their order changes nothing.
        engine: Turns requests into completions, unless ``models`` is given.
        template: The draft and aggregate prompts, unless ``models`` is given.
        config: How many texts are written, and what each of them reads.
        store: Holds finished generations. A generation that it holds is not generated again.
        models: The models, if there are several.
        selector: If given, the last layer selects a text of the layer before instead of writing one.
        finder: Finds the answers in texts, for ``stop_when`` and ``carry=answer``.
        given_drafts: If given, the drafts of another run, which replace layer 0.
        recorder: Counts the generations that are done.
        budget: What the run may cost. The default begins a new one.
        answer: False leaves out the last layer, for callers that only need the texts it would read.
        quiet: No progress bar.

    Returns:
        One trace per question, in the order of the questions.

    Raises:
        PromptTooLong: If a question does not fit the context. Nothing of the layer is generated then.
        EngineError: If the engine stops working. The store holds what had ended by then.
        RecordError: If a question has too few given drafts.
        ConfigError: If the answers of a task cannot be found, and the configuration needs them.
        BudgetReached: If ``max_cost`` or ``max_generated_tokens`` is reached and texts are left to generate.
    """
    finder = finder or AnswerFinder(config.vote_regex)
    recorder = recorder or RunRecorder()
    models = models or Models(Model("", engine, template))
    budget = budget or Budget(config.max_generated_tokens, config.max_cost)
    setup = _Setup(models, config, store, selector, finder, given_drafts, recorder, budget, quiet)
    _check_answers(questions, setup)
    runs = [_InFlight(question, config.layers) for question in questions]
    _draft(runs, setup)
    for layer in range(1, config.layers + answer):
        _aggregate([run for run in runs if layer <= run.last_layer], layer, setup)
    return [_trace(run, setup) for run in runs]


def _draft(runs: Sequence[_InFlight], setup: _Setup) -> None:
    """Generate the drafts of all questions. With ``stop_when`` they come in rounds, until those of a question agree."""
    config, rule = setup.config, setup.config.rule
    for run in runs:
        given = setup.given_drafts.of(run.question, config.k) if setup.given_drafts else ()
        run.layers.append(dict(enumerate(given[: _kept(run.question, given, setup)])))
        if given:
            # One draft counts the cost of their prompt, as in the run that wrote them.
            run.computing.add((0, 0))
        run.find_cut_thoughts(setup)
    most = config.k if config.layers else 1
    waiting = [] if setup.given_drafts else runs
    while waiting:
        _write([(run, _next_drafts(run, most, setup)) for run in waiting], 0, setup)
        waiting = [run for run in waiting if len(run.layers[0]) < most and not _agrees(run, setup)]
    for run in runs if rule else ():
        run.agrees = _agrees(run, setup)
        if run.agrees and config.stop_layers is not None:
            # The vote of layer 1 answers a question that is not aggregated.
            run.last_layer = config.stop_layers or 1
    for engine in () if setup.given_drafts else setup.models.engines:
        _warn_of_equal_drafts(runs, engine, setup)


def _warn_of_equal_drafts(runs: Sequence[_InFlight], engine: Engine, setup: _Setup) -> None:
    """Warn of an engine that writes equal drafts although their seeds differ."""
    if not engine.seed_advice:
        return
    own = ([draft for draft in run.newest() if setup.writer(0, draft.index).engine is engine] for run in runs)
    equal = equal_drafts(zip((run.question for run in runs), own, strict=True)).sentence()
    if equal:
        warn_once(f"With k={setup.config.shown_k} {equal}. {engine.seed_advice}")


def _next_drafts(run: _InFlight, most: int, setup: _Setup) -> range:
    """The indices of the drafts that a question gets in its next round."""
    done, rule = len(run.layers[0]), setup.config.rule
    more = rule.fewest_more(_answers(run.question, run.newest(), setup), most - done) if rule else most
    return range(done, done + more)


def _agrees(run: _InFlight, setup: _Setup) -> bool:
    rule = setup.config.rule
    return rule is not None and rule.stops(_answers(run.question, run.newest(), setup))


def _kept(question: Question, drafts: Sequence[Draft], setup: _Setup) -> int:
    """How many of the given drafts ``stop_when`` would have generated; all of them without it."""
    rule = setup.config.rule
    return rule.kept(_answers(question, drafts, setup)) if rule and drafts else len(drafts)


def _check_answers(questions: Sequence[Question], setup: _Setup) -> None:
    """Refuse tasks whose answers cannot be found, before a draft is generated.

    Raises:
        ConfigError: If ``stop_when`` or ``carry=answer`` needs them.
    """
    config = setup.config
    needed = [("stop_when", config.stop_when), ("carry", config.carry if config.carry == "answer" else None)]
    for name, value in needed:
        for task in dict.fromkeys(question.task for question in questions) if value else ():
            setup.finder.check(task, f"{name}={value}", f"leave {name} out")


def _answers(question: Question, drafts: Sequence[Draft], setup: _Setup) -> list[str | None]:
    return setup.finder.answers(question, drafts) if drafts else []


def _aggregate(runs: Sequence[_InFlight], layer: int, setup: _Setup) -> None:
    """Make an aggregation layer: each question gets new texts, or one text of the layer before is selected."""
    selector = setup.selector
    voting = [run for run in runs if _votes_early(run, setup)]
    selecting = [run for run in runs if _selects(run, layer, setup)]
    selected = {id(run) for run in (voting if selector and selector.reads_choice else [*voting, *selecting])}
    writing = [run for run in runs if id(run) not in selected]
    _write([(run, range(_width(run, layer, setup.config))) for run in writing], layer, setup)
    if selector and selecting:
        for run in selecting if selector.reads_choice else ():
            (run.written_choice,) = run.layers.pop().values()
        _select(selecting, layer, selector)
    if voting:
        _select(voting, layer, Majority(setup.finder, f"stop_when={setup.config.stop_when}"))


def _votes_early(run: _InFlight, setup: _Setup) -> bool:
    """Whether the vote answers a question at once, since its drafts agree."""
    return run.agrees and setup.config.stop_layers == 0


def _selects(run: _InFlight, layer: int, setup: _Setup) -> bool:
    """Whether a layer selects the answer of a question by the strategy."""
    last = layer == run.last_layer and not _votes_early(run, setup)
    return last and setup.selector is not None and setup.selector.chooses(run.question.task)


def _width(run: _InFlight, layer: int, config: AFTConfig) -> int:
    return 1 if layer == run.last_layer else config.width(layer)


def _write(places: Sequence[tuple[_InFlight, range]], layer: int, setup: _Setup) -> None:
    """Generate texts of a layer: for each question those with the given indices."""
    if not places:
        return
    requests = [request for run, indices in places for request in _requests(run, layer, indices, setup)]
    owners = [(run, index, setup.writer(layer, index)) for run, indices in places for index in indices]
    for run, _ in places:
        if len(run.layers) == layer:
            run.layers.append({})
    setup.recorder.begin_layer(_name(layer, setup), len(requests))
    steps = _generate(requests, [model for _, _, model in owners], setup)
    started = time.monotonic()
    for position, completion, reused in show_progress(steps, _name(layer, setup), len(requests), setup.quiet):
        (run, index, model), request = owners[position], requests[position]
        elapsed_s = round(time.monotonic() - started, 3)
        completion = _with_mark(completion, run.question, model.engine)
        draft = Draft(layer, index, request.seed, completion, reused, elapsed_s, request.prompt.unshown_mark)
        run.layers[layer][index] = draft
        setup.recorder.add(draft, empty=is_empty(run.question, draft))
    for run, _ in places:
        run.find_cut_thoughts(setup)


def _generate(
    requests: Sequence[Request], writers: Sequence[Model], setup: _Setup
) -> Iterator[tuple[int, Completion, bool]]:
    """The steps of ``generate_or_reuse`` for the requests of each model, one engine after the other."""
    by_engine: dict[int, list[int]] = {}
    for position, model in enumerate(writers):
        by_engine.setdefault(id(model.engine), []).append(position)
    for positions in by_engine.values():
        own, model = [requests[position] for position in positions], writers[positions[0]]
        with setup.naming(model):
            meter = Meter(setup.budget, model.token_costs)
            for number, completion, reused in generate_or_reuse(own, model.engine, setup.store, meter):
                yield positions[number], completion, reused


def _with_mark(completion: Completion, question: Question, engine: Engine) -> Completion:
    """The completion, with the user's mark of the end of a thought in its text, even if the mark is a control token."""
    renderer = engine.renderer
    if not question.think_end or not isinstance(renderer, TokenizerRenderer):
        return completion
    return replace(completion, text=renderer.show_mark(completion.text, completion.token_ids, question.think_end))


def _requests(run: _InFlight, layer: int, indices: range, setup: _Setup) -> list[Request]:
    """The requests for the texts of a question with these indices in a layer."""
    config, question = setup.config, run.question
    sampling = _sampling(question, config, layer == run.last_layer)
    subsets = [_subset(run, layer, index, config) for index in indices]
    readings = [(setup.writer(layer, index), subset) for index, subset in zip(indices, subsets, strict=True)]
    texts = apply_probe(_carried(run, setup), config, question, layer) if layer else []
    prompts = {
        (model, subset): _prompt(run, layer, [texts[i] for i in subset], setup, model, sampling.max_tokens)
        for model, subset in dict.fromkeys(readings)
    }
    # Texts with one prompt share its cost. Which of them computed it depends on what the store held and on batches,
    # and the cost of an answer must not depend on either: the first one counts it.
    run.computing |= {(layer, indices[readings.index(reading)]) for reading in prompts}
    if layer:
        run.fitted.append(list(prompts.values()))
        run.subsets.append(tuple(subsets))
    return [
        Request(
            prompts[reading].prompt, sampling, generation_seed(config, question, layer, index), config.keeps_confidence
        )
        for index, reading in zip(indices, readings, strict=True)
    ]


def _subset(run: _InFlight, layer: int, index: int, config: AFTConfig) -> tuple[int, ...]:
    """The indices of the texts that a text reads: all of the layer before, or a part of them drawn by seed.

    The draw is that of Recursive Self-Aggregation (arXiv 2509.26626): each text reads its own K of the texts, without
    repeats. It depends on what decides the seed of the text, and on nothing else.
    """
    if not layer:
        return ()
    everything = range(len(run.layers[-1]))
    if config.subset is None or (config.strategy == "select" and layer == run.last_layer):
        return tuple(everything)
    seed = generation_seed(config, run.question, layer, index)
    drawn = sorted(everything, key=lambda other: sha256(f"{seed}/{other}".encode()).digest())
    return tuple(sorted(drawn[: config.subset]))


def _sampling(question: Question, config: AFTConfig, last: bool) -> Sampling:
    """The sampling of a layer. Beam search is greedy and keeps k texts at a time."""
    if config.strategy == "beam":
        return replace(question.final, temperature=0.0, beams=config.beams)
    return question.final if last else question.drafts


def _prompt(run: _InFlight, layer: int, texts: Sequence[str], setup: _Setup, model: Model, max_tokens: int) -> Fitted:
    """The prompt with which a model reads texts of the layer before, with room for ``max_tokens`` behind it."""
    chat, renderer, template = run.question.chat, model.engine.renderer, model.template
    last, budget = layer == run.last_layer, model.engine.max_length - max_tokens
    select = last and setup.selector is not None and setup.selector.reads_choice
    with setup.naming(model):
        if not layer:
            return draft_prompt(template, renderer, chat, budget, final=last)
        return aggregate_prompt(template, renderer, chat, texts, budget, final=last and not select, select=select)


def _carried(run: _InFlight, setup: _Setup) -> list[str]:
    """What the next layer reads of the newest texts: each without its thoughts, or its conclusion alone."""
    drafts = run.newest()
    texts = [without_thinking(run.question, draft) for draft in drafts]
    if setup.config.carry == "text":
        return texts
    return list(map(conclusion, texts, _answers(run.question, drafts, setup)))


def conclusion(text: str, answer: str | None) -> str:
    """The last paragraph of a text, followed by its answer if the paragraph does not hold it.

    Only conclusions travel between the rounds of PaCoRe (arXiv 2601.05593, section 3).
    """
    paragraphs = [part for part in re.split(r"\n\s*\n", text.strip()) if part.strip()]
    last = paragraphs[-1].strip() if paragraphs else ""
    # The 1 of 12 and the A of Answer are no answers.
    holds = answer is None or re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", last)
    return last if holds else f"{last}\n\nAnswer: {answer}"


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
    choices = selector.select([Candidates(run.question, run.newest(), run.written_choice) for run in runs])
    for run, choice in zip(runs, choices, strict=True):
        selected = run.newest()[choice.index]
        copy = replace(
            selected.completion, prompt_tokens=0, computed_prompt_tokens=0, generated_tokens=0, look_ahead=None
        )
        elapsed_s = round(time.monotonic() - started, 3)
        draft = replace(selected, layer=layer, index=0, completion=copy, reused=True, elapsed_s=elapsed_s)
        run.layers.append({0: draft})
        run.choice = choice


def _trace(run: _InFlight, setup: _Setup) -> Trace:
    drafts = run.drafts()
    written = drafts[:-1] if run.choice else drafts
    written += (run.written_choice,) if run.written_choice else ()
    selection = [run.choice.usage] if run.choice else []
    logical = [_logical_usage(draft, run, setup) for draft in written]
    computed = [_computed_usage(draft, setup) for draft in written if not draft.reused]
    by_model: dict[str, Usage] = {}
    for draft, usage in zip(written, logical, strict=True) if setup.models.further else ():
        name = setup.writer(draft.layer, draft.index).name
        by_model[name] = by_model.get(name, Usage()) + usage
    return Trace(
        question=run.question,
        drafts=drafts,
        cut_tokens=tuple(tuple(cut for each in layer for cut in each.cut_tokens) for layer in run.fitted),
        draft_tokens=tuple(sum(each.draft_tokens for each in layer) for layer in run.fitted),
        answer=drafts[-1].completion.text,
        usage=_sum(logical + selection, setup.models),
        computed_usage=_sum(computed + selection, setup.models),
        scores=run.choice.scores if run.choice else (),
        subsets=tuple(run.subsets) if setup.config.subset else (),
        choice=run.written_choice,
        usage_by_model=by_model,
    )


def _sum(usages: Sequence[Usage], models: Models) -> Usage:
    """The sum of usages. Without the shape of one of several models the operations are unknown, which is 0."""
    known = not models.further or all(engine.shape for engine in models.engines)
    return total(usages) if known else replace(total(usages), flops=0)


def _logical_usage(draft: Draft, run: _InFlight, setup: _Setup) -> Usage:
    """The cost of a text, with the cost of a shared prompt counted for one of its texts only."""
    engine = setup.writer(draft.layer, draft.index).engine
    if not engine.counts_shared_prefill:
        return _computed_usage(draft, setup)
    computes = (draft.layer, draft.index) in run.computing
    completion = replace(draft.completion, computed_prompt_tokens=draft.completion.prompt_tokens * computes)
    return _usage(completion, engine.shape, setup.config.beams)


def _computed_usage(draft: Draft, setup: _Setup) -> Usage:
    """The cost of a text as the engine counted it."""
    engine = setup.writer(draft.layer, draft.index).engine
    return _usage(draft.completion, engine.shape, setup.config.beams)


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
