"""One training run: transformers.Trainer around a model and its examples, from the first step to the saved checkpoint.

Knows nothing of what the examples mean. Called by ``train``; imports torch, so only when a run starts.
"""

from __future__ import annotations

import errno
import json
import logging
import math
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    EarlyStoppingCallback,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)

from lm_eval_aft.checkpoint import CheckpointConfig
from lm_eval_aft.errors import ConfigError, EngineError
from trainers.batches import Collator, LengthGroupedSampler, trims_logits
from trainers.config import TrainConfig
from trainers.encode import Encoder, Example
from trainers.folder import Run, trim_log, write_card

log = logging.getLogger("lm_eval.aft")
Say = Callable[[str], None]


class AFTTrainer(Trainer):
    """Trainer with our order of examples."""

    def _get_train_sampler(self, train_dataset: Any = None) -> LengthGroupedSampler:
        lengths = [len(example.token_ids) for example in self.train_dataset]
        return LengthGroupedSampler(lengths, self.args.per_device_train_batch_size, self.args.seed)


class RunLog(TrainerCallback):
    """Writes the log and the card of each checkpoint, and stops on a loss that is no number."""

    def __init__(self, run: Run, aft: CheckpointConfig, facts: Sequence[str], collator: Collator, say: Say) -> None:
        """Keep what a checkpoint must say."""
        self.run, self.aft, self.facts, self.collator, self.say = run, aft, facts, collator, say
        self.started = time.monotonic()

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any
    ) -> None:
        """Write one line, on the terminal and in log.jsonl."""
        keys = ("loss", "eval_loss", "grad_norm", "learning_rate")
        row = {key: float(logs[key]) for key in keys if key in logs}
        for key in ("loss", "eval_loss", "grad_norm"):
            if key in row and not math.isfinite(row[key]):
                raise EngineError(
                    f"the {key} became {row[key]} by step {state.global_step}: lower learning_rate, or look for broken "
                    f"rows in the data; the checkpoints in {self.run.folder} are from before."
                )
        if not state.is_world_process_zero or not row.keys() & {"loss", "eval_loss"}:
            return
        elapsed_s = round(time.monotonic() - self.started, 2)
        row |= {"step": state.global_step, "epoch": round(state.epoch or 0, 4), "elapsed_s": elapsed_s}
        row |= {"tokens": self.collator.tokens}
        with self.run.log.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(row) + "\n")
        self.say(_line(row, state.max_steps))

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Mark a checkpoint as whole, after all else is in it."""
        if state.is_world_process_zero:
            folder = Path(args.output_dir, f"checkpoint-{state.global_step}")
            write_card(folder, self.run, self.aft, self.facts)


def _line(row: dict[str, float], steps: int) -> str:
    parts = [f"step {row['step']:.0f}/{steps}", f"epoch {row['epoch']:.2f}"]
    parts += [f"loss {row['loss']:.4f}"] if "loss" in row else []
    parts += [f"validation loss {row['eval_loss']:.4f}"] if "eval_loss" in row else []
    parts += [f"learning rate {row['learning_rate']:.1e}"] if "learning_rate" in row else []
    return "  ".join([*parts, f"{row['tokens'] / max(row['elapsed_s'], 1e-9):,.0f} tokens/s"])


def load_tokenizer(config: TrainConfig) -> Any:
    """The tokenizer of the model to train."""
    return _load(AutoTokenizer, config)


def _load(loader: Any, config: TrainConfig, **options: Any) -> Any:
    try:
        return loader.from_pretrained(config.model, revision=config.revision or "main", **options)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().split("\n")[0]
        raise EngineError(f"model={config.model} cannot be loaded: {reason}") from error


def load_model(config: TrainConfig) -> Any:
    """The model with what is to be trained: an adapter, or all weights (then in float32)."""
    set_seed(config.seed)
    dtype = torch.bfloat16 if config.bf16 and config.lora_rank else torch.float32
    model = _load(AutoModelForCausalLM, config, dtype=dtype)
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


def fit(
    run: Run,
    encoder: Encoder,
    examples: Sequence[Example],
    validation: Sequence[Example],
    aft: CheckpointConfig,
    facts: Sequence[str],
    say: Say,
) -> None:
    """Train, or go on training, and save the result.

    Raises:
        EngineError: If the model cannot be loaded, the loss is no number, or a checkpoint cannot be written.
    """
    config, model, tokenizer = run.config, load_model(run.config), encoder.renderer.tokenizer
    _end_texts(model, encoder.end_id)
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    pad = next(i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0) if i is not None)
    collator = Collator(pad, trims_logits(base))
    trainer = AFTTrainer(
        model=model,
        args=arguments(config, len(validation) > 0),
        train_dataset=list(examples),
        eval_dataset=sorted(validation, key=lambda example: len(example.token_ids)) or None,
        data_collator=collator,
        processing_class=tokenizer,
        callbacks=[RunLog(run, aft, facts, collator, say)],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    if config.patience:
        trainer.add_callback(EarlyStoppingCallback(config.patience))
    if trainer.is_world_process_zero():
        run.folder.mkdir(parents=True, exist_ok=True)
        trim_log(run.log, int(run.resume_from.name.rpartition("-")[2]) if run.resume_from else -1)
        run.write_state(finished=False)
    _guarded(run, lambda: trainer.train(resume_from_checkpoint=str(run.resume_from) if run.resume_from else None))
    best = trainer.state.best_model_checkpoint
    if best and trainer.is_world_process_zero():
        step = best.rpartition("-")[2]
        say(f"kept: step {step}, validation loss {trainer.state.best_metric:.4f}, the lowest")
        facts = [*facts, f"kept: step {step} of {trainer.state.global_step}, by validation loss"]
    _guarded(run, lambda: _save(trainer, run, aft, facts))


def arguments(config: TrainConfig, validated: bool) -> TrainingArguments:
    """Our settings in Trainer's words."""
    when = "steps" if config.save_every else "epoch"
    return TrainingArguments(
        output_dir=str(Path(config.output, "checkpoints")),
        per_device_train_batch_size=config.batch_size,
        per_device_eval_batch_size=config.batch_size,
        gradient_accumulation_steps=config.accumulate,
        num_train_epochs=config.epochs,
        max_steps=config.max_steps or -1,
        learning_rate=config.learning_rate,
        lr_scheduler_type=config.schedule,
        warmup_steps=config.warmup if config.warmup < 1 else 0.999,  # below 1 it is a share of the steps
        weight_decay=config.weight_decay,
        optim="adamw_torch_fused",
        bf16=config.bf16,
        use_cpu=config.device == "cpu" or not torch.accelerator.is_available(),
        seed=config.seed,
        logging_steps=config.log_every,
        logging_nan_inf_filter=False,  # it would hide what RunLog looks for
        eval_strategy=when if validated else "no",
        eval_steps=config.save_every,
        save_strategy=when,
        save_steps=config.save_every or 500,
        save_total_limit=config.keep,
        load_best_model_at_end=validated,
        metric_for_best_model="eval_loss" if validated else None,
        greater_is_better=False if validated else None,
        prediction_loss_only=True,
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available() and config.device != "cpu",
        ddp_find_unused_parameters=False,
        report_to="none",
        disable_tqdm=True,
        label_names=["labels"],
        **_checkpointing(config.gradient_checkpointing),
    )


