"""Checkpoints with weights that are missing or no numbers, and tokenizers of other models: refused in one sentence."""

from __future__ import annotations

import logging
import math
from dataclasses import replace

import pytest
import torch
import transformers
from lm_eval.api.instance import Instance
from safetensors.torch import load_file, save_file

from helpers.instances import make_instance, rolling_arguments
from helpers.tiny_models import LAYER, damaged_copy, save_tiny, tiny_config, tiny_tokenizer
from lm_eval_aft.core.engine import HostArgs
from lm_eval_aft.core.errors import EngineError
from lm_eval_aft.core.records import Chat, Message, Request, Sampling
from lm_eval_aft.engines.registry import load_engine

HOST = HostArgs(1, None, "cpu")


def instance(kind: str, args: tuple[str, ...]) -> Instance:
    return make_instance(kind, {}, args, 0, metadata=("t", 0, 1))


def requests(engine, sampling: Sampling) -> list[Request]:
    chats = [Chat((Message("user", text),)) for text in ("a", "bc")]
    return [Request(engine.renderer.encode(chat), sampling, seed) for seed, chat in enumerate(chats)]


@pytest.mark.parametrize("verbosity", [logging.ERROR, logging.WARNING])
def test_missing_weights_are_refused_however_quiet_transformers_is(tiny, tmp_path, verbosity):
    folder, before = damaged_copy(tiny, tmp_path / "m", None), transformers.logging.get_verbosity()
    logger = logging.getLogger("transformers.modeling_utils")
    transformers.logging.set_verbosity(verbosity)
    try:
        with pytest.raises(EngineError, match=f"weights are missing .* and would be random: {LAYER}; save or fetch"):
            load_engine("hf", {"pretrained": folder}, HOST)
        assert (logger.level, logger.filters) == (logging.NOTSET, [])
    finally:
        transformers.logging.set_verbosity(before)


def test_a_tied_head_is_not_missing(tmp_path):
    config = tiny_config()
    config.tie_word_embeddings = True
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    load_engine("hf", {"pretrained": str(tmp_path)}, HOST)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_missing_weights_of_an_adapter_are_refused(tiny, tmp_path):
    from peft import LoraConfig, get_peft_model

    model = transformers.AutoModelForCausalLM.from_pretrained(tiny)
    get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    weights = load_file(file)
    name = next(name for name in weights if "lora_B" in name)
    del weights[name]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(EngineError, match=r"weights are missing .*layers\.0\.self_attn\.q_proj\.lora_B"):
        load_engine("hf", {"pretrained": tiny, "peft": str(tmp_path)}, HOST)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_no_numbers_are_refused(tiny, tmp_path, value):
    with pytest.raises(EngineError, match=rf"weights are not numbers \(NaN or infinite\): {LAYER}; save or fetch"):
        load_engine("hf", {"pretrained": damaged_copy(tiny, tmp_path / "m", value)}, HOST)


def test_logits_that_are_no_numbers_are_refused_at_load(tiny, tmp_path):
    """These weights are numbers, and their products are not."""
    folder = damaged_copy(tiny, tmp_path / "m", 3e38)
    with pytest.raises(EngineError, match=r"cannot be loaded: its logits are not numbers \(NaN or infinite\)"):
        load_engine("hf", {"pretrained": folder, "dtype": "float32"}, HOST)


class TestWhileRunning:
    @pytest.fixture
    def engine(self, tiny, monkeypatch):
        """An engine whose logits become NaN, for one row and one token id, after some forward passes."""
        engine = load_engine("hf", {"pretrained": tiny, "dtype": "float32"}, HOST)
        forward, calls = engine.model.forward, []

        def breaking(*args, **inputs):
            output = forward(*args, **inputs)
            calls.append(1)
            if len(calls) > 4:
                output.logits[-1, -1, 7] = math.nan
            return output

        monkeypatch.setattr(engine.model, "forward", breaking)
        return engine

    @pytest.mark.parametrize("sampling", [Sampling(0.0, 1.0, 0, 30), Sampling(1.0, 0.9, 20, 30)])
    def test_a_text_ends_the_run_and_is_not_completed(self, engine, sampling):
        completed = []
        with pytest.raises(EngineError, match=r"the model's logits are not numbers .* float32; try dtype=bfloat16"):
            completed.extend(engine.generate(requests(engine, sampling)))
        assert all(len(completion.token_ids) <= 4 for _, completion in completed)

    def test_beams(self, engine):
        with pytest.raises(EngineError, match="the model's logits are not numbers"):
            list(engine.generate(requests(engine, replace(Sampling(0.0, 1.0, 0, 30), beams=2))))

    def test_scores(self, engine):
        asked = [(10, 11)] * 5, [[(12, 13), (14,)]] * 5
        engine.limits.tokens = 1  # a batch a prompt
        with pytest.raises(EngineError, match="the model's logits are not numbers"):
            list(engine.scorer.score_choices(*asked, quiet=True))

    def test_plain_loglikelihoods(self, engine):
        requests = [instance("loglikelihood", (f"{n} is", " 1 2 3")) for n in range(8)]
        with pytest.raises(EngineError, match="the model's logits are not numbers"):
            engine.scorer.loglikelihood(requests, disable_tqdm=True)
        with pytest.raises(EngineError, match="the model's logits are not numbers"):
            engine.scorer.loglikelihood_rolling(
                [instance("loglikelihood_rolling", rolling_arguments("abc"))], disable_tqdm=True
            )


class TestForeignTokenizer:
    @pytest.fixture
    def engine(self, tmp_path):
        """A tokenizer with tokens that the model has no embedding for."""
        folder = save_tiny(tmp_path / "m")
        tokenizer = tiny_tokenizer()
        tokenizer.add_tokens(["<new>", "<newer>"])
        tokenizer.save_pretrained(folder)
        return load_engine("hf", {"pretrained": folder, "dtype": "float32"}, HOST)

    def test_prompts_with_its_tokens_are_refused_and_others_are_not(self, engine):
        assert len(list(engine.generate(requests(engine, Sampling(0.0, 1.0, 0, 3))))) == 2
        prompt = engine.renderer.encode(Chat((Message("user", "a <newer> one"),)))
        with pytest.raises(
            EngineError, match=r"token id 261 is beyond the model's 260 embeddings: .* Give the tokenizer"
        ):
            next(engine.generate([Request(prompt, Sampling(0.0, 1.0, 0, 3), 0)]))

    def test_choices_with_its_tokens_are_refused(self, engine):
        with pytest.raises(EngineError, match="token id 260 is beyond"):
            next(engine.scorer.score_choices([(5, 6)], [[(7,), (260,)]], quiet=True))

    def test_plain_loglikelihoods(self, engine):
        with pytest.raises(EngineError, match="token id 260 is beyond"):
            engine.scorer.loglikelihood([instance("loglikelihood", ("a", " <new>"))], disable_tqdm=True)
        with pytest.raises(EngineError, match="token id 261 is beyond"):
            engine.scorer.loglikelihood_rolling(
                [instance("loglikelihood_rolling", rolling_arguments("<newer>"))], disable_tqdm=True
            )


def test_half_precision_that_overflows_says_so(tiny):
    logits = torch.tensor([[1.0, torch.inf]], dtype=torch.float16)
    from lm_eval_aft.engines.hf.sampling import refuse_damaged

    with pytest.raises(EngineError, match="they overflow float16; try dtype=bfloat16 or dtype=float32"):
        refuse_damaged(logits)
