"""Callbacks of Trainer: the log, the cards of checkpoints, the search for broken weights, and early stopping."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import EarlyStoppingCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lm_eval_aft.core.errors import EngineError
from lm_eval_aft.inference.checkpoint import CheckpointConfig
from trainers.fitting.checkpoint_card import write_checkpoint_card
from trainers.fitting.diagnosis import Diagnosis, figures_or_reason
from trainers.fitting.run import Say, TrainingRun, disk_guard

# Figures of reinforcement learning that the terminal shows, and their formats.
SHOWN = {"reward": ".3f", "grade": ".3f", "copy_rate": ".1%", "length": ".1f", "equal_groups": ".1%"}
# A checkpoint is written after so many seconds without one, whatever ``save_every`` is.
SAVE_AFTER_S = 600.0


class RunLog(TrainerCallback):
    """Writes the log and the cards of checkpoints, has overdue ones saved, and stops a run whose loss is not finite."""

    def __init__(
        self,
        run: TrainingRun,
        aft: CheckpointConfig,
        facts: Sequence[str],
        say: Say,
        figures: Mapping[str, str] | None = None,
    ) -> None:
        """Keep what cards and log need.

        Args:
            run: The run.
            aft: Contents of aft_config.json.
            facts: Facts about the data, for cards.
            say: Prints a line.
            figures: More of the trainer's figures to log, and their names in the log.
        """
        # What each validation counts besides the loss.
        self.diagnosis: Diagnosis | None = None
        self.figures = dict(figures or {})
        self.run, self.aft, self.facts, self.say = run, aft, facts, say
        self.started, self.tokens_before = time.monotonic(), 0
        self.saved = self.started
        # Whether weights, optimizer and state are loaded.
        self.began = False

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Use the intervals of the present settings. Trainer would keep those of the checkpoint."""
        self.began = True
        state.logging_steps, state.eval_steps, state.save_steps = args.logging_steps, args.eval_steps, args.save_steps
        self.tokens_before = state.num_input_tokens_seen
        locate_best(state, self.run)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, train_dataloader: Any = None, **_: Any) -> None:
        """Set the sampler's epoch. Trainer does not when a run of several processes resumes in one process."""
        train_dataloader.set_epoch(int((state.epoch or 0) + 1e-6))

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        """Have the last step logged, whatever ``log_every`` is. With patience any evaluated step may be the last."""
        if state.global_step >= state.max_steps or (control.should_evaluate and self.run.config.patience):
            control.should_log = True
        # A step by rewards can take minutes, and an epoch hours. Several processes would not agree on the time.
        if args.world_size == 1 and time.monotonic() - self.saved >= SAVE_AFTER_S:
            control.should_save = True
        return control

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        """The same if the end of an epoch is evaluated."""
        return self.on_step_end(args, state, control)

    def on_log(
        self, args: Any, state: TrainerState, control: Any, logs: Any = None, model: Any = None, **_: Any
    ) -> None:
        """Write one line to log.jsonl and print it."""
        keys = ("loss", "eval_loss", "grad_norm", "learning_rate")
        row = {key: float(logs[key]) for key in keys if key in logs}
        row |= {ours: float(logs[key]) for key, ours in self.figures.items() if logs.get(key) is not None}
        for key in ("loss", "eval_loss", "grad_norm", *self.figures.values()):
            if key in row and not math.isfinite(row[key]):
                raise self.broken(f"the {key} became {row[key]}", state.global_step)
        if not state.is_world_process_zero or not row.keys() & {"loss", "eval_loss"}:
            return
        row |= self._write(row, state, model)
        tokens, elapsed_s = row["tokens"] - self.tokens_before, max(row["elapsed_s"], 1e-9)
        self.say(_line(row, state.max_steps, tokens / elapsed_s))

    def on_evaluate(self, args: Any, state: TrainerState, control: Any, model: Any = None, **_: Any) -> None:
        """Let the model answer a few draft sets, and write what it does with them."""
        if self.diagnosis is None or not state.is_world_process_zero:
            return
        found, reason = figures_or_reason(self.diagnosis, model)
        if reason:
            self.diagnosis = None
            self.say(f"warning: the model cannot answer draft sets while it trains ({reason}): diagnose is off.")
            return
        self._write(found, state, model)
        self.say(diagnosis_line(found, state.global_step))

    def _write(self, figures: Mapping[str, Any], state: TrainerState, model: Any) -> dict[str, Any]:
        """Write a line to log.jsonl, and return its figures about time."""
        row = {"step": state.global_step, "epoch": round(state.epoch or 0, 4)}
        row |= {"elapsed_s": round(time.monotonic() - self.started, 2), "tokens": state.num_input_tokens_seen}
        with disk_guard(self.run.folder, model), self.run.log.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps({**figures, **row}) + "\n")
        return row

    def is_sound(self, model: Any) -> bool:
        """Whether all trained weights are finite. A checkpoint of others is never written."""
        trained = [weights for weights in model.parameters() if weights.requires_grad]
        # Stage 3 of DeepSpeed keeps a process's share of the weights in an attribute.
        shares = [getattr(weights, "ds_tensor", weights) for weights in trained]
        return all(bool(share.isfinite().all()) for share in shares)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **_: Any
    ) -> None:
        """Mark a checkpoint as whole after all processes wrote their parts, and then remove older ones."""
        self.saved = time.monotonic()
        if args.world_size > 1:
            args.distributed_state.wait_for_everyone()
        if state.is_world_process_zero:
            folder = self.run.checkpoint(state.global_step)
            with disk_guard(self.run.folder, model):
                write_checkpoint_card(folder, self.run, self.aft, self.facts)
            self.run.remove_checkpoints(self.run.config.keep, state.best_model_checkpoint)

    def broken(self, what: str, step: int) -> EngineError:
        """The error that ends a run whose loss or weights are not finite."""
        return EngineError(
            f"{what} by step {step}: train again with a lower learning_rate or with corrected data, into "
            f"another output; the checkpoints in {self.run.folder} are from earlier steps."
        )


