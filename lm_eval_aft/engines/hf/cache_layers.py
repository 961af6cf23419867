"""Cache layers that write new keys and values into buffers with room, where transformers' own copy all at each step."""

from __future__ import annotations

from typing import Any

import torch
from transformers import Cache, DynamicCache, EncoderDecoderCache
from transformers.cache_utils import DynamicLayer

# The least and the most tokens of room in a new buffer, which has as much room as tokens between them. A larger room
# saves few copies and takes memory that short texts do not need.
LEAST_ROOM, ROOM = 16, 64


class Buffer:
    """One entry a row and token, with room for more tokens."""

    def __init__(self, entries: torch.Tensor) -> None:
        """Copy the entries into a buffer with room, (rows, heads, tokens, width)."""
        self._tokens = entries.shape[-2]
        self._memory = _with_room(entries)

    def append(self, entries: torch.Tensor) -> None:
        """Add tokens, (rows, heads, new tokens, width)."""
        end = self._tokens + entries.shape[-2]
        if end > self._memory.shape[-2]:
            self._memory = _with_room(self.entries, entries.shape[-2])
        self._memory[..., self._tokens : end, :] = entries
        self._tokens = end

    def put(self, rows: torch.Tensor, slots: torch.Tensor, end: int, entries: torch.Tensor) -> None:
        """Put new tokens of any rows at any places. A row's entries after its own tokens have no meaning.

        Args:
            rows: The index of each new token's row, (new tokens,).
            slots: The place of each new token in its row, (new tokens,).
            end: The number of places that are used from now on.
            entries: (new tokens, heads, 1, width).
        """
        if end > self._memory.shape[-2]:
            self._memory = _with_room(self.entries, end - self._tokens)
        self._memory.transpose(1, 2)[rows, slots] = entries[:, :, 0]
        self._tokens = end

    def select(self, indices: torch.Tensor) -> None:
        """Keep the rows of these indices, (new rows,). An index may repeat."""
        self._memory = self._memory.index_select(0, indices.to(self._memory.device))

    @property
    def entries(self) -> torch.Tensor:
        """A view of the tokens so far, (rows, heads, tokens, width)."""
        return self._memory[..., : self._tokens, :]


def _with_room(entries: torch.Tensor, more: int = 0) -> torch.Tensor:
    rows, heads, tokens, width = entries.shape
    room = min(max(tokens, LEAST_ROOM), ROOM)
    memory = entries.new_empty(rows, heads, tokens + more + room, width)
    memory[..., :tokens, :] = entries
    # A masked entry has the weight 0, and 0 times NaN is NaN.
    memory[..., tokens:, :] = 0
    return memory


class GrowingLayer(DynamicLayer):
    """transformers' layer of full attention, with the same content in buffers."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Copy the keys and values of the tokens so far, (rows, heads, tokens, width) each."""
        super().__init__()
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True
        self._keys, self._values = Buffer(keys), Buffer(values)
        self._show()

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See ``DynamicLayer.update``."""
        self._keys.append(key_states)
        self._values.append(value_states)
        self._show()
        return self.keys, self.values

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """See ``DynamicLayer.reorder_cache``."""
        self._keys.select(beam_idx)
        self._values.select(beam_idx)
        self._show()

    def _show(self) -> None:
        self.keys, self.values = self._keys.entries, self._values.entries


def give_room(content: Any) -> None:
    """Replace the layers of plain full attention in a cache. Layers of every other class stay as they are.

    Args:
        content: A cache of transformers, or a container of caches, after the first forward pass.
    """
    if isinstance(content, EncoderDecoderCache):
        give_room(content.self_attention_cache)
    elif type(content) is DynamicCache:
        for index, layer in enumerate(content.layers):
            if is_plain(layer):
                content.layers[index] = GrowingLayer(layer.keys, layer.values)
    elif isinstance(content, list | tuple | dict):
        for part in content.values() if isinstance(content, dict) else content:
            if isinstance(part, Cache | list | tuple | dict):
                give_room(part)


def is_plain(layer: Any) -> bool:
    """Whether a cache layer is transformers' own layer of full attention, with one entry a row, head and token."""
    return type(layer) is DynamicLayer and layer.get_seq_length() > 0 and layer.keys.dim() == layer.values.dim() == 4
