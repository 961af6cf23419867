"""Decoding steps that read the keys and values of a prompt once for all of its rows.

Each row attends to its prompt and to its own generated tokens. The softmax over both is the mean of two softmaxes,
weighted by their normalisers (Juravsky et al. 2024, "Hydragen", section 3; also known as cascade attention). The
first one runs for all rows of a prompt at once, so a prompt has one entry in memory whatever its number of rows.

It serves models whose layers are all plain causal attention. The self-check finds them when a model is loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface, Cache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from lm_eval_aft.engines.hf.cache_layers import GrowingLayer
from lm_eval_aft.engines.hf.forward import Forward, RowCache

# The name of the attention function in transformers' registry.
ATTENTION = "aft_shared_prompts"
# Arguments of an attention function that leave plain attention plain.
PLAIN_ARGUMENTS = frozenset({"dropout", "is_causal", "position_ids", "use_cache", "output_router_logits"})
# If more than this share of the rows in memory is unfinished, finished rows stay there. It takes longer to copy the
# unfinished rows than to compute the finished ones too.
LEAST_KEPT = 0.75
# Most tokens of a forward pass of prompts on a CPU, unless one prompt is longer. This bounds the memory of activations.
PREFILL_TOKENS = 4096


@dataclass(frozen=True, slots=True)
class _Groups:
    """Tokens in groups that attend to the same keys. Each group has as many places as the largest has tokens.

    Attributes:
        count: Number of groups.
        size: Places of a group.
        places: The place of each token, (tokens,), or None if the tokens fill all places in order.
    """

    count: int
    size: int
    places: torch.Tensor | None

    @classmethod
    def of(cls, owners: Sequence[int], count: int, device: torch.device) -> _Groups:
        """Group tokens.

        Args:
            owners: The group of each token, in ascending order.
            count: Number of groups.
            device: Where the places are kept.
        """
        members = [0] * count
        within = []
        for owner in owners:
            within.append(members[owner])
            members[owner] += 1
        size = max(members)
        if len(owners) == size * count:
            return cls(count, size, None)
        places = [owner * size + place for owner, place in zip(owners, within, strict=True)]
        return cls(count, size, torch.tensor(places, device=device))

    def gather(self, query: torch.Tensor) -> torch.Tensor:
        """The queries of tokens, (tokens, key heads, share, width), as (groups, key heads, size * share, width)."""
        _, key_heads, share, width = query.shape
        if self.places is not None:
            every_place = query.new_zeros(self.count * self.size, key_heads, share, width)
            query = every_place.index_copy_(0, self.places.to(query.device), query)
        places = query.view(self.count, self.size, key_heads, share, width)
        return places.transpose(1, 2).reshape(self.count, key_heads, self.size * share, width)

    def scatter(self, output: torch.Tensor) -> torch.Tensor:
        """The reverse of ``gather``."""
        _, key_heads, queries, width = output.shape
        share = queries // self.size
        places = output.view(self.count, key_heads, self.size, share, width).transpose(1, 2)
        every_place = places.reshape(self.count * self.size, key_heads, share, width)
        return every_place if self.places is None else every_place[self.places.to(output.device)]


@dataclass(slots=True)
class _Plan:
    """Where the new tokens of a forward pass belong. All layers of a cache share it.

    Attributes:
        rows: The row of each new token, (tokens,).
        slots: The place of each new token among the generated tokens of its row, (tokens,).
        end: The number of places in use, those of the new tokens included.
        by_row: The new tokens by row.
        by_prompt: The new tokens by prompt.
        own_mask: 0 for the generated tokens that a new token sees and -inf for others, (rows, 1, places of a row, end),
            or None if each sees all.
    """

    rows: torch.Tensor
    slots: torch.Tensor
    end: int
    by_row: _Groups
    by_prompt: _Groups
    own_mask: torch.Tensor | None = None


class SharedPromptLayer(GrowingLayer):
    """The keys and values of prompts, and separately those of each row's generated tokens.

    Attributes:
        prompt_keys: (prompts, key heads, longest prompt, width).
        prompt_values: The same.
        plan: Where the tokens of the next update belong.
    """

    plan: _Plan

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

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See ``DynamicLayer.update``. Each token has a row of the batch to itself."""
        rows, slots = self.plan.rows.to(key_states.device), self.plan.slots.to(key_states.device)
        self._keys.put(rows, slots, self.plan.end, key_states)
        self._values.put(rows, slots, self.plan.end, value_states)
        self._show()
        return self.keys, self.values

    def keep_prompts(self, prompts: torch.Tensor) -> None:
        """Keep the prompts of these indices."""
        prompts = prompts.to(self.prompt_keys.device)
        # A product with the transposed keys is faster if these are contiguous.
        self.prompt_keys = self.prompt_keys.mT.index_select(0, prompts).mT
        self.prompt_values = self.prompt_values.index_select(0, prompts)

    def get_seq_length(self) -> int:
        """See ``DynamicLayer.get_seq_length``. The prompt counts, since it decides the position of the next token."""
        return int(self.prompt_keys.shape[-2] + self.keys.shape[-2])


