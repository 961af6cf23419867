"""Draws the next token of each row, so that a row's text does not depend on the other rows of its batch.

Each row has a random generator with the seed of its generation. It draws one noise value per token id and step, and
the token with the largest sum of logit and Gumbel noise is chosen. This samples from the softmax (the Gumbel-max
trick: Maddison et al. 2014, section 2). Rounding noise in the logits then rarely changes the token. An inverse CDF
over sorted probabilities would change it whenever two probabilities swap places.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from lm_eval_aft.core.errors import EngineError
from lm_eval_aft.core.model_checks import damaged_logits
from lm_eval_aft.core.records import Sampling
from lm_eval_aft.engines.hf.penalties import RowPenalties

# The values and token ids that topk returns, (rows, candidates) each, largest first.
Best = tuple[torch.Tensor, torch.Tensor]
# Most nuclei are smaller. A row with a larger one is sorted whole.
CANDIDATES = 256


class RowSampler:
    """Samples rows that share their sampling settings, each with a random generator of its own."""

    def __init__(
        self, sampling: Sampling, seeds: Sequence[int], device: torch.device, prompts: Sequence[Sequence[int]] = ()
    ) -> None:
        """Seed one generator per row. An unseeded sampling takes its seeds from the system.

        Args:
            sampling: The settings of all rows.
            seeds: The seed of each row.
            device: Where the logits are.
            prompts: Token ids of each row's prompt, which a repetition penalty counts in.
        """
        self._sampling = sampling
        self._penalties = RowPenalties(sampling, prompts)
        self._generators = [torch.Generator(device) for _ in seeds]
        for generator, seed in zip(self._generators, seeds, strict=True):
            generator.manual_seed(seed) if sampling.seeded else generator.seed()

    def keep(self, rows: Sequence[int]) -> None:
        """Keep these rows only."""
        self._generators = [self._generators[row] for row in rows]
        self._penalties.keep(rows)

    def draw(self, logits: torch.Tensor, rows: Sequence[int] | None = None) -> torch.Tensor:
        """Draw the next token id of each row, or of some rows.

        Args:
            logits: (rows, vocab), of any float type.
            rows: The indices of the rows, in order. None is all of them.

        Returns:
            (rows,) of int64.
        """
        rows = range(len(self._generators)) if rows is None else rows
        tokens = self._draw(self._penalties.apply(logits.float(), rows), rows)
        self._penalties.add(tokens, rows)
        return tokens

    def _draw(self, scores: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
        if not self._sampling.temperature:
            return scores.argmax(-1)
        scores = scores / self._sampling.temperature
        if not truncates(self._sampling):
            return (scores + _gumbel(self._noise(scores, rows))).argmax(-1)
        best = scores.topk(min(CANDIDATES, scores.shape[-1]))
        values, ids = best  # (rows, candidates) each, largest first
        lowest = _threshold(scores, best, self._sampling)
        noise = self._noise(scores, rows)
        kept = values.masked_fill(values < lowest, -torch.inf)
        chosen = (kept + _gumbel(noise.gather(-1, ids))).argmax(-1, keepdim=True)
        tokens = ids.gather(-1, chosen)[:, 0]
        # The sampling may keep tokens beyond the candidates too, also by a tie with the last of them.
        wide = values[:, -1] >= lowest[:, 0]
        if values.shape < scores.shape and bool(wide.any()):
            kept = scores[wide].masked_fill(scores[wide] < lowest[wide], -torch.inf)
            tokens[wide] = (kept + _gumbel(noise[wide])).argmax(-1)
        return tokens

    def _noise(self, scores: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
        """The next uniform variates of these rows, one a token id, (rows, vocab)."""
        noise = torch.empty_like(scores)
        for place, row in enumerate(rows):
            # exponential_ takes 7 times as long on a CPU.
            noise[place].uniform_(generator=self._generators[row])
        return noise


def _gumbel(noise: torch.Tensor) -> torch.Tensor:
    """Turn uniform variates into Gumbel noise, in place. A variate of 0 gives -inf, which is never the largest."""
    return noise.log_().neg_().log_().neg_()


def refuse_damaged(logits: torch.Tensor) -> None:
    """Refuse logits that are not numbers. NaN anywhere in a row is the largest, so the chosen tokens' logits suffice.

    Raises:
        EngineError: If one is NaN or infinite.
    """
    if not bool(logits.isfinite().all()):
        raise EngineError(damaged_logits(logits.dtype))


def truncates(sampling: Sampling) -> bool:
    """Whether top-k, top-p or min-p may rule out a token."""
    return bool(sampling.top_k or sampling.top_p < 1 or sampling.min_p)


def threshold(scores: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """The lowest score that top-k, top-p and min-p keep, in transformers' order. Scores equal to it are kept too.

    Args:
        scores: Logits divided by the temperature, (rows, vocab).
        sampling: ``top_k``, ``top_p`` and ``min_p`` are read.

    Returns:
        (rows, 1).
    """
    return _threshold(scores, scores.topk(min(CANDIDATES, scores.shape[-1])), sampling)


def _threshold(scores: torch.Tensor, best: Best, sampling: Sampling) -> torch.Tensor:
    lowest = _nucleus_threshold(scores, best, sampling)
    return lowest.maximum(best[0][:, :1] + math.log(sampling.min_p)) if sampling.min_p else lowest


def _nucleus_threshold(scores: torch.Tensor, best: Best, sampling: Sampling) -> torch.Tensor:
    (rows, vocab), size = scores.shape, best[0].shape[-1]
    top_k = min(sampling.top_k or vocab, vocab)
    if sampling.top_p >= 1:
        if top_k == vocab:
            return scores.new_full((rows, 1), -torch.inf)
        return (best[0] if top_k <= size else scores.topk(top_k).values)[:, top_k - 1 : top_k]
    lowest, complete = _nucleus(scores, best, top_k, sampling.top_p)
    if size < top_k and not bool(complete.all()):
        wide = ~complete
        lowest[wide], _ = _nucleus(scores[wide], scores[wide].topk(top_k), top_k, sampling.top_p)
    return lowest


def _nucleus(scores: torch.Tensor, best: Best, top_k: int, top_p: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The lowest score of the nucleus among the best, (rows, 1), and whether it ends there, (rows,)."""
    values, ids = (part[:, :top_k] for part in best)
    if top_k == scores.shape[-1]:
        probabilities = scores.softmax(-1).gather(-1, ids)
    else:
        among = values if top_k == values.shape[-1] else scores.topk(top_k).values
        probabilities = among.softmax(-1)[:, : values.shape[-1]]
    mass = probabilities.cumsum(-1)
    # The token that reaches top_p belongs to the nucleus.
    inside = (mass < top_p).sum(-1, keepdim=True).clamp(max=values.shape[-1] - 1)
    return values.gather(-1, inside), (mass[:, -1] >= top_p)
