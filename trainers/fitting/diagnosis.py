"""Diagnosis at each validation: whether the model under training copies its drafts, and whether it chooses among them.

A validation loss falls while a model learns to copy a draft at random. Only texts that the model writes show it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from statistics import fmean
from typing import Any

import torch
from transformers import GenerationConfig

from lm_eval_aft.core.errors import PromptTooLong
from lm_eval_aft.core.loading import named_reason_of
from trainers.fitting.examples import Encoder
from trainers.fitting.run import Say
from trainers.rows.grades import Verifier, grade_of
from trainers.rows.row import shown_text
from trainers.rows.samples import Sample, copied_drafts

# One diagnosis writes no further batch after this time.
MAX_SECONDS = 60.0
BATCH = 8
# More tokens than the longest target of the validation rows has.
SPARE_TOKENS = 8


@dataclass(frozen=True, slots=True)
class DraftSet:
    """A draft set that the model answers: the sample, its prompt in tokens, and which drafts are right, if known."""

    sample: Sample
    prompt: tuple[int, ...]
    right: tuple[bool, ...]


class Diagnosis:
    """A few draft sets of the validation rows, and what a model makes of them."""

    def __init__(
        self, samples: Sequence[Sample], encoder: Encoder, count: int, verify: Verifier | None, seed: int, say: Say
    ) -> None:
        """Draw the draft sets.

        Args:
            samples: The validation samples.
            encoder: Makes the prompts.
            count: Maximum number of draft sets.
            verify: Says whether a text is right; None if that is not known.
            seed: Seed of the draw.
            say: Prints a warning if the verifier fails.

        Raises:
            ConfigError: If a row has no right answer to compare with.
        """
        with_drafts = [sample for sample in samples if sample.drafts]
        drawn = Random(f"{seed}/diagnosis").sample(with_drafts, min(count, len(with_drafts)))
        self.encoder, self.verify, self.say, self.failed = encoder, verify, say, 0
        self.max_tokens = max((len(encoder.target_ids(sample)) for sample in drawn), default=0) + SPARE_TOKENS
        self.sets = [made for sample in drawn if (made := self._draft_set(sample))]

    def _draft_set(self, sample: Sample) -> DraftSet | None:
        try:
            prompt = self.encoder.fit_prompt(sample, self.max_tokens).prompt
        except PromptTooLong:
            return None
        right = tuple(self._is_right(draft, sample) for draft in sample.drafts) if self.verify else ()
        return DraftSet(sample, prompt.token_ids or (), right)

    def _is_right(self, text: str, sample: Sample) -> bool:
        """Whether a text is right. One at which the verifier fails is wrong."""
        assert self.verify is not None
        grade, reason = grade_of(self.verify, shown_text(text), sample.data)
        if reason and not self.failed:
            self.say(f"warning: the verifier failed at {sample.where} ({reason}): such texts count as wrong.")
        self.failed += bool(reason)
        return grade > 0

    def figures(self, model: Any) -> dict[str, Any]:
        """Let a model answer the draft sets, greedily, and count copies and right answers."""
        started, answers = time.monotonic(), list[str]()
        while len(answers) < len(self.sets) and (not answers or time.monotonic() - started < MAX_SECONDS):
            answers += self._write(model, [each.prompt for each in self.sets[len(answers) : len(answers) + BATCH]])
        answered = list(zip(answers, self.sets, strict=False))
        copies = [copied_drafts(answer, each.sample) for answer, each in answered]
        positions = [0.0] * max(len(each.sample.drafts) for each in self.sets)
        for places in copies:
            for place in places:
                positions[place] += 1 / len(places)
        found = {
            "diagnosed": len(answered),
            "copy_rate": sum(map(bool, copies)) / len(answered),
            "copies_by_position": [round(count, 2) for count in positions],
        }
        disputed = [(answer, each) for answer, each in answered if len(set(each.right)) == 2]
        if self.verify:
            found["disputed"] = len(disputed)
        if disputed:
            found["right_where_disputed"] = fmean(self._is_right(answer, each.sample) for answer, each in disputed)
            found["random_where_disputed"] = fmean(fmean(each.right) for _, each in disputed)
        return found

    @torch.no_grad()
    def _write(self, model: Any, prompts: Sequence[Sequence[int]]) -> list[str]:
        """The model's answers to some prompts. They are padded on the left."""
        tokenizer, longest = self.encoder.renderer.tokenizer, max(map(len, prompts))
        settings = GenerationConfig(
            max_new_tokens=self.max_tokens, do_sample=False, eos_token_id=self.encoder.end_id, pad_token_id=0
        )
        ids = torch.tensor([[0] * (longest - len(each)) + list(each) for each in prompts])  # (batch, seq)
        mask = torch.tensor([[0] * (longest - len(each)) + [1] * len(each) for each in prompts])
        was_training = model.training
        model.eval()
        try:
            written = model.generate(
                input_ids=ids.to(model.device), attention_mask=mask.to(model.device), generation_config=settings
            )[:, longest:].tolist()
        finally:
            model.train(was_training)
        ends = [row.index(self.encoder.end_id) if self.encoder.end_id in row else len(row) for row in written]
        return [
            shown_text(tokenizer.decode(row[:end], skip_special_tokens=True))
            for row, end in zip(written, ends, strict=True)
        ]


def figures_or_reason(diagnosis: Diagnosis, model: Any) -> tuple[dict[str, Any], str]:
    """The figures of a model, or why there are none. Training continues either way."""
    try:
        return diagnosis.figures(model), ""
    # A model may be unable to generate, or too large to do so beside its training.
    except Exception as error:
        return {}, named_reason_of(error)
