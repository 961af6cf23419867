"""Every setting of ``aft train``: its type, default, check and meaning; read from YAML or TOML and ``--set``.

Knows nothing of data or models. Called by ``train``.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import yaml

from lm_eval_aft.core.arguments import Parse, flag, integer, or_none, real, strings, text
from lm_eval_aft.core.errors import ConfigError

Kind = Literal["sft", "aft", "aft-no-drafts", "aft-pseudo"]
KINDS: dict[Kind, str] = {
    "sft": "query -> sft_target (else target): the baseline",
    "aft": "query + drafts -> target, and a share of plain examples",
    "aft-no-drafts": "query -> target: what the targets teach without the drafts",
    "aft-pseudo": "query + drafts -> sft_target: targets that were not made from the drafts",
}
# What a started run keeps: its optimizer state, its order of batches or its weights were made with these.
BAKED = (
    *("model", "revision", "k", "sets_per_query", "plain_share", "max_length", "seed", "bf16"),
    *("batch_size", "accumulate", "learning_rate", "schedule", "warmup", "weight_decay", "epochs", "max_steps"),
    *("lora_rank", "lora_alpha", "lora_dropout", "lora_targets"),
)


def _arg(default: Any, parse: Parse, meaning: str) -> Any:
    return field(default=default, metadata={"parse": parse, "meaning": meaning})


def _one_of(*allowed: str) -> Parse:
    def parse(name: str, value: Any) -> str:
        if value not in allowed:
            raise ConfigError(f"{name}={value} is not allowed: {name} must be one of {', '.join(allowed)}.")
        return str(value)

    return parse


def _counts(name: str, value: Any) -> tuple[int, ...]:
    """One whole number or a list of them, which a command line may give as 1,3,5."""
    items = value.split(",") if isinstance(value, str) else value if isinstance(value, (list, tuple)) else [value]
    counts = tuple(integer(1)(name, item) for item in items)
    if not counts:
        raise ConfigError(f"{name}=[] is not allowed: give a number of drafts, or several, such as [1, 3, 5].")
    return counts


def _names(name: str, value: Any) -> tuple[str, ...]:
    """One name or a list of them, which a command line may give as q_proj,v_proj."""
    return strings(name, [part.strip() for part in value.split(",")] if isinstance(value, str) else value)


def _path(name: str, value: Any) -> str:
    """A text that may begin with ~, the user's home."""
    return os.path.expanduser(text(name, value))  # which leaves a ~ of nobody, where Path would raise


@dataclass(frozen=True)
class TrainConfig:
    """The settings of one training run."""

    model: str = _arg("", _path, "folder or hub name of the model to train further")
    data: str = _arg("", _path, "JSONL: query, drafts, target, sft_target")
    output: str = _arg("", _path, "folder of the run: checkpoints, log and card")
    revision: str | None = _arg(None, text, "revision of a hub model")
    validation: str | None = _arg(None, _path, "JSONL like data; the checkpoint with its lowest loss is kept")
    template: str | None = _arg(None, _path, "file with the two prompt blocks; default: the model's, else ours")
    k: tuple[int, ...] = _arg((), _counts, "drafts an example, or several k drawn evenly; default: all of a row's")
    sets_per_query: int = _arg(1, integer(1), "examples with drafts a row, each with its own draw and order")
    plain_share: float = _arg(0.2, real(0, 0.95), "share of plain examples (aft, aft-pseudo)")
    max_length: int = _arg(2048, integer(8), "tokens of an example; drafts are cut to fit, targets never")
    lora_rank: int = _arg(8, integer(0), "0 trains all weights")
    lora_alpha: float = _arg(16.0, real(0, above=True), "LoRA's scale times its rank")
    lora_dropout: float = _arg(0.0, real(0, 0.9), "")
    lora_targets: tuple[str, ...] = _arg(("all-linear",), _names, "names of the layers that get an adapter")
    learning_rate: float = _arg(2e-4, real(0, above=True), "the highest; 2e-5 suits lora_rank: 0 on pretrained models")
    schedule: str = _arg("cosine", _one_of("cosine", "linear", "constant"), "of the learning rate")
    warmup: float = _arg(0.03, real(0, 1), "share of the steps; less than one step is none")
    weight_decay: float = _arg(0.0, real(0), "")
    epochs: float = _arg(1.0, real(0, above=True), "passes over the examples")
    max_steps: int | None = _arg(None, or_none(integer(1)), "optimizer steps; beats epochs")
    batch_size: int = _arg(8, integer(1), "examples a device and step")
    accumulate: int = _arg(1, integer(1), "batches an optimizer step")
    bf16: bool = _arg(False, flag, "compute in bfloat16; under LoRA the frozen weights are bfloat16 too")
    save_dtype: str | None = _arg(None, _one_of("float32", "bfloat16", "float16"), "of full weights that are written")
    gradient_checkpointing: bool = _arg(False, flag, "less memory, about a third slower")
    device: str = _arg("auto", _one_of("auto", "cpu"), "auto takes a GPU where there is one")
    seed: int = _arg(0, integer(0, 2**32), "of draws, order and new weights")
    log_every: int = _arg(10, integer(1), "steps")
    save_every: int | None = _arg(
        None, or_none(integer(1)), "steps from a checkpoint (and validation) to the next; default: an epoch"
    )
    keep: int = _arg(1, integer(1), "newest checkpoints kept for a resume; the best one stays too")
    patience: int | None = _arg(None, or_none(integer(1)), "validations without a lower loss before it stops")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as they stand in the run's folder."""
        return asdict(self)

    @property
    def k_max(self) -> int:
        """The largest k asked for; 0 where each row's own number of drafts counts."""
        return max(self.k, default=0)


