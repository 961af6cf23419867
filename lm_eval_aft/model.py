"""``--model aft``: the class that lm-eval instantiates.

It turns lm-eval's requests into dialogues, has ``inference.schedule`` answer them, writes traces, and reports the cost.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import date
from itertools import chain
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM, CacheHook

from lm_eval_aft import __version__
from lm_eval_aft.bundled import warn_elsewhere
from lm_eval_aft.core.chat import ChatContext, TokenizerRenderer, is_chat
from lm_eval_aft.core.config import BUDGETS, AFTConfig
from lm_eval_aft.core.cuts import Cuts, total_cuts
from lm_eval_aft.core.engine import Engine, HostArgs, Score, Scorer
from lm_eval_aft.core.errors import ConfigError, EngineError, ShardDone
from lm_eval_aft.core.log import log, warn_once
from lm_eval_aft.core.names import joined_name
from lm_eval_aft.core.program import prepare_program
from lm_eval_aft.core.prompts import Template, chat_of_draft
from lm_eval_aft.core.records import Chat, Question, Trace
from lm_eval_aft.core.secrets import hide
from lm_eval_aft.core.stops import stoppable
from lm_eval_aft.core.usage import TokenCosts, Usage, total
from lm_eval_aft.engines.registry import load_engine
from lm_eval_aft.inference.answers import AnswerFinder
from lm_eval_aft.inference.budget import Budget
from lm_eval_aft.inference.dialogue import Dialogue, is_empty
from lm_eval_aft.inference.equal_drafts import EqualDrafts, equal_drafts
from lm_eval_aft.inference.forward_passes import PassesByLayer, passes_by_layer
from lm_eval_aft.inference.given_drafts import GivenDrafts
from lm_eval_aft.inference.host_call import host_prompting, host_request_kinds, host_seed, host_template_name
from lm_eval_aft.inference.models import Model, ModelPlan, Models, prompt_args
from lm_eval_aft.inference.multiple_choice import ChoiceQuestion, plain_cost, questions_with_choices, score_questions
from lm_eval_aft.inference.requests import announce, read_dialogues
from lm_eval_aft.inference.schedule import propose_and_aggregate
from lm_eval_aft.inference.selection import Selector, load_selector
from lm_eval_aft.inference.shown_prompts import given_args, show_prompts
from lm_eval_aft.inference.task_grading import RunGrader
from lm_eval_aft.inference.written_choice import names_no_text
from lm_eval_aft.storage.draft_store import Store, kept_in, open_store
from lm_eval_aft.storage.run_state import PREFIX, RunRecorder, RunState, recording
from lm_eval_aft.storage.traces import file_stem, make_folder, write_traces


@dataclass(frozen=True, slots=True)
class _Totals:
    """The cost of all requests so far, and counts of some kinds of requests."""

    usage: Usage = field(default_factory=Usage)
    computed_usage: Usage = field(default_factory=Usage)
    # Parts of usage with the names of their models, if a run has several models.
    usage_by_model: tuple[tuple[str, Usage], ...] = ()
    bare_prompts_wrapped: int = 0
    scored_without_aggregation: int = 0
    scored_after_drafts: int = 0
    cut_drafts: Cuts = field(default_factory=Cuts)
    equal_drafts: EqualDrafts = field(default_factory=EqualDrafts)
    texts: int = 0
    texts_without_answer: int = 0
    unfinished_thoughts: int = 0
    graded_texts: int = 0
    answers: int = 0
    stopped_early: int = 0
    choices_of_no_draft: int = 0
    passes: PassesByLayer = field(default_factory=PassesByLayer)

    def __add__(self, other: _Totals) -> _Totals:
        return _Totals(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(_Totals)))


# The score of a choice whose question is in another shard. Nothing reads it.
UNSCORED: Score = (0.0, False)
DATE_ADVICE = (
    "The chat template writes today's date into every prompt. Prompts of tomorrow differ, so nothing of today is "
    'found in the draft store. Pin the date with chat_template_args={{"strftime_now":"{today}"}} in --model_args.'
)


class AFTLM(LM):
    """Evaluates a checkpoint as a propose-and-aggregate model on any generate_until task."""

    # Tasks with dialogues check this. Other models of lm-eval answer one turn only.
    answers_turns = True

    def __init__(
        self,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        device: str | None = None,
        **model_args: Any,
    ) -> None:
        """Check all arguments, then load the engine.

        Args:
            batch_size: From lm-eval. Number of distinct prompts in a batch of the hf engine.
            max_batch_size: From lm-eval.
            device: From lm-eval.
            **model_args: The fields of ``AFTConfig``, and arguments of the engine.

        Raises:
            AFTError: If an argument is wrong, or something cannot be loaded.
        """
        prepare_program()
        with stoppable():
            self._load(HostArgs(batch_size, max_batch_size, device or "cuda:0"), model_args)

    def _load(self, host: HostArgs, model_args: dict[str, Any]) -> None:
        if model_args.get("seed") is None and (seed := host_seed()) is not None:
            model_args["seed"] = seed
            log.info("Generations are seeded with %d of --seed. Give seed= in --model_args for another.", seed)
        config, engine_args = AFTConfig.split(model_args)
        plan = ModelPlan.of(config, engine_args, host)
        if config.record:
            make_folder(Path(config.record))
        store = open_store(config.cache, config.record and Path(config.record, "drafts.sqlite"))
        given_drafts = GivenDrafts.read(config.drafts_from) if config.drafts_from else None
        selector = load_selector(config, store, host)
        self._assemble(plan.load(load_engine), config, store, selector, given_drafts)

    @classmethod
    def around(
        cls,
        engine: Engine,
        config: AFTConfig,
        template: Template,
        store: Store,
        name: str,
        selector: Selector | None = None,
        engine_args: Mapping[str, Any] | None = None,
    ) -> AFTLM:
        """Make a model from a loaded engine. A sweep makes one for each of its points.

        Args:
            engine: A loaded engine.
            config: The configuration of this model.
            template: The prompts.
            store: Holds finished generations.
            name: The model's name in the results file.
            selector: Selects the answers, if the strategy selects.
            engine_args: The arguments with which the engine was loaded.
        """
        prompting = prompt_args(engine_args or {})
        models = Models(Model(name, engine, template, config.engine, prompting, config.token_costs))
        model = cls.__new__(cls)
        model._assemble(models, config, store, selector)
        return model

    def _assemble(
        self,
        models: Models,
        config: AFTConfig,
        store: Store,
        selector: Selector | None = None,
        given_drafts: GivenDrafts | None = None,
    ) -> None:
        super().__init__()
        _refuse_no_confidence(models, config)
        self.models, self.config, self.store = models, config, store
        self.name, self.engine, self.template = models.main.name, models.main.engine, models.main.template
        self._totals, self._reported = _Totals(), False
        self._selector, self._given_drafts = selector, given_drafts
        self._prompting: dict[str, Any] = {}
        self._template_name: str | None = None
        # The kinds of requests that lm-eval has not sent yet.
        self._waiting: frozenset[str] = frozenset()
        self._budget = self._new_budget()
        if template_name := host_template_name():
            self._use_chat_template(template_name)
        else:
            self._check_prompts()

    @property
    def usage(self) -> Usage:
        """Logical cost of the run. lm-eval's results end a run; the next request begins another."""
        return self._totals.usage

    @property
    def computed_usage(self) -> Usage:
        """The part of ``usage`` that this run computed."""
        return self._totals.computed_usage

    # ------------------------------------------------------------------ the interface of lm-eval

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Answer each request with k drafts and ``layers`` aggregation layers."""
        self._begin("generate_until")
        dialogues = read_dialogues(requests, self.config, self.models.reader.engine.renderer)
        # lm-eval repeats requests as padding, so that all processes of a run have equally many.
        distinct = [dialogue for dialogue in dict.fromkeys(dialogues) if self._answers(dialogue.opening)]
        questions = [dialogue.opening for dialogue in distinct]
        turns = sum(dialogue.turns for dialogue in distinct)
        announce(questions, self.config, turns, self.world_size)
        for model in (self.models.main, *self.models.further):
            warn_elsewhere(model.name, {question.task for question in questions})
        grader = RunGrader.of(requests, dialogues)
        with stoppable(self._kept), self._recording(questions, turns) as recorder:
            traces = self._answer(distinct, grader, recorder, quiet=disable_tqdm or self.rank != 0)
        self._count(traces)
        self._show_prompts(requests)
        self._end_shard()
        return [dialogue.response if dialogue.traces else "" for dialogue in dialogues]

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[Score]:
        """Score continuations with the engine's own model, directly or after drafts (``mcq``)."""
        self._begin("loglikelihood")
        questions = questions_with_choices(requests, self.config) if self.config.mcq == "drafts" else []
        questions = [each for each in questions if self._answers(each.question)]
        scores, traces = self._score_after_drafts(questions, quiet=disable_tqdm or self.rank != 0)
        self._show_prompts([requests[position] for position in scores])
        scored = range(0) if self.config.shard else range(len(requests))
        rest = [position for position in scored if position not in scores]
        usage = Usage()
        if rest or not requests:
            scorer = self._scorer("loglikelihood", len(rest))
            rendered = _rendered([requests[position] for position in rest], scorer)
            usage = plain_cost(rendered, scorer, self.engine.shape)
            with stoppable(self._kept):
                scores |= zip(rest, scorer.loglikelihood(rendered, disable_tqdm=disable_tqdm), strict=True)
        self._count(traces, usage, len(questions), len(rest))
        self._end_shard()
        return [scores.get(position, UNSCORED) for position in range(len(requests))]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float] | list[Score]:
        """Score whole texts with the engine's own model. Nothing is aggregated."""
        self._begin("loglikelihood_rolling")
        scorer = self._scorer("loglikelihood_rolling", len(requests))
        with stoppable(self._kept):
            answers = scorer.loglikelihood_rolling(requests, disable_tqdm=disable_tqdm)
        self._count([], plain=len(requests))
        return answers

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Encode the messages. The schedule renders them once it knows the whole prompt."""
        if name := host_template_name():
            self._use_chat_template(name)
        return ChatContext.of(chat_history, add_generation_prompt)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The tokenizer's chat template, for lm-eval's log. ``chat_template`` names one of several templates.

        Raises:
            ConfigError: If there is none of this name.
        """
        self._use_chat_template(chat_template if isinstance(chat_template, str) else None)
        template = (self.tokenizer.chat_template if self.tokenizer is not None else None) or ""
        return str(template.get(self._template_name or "default", "") if isinstance(template, dict) else template)

    @property
    def tokenizer(self) -> Any:
        """The engine's tokenizer, or None if it holds none."""
        return self.engine.renderer.tokenizer

    @property
    def tokenizer_name(self) -> str:
        """Part of the name of lm-eval's request cache, which must not serve the contexts of other models."""
        name = self.config.engine if self.tokenizer is None else self.tokenizer.name_or_path
        return "aft-" + str(name).replace("/", "__")

    @property
    def max_length(self) -> int:
        """Context length in tokens."""
        return self.engine.max_length

    @property
    def device(self) -> Any:
        """The device of the engine's model."""
        return self.engine.device

    @property
    def rank(self) -> int:
        """Index of this process."""
        return self.engine.processes.rank

    @property
    def world_size(self) -> int:
        """Number of processes that share the requests."""
        return self.engine.processes.world_size

    def all_gather(self, tensor: Any) -> Any:
        """See ``LM.all_gather``."""
        return self.engine.processes.all_gather(tensor)

    def gather_object(self, obj: Any, dst: int = 0) -> Any:
        """See ``LM.gather_object``."""
        return self.engine.processes.gather_object(obj, dst)

    def barrier(self) -> None:
        """See ``LM.barrier``."""
        self.engine.processes.barrier()

    def set_cache_hook(self, cache_hook: CacheHook) -> None:
        """Refuse lm-eval's response cache.

        Raises:
            ConfigError: Always. Only ``--use_cache`` calls this.
        """
        raise ConfigError(
            "--use_cache does not work with --model aft: it keys on the prompt alone, so k=5 would be answered with "
            "the text of k=1; use --model_args cache=FILE, which keeps every draft."
        )

    def get_model_info(self) -> dict[str, Any]:
        """The facts that lm-eval writes into the results file under ``config``.

        This ends a run. The costs and counts of the next request are those of another run.
        """
        shape, costs, self._reported = self.engine.shape, self.models.main.token_costs, True
        shapes = [engine.shape for engine in self.models.engines]
        ours = {
            "version": __version__,
            **self._settings(),
            "generations_per_question": self.config.generations,
            "usage": _usage_row(self.usage, all(shapes)) | self._cost_of_run(self.usage),
            "spent": _usage_row(self.computed_usage, all(shapes)) | self._cost_of_run(self.computed_usage),
            "bare_prompts_wrapped": self._totals.bare_prompts_wrapped,
            "scored_without_aggregation": self._totals.scored_without_aggregation,
            "scored_after_drafts": self._totals.scored_after_drafts,
            "cut_drafts": asdict(self._totals.cut_drafts),
            "equal_drafts": asdict(self._totals.equal_drafts),
            "texts_without_answer": self._totals.texts_without_answer,
            "grade_drafts": self.config.grade_drafts,
            "graded_texts": self._totals.graded_texts,
            "answers": self._totals.answers,
            "stopped_early": self._totals.stopped_early,
            "choices_of_no_draft": self._totals.choices_of_no_draft,
            **({"price_in": costs.prompt, "price_out": costs.generated} if costs else {}),
            "model_shape": asdict(shape) if shape else None,
            "engine_info": dict(self.engine.info),
            "look_ahead": self._totals.passes.rows,
        }
        return {**self.engine.model_info(), "aft": {**ours, **self._several_models_info()}}

    def _several_models_info(self) -> dict[str, Any]:
        """The cost of each model and facts about those besides the main model; empty for an ordinary run."""
        if not self.models.further:
            return {}
        models = {model.name: model for model in (self.models.main, *self.models.further)}
        rows = {
            name: _usage_row(usage, models[name].engine.shape is not None) | _cost_row(usage, models[name].token_costs)
            for name, usage in self._usages_by_model().items()
        }
        return {"usage_by_model": rows, "models": [model.info for model in self.models.further]}

    def _usages_by_model(self) -> dict[str, Usage]:
        """The cost of each model so far; empty for an ordinary run."""
        usages: dict[str, Usage] = {}
        for name, usage in self._totals.usage_by_model:
            usages[name] = usages.get(name, Usage()) + usage
        return usages

    def _cost_of_run(self, usage: Usage) -> dict[str, float]:
        """What a usage of the run costs in money; empty if it is not known.

        The cost of several models is known for all generations of the run together only.
        """
        if not self.models.further:
            return _cost_row(usage, self.models.main.token_costs)
        costs = {model.name: model.token_costs for model in (self.models.main, *self.models.further)}
        parts = [_cost_row(each, costs[name]) for name, each in self._usages_by_model().items()]
        known = usage == self.usage and parts and all(parts)
        return {"cost": sum(part["cost"] for part in parts)} if known else {}

    # ------------------------------------------------------------------ helpers

    def _use_chat_template(self, name: str | None) -> None:
        """Render with the chat template that ``--apply_chat_template NAME`` names; None is the default one."""
        if name != self._template_name:
            self.models.use_chat_template(name)
            self._template_name = name
            self._check_prompts()

    def _check_prompts(self) -> None:
        """Refuse templates that drop the question or the drafts, and warn of one that writes today's date."""
        self.models.check_prompts(reads=self.config.layers > self.config.selects)
        renderers = [engine.renderer for engine in self.models.engines]
        if any(isinstance(renderer, TokenizerRenderer) and renderer.prints_date for renderer in renderers):
            warn_once(DATE_ADVICE.format(today=f"{date.today():%d %b %Y}"))

    def _score_after_drafts(
        self, choice_questions: Sequence[ChoiceQuestion], quiet: bool
    ) -> tuple[dict[int, Score], list[Trace]]:
        """Draft each question once, score its choices under the aggregation prompt, and write the traces."""
        if not choice_questions:
            return {}, []
        scorer = self._scorer("loglikelihood", 0)
        questions = [choice_question.question for choice_question in choice_questions]
        announce(questions, self.config, len(questions), self.world_size)
        with stoppable(self._kept), self._recording(questions, len(questions)) as recorder:
            traces = self._propose(questions, recorder, quiet, answer=False)
            scores, traces = score_questions(
                choice_questions, traces, self.engine, scorer, self.template, self.config, quiet=quiet
            )
            self._write_traces(traces, recorder)
        return scores, traces

    def _kept(self) -> str:
        return kept_in(self.store)

    def _new_budget(self) -> Budget:
        return Budget(self.config.max_generated_tokens, self.config.max_cost, self.world_size)

    def _begin(self, kind: str) -> None:
        """Read how lm-eval calls, and refuse requests that a shard cannot answer before any text is generated.

        Raises:
            ConfigError: If the run is of a shard and has such requests.
        """
        self._prompting = host_prompting()
        if self._reported:
            self._budget = self._new_budget()
        self._waiting = (self._waiting or host_request_kinds()) - {kind}
        answered = {"generate_until"} if self.config.mcq == "plain" else {"generate_until", "loglikelihood"}
        if self.config.shard and (other := sorted({kind, *self._waiting} - answered)):
            raise ConfigError(
                f"shard={self.config.shard} splits what is generated, and the tasks have {' and '.join(other)} "
                "requests, which generate nothing: run those tasks without shard=, or multiple-choice tasks with "
                "mcq=drafts."
            )

    def _answers(self, question: Question) -> bool:
        """Whether this run answers a question; with ``shard`` it answers a part of them."""
        return self.config.shard is None or self.config.shard.holds(question.doc_hash)

    def _end_shard(self) -> None:
        """End the run of a shard when all kinds of requests are answered, before lm-eval scores a part of the answers.

        Raises:
            ShardDone: If the run is of a shard. Its text says what is kept.
        """
        if self.config.shard is None or self._waiting:
            return
        if self.rank:
            raise SystemExit(0)
        raise ShardDone(
            f"Shard {self.config.shard} is done and has no score: {self._totals.answers:,} answers, "
            f"{kept_in(self.store, '')}. When all shards are done, join their stores with aft merge, and give the same "
            "command without shard= and with cache= the joined store."
        )

    def _propose(
        self,
        questions: Sequence[Question],
        recorder: RunRecorder,
        quiet: bool,
        *,
        selector: Selector | None = None,
        finder: AnswerFinder | None = None,
        answer: bool = True,
    ) -> list[Trace]:
        return propose_and_aggregate(
            questions,
            self.engine,
            self.template,
            self.config,
            self.store,
            models=self.models,
            selector=selector,
            finder=finder,
            given_drafts=self._given_drafts,
            recorder=recorder,
            budget=self._budget,
            answer=answer,
            quiet=quiet,
        )

    def _recording(self, questions: Sequence[Question], turns: int) -> AbstractContextManager[RunRecorder]:
        """Keep the state of the run beside its traces. ``turns`` counts the questions with all their later turns."""
        tasks = Counter(question.task for question in questions)
        state = RunState(
            model=hide(joined_name(self.name, self.models.settings)),
            engine=self.config.engine,
            strategy=self.config.strategy,
            questions={hide(task): count for task, count in tasks.items()},
            k=self.config.k,
            layers=self.config.layers,
            generations=turns * (self.config.generations - self.config.k * (self._given_drafts is not None)),
            rank=self.rank,
            processes=self.world_size,
        )
        if not self.config.record or not questions:
            return recording(state, None)
        task = next(iter(tasks)) if len(tasks) == 1 else f"{len(tasks)}_tasks"
        name = PREFIX + file_stem(task, self._settings(), questions) + self._process_suffix()
        return recording(state, Path(self.config.record, f"{name}.json"))

    def _process_suffix(self) -> str:
        """What tells the files of several processes apart."""
        return f"_rank{self.rank}of{self.world_size}" if self.world_size > 1 else ""

    def _write_traces(self, traces: Sequence[Trace], recorder: RunRecorder) -> None:
        if self.config.record:
            recorder.add_traces(write_traces(self.config.record, self._settings(), traces, self._process_suffix()))

    def _answer(
        self, dialogues: Sequence[Dialogue], grader: RunGrader, recorder: RunRecorder, quiet: bool
    ) -> list[Trace]:
        """Answer the current turn of every dialogue until none is left. Grade and write the traces and return them."""
        selector = self._selector.for_run(grader) if self._selector else None
        finder = AnswerFinder(self.config.vote_regex, grader)
        while pending := [(dialogue, dialogue.question) for dialogue in dialogues if dialogue.question]:
            traces = self._propose(
                [question for _, question in pending], recorder, quiet, selector=selector, finder=finder
            )
            for (dialogue, _), trace in zip(pending, traces, strict=True):
                dialogue.add(trace, [engine.renderer for engine in self.models.engines])
        answered = [trace for dialogue in dialogues for trace in dialogue.traces]
        if self.config.record and self.config.grade_drafts:
            answered = grader.grade(answered)
            recorder.add_grades(answered)
        self._write_traces(answered, recorder)
        return answered

    def _count(
        self, traces: Sequence[Trace], scored: Usage | None = None, choice_questions: int = 0, plain: int = 0
    ) -> None:
        """Add the cost of requests to the totals. Rank 0 writes the results, so it gets the counts of all processes."""
        empty = [draft for trace in traces for draft in trace.drafts if is_empty(trace.question, draft)]
        counts = _Totals(
            usage=total([trace.usage for trace in traces]) + (scored or Usage()),
            usage_by_model=self._usage_by_model(traces, scored),
            computed_usage=total([trace.computed_usage for trace in traces]) + (scored or Usage()),
            bare_prompts_wrapped=sum(trace.question.chat.wrapped for trace in traces),
            scored_after_drafts=choice_questions,
            scored_without_aggregation=plain,
            cut_drafts=total_cuts(traces),
            equal_drafts=equal_drafts((trace.question, trace.layer(0)) for trace in traces),
            texts=sum(len(trace.drafts) for trace in traces),
            texts_without_answer=len(empty),
            unfinished_thoughts=sum(bool(draft.completion.text.strip()) for draft in empty),
            graded_texts=sum(len(trace.grades) for trace in traces),
            answers=len(traces),
            stopped_early=sum(len(trace.layer(0)) < self.config.k for trace in traces) if self.config.stop_when else 0,
            choices_of_no_draft=sum(map(names_no_text, traces)),
            passes=passes_by_layer(draft for trace in traces for draft in trace.drafts),
        )
        together = sum(self.gather_object(counts) or [counts], _Totals())
        self._totals = together if self._reported else self._totals + together
        self._reported = False
        if self.rank == 0:
            _warn(together, self.models.reader.engine.max_length)

    def _usage_by_model(self, traces: Sequence[Trace], scored: Usage | None) -> tuple[tuple[str, Usage], ...]:
        """The cost of requests by the name of the model. The main model scores."""
        parts: dict[str, list[Usage]] = {}
        for name, usage in chain.from_iterable(trace.usage_by_model.items() for trace in traces):
            parts.setdefault(name, []).append(usage)
        if scored and self.models.further:
            parts.setdefault(self.name, []).append(scored)
        return tuple((name, total(usages)) for name, usages in parts.items())

    def _show_prompts(self, requests: Sequence[Instance]) -> None:
        """Let lm-eval's sample logs show the prompts of drafts, or those of answers if there are no layers."""
        first, final = self.models.writer(0, 0, self.config.k), not self.config.layers
        renderer = first.engine.renderer
        show_prompts(requests, lambda chat: renderer.render(chat_of_draft(first.template, chat, final=final)))

    def _scorer(self, kind: str, count: int) -> Scorer:
        if self.engine.scorer is None:
            raise EngineError(
                f"engine={self.config.engine} cannot answer {kind} requests: use engine=hf or a generate_until task."
            )
        if count:
            warn_once(f"{kind} requests are scored by the model itself: nothing is aggregated.")
        return self.engine.scorer

    def _settings(self) -> dict[str, Any]:
        # These change no text, so runs that differ in them alone have equal traces.
        unsaid = ("record", "cache", "grade_drafts", "max_generations", "shard", *BUDGETS, "aggregator", "proposers")
        config = {name: value for name, value in self.config.to_dict().items() if name not in unsaid}
        template = {"name": self.template.name, "sha256": self.template.digest}
        config["drafts_from"] = self._given_drafts.source if self._given_drafts else None
        # What else changes texts. An ordinary run has none of it, so its traces keep the names of older versions.
        more = {"engine_args": dict(self.models.main.engine_args), "prompting": self._prompting, **self.models.settings}
        config |= {name: value for name, value in more.items() if value}
        return {**config, "template": template, "model": self.name, "fingerprint": self.engine.fingerprint}


