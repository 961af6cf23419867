"""The model arguments of ``--model aft``: type, default, check and meaning of each. k and layers are defined here only.

Arguments that are not defined here go to the engine, which checks them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from lm_eval_aft.core.arguments import (
    Parse,
    choice,
    flag,
    integer,
    mapping,
    mappings,
    or_none,
    path,
    path_or_none,
    real,
    refuse_count,
    refuse_secrets,
    sampling_temperature,
    strings,
    text,
    widths,
)
from lm_eval_aft.core.early_stopping import StopRule, stop_rule
from lm_eval_aft.core.errors import ConfigError
from lm_eval_aft.core.question_shards import Shard, parse_shard
from lm_eval_aft.core.records import Confidence, Sampling
from lm_eval_aft.core.secrets import public
from lm_eval_aft.core.settings import nearest, parsers, setting
from lm_eval_aft.core.strategies import STRATEGIES, Strategy
from lm_eval_aft.core.usage import TokenCosts

SEED_LIMIT = 2**63
# Generations a question, and of all questions of a run. Each is an object in memory.
MAX_GENERATIONS, MAX_RUN_GENERATIONS = 100_000, 100_000_000
# What tokens cost, and bounds of the cost of a run. They change no text.
BUDGETS = ("price_in", "price_out", "max_cost", "max_generated_tokens")
# Settings that versions after 0.1 added. Traces of runs that do not use them keep their names.
ADDED = ("subset", "carry", "stop_when", "stop_layers", "max_generations", "widths", "confidence", "shard", *BUDGETS)
# The numbers of ``Confidence``.
CONFIDENCES = tuple(field.name for field in fields(Confidence))
DEFAULT_CONFIDENCE = "mean"
PROBES = ("none", "shuffle", "wrong", "empty", "instruction", "repeat")
# Settings of the last layer that only a task or --gen_kwargs can give. The bounds are those of OpenAI and vLLM.
EXTRAS: dict[str, Parse] = {
    "min_p": real(0, 1),
    "repetition_penalty": real(0, above=True),
    "frequency_penalty": real(-2, 2),
    "presence_penalty": real(-2, 2),
}
# In the order in which lm-eval reads them.
TOKEN_ALIASES = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
# What other programs call these arguments, in small letters with underscores.
ALIASES: dict[str, tuple[str, ...]] = {
    "k": ("n", "num_drafts", "drafts", "proposals", "num_samples", "num_return_sequences"),
    "layers": ("l", "num_layers", "aggregation_layers", "depth"),
    "temperature": ("temp",),
    "max_gen_toks": TOKEN_ALIASES,
    "cache": ("store", "draft_store"),
    "record": ("traces", "trace", "output"),
    "template": ("prompt_template", "aggregation_template"),
    "vote_regex": ("regex", "answer_regex"),
    "reward_model": ("rm", "reward", "verifier"),
    # Arguments of engines.
    "peft": ("lora", "lora_path", "lora_local_path", "lora_name_or_path", "adapter", "adapter_path"),
    "lora_local_path": ("lora", "lora_path", "peft", "lora_name_or_path", "adapter", "adapter_path"),
    "pretrained": ("model", "model_name", "model_path", "model_name_or_path", "checkpoint", "path"),
    "max_length": ("max_model_len", "max_seq_len", "max_context_len", "context_length"),
    "base_url": ("api_base", "url", "endpoint", "server"),
    "tensor_parallel_size": ("tp", "tp_size"),
}
# Arguments of ours that belong to a model, not to the run. Those of engines belong to a model too.
OF_A_MODEL = ("engine", "template", "template_override", "price_in", "price_out")


def model_arguments(name: str, value: Any) -> dict[str, Any]:
    """The arguments of a further model: a dictionary without arguments that belong to the run."""
    given = {key: each for key, each in mapping(name, value).items() if each is not None}
    for key in given:
        if key in parsers(AFTConfig) and key not in OF_A_MODEL:
            raise ConfigError(
                f"{name} has {key}={public(key, given[key])}, which belongs to the run: give {key} beside "
                f"{name.partition('[')[0]}, or leave it out."
            )
    return given


def list_of_models(name: str, value: Any) -> tuple[dict[str, Any], ...]:
    """The arguments of several further models."""
    return tuple(model_arguments(f"{name}[{number}]", each) for number, each in enumerate(mappings(name, value)))


@dataclass(frozen=True)
class AFTConfig:
    """The model arguments of ``--model aft`` that are ours; all others go to the engine."""

    k: int = setting(
        5,
        widths,
        "Drafts a question, and generations per hidden layer. `32/4` is 32 drafts, and 4 generations per hidden layer; "
        "in JSON it is a list.",
    )
    layers: int = setting(2, integer(0), "Aggregation layers after the drafts; 0 answers directly.")
    strategy: str = setting(
        "aggregate",
        choice(*STRATEGIES),
        f"How the answer is made from the drafts: {', '.join(STRATEGIES)}. `rsa` is `k=16,subset=4,layers=10`: 160 "
        "generations a question, and a vote.",
    )
    subset: int | None = setting(
        None, integer(1), "How many texts of the layer before each text reads, drawn by seed; default: all."
    )
    carry: str = setting(
        "text",
        choice("text", "answer"),
        "What a layer reads of each text: the whole `text`, or its last paragraph with its `answer`.",
    )
    stop_when: str | None = setting(
        None,
        lambda name, value: str(stop_rule(name, value)),
        "When a question has enough drafts: `agree:0.95` (a probability) or `window:4` (equal answers in a row); "
        "default: after k drafts.",
    )
    stop_layers: int | None = setting(
        None,
        integer(0),
        "Aggregation layers of a question whose drafts agree; 0 takes the vote's answer; default: `layers`.",
    )
    max_generations: int | None = setting(
        None, integer(1), "Most generations of a run. A run that would need more is refused before it starts."
    )
    max_generated_tokens: int | None = setting(
        None,
        integer(1),
        "Most tokens that a run generates. A run that reaches it stops in order; with a higher one it resumes.",
    )
    max_cost: float | None = setting(
        None,
        real(0, above=True),
        "Most that a run costs, by `price_in` and `price_out`. A run that reaches it stops in order.",
    )
    price_in: float | None = setting(None, real(0), "Cost of a million prompt tokens, for `max_cost` and reports.")
    price_out: float | None = setting(None, real(0), "Cost of a million generated tokens.")
    shard: Shard | None = setting(  # noqa: RUF009
        None,
        parse_shard,
        "Part of the questions that this run answers, such as `1/4`. It fills the draft store and has no score.",
    )
    temperature: float = setting(0.7, sampling_temperature, "Temperature of drafts and hidden layers; 0 is greedy.")
    top_p: float = setting(0.95, real(0, 1, above=True), "Nucleus mass of drafts and hidden layers; 1 is off.")
    top_k: int | None = setting(
        None, or_none(integer(1)), "Number of most likely tokens that sampling keeps; `none` keeps all."
    )
    draft_max_tokens: int | None = setting(
        None, integer(1), "Maximum tokens of a draft or hidden generation; default: that of the answer."
    )
    draft_until: tuple[str, ...] = setting((), strings, "Strings at which a draft ends, for base models.")
    final_temperature: float | None = setting(
        None, sampling_temperature, "Temperature of the last layer; default: the task's, else that of the drafts."
    )
    final_top_p: float | None = setting(
        None, real(0, 1, above=True), "Nucleus mass of the last layer; default: the task's, else that of the drafts."
    )
    final_max_tokens: int | None = setting(
        None, integer(1), "Maximum tokens of the answer; default: the task's, else `max_gen_toks`."
    )
    max_gen_toks: int = setting(2048, integer(1), "Maximum tokens of the answer if the task sets no limit.")
    seed: int | None = setting(
        1234,
        or_none(integer(0, SEED_LIMIT)),
        "Seed of all generations; `none` lets vLLM or a server sample without seeds, which is faster.",
    )
    think_end_token: str | None = setting(
        None, text, "Mark that ends a thought, if the model has one of its own; the answer follows the last mark."
    )
    vote_regex: str | None = setting(
        None,
        text,
        "Regular expression that finds answers for votes, `stop_when` and `carry=answer`: its last match is the "
        "answer; default: the task's own filter.",
    )
    confidence: str | None = setting(
        None,
        choice(*CONFIDENCES),
        "Number that weighs a text's vote in `strategy=weighted`: `sum`, `mean`, `tail` or `window` of its tokens' "
        "log-probabilities; default: `mean`. With other strategies, engines keep all four in the traces.",
    )
    reward_model: str | None = setting(
        None, text, "Checkpoint for `strategy=best_of_n`: a sequence-classification model with one output."
    )
    probe: str = setting(
        "none",
        choice(*PROBES),
        f"Change of the drafts that a layer reads, to test what it uses: {', '.join(PROBES)}.",
    )
    drafts_from: str | None = setting(
        None, path, "Folder of traces whose drafts are aggregated; no new drafts are generated."
    )
    mcq: str = setting(
        "plain",
        choice("plain", "drafts"),
        "How multiple-choice questions are scored: `plain` scores the choices directly, `drafts` after drafting.",
    )
    mcq_orders: int = setting(
        1, integer(1), "Number of orders of the drafts over which `mcq=drafts` averages log-probabilities."
    )
    template: str | None = setting(
        None, path, "File of the prompt template; default: the checkpoint's template, else the built-in one."
    )
    template_override: bool = setting(
        False, flag, "Whether to use `template` although the checkpoint was trained with another."
    )
    engine: str = setting("hf", text, "Engine that generates: `hf`, `vllm`, `api` or `scripted`.")
    aggregator: Mapping[str, Any] | None = setting(
        None,
        model_arguments,
        'Arguments of another model, which writes the layers after the drafts, such as `{"pretrained":"FOLDER"}`.',
    )
    proposers: tuple[Mapping[str, Any], ...] = setting(
        (),
        list_of_models,
        "Arguments of several models, which write k / their number drafts each; the main model writes the layers.",
    )
    record: str | None = setting(None, path, "Folder for the traces and the draft store.")
    grade_drafts: bool = setting(
        True, flag, "Whether each generation in `record` is graded by the task's own filters and metrics."
    )
    cache: str | None = setting(
        None, path_or_none, "File of the draft store; `none` switches it off; default: `drafts.sqlite` inside `record`."
    )
    # It is no argument of its own: ``k=32/4`` sets it, and ``k`` is then the first number.
    widths: tuple[int, ...] = field(
        default=(),
        metadata={"meaning": "Texts of each layer but the last. The last number holds for all further layers."},
    )

    def __post_init__(self) -> None:
        """Refuse settings that contradict each other.

        Raises:
            ConfigError: On the first contradiction.
        """
        for wrong, sentence in self._contradictions():
            if wrong:
                raise ConfigError(sentence)
        wanted = max(self.generations, self.beams, self.mcq_orders)
        refuse_count(
            wanted,
            MAX_GENERATIONS,
            "these settings would be {} generations a question",
            "lower k, layers or mcq_orders",
        )

    def _contradictions(self) -> Iterator[tuple[bool, str]]:
        name = f"strategy={self.strategy}"
        yield (
            bool(self.widths) and self.strategy in ("refine", "beam"),
            f"k={self.shown_k} is a single number for {name}.",
        )
        yield self.strategy == "refine" and self.k != 1, f"k={self.k} contradicts {name}, which revises one text: k=1."
        yield (
            self.strategy == "beam" and self.layers != 0,
            f"{name} has no aggregation layers: layers={self.layers} must be 0.",
        )
        yield (
            self.strategy == "beam" and self.engine != "hf",
            f"{name} needs engine=hf: engine={self.engine} has no beam search here.",
        )
        yield (
            bool(self.kind.selector) and not self.layers,
            f"{name} selects in its last layer: layers=0 must be 1 or more.",
        )
        yield (
            (self.strategy == "best_of_n") != (self.reward_model is not None),
            "strategy=best_of_n and reward_model=CHECKPOINT need each other: give both or neither.",
        )
        yield (
            self.confidence is not None and self.strategy == "beam",
            f"confidence={self.confidence} does not fit strategy=beam: beam search gives no log-probabilities.",
        )
        yield (
            self.vote_regex is not None and not self.finds_answers,
            f"vote_regex finds answers for votes, stop_when and carry=answer: leave it out for {name}.",
        )
        yield from self._widths_contradictions()
        yield from self._stop_contradictions()
        drafted = self.mcq == "drafts"
        yield drafted and self.strategy != "aggregate", f"mcq=drafts is for strategy=aggregate, not for {name}."
        yield (
            drafted and not self.layers,
            "mcq=drafts scores choices in the last layer: layers=0 must be 1 or more, or use mcq=plain.",
        )
        yield self.mcq == "plain" and self.mcq_orders > 1, "mcq_orders is for mcq=drafts: give both or neither."
        yield (
            not self.layers and (self.probe != "none" or self.drafts_from is not None),
            "probe= and drafts_from= change what a layer reads: they need layers=1 or more.",
        )
        yield (
            self.probe != "none" and self.kind.writes_choice,
            f"probe={self.probe} changes the texts that {name} numbers: leave probe out.",
        )
        yield (
            self.shard is not None and (self.cache == "none" or not (self.cache or self.record)),
            f"shard={self.shard} answers a part of the questions for another run: give record=DIR or cache=FILE, where "
            "that run finds the texts.",
        )
        yield (
            (self.price_in is None) != (self.price_out is None),
            "price_in and price_out need each other: give both, 0 for tokens that cost nothing, or neither.",
        )
        yield (
            self.max_cost is not None and self.token_costs is None,
            f"max_cost={self.max_cost} needs the cost of tokens: give price_in and price_out, for a million tokens.",
        )
        yield from self._models_contradictions()

    def _models_contradictions(self) -> Iterator[tuple[bool, str]]:
        if not self.several_models:
            return
        given = "proposers=" if self.aggregator is None else "aggregator="
        yield (
            self.aggregator is not None and bool(self.proposers),
            "aggregator= contradicts proposers=: with proposers the main model aggregates, so give it as pretrained=.",
        )
        yield not self.layers, f"{given} needs an aggregation layer: layers=0 must be 1 or more."
        yield (
            self.aggregator is not None and self.selects and self.layers == 1,
            f"aggregator= writes nothing with strategy={self.strategy} and layers=1: give layers=2 or more.",
        )
        yield (
            self.drafts_from is not None,
            f"{given} contradicts drafts_from=, which gives all drafts: give the aggregator with pretrained=.",
        )
        yield (
            bool(self.proposers) and self.stop_when is not None,
            f"stop_when={self.stop_when} ends the drafts of one model: leave it or proposers= out.",
        )
        yield (
            self.mcq == "drafts",
            f"{given} does not fit mcq=drafts, where one model drafts and scores: use mcq=plain.",
        )
        yield (
            len(self.proposers) > 0 and self.k % len(self.proposers) != 0,
            f"k={self.k} drafts cannot be split evenly among {len(self.proposers)} proposers: give a multiple of "
            f"{len(self.proposers)}.",
        )

    @property
    def several_models(self) -> bool:
        """Whether more than one model writes texts."""
        return self.aggregator is not None or bool(self.proposers)

    def _widths_contradictions(self) -> Iterator[tuple[bool, str]]:
        name = f"strategy={self.strategy}"
        yield (
            len(self.widths) > self.layers,
            f"k={self.shown_k} gives {len(self.widths)} layers their numbers of texts, and layers={self.layers} has "
            f"{self.layers} of them before its last: give fewer numbers, or more layers.",
        )
        if self.subset is None:
            return
        reading = self.layers - bool(self.selects or self.kind.writes_choice)
        yield reading < 1, f"subset={self.subset} is for layers that write from texts, and {name} has none here."
        narrowest = min((self.widths or (self.k,))[: max(1, reading)])
        yield (
            self.subset > narrowest,
            f"subset={self.subset} is more than the {narrowest} texts that a layer reads: lower subset, or raise k.",
        )
        yield self.probe != "none", f"probe={self.probe} changes what all texts of a layer read: leave subset out."
        yield self.mcq == "drafts", "mcq=drafts reads all texts of a layer: leave subset out."

    def _stop_contradictions(self) -> Iterator[tuple[bool, str]]:
        yield (
            self.carry == "answer" and (self.layers < 1 + self.selects or self.mcq == "drafts"),
            "carry=answer changes what a layer reads before it writes: it needs such a layer, and mcq=plain.",
        )
        yield (
            self.stop_layers is not None and self.stop_when is None,
            f"stop_layers={self.stop_layers} is for questions whose drafts agree: give stop_when too.",
        )
        if self.stop_when is None:
            return
        name = f"stop_when={self.stop_when}"
        yield (
            not self.layers or self.strategy in ("refine", "beam") or self.mcq == "drafts",
            f"{name} ends the drafts of a question: it needs layers=1 or more and mcq=plain, and fits neither "
            "strategy=refine nor strategy=beam.",
        )
        yield (
            (self.stop_layers or 0) > self.layers,
            f"stop_layers={self.stop_layers} is more than layers={self.layers}: lower it.",
        )

    @property
    def token_costs(self) -> TokenCosts | None:
        """What the tokens of the main model cost; None if that is unknown."""
        if self.price_in is None or self.price_out is None:
            return None
        return TokenCosts(self.price_in, self.price_out)

    def width(self, layer: int) -> int:
        """Texts of a layer that is not the last: drafts in layer 0."""
        return self.widths[min(layer, len(self.widths) - 1)] if self.widths else self.k

    @property
    def shown_k(self) -> str:
        """``k`` as it is given: 5, or 32/4."""
        return "/".join(map(str, self.widths or (self.k,)))

    @property
    def rule(self) -> StopRule | None:
        """When a question has enough drafts; None if it gets k."""
        return stop_rule("stop_when", self.stop_when) if self.stop_when else None

    @property
    def finds_answers(self) -> bool:
        """Whether the run looks for answers in texts."""
        return self.kind.finds_answers or self.stop_when is not None or self.carry == "answer"

    @property
    def keeps_confidence(self) -> bool:
        """Whether every generation must have its confidence."""
        return self.kind.needs_confidence or self.confidence is not None

    @property
    def selects(self) -> bool:
        """Whether the last layer selects one of the texts before it."""
        return self.kind.selects

    @property
    def kind(self) -> Strategy:
        """What the strategy is."""
        return STRATEGIES[self.strategy]

    @property
    def beams(self) -> int:
        """Number of beams of beam search; 1 for every other strategy."""
        return self.k if self.strategy == "beam" else 1

    @property
    def generations(self) -> int:
        """Most generations a question: k * layers + 1, or the sum of the widths + 1.

        A last layer that selects or scores writes none. ``stop_when`` and the vote of ``strategy=rsa`` need fewer.
        """
        deeper = max(0, self.layers - len(self.widths)) * self.width(self.layers)
        return sum(self.widths[: self.layers]) + deeper + (not self.selects and self.mcq == "plain")

    @classmethod
    def split(cls, model_args: Mapping[str, Any]) -> tuple[AFTConfig, dict[str, Any]]:
        """Split lm-eval's model arguments into ours and the engine's, and check ours.

        Returns:
            The configuration, and the arguments of the engine, unchecked.

        Raises:
            ConfigError: If a value of ours is of the wrong type or out of range, or any argument holds a secret.
        """
        refuse_secrets(model_args, "--model_args")
        ours = parsers(cls)
        # Python callers and lm-eval pass None for an argument that was not set.
        given = {name: value for name, value in model_args.items() if value is not None}
        parsed = {name: ours[name](name, value) for name, value in given.items() if name in ours}
        rest = {name: value for name, value in given.items() if name not in ours}
        settings = {**STRATEGIES[parsed.get("strategy", "aggregate")].defaults, **parsed}
        if isinstance(several := settings.get("k"), tuple):
            layers = parsed.get("layers", max(settings.get("layers", 0), len(several)))
            settings |= {"k": several[0], "widths": several, "layers": layers}
        return cls(**settings), rest

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for the results file. What versions after 0.1 added is left out at its default."""
        values = asdict(self)
        unset = {f.name for f in fields(self) if f.name in ADDED and values[f.name] == f.default}
        return {name: value for name, value in values.items() if name not in unset}


