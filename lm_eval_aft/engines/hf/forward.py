"""One forward pass of a causal transformers model with a cache of keys and values."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from transformers import DynamicCache


class Forward:
    """Runs the model and keeps only the logits that are needed."""

    def __init__(self, model: Any) -> None:
        """Wrap a causal transformers model, with or without a peft adapter."""
        self._model = model
        # The forward method of a peft model takes any argument, so the signature is read from the model inside.
        inner = model.get_base_model() if hasattr(model, "get_base_model") else model
        self._parameters = set(inspect.signature(inner.forward).parameters)

    def new_cache(self) -> DynamicCache:
        """An empty cache for one batch."""
        return DynamicCache(config=self._model.config)

    def __call__(
        self, ids: torch.Tensor, mask: torch.Tensor, position_ids: torch.Tensor, cache: DynamicCache, keep: int = 1
    ) -> torch.Tensor:
        """Compute the logits after the last ``keep`` tokens, and add all tokens to the cache.

        Args:
            ids: Token ids, (rows, tokens).
            mask: 1 for tokens and 0 for pads, those in the cache included, (rows, cached + tokens).
            position_ids: Position of each token in its row, (rows, tokens).
            cache: Keys and values of the tokens before.
            keep: Number of positions.

        Returns:
            (rows, keep, vocab).
        """
        optional = {"position_ids": position_ids, "logits_to_keep": keep}
        accepted = {name: value for name, value in optional.items() if name in self._parameters}
        output = self._model(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, **accepted)
        logits: torch.Tensor = output.logits[:, -keep:]
        return logits
