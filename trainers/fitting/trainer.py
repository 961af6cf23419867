"""transformers.Trainer with batches by length, a validation loss per token, and no checkpoints of broken weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import EvalPrediction, Trainer

from trainers.fitting.batching import LengthGroupedSampler, target_nats
from trainers.fitting.callbacks import RunLog
from trainers.fitting.examples import MASK


class AFTTrainer(Trainer):
    """Trainer with the changes that the module describes."""

    def __init__(self, run_log: RunLog, **settings: Any) -> None:
        super().__init__(callbacks=[run_log], compute_metrics=_validation_loss, **settings)
        self.run_log = run_log

    def _get_train_sampler(self, train_dataset: Any = None) -> LengthGroupedSampler:
        lengths = [len(example.token_ids) for example in self.train_dataset]
        return LengthGroupedSampler(lengths, self.args.per_device_train_batch_size, self.args.seed)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Trainer's schedule. A warm-up of less than a step would be a whole step at a rate of 0, so it is left out."""
        if self.args.warmup_steps * num_training_steps < 1:
            self.args.warmup_steps = 0
        return super().create_scheduler(num_training_steps, optimizer)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        broken = torch.tensor(float(not self.run_log.is_sound(model)), device=self.args.device)
        # One process sees its own share of the weights only.
        if self.accelerator.reduce(broken):
            raise self.run_log.broken("weights became no numbers", self.state.global_step)
        # Trainer checks whether the folder of the best checkpoint exists, and processes must agree on it. With shards
        # one process may see the folder before another does.
        Path(self.args.output_dir, f"checkpoint-{self.state.global_step}").mkdir(parents=True, exist_ok=True)
        super()._save_checkpoint(model, trial)

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
