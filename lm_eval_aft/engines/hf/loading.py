"""The model arguments of ``engine=hf``: checked by name and type, then given to lm-eval's HFLM.

HFLM loads the model and the tokenizer. It also scores loglikelihood requests. It does not generate for us.
"""

from __future__ import annotations

import inspect
import logging
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM

from lm_eval_aft.core.arguments import flag, integer, mapping
from lm_eval_aft.core.config import refuse_unknown
from lm_eval_aft.core.engine import HostArgs
from lm_eval_aft.core.errors import ConfigError, EngineError
from lm_eval_aft.core.loading import load_reason, refuse_adapter, refuse_no_checkpoint
from lm_eval_aft.core.log import log
from lm_eval_aft.core.model_checks import damaged_weights, missing_weights
from lm_eval_aft.core.output_head import keep_head_input_contiguous
from lm_eval_aft.core.secrets import is_secret
from lm_eval_aft.core.shards import refused_shard
from lm_eval_aft.engines.process_group import leave_group_at_exit

PICKLES = (
    ": weights in pickle files can run code and are refused; what trusts them is --model_args "
    """'{"pretrained":"FOLDER","model_kwargs":{"use_safetensors":false}}'."""
)
OWN_ARGS = {"batch_tokens", "look_ahead", "model_kwargs"}
# Arguments that decide the text besides the folder and the revision, so they enter the fingerprint.
TEXT_ARGS = ("gguf_file", "subfolder")
# Entries of model_kwargs that decide how a text is computed or read but not which text it is.
COMPUTE_ARGS = ("attn_implementation", "use_safetensors")
# Settings of a generation config that --model hf applies and our decode loop does not, with their neutral values.
IGNORED_SETTINGS: dict[str, Any] = {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "bad_words_ids": None}
# Arguments of HFLM without effect on what we generate.
IGNORED_ARGS = {"mixed_precision_dtype", "truncation"}


@dataclass(frozen=True, slots=True)
class HFArgs:
    """Arguments that have passed every check.

    Attributes:
        loader: What HFLM's constructor gets, besides the batch size.
        batch_size: lm-eval's, for loglikelihood requests.
        batch_prompts: Distinct prompts a batch may hold, or None for no limit.
        batch_tokens: Tokens a batch may hold, or None to measure the memory.
        text_settings: Arguments that decide the text and that HFLM does not remember.
        look_ahead: Whether the tokens that a prompt shows are proposed. No text depends on it.
    """

    loader: Mapping[str, Any]
    batch_size: int | str
    batch_prompts: int | None = None
    batch_tokens: int | None = None
    text_settings: Mapping[str, Any] = field(default_factory=dict)
    look_ahead: bool = False

    @classmethod
    def of(cls, engine_args: Mapping[str, Any], host: HostArgs) -> HFArgs:
        """Check model arguments against HFLM's constructor.

        Raises:
            ConfigError: If an argument is unknown, of the wrong type, or if ``pretrained`` is missing.
            EngineError: If an adapter's weights are a pickle, or an index names files that must not be loaded.
        """
        allowed = set(inspect.signature(HFLM.__init__).parameters) - {"self", "kwargs", "think_end_token"} | OWN_ARGS
        refuse_unknown(engine_args, allowed, "hf")
        if "pretrained" not in engine_args:
            raise ConfigError("pretrained is missing: give --model_args pretrained=FOLDER_OR_HUB_NAME.")
        refuse_no_checkpoint("pretrained", str(engine_args["pretrained"]))
        if not engine_args.get("subfolder"):
            refuse_adapter(str(engine_args["pretrained"]), "peft")
        for name in [each for each in ("peft", "delta", "tokenizer") if isinstance(engine_args.get(each), str)]:
            refuse_no_checkpoint(name, str(engine_args[name]))
        args = dict(engine_args)
        batch_tokens = args.pop("batch_tokens", None)
        batch_tokens = None if batch_tokens is None else integer(1)("batch_tokens", batch_tokens)
        look_ahead = args.pop("look_ahead", None)
        look_ahead = False if look_ahead is None else flag("look_ahead", look_ahead)
        model_kwargs = mapping("model_kwargs", args.pop("model_kwargs", {}))
        text_settings = {name: args[name] for name in TEXT_ARGS if args.get(name)}
        # token=true lets the hub's library use the token of the environment, which changes no text.
        chosen = {name: value for name, value in model_kwargs.items() if not is_secret(name)}
        text_settings |= {name: value for name, value in chosen.items() if name not in COMPUTE_ARGS}
        batch_prompts = _batch_prompts(host.batch_size)
        loader = _loader_args(args, model_kwargs, host)
        _refuse_shards(loader)
        return cls(loader, host.batch_size, batch_prompts, batch_tokens, text_settings, look_ahead)


