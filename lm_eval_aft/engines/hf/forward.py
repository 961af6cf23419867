"""One forward pass of a causal transformers model, with what the model keeps of the tokens before."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from transformers import Cache, DynamicCache

from lm_eval_aft.engines.hf.cache_layers import give_room

# The names under which a forward method takes and returns what it keeps, newest first.
CACHE_NAMES = ("cache", "past_key_values", "cache_params", "state", "mems")


class RowCache:
    """What a model keeps of the rows of one batch, in the model's own form.

    Attributes:
        content: A cache of transformers, other objects with tensors, or None before the first forward pass.
        rows: Rows of the batch.
    """

    def __init__(self) -> None:
        """An empty cache."""
        self.content: Any = None
        self.rows = 0

    def inputs(self) -> dict[str, Any]:
        """Arguments of the model's forward method that replace those of a plain cache."""
        return {}

    def prefill(self, forward: Forward, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Run prompts, and keep what the model keeps of them.

        Args:
            forward: Runs the model.
            ids: Token ids, (prompts, longest prompt).
            mask: 1 for tokens and 0 for pads, of the same shape.

        Returns:
            The logits after each prompt, (prompts, vocab).
        """
        return forward(ids, mask, (mask.cumsum(-1) - 1).clamp(min=0), self)[:, -1]

    def keep(self, content: Any, rows: int) -> None:
        """Keep what the forward method returns for its rows."""
        self.content, self.rows = content, rows

    def fan_out(self, owners: torch.Tensor, mask: torch.Tensor) -> None:
        """Turn the entries of prompts into those of rows, with room for generated tokens.

        Args:
            owners: The index of each row's prompt, (rows,). Rows of one prompt are adjacent, in the prompts' order.
            mask: 1 for tokens and 0 for pads, (prompts, longest prompt).
        """
        give_room(self.content)
        if len(owners) > self.rows:
            self.select(owners)

    def begin(self, lengths: Sequence[int], counts: Sequence[int]) -> None:
        """Say which tokens the next forward pass brings. Only a cache that may forget tokens needs to know it.

        Args:
            lengths: For each row, the number of generated tokens to keep. The tokens after them are forgotten.
            counts: For each row, the number of its new tokens.
        """

    def select(self, indices: torch.Tensor) -> None:
        """Keep the rows of these indices, in this order. An index may repeat.

        Args:
            indices: (new rows,).
        """
        self.content = _select(self.content, indices, self.rows)
        self.rows = len(indices)


def _select(content: Any, indices: torch.Tensor, rows: int) -> Any:
    """Select rows in every tensor of a cache that has one entry a row."""
    if isinstance(content, torch.Tensor):
        has_rows = content.dim() > 0 and content.shape[0] == rows
        return content.index_select(0, indices.to(content.device)) if has_rows else content
    if isinstance(content, list | tuple):
        return type(content)(_select(part, indices, rows) for part in content)
    if isinstance(content, dict):
        return {name: _select(part, indices, rows) for name, part in content.items()}
    if isinstance(content, Cache):
        # The layers know which of their tensors have rows, and in which dimension.
        content.reorder_cache(indices)
    # A model's own cache class keeps tensors beside the layers, or has no layers.
    for name, part in vars(content).items() if hasattr(content, "__dict__") else ():
        if name != "layers" and isinstance(part, torch.Tensor | list | tuple | dict):
            setattr(content, name, _select(part, indices, rows))
    return content


class Forward(Protocol):
    """Runs the model and keeps only the logits that are needed."""

    def __call__(
        self, ids: torch.Tensor, mask: torch.Tensor, position_ids: torch.Tensor, cache: RowCache, keep: int = 1
    ) -> torch.Tensor:
        """Compute the logits after the last ``keep`` tokens, and add all tokens to the cache.

        Args:
            ids: Token ids, (rows, tokens).
            mask: 1 for tokens and 0 for pads, those in the cache included, (rows, cached + tokens).
            position_ids: Position of each token in its row, (rows, tokens).
            cache: What the model keeps of the tokens before.
            keep: Number of positions.

        Returns:
            (rows, keep, vocab).
        """


class DirectForward:
    """Calls the model's forward method with the arguments that it accepts."""

    def __init__(self, model: Any) -> None:
        """Wrap a causal transformers model, with or without a peft adapter."""
        self._model = model
        self._parameters = forward_parameters(model)
        self._cache_name = next((name for name in CACHE_NAMES if name in self._parameters), None)

    def __call__(
        self, ids: torch.Tensor, mask: torch.Tensor, position_ids: torch.Tensor, cache: RowCache, keep: int = 1
    ) -> torch.Tensor:
        """See ``Forward``."""
        optional: dict[str, Any] = {"attention_mask": mask, "position_ids": position_ids, "logits_to_keep": keep}
        if self._cache_name and cache.content is not None:
            # The model makes its own cache at the first forward pass.
            optional[self._cache_name] = cache.content
        accepted = {name: value for name, value in optional.items() if name in self._parameters}
        output = self._model(input_ids=ids, use_cache=True, **(accepted | cache.inputs()))
        cache.keep(output.get(self._cache_name), len(ids))
        logits: torch.Tensor = output.logits[:, -keep:]
        return logits


class PreparedForward:
    """Calls the forward method with the inputs that the model's class prepares for ``generate``.

    Some classes pass other masks or tokens than ``DirectForward``, or drop the cache when a rope changes.
    """

    def __init__(self, model: Any) -> None:
        """Wrap a causal transformers model, with or without a peft adapter."""
        self._model = model
        self._parameters = forward_parameters(model)

    def __call__(
        self, ids: torch.Tensor, mask: torch.Tensor, position_ids: torch.Tensor, cache: RowCache, keep: int = 1
    ) -> torch.Tensor:
        """See ``Forward``."""
        first = cache.content is None
        all_ids, kept = (ids, {"use_cache": True, **self._new_cache()}) if first else cache.content
        if not first:
            all_ids = torch.cat([all_ids, ids], dim=-1)  # (rows, cached + tokens)
        all_positions = (mask.cumsum(-1) - 1).clamp(min=0)  # (rows, cached + tokens)
        optional = {"attention_mask": mask, "position_ids": all_positions, "logits_to_keep": keep}
        kept |= {name: value for name, value in optional.items() if name in self._parameters}
        inner = base_model(self._model)
        length = None if first else ids.shape[-1]
        inputs = inner.prepare_inputs_for_generation(
            all_ids, next_sequence_length=length, is_first_iteration=first, **kept
        )
        output = self._model(**inputs, return_dict=True)
        kept = inner._update_model_kwargs_for_generation(output, dict(kept))
        cache.keep((all_ids, kept), len(ids))
        logits: torch.Tensor = output.logits[:, -keep:]
        return logits

    def _new_cache(self) -> dict[str, Cache]:
        """The empty cache that ``generate`` passes. A few models make a cache of another class themselves."""
        name = next((name for name in CACHE_NAMES[:3] if name in self._parameters), None)
        inner = base_model(self._model)
        if name is None or not inner._supports_default_dynamic_cache():
            return {}
        return {name: DynamicCache(config=inner.config.get_text_config(decoder=True))}


class RestartedForward:
    """Sets a rope that grew with a longer text back before each batch."""

    def __init__(self, model: Any, forward: Forward) -> None:
        """Wrap a way to call the model."""
        self._model, self._forward = model, forward

    def __call__(
        self, ids: torch.Tensor, mask: torch.Tensor, position_ids: torch.Tensor, cache: RowCache, keep: int = 1
    ) -> torch.Tensor:
        """See ``Forward``."""
        if cache.content is None:
            restart_rope(self._model, ids)
        return self._forward(ids, mask, position_ids, cache, keep)


def whole_logits(model: Any, ids: torch.Tensor, keep: int) -> torch.Tensor:
    """The logits after the last ``keep`` tokens of whole texts of one length, as ``--model hf`` computes them.

    Args:
        model: A causal transformers model.
        ids: Token ids, (rows, tokens).
        keep: Number of positions.

    Returns:
        (rows, keep, vocab).
    """
    if rope_changes(model.config):
        restart_rope(model, ids)
    trim = {"logits_to_keep": keep} if "logits_to_keep" in forward_parameters(model) else {}
    logits: torch.Tensor = model(input_ids=ids, **trim).logits[:, -keep:]
    return logits


def rope_changes(config: Any) -> bool:
    """Whether the rope of the earlier tokens of a text depends on the text's length."""
    text = config.get_text_config()
    settings = [getattr(text, name, None) for name in ("rope_parameters", "rope_scaling")]
    return any("dynamic" in kind or kind == "longrope" for kind in _rope_types(settings))


def _rope_types(settings: Any) -> Iterator[str]:
    """The rope types in the settings of a config, which may be nested by kind of layer."""
    if isinstance(settings, list):
        for part in settings:
            yield from _rope_types(part)
    if isinstance(settings, Mapping):
        for name, value in settings.items():
            if name in ("rope_type", "type"):
                yield str(value)
            yield from _rope_types(value)


def restart_rope(model: Any, ids: torch.Tensor) -> None:
    """Set back a rope that grew with a longer text: transformers does so at a text shorter than the original context.

    Args:
        model: A causal transformers model.
        ids: Any token ids, (rows, tokens).
    """
    model(input_ids=ids[:1, :1])


def base_model(model: Any) -> Any:
    """The transformers model inside a peft model, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def forward_parameters(model: Any) -> set[str]:
    """The arguments that the forward method accepts. The forward method of a peft model accepts everything."""
    return set(inspect.signature(base_model(model).forward).parameters)
