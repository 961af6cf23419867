"""Perplexity of targets: given the query, given query and drafts, and without the nearest draft.

If a target only copies a draft, its perplexity is low with that draft and high without it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from lm_eval_aft.core.arguments import key_values
from lm_eval_aft.core.config import AFTConfig
from lm_eval_aft.core.engine import HostArgs
from lm_eval_aft.core.errors import ConfigError, PromptTooLong
from lm_eval_aft.core.progress import Bar
from lm_eval_aft.engines.registry import load_engine
from lm_eval_aft.inference.checkpoint import choose_template
from trainers.fitting.batching import Collator, target_nats, trims_logits
from trainers.fitting.examples import Encoder, Example
from trainers.inspection.overlap import nearest
from trainers.rows.row import read_training_rows, shown_text
from trainers.rows.samples import Sample, make_samples
from trainers.settings import TrainConfig


@dataclass(frozen=True, slots=True)
class Perplexity:
    """Perplexity of targets in one setting: how many targets, their tokens, and the sum of their losses in nats."""

    setting: str
    examples: int
    tokens: int
    nats: float

    @property
    def value(self) -> float:
        """Exp of the mean loss per token."""
        return math.exp(self.nats / max(1, self.tokens))


@dataclass(frozen=True, slots=True)
class PerplexityResult:
    """Perplexities of the same targets in several settings.

    Attributes:
        settings: One perplexity a setting.
        left_out: Rows that do not fit the model in every setting.
        cut: Rows whose drafts were cut to fit.
        max_length: Tokens that fit the model.
    """

    settings: list[Perplexity]
    left_out: int
    cut: int
    max_length: int


def target_perplexity(
    source: Path,
    model_args: str,
    *,
    ks: tuple[int, ...] = (),
    limit: int | None = None,
    seed: int = 0,
    device: str = "cuda:0",
    batch_size: str = "auto",
) -> PerplexityResult:
    """Measure the perplexity of the targets of a data file. The options are those of ``aft data ppl``.

    Raises:
        AFTError: If a row or an argument is wrong, or no row fits the model.
    """
    rows = read_training_rows(source)[:limit]
    samples = make_samples(rows, "aft", TrainConfig(k=ks, plain_share=0.0, seed=seed))
    config, engine_args = AFTConfig.split(key_values("--model_args", model_args))
    if config.engine != "hf":
        raise ConfigError(f"engine={config.engine} gives no losses: aft data ppl needs engine=hf.")
    template = choose_template(config, engine_args)
    engine: Any = load_engine("hf", engine_args, HostArgs(batch_size, None, device))
    encoder = Encoder(engine.renderer.tokenizer, template, engine.max_length)
    fitting, cut = _fitting(samples, [row.sft_target for row in rows], encoder)
    size = int(batch_size) if batch_size.isdigit() else 4
    settings = [_perplexity(name, some, engine.model, encoder, size) for name, some in _settings(fitting).items()]
    return PerplexityResult(settings, len(samples) - len(fitting), cut, engine.max_length)


def _fitting(
    samples: Sequence[Sample], sft_targets: Sequence[str], encoder: Encoder
) -> tuple[list[tuple[Sample, str]], int]:
    """The samples that fit in every setting, with their sft_targets, and in how many of them drafts are cut."""
    kept, cut = [], 0
    for sample, sft_target in zip(samples, sft_targets, strict=True):
        try:
            _, was_cut = encoder.encode(sample)
            if sft_target:
                encoder.encode(replace(sample, drafts=(), target=sft_target))
        except PromptTooLong:
            continue
        kept.append((sample, sft_target))
        cut += was_cut
    if not kept:
        raise ConfigError(
            f"none of the {len(samples)} rows fits the model's {encoder.max_length} tokens: shorten the rows, "
            "or use a model with a longer context."
        )
    return kept, cut


def _settings(pairs: Sequence[tuple[Sample, str]]) -> dict[str, list[Sample]]:
    """The samples of each setting. The nearest draft can be left out only if there are two."""
    samples = [sample for sample, _ in pairs]
    by_name = {
        "target | query": [replace(sample, drafts=()) for sample in samples],
        "target | query, drafts": samples,
        "target | query, drafts but the nearest": [_without_nearest(s) for s in samples if len(s.drafts) > 1],
        "sft_target | query": [replace(sample, drafts=(), target=text) for sample, text in pairs if text],
    }
    return {name: some for name, some in by_name.items() if some}


def _without_nearest(sample: Sample) -> Sample:
    """A sample without its nearest draft and all that equal it."""
    removed = shown_text(sample.drafts[nearest(sample.target, sample.drafts)[1][0]]).split()
    others = tuple(draft for draft in sample.drafts if shown_text(draft).split() != removed)
    return replace(sample, drafts=others or ("",))


def _perplexity(name: str, samples: Sequence[Sample], model: Any, encoder: Encoder, batch_size: int) -> Perplexity:
    examples = sorted(encoder.encode_all(samples).examples, key=lambda example: -len(example.token_ids))
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    collator, tokens, nats = Collator(encoder.end_id, trims_logits(base)), 0, 0.0
    with Bar(desc=name, total=len(examples), unit="text") as bar:
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