def names() -> tuple[str, ...]:
    """The names of our arguments, in the order of the definition."""
    return tuple(parsers(AFTConfig))


def refuse_unknown(given: Mapping[str, Any], allowed: set[str], engine: str) -> None:
    """Refuse arguments that neither we nor the engine know. The message names the one that is probably meant.

    Raises:
        ConfigError: On the first unknown name.
    """
    for name in given:
        if name not in allowed:
            known, plain = [*names(), *sorted(allowed)], name.lower().replace("-", "_")
            meant = next((each for each, others in ALIASES.items() if plain in others and each in known), name)
            hint = nearest(meant, known, "docs/reference/arguments.md lists the model arguments.")
            value = public(name, given[name])
            raise ConfigError(f"{name}={value} is not an argument of --model aft with engine={engine}: {hint}")


def samplings(config: AFTConfig, gen_kwargs: Mapping[str, Any]) -> tuple[Sampling, Sampling]:
    """The sampling settings of a task's drafts and of its last layer.

    The task's generation settings, and ``--gen_kwargs``, which lm-eval merges into them, apply to the last layer only.
    An explicit ``final_...`` model argument overrides them. Stop strings are not part of the sampling: they cut the
    final text afterwards.

    Args:
        config: The model arguments.
        gen_kwargs: The task's generation settings.

    Returns:
        The sampling of drafts and hidden layers, and the sampling of the last layer.

    Raises:
        ConfigError: If a setting of the task is of the wrong type or out of range.
    """
    limit = next((gen_kwargs[name] for name in TOKEN_ALIASES if gen_kwargs.get(name) is not None), config.max_gen_toks)
    limit = integer(1)("max_gen_toks", limit)
    seeded = config.seed is not None
    drafts = Sampling(
        sampling_temperature("temperature", config.temperature),
        config.top_p,
        config.top_k or 0,
        config.draft_max_tokens or limit,
        config.draft_until,
        seeded,
    )
    final = Sampling(
        temperature=_final_temperature(config, gen_kwargs),
        top_p=_first(
            config.final_top_p, gen_kwargs.get("top_p"), config.top_p, parse=real(0, 1, above=True), name="top_p"
        ),
        top_k=max(0, int(_first(gen_kwargs.get("top_k"), config.top_k, 0, parse=integer(-1), name="top_k"))),
        max_tokens=config.final_max_tokens or limit,
        seeded=seeded,
        **{name: parse(name, gen_kwargs[name]) for name, parse in EXTRAS.items() if gen_kwargs.get(name) is not None},
    )
    return drafts, final


def _final_temperature(config: AFTConfig, gen_kwargs: Mapping[str, Any]) -> float:
    task = 0.0 if gen_kwargs.get("do_sample") is False else gen_kwargs.get("temperature")
    if gen_kwargs.get("do_sample") is True and task == 0:
        # lm-eval fills in 0.0 if a task sets do_sample: true and no temperature.
        task = None
    given = (config.final_temperature, task, config.temperature)
    return float(_first(*given, parse=sampling_temperature, name="temperature"))


def _first(*values: Any, parse: Parse, name: str) -> Any:
    return parse(name, next(value for value in values if value is not None))
