"""How the hf engine cuts a layer into batches."""

from __future__ import annotations

import pytest

from lm_eval_aft.core.records import Chat, Message, Prompt, Request, Sampling
from lm_eval_aft.engines.hf.batching import Group, RowRules, cut_batches

PLAIN, SHARED = RowRules(), RowRules(shared_prompts=True)
SAMPLING, BEAMS = Sampling(0.7, 0.95, 0, 20), Sampling(0.0, 1.0, 0, 20, beams=2)


def requests(lengths: list[int], k: int, sampling: Sampling = SAMPLING) -> list[Request]:
    chat = Chat((Message("user", "x"),))
    prompts = [Prompt(chat, (number,) * length, length, str(number)) for number, length in enumerate(lengths)]
    return [Request(prompt, sampling, seed) for prompt in prompts for seed in range(k)]


def shapes(lengths: list[int], k: int, tokens: int, rules: RowRules, sampling: Sampling = SAMPLING) -> list[list[int]]:
    """The rows of each prompt, batch by batch."""
    asked = requests(lengths, k, sampling)
    batches = list(cut_batches(asked, range(len(asked)), tokens, None, rules))
    assert sorted(p for batch in batches for group in batch for p in group.positions) == list(range(len(asked)))
    assert all(rules.tokens(batch, sampling) <= tokens for batch in batches)
    return [[len(group.positions) for group in batch] for batch in batches]


def test_a_batch_counts_a_shared_prompt_once():
    """Four prompts of 100 tokens with 5 completions of 20: 5 * 120 tokens each, or 100 + 5 * 20."""
    assert shapes([100] * 4, 5, 1200, PLAIN) == [[5, 5], [5, 5]]
    assert shapes([100] * 4, 5, 400, SHARED) == [[5, 5], [5, 5]]
    assert shapes([100] * 4, 5, 399, SHARED) == [[5]] * 4


def test_the_longest_prompt_of_a_batch_counts_for_all():
    assert shapes([50, 100], 5, 399, SHARED) == [[5], [5]]


def test_the_samples_of_one_prompt_are_cut_if_they_do_not_fit():
    assert shapes([100], 5, 240, PLAIN) == [[2], [2], [1]]
    assert shapes([100], 5, 140, SHARED) == [[2], [2], [1]]


def test_beams_count_a_prompt_for_each_beam():
    assert shapes([100] * 2, 1, 480, SHARED, BEAMS) == [[1, 1]]
    assert shapes([100] * 2, 1, 479, SHARED, BEAMS) == [[1], [1]]


@pytest.mark.parametrize("rules", [PLAIN, SHARED])
def test_one_request_is_a_batch_even_if_it_is_too_long(rules):
    asked = requests([100, 100], 2)
    batches = list(cut_batches(asked, range(4), 10, None, rules))
    assert batches == [[Group((position,), asked[position].prompt.token_ids)] for position in range(4)]
