"""What a model is called in tables, cards and judgement files."""

from __future__ import annotations


def display_name(model: str, k: int | None = None, layers: int | None = None) -> str:
    """The last part of a model's hub name or folder, and how it was run: ``model-k5-l2``."""
    base = model.rstrip("/").rpartition("/")[2]
    return base if k is None or layers is None else f"{base}-k{k}-l{layers}"
