"""What engine=vllm and a server of vLLM take beside the ordinary arguments, with a tiny model on the CPU build."""

from __future__ import annotations

import importlib.util

import pytest

from helpers.tiny_models import save_tiny_for_vllm
from helpers.vllm_server import Server
from lm_eval_aft.core.engine import HostArgs
from lm_eval_aft.core.errors import ConfigError, EngineError
from lm_eval_aft.core.records import Chat, Message, Request, Sampling
from lm_eval_aft.engines.registry import load_engine

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed here"),
]
CPU = HostArgs("auto", None, "cpu")
GREEDY, SAMPLED = Sampling(0.0, 1.0, 0, 32), Sampling(1.0, 1.0, 0, 32)
NGRAM = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3, "prompt_lookup_min": 1}
TEXTS = ["one two three one two three one two", "Name a city."]


def texts(engine, sampling: Sampling, samples: int = 1) -> list[str]:
    prompts = [engine.renderer.encode(Chat((Message("user", text),))) for text in TEXTS]
    requests = [Request(prompt, sampling, 7 + i) for prompt in prompts for i in range(samples)]
    return [completion.text for _, completion in sorted(engine.generate(requests), key=lambda pair: pair[0])]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> str:
    """A tiny Llama with random weights."""
    return save_tiny_for_vllm(tmp_path_factory.mktemp("vllm") / "tiny")


@pytest.fixture(scope="module")
def adapter(tiny, tmp_path_factory) -> str:
    """A LoRA adapter whose weights change the texts."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    tuned = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny), LoraConfig(r=8, target_modules=["q_proj"]))
    for name, weights in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weights, std=0.5)
    folder = tmp_path_factory.mktemp("adapter")
    tuned.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def server(tiny, adapter, tmp_path_factory):
    options = ["--enable-lora", "--max-lora-rank", "8", "--lora-modules", f"tuned={adapter}"]
    running = Server(tiny, tmp_path_factory.mktemp("server") / "log", "tiny", *options)
    try:
        running.wait()
        yield running
    finally:
        running.kill()


def served(server: Server, tiny: str, **args):
    return load_engine("api", {"base_url": server.url, "model": "tiny", "tokenizer": tiny, **args}, HostArgs())


def test_speculation_keeps_greedy_texts_and_has_store_keys_of_its_own(
    tiny: str, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {"pretrained": tiny, "dtype": "float32"}
    plain, fast = (load_engine("vllm", {**settings, **more}, CPU) for more in ({}, {"speculative_config": NGRAM}))
    assert texts(plain, GREEDY) == texts(fast, GREEDY)
    assert len(texts(fast, SAMPLED, 3)) == 6
    assert "although the seed is equal" in caplog.text
    assert plain.fingerprint != fast.fingerprint


def test_an_adapter_is_served_by_its_name(server: Server, tiny: str, adapter: str) -> None:
    from lm_eval_aft.engines.hf.engine import HFEngine

    base, tuned = served(server, tiny), served(server, tiny, model="tuned")
    assert tuned.max_length == base.max_length == 2048
    merged = HFEngine.load({"pretrained": tiny, "peft": adapter, "dtype": "float32"}, CPU)
    ours, theirs, others = ([text.rstrip("\ufffd") for text in texts(lm, GREEDY)] for lm in (tuned, merged, base))
    # A server holds back the end of a text that is half of a character.
    assert ours == theirs != others


def test_a_server_writes_one_of_the_choices(server: Server, tiny: str) -> None:
    engine = served(server, tiny, extra_body={"structured_outputs": {"choice": ["yes", "no"]}})
    assert {text.strip() for text in texts(engine, SAMPLED, 4)} <= {"yes", "no"}
    assert engine.fingerprint != served(server, tiny).fingerprint


def test_thinking_is_a_setting_of_the_chat_template(tiny: str) -> None:
    from lm_eval_aft.engines.vllm.arguments import VLLMArgs

    given = {"pretrained": tiny, "enable_thinking": False, "chat_template_args": {"tools": []}}
    assert VLLMArgs.of(given, CPU).template_args == {"tools": [], "enable_thinking": False}


@pytest.mark.parametrize("method", ["fp8", "gptq", "awq"])
def test_quantisation_reaches_vllm_by_its_own_name(tiny: str, method: str) -> None:
    from lm_eval_aft.engines.vllm.arguments import VLLMArgs

    assert VLLMArgs.of({"pretrained": tiny, "quantization": method}, CPU).for_llm()["quantization"] == method
    with pytest.raises(ConfigError, match="did you mean quantization"):
        VLLMArgs.of({"pretrained": tiny, "quantisation": method}, CPU)


def test_a_method_that_vllm_does_not_have_ends_in_one_sentence(tiny: str) -> None:
    with pytest.raises(EngineError, match="cannot be loaded by vLLM"):
        load_engine("vllm", {"pretrained": tiny, "dtype": "float32", "quantization": "q3"}, CPU)
