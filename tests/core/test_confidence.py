"""The four numbers of a text's confidence."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm_eval_aft.core.records import CONFIDENCE_TOKENS, LOWEST_LOGPROB, Confidence

LOGPROBS = st.lists(st.floats(-50, 0), min_size=1, max_size=120)


def test_the_numbers_of_a_short_text():
    assert Confidence.of([-1.0, -2.0, -6.0]) == Confidence(sum=-9.0, mean=-3.0, tail=-3.0, window=-3.0)


def test_the_numbers_of_a_long_text():
    # 10 sure tokens, 32 unsure ones, 32 sure ones, 2 unsure ones.
    logprobs = [0.0] * 10 + [-2.0] * 32 + [0.0] * 32 + [-1.0] * 2
    assert Confidence.of(logprobs) == Confidence(sum=-66.0, mean=-66 / 76, tail=-2 / 32, window=-2.0)


@given(LOGPROBS)
def test_tail_and_window_are_means_of_32_tokens(logprobs):
    confidence = Confidence.of(logprobs)
    size = min(len(logprobs), CONFIDENCE_TOKENS)
    means = [math.fsum(logprobs[start : start + size]) / size for start in range(len(logprobs) - size + 1)]
    assert confidence.sum == pytest.approx(math.fsum(logprobs), abs=1e-9)
    assert confidence.mean == pytest.approx(math.fsum(logprobs) / len(logprobs), abs=1e-9)
    assert confidence.tail == pytest.approx(means[-1], abs=1e-9)
    assert confidence.window == pytest.approx(min(means), abs=1e-9)
    assert confidence.window <= confidence.tail


def test_no_tokens_have_no_confidence():
    assert Confidence.of([]) is None


def test_an_impossible_token_has_a_finite_number():
    assert Confidence.of([-math.inf]) == Confidence(*[LOWEST_LOGPROB] * 4)


def test_rounding_above_0_is_0():
    numbers = Confidence.of([1e-7, -0.0])
    assert [math.copysign(1, number) for number in (numbers.sum, numbers.mean, numbers.tail, numbers.window)] == [1] * 4
    assert numbers == Confidence(0.0, 0.0, 0.0, 0.0)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_no_number_is_refused(value):
    with pytest.raises(ValueError, match="not a number"):
        Confidence.of([-1.0, value])
