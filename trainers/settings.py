"""The settings of ``aft train``: type, default, check and meaning of each, read from YAML or TOML and ``--set``."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from lm_eval_aft.core.arguments import choice, flag, integer, mapping, or_none, real, refuse_secrets, strings, text
from lm_eval_aft.core.errors import ConfigError
from lm_eval_aft.core.files import refuse_stream
from lm_eval_aft.core.paths import check_path
from lm_eval_aft.core.secrets import public_word
from lm_eval_aft.core.settings import nearest, parsers, setting

Kind = Literal["sft", "aft", "aft-no-drafts", "aft-pseudo", "rl"]
KINDS: dict[Kind, str] = {
    "sft": "query -> sft_target (else target): the baseline",
    "aft": "query + drafts -> target, and a share of examples without drafts",
    "aft-no-drafts": "query -> target: what the targets teach without the drafts",
    "aft-pseudo": "query + drafts -> sft_target: targets that were not made from the drafts",
}
ATTENTIONS = ("sdpa", "eager", "flash_attention_2", "flash_attention_3", "flex_attention")
TRACKERS = ("wandb", "trackio", "mlflow", "tensorboard")
# What aft data export writes; see trainers.fitting.export.
EXPORT_FORMATS = ("messages", "prompt-completion", "sharegpt", "verl")
# A started run keeps these settings: its weights, optimizer state or order of batches depend on them.
FROZEN_ON_RESUME = (
    *("model", "revision", "k", "sets_per_query", "plain_share", "max_length", "seed", "bf16", "packing", "attention"),
    *("batch_size", "accumulate", "learning_rate", "schedule", "warmup", "weight_decay", "epochs", "max_steps"),
    *("lora_rank", "lora_alpha", "lora_dropout", "lora_targets"),
)
FROZEN_IN_RL = (
    *("reward", "gold", "mixed", "length_penalty", "copy_penalty", "algorithm", "generations"),
    *("temperature", "top_p", "max_new_tokens", "beta"),
)


def _counts(name: str, value: Any) -> tuple[int, ...]:
    """One whole number, or a list of them; a command line may give 1,3,5."""
    items = value.split(",") if isinstance(value, str) else value if isinstance(value, (list, tuple)) else [value]
    counts = tuple(integer(1)(name, item) for item in items)
    if not counts:
        raise ConfigError(f"{name}=[] is not allowed: give a number of drafts, or several, such as [1, 3, 5].")
    return counts


def _names(name: str, value: Any) -> tuple[str, ...]:
    """One name, or a list of them; a command line may give q_proj,v_proj."""
    return strings(name, [part.strip() for part in value.split(",")] if isinstance(value, str) else value)


def _path(name: str, value: Any) -> str:
    """A path; ``~`` becomes the user's home."""
    return check_path(f"{name}=", text(name, value))