def _checkpointing(wanted: bool) -> dict[str, Any]:
    """Gradient checkpointing under the name that this transformers has for it."""
    names = {f.name for f in fields(TrainingArguments)}
    name = "activation_checkpointing" if "activation_checkpointing" in names else "gradient_checkpointing"
    return {name: True, f"{name}_kwargs": {"use_reentrant": False}} if wanted else {}


def _end_texts(model: Any, end_id: int) -> None:
    """Let generation end where training ended its targets, whoever runs the checkpoint."""
    known = model.generation_config.eos_token_id
    ids = {end_id, *(known if isinstance(known, list) else [] if known is None else [known])}
    model.generation_config.eos_token_id = sorted(ids) if len(ids) > 1 else end_id


def _guarded(run: Run, work: Callable[[], Any]) -> None:
    """Turn a full disk into a sentence: what was saved before is whole, and the run goes on from there."""
    try:
        work()
    except Exception as error:
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or any(
            sign in str(error) for sign in ("No space left", "os error 28", "PytorchStreamWriter failed")
        )
        if not full:
            raise
        raise EngineError(
            f"the disk is full: a checkpoint could not be written to {run.folder} ({error}); free some space and give "
            "the same command, it goes on from the last whole checkpoint."
        ) from error


def _save(trainer: Trainer, run: Run, aft: CheckpointConfig, facts: Sequence[str]) -> None:
    trainer.save_model(str(run.folder))
    if not trainer.is_world_process_zero():
        return
    if not run.config.lora_rank and run.config.save_dtype:
        model = AutoModelForCausalLM.from_pretrained(run.folder, dtype=getattr(torch, run.config.save_dtype))
        model.save_pretrained(run.folder)
    (run.folder / "training_args.bin").unlink(missing_ok=True)  # a pickle; run.json says the same
    write_card(run.folder, run, aft, facts)
    run.write_state(finished=True)


def merge(run: Run, end_id: int, aft: CheckpointConfig, facts: Sequence[str]) -> Path:
    """Write base and adapter as one checkpoint, in the base's dtype unless ``save_dtype`` says another."""
    folder = run.folder / "merged"
    base = _load(AutoModelForCausalLM, run.config, dtype="auto")
    dtype = getattr(torch, run.config.save_dtype) if run.config.save_dtype else base.dtype
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        merged = PeftModel.from_pretrained(base.float(), str(run.folder)).merge_and_unload()
    _end_texts(merged, end_id)
    _guarded(run, lambda: merged.to(dtype).save_pretrained(folder))
    AutoTokenizer.from_pretrained(run.folder).save_pretrained(folder)
    write_card(folder, run, aft, facts)
    return folder
