"""Every model argument of ours: its type, default, check and meaning; the one definition of k and layers.

Knows nothing of engines; arguments that are not ours are handed back for the engine to check. Called by
``model.AFTLM`` and by the commands that build one. A little over 200 lines for the meanings.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from lm_eval_aft.core import settings
from lm_eval_aft.core.arguments import Parse, choice, flag, integer, or_none, path_or_none, real, strings, text
from lm_eval_aft.core.errors import ConfigError
from lm_eval_aft.core.records import Sampling
from lm_eval_aft.core.secrets import is_secret
from lm_eval_aft.core.settings import nearest, parsers, setting

SEED_LIMIT = 2**63
STRATEGIES = ("aggregate", "refine", "majority", "best_of_n", "beam")
ELECTIONS = ("majority", "best_of_n")  # their last pass chooses a text instead of writing one
DEFAULTS = {"refine": {"k": 1}, "majority": {"layers": 1}, "best_of_n": {"layers": 1}, "beam": {"layers": 0}}
PROBES = ("none", "shuffle", "wrong", "empty", "instruction", "repeat")
TOKEN_ALIASES = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # lm-eval's own order


@dataclass(frozen=True)
class AFTConfig:
    """The model arguments of ``--model aft`` that are ours; all others go to the engine."""

    k: int = setting(5, integer(1), "texts per layer")
    layers: int = setting(2, integer(0), "aggregation passes after the drafts; 0 is a plain answer")
    strategy: str = setting("aggregate", choice(*STRATEGIES), "aggregate, or an opponent: " + ", ".join(STRATEGIES[1:]))
    temperature: float = setting(0.7, real(0), "of drafts and hidden layers; 0 is greedy")
    top_p: float = setting(0.95, real(0, 1, above=True), "nucleus mass of drafts and hidden layers")
    top_k: int | None = setting(None, or_none(integer(1)), "most likely tokens kept; none is off")
    draft_max_tokens: int | None = setting(None, integer(1), "tokens a draft may have; default: the answer's bound")
    draft_until: tuple[str, ...] = setting((), strings, "strings that end a draft (base models)")
    final_temperature: float | None = setting(None, real(0), "of the last layer; default: the task's, else the drafts'")
    final_top_p: float | None = setting(
        None, real(0, 1, above=True), "of the last layer; default: the task's, else the drafts'"
    )
    final_max_tokens: int | None = setting(None, integer(1), "tokens the answer may have; default: max_gen_toks")
    max_gen_toks: int = setting(2048, integer(1), "tokens the answer may have where the task is silent")
    seed: int | None = setting(
        1234, or_none(integer(0, SEED_LIMIT)), "of all drafts; none lets a vLLM or server draw freely"
    )
    think_end_token: str | None = setting(
        None, text, "ends thinking, such as </think>: the task sees what follows the last"
    )
    vote_regex: str | None = setting(
        None, text, "majority: its last match is the answer; default: the task's extraction"
    )
    reward_model: str | None = setting(None, text, "best_of_n: a sequence-classification checkpoint with one output")
    probe: str = setting("none", choice(*PROBES), "what is done to the texts a pass reads: " + ", ".join(PROBES[1:]))
    drafts_from: str | None = setting(None, text, "folder of traces whose drafts are aggregated, instead of new ones")
    mcq: str = setting(
        "plain", choice("plain", "drafts"), "multiple choice: plain scores at once, drafts after drafting"
    )
    mcq_orders: int = setting(1, integer(1), "mcq=drafts: orders of the texts that log-probabilities are averaged over")
    template: str | None = setting(None, text, "file with the two prompt blocks; default: the checkpoint's, else ours")
    template_override: bool = setting(False, flag, "use template= although the checkpoint names another")
    engine: str = setting("hf", text, "hf, vllm, api or scripted")
    record: str | None = setting(None, text, "folder for the traces")
    cache: str | None = setting(None, path_or_none, "file of the draft store; none is off; default: inside record")

    def __post_init__(self) -> None:
        """Refuse settings that contradict each other.

        Raises:
            ConfigError: In one sentence.
        """
        for wrong, said in self._contradictions():
            if wrong:
                raise ConfigError(said)

    def _contradictions(self) -> Iterator[tuple[bool, str]]:
        name = f"strategy={self.strategy}"
        yield self.strategy == "refine" and self.k != 1, f"k={self.k} contradicts {name}, which revises one text: k=1."
        yield self.strategy == "beam" and self.layers != 0, f"{name} has no passes: layers={self.layers} must be 0."
        yield (
            self.strategy == "beam" and self.engine != "hf",
            f"{name} is for engine=hf alone: engine={self.engine} has no beam search here.",
        )
        yield self.selects and not self.layers, f"{name} elects in its last pass: layers=0 must be 1 or more."
        yield (
            (self.strategy == "best_of_n") != (self.reward_model is not None),
            "strategy=best_of_n and reward_model=CHECKPOINT need each other: give both or neither.",
        )
        yield (
            self.vote_regex is not None and self.strategy != "majority",
            f"vote_regex is for strategy=majority, not for {name}: leave it out.",
        )
        drafted = self.mcq == "drafts"
        yield drafted and self.strategy != "aggregate", f"mcq=drafts is for strategy=aggregate, not for {name}."
        yield (
            drafted and not self.layers,
            "mcq=drafts scores choices in the last pass: layers=0 must be 1 or more, or use mcq=plain.",
        )
        yield self.mcq == "plain" and self.mcq_orders > 1, "mcq_orders is for mcq=drafts: give both or neither."
        yield (
            not self.layers and (self.probe != "none" or self.drafts_from is not None),
            "probe= and drafts_from= change what a pass reads: they need layers=1 or more.",
        )

    @property
    def selects(self) -> bool:
        """Whether the last pass chooses one of the texts before it."""
        return self.strategy in ELECTIONS

    @property
    def beams(self) -> int:
        """Texts that beam search keeps side by side; 1 for every other strategy."""
        return self.k if self.strategy == "beam" else 1

    @property
    def generations(self) -> int:
        """Texts written a question: k * layers + 1, and 1 for layers=0; a pass that elects or scores writes none."""
        return self.k * self.layers + (not self.selects and self.mcq == "plain")

    @classmethod
    def split(cls, model_args: Mapping[str, Any]) -> tuple[AFTConfig, dict[str, Any]]:
        """Take our arguments out of lm-eval's and check each.

        Returns:
            The configuration, and the arguments that are not ours, unchecked.

        Raises:
            ConfigError: If a value of ours is of the wrong type or out of range.
        """
        ours = parsers(cls)
        # model args given as None (Python callers, lm-eval's None) mean "not given"
        given = {name: value for name, value in model_args.items() if value is not None}
        parsed = {name: ours[name](name, value) for name, value in given.items() if name in ours}
        rest = {name: value for name, value in given.items() if name not in ours}
        return cls(**{**DEFAULTS.get(parsed.get("strategy", ""), {}), **parsed}), rest

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for the results file."""
        return asdict(self)


