"""What the hf engine keeps of earlier tokens, against transformers' own cache."""

from __future__ import annotations

import pytest
import torch
import transformers
from transformers.cache_utils import DynamicLayer

from helpers.tiny_models import tiny_config
from lm_eval_aft.engines.hf.batching import left_pad
from lm_eval_aft.engines.hf.cache_layers import LEAST_ROOM, ROOM, GrowingLayer
from lm_eval_aft.engines.hf.forward import DirectForward, RowCache
from lm_eval_aft.engines.hf.shared_prompts import SharedPromptCache, use_shared_prompts


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


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(tiny_config()).eval()
    assert use_shared_prompts(model)
    return model


def steps(model, cache: RowCache, kept: list[list[int]]) -> list[torch.Tensor]:
    """The logits of steps after prompts of 5, 9 and 2 tokens, whose rows leave from step to step."""
    forward, prompts = DirectForward(model), [list(range(10, 10 + size)) for size in (5, 9, 2)]
    ids, mask = left_pad(prompts, torch.device("cpu"))
    forward(ids, mask, (mask.cumsum(-1) - 1).clamp(min=0), cache)
    owners = torch.tensor([0, 0, 0, 1, 1, 2])
    cache.fan_out(owners, mask)
    mask, logits = mask[owners], []
    for step, rows in enumerate(kept):
        if len(rows) < len(mask):
            cache.select(torch.tensor(rows))
            mask = mask[rows]
        tokens, lengths = 20 + step + 3 * torch.arange(len(rows))[:, None], mask.sum(-1, keepdim=True)
        mask = torch.cat([mask, torch.ones_like(lengths)], dim=-1)
        cache.begin([step] * len(rows), [1] * len(rows))
        logits.append(forward(tokens, mask, lengths, cache)[:, -1])
    return logits


@torch.inference_mode()
def test_rows_that_share_their_prompts_get_the_logits_of_copies(model):
    """With pads, groups of several sizes, and prompts that leave with the last of their rows."""
    kept = [[0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5], [1, 2, 4, 5], [0, 1, 3], [0, 1], [1], [0]]
    shared, copied = steps(model, SharedPromptCache(), kept), steps(model, RowCache(), kept)
    for ours, expected in zip(shared, copied, strict=True):
        assert torch.allclose(ours, expected, atol=1e-5)
        assert ours.std() > 0.01


@torch.inference_mode()
def test_rows_may_run_several_tokens_each_its_own_number_and_forget_them(model):
    """Two rows of one prompt and one of another, against copies that run token by token."""
    forward, prompts = DirectForward(model), [list(range(10, 15)), [7, 8]]
    ids, mask = left_pad(prompts, torch.device("cpu"))
    owners, written = torch.tensor([0, 0, 1]), torch.tensor([[20, 21, 22, 23], [30, 31, 32, 33], [40, 41, 42, 43]])
    cache, copies = SharedPromptCache(), RowCache()
    for each in (cache, copies):
        forward(ids, mask, (mask.cumsum(-1) - 1).clamp(min=0), each)
        each.fan_out(owners, mask)
    expected = []
    copied_mask = mask[owners]
    for step in range(4):
        lengths = copied_mask.sum(-1, keepdim=True)
        copied_mask = torch.cat([copied_mask, torch.ones_like(lengths)], dim=-1)
        expected.append(forward(written[:, step : step + 1], copied_mask, lengths, copies)[:, -1])

    def run(lengths: list[int], tokens: list[list[int]], rows: list[int]) -> list[torch.Tensor]:
        cache.begin(lengths, [len(each) for each in tokens])
        sizes = [len(prompts[owners[row]]) for row in rows]
        places = [size + n + i for size, n, own in zip(sizes, lengths, tokens, strict=True) for i in range(len(own))]
        flat = torch.tensor([[token] for own in tokens for token in own])
        return list(forward(flat, mask, torch.tensor(places)[:, None], cache)[:, -1])

    first = run([0, 0, 0], [[20], [30, 31, 99], [40, 98]], [0, 1, 2])
    wanted = [(0, 0), (0, 1), (1, 1), None, (0, 2), None]
    cache.select(torch.tensor([1, 2]))
    second = run([2, 1], [[32], [41, 42, 43]], [1, 2])
    wanted += [(2, 1), (1, 2), (2, 2), (3, 2)]
    cache.select(torch.tensor([0]))
    third = run([3], [[33]], [1])
    for logits, place in zip([*first, *second, *third], [*wanted, (3, 1)], strict=True):
        assert place is None or torch.allclose(logits, expected[place[0]][place[1]], atol=1e-5)


