"""engine=vllm says which weights are missing, and refuses logits that are no numbers. These tests need no vLLM."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from helpers.instances import make_instance
from helpers.tiny_models import LAYER, save_tiny, tiny_config, tiny_tokenizer
from lm_eval_aft.core.errors import EngineError
from lm_eval_aft.engines.vllm.engine import missing_from_files
from lm_eval_aft.engines.vllm.prompt_lm import PromptLM


def resaved(folder: Path, change) -> str:
    weights = load_file(folder / "model.safetensors")
    save_file(change(weights), folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


def test_missing_weights_are_named(tmp_path):
    folder = Path(save_tiny(tmp_path / "m"))
    assert missing_from_files(str(folder)) == []
    without = {"model.norm.weight", LAYER}
    resaved(folder, lambda weights: {name: value for name, value in weights.items() if name not in without})
    assert sorted(missing_from_files(str(folder))) == [LAYER, "model.norm.weight"]


def test_what_cannot_be_compared_is_not_called_missing(tmp_path):
    folder = Path(save_tiny(tmp_path / "m"))
    resaved(folder, lambda weights: {f"model.{name}": value for name, value in weights.items()})
    assert missing_from_files(str(folder)) == []
    assert missing_from_files("no/such-model") == []
    (folder / "model.safetensors").write_bytes(b"cut")
    assert missing_from_files(str(folder)) == []


def test_a_tied_head_is_not_missing(tmp_path):
    config = tiny_config()
    config.tie_word_embeddings = True
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    assert missing_from_files(str(tmp_path)) == []


@pytest.fixture
def scoring(monkeypatch):
    """A PromptLM whose engine gives log-probabilities that are NaN."""
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(SamplingParams=SimpleNamespace))

    def generate(prompts, params, **options):
        outputs = []
        for prompt in prompts:
            token_ids = prompt["prompt_token_ids"]
            rows = [None, *({token: SimpleNamespace(logprob=math.nan)} for token in token_ids[1:])]
            outputs.append(SimpleNamespace(prompt_token_ids=token_ids, prompt_logprobs=rows))
        return outputs

    engine = SimpleNamespace(model_config=SimpleNamespace(dtype=torch.float16))
    llm = SimpleNamespace(generate=generate, llm_engine=engine)
    return PromptLM(llm, tiny_tokenizer(), max_length=64)


def test_logits_that_are_no_numbers_are_refused(scoring):
    reason = r"the model's logits are not numbers \(NaN or infinite\): .* overflow float16; try dtype=bfloat16"
    with pytest.raises(EngineError, match=reason):
        scoring.check_logits()
    with pytest.raises(EngineError, match=reason):
        scoring.loglikelihood([make_instance("loglikelihood", {}, ("a", " b"), 0, metadata=("t", 0, 1))])
