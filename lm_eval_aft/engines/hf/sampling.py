"""Drawing the next token of each row, so that a row's text does not depend on its neighbours.

Each row owns a generator seeded by its generation's seed and draws one noise value per token id and step; the
largest of logit plus Gumbel noise wins (the Gumbel-max trick: Maddison et al. 2014, section 2), which samples from
the softmax. Rounding noise in the logits then rarely changes the winner, while an inverse CDF over sorted
probabilities would jump whenever two of them swap places. Called by the hf engine.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lm_eval_aft.core.records import Sampling

NUCLEUS_GUESS = 256  # most nuclei are smaller; larger ones fall back to a full sort


class RowSampler:
    """Samples rows that share their sampling settings, each from a generator of its own."""

    def __init__(self, sampling: Sampling, seeds: Sequence[int], device: torch.device) -> None:
        """Seed one generator per row; an unseeded sampling draws its seeds from the system."""
        self._sampling = sampling
        self._generators = [torch.Generator(device) for _ in seeds]
        for generator, seed in zip(self._generators, seeds, strict=True):
            generator.manual_seed(seed) if sampling.seeded else generator.seed()

    def keep(self, rows: Sequence[int]) -> None:
        """Forget all rows but these."""
        self._generators = [self._generators[row] for row in rows]

    def draw(self, logits: torch.Tensor) -> torch.Tensor:
        """Next token ids.

        Args:
            logits: (rows, vocab), of any float type.

        Returns:
            (rows,) of int64.
        """
        scores = logits.float()
        if not self._sampling.temperature:
            return scores.argmax(-1)
        scores = scores / self._sampling.temperature
        noise = torch.empty_like(scores)
        for row, generator in enumerate(self._generators):
            noise[row].uniform_(generator=generator)  # exponential_ takes 7 times as long on a CPU
        scores = scores.masked_fill(scores < threshold(scores, self._sampling), -torch.inf)
        gumbel = noise.log_().neg_().log_().neg_()  # of a uniform variate; 0 gives -inf, which never wins
        return (scores + gumbel).argmax(-1)


def threshold(scores: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """The lowest score that top-k and then top-p let through; ties with it pass.

    Args:
        scores: (rows, vocab), tempered logits.
        sampling: ``top_k`` and ``top_p`` are read.

    Returns:
        (rows, 1).
    """
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
    """Lowest score of the nucleus within the ``size`` best (rows, 1), and whether it ends there (rows,)."""
    best = scores.topk(size).values  # (rows, size), falling
    among = scores if top_k == scores.shape[-1] else scores.topk(top_k).values
    mass = (best - among.logsumexp(-1, keepdim=True)).exp().cumsum(-1)
    inside = (mass < top_p).sum(-1, keepdim=True).clamp(max=size - 1)  # the token that reaches top_p is in
    return best.gather(-1, inside), (mass[:, -1] >= top_p)
