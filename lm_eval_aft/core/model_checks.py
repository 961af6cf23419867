"""What makes every answer of a model wrong, or ends a run in the middle: its weights, or the tokenizer beside them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

# Of weights named in a message.
SHOWN = 3


def missing_weights(names: Iterable[str]) -> str | None:
    """The reason to refuse a model whose checkpoint lacks weights, or None.

    Args:
        names: The weights that transformers did not find and filled with random numbers.
    """
    return _reason("weights are missing from the checkpoint and would be random", sorted(names))


def damaged_weights(model: Any) -> str | None:
    """The reason to refuse a torch model with weights that are NaN or infinite, or None."""
    damaged = [
        name
        for name, weights in model.named_parameters()
        # A weight that is kept elsewhere is on the meta device. Quantised weights are integers, or have no such test.
        if weights.is_floating_point()
        and weights.dtype.itemsize > 1
        and not weights.is_meta
        and not bool(weights.detach().isfinite().all())
    ]
    return _reason("weights are not numbers (NaN or infinite)", damaged)


def damaged_logits(dtype: object) -> str:
    """The reason to refuse a model whose logits are NaN or infinite.

    Args:
        dtype: The torch dtype in which it computes.
    """
    return (
        "the model's logits are not numbers (NaN or infinite): its weights are damaged, or they overflow "
        f"{str(dtype).removeprefix('torch.')}; try dtype=bfloat16 or dtype=float32."
    )


def embedding_rows(model: Any) -> int | None:
    """Number of token ids that a transformers model has an embedding for, or None if it does not say."""
    try:
        return int(model.get_input_embeddings().weight.shape[0])
    except (AttributeError, NotImplementedError):
        return None


def foreign_token(highest: int, rows: int | None) -> str | None:
    """The reason to refuse prompts whose highest token id is beyond the embedding, or None.

    Args:
        highest: The highest token id.
        rows: Rows of the embedding, or None if they are unknown.
    """
    if rows is None or highest < rows:
        return None
    return (
        f"token id {highest} is beyond the model's {rows} embeddings: the tokenizer is another model's, or has tokens "
        "that were added without a resize of the model. Give the tokenizer that belongs to the model."
    )


def _reason(fault: str, names: list[str]) -> str | None:
    if not names:
        return None
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{fault}: {', '.join(names[:SHOWN])}{more}; save or fetch the checkpoint again."
