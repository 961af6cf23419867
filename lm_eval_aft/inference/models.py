"""The models of a run: which of them writes which text, and how they are loaded.

    main model     ``pretrained=`` and the other arguments of the engine; it writes every text of an ordinary run
    aggregator     ``aggregator={...}``; it writes the layers after the drafts in place of the main model
    proposers      ``proposers=[{...},{...}]``; each writes an equal part of the drafts in place of the main model

Each model has its own engine, context length, tokenizer, chat template and prompt template. Texts go from one model to
the next as texts without their thoughts. The store key of a text holds the fingerprint of the engine that wrote it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from lm_eval_aft.bundled import choose_checkpoint
from lm_eval_aft.core.chat import TokenizerRenderer
from lm_eval_aft.core.config import AFTConfig
from lm_eval_aft.core.engine import Engine, HostArgs
from lm_eval_aft.core.errors import ConfigError, EngineError, PromptTooLong, TemplateError
from lm_eval_aft.core.prompts import DEFAULT_NAME, Template, check_templates
from lm_eval_aft.core.records import Chat, Message
from lm_eval_aft.core.secrets import public
from lm_eval_aft.core.usage import TokenCosts
from lm_eval_aft.inference.checkpoint import choose_template

LoadEngine = Callable[[str, Mapping[str, Any], HostArgs], Engine]
# Arguments of engines that change prompts and are not in the engine's fingerprint.
PROMPT_ARGS = frozenset(
    {
        *("max_length", "max_model_len", "tokenizer", "tokenizer_mode", "tokenizer_revision", "use_fast_tokenizer"),
        *("add_bos_token", "prefix_token_id", "chat_template", "chat_template_args", "enable_thinking", "system_role"),
    }
)
# These engines load a checkpoint, which a further model must name.
_LOADS_CHECKPOINTS = ("hf", "vllm")
_ADAPTERS = ("peft", "lora_local_path")


def prompt_args(engine_args: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of an engine that change prompts, as settings hold them."""
    given = {name: public(name, value) for name, value in engine_args.items() if name in PROMPT_ARGS}
    # JSON turns tuples into lists. These settings must equal those that are read from a trace.
    plain: dict[str, Any] = json.loads(json.dumps(given, default=str))
    return plain


@dataclass(frozen=True, eq=False)
class Model:
    """One model of a run. It equals itself alone.

    Attributes:
        name: Its name in results. Models of a run with different engines have different names.
        engine: Its engine, which several models may share.
        template: Its prompts.
        kind: Name of the engine.
        engine_args: Those arguments of the engine that change prompts.
        token_costs: What its tokens cost; None if that is unknown.
    """

    name: str
    engine: Engine
    template: Template
    kind: str = ""
    engine_args: Mapping[str, Any] = field(default_factory=dict)
    token_costs: TokenCosts | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """What decides its texts, for the settings of results and traces."""
        return {
            "model": self.name,
            "engine": self.kind,
            "fingerprint": self.engine.fingerprint,
            "template": {"name": self.template.name, "sha256": self.template.digest},
            "engine_args": dict(self.engine_args),
        }

    @property
    def info(self) -> dict[str, Any]:
        """Facts for the results file that do not decide a text."""
        shape = self.engine.shape
        return {
            "model": self.name,
            "fingerprint": self.engine.fingerprint,
            "model_shape": asdict(shape) if shape else None,
            "engine_info": dict(self.engine.info),
        }


