"""How well a model expects targets: given the query, given query and drafts, and without the nearest draft.

A target that only copies is cheap with the draft it copies and dear without it; that is why the last column is there.
Called by ``aft data ppl``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from tqdm import tqdm

from lm_eval_aft.core.errors import ConfigError, PromptTooLong
from trainers.fitting.batching import Collator, target_nats, trims_logits
from trainers.fitting.examples import Encoder, Example
from trainers.inspection.overlap import nearest
from trainers.rows.samples import Sample


@dataclass(frozen=True, slots=True)
class Perplexity:
    """Perplexity per token of the same targets in one setting."""

    setting: str
    examples: int
    tokens: int
    nats: float

    @property
    def value(self) -> float:
        """Exp of the mean loss per token."""
        return math.exp(self.nats / max(1, self.tokens))


def that_fit(
    samples: Sequence[Sample], sft_targets: Sequence[str], encoder: Encoder
) -> tuple[list[Sample], list[str], int]:
    """The samples, and their sft_targets, that fit in every setting; and in how many of them drafts are cut for it.

    Raises:
        ConfigError: If none fits.
    """
    kept, cut = [], 0
    for sample, other in zip(samples, sft_targets, strict=True):
        try:
            _, was_cut = encoder.encode(sample)
            if other:
                encoder.encode(replace(sample, drafts=(), target=other))
        except PromptTooLong:
            continue
        kept.append((sample, other))
        cut += was_cut
    if not kept:
        raise ConfigError(f"none of the {len(samples)} rows fits the model's {encoder.max_length} tokens.")
    return [sample for sample, _ in kept], [other for _, other in kept], cut


def settings_of(samples: Sequence[Sample], sft_targets: Sequence[str]) -> dict[str, list[Sample]]:
    """The samples as they are asked in each setting; the nearest draft can be left out where there are two."""
    several = [sample for sample in samples if len(sample.drafts) > 1]
    named = {
        "target | query": [replace(sample, drafts=()) for sample in samples],
        "target | query, drafts": list(samples),
        "target | query, drafts but the nearest": [_without_nearest(sample) for sample in several],
        "sft_target | query": [
            replace(sample, drafts=(), target=text) for sample, text in zip(samples, sft_targets, strict=True) if text
        ],
    }
    return {name: made for name, made in named.items() if made}


def _without_nearest(sample: Sample) -> Sample:
    best = nearest(sample.target, sample.drafts)[1][0]
    gone = sample.drafts[best].split()  # and whatever repeats it
    return replace(sample, drafts=tuple(draft for draft in sample.drafts if draft.split() != gone) or ("",))


def perplexity(name: str, samples: Sequence[Sample], model: Any, encoder: Encoder, batch_size: int) -> Perplexity:
    """Run a model over the targets of samples.

    Raises:
        ConfigError: If no sample fits the encoder's length.
    """
    examples = sorted(encoder.encode_all(samples).examples, key=lambda example: -len(example.token_ids))
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    collator, tokens, nats = Collator(encoder.end_id, trims_logits(base)), 0, 0.0
    with tqdm(desc=name, total=len(examples), unit="text") as bar:
        for start in range(0, len(examples), batch_size):
            batch = examples[start : start + batch_size]
            nats += _nats(batch, collator, model)
            tokens += sum(len(example.token_ids) - example.prompt_tokens for example in batch)
            bar.update(len(batch))
    if not math.isfinite(nats):
        raise ConfigError(f"the loss of {name} is {nats}: use dtype=float32.")
    return Perplexity(name, len(examples), tokens, nats)


@torch.inference_mode()
def _nats(examples: Sequence[Example], collator: Collator, model: Any) -> float:
    batch = collator(examples)
    labels = batch.pop("labels").to(model.device)  # (batch, kept)
    logits = model(**{**batch, "input_ids": batch["input_ids"].to(model.device)}).logits
    return float(target_nats(logits, labels).sum())
