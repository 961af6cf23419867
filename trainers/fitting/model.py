"""The model of a training run: loading, adapters, the end of texts, and merging."""

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
from lm_eval_aft.core.errors import ConfigError, EngineError
from lm_eval_aft.core.loading import load_reason, loading, named_reason_of, reason_of, refuse_no_checkpoint
from lm_eval_aft.core.model_checks import (
    damaged_logits,
    damaged_weights,
    embedding_rows,
    foreign_token,
    missing_weights,
)
from lm_eval_aft.core.output_head import keep_head_input_contiguous
from lm_eval_aft.core.shards import refused_shard
from lm_eval_aft.inference.checkpoint import CheckpointConfig
from trainers.fitting.batching import PackingCollator, trims_logits
from trainers.fitting.checkpoint_card import write_checkpoint_card
from trainers.fitting.examples import Example
from trainers.fitting.run import Say, TrainingRun, disk_guard
from trainers.settings import TrainConfig


def load_tokenizer(config: TrainConfig) -> Any:
    """The tokenizer of the model to train.

    Raises:
        EngineError: If it cannot be loaded.
        ConfigError: If the model is an adapter.
    """
    refuse_no_checkpoint("model", locate(config.model))
    _refuse_adapter(config, Path(locate(config.model), "adapter_config.json").is_file())
    return _load(AutoTokenizer, config)


def _refuse_adapter(config: TrainConfig, is_adapter: bool) -> None:
    """Refuse an adapter as the model to train: a new adapter would replace what it has learnt."""
    if is_adapter:
        raise ConfigError(
            f"model={config.model} is an adapter: merge it first (aft train --merge, or peft), and give the folder of "
            "the whole checkpoint."
        )


def _load(loader: Any, config: TrainConfig, **options: Any) -> Any:
    def refuse(error: Exception) -> EngineError:
        reason = load_reason(error, locate(config.model))
        if "safetensors" in reason:
            reason += ": weights in pickle files can run code and are refused; save them as safetensors first."
        if "ignore_mismatched_sizes" in reason:
            reason = "config.json does not fit the weights; give a folder in which both belong together."
        if isinstance(error, SafetensorError):
            reason += ": the weights are cut or damaged; fetch or save them again."
        return EngineError(f"model={config.model} cannot be loaded: {reason}")

    with loading(refuse):
        if reason := refused_shard(locate(config.model)):
            raise EngineError(f"model={config.model} cannot be loaded: {reason}")
        return loader.from_pretrained(locate(config.model), revision=config.revision or "main", **options)


def _load_weights(config: TrainConfig, **options: Any) -> Any:
    """Load the model.

    Raises:
        EngineError: If it cannot be loaded, or weights are missing or damaged.
    """
    loaded = _load(AutoModelForCausalLM, config, use_safetensors=True, output_loading_info=True, **options)
    model, info = loaded
    if reason := missing_weights(info["missing_keys"]) or damaged_weights(model):
        raise EngineError(f"model={config.model} cannot be trained: {reason}")
    keep_head_input_contiguous(model)
    return model