class SharedPromptCache(RowCache):
    """The cache of a batch whose rows share the entries of their prompts.

    Rows of one prompt are adjacent, in the order of the prompts. A forward pass may bring several tokens of a row. Each
    of them is then a row of the model's input, so that no layer computes pads.
    """

    def __init__(self) -> None:
        """An empty cache."""
        super().__init__()
        self._layers: list[SharedPromptLayer] = []
        self._attended: set[int] = set()
        # The prompt of each row, and the row's index in the layers. Rows that have left stay there for a while.
        self._owners: list[int] = []
        self._places: list[int] = []
        # 0 for tokens and -inf for pads, (prompts, 1, 1, longest prompt), or None without pads.
        self._pads: torch.Tensor | None = None
        self._device = torch.device("cpu")

    def prefill(self, forward: Forward, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """See ``RowCache.prefill``. A CPU runs a few prompts at a time."""
        size = max(1, PREFILL_TOKENS // ids.shape[1])
        if ids.device.type != "cpu" or size >= len(ids):
            return super().prefill(forward, ids, mask)
        parts = [RowCache() for _ in range(0, len(ids), size)]
        logits = [
            part.prefill(forward, *prompts)
            for part, *prompts in zip(parts, ids.split(size), mask.split(size), strict=True)
        ]
        self.keep(_joined([part.content for part in parts]), len(ids))
        return torch.cat(logits)

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
        self._layers, self._owners, self._device = layers, owners.tolist(), owners.device
        self._places = list(range(len(owners)))
        if not bool(mask.all()):
            pads = torch.zeros(mask.shape, dtype=layers[0].prompt_keys.dtype, device=mask.device)
            self._pads = pads.masked_fill_(mask == 0, -torch.inf)[:, None, None]

    def begin(self, lengths: Sequence[int], counts: Sequence[int]) -> None:
        """See ``RowCache.begin``."""
        rows = [place for place, count in zip(self._places, counts, strict=True) for _ in range(count)]
        slots = [slot for length, count in zip(lengths, counts, strict=True) for slot in range(length, length + count)]
        end = max(slots) + 1
        owners = [owner for owner, count in zip(self._owners, counts, strict=True) for _ in range(count)]
        by_row = _Groups.of(rows, len(self._layers[0].keys), self._device)
        by_prompt = _Groups.of(owners, len(self._layers[0].prompt_keys), self._device)
        places = torch.tensor([rows, slots], device=self._device)
        plan = _Plan(places[0], places[1], end, by_row, by_prompt)
        if min(slots) + 1 < end:
            first = torch.zeros(by_row.count, dtype=torch.long, device=self._device)
            first[self._places] = torch.tensor(lengths, device=self._device)
            last = first[:, None] + torch.arange(by_row.size, device=self._device)  # (rows, size)
            hidden = torch.arange(end, device=self._device) > last[:, None, :, None]  # (rows, 1, size, end)
            plan.own_mask = torch.zeros(hidden.shape, device=self._device).masked_fill_(hidden, -torch.inf)
        for layer in self._layers:
            layer.plan = plan

    def select(self, indices: torch.Tensor) -> None:
        """See ``RowCache.select``. Rows and prompts leave the memory once a quarter of its rows has left."""
        kept = indices.tolist()
        self._owners, self._places = [self._owners[row] for row in kept], [self._places[row] for row in kept]
        if len(kept) > LEAST_KEPT * len(self._layers[0].keys):
            return
        prompts = sorted(set(self._owners))
        for layer in self._layers:
            layer.reorder_cache(torch.tensor(self._places))
            if len(prompts) < len(layer.prompt_keys):
                layer.keep_prompts(torch.tensor(prompts))
        if self._pads is not None:
            self._pads = self._pads[prompts]
        self._owners, self._places = [prompts.index(owner) for owner in self._owners], list(range(len(kept)))

    def attend(self, index: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Attend from new tokens to the prompts of their rows and to the rows' generated tokens.

        Args:
            index: The index of the layer.
            query: Queries times the scale, (tokens, heads, 1, width).
            key: What the layer's update returned, (rows, key heads, generated tokens, width).
            value: The same.

        Returns:
            (tokens, 1, heads, width).

        Raises:
            ValueError: If the model changed the keys or values after the update, or gives a row several tokens.
        """
        layer, plan = self._layers[index], self._layers[index].plan
        tokens, heads, length, width = query.shape
        if key is not layer.keys or value is not layer.values or length != 1:
            raise ValueError("a layer of the model attends to other keys than those in its cache.")
        self._attended.add(index)
        key_heads = key.shape[1]
        query = query.reshape(tokens, key_heads, heads // key_heads, width)
        mask = None if plan.own_mask is None else plan.own_mask.repeat_interleave(heads // key_heads, 2)
        own, own_total = _attention(plan.by_row.gather(query), key, value, mask)
        shared, shared_total = _attention(
            plan.by_prompt.gather(query), layer.prompt_keys, layer.prompt_values, self._pads
        )
        own, own_total = plan.by_row.scatter(own), plan.by_row.scatter(own_total)
        share = (plan.by_prompt.scatter(shared_total) - own_total).sigmoid()
        output = own.lerp(plan.by_prompt.scatter(shared), share.to(own.dtype))
        return output.reshape(tokens, 1, heads, value.shape[-1])


def _joined(contents: Sequence[Cache]) -> Cache:
    """The first of these caches, with the prompts of all. The others lose theirs, so that no layer is held twice."""
    first = contents[0]
    for layers in zip(*(content.layers for content in contents), strict=True):
        # A product with the transposed keys is faster if these are contiguous.
        layers[0].keys = torch.cat([layer.keys.mT for layer in layers]).mT
        layers[0].values = torch.cat([layer.values for layer in layers])
        for layer in layers[1:]:
            layer.keys = layer.values = None
    return first


def _attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, hidden: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of every query to every key, and the log of the softmax's normaliser, (..., queries, 1), in float32."""
    scores = (query @ key.mT).float()  # (..., queries, keys)
    if hidden is not None:
        scores = scores + hidden.to(scores.device)
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
