"""The model of a training run: loaded, given its adapter, told where texts end, and merged.

Called by ``train`` and ``loop``.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

from lm_eval_aft.bundled import locate
from lm_eval_aft.checkpoint import CheckpointConfig
from lm_eval_aft.errors import ConfigError, EngineError
from trainers.card import write_card
from trainers.config import TrainConfig
from trainers.folder import Run, disk_guard


def load_tokenizer(config: TrainConfig) -> Any:
    """The tokenizer of the model to train."""
    return _load(AutoTokenizer, config)


def _load(loader: Any, config: TrainConfig, **options: Any) -> Any:
    try:
        return loader.from_pretrained(locate(config.model), revision=config.revision or "main", **options)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().split("\n")[0]
        if "safetensors" in reason:
            reason += ": weights in pickle files can run code and are refused; save them as safetensors first."
        if "ignore_mismatched_sizes" in reason:
            reason = "config.json does not fit the weights; give a folder in which both belong together."
        if isinstance(error, SafetensorError):
            reason += ": the weights are cut or damaged; fetch or save them again."
        raise EngineError(f"model={config.model} cannot be loaded: {reason}") from error


def load_model(config: TrainConfig) -> Any:
    """The model with what is to be trained: an adapter, or all weights (then in float32)."""
    set_seed(config.seed)
    dtype = torch.bfloat16 if config.bf16 and config.lora_rank else torch.float32
    model = _load(AutoModelForCausalLM, config, dtype=dtype, use_safetensors=True)
    if not config.lora_rank:
        return model
    targets: Any = config.lora_targets if config.lora_targets != ("all-linear",) else "all-linear"
    adapter = LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        task_type="CAUSAL_LM",
    )
    try:
        with warnings.catch_warnings():  # peft asks transformers 5.23 for a name that is about to go
            warnings.simplefilter("ignore", FutureWarning)
            return get_peft_model(model, adapter)
    except ValueError as error:
        raise ConfigError(f"lora_targets={','.join(config.lora_targets)} does not fit the model: {error}") from error


def beyond_positions(model: Any, lengths: Sequence[int]) -> str | None:
    """A warning where examples are longer than the model has positions."""
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    longer = sum(length > positions for length in lengths) if positions else 0
    if not longer:
        return None
    return (
        f"warning: {longer} examples are longer than the {positions} positions that the model knows: lower max_length "
        f"to {positions}."
    )


def end_texts(model: Any, end_id: int) -> None:
    """Let generation end where training ended its targets, whoever runs the checkpoint."""
    known = model.generation_config.eos_token_id
    ids = {end_id, *(known if isinstance(known, list) else [] if known is None else [known])}
    model.generation_config.eos_token_id = sorted(ids) if len(ids) > 1 else end_id


def merge(run: Run, end_id: int, aft: CheckpointConfig, facts: Sequence[str]) -> Path:
    """Write base and adapter as one checkpoint, in the base's dtype unless ``save_dtype`` says another."""
    folder = run.folder / "merged"
    base = _load(AutoModelForCausalLM, run.config, dtype="auto", use_safetensors=True)
    dtype = getattr(torch, run.config.save_dtype) if run.config.save_dtype else base.dtype
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        merged = PeftModel.from_pretrained(base.float(), str(run.folder)).merge_and_unload()
    end_texts(merged, end_id)
    with disk_guard(run):
        merged.to(dtype).save_pretrained(folder)
        AutoTokenizer.from_pretrained(run.folder).save_pretrained(folder)
        write_card(folder, run, aft, facts, merged=True)
    return folder
