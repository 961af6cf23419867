"""Batches of examples: padded or packed, grouped by length, with logits only where the loss needs them."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import DataCollatorWithFlattening

from trainers.fitting.examples import MASK, Example

# Batches that are sorted by length together.
GROUP = 50


def trims_logits(model: Any) -> bool:
    """Whether a model can skip the logits of a prompt."""
    return "logits_to_keep" in inspect.signature(model.forward).parameters


def target_nats(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Summed loss in nats of each example, (batch,), from logits (batch, kept, vocab) and labels (batch, kept)."""
    loss = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=MASK, reduction="none"
    )
    return loss.view(len(labels), -1).sum(dim=1)


class Collator:
    """Makes batches of examples.

    Padding is on the right and the models are causal, so no token attends to a pad and no attention mask is needed.
    Without a mask, attention can use its fast kernels; a test compares the loss with the masked one. Drafts are long
    and targets short, so the model computes logits only from the token before the first target.
    """

    def __init__(self, pad_id: int, trims_logits: bool) -> None:
        """Make a collator.

        Args:
            pad_id: Any token id; pads are neither attended to nor learnt.
            trims_logits: Whether the model takes ``logits_to_keep``.
        """
        self.pad_id, self.trims_logits = pad_id, trims_logits

    def __call__(self, examples: Sequence[Example]) -> dict[str, Any]:
        """A batch: input_ids (batch, seq), labels (batch, kept)."""
        longest = max(len(example.token_ids) for example in examples)
        start = min(example.prompt_tokens for example in examples) - 1 if self.trims_logits else 0
        start = max(0, start)
        ids, labels = [], []
        for example in examples:
            pads = longest - len(example.token_ids)
            ids.append([*example.token_ids, *[self.pad_id] * pads])
            labels.append([*example.labels[start:], *[MASK] * pads])
        batch = {"input_ids": torch.tensor(ids), "labels": torch.tensor(labels)}
        return {**batch, "logits_to_keep": longest - start} if self.trims_logits else batch


class PackingCollator:
    """Joins the examples of a batch to one sequence without padding.

    Positions start again at 0 with each example. transformers recognises that, and keeps attention within an example.
    The model computes logits only for the targets and the token before each.
    """

    def __init__(self, trims_logits: bool) -> None:
        """Make a collator.

        Args:
            trims_logits: Whether the model takes ``logits_to_keep``.
        """
        self.trims_logits, self._join = trims_logits, DataCollatorWithFlattening()

    def __call__(self, examples: Sequence[Example]) -> dict[str, Any]:
        """A batch: input_ids and position_ids (1, tokens), labels (1, kept), logits_to_keep (kept,)."""
        features = [{"input_ids": list(example.token_ids), "labels": example.labels} for example in examples]
        # With a cache, transformers does not search for restarts of the positions.
        batch = {**self._join(features, return_tensors="pt"), "use_cache": False}
        if not self.trims_logits:
            return batch
        learnt = batch["labels"][0] != MASK  # (tokens,)
        kept = (learnt | learnt.roll(-1)).nonzero()[:, 0]
        return {**batch, "labels": batch["labels"][:, kept], "logits_to_keep": kept}


class LengthGroupedSampler(torch.utils.data.Sampler[int]):
    """A random order in which neighbours have similar lengths.

    The sampler of transformers goes from long to short within each group, so examples with five drafts and those
    without would alternate. This one shuffles the batches of a group.
    """

    def __init__(self, lengths: Sequence[int], batch: int, seed: int) -> None:
        """Make a sampler.

        Args:
            lengths: Tokens of each example.
            batch: Examples a device and step.
            seed: Seed of the order. Each epoch has another order.
        """
        self.lengths, self.batch, self.seed, self.epoch = lengths, batch, seed, 0

    def __len__(self) -> int:
        return len(self.lengths)

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of an epoch. Trainer and ``RunLog`` set it before each epoch, also after a resume."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(len(self.lengths), generator=generator).tolist()
        batches: list[list[int]] = []
        for start in range(0, len(order), GROUP * self.batch):
            group = sorted(order[start : start + GROUP * self.batch], key=lambda i: -self.lengths[i])
            batches += [group[i : i + self.batch] for i in range(0, len(group), self.batch)]
        full = [batch for batch in batches if len(batch) == self.batch]
        # Incomplete batches come last, so that they do not shift the others.
        rest = [i for batch in batches if len(batch) < self.batch for i in batch]
        for position in torch.randperm(len(full), generator=generator).tolist():
            yield from full[position]
        yield from rest
