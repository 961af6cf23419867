"""``--model aft``: the adapter between lm-eval and the schedule.

Decodes lm-eval's requests into questions, asks the schedule, writes traces, cuts answers at the task's stop strings,
and reports what it cost. Knows nothing of how texts are generated. Instantiated by lm-eval.
Over 200 lines because lm-eval's interface is that wide.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM, CacheHook

from lm_eval_aft import __version__
from lm_eval_aft.bundled import choose_checkpoint, warn_elsewhere
from lm_eval_aft.core.chat import ChatContext, decode
from lm_eval_aft.core.config import AFTConfig
from lm_eval_aft.core.engine import Engine, HostArgs, Scorer
from lm_eval_aft.core.errors import ConfigError, EngineError
from lm_eval_aft.core.log import warn_once
from lm_eval_aft.core.prompts import Template
from lm_eval_aft.core.records import Question, Trace
from lm_eval_aft.core.usage import Usage, total
from lm_eval_aft.engines.registry import load_engine
from lm_eval_aft.inference.checkpoint import choose_template
from lm_eval_aft.inference.dialogue import Dialogue
from lm_eval_aft.inference.given_drafts import GivenDrafts
from lm_eval_aft.inference.interrupts import stoppable
from lm_eval_aft.inference.multiple_choice import ChoiceQuestion, plain_cost, questions_with_choices, score_questions
from lm_eval_aft.inference.requests import announce, read_dialogues
from lm_eval_aft.inference.schedule import propose_and_aggregate
from lm_eval_aft.inference.selection import Selector, load_selector
from lm_eval_aft.storage.draft_store import Store, open_store
from lm_eval_aft.storage.traces import make_folder, write_traces


@dataclass(frozen=True, slots=True)
class _Totals:
    """What all requests so far cost, and how many were of which kind."""

    usage: Usage = field(default_factory=Usage)
    computed_usage: Usage = field(default_factory=Usage)
    bare_prompts_wrapped: int = 0
    scored_without_aggregation: int = 0
    scored_after_drafts: int = 0

    def __add__(self, other: _Totals) -> _Totals:
        return _Totals(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(_Totals)))


class AFTLM(LM):
    """Evaluates a checkpoint as a propose-and-aggregate model on any generate_until task."""

    answers_turns = True  # tasks with a dialogue look for it: other models of lm-eval answer one turn only

    def __init__(
        self,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        device: str | None = None,
        **model_args: Any,
    ) -> None:
        """Check all arguments, then load the engine.

        Args:
            batch_size: lm-eval's; distinct prompts a batch may hold in the hf engine.
            max_batch_size: lm-eval's.
            device: lm-eval's.
            **model_args: Ours (see ``AFTConfig``) and the engine's.

        Raises:
            AFTError: One sentence on what is wrong and what to do.
        """
        config, engine_args = AFTConfig.split(model_args)
        engine_args, name = choose_checkpoint(config.engine, engine_args)
        template = choose_template(config, engine_args)
        if config.record:
            make_folder(Path(config.record))
        store = open_store(config.cache, config.record and Path(config.record, "drafts.sqlite"))
        host = HostArgs(batch_size, max_batch_size, device or "cuda:0")
        given_drafts = GivenDrafts.read(config.drafts_from) if config.drafts_from else None
        selector = load_selector(config, store, host)
        engine = load_engine(config.engine, engine_args, host)
        self._assemble(engine, config, template, store, name, selector, given_drafts)

    @classmethod
    def around(cls, engine: Engine, config: AFTConfig, template: Template, store: Store, name: str) -> AFTLM:
        """A model around an engine that is loaded already, as a sweep needs one per point.

        Args:
            engine: Loaded engine.
            config: k, layers and sampling of this model.
            template: Its prompts.
            store: Where generations are looked up and kept.
            name: What the results file calls the model.
        """
        model = cls.__new__(cls)
        model._assemble(engine, config, template, store, name)
        return model

    def _assemble(
        self,
        engine: Engine,
        config: AFTConfig,
        template: Template,
        store: Store,
        name: str,
        selector: Selector | None = None,
        given_drafts: GivenDrafts | None = None,
    ) -> None:
        super().__init__()
        self.engine, self.config, self.template, self.store = engine, config, template, store
        self.name = name  # what the results file calls the model
        self._totals = _Totals()
        self._selector, self._given_drafts = selector, given_drafts

    @property
    def usage(self) -> Usage:
        """Logical cost of everything answered so far."""
        return self._totals.usage

    @property
    def computed_usage(self) -> Usage:
        """The part of ``usage`` that this run computed."""
        return self._totals.computed_usage

    # ------------------------------------------------------------------ what lm-eval asks

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Answer each request with k drafts and ``layers`` aggregation passes."""
        dialogues = read_dialogues(requests, self.config, self.engine.renderer)
        distinct = list(dict.fromkeys(dialogues))  # lm-eval repeats requests to pad the processes of a parallel run
        questions = [dialogue.opening for dialogue in distinct]
        announce(questions, self.config, self.world_size)
        warn_elsewhere(self.name, {question.task for question in questions})
        with stoppable(self.store):
            traces = self._answer(distinct, quiet=disable_tqdm or self.rank != 0)
        self._count(traces)
        return [dialogue.response for dialogue in dialogues]

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Score continuations with the engine's own model, at once or after drafts (``mcq``)."""
        asked = questions_with_choices(requests, self.config) if self.config.mcq == "drafts" else []
        scores, traces = self._score_after_drafts(asked, quiet=disable_tqdm or self.rank != 0) if asked else ({}, [])
        rest = [position for position in range(len(requests)) if position not in scores]
        usage = Usage()
        if rest or not requests:
            scorer = self._scorer("loglikelihood", len(rest))
            rendered = _rendered([requests[position] for position in rest], scorer)
            usage = plain_cost(rendered, scorer, self.engine.shape)
            scores |= zip(rest, scorer.loglikelihood(rendered, disable_tqdm=disable_tqdm), strict=True)
        self._count(traces, usage, len(asked), len(rest))
        return [scores[position] for position in range(len(requests))]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Score whole texts with the engine's own model; nothing is aggregated."""
        scorer = self._scorer("loglikelihood_rolling", len(requests))
        answers = scorer.loglikelihood_rolling(requests, disable_tqdm=disable_tqdm)
        self._count([], plain=len(requests))
        return answers

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Keep the messages: they are rendered when the schedule knows what else belongs in the prompt."""
        return ChatContext.of(chat_history, add_generation_prompt)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The tokenizer's template, for lm-eval's log; of several the one with the name that was asked for."""
        found = (self.tokenizer.chat_template if self.tokenizer is not None else None) or ""
        if isinstance(found, dict):
            return str(found.get(chat_template if isinstance(chat_template, str) else "default", ""))
        return str(found)

    @property
    def tokenizer(self) -> Any:
        """The engine's tokenizer, or None if it holds none."""
        return self.engine.renderer.tokenizer

    @property
    def tokenizer_name(self) -> str:
        """Part of the name of lm-eval's request cache; other models' contexts must not be found there."""
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
            ConfigError: Always; only ``--use_cache`` calls this.
        """
        raise ConfigError(
            "--use_cache does not work with --model aft: it keys on the prompt alone, so k=5 would be answered with "
            "the text of k=1; use --model_args cache=FILE, which keeps every draft."
        )

    def get_model_info(self) -> dict[str, Any]:
        """What lm-eval merges into the results file under ``config``."""
        shape = self.engine.shape
        ours = {
            "version": __version__,
            **self._settings(),
            "generations_per_question": self.config.generations,
            "usage": _readable(self.usage, shape is not None),
            "spent": _readable(self.computed_usage, shape is not None),
            "bare_prompts_wrapped": self._totals.bare_prompts_wrapped,
            "scored_without_aggregation": self._totals.scored_without_aggregation,
            "scored_after_drafts": self._totals.scored_after_drafts,
            "model_shape": asdict(shape) if shape else None,
            "engine_info": dict(self.engine.info),
        }
        return {**self.engine.model_info(), "aft": ours}

    # ------------------------------------------------------------------ helpers

    def _score_after_drafts(
        self, asked: Sequence[ChoiceQuestion], quiet: bool
    ) -> tuple[dict[int, tuple[float, bool]], list[Trace]]:
        """Draft each question once and score its choices under the aggregation prompt; write the traces."""
        scorer = self._scorer("loglikelihood", 0)
        questions = [quiz.question for quiz in asked]
        announce(questions, self.config, self.world_size)
        with stoppable(self.store):
            traces = self._propose(questions, quiet, answer=False)
            scores, done = score_questions(asked, traces, self.engine, scorer, self.template, self.config, quiet=quiet)
        self._write_traces(done)
        return scores, done

    def _propose(self, questions: Sequence[Question], quiet: bool, *, answer: bool = True) -> list[Trace]:
        return propose_and_aggregate(
            questions,
            self.engine,
            self.template,
            self.config,
            self.store,
            selector=self._selector,
            given_drafts=self._given_drafts,
            answer=answer,
            quiet=quiet,
        )

    def _write_traces(self, traces: Sequence[Trace]) -> None:
        if self.config.record:
            suffix = f"_rank{self.rank}of{self.world_size}" if self.world_size > 1 else ""
            write_traces(self.config.record, self._settings(), traces, suffix)

    def _answer(self, dialogues: Sequence[Dialogue], quiet: bool) -> list[Trace]:
        """Answer the current turn of every dialogue until none is left. Write the traces and return them."""
        while pending := [(dialogue, dialogue.question) for dialogue in dialogues if dialogue.question]:
            traces = self._propose([question for _, question in pending], quiet)
            for (dialogue, _), trace in zip(pending, traces, strict=True):
                dialogue.add(trace, self.engine.renderer)
        done = [trace for dialogue in dialogues for trace in dialogue.traces]
        self._write_traces(done)
        return done

    def _count(
        self, traces: Sequence[Trace], scored: Usage | None = None, choice_questions: int = 0, plain: int = 0
    ) -> None:
        """Add what was run to the totals. Rank 0 writes the results, so it gets the counts of all processes."""
        counts = _Totals(
            usage=total([trace.usage for trace in traces]) + (scored or Usage()),
            computed_usage=total([trace.computed_usage for trace in traces]) + (scored or Usage()),
            bare_prompts_wrapped=sum(trace.question.chat.wrapped for trace in traces),
            scored_after_drafts=choice_questions,
            scored_without_aggregation=plain,
        )
        for gathered in self.gather_object(counts) or [counts]:
            self._totals += gathered

    def _scorer(self, kind: str, count: int) -> Scorer:
        if self.engine.scorer is None:
            raise EngineError(
                f"engine={self.config.engine} cannot answer {kind} requests: use engine=hf or a generate_until task."
            )
        if count:
            warn_once(f"{kind} requests are scored by the model itself: nothing is aggregated.")
        return self.engine.scorer

    def _settings(self) -> dict[str, Any]:
        config = {name: value for name, value in self.config.to_dict().items() if name not in ("record", "cache")}
        template = {"name": self.template.name, "sha256": self.template.digest}
        config["drafts_from"] = self._given_drafts.source if self._given_drafts else None
        return {**config, "template": template, "model": self.name, "fingerprint": self.engine.fingerprint}


def _rendered(requests: Sequence[Instance], scorer: Scorer) -> list[Instance]:
    """The requests with each chat context as the text that --model hf would score."""
    rendered = []
    for request in requests:
        context, *others = request.args
        if isinstance(context, str) and not (chat := decode(context)).wrapped:
            messages = [message.to_dict() for message in chat.with_prefill]
            context = scorer.apply_chat_template(messages, add_generation_prompt=not chat.prefill)
        rendered.append(replace(request, arguments=(context, *others)))
    return rendered


def _readable(usage: Usage, counted: bool) -> dict[str, int | None]:
    row: dict[str, int | None] = {**asdict(usage), "shared_prompt_tokens": usage.shared_prompt_tokens}
    return row if counted else {**row, "flops": None}
