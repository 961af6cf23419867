"""The training loop: transformers.Trainer from the first step to the saved checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from math import inf
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import (
    AutoModelForCausalLM,
    EvalPrediction,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerState,
    TrainingArguments,
)
from transformers.integrations import unset_hf_deepspeed_config

from lm_eval_aft.core.errors import AFTError, ConfigError, EngineError
from lm_eval_aft.core.loading import named_reason_of, reason_of
from lm_eval_aft.engines.process_group import leave_group_at_exit
from lm_eval_aft.inference.checkpoint import CheckpointConfig
from trainers.fitting.batching import Collator, LengthGroupedSampler, PackingCollator, target_nats, trims_logits
from trainers.fitting.callbacks import Patience, RunLog, locate_best
from trainers.fitting.checkpoint_card import write_checkpoint_card
from trainers.fitting.diagnosis import Diagnosis
from trainers.fitting.examples import MASK, Encoder, Example
from trainers.fitting.model import model_to_train
from trainers.fitting.run import Say, TrainingRun, damaged, disk_guard, step_of, trim_log
from trainers.settings import TrainConfig


def fit(
    run: TrainingRun,
    encoder: Encoder,
    examples: Sequence[Example],
    validation: Sequence[Example],
    aft: CheckpointConfig,
    facts: Sequence[str],
    say: Say,
    diagnosis: Diagnosis | None = None,
) -> None:
    """Train, or resume training, and save the result. A diagnosis is made at each validation.

    Raises:
        EngineError: If the model cannot be loaded, the loss is not finite, or a checkpoint cannot be written.
        ConfigError: If DeepSpeed would not write the weights of a finished run.
    """
    config, tokenizer = run.config, encoder.renderer.tokenizer
    # The arguments come first, since FSDP and DeepSpeed shard a model while it loads.
    args = arguments(config, len(validation) > 0)
    use_one_gpu(args, say)
    highest = max(max(example.token_ids) for example in [*examples, *validation])
    model = model_to_train(config, encoder.end_id, highest, [len(example.token_ids) for example in examples], say)
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    pad = next(i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0) if i is not None)
    padded = Collator(pad, trims_logits(base))
    leave_group_at_exit()
    trainer = AFTTrainer(
        run_log := RunLog(run, aft, facts, say),
        padded,
        model=model,
        args=args,
        train_dataset=list(examples),
        eval_dataset=sorted(validation, key=lambda example: len(example.token_ids)) or None,
        data_collator=PackingCollator(trims_logits(base)) if config.packing else padded,
        processing_class=tokenizer,
    )
    # With shards, every process would have to generate.
    if diagnosis and diagnosis.sets and not (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):
        run_log.diagnosis = diagnosis
    if config.patience:
        trainer.add_callback(Patience(config.patience))
    run_trainer(trainer, run, aft, facts, say)


def run_trainer(
    trainer: Checkpointing, run: TrainingRun, aft: CheckpointConfig, facts: Sequence[str], say: Say
) -> None:
    """Train, or resume training, and save the result.

    Raises:
        EngineError: If the loss is not finite, or a checkpoint cannot be written.
        ConfigError: If DeepSpeed would not write the weights of a finished run.
    """
    if not run.config.lora_rank and keeps_shards(trainer):
        raise ConfigError(
            "DeepSpeed's stage 3 would keep the weights in shards: set stage3_gather_16bit_weights_on_model_save "
            "(accelerate launch --zero3_save_16bit_model true)."
        )
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    if trainer.is_world_process_zero():
        trim_log(run.log, step_of(run.resume_from) if run.resume_from else -1)
        run.write_state(finished=False)
    with _resuming(trainer, run):
        if not _is_trained(trainer, run):
            trainer.train(resume_from_checkpoint=str(run.resume_from) if run.resume_from else None)
    best = best_checkpoint(trainer)
    if best and trainer.is_world_process_zero():
        step = step_of(Path(best))
        say(f"kept: step {step}, validation loss {trainer.state.best_metric:.4f}, the lowest")
        facts = [*facts, f"kept: step {step} of {trainer.state.global_step}, by validation loss"]
    with disk_guard(run.folder, trainer.model):
        _save(trainer, run, aft, facts)


@contextmanager
def _resuming(trainer: Checkpointing, run: TrainingRun) -> Iterator[None]:
    """Turn an error that the files of a checkpoint cause into one sentence.

    Raises:
        EngineError: If the run resumes from a checkpoint that does not load.
    """
    try:
        yield
    except (AFTError, MemoryError):
        raise
    except Exception as error:
        if type(error).__module__.partition(".")[0] == run.config.report_to:
            reason = named_reason_of(error)
            raise ConfigError(
                f"report_to={run.config.report_to} failed ({reason}): configure it, or leave it out."
            ) from error
        if run.resume_from is None or trainer.run_log.began:
            raise
        raise EngineError(damaged(run.resume_from, reason_of(error))) from error


def _is_trained(trainer: Trainer, run: TrainingRun) -> bool:
    """Whether only saving was left to do. If so, load the weights, since Trainer would train one more step.

    Sharded runs are never taken as trained: FSDP and DeepSpeed load shards only into models that ``train`` has wrapped.
    """
    if not run.resume_from or trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        return False
    state = TrainerState.load_from_json(str(run.resume_from / "trainer_state.json"))
    kept = state.stateful_callbacks.get("Patience", {}).get("attributes", {"early_stopping_patience_counter": 0})
    if state.global_step < state.max_steps and kept["early_stopping_patience_counter"] < (run.config.patience or inf):
        return False
    locate_best(state, run)
    trainer.state = state
    if best_checkpoint(trainer):
        trainer._load_best_model()
    else:
        trainer._load_from_checkpoint(str(run.resume_from))
    return True


def arguments(
    config: TrainConfig, validated: bool, settings_class: type[TrainingArguments] = TrainingArguments, **more: Any
) -> TrainingArguments:
    """The settings as arguments of Trainer.

    Args:
        config: The settings.
        validated: Whether there are validation examples.
        settings_class: Class of the arguments.
        more: Arguments that a class has besides, or that replace ours.
    """
    when = "steps" if config.save_every else "epoch"
    ours = dict(
        output_dir=str(Path(config.output, "checkpoints")),
        per_device_train_batch_size=config.batch_size,
        per_device_eval_batch_size=config.batch_size,
        gradient_accumulation_steps=config.accumulate,
        num_train_epochs=config.epochs,
        max_steps=config.max_steps or -1,
        learning_rate=config.learning_rate,
        lr_scheduler_type="constant_with_warmup" if config.schedule == "constant" else config.schedule,
        # A number below 1 is a share of the steps.
        warmup_steps=config.warmup if config.warmup < 1 else 0.999,
        weight_decay=config.weight_decay,
        optim="adamw_torch_fused",
        bf16=config.bf16,
        use_cpu=config.device == "cpu" or not torch.accelerator.is_available(),
        seed=config.seed,
        logging_steps=config.log_every,
        # Tokens of all processes; the count continues after a resume.
        include_num_input_tokens_seen="non_padding",
        # The filter would hide what RunLog searches for.
        logging_nan_inf_filter=False,
        eval_strategy=when if validated else "no",
        eval_steps=config.save_every,
        save_strategy=when,
        save_steps=config.save_every or 500,
        # RunLog removes old checkpoints after the new one is whole.
        save_total_limit=None,
        load_best_model_at_end=validated,
        metric_for_best_model="eval_loss" if validated else None,
        greater_is_better=False if validated else None,
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available() and config.device != "cpu",
        ddp_find_unused_parameters=False,
        report_to=config.report_to,
        disable_tqdm=True,
        label_names=["labels"],
        **_checkpointing(config.gradient_checkpointing),
    )
    return settings_class(**(ours | more))


def use_one_gpu(args: TrainingArguments, say: Say) -> None:
    """Let a process use one GPU. Trainer would multiply the batch size by their number, and TRL would refuse them."""
    if args.n_gpu > 1:
        say(f"{args.n_gpu} GPUs are visible and one is used: accelerate launch -m trainers.train uses all.")
        args._n_gpu = 1


def _checkpointing(wanted: bool) -> dict[str, Any]:
    """Gradient checkpointing, under the name that the installed transformers has for it."""
    names = {f.name for f in fields(TrainingArguments)}
    name = "activation_checkpointing" if "activation_checkpointing" in names else "gradient_checkpointing"
    return {name: True, f"{name}_kwargs": {"use_reentrant": False}} if wanted else {name: False}


def keeps_shards(trainer: Trainer) -> bool:
    """Whether DeepSpeed would write no whole weights when the run ends."""
    if not trainer.is_deepspeed_enabled:
        return False
    plugin = trainer.accelerator.state.deepspeed_plugin
    zero = plugin.deepspeed_config.get("zero_optimization", {})
    gathers = zero.get("stage3_gather_16bit_weights_on_model_save", False)
    return zero.get("stage") == 3 and not (plugin.zero3_save_16bit_model if gathers == "auto" else gathers)


def best_checkpoint(trainer: Trainer) -> str | None:
    """The checkpoint that validation chose. Without validation there is none, even if the state remembers one."""
    return trainer.state.best_model_checkpoint if trainer.args.load_best_model_at_end else None


def _save(trainer: Trainer, run: TrainingRun, aft: CheckpointConfig, facts: Sequence[str]) -> None:
    # With shards, save_model would silently write nothing.
    if trainer.is_fsdp_enabled:
        trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
    trainer.save_model(str(run.folder))
    if not trainer.is_world_process_zero():
        return
    # From here on models load whole, since the processes with the other shards are ending.
    unset_hf_deepspeed_config()
    if not list(run.folder.glob("*model*.safetensors")):
        raise EngineError(
            f"no weights were written to {run.folder}, since they are sharded in its checkpoints: "
            "configure the launcher to gather weights when a model is saved, and give the same command "
            "again."
        )
    if not run.config.lora_rank and run.config.save_dtype:
        model = AutoModelForCausalLM.from_pretrained(run.folder, dtype=getattr(torch, run.config.save_dtype))
        model.save_pretrained(run.folder)
    # A pickle can run code, and run.json says the same.
    (run.folder / "training_args.bin").unlink(missing_ok=True)
    write_checkpoint_card(run.folder, run, aft, facts)
    run.write_state(finished=True)
    best = best_checkpoint(trainer)
    # A finished run needs no checkpoint to resume from.
    if best and run.config.keep == 1:
        run.remove_checkpoints(0, best)


class Checkpointing(Trainer):
    """Trainer with our log and schedule, and without checkpoints of broken weights."""

    def __init__(self, run_log: RunLog, **settings: Any) -> None:
        super().__init__(callbacks=[run_log], **settings)
        self.run_log = run_log

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Trainer's schedule. A warm-up of less than a step would be a whole step at a rate of 0, so it is left out."""
        if self.args.warmup_steps * num_training_steps < 1:
            self.args.warmup_steps = 0
        return super().create_scheduler(num_training_steps, optimizer)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        broken = torch.tensor(float(not self.run_log.is_sound(model)), device=self.args.device)
        # One process sees its own share of the weights only.
        if self.accelerator.reduce(broken):
            raise self.run_log.broken("weights became NaN or infinite", self.state.global_step)
        with disk_guard(self.run_log.run.folder, model):
            # Trainer checks whether the folder of the best checkpoint exists, and processes must agree on it. With
            # shards one process may see the folder before another does.
            Path(self.args.output_dir, f"checkpoint-{self.state.global_step}").mkdir(parents=True, exist_ok=True)
            super()._save_checkpoint(model, trial)