def load_lm(args: HFArgs) -> HFLM:
    """Load the model and its tokenizer.

    Raises:
        Exception: Of any kind, if the checkpoint cannot be loaded, or is not a causal model.
    """
    on_cpu = args.loader.get("device") == "cpu" or not torch.cuda.is_available()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and on_cpu:
        # Without this setting accelerate takes each CPU process for the only one.
        os.environ.setdefault("ACCELERATE_USE_CPU", "true")
    with _missing_weights() as missing:
        lm = HFLM(batch_size=args.batch_size, **args.loader)
    leave_group_at_exit()
    _share_requests(lm)
    if lm.config.is_encoder_decoder:
        raise ValueError("it is an encoder-decoder model, and engine=hf runs causal ones.")
    if reason := missing_weights(missing) or damaged_weights(lm.model):
        raise ValueError(reason)
    _warn_of_ignored_settings(lm.model, args.loader)
    keep_head_input_contiguous(lm.model)
    return lm


@contextmanager
def _missing_weights() -> Iterator[list[str]]:
    """Collect the weights that transformers and peft do not find in the checkpoints that are loaded meanwhile.

    transformers only reports them in a log message, and peft in a warning. HFLM has no argument for transformers' own
    ``output_loading_info``.
    """
    missing: list[str] = []

    def read(record: logging.LogRecord) -> bool:
        names = re.findall(r"^(\S+) *\|[^|\n]*MISSING", record.getMessage(), re.MULTILINE)
        missing.extend(names)
        return shown and not names

    logger = logging.getLogger("transformers.modeling_utils")
    level, shown = logger.level, logger.isEnabledFor(logging.WARNING)
    if not shown:
        logger.setLevel(logging.WARNING)
    logger.addFilter(read)
    try:
        with warnings.catch_warnings(record=True, action="always", category=UserWarning) as caught:
            yield missing
    finally:
        logger.removeFilter(read)
        logger.setLevel(level)
    for warning in caught:
        if "missing adapter keys" in str(warning.message):
            missing.extend(re.findall(r"'([^']+)'", str(warning.message)))
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


def load_failure(error: Exception, args: HFArgs) -> EngineError:
    """The sentence for an error of ``load_lm``."""
    reason = load_reason(error, str(args.loader.get("pretrained")))
    advice = PICKLES if "safetensors" in reason else ""
    return EngineError(f"pretrained={args.loader.get('pretrained')} cannot be loaded: {reason}{advice}")


def _loader_args(args: Mapping[str, Any], model_kwargs: Mapping[str, Any], host: HostArgs) -> dict[str, Any]:
    """The arguments of HFLM's constructor."""
    # A pickle can run code. A GGUF file cannot.
    safe = {} if "gguf_file" in args else {"use_safetensors": True}
    merged = {**safe, "device": host.device, "max_batch_size": host.max_batch_size, **args, **model_kwargs}
    loader = {name: value for name, value in merged.items() if value is not None}
    if loader.get("enable_thinking"):
        # HFLM requires a mark that ends thinking. It uses the mark in its own generation only, which we do not use.
        loader["think_end_token"] = "</think>"
    if loader.get("use_safetensors"):
        _refuse_pickles(loader.get("peft"))
    if "tokenizer" not in loader and (folder := _adapter_with_tokenizer(loader.get("peft"))):
        loader["tokenizer"] = folder
    return loader