@dataclass(frozen=True)
class TrainConfig:
    """The settings of one training run."""

    model: str = setting("", _path, "Folder or hub name of the model to train further.")
    data: str = setting("", _path, "JSONL file of rows: query, drafts, target, sft_target.")
    output: str = setting("", _path, "Folder of the run: checkpoints, log and card.")
    revision: str | None = setting(None, text, "Revision of a hub model.")
    validation: str | None = setting(None, _path, "JSONL file like data; the checkpoint with its lowest loss is kept.")
    template: str | None = setting(
        None, _path, "File of the prompt template; default: the model's, else the built-in one."
    )
    k: tuple[int, ...] = setting(
        (), _counts, "Drafts per example, or several numbers, drawn evenly; default: all drafts of a row."
    )
    sets_per_query: int = setting(1, integer(1), "Examples with drafts per row; each draws and orders its drafts anew.")
    plain_share: float = setting(0.2, real(0, 0.95), "Share of examples without drafts (aft and aft-pseudo).")
    max_length: int = setting(2048, integer(8), "Maximum tokens of an example; drafts are cut to fit, targets never.")
    lora_rank: int = setting(8, integer(0, 65_536), "Rank of the LoRA adapter; 0 trains all weights.")
    lora_alpha: float = setting(16.0, real(0, above=True), "Scale of the adapter, times its rank.")
    lora_dropout: float = setting(0.0, real(0, 0.9), "Dropout of the adapter.")
    lora_targets: tuple[str, ...] = setting(("all-linear",), _names, "Names of the layers that get an adapter.")
    learning_rate: float = setting(2e-4, real(0, above=True), "Highest learning rate; 2e-5 suits lora_rank: 0.")
    schedule: str = setting("cosine", choice("cosine", "linear", "constant"), "Schedule of the learning rate.")
    warmup: float = setting(
        0.03, real(0, 1), "Share of the steps in which the learning rate rises; less than one step is none."
    )
    weight_decay: float = setting(0.0, real(0), "Weight decay of AdamW.")
    epochs: float = setting(1.0, real(0, above=True), "Number of times that each example is trained on.")
    max_steps: int | None = setting(None, or_none(integer(1)), "Number of optimizer steps; it replaces `epochs`.")
    batch_size: int = setting(8, integer(1), "Examples per device and step.")
    accumulate: int = setting(1, integer(1), "Batches per optimizer step.")
    packing: bool = setting(False, flag, "Whether a batch is one sequence without padding; the losses are the same.")
    attention: str | None = setting(
        None, choice(*ATTENTIONS), "Attention of transformers; default: the model's, most often sdpa."
    )
    bf16: bool = setting(False, flag, "Whether to compute in bfloat16; with LoRA the frozen weights are bfloat16 too.")
    save_dtype: str | None = setting(
        None, choice("float32", "bfloat16", "float16"), "Number format of full weights on disk."
    )
    gradient_checkpointing: bool = setting(False, flag, "Whether to save memory; training is about a third slower.")
    device: str = setting("auto", choice("auto", "cpu"), "Device; auto takes a GPU if there is one.")
    seed: int = setting(0, integer(0, 2**32), "Seed of draws, order and new weights.")
    log_every: int = setting(10, integer(1), "Steps between two lines of the log.")
    save_every: int | None = setting(
        None, or_none(integer(1)), "Steps between two checkpoints, each with validation; default: an epoch."
    )
    keep: int = setting(1, integer(1), "Number of newest checkpoints to keep for a resume; the best one stays too.")
    patience: int | None = setting(None, or_none(integer(1)), "Validations without a lower loss before the run stops.")
    diagnose: int = setting(
        16, integer(0, 10_000), "Draft sets that the model answers at each validation, to count copies; 0 is off."
    )
    verifier: str | None = setting(
        None, text, "What grades these answers: exact:REGEX, task:NAME or module:function; default: nothing."
    )
    gold: str = setting("gold", text, "Key of a row that holds the right answer.")
    report_to: str = setting("none", choice("none", *TRACKERS), "Tracker that gets the log too; it must be installed.")

    def to_dict(self) -> dict[str, Any]:
        """The settings by name, as run.json holds them."""
        return asdict(self)

    @property
    def frozen_on_resume(self) -> tuple[str, ...]:
        """The settings that a started run keeps."""
        return FROZEN_ON_RESUME


@dataclass(frozen=True)
class RLConfig(TrainConfig):
    """The settings of one training run by reinforcement learning."""

    learning_rate: float = setting(2e-5, real(0, above=True), "Highest learning rate; 1e-6 suits lora_rank: 0.")
    reward: str = setting(
        "", text, "What grades a text: exact:REGEX, task:NAME, module:function, or model:REWARD_MODEL."
    )
    mixed: float | None = setting(
        None, or_none(real(0, 1, above=True)), "Least share of prompts with drafts whose drafts are right and wrong."
    )
    length_penalty: float = setting(0.0, real(0), "Taken from the reward of a text of max_new_tokens; of others, less.")
    copy_penalty: float = setting(0.0, real(0), "Taken from the reward of a text that repeats a draft word for word.")
    plain_share: float = setting(0.2, real(0, 1), "Share of prompts without drafts; 1 needs no drafts in the rows.")
    algorithm: str = setting("grpo", choice("grpo", "rloo"), "Trainer of TRL.")
    generations: int = setting(8, integer(2), "Texts sampled for each prompt; batch_size counts texts.")
    temperature: float = setting(1.0, real(0, above=True), "Temperature of the texts.")
    top_p: float = setting(1.0, real(0, 1, above=True), "Nucleus mass of the texts.")
    max_new_tokens: int = setting(256, integer(1), "Maximum tokens of a text; max_length counts them too.")
    beta: float = setting(0.0, real(0), "Weight of the distance (KL) from the model at the start.")
    vllm: Mapping[str, Any] | None = setting(
        None, or_none(mapping), "TRL's settings of vLLM without vllm_, such as {mode: colocate}; needs a GPU."
    )

    @property
    def frozen_on_resume(self) -> tuple[str, ...]:
        """The settings that a started run keeps."""
        return FROZEN_ON_RESUME + FROZEN_IN_RL


