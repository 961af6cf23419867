"""Log-probabilities of several continuations of one prompt, which runs through the model once. Called by the hf engine.

lm-eval's own scoring computes a prompt again for each continuation of more than one token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from transformers import DynamicCache

from lm_eval_aft.engines.hf.batching import left_pad

Score = tuple[float, bool]
Forward = Callable[..., torch.Tensor]


def cut_prompts(
    prompts: Sequence[Sequence[int]],
    choices: Sequence[Sequence[Sequence[int]]],
    batch_tokens: int,
    numbers: Iterable[int],
) -> Iterator[list[int]]:
    """Of the prompts with these numbers, those of each batch, the longest first; every row counts with the longest."""
    order = sorted(numbers, key=lambda number: -len(prompts[number]))
    batch: list[int] = []
    rows = longest = 0
    for number in order:
        length = len(prompts[number]) + max(map(len, choices[number]))
        if batch and (rows + len(choices[number])) * max(longest, length) > batch_tokens:
            yield batch
            batch, rows, longest = [], 0, 0
        batch.append(number)
        rows, longest = rows + len(choices[number]), max(longest, length)
    if batch:
        yield batch


@torch.inference_mode()
def score_batch(
    forward: Forward,
    cache: DynamicCache,
    prompts: Sequence[Sequence[int]],
    choices: Sequence[Sequence[Sequence[int]]],
    device: torch.device,
) -> list[list[Score]]:
    """The log-probability of each continuation, and whether greedy decoding would write it.

    Args:
        forward: ids, mask, position ids, cache and how many last positions to keep -> logits.
        cache: An empty one.
        prompts: Token ids.
        choices: Token ids of each prompt's continuations; an empty one has probability 1.
        device: Where the model is.
    """
    ids, mask = left_pad(prompts, device)  # (prompts, longest) each
    first = forward(ids, mask, (mask.cumsum(-1) - 1).clamp(min=0), cache, 1)  # (prompts, 1, vocab)
    owner = torch.tensor([number for number, own in enumerate(choices) for _ in own], device=device)  # (rows,)
    flat = [list(each) for own in choices for each in own]
    width = max(1, *map(len, flat))
    wanted = torch.tensor([each + [0] * (width - len(each)) for each in flat], device=device)  # (rows, width)
    real = torch.tensor([[1] * len(each) + [0] * (width - len(each)) for each in flat], device=device)
    logits = first[owner]
    if width > 1:
        cache.batch_select_indices(owner)
        places = mask[owner].sum(-1, keepdim=True) + torch.arange(width - 1, device=device)
        whole = torch.cat([mask[owner], real[:, :-1]], dim=-1)
        logits = torch.cat([logits, forward(wanted[:, :-1], whole, places, cache, width - 1)], dim=1)
    log_probabilities = logits.float().log_softmax(-1)  # (rows, width, vocab)
    each = log_probabilities.gather(-1, wanted[..., None])[..., 0] * real  # (rows, width)
    greedy = ((logits.argmax(-1) == wanted) | (real == 0)).all(-1)
    scores = iter(zip(each.sum(-1).tolist(), greedy.tolist(), strict=True))
    return [[next(scores) for _ in own] for own in choices]
