"""The confidence of the hf engine's texts, against transformers' own transition scores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from transformers import LogitsProcessor, LogitsProcessorList

from helpers import zoo_outcome
from helpers.tiny_models import save_tiny
from lm_eval_aft.core.engine import HostArgs
from lm_eval_aft.core.records import Chat, Completion, Confidence, Message, Request, Sampling
from lm_eval_aft.engines.hf import choice_scoring
from lm_eval_aft.engines.hf.choice_scoring import group_texts
from lm_eval_aft.engines.hf.engine import HFEngine

TEXTS = ["a", "a longer question about spiders", "the longest question of all, well beyond the sliding window", "b"]
SAMPLINGS = {
    "greedy": Sampling(0.0, 1.0, 0, 60),
    "sampled": Sampling(0.7, 0.9, 20, 60),
    "penalised": Sampling(0.8, 0.95, 0, 60, repetition_penalty=1.3, presence_penalty=0.5, min_p=0.02),
    "at the end token": Sampling(1.0, 1.0, 0, 120),
    "at a stop string": Sampling(1.0, 1.0, 0, 60, until=("e", "x")),
}


@pytest.fixture(scope="module", params=["llama", "sliding", "gemma"])
def engine(request, tmp_path_factory) -> HFEngine:
    folder = save_tiny(tmp_path_factory.mktemp(request.param), request.param)
    return HFEngine.load({"pretrained": folder, "dtype": "float32"}, HostArgs("auto", None, "cpu"))


def requests_of(engine: HFEngine, sampling: Sampling, k: int = 3) -> list[Request]:
    prompts = [engine.renderer.encode(Chat((Message("user", text),))) for text in TEXTS]
    return [Request(prompt, sampling, 100 * i + j) for i, prompt in enumerate(prompts) for j in range(k)]


class Forced(LogitsProcessor):
    """Lets ``generate`` write given tokens."""

    def __init__(self, prompt_tokens: int, tokens: Sequence[int]) -> None:
        self.prompt_tokens, self.tokens = prompt_tokens, tokens

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        forced = torch.full_like(scores, -torch.inf)
        forced[:, self.tokens[input_ids.shape[1] - self.prompt_tokens]] = 0
        return forced


def transition_scores(engine: HFEngine, request: Request, completion: Completion) -> list[float]:
    """What transformers computes for the tokens of a completion, from the logits before all processors."""
    prompt = torch.tensor([request.prompt.token_ids])
    output = engine.model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        logits_processor=LogitsProcessorList([Forced(prompt.shape[1], completion.token_ids)]),
        max_new_tokens=len(completion.token_ids),
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
    )
    assert tuple(output.sequences[0, prompt.shape[1] :].tolist()) == completion.token_ids
    scores = engine.model.compute_transition_scores(output.sequences, output.logits, normalize_logits=True)
    return scores[0].tolist()


def assert_close(found: Confidence | None, expected: Confidence | None) -> None:
    assert found is not None
    assert expected is not None
    for name in ("sum", "mean", "tail", "window"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=1e-4, abs=1e-4), name


@pytest.mark.parametrize("kind", SAMPLINGS)
def test_it_equals_the_transition_scores_of_transformers(engine: HFEngine, kind: str):
    requests = requests_of(engine, SAMPLINGS[kind])
    completions = dict(engine.generate(requests))
    ends = {completion.finish_reason for completion in completions.values()}
    # Prompts and texts have different lengths.
    assert "stop" in ends or not kind.startswith("at ")
    for position, completion in completions.items():
        expected = Confidence.of(transition_scores(engine, requests[position], completion))
        assert_close(completion.confidence, expected)


def test_beams_have_none(engine: HFEngine):
    (request, *_) = requests_of(engine, replace(SAMPLINGS["greedy"], max_tokens=8, beams=2))
    ((_, completion),) = engine.generate([request])
    assert completion.confidence is None


def scored(engine: HFEngine, requests: Sequence[Request], texts: Sequence[Sequence[int]]) -> dict[int, list[float]]:
    prompts = [request.prompt.token_ids or () for request in requests]
    pairs = list(engine.scorer.token_logprobs(prompts, texts, quiet=True))
    assert sorted(index for index, _ in pairs) == list(range(len(texts)))
    return dict(pairs)


class TestScoring:
    @pytest.mark.parametrize("positions", [3, 10, 1024])
    def test_stored_texts_get_the_numbers_that_generation_gives(self, engine: HFEngine, monkeypatch, positions: int):
        monkeypatch.setattr(choice_scoring, "LOGIT_POSITIONS", positions)
        requests = requests_of(engine, SAMPLINGS["sampled"])
        completions = dict(engine.generate(requests))
        texts = [completions[position].token_ids for position in range(len(requests))]
        for position, logprobs in scored(engine, requests, texts).items():
            assert len(logprobs) == len(texts[position])
            assert_close(Confidence.of(logprobs), completions[position].confidence)

    def test_small_batches_give_the_same(self, engine: HFEngine, monkeypatch):
        requests = requests_of(engine, SAMPLINGS["sampled"])
        completions = dict(engine.generate(requests))
        texts = [completions[position].token_ids for position in range(len(requests))]
        monkeypatch.setattr(engine.limits, "tokens", 400)
        for position, logprobs in scored(engine, requests, texts).items():
            assert_close(Confidence.of(logprobs), completions[position].confidence)

    def test_a_token_that_the_model_rules_out_changes_no_score_of_others(self, engine: HFEngine, monkeypatch):
        """Texts shorter than the longest are filled up with token 0."""
        prompts, texts, forward = [(5, 6)], [[(7,), (8, 9, 10), (11, 0)]], engine.model.forward

        def without_token_0(**inputs):
            output = forward(**inputs)
            output.logits[..., 0] = -torch.inf
            return output

        monkeypatch.setattr(engine.model, "forward", without_token_0)
        ((_, scores),) = engine.scorer.score_choices(prompts, texts, quiet=True)
        assert [math.isfinite(score) for score, _ in scores] == [True, True, False]
        assert scores[2][0] == -math.inf

    @pytest.mark.parametrize("kind", ["mamba2", "rwkv"])
    def test_models_that_read_token_by_token_or_whole_texts(self, tmp_path, kind: str):
        zoo_outcome.save(kind, str(tmp_path))
        engine = zoo_outcome.load(str(tmp_path))
        assert engine.rules.scoring == {"mamba2": "stepwise", "rwkv": "whole"}[kind]
        requests = requests_of(engine, replace(SAMPLINGS["sampled"], max_tokens=6), k=2)
        completions = dict(engine.generate(requests))
        texts = [completions[position].token_ids for position in range(len(requests))]
        for position, logprobs in scored(engine, requests, texts).items():
            assert_close(Confidence.of(logprobs), completions[position].confidence)


def test_texts_of_a_prompt_are_grouped_as_far_as_they_fit():
    prompts = [[1, 2], [3], [1, 2], [1, 2], [1, 2]]
    texts = [[7], [7, 7], [7, 7], [7], [7] * 20]
    # Two rows of 4 tokens fit into 8.
    assert group_texts(prompts, texts, 8) == [[0, 2], [1], [3], [4]]
    assert group_texts(prompts, texts, 1000) == [[0, 2, 3, 4], [1]]