def _settings_of(kind: Kind) -> type[TrainConfig]:
    return RLConfig if kind == "rl" else TrainConfig


def load_config(path: str, overrides: Sequence[str] = (), kind: Kind = "aft") -> TrainConfig:
    """Read a settings file and apply ``key=value`` overrides.

    Args:
        path: YAML, or TOML if the name ends in .toml.
        overrides: Their values are YAML, so ``k=[1,3,5]`` is a list.
        kind: The kind of training; rl has settings of its own.

    Raises:
        ConfigError: If the file cannot be read, or a key or value is not allowed.
    """
    return override(_read(Path(check_path("--config", path))), overrides, path, kind)


def override(settings: Mapping[str, Any], overrides: Sequence[str], source: str, kind: Kind = "aft") -> TrainConfig:
    """Replace some settings by ``key=value`` texts, check them and fill in the defaults.

    Raises:
        ConfigError: If a text is not ``key=value``, or a key or value is not allowed.
    """
    settings, known = dict(settings), parsers(_settings_of(kind))
    for text_given in overrides:
        name, separator, value = text_given.partition("=")
        if not separator:
            raise ConfigError(f"--set {public_word(text_given)} is not allowed: write --set key=value.")
        try:
            read = yaml.safe_load(value)
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            reason = " ".join(str(error).split())
            raise ConfigError(f"--set {text_given} cannot be read ({reason}): write the value as YAML.") from error
        # A folder may be called 2024.
        is_text = read is not None and known.get(name.strip()) in (text, _path)
        settings[name.strip()] = value.strip() if is_text and not isinstance(read, str) else read
    return make_config(settings, source, kind)


def make_config(settings: Mapping[str, Any], source: str, kind: Kind = "aft") -> TrainConfig:
    """Check settings and fill in the defaults. A value of None means the default.

    Raises:
        ConfigError: If a key is unknown or missing, or its value is not allowed or a secret.
    """
    refuse_secrets(settings, source)
    known = parsers(_settings_of(kind))
    for name in settings:
        if name not in known:
            hint = nearest(str(name), known, f"the settings are {', '.join(known)}.")
            raise ConfigError(f"{name} in {source} is not a setting of aft train{' rl' * (kind == 'rl')}: {hint}")
    parsed = {name: known[name](name, value) for name, value in settings.items() if value is not None}
    for name in ("model", "data", "output", *(["reward"] if kind == "rl" else [])):
        if name not in parsed:
            raise ConfigError(f"{name} is missing in {source}: add {name}: ..., or --set {name}=...")
    if kind == "rl" and (
        unused := next((name for name in ("validation", "patience", "verifier", "packing") if parsed.get(name)), None)
    ):
        raise ConfigError(f"{unused} has no use in aft train rl: leave it out, and evaluate checkpoints with lm_eval.")
    if parsed.get("patience") and not parsed.get("validation"):
        raise ConfigError("patience needs a validation file: add validation: FILE, or leave patience out.")
    return _settings_of(kind)(**parsed)


def _read(path: Path) -> dict[str, Any]:
    refuse_stream(path)
    try:
        source = path.read_text(encoding="utf-8")
        settings = tomllib.loads(source) if path.suffix == ".toml" else yaml.safe_load(source)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"the settings {path} cannot be read ({reason}): give a YAML or TOML file.") from error
    if not isinstance(settings, dict):
        raise ConfigError(f"the settings {path} are not a list of key: value lines: see docs/training.md.")
    return settings