def load_config(path: str, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read a settings file and apply ``key=value`` overrides.

    Args:
        path: YAML, or TOML where the name ends in .toml.
        overrides: Values are read as YAML, so ``k=[1,3,5]`` is a list.

    Raises:
        ConfigError: If the file cannot be read, or a key or value is not allowed.
    """
    settings, parsers = _read(Path(path)), _parsers()
    for override in overrides:
        name, separator, value = override.partition("=")
        if not separator:
            raise ConfigError(f"--set {override} is not allowed: write --set key=value.")
        try:
            read = yaml.safe_load(value)
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            reason = " ".join(str(error).split())
            raise ConfigError(f"--set {override} cannot be read ({reason}): write the value as YAML.") from error
        is_text = read is not None and parsers.get(name.strip()) in (text, _path)  # a folder may be called 2024
        settings[name.strip()] = value.strip() if is_text and not isinstance(read, str) else read
    return make_config(settings, path)


def make_config(settings: Mapping[str, Any], source: str) -> TrainConfig:
    """Check settings and fill in the defaults; a value of None means the default.

    Raises:
        ConfigError: On the first key that is unknown, missing or has a value that is not allowed.
    """
    parsers = _parsers()
    for name in settings:
        if name not in parsers:
            near = get_close_matches(str(name), parsers, n=1)
            hint = f"did you mean {near[0]}?" if near else f"the settings are {', '.join(parsers)}."
            raise ConfigError(f"{name} in {source} is not a setting of aft train: {hint}")
    parsed = {name: parsers[name](name, value) for name, value in settings.items() if value is not None}
    for name in ("model", "data", "output"):
        if name not in parsed:
            raise ConfigError(f"{name} is missing in {source}: add {name}: ..., or --set {name}=...")
    if parsed.get("patience") and not parsed.get("validation"):
        raise ConfigError("patience needs a validation file: add validation: FILE, or leave patience out.")
    return TrainConfig(**parsed)


def _parsers() -> dict[str, Parse]:
    return {f.name: f.metadata["parse"] for f in fields(TrainConfig)}


def _read(path: Path) -> dict[str, Any]:
    try:
        source = path.read_text(encoding="utf-8")
        settings = tomllib.loads(source) if path.suffix == ".toml" else yaml.safe_load(source)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"the settings {path} cannot be read ({reason}): give a YAML or TOML file.") from error
    if not isinstance(settings, dict):
        raise ConfigError(f"the settings {path} are not a list of key: value lines: see docs/training.md.")
    return settings


def markdown_table() -> str:
    """The settings as a table: the one in docs/training.md is this one."""
    lines = ["| setting | default | meaning |", "|---|---|---|"]
    for f in fields(TrainConfig):
        default = "" if f.default in (None, (), "") else f.default
        default = ", ".join(map(str, default)) if isinstance(default, tuple) else default
        lines.append(f"| `{f.name}` | {default} | {f.metadata['meaning']} |")
    return "\n".join(lines)
