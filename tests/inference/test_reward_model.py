"""Reward models whose weights are missing or whose scores are no numbers are refused as other models are."""

from __future__ import annotations

import json
import math
import shutil

import pytest

from helpers.tiny_models import LAYER, damaged_copy
from lm_eval_aft.core.errors import EngineError
from lm_eval_aft.core.records import Message
from lm_eval_aft.inference.reward_model import RewardModel
from lm_eval_aft.storage.draft_store import NoStore


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, f"weights are missing from the checkpoint and would be random: {LAYER}; save or fetch"),
        (math.nan, rf"weights are not numbers \(NaN or infinite\): {LAYER}; save or fetch"),
        (math.inf, "weights are not numbers"),
    ],
)
def test_damaged_weights_are_refused_at_load(reward, tmp_path, value, reason):
    with pytest.raises(EngineError, match=f"reward_model .* cannot be loaded: {reason}"):
        RewardModel(damaged_copy(reward, tmp_path / "m", value), NoStore(), "cpu", 1)


def test_a_head_that_was_never_trained_is_missing(tiny, tmp_path):
    shutil.copytree(tiny, tmp_path / "headless")
    config = tmp_path / "headless" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "id2label": {"0": "score"}}))
    with pytest.raises(
        EngineError, match=r"weights are missing from the checkpoint and would be random: score\.weight"
    ):
        RewardModel(str(config.parent), NoStore(), "cpu", 1)


def test_scores_that_are_no_numbers_are_refused(reward):
    model = RewardModel(reward, NoStore(), "cpu", 1)
    # These weights are numbers, and their products are not.
    model.model.score.weight.data.fill_(3e38)
    chat = (Message("user", "Why?"), Message("assistant", "Because."))
    with pytest.raises(EngineError, match=r"cannot be used: the model's logits are not numbers \(NaN or infinite\)"):
        model.score([[chat]])
