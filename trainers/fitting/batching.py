"""Examples as batches: padded on the right, grouped by length, cut to the part whose loss counts.

Knows nothing of prompts. Called by ``loop``.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from trainers.fitting.examples import MASK, Example

GROUP = 50  # batches that are sorted by length together


def trims_logits(model: Any) -> bool:
    """Whether a model can leave out the logits of a prompt."""
    return "logits_to_keep" in inspect.signature(model.forward).parameters


def target_nats(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Summed loss of each example, (batch,), from logits (batch, kept, vocab) and labels (batch, kept)."""
    loss = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=MASK, reduction="none"
    )
    return loss.view(len(labels), -1).sum(dim=1)


class Collator:
    """Makes a batch of examples.

    Padding is on the right and the models are causal, so no real token ever sees a pad and no attention mask is
    needed: that keeps the fast paths of attention open (tested against the masked loss). The model computes logits
    only from the last prompt token before the first target on: drafts are long, targets short.
    """

    def __init__(self, pad_id: int, trims_logits: bool) -> None:
        """Make a collator.

        Args:
            pad_id: Any token: pads are neither attended to nor learnt.
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


class LengthGroupedSampler(torch.utils.data.Sampler[int]):
    """A random order in which neighbours have similar lengths.

    transformers' own goes from long to short within each group, so that examples with five drafts and plain ones would
    be trained in turns; here the batches of a group are shuffled.
    """

    def __init__(self, lengths: Sequence[int], batch: int, seed: int) -> None:
        """Make a sampler.

        Args:
            lengths: Tokens of each example.
            batch: Examples a device computes at once.
            seed: Of the order; each epoch has another.
        """
        self.lengths, self.batch, self.seed, self.epoch = lengths, batch, seed, 0

    def __len__(self) -> int:
        return len(self.lengths)

    def set_epoch(self, epoch: int) -> None:
        """Called before each pass, after a resume too: by Trainer and by ``RunLog``."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(len(self.lengths), generator=generator).tolist()
        batches: list[list[int]] = []
        for start in range(0, len(order), GROUP * self.batch):
            group = sorted(order[start : start + GROUP * self.batch], key=lambda i: -self.lengths[i])
            batches += [group[i : i + self.batch] for i in range(0, len(group), self.batch)]
        full = [batch for batch in batches if len(batch) == self.batch]
        rest = [i for batch in batches if len(batch) < self.batch for i in batch]  # at the end, to keep others whole
        for position in torch.randperm(len(full), generator=generator).tolist():
            yield from full[position]
        yield from rest