@torch.inference_mode()
def test_prompts_are_kept_once_whatever_their_rows(model):
    cache = SharedPromptCache()
    ids, mask = left_pad([[10, 11, 12], [13, 14]], torch.device("cpu"))
    DirectForward(model)(ids, mask, (mask.cumsum(-1) - 1).clamp(min=0), cache)
    computed = cache.content.layers[0].keys
    cache.fan_out(torch.tensor([0] * 7 + [1] * 7), mask)
    assert cache.content.layers[0].prompt_keys is computed
    cache.select(torch.arange(7, 14))
    assert cache.content.layers[0].prompt_keys.shape[0] == 1


@torch.inference_mode()
def test_several_new_tokens_of_a_row_are_refused(model):
    cache, forward = SharedPromptCache(), DirectForward(model)
    ids, mask = left_pad([[10, 11, 12]], torch.device("cpu"))
    forward(ids, mask, mask.cumsum(-1) - 1, cache)
    cache.fan_out(torch.tensor([0, 0]), mask)
    cache.begin([0, 0], [1, 1])
    with pytest.raises(ValueError, match="needs a mask beside plain attention"):
        forward(torch.tensor([[1, 2], [3, 4]]), torch.ones(2, 5), torch.tensor([[3, 4], [3, 4]]), cache)


@torch.inference_mode()
@pytest.mark.parametrize("size", [1, 2])
def test_prompts_that_run_a_few_at_a_time_get_the_logits_of_all_at_once(model, monkeypatch, size):
    """The rows read the joined prompts, also once prompts have left."""
    monkeypatch.setattr("lm_eval_aft.engines.hf.shared_prompts.PREFILL_TOKENS", 9 * size)
    widths, outputs = [], []
    for cache in (SharedPromptCache(), RowCache()):
        forward = DirectForward(model)

        def counted(ids, *others, forward=forward):
            widths.append(len(ids))
            return forward(ids, *others)

        ids, mask = left_pad([[10, 11, 12, 13, 14], list(range(10, 19)), [15, 16]], torch.device("cpu"))
        logits = [cache.prefill(counted, ids, mask)]
        owners = torch.tensor([0, 1, 1, 2])
        cache.fan_out(owners, mask)
        mask = torch.cat([mask[owners], torch.ones(4, 1, dtype=torch.long)], dim=-1)
        cache.begin([0] * 4, [1] * 4)
        places = mask.sum(-1, keepdim=True) - 1
        logits.append(forward(torch.arange(20, 24)[:, None], mask, places, cache)[:, -1])
        cache.select(torch.tensor([3]))
        cache.begin([1], [1])
        mask = torch.cat([mask[3:], torch.ones(1, 1, dtype=torch.long)], dim=-1)
        logits.append(forward(torch.tensor([[25]]), mask, places[3:] + 1, cache)[:, -1])
        outputs.append(logits)
    assert widths == [*([1, 1, 1] if size == 1 else [2, 1]), 3]
    for ours, expected in zip(*outputs, strict=True):
        assert torch.allclose(ours, expected, atol=1e-5)
        assert ours.std() > 0.01


def test_a_short_text_has_a_small_buffer():
    layer = GrowingLayer(entries(2, 1), entries(2, 1))
    keys, _ = layer.update(entries(2, 1), entries(2, 1))
    assert keys.untyped_storage().nbytes() == 2 * 2 * (1 + LEAST_ROOM) * 4 * 4
