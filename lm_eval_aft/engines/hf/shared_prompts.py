"""Decoding steps that read the keys and values of a prompt once for all of its rows.

Each row attends to its prompt and to its own generated tokens. The softmax over both is the mean of two softmaxes,
weighted by their normalisers (Juravsky et al. 2024, "Hydragen", section 3; also known as cascade attention). The
first one runs for all rows of a prompt at once, so a prompt has one entry in memory whatever its number of rows.

It serves models whose layers are all plain causal attention. The self-check finds them when a model is loaded.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from lm_eval_aft.engines.hf.cache_layers import GrowingLayer
from lm_eval_aft.engines.hf.forward import RowCache

# The name of the attention function in transformers' registry.
ATTENTION = "aft_shared_prompts"
# Arguments of an attention function that leave plain attention plain.
PLAIN_ARGUMENTS = frozenset({"dropout", "is_causal", "position_ids", "use_cache", "output_router_logits"})


class SharedPromptLayer(GrowingLayer):
    """The keys and values of prompts, and separately those of each row's generated tokens.

    Attributes:
        prompt_keys: (prompts, key heads, longest prompt, width).
        prompt_values: The same.
    """

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, rows: int) -> None:
        """Start rows without generated tokens after the prompts.

        Args:
            keys: Keys of the prompts, (prompts, key heads, longest prompt, width).
            values: The same.
            rows: Number of rows.
        """
        none = keys.new_empty(rows, keys.shape[1], 0, keys.shape[-1])
        super().__init__(none, values.new_empty(rows, values.shape[1], 0, values.shape[-1]))
        self.prompt_keys, self.prompt_values = keys, values

    def keep_prompts(self, prompts: torch.Tensor) -> None:
        """Keep the prompts of these indices."""
        prompts = prompts.to(self.prompt_keys.device)
        self.prompt_keys = self.prompt_keys.index_select(0, prompts)
        self.prompt_values = self.prompt_values.index_select(0, prompts)

    def get_seq_length(self) -> int:
        """See ``DynamicLayer.get_seq_length``. The prompt counts, since it decides the position of the next token."""
        return int(self.prompt_keys.shape[-2] + self.keys.shape[-2])


class SharedPromptCache(RowCache):
    """The cache of a batch whose rows share the entries of their prompts.

    Rows of one prompt are adjacent, in the order of the prompts.
    """

    def __init__(self) -> None:
        """An empty cache."""
        super().__init__()
        self._layers: list[SharedPromptLayer] = []
        self._attended: set[int] = set()
        # The index of each row's prompt, (rows,).
        self._owners = torch.empty(0, dtype=torch.long)
        # 0 for tokens and -inf for pads, (prompts, 1, 1, longest prompt), or None without pads.
        self._pads: torch.Tensor | None = None
        # Rows that each prompt gets in a step; and the place of each row among them, (rows,), or None if all are taken.
        self._size, self._places = 0, None

    def inputs(self) -> dict[str, Any]:
        """See ``RowCache.inputs``. Pads are masked here, and no generated token is a pad."""
        return {"attention_mask": None, "shared_prompts": self} if self._layers else {}

    def keep(self, content: Any, rows: int) -> None:
        """See ``RowCache.keep``.

        Raises:
            ValueError: If a layer attended to its rows' own tokens only.
        """
        super().keep(content, rows)
        if len(self._attended) != len(self._layers):
            raise ValueError("not every layer of the model attends through transformers' attention interface.")
        self._attended = set()

    def fan_out(self, owners: torch.Tensor, mask: torch.Tensor) -> None:
        """See ``RowCache.fan_out``. Nothing is copied."""
        layers = self.content.layers
        for index, layer in enumerate(layers):
            layers[index] = SharedPromptLayer(layer.keys, layer.values, len(owners))
        self._layers = layers
        if not bool(mask.all()):
            pads = torch.zeros(mask.shape, dtype=layers[0].prompt_keys.dtype, device=mask.device)
            self._pads = pads.masked_fill_(mask == 0, -torch.inf)[:, None, None]
        self._arrange(owners, len(mask))

    def select(self, indices: torch.Tensor) -> None:
        """See ``RowCache.select``. A prompt leaves with the last of its rows."""
        prompts, owners = self._owners[indices].unique(return_inverse=True)
        for layer in self._layers:
            layer.reorder_cache(indices)
            if len(prompts) < len(layer.prompt_keys):
                layer.keep_prompts(prompts)
        if self._pads is not None:
            self._pads = self._pads[prompts]
        self._arrange(owners, len(prompts))

    def attend(self, index: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Attend from one new token of each row to the row's prompt and its generated tokens.

        Args:
            index: The index of the layer.
            query: Queries times the scale, (rows, heads, 1, width).
            key: What the layer's update returned, (rows, key heads, generated tokens, width).
            value: The same.

        Returns:
            (rows, 1, heads, width).

        Raises:
            ValueError: If the model changed the keys or values after the update, or reads several tokens.
        """
        layer = self._layers[index]
        rows, heads, tokens, width = query.shape
        if key is not layer.keys or value is not layer.values or tokens != 1:
            raise ValueError("a layer of the model attends to other keys than those in its cache.")
        self._attended.add(index)
        key_heads = key.shape[1]
        query = query.reshape(rows, key_heads, heads // key_heads, width)
        own, own_total = _attention(query, key, value)
        pads = None if self._pads is None else self._pads.to(query.device)
        shared, shared_total = _attention(self._by_prompt(query), layer.prompt_keys, layer.prompt_values, pads)
        share = (self._by_row(shared_total, heads // key_heads) - own_total).sigmoid()
        output = own.lerp(self._by_row(shared, heads // key_heads), share.to(own.dtype))
        return output.view(rows, 1, heads, value.shape[-1])

    def _arrange(self, owners: torch.Tensor, prompts: int) -> None:
        """Take the owners of the rows, and give every prompt as many places as the largest group has rows."""
        self._owners, self.rows = owners, len(owners)
        counts = owners.bincount(minlength=prompts)  # (prompts,)
        self._size = int(counts.max())
        first_rows = counts.cumsum(0) - counts  # (prompts,)
        places = torch.arange(len(owners), device=owners.device) - first_rows[owners] + self._size * owners
        self._places = places if len(owners) < self._size * prompts else None

    def _by_prompt(self, query: torch.Tensor) -> torch.Tensor:
        """The queries of rows, (rows, key heads, group, width), as (prompts, key heads, size * group, width)."""
        _, key_heads, group, width = query.shape
        if self._places is not None:
            prompts = len(self._layers[0].prompt_keys)
            every_place = query.new_zeros(prompts * self._size, key_heads, group, width)
            query = every_place.index_copy_(0, self._places.to(query.device), query)
        places = query.view(-1, self._size, key_heads, group, width)
        return places.transpose(1, 2).reshape(len(places), key_heads, self._size * group, width)

    def _by_row(self, output: torch.Tensor, group: int) -> torch.Tensor:
        """The reverse of ``_by_prompt``."""
        prompts, key_heads, _, width = output.shape
        places = output.view(prompts, key_heads, self._size, group, width).transpose(1, 2)
        every_place = places.reshape(prompts * self._size, key_heads, group, width)
        return every_place if self._places is None else every_place[self._places.to(output.device)]


def _attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, pads: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of every query to every key, and the log of the softmax's normaliser, (..., queries, 1), in float32."""
    scores = (query @ key.mT).float()  # (..., queries, keys)
    if pads is not None:
        scores = scores + pads
    total = scores.logsumexp(-1, keepdim=True)
    weights = scores.sub_(total).exp_().to(value.dtype)
    return weights @ value, total


def attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    shared_prompts: SharedPromptCache | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Transformers' ``sdpa`` attention, or that of a ``SharedPromptCache`` where the forward method is given one.

    Raises:
        ValueError: If the layer needs more than plain attention.
    """
    if shared_prompts is None:
        output: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **others
        )
        return output
    unknown = [name for name, given in others.items() if given is not None and name not in PLAIN_ARGUMENTS]
    if attention_mask is not None or unknown:
        raise ValueError(f"a layer of the model needs {', '.join(unknown) or 'a mask'} beside plain attention.")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return shared_prompts.attend(module.layer_idx, query * scale, key, value), None


def use_shared_prompts(model: Any) -> bool:
    """Let the model attend by ``attention``, which is transformers' ``sdpa`` until a forward method gets a cache.

    Args:
        model: A transformers model.

    Returns:
        Whether the model takes the attention function.
    """
    AttentionInterface.register(ATTENTION, attention)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)
    model.set_attn_implementation(ATTENTION)
    return bool(model.config._attn_implementation == ATTENTION)
