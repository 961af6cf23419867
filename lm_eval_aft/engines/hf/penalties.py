"""Penalties on tokens that a text has already: repetition, frequency and presence.

The repetition penalty is that of transformers' ``generate``, which counts the prompt in (Keskar et al. 2019, section
4.1). transformers has no frequency and presence penalty. They are those of OpenAI's API and of vLLM, which count
generated tokens only.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lm_eval_aft.core.records import Sampling


class RowPenalties:
    """Penalises the logits of rows by the tokens of each row."""

    def __init__(self, sampling: Sampling, prompts: Sequence[Sequence[int]]) -> None:
        """Take the settings and the prompt of each row.

        Args:
            sampling: The penalties are read.
            prompts: Token ids of each row's prompt.
        """
        self._sampling, self._prompts = sampling, prompts
        self._in_prompt: torch.Tensor | None = None  # (rows, vocab)
        self._counts: torch.Tensor | None = None  # (rows, vocab)

    def apply(self, logits: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
        """The penalised logits of these rows.

        Args:
            logits: (rows, vocab).
            rows: The indices of the rows, in order.

        Returns:
            (rows, vocab) of float32.
        """
        if not self._sampling.penalised:
            return logits
        if self._in_prompt is None or self._counts is None:
            shape = len(self._prompts), logits.shape[-1]
            self._in_prompt = torch.zeros(shape, dtype=torch.bool, device=logits.device)
            for row, prompt in enumerate(self._prompts):
                self._in_prompt[row, torch.tensor(prompt, dtype=torch.long, device=logits.device)] = True
            self._counts = torch.zeros(shape, dtype=torch.int32, device=logits.device)
        places = torch.tensor(rows, device=logits.device)
        return penalise(logits, self._sampling, self._in_prompt[places], self._counts[places])

    def add(self, tokens: torch.Tensor, rows: Sequence[int]) -> None:
        """Count one new token id of each of these rows, (rows,)."""
        if self._counts is not None:
            self._counts[torch.tensor(rows, device=tokens.device), tokens] += 1

    def keep(self, rows: Sequence[int]) -> None:
        """Keep these rows only."""
        if self._in_prompt is not None and self._counts is not None:
            kept = torch.tensor(rows, device=self._counts.device)
            self._in_prompt, self._counts = self._in_prompt[kept], self._counts[kept]


class BeamPenalties:
    """The same penalties as a logits processor of transformers, which knows each row's tokens but not its pads."""

    def __init__(self, sampling: Sampling, mask: torch.Tensor) -> None:
        """Take the settings and the attention mask of the prompts, (prompts, longest)."""
        self._sampling, self._mask = sampling, mask.bool()

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Penalise.

        Args:
            ids: Prompt and generated token ids of each beam, (prompts * beams, length).
            scores: Log-probabilities, (prompts * beams, vocab).
        """
        if not self._sampling.penalised:
            return scores
        longest = self._mask.shape[1]
        prompt, generated = ids[:, :longest], ids[:, longest:]
        real = self._mask.repeat_interleave(len(ids) // len(self._mask), dim=0)  # (prompts * beams, longest)
        counts = torch.zeros(scores.shape, dtype=torch.int32, device=scores.device)
        in_prompt = counts.scatter_add(-1, prompt, real.int()) > 0
        counts = counts.scatter_add(-1, generated, torch.ones_like(generated, dtype=torch.int32))
        return penalise(scores, self._sampling, in_prompt, counts)


def penalise(scores: torch.Tensor, sampling: Sampling, in_prompt: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """The penalised scores.

    Args:
        scores: Logits or log-probabilities, (rows, vocab).
        sampling: The penalties are read.
        in_prompt: Whether a token is in a row's prompt, (rows, vocab).
        counts: How often a row has generated a token, (rows, vocab).
    """
    if sampling.repetition_penalty != 1:
        lower = torch.where(scores < 0, scores * sampling.repetition_penalty, scores / sampling.repetition_penalty)
        scores = torch.where(in_prompt | (counts > 0), lower, scores)
    return scores - sampling.frequency_penalty * counts - sampling.presence_penalty * (counts > 0)
