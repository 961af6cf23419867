"""The decode loop of one batch: from prompts to texts, whose rows leave the batch as they end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import torch

from lm_eval_aft.core.records import LookAhead, Request
from lm_eval_aft.engines.hf.batching import Group, left_pad
from lm_eval_aft.engines.hf.forward import Forward, RowCache
from lm_eval_aft.engines.hf.logprobs import token_logprobs
from lm_eval_aft.engines.hf.look_ahead import PromptIndex, Proposer
from lm_eval_aft.engines.hf.sampling import RowSampler, refuse_damaged

# Most logits of a forward pass with proposals. They take 640 MB in float32.
PASS_LOGITS = 160_000_000


@dataclass(eq=False)
class Row:
    """One text and what is known of it so far.

    Attributes:
        position: The position of its request in the layer.
        request: Its request.
        computes_prompt: Whether the cost of the prompt is counted here.
        proposer: Proposes its next tokens, or None.
        token_ids: The generated tokens.
        logprobs: The log-probability of each.
        proposal: The tokens that the newest forward pass read after the newest token.
        forward_passes: The forward passes that the text took part in, with that of the prompt.
        proposed_tokens: The number of all proposed tokens.
        ended: Whether the text has ended.
    """

    position: int
    request: Request
    computes_prompt: bool
    proposer: Proposer | None
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    proposal: list[int] = field(default_factory=list)
    forward_passes: int = 1
    proposed_tokens: int = 0
    ended: bool = False

    @property
    def look_ahead(self) -> LookAhead | None:
        """The cost of the text in forward passes, if the engine proposes tokens."""
        return LookAhead(self.forward_passes, self.proposed_tokens) if self.proposer else None

    def add(self, token: int, logprob: float) -> None:
        """Add a drawn token."""
        self.token_ids.append(token)
        self.logprobs.append(logprob)
        if self.proposer:
            self.proposer.add(token)

    def propose(self, most: int) -> None:
        """Choose the tokens that the next forward pass reads after the newest token, at most ``most``."""
        self.forward_passes += 1
        if self.proposer:
            # The text may have one token more than its proposal.
            room = self.request.sampling.max_tokens - len(self.token_ids) - 1
            self.proposal = self.proposer.propose(min(room, most))
            self.proposed_tokens += len(self.proposal)


def rows_of(requests: Sequence[Request], batch: Sequence[Group], *, looks_ahead: bool) -> list[Row]:
    """The rows of a batch. The first row of each prompt counts its cost."""
    rows = []
    for group in batch:
        index = PromptIndex(group.token_ids) if looks_ahead else None
        for position in group.positions:
            proposer = None if index is None else Proposer(index)
            rows.append(Row(position, requests[position], position == group.positions[0], proposer))
    return rows


@torch.inference_mode()
def decode(
    forward: Forward,
    cache: RowCache,
    batch: Sequence[Group],
    rows: list[Row],
    *,
    has_ended: Callable[[Row], bool],
    is_finishing: Callable[[], bool],
    device: torch.device,
    spare_pads: int = 0,
) -> Iterator[Row]:
    """Prefill each prompt once, give its cache to its rows, and decode. Yields each row as it ends.

    Args:
        forward: Runs the model.
        cache: An empty cache. It takes proposals if a row has a proposer.
        batch: The prompts, of one sampling.
        rows: See ``rows_of``.
        has_ended: Whether the newest token of a row ends its text.
        is_finishing: Whether to run no further forward pass.
        device: The device of the model's input.
        spare_pads: Pads before the longest prompt.
    """
    ids, mask = left_pad([group.token_ids for group in batch], device, spare_pads)  # (prompts, longest) each
    logits = cache.prefill(forward, ids, mask)  # (prompts, vocab)
    owners = torch.tensor([number for number, group in enumerate(batch) for _ in group.positions], device=device)
    cache.fan_out(owners, mask)
    logits, mask = logits[owners], mask[owners]
    prompts = [row.request.prompt.token_ids or () for row in rows]
    sampler = RowSampler(rows[0].request.sampling, [row.request.seed for row in rows], device, prompts)
    while True:
        yield from _draw(rows, logits, sampler, has_ended)
        unfinished = [index for index, row in enumerate(rows) if not row.ended]
        if not unfinished or is_finishing():
            return
        if len(unfinished) < len(rows):
            kept = torch.tensor(unfinished, device=device)  # (unfinished rows,)
            cache.select(kept)
            sampler.keep(unfinished)
            mask, rows = mask[kept], [rows[index] for index in unfinished]
        mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=-1)
        most = PASS_LOGITS // logits.shape[-1] // len(rows) - 1
        logits = _advance(rows, mask, cache, forward, max(0, most))


def _draw(
    rows: Sequence[Row], logits: torch.Tensor, sampler: RowSampler, has_ended: Callable[[Row], bool]
) -> Iterator[Row]:
    """Draw the next token of each row, and the tokens after it as long as they agree with the row's proposal.

    Args:
        rows: Rows that have not ended.
        logits: Those after the newest token of the first row, after each token of its proposal, and so on for the
            other rows, (tokens, vocab).
        sampler: Draws with the noise of each row.
        has_ended: Whether the newest token of a row ends its text.
    """
    first = [0, *accumulate(1 + len(row.proposal) for row in rows)]
    drawing, step = list(range(len(rows))), 0
    while drawing:
        places = [first[index] + step for index in drawing]
        drawn_from = logits if len(places) == len(logits) else logits[torch.tensor(places, device=logits.device)]
        tokens = sampler.draw(drawn_from, drawing)  # (drawing rows,)
        refuse_damaged(drawn_from.gather(-1, tokens[:, None]))
        logprobs = token_logprobs(drawn_from, tokens).tolist()
        agreeing = []
        for index, token, logprob in zip(drawing, tokens.tolist(), logprobs, strict=True):
            row = rows[index]
            row.add(token, logprob)
            if has_ended(row):
                row.ended = True
                yield row
            elif step < len(row.proposal) and row.proposal[step] == token:
                agreeing.append(index)
        drawing, step = agreeing, step + 1


def _advance(rows: Sequence[Row], mask: torch.Tensor, cache: RowCache, forward: Forward, most: int) -> torch.Tensor:
    """Run the newest token of each row and its proposal.

    Args:
        rows: Rows that have not ended.
        mask: The attention mask of rows without proposals, (rows, tokens).
        cache: Holds all tokens but the newest of each row.
        forward: Runs the model.
        most: The longest proposal of a row.

    Returns:
        The logits after each token of each row, (tokens, vocab).
    """
    for row in rows:
        row.propose(most)
    lengths = [len(row.token_ids) - 1 for row in rows]
    cache.begin(lengths, [1 + len(row.proposal) for row in rows])
    tokens = [token for row in rows for token in (row.token_ids[-1], *row.proposal)]
    positions = [
        len(row.request.prompt.token_ids or ()) + length + step
        for row, length in zip(rows, lengths, strict=True)
        for step in range(1 + len(row.proposal))
    ]
    ids, position_ids = torch.tensor([tokens, positions], device=mask.device)[:, :, None]  # (tokens, 1) each
    return forward(ids, mask, position_ids, cache)[:, -1]