@dataclass(frozen=True, slots=True)
class Models:
    """The models of a run.

    Attributes:
        main: The main model.
        aggregator: Writes the layers after the drafts, if it is given.
        proposers: Write the drafts, if they are given.
    """

    main: Model
    aggregator: Model | None = None
    proposers: tuple[Model, ...] = ()

    @property
    def reader(self) -> Model:
        """The model that reads drafts: it writes the layers after them."""
        return self.aggregator or self.main

    @property
    def further(self) -> tuple[Model, ...]:
        """The models besides the main model."""
        return tuple(model for _, model in self.places[1:])

    @property
    def places(self) -> tuple[tuple[str, Model], ...]:
        """Every model after what messages call it. The main model comes first and has no name there."""
        aggregators = [("aggregator", self.aggregator)] if self.aggregator else []
        return ("", self.main), *aggregators, *((f"proposers[{n}]", each) for n, each in enumerate(self.proposers))

    @property
    def engines(self) -> tuple[Engine, ...]:
        """The engines, each once, the main model's first."""
        return tuple({id(model.engine): model.engine for model in (self.main, *self.further)}.values())

    def use_chat_template(self, name: str | None) -> None:
        """Render with one of the named chat templates of each tokenizer from now on; None is the default one.

        Raises:
            ConfigError: If a tokenizer has no such template. The message names the model.
        """
        for place, model in self.places:
            with naming(place):
                model.engine.use_chat_template(name)

    def check_prompts(self, reads: bool) -> None:
        """Refuse templates that drop the question, or the drafts.

        Args:
            reads: Whether a model reads drafts.

        Raises:
            TemplateError: If they are not shown. The message names the model.
        """
        for place, model in self.places:
            renderer = model.engine.renderer
            of_tokenizer = renderer if isinstance(renderer, TokenizerRenderer) else None
            with naming(place):
                check_templates(model.template, of_tokenizer, drafts=reads and model is self.reader)

    def writer(self, layer: int, index: int, drafts: int) -> Model:
        """The model that writes a text.

        Proposer p of P writes the drafts p * (k / P) to (p + 1) * (k / P) - 1. Draft i has the seed of draft i of any
        other run, whoever writes it. So it equals draft i of a run of that model alone with k drafts.

        Args:
            layer: The layer of the text.
            index: Its index in the layer.
            drafts: Number of drafts of the question.
        """
        if layer:
            return self.reader
        return self.proposers[index * len(self.proposers) // drafts] if self.proposers else self.main

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of the models besides the main model; empty for an ordinary run."""
        settings: dict[str, Any] = {}
        if self.aggregator:
            settings["aggregator"] = self.aggregator.settings
        if self.proposers:
            settings["proposers"] = [proposer.settings for proposer in self.proposers]
        return settings


@dataclass(frozen=True, slots=True)
class _Spec:
    """A model that is not loaded yet. ``place`` is what messages call it; the main model has none."""

    place: str
    name: str
    kind: str
    engine_args: Mapping[str, Any]
    host: HostArgs
    template: Template
    token_costs: TokenCosts | None = None

    def has_engine_of(self, other: _Spec) -> bool:
        """Whether one engine serves both."""
        return (self.kind, self.engine_args, self.host) == (other.kind, other.engine_args, other.host)


@dataclass(frozen=True, slots=True)
class ModelPlan:
    """The models of a run, checked as far as that is possible before they are loaded."""

    _specs: tuple[_Spec, ...]

    @classmethod
    def of(cls, config: AFTConfig, engine_args: Mapping[str, Any], host: HostArgs) -> ModelPlan:
        """Choose checkpoints and templates.

        Args:
            config: ``engine``, ``template``, ``aggregator`` and ``proposers`` are read.
            engine_args: The arguments of the main model's engine.
            host: The arguments that lm-eval passes to every model.

        Raises:
            ConfigError: If an argument is wrong. The message names the further model.
            TemplateError: If a template cannot be loaded.
        """
        args, name = choose_checkpoint(config.engine, engine_args)
        specs = [_Spec("", name, config.engine, args, host, choose_template(config, args), config.token_costs)]
        entries = {} if config.aggregator is None else {"aggregator": config.aggregator}
        entries |= {f"proposers[{number}]": entry for number, entry in enumerate(config.proposers)}
        for place, entry in entries.items():
            with naming(place):
                specs.append(_named(_further_spec(place, entry, config, host), specs))
        _refuse_second_vllm(specs)
        if config.max_cost is not None:
            _refuse_no_costs(specs)
        return cls(tuple(specs))

    @property
    def name(self) -> str:
        """The name of the main model."""
        return self._specs[0].name

    def load(self, load_engine: LoadEngine) -> Models:
        """Load the engine of every model. Models with equal arguments share one.

        Raises:
            AFTError: If an engine cannot be loaded, or two proposers would write the same drafts. The message names the
                model.
        """
        engines: list[tuple[_Spec, Engine]] = []
        models: dict[str, Model] = {}
        for spec in self._specs:
            engine = next((engine for other, engine in engines if spec.has_engine_of(other)), None)
            if engine is None:
                with naming(spec.place):
                    engine = load_engine(spec.kind, spec.engine_args, spec.host)
                engines.append((spec, engine))
            prompting = prompt_args(spec.engine_args)
            models[spec.place] = Model(spec.name, engine, spec.template, spec.kind, prompting, spec.token_costs)
        proposers = {place: model for place, model in models.items() if place.startswith("proposers")}
        _refuse_equal(proposers)
        return Models(models[""], models.get("aggregator"), tuple(proposers.values()))


def _further_spec(place: str, entry: Mapping[str, Any], config: AFTConfig, host: HostArgs) -> _Spec:
    """A model besides the main one. Its engine and prompt template are those of the run unless it names its own."""
    own, engine_args = AFTConfig.split({"engine": config.engine, **entry})
    if own.engine in _LOADS_CHECKPOINTS and "pretrained" not in engine_args:
        raise ConfigError(f"it names no checkpoint for engine={own.engine}: give pretrained inside it.")
    host = HostArgs(
        engine_args.pop("batch_size", host.batch_size), host.max_batch_size, str(engine_args.pop("device", host.device))
    )
    args, name = choose_checkpoint(own.engine, engine_args)
    adapter = next((f"+{Path(str(args[each])).name}" for each in _ADAPTERS if args.get(each)), "")
    template = choose_template(own, args)
    if config.template is not None and template.name == DEFAULT_NAME:
        template = Template.load(config.template)
    return _Spec(place, name + adapter, own.engine, args, host, template, own.token_costs)


def _named(spec: _Spec, earlier: Sequence[_Spec]) -> _Spec:
    """The model under a name that no model with another engine has."""
    if same := next((other for other in earlier if spec.has_engine_of(other)), None):
        return replace(spec, name=same.name)
    taken = spec.name in {other.name for other in earlier}
    return replace(spec, name=f"{spec.name} ({spec.place})") if taken else spec


def _refuse_second_vllm(specs: Sequence[_Spec]) -> None:
    """Refuse a second model of vLLM, which takes most of a GPU's memory for one model."""
    loading = [spec for spec in specs if spec.kind == "vllm"]
    for spec in loading[1:]:
        if not spec.has_engine_of(loading[0]):
            raise ConfigError(
                f"{spec.place} is a second model with engine=vllm, and one process runs one: serve it with vllm serve "
                "and give it engine=api with base_url=."
            )


def _refuse_no_costs(specs: Sequence[_Spec]) -> None:
    """Refuse models whose tokens have no known cost, if the cost of the run has a bound."""
    for spec in specs[1:]:
        if spec.token_costs is None:
            raise ConfigError(
                f"max_cost needs what the tokens of every model cost: give price_in and price_out inside {spec.place} "
                "too, 0 for tokens that cost nothing."
            )


def _refuse_equal(proposers: Mapping[str, Model]) -> None:
    """Refuse a proposer that would write the drafts of another: the same weights, settings and prompts."""
    question = Chat((Message("user", "question"),))
    places: dict[tuple[str, str], str] = {}
    for place, model in proposers.items():
        with naming(place):
            prompt = model.engine.renderer.encode(model.template.draft_chat(question))
        first = places.setdefault((model.engine.fingerprint, prompt.digest), place)
        if first != place:
            raise ConfigError(
                f"{place} would write the same drafts as {first}: its model ({model.name}) and its prompts are equal; "
                "give another model, or one model with k drafts."
            )


@contextmanager
def naming(place: str) -> Iterator[None]:
    """Let errors name the model that they are about; "" names none."""
    try:
        yield
    except (ConfigError, EngineError, PromptTooLong, TemplateError) as error:
        if not place:
            raise
        raise type(error)(f"{place}: {error}") from error
