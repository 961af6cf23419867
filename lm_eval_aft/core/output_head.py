"""What a transformers model gives to the layer that computes its logits."""

from __future__ import annotations

from typing import Any


def keep_head_input_contiguous(model: Any) -> None:
    """Make the hidden states contiguous that a transformers model gives to its output head.

    With ``logits_to_keep`` the hidden states are a slice of those of the batch. torch multiplies such a slice by one
    copy of frozen weights for each row. Copying them takes far longer than the product.
    """
    head = model.get_output_embeddings()
    if head is not None:
        head.register_forward_pre_hook(_contiguous)


def _contiguous(head: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
    # A model may pass its states by name.
    return (inputs[0].contiguous(), *inputs[1:]) if inputs else None
