"""Cuts the requests of a layer into batches that fit the memory, with equal prompts together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass
from typing import Literal

import torch

from lm_eval_aft.core.records import Request, Sampling

Scoring = Literal["at_once", "stepwise", "whole"]


@dataclass(frozen=True, slots=True)
class Group:
    """The requests of one batch that share a prompt.

    Attributes:
        positions: Their positions in the layer.
        token_ids: The prompt.
    """

    positions: tuple[int, ...]
    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class RowRules:
    """Which rows may share a batch without a change of their logits.

    Attributes:
        mixed_lengths: Whether prompts of different lengths may share a batch, with pads.
        many_rows: Whether a batch may have several rows.
        scoring: How continuations of a prompt are computed: all tokens of each at once after the cached prompt, token
            by token after it, or each with its prompt from the start.
        shared_prompts: Whether the rows of a prompt share its keys and values.
        look_ahead: Whether rows may run several tokens in a forward pass, each row its own number.
    """

    mixed_lengths: bool = True
    many_rows: bool = True
    scoring: Scoring = "at_once"
    shared_prompts: bool = False
    look_ahead: bool = False

    def tokens(self, batch: Sequence[Group], sampling: Sampling) -> int:
        """Tokens that a batch holds at its end, with every prompt and completion as long as the longest can be.

        Args:
            batch: Requests of one sampling, at least one.
            sampling: Their sampling.
        """
        rows = sum(len(group.positions) for group in batch)
        return self.tokens_of(len(batch), rows, max(len(group.token_ids) for group in batch), sampling)

    def tokens_of(self, prompts: int, requests: int, longest: int, sampling: Sampling) -> int:
        """Tokens that a batch holds at its end.

        Args:
            prompts: Number of its groups.
            requests: Number of its requests.
            longest: Tokens of its longest prompt.
            sampling: The sampling of its requests.
        """
        rows = requests * sampling.beams
        return (prompts if self._shares(sampling) else rows) * longest + rows * sampling.max_tokens

    def most_rows(self, prompt_tokens: int, sampling: Sampling, batch_tokens: int) -> int:
        """The most requests of one prompt that a batch may hold. It may always hold one."""
        if not self.many_rows:
            return 1
        shared, own = (prompt_tokens, 0) if self._shares(sampling) else (0, prompt_tokens)
        return max(1, (batch_tokens - shared) // ((own + sampling.max_tokens) * sampling.beams))

    def _shares(self, sampling: Sampling) -> bool:
        """Whether requests of one prompt share it. Beams get copies from transformers."""
        return self.shared_prompts and sampling.beams == 1


def cut_batches(
    requests: Sequence[Request],
    positions: Sequence[int],
    batch_tokens: int,
    batch_prompts: int | None,
    rules: RowRules,
) -> Iterator[list[Group]]:
    """Group equal prompts and cut them into batches, longest first, each with one sampling.

    Args:
        requests: All requests of a layer.
        positions: The requests to cut into batches.
        batch_tokens: Tokens a batch may hold, as ``RowRules.tokens`` counts them.
        batch_prompts: Distinct prompts a batch may hold, or None for no limit.
        rules: Which rows may share a batch.
    """
    by_prompt: dict[tuple[Sampling, tuple[int, ...]], list[int]] = {}
    for position in positions:
        request = requests[position]
        by_prompt.setdefault((request.sampling, request.prompt.token_ids or ()), []).append(position)
    places = {sampling: astuple(sampling) for sampling in {sampling for sampling, _ in by_prompt}}
    order = sorted(by_prompt, key=lambda key: (places[key[0]], -len(key[1]), by_prompt[key][0]))
    batch: list[Group] = []
    rows, current = 0, None
    for sampling, token_ids in order:
        most = rules.most_rows(len(token_ids), sampling, batch_tokens)
        for part in _parts(by_prompt[sampling, token_ids], most):
            group = Group(tuple(part), token_ids)
            # The first prompt of a batch is its longest.
            longest = len(batch[0].token_ids) if batch else len(token_ids)
            tokens = rules.tokens_of(len(batch) + 1, rows + len(part), longest, sampling)
            full = not rules.many_rows or tokens > batch_tokens
            mixed = bool(batch) and longest != len(token_ids) and not rules.mixed_lengths
            if batch and (full or mixed or sampling != current or len(batch) == batch_prompts):
                yield batch
                batch, rows = [], 0
            batch.append(group)
            rows += len(part)
            current = sampling
    if batch:
        yield batch


def _parts(positions: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    for start in range(0, len(positions), size):
        yield positions[start : start + size]


def left_pad(
    prompts: Sequence[Sequence[int]], device: torch.device, spare_pads: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask, (prompts, longest + spare_pads) each. A pad is id 0 with mask 0."""
    width = max(map(len, prompts)) + spare_pads
    ids = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    return ids, mask