def locate_best(state: TrainerState, run: TrainingRun) -> None:
    """Correct the path of the best checkpoint: the run's folder may have moved since it was saved."""
    folder = run.checkpoint(state.best_global_step or 0)
    if folder.is_dir():
        state.best_model_checkpoint = str(folder)


class Patience(EarlyStoppingCallback):
    """Early stopping that keeps its count when a run resumes. Trainer's own starts again from zero."""

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Take the count of the checkpoint; a run that had no patience before starts from zero."""
        kept = state.stateful_callbacks.setdefault("Patience", self.state())
        self.early_stopping_patience_counter = kept["attributes"]["early_stopping_patience_counter"]
        control.should_training_stop = self.early_stopping_patience_counter >= self.early_stopping_patience


def diagnosis_line(found: Mapping[str, Any], step: int) -> str:
    """What a model does with draft sets, as a line for the terminal."""
    positions = " ".join(f"{count:g}" for count in found["copies_by_position"])
    text = f"step {step}  {found['diagnosed']} draft sets: copies {found['copy_rate']:.1%}, by position {positions}"
    if "right_where_disputed" in found:
        right, chance = found["right_where_disputed"], found["random_where_disputed"]
        text += f"; right where drafts disagree {right:.1%} of {found['disputed']} (a random draft {chance:.1%})"
    return text


def _line(row: dict[str, float], steps: int, tokens_per_s: float) -> str:
    parts = [f"step {row['step']:.0f}/{steps}", f"epoch {row['epoch']:.2f}"]
    parts += [f"loss {row['loss']:.4f}"] if "loss" in row else []
    parts += [f"validation loss {row['eval_loss']:.4f}"] if "eval_loss" in row else []
    parts += [f"{name.replace('_', ' ')} {row[name]:{form}}" for name, form in SHOWN.items() if name in row]
    parts += [f"learning rate {row['learning_rate']:.1e}"] if "learning_rate" in row else []
    return "  ".join([*parts, f"{tokens_per_s:,.0f} tokens/s"])
