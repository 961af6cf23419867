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

# Most nuclei are smaller. A larger one is found by a full sort.
NUCLEUS_GUESS = 256


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

    def draw(self, logits: torch.Tensor) -> torch.Tensor:
        """Draw the next token ids.

        Args:
            logits: (rows, vocab), of any float type.

        Returns:
            (rows,) of int64.
        """
        tokens = self._draw(self._penalties.apply(logits.float()))
        self._penalties.add(tokens)
        return tokens

    def _draw(self, scores: torch.Tensor) -> torch.Tensor:
        if not self._sampling.temperature:
            return scores.argmax(-1)
        scores = scores / self._sampling.temperature
        noise = torch.empty_like(scores)
        for row, generator in enumerate(self._generators):
            # exponential_ takes 7 times as long on a CPU.
            noise[row].uniform_(generator=generator)
        scores = scores.masked_fill(scores < threshold(scores, self._sampling), -torch.inf)
        # A uniform variate of 0 gives -inf, which is never the largest.
        gumbel = noise.log_().neg_().log_().neg_()
        return (scores + gumbel).argmax(-1)


def refuse_damaged(logits: torch.Tensor) -> None:
    """Refuse logits that are not numbers. NaN anywhere in a row is the largest, so the chosen tokens' logits suffice.

    Raises:
        EngineError: If one is NaN or infinite.
    """
    if not bool(logits.isfinite().all()):
        raise EngineError(damaged_logits(logits.dtype))


def threshold(scores: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """The lowest score that top-k, top-p and min-p keep, in transformers' order. Scores equal to it are kept too.

    Args:
        scores: Logits divided by the temperature, (rows, vocab).
        sampling: ``top_k``, ``top_p`` and ``min_p`` are read.

    Returns:
        (rows, 1).
    """
    lowest = _nucleus_threshold(scores, sampling)
    if not sampling.min_p:
        return lowest
    return lowest.maximum(scores.amax(-1, keepdim=True) + math.log(sampling.min_p))


def _nucleus_threshold(scores: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    vocab = scores.shape[-1]
    top_k = min(sampling.top_k or vocab, vocab)
    if sampling.top_p >= 1:
        if top_k == vocab:
            return scores.new_full((len(scores), 1), -torch.inf)
        return scores.topk(top_k).values[:, -1:]
    size = min(top_k, NUCLEUS_GUESS)
    lowest, complete = _nucleus(scores, size, top_k, sampling.top_p)
    if size < top_k and not bool(complete.all()):
        wide = ~complete
        lowest[wide], _ = _nucleus(scores[wide], top_k, top_k, sampling.top_p)
    return lowest


def _nucleus(scores: torch.Tensor, size: int, top_k: int, top_p: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The lowest score of the nucleus among the ``size`` best, (rows, 1), and whether it ends there, (rows,)."""
    best = scores.topk(size).values  # (rows, size), largest first
    among = scores if top_k == scores.shape[-1] else scores.topk(top_k).values
    mass = (best - among.logsumexp(-1, keepdim=True)).exp().cumsum(-1)
    # The token that reaches top_p belongs to the nucleus.
    inside = (mass < top_p).sum(-1, keepdim=True).clamp(max=size - 1)
    return best.gather(-1, inside), (mass[:, -1] >= top_p)
