"""Models whose logits depend on pads, on the rows of a batch or on a text's length. The zoo has all architectures."""

from __future__ import annotations

from dataclasses import replace
from functools import wraps

import pytest
import torch
import transformers
from packaging.version import Version

from helpers import zoo_outcome
from lm_eval_aft.core.engine import HostArgs
from lm_eval_aft.core.errors import EngineError
from lm_eval_aft.engines.hf.batching import RowRules
from lm_eval_aft.engines.registry import load_engine

NEW = Version(transformers.__version__) >= Version("5.23")
ROPES = {
    "linear": {"factor": 2.0},
    "dynamic": {"factor": 2.0},
    "yarn": {"factor": 2.0, "original_max_position_embeddings": 16},
    "llama3": {
        **{"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
        "original_max_position_embeddings": 16,
    },
    "longrope": {
        **{"short_factor": [1.0] * 4, "long_factor": [4.0, 3.0, 2.0, 1.5]},
        **{"factor": 4.0, "original_max_position_embeddings": 16},
    },
}


@pytest.mark.parametrize(
    ("kind", "rules"),
    [
        ("llama", RowRules(shared_prompts=True, look_ahead=True)),
        ("mixtral", RowRules(shared_prompts=True, look_ahead=True)),
        # Sliding windows, keys of another form, and attention outside of transformers' interface.
        ("mistral", RowRules()),
        ("deepseek_v3", RowRules()),
        ("bloom", RowRules()),
        ("stablelm", RowRules()),
        ("qwen3_next", RowRules(scoring="stepwise")),
        ("mamba2", RowRules(scoring="stepwise")),
        ("bart", RowRules(mixed_lengths=False)),
        ("glm_moe_dsa", RowRules(mixed_lengths=False, scoring="stepwise")),
        ("rwkv", RowRules(mixed_lengths=False, many_rows=False, scoring="whole")),
    ],
)
def test_rules_are_found_and_no_text_differs(tmp_path, kind, rules):
    if kind == "glm_moe_dsa" and not NEW:
        pytest.skip("older transformers do not run this model with a cache")
    model = zoo_outcome.save(kind, str(tmp_path))
    engine = zoo_outcome.load(str(tmp_path))
    # Older transformers have other code for this model.
    if kind != "deepseek_v3" or NEW:
        assert engine.rules == rules
    assert zoo_outcome.compare(model, engine) == []


def test_prompts_are_not_shared_with_an_attention_function_of_the_user(tmp_path):
    zoo_outcome.save("llama", str(tmp_path))
    arguments = {"pretrained": str(tmp_path), "dtype": "float32", "model_kwargs": {"attn_implementation": "eager"}}
    engine = load_engine("hf", arguments, HostArgs("auto", None, "cpu"))
    assert engine.rules == RowRules()
    assert engine.model.config._attn_implementation == "eager"


@pytest.mark.parametrize("kind", ROPES)
def test_a_rope_of_any_kind_changes_no_text(tmp_path, caplog, kind):
    """Prompts are shorter and longer than the original context of 16 tokens, and texts cross it."""
    if kind == "dynamic" and not NEW:
        pytest.skip("older transformers keep the frequencies of a longer text")
    positions = 16 if kind == "dynamic" else 512
    rope = {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **ROPES[kind]}}
    model = zoo_outcome.save("llama", str(tmp_path), {"max_position_embeddings": positions, **rope})
    engine = zoo_outcome.load(str(tmp_path))
    assert engine.rules.mixed_lengths == (kind not in ("dynamic", "longrope"))
    assert ("The rope of this model changes" in caplog.text) == (kind in ("dynamic", "longrope"))
    assert zoo_outcome.compare(model, engine) == []


def test_a_model_that_starts_a_new_cache_at_a_length(tmp_path):
    rope = {"rope_parameters": {"rope_type": "longrope", "rope_theta": 10000.0, **ROPES["longrope"]}}
    model = zoo_outcome.save("phi3", str(tmp_path), {"original_max_position_embeddings": 16, **rope})
    assert zoo_outcome.compare(model, zoo_outcome.load(str(tmp_path))) == []


def test_a_model_that_does_not_repeat_its_logits_is_refused(tmp_path, monkeypatch):
    zoo_outcome.save("llama", str(tmp_path))
    forward = transformers.LlamaForCausalLM.forward

    @wraps(forward)
    def noisy(self, *args, **inputs):
        output = forward(self, *args, **inputs)
        output.logits = output.logits + torch.randn_like(output.logits)
        return output

    monkeypatch.setattr(transformers.LlamaForCausalLM, "forward", noisy)
    refusal = "cannot be loaded: engine=hf cannot run it .*its logits differ.*; use engine=vllm if vLLM has the arch"
    with pytest.raises(EngineError, match=refusal):
        zoo_outcome.load(str(tmp_path))


def test_beams_need_rows(tmp_path):
    zoo_outcome.save("rwkv", str(tmp_path))
    request = zoo_outcome.request((10, 11, 12))
    beams = replace(request, sampling=replace(request.sampling, beams=3))
    with pytest.raises(EngineError, match="strategy=beam cannot be used: this model runs one row at a time"):
        list(zoo_outcome.load(str(tmp_path)).generate([beams]))
