"""What the hf engine keeps of earlier tokens, against transformers' own cache."""

from __future__ import annotations

import torch
from transformers.cache_utils import DynamicLayer

from lm_eval_aft.engines.hf.cache_layers import ROOM, GrowingLayer


def entries(rows: int, tokens: int) -> torch.Tensor:
    return torch.randn(rows, 2, tokens, 4)


def test_a_growing_layer_holds_what_transformers_own_layer_holds():
    """Through more tokens than a buffer has room for, and through copied and dropped rows."""
    plain = DynamicLayer()
    plain.update(entries(3, 7), entries(3, 7))
    growing = GrowingLayer(plain.keys, plain.values)
    for step in range(2 * ROOM + 3):
        if step in (0, 5, ROOM + 2):
            rows = torch.tensor([[0, 0, 1, 2, 2], [0, 2, 4], [2]][(0, 5, ROOM + 2).index(step)])
            plain.reorder_cache(rows)
            growing.reorder_cache(rows)
        tokens = 1 + 2 * (step == 3)
        new = entries(len(plain.keys), tokens), entries(len(plain.keys), tokens)
        for given, expected in zip(growing.update(*new), plain.update(*new), strict=True):
            assert torch.equal(given, expected)
        assert growing.get_seq_length() == plain.get_seq_length()


def test_a_step_copies_no_earlier_token():
    layer = GrowingLayer(entries(2, 5), entries(2, 5))
    first, _ = layer.update(entries(2, 1), entries(2, 1))
    later, _ = layer.update(entries(2, 1), entries(2, 1))
    assert later.data_ptr() == first.data_ptr()