def names() -> tuple[str, ...]:
    """Names of our arguments, in the order of the definition."""
    return tuple(parsers(AFTConfig))


def markdown_table() -> str:
    """Our arguments as a table: the one in the README is this one."""
    return settings.markdown_table(AFTConfig, "argument")


def refuse_unknown(given: Mapping[str, Any], allowed: set[str], engine: str) -> None:
    """Refuse arguments that neither we nor the engine know, naming the nearest name.

    Raises:
        ConfigError: On the first unknown name.
    """
    for name in given:
        if name not in allowed:
            hint = nearest(name, [*names(), *sorted(allowed)], "see the README for the list of model arguments.")
            value = "..." if is_secret(name) else given[name]
            raise ConfigError(f"{name}={value} is not an argument of --model aft with engine={engine}: {hint}")


def samplings(config: AFTConfig, gen_kwargs: Mapping[str, Any]) -> tuple[Sampling, Sampling]:
    """How drafts and the last layer are drawn, for a task's generation settings.

    The task (and ``--gen_kwargs``, which lm-eval merges into it) speaks about the last layer only; an explicit
    ``final_...`` model argument beats it. Stop strings are left out: they cut the final text afterwards.

    Returns:
        Sampling of the drafts and hidden layers, sampling of the last layer.
    """
    bound = next((gen_kwargs[name] for name in TOKEN_ALIASES if gen_kwargs.get(name) is not None), config.max_gen_toks)
    bound = integer(1)("max_gen_toks", bound)
    seeded = config.seed is not None
    drafts = Sampling(
        config.temperature,
        config.top_p,
        config.top_k or 0,
        config.draft_max_tokens or bound,
        config.draft_until,
        seeded,
    )
    final = Sampling(
        temperature=_final_temperature(config, gen_kwargs),
        top_p=_first(
            config.final_top_p, gen_kwargs.get("top_p"), config.top_p, parse=real(0, 1, above=True), name="top_p"
        ),
        top_k=max(0, int(_first(gen_kwargs.get("top_k"), config.top_k, 0, parse=integer(-1), name="top_k"))),
        max_tokens=config.final_max_tokens or bound,
        seeded=seeded,
    )
    return drafts, final


def _final_temperature(config: AFTConfig, gen_kwargs: Mapping[str, Any]) -> float:
    task = 0.0 if gen_kwargs.get("do_sample") is False else gen_kwargs.get("temperature")
    if gen_kwargs.get("do_sample") is True and task == 0:
        task = None  # lm-eval fills in 0.0 where a task only says do_sample: true
    return float(_first(config.final_temperature, task, config.temperature, parse=real(0), name="temperature"))


def _first(*values: Any, parse: Parse, name: str) -> Any:
    return parse(name, next(value for value in values if value is not None))