def _probe_ids(model: Any, count: int) -> torch.Tensor:
    """Token ids of ordinary words, (count,), to try a model on.

    Low ids are control tokens in large vocabularies. SmolLM2 never learnt some of them, and amplifies rounding there to
    0.04% of its logits in float32 and to 16% in bfloat16.
    """
    rows = embedding_rows(model) or count + 2
    return (torch.arange(count) + (rows // 2 if rows > 1000 else 2)) % rows


@torch.no_grad()
def _refuse_other_models(model: Any, config: TrainConfig) -> None:
    """Check on a few tokens that the model is causal, and that an example's logits do not depend on its batch.

    Raises:
        EngineError: If it is not, or cannot be run, or its logits are not numbers.
    """
    ids = _probe_ids(model, 12)
    batch = torch.stack([ids, torch.cat([ids[:8], ids[:4]]), ids.flip(0)])
    try:
        together, alone = _logits(model, batch), _logits(model, batch[:1, :8])[0]
        _run(model.train(), input_ids=batch, labels=batch)
    except ValueError as error:
        raise EngineError(f"model={config.model} cannot be trained: it does not run on token ids ({error}).") from error
    finally:
        model.eval()
    if not bool(together.amax(-1).isfinite().all()):
        raise EngineError(f"model={config.model} cannot be trained: {damaged_logits(model.dtype)}")
    bound = alone.nan_to_num().abs().max() * torch.finfo(model.dtype).eps ** 0.5
    if any(bool((row[:8] - alone).abs().max() > bound) for row in together[:2]):
        raise EngineError(
            f"model={config.model} cannot be trained: it is not causal, since its logits at a token depend on later "
            "tokens or on other examples of the batch. An encoder such as BERT needs is_decoder=true in config.json."
        )


def _logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Logits of a few tokens, (batch, seq, vocab).

    Raises:
        ValueError: If the model does not run.
    """
    logits: torch.Tensor = _run(model, input_ids=ids).logits.float()
    return logits


def _run(model: Any, **inputs: Any) -> Any:
    """The output of a model.

    Raises:
        ValueError: If the model does not run.
    """
    try:
        # Dropout draws random numbers, and the training that follows must not depend on that.
        with torch.random.fork_rng(devices=[]):
            moved = {n: each.to(model.device) if isinstance(each, torch.Tensor) else each for n, each in inputs.items()}
            return model(**moved)
    except Exception as error:
        raise ValueError(named_reason_of(error)) from error


def _is_whole(model: Any) -> bool:
    """Whether the model can be run. FSDP and DeepSpeed load the weights into shards."""
    return not any(weights.is_meta or not weights.numel() for weights in model.parameters())


def model_to_train(config: TrainConfig, end_id: int, highest: int, lengths: Sequence[int], say: Say) -> Any:
    """Load the model, checked against the examples. It ends texts at the token that ends targets.

    Args:
        config: The settings.
        end_id: The token that ends targets.
        highest: The highest token id of all examples.
        lengths: Tokens of each example.
        say: Prints a warning.

    Raises:
        AFTError: If the model cannot be loaded or trained, or has no embedding for a token.
    """
    model = load_model(config)
    set_end_token(model, end_id)
    refuse_foreign_tokens(model, config, highest)
    if config.packing and _is_whole(model):
        refuse_packing(model, config)
    elif config.packing:
        say("warning: nothing checks whether packing fits this model, since its weights are in shards.")
    if warning := beyond_positions(model, lengths):
        say(warning)
    return model


def load_model(config: TrainConfig) -> Any:
    """Load the model, with an adapter to train or with all weights in float32.

    Raises:
        EngineError: If it cannot be loaded, its weights are missing or damaged, or it is not causal.
        ConfigError: If it is an adapter, or ``lora_targets`` do not fit it.
    """
    set_seed(config.seed)
    dtype = torch.bfloat16 if config.bf16 and config.lora_rank else torch.float32
    model = _load_weights(config, dtype=dtype, attn_implementation=config.attention)
    # An adapter on the hub shows only after loading.
    _refuse_adapter(config, getattr(model, "_hf_peft_config_loaded", False))
    if _is_whole(model):
        _refuse_other_models(model, config)
    if not config.lora_rank:
        return model
    _check_targets(model, config)
    adapter = LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules="all-linear" if config.lora_targets == ("all-linear",) else list(config.lora_targets),
        task_type="CAUSAL_LM",
    )
    try:
        # peft uses a name that transformers 5.23 deprecates.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            adapted = get_peft_model(model, adapter)
        if _is_whole(adapted):
            # A layer may be called in a way that its adapter is not.
            with torch.no_grad():
                _logits(adapted, torch.tensor([[2, 3, 4]]))
    except ValueError as error:
        names = ",".join(config.lora_targets)
        raise ConfigError(
            f"lora_targets={names} does not fit the model: {error}; name other layers, for example "
            "lora_targets=q_proj,v_proj, or train all weights with lora_rank=0."
        ) from error
    return adapted


def _check_targets(model: Any, config: TrainConfig) -> None:
    """Check each name of ``lora_targets``: peft is content if one fits, and tied weights cannot be merged."""
    is_tied = getattr(model.config, "tie_word_embeddings", False)
    tied = (model.get_input_embeddings(), model.get_output_embeddings()) if is_tied else ()
    for target in config.lora_targets if config.lora_targets != ("all-linear",) else ():
        layers = [layer for name, layer in model.named_modules() if f".{name}".endswith(f".{target}")]
        if not layers:
            raise ConfigError(f"lora_targets={target} does not fit the model: it has no layer of that name.")
        if any(layer is part for layer in layers for part in tied):
            raise ConfigError(
                f"lora_targets={target} does not fit the model: its embedding and its output are one tensor, so that "
                "merging would change both; leave it out."
            )


def refuse_packing(model: Any, config: TrainConfig) -> None:
    """Check on two examples that packing does not change their logits, and that neither depends on the other.

    Raises:
        ConfigError: If it does, as in models with a recurrent state, or without positions as an input.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    ids = _probe_ids(model, 16).tolist()
    examples, learnt = [Example(tuple(ids[:8]), 5), Example(tuple(ids[:3:-1]), 8)], 5
    batch, alone = PackingCollator(trims_logits(base))(examples), torch.tensor([examples[1].token_ids])
    embedded: list[torch.Tensor] = []

    def keep(layer: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        embedded.append(output.detach().requires_grad_())
        # Some models change their embeddings in place.
        return embedded[-1].clone()

    hook = model.get_input_embeddings().register_forward_hook(keep)
    try:
        packed = _run(model, **batch).logits[0, -learnt:].float()
        # The gradient is exactly 0 where attention is masked, in every number format.
        leaks = bool(torch.autograd.grad(packed.square().sum(), embedded[0])[0][0, :8].any())
        with torch.no_grad():
            difference = (packed - _logits(model, alone)[0, -learnt:]).abs().max()
        fits = not leaks and difference <= packed.abs().max() * torch.finfo(model.dtype).eps ** 0.5
    except (ValueError, RuntimeError, IndexError):
        fits = False
    finally:
        hook.remove()
    if not fits:
        raise ConfigError(
            f"packing does not fit model={config.model}: its logits depend on the other examples of a packed batch. "
            "Leave packing out."
        )


def beyond_positions(model: Any, lengths: Sequence[int]) -> str | None:
    """A warning if examples are longer than the model has positions."""
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    longer = sum(length > positions for length in lengths) if positions else 0
    if not longer:
        return None
    limit = f"the {positions} positions that the model knows: lower max_length to {positions}."
    return f"warning: {longer} examples are longer than {limit}"


def refuse_foreign_tokens(model: Any, config: TrainConfig, highest: int) -> None:
    """Refuse examples with tokens that the model has no embedding for.

    Args:
        model: The model to train.
        config: Its name is shown.
        highest: The highest token id of all examples.

    Raises:
        ConfigError: If there is one.
    """
    if reason := foreign_token(highest, embedding_rows(model)):
        raise ConfigError(f"model={config.model} cannot be trained: {reason}")


def set_end_token(model: Any, end_id: int) -> None:
    """Add the token that ends targets to the model's generation settings, so that every engine stops there."""
    known = model.generation_config.eos_token_id
    ids = {end_id, *(known if isinstance(known, list) else [] if known is None else [known])}
    model.generation_config.eos_token_id = sorted(ids) if len(ids) > 1 else end_id
    try:
        model.generation_config.validate(strict=True)
    except ValueError:
        # Sampling settings cannot be saved without do_sample.
        model.generation_config.do_sample = True


def merge(run: TrainingRun, end_id: int, aft: CheckpointConfig, facts: Sequence[str]) -> Path:
    """Write base and adapter as one checkpoint, in ``save_dtype`` or the base's dtype. Returns its folder."""
    folder = run.folder / "merged"
    base = _load_weights(run.config, dtype="auto")
    dtype = getattr(torch, run.config.save_dtype) if run.config.save_dtype else base.dtype
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        with loading(lambda error: EngineError(f"the adapter in {run.folder} cannot be loaded: {reason_of(error)}")):
            merged = PeftModel.from_pretrained(base.float(), str(run.folder)).merge_and_unload()
    set_end_token(merged, end_id)
    with disk_guard(run.folder, merged):
        merged.to(dtype).save_pretrained(folder)
        AutoTokenizer.from_pretrained(run.folder).save_pretrained(folder)
        write_checkpoint_card(folder, run, aft, facts, merged=True)
    return folder
