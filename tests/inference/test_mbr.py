"""``strategy=mbr``: which text agrees most with the others."""

from __future__ import annotations

import pytest

from helpers.scripted_runs import make_drafts, make_question
from lm_eval_aft.core.config import AFTConfig
from lm_eval_aft.core.engine import HostArgs
from lm_eval_aft.inference.selection import Candidates, Choice, load_selector
from lm_eval_aft.storage.draft_store import NoStore


def choose(*texts: str, seeds: tuple[int, ...] = ()) -> Choice:
    selector = load_selector(AFTConfig.split({"strategy": "mbr"})[0], NoStore(), HostArgs(1, None, "cpu"))
    (choice,) = selector.select([Candidates(make_question("q"), make_drafts(*texts, seeds=seeds))])
    return choice


def test_the_text_that_is_most_like_the_others_is_chosen():
    choice = choose("a dog ran", "the cat sat on the mat", "the cat sat on a mat", "a cat sat on the mat")
    assert choice.index == 1
    assert len(choice.scores) == 4
    assert min(choice.scores) == choice.scores[0]


def test_the_score_is_the_mean_chrf_to_the_others():
    metric = pytest.importorskip("sacrebleu.metrics").CHRF()
    texts = ("one two three", "one two four", "five")
    expected = [sum(metric.sentence_score(a, [b]).score for b in texts if b != a) / 2 for a in texts]
    assert choose(*texts).scores == pytest.approx(expected)


def test_thoughts_are_not_compared_and_an_empty_text_loses():
    assert choose("<think>the cat</think>", "the cat", "a cat").index != 0


def test_seeds_decide_between_equal_texts():
    assert choose("same", "same", seeds=(9, 4)).index == 1
    assert choose("only") == Choice(0, (0.0,))
