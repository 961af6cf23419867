"""Log-probabilities of given tokens under the model's own distribution."""

from __future__ import annotations

import torch


def token_logprobs(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """The natural logarithm of each token's probability, before temperature, top-p, top-k and penalties.

    Args:
        logits: (..., vocab), of any float type.
        tokens: Token ids, (...).

    Returns:
        (...) of float32.
    """
    # logsumexp takes twice as long on a CPU. This is 0.8 % of decoding 40 rows there (SmolLM2, 135M parameters).
    return logits.float().log_softmax(-1).gather(-1, tokens[..., None])[..., 0]