def _refuse_no_confidence(models: Models, config: AFTConfig) -> None:
    """Refuse an engine that gives no log-probabilities if texts must have their confidence.

    Raises:
        ConfigError: If there is one.
    """
    needed_by = f"confidence={config.confidence}" if config.confidence else f"strategy={config.strategy}"
    for model in (models.main, *models.further) if config.keeps_confidence else ():
        if model.engine.no_confidence:
            raise ConfigError(
                f"{needed_by} needs the log-probabilities of texts, and the engine of {model.name} gives none: "
                f"{model.engine.no_confidence}."
            )


def _rendered(requests: Sequence[Instance], scorer: Scorer) -> list[Instance]:
    """The requests, with each chat context as the text that ``--model hf`` would score. The sample logs show it too."""

    def render(chat: Chat) -> str:
        messages = [message.to_dict() for message in chat.with_prefill]
        return scorer.apply_chat_template(messages, add_generation_prompt=not chat.prefill)

    show_prompts([request for request in requests if is_chat(given_args(request)[0])], render)
    return [replace(request, arguments=(request.args[0], *given_args(request)[1:])) for request in requests]


def _warn(totals: _Totals, max_length: int) -> None:
    """Warn of drafts that were cut to fit the context, and of texts that ended inside their thought."""
    if cut := totals.cut_drafts.sentence():
        warn_once(
            f"With max_length={max_length} {cut}: lower k or draft_max_tokens, or use a model with a longer context."
        )
    if totals.unfinished_thoughts:
        warn_once(
            f"{totals.unfinished_thoughts} of {totals.texts} texts end inside their thought and hold no answer: raise "
            "draft_max_tokens or max_gen_toks."
        )


def _cost_row(usage: Usage, costs: TokenCosts | None) -> dict[str, float]:
    """What a usage costs in money, for the results file; empty if that is unknown."""
    return {"cost": costs.of(usage.prompt_tokens, usage.generated_tokens)} if costs else {}


def _usage_row(usage: Usage, shape_known: bool) -> dict[str, Any]:
    """The usage for the results file. FLOPs are None if the shape of a model is unknown."""
    row: dict[str, Any] = {**asdict(usage), "shared_prompt_tokens": usage.shared_prompt_tokens}
    return row if shape_known else {**row, "flops": None}