class AFTTrainer(Checkpointing):
    """Trainer with batches by length and a validation loss per token."""

    data_collator: Any

    def __init__(self, run_log: RunLog, padded: Collator, **settings: Any) -> None:
        super().__init__(run_log, compute_metrics=_validation_loss, **settings)
        self.padded = padded

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """Batches of validation examples. They are padded, since each example has a loss of its own."""
        for_training, self.data_collator = self.data_collator, self.padded
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.data_collator = for_training

    def _get_train_sampler(self, train_dataset: Any = None) -> LengthGroupedSampler:
        lengths = [len(example.token_ids) for example in self.train_dataset]
        return LengthGroupedSampler(lengths, self.args.per_device_train_batch_size, self.args.seed)

    def prediction_step(
        self, model: Any, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[None, torch.Tensor, torch.Tensor]:
        """Nats and target tokens of each example, (batch,) both. Trainer would average the means of batches."""
        inputs = self._prepare_inputs(inputs)
        labels = inputs.pop("labels")  # (batch, kept)
        with torch.no_grad(), self.compute_loss_context_manager():
            nats = target_nats(model(**inputs).logits, labels)
        return None, nats, (labels[:, 1:] != MASK).sum(dim=1)


def _validation_loss(sums: EvalPrediction) -> dict[str, float]:
    """Mean nats a target token. It does not depend on batch size and number of processes."""
    return {"loss": float(sums.predictions.sum(dtype="float64") / sums.label_ids.sum())}