def _batch_prompts(batch_size: int | str) -> int | None:
    """lm-eval's --batch_size: a whole number, or "auto" with or without a suffix, which is no limit."""
    if isinstance(batch_size, str) and batch_size.startswith("auto"):
        return None
    prompts: int = integer(1)("batch_size", batch_size)
    return prompts


def _adapter_with_tokenizer(adapter: Any) -> str | None:
    """The folder of an adapter that holds its own tokenizer: training may have given it a chat template."""
    has_tokenizer = isinstance(adapter, str) and Path(adapter, "tokenizer_config.json").is_file()
    return str(adapter) if has_tokenizer else None


def _refuse_pickles(adapter: Any) -> None:
    """Refuse an adapter folder whose weights are a pickle. A hub adapter is not checked before it is downloaded.

    Raises:
        EngineError: If they are.
    """
    folder = Path(str(adapter or ""))
    if adapter and folder.is_dir() and not (folder / "adapter_model.safetensors").is_file():
        raise EngineError(f"peft={adapter} holds no adapter_model.safetensors{PICKLES}")


def _refuse_shards(loader: Mapping[str, Any]) -> None:
    """Refuse checkpoints and adapters whose index names pickles, or files outside its folder.

    Raises:
        EngineError: If one does.
    """
    for argument in ("pretrained", "peft", "delta"):
        if not isinstance(name := loader.get(argument), str):
            continue
        folder = str(Path(name, loader.get("subfolder") or "")) if argument == "pretrained" else name
        if reason := refused_shard(folder, pickles=not loader.get("use_safetensors")):
            raise EngineError(f"{argument}={name} cannot be loaded: {reason}")


def _share_requests(lm: HFLM) -> None:
    """Let the CPU processes of one launch share the requests. HFLM numbers its processes only if it sees GPUs."""
    # HFLM has no accelerator if it was given a loaded model.
    accelerator = getattr(lm, "accelerator", None)
    if accelerator is not None and lm.world_size == 1:
        lm._rank, lm._world_size = accelerator.process_index, accelerator.num_processes


class HFProcesses:
    """The processes of a loaded HFLM. Its methods for them differ between versions of lm-eval."""

    def __init__(self, lm: HFLM) -> None:
        """Take a loaded HFLM."""
        self._lm = lm

    @property
    def rank(self) -> int:
        """See ``Processes.rank``."""
        return int(self._lm.rank)

    @property
    def world_size(self) -> int:
        """See ``Processes.world_size``."""
        return int(self._lm.world_size)

    def all_gather(self, tensor: Any) -> Any:
        """See ``Processes.all_gather``."""
        return self._lm.accelerator.gather(tensor) if self.world_size > 1 else tensor

    def gather_object(self, obj: Any, dst: int = 0) -> list[Any] | None:
        """See ``Processes.gather_object``."""
        if self.world_size == 1:
            return [obj]
        objects = [None] * self.world_size if self.rank == dst else None
        torch.distributed.gather_object(obj, objects, dst)
        return objects

    def barrier(self) -> None:
        """See ``Processes.barrier``."""
        if self.world_size > 1:
            self._lm.accelerator.wait_for_everyone()


def _warn_of_ignored_settings(model: Any, loader: Mapping[str, Any]) -> None:
    """Warn of settings that ``--model hf`` applies and our decode loop does not."""
    settings = {name: getattr(model.generation_config, name, None) for name in IGNORED_SETTINGS}
    settings = {name: value for name, value in settings.items() if value not in (None, IGNORED_SETTINGS[name])}
    if settings:
        listed = ", ".join(f"{name}={value}" for name, value in settings.items())
        log.warning("The generation config sets %s: --model hf applies it, --model aft does not.", listed)
    for name in IGNORED_ARGS & set(loader):
        log.warning("%s=%s has no effect on what --model aft generates.", name, loader[name])
