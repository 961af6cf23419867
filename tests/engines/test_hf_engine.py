"""The decode loop against transformers' own generate, on tiny models of several kinds."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch
import transformers

from helpers.tiny_models import save_tiny, tiny_tokenizer
from lm_eval_aft.core.engine import HostArgs
from lm_eval_aft.core.errors import ConfigError, EngineError
from lm_eval_aft.core.records import Chat, Message, Request, Sampling
from lm_eval_aft.engines.ending import has_ended, text_before_stop
from lm_eval_aft.engines.hf.engine import HFEngine
from lm_eval_aft.engines.hf.sampling import RowSampler, threshold
from lm_eval_aft.engines.registry import load_engine

SAMPLED, GREEDY = Sampling(0.8, 0.95, 0, 24), Sampling(0.0, 1.0, 0, 24)
TEXTS = ["a", "a longer question about spiders", "the longest question of all, well beyond the sliding window", "b"]
CPU = torch.device("cpu")


def chat(text: str) -> Chat:
    return Chat((Message("user", text),))


def ask(engine: HFEngine, sampling: Sampling = SAMPLED, samples: int = 3, texts=TEXTS) -> list[Request]:
    prompts = [engine.renderer.encode(chat(text)) for text in texts]
    return [Request(prompt, sampling, 100 * i + j) for i, prompt in enumerate(prompts) for j in range(samples)]


def ids(engine: HFEngine, requests: list[Request]) -> list[tuple[int, ...]]:
    pairs = list(engine.generate(requests))
    # Each position comes once.
    assert sorted(position for position, _ in pairs) == list(range(len(requests)))
    return [completion.token_ids for _, completion in sorted(pairs, key=lambda pair: pair[0])]


@pytest.fixture(scope="module", params=["llama", "sliding", "gemma"])
def engine(request, tmp_path_factory) -> HFEngine:
    folder = save_tiny(tmp_path_factory.mktemp(request.param), request.param)
    return HFEngine.load({"pretrained": folder, "dtype": "float32"}, HostArgs("auto", None, "cpu"))


def test_greedy_equals_generate_alone_and_padded(engine):
    requests = ask(engine, GREEDY, samples=1)
    expected = []
    for request in requests:
        prompt = torch.tensor([request.prompt.token_ids])
        output = engine.model.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=24, do_sample=False
        )
        expected.append(tuple(output[0, prompt.shape[1] :].tolist()))
    # All in one padded batch.
    assert ids(engine, requests) == expected
    # One by one.
    assert [ids(engine, [request])[0] for request in requests] == expected


def test_samples_do_not_depend_on_batch_order_or_company(engine):
    requests = ask(engine)
    together = ids(engine, requests)
    # Samples of one prompt differ.
    assert len(set(together)) > len(TEXTS)
    assert ids(engine, requests[::-1])[::-1] == together
    assert [ids(engine, [request])[0] for request in requests[:4]] == together[:4]
    engine.limits.prompts, engine.limits.tokens = 1, 200
    assert ids(engine, requests) == together


def test_fan_out_equals_separate_prefills(engine):
    requests = ask(engine, Sampling(1.0, 1.0, 0, 24))
    fanned = ids(engine, requests)
    one_by_one = [ids(engine, [request])[0] for request in requests]
    assert fanned == one_by_one


def test_counts_and_finish_reasons(tiny_engine):
    requests = ask(tiny_engine, Sampling(1.0, 1.0, 0, 200))
    completions = dict(tiny_engine.generate(requests))
    computed = sum(c.computed_prompt_tokens for c in completions.values())
    # Each prompt is computed once.
    assert computed == sum(requests[i].prompt.prompt_tokens for i in range(0, len(requests), 3))
    for position, completion in completions.items():
        assert completion.prompt_tokens == len(requests[position].prompt.token_ids)
        assert completion.generated_tokens == len(completion.token_ids)
        ended = completion.token_ids[-1] == 3
        assert completion.finish_reason == ("stop" if ended else "length")
        assert ended or completion.generated_tokens == 200
        assert "<|im_end|>" not in completion.text
    # Both finish reasons occur.
    assert {c.finish_reason for c in completions.values()} == {"stop", "length"}


def test_until_ends_a_draft_and_is_cut_from_it(tiny_engine):
    (free,) = (c for _, c in tiny_engine.generate(ask(tiny_engine, Sampling(1.0, 1.0, 0, 64), 1, ["q"])))
    stop = free.text[5]
    ended = Sampling(1.0, 1.0, 0, 64, until=(stop,))
    (cut,) = (c for _, c in tiny_engine.generate(ask(tiny_engine, ended, 1, ["q"])))
    assert cut.text == free.text[: free.text.index(stop)]
    assert cut.finish_reason == "stop"
    assert cut.generated_tokens < free.generated_tokens


def test_unseeded_draws_differ_from_run_to_run(tiny_engine):
    free = Sampling(1.0, 1.0, 0, 24, seeded=False)
    assert ids(tiny_engine, ask(tiny_engine, free)) != ids(tiny_engine, ask(tiny_engine, free))


class TestMemory:
    def test_out_of_memory_halves_and_goes_on(self, tiny_engine, monkeypatch, caplog):
        requests = ask(tiny_engine)
        expected = ids(tiny_engine, requests)
        forward = tiny_engine.model.forward

        def limited(**inputs):
            if len(inputs["input_ids"]) > 2:
                raise torch.OutOfMemoryError("simulated: more than two rows")
            return forward(**inputs)

        monkeypatch.setattr(tiny_engine.model, "forward", limited)
        monkeypatch.setattr(tiny_engine.limits, "tokens", 4000)
        assert ids(tiny_engine, requests) == expected
        assert "Out of memory" in caplog.text

    def test_one_sequence_that_does_not_fit_is_an_error(self, tiny_engine, monkeypatch):
        def never(**_):
            raise torch.OutOfMemoryError("simulated")

        monkeypatch.setattr(tiny_engine.model, "forward", never)
        monkeypatch.setattr(tiny_engine.limits, "tokens", 4000)
        with pytest.raises(EngineError, match="does not fit into the memory"):
            ids(tiny_engine, ask(tiny_engine))

    def test_one_sequence_that_is_left_of_many_is_tried_alone(self, tiny_engine, monkeypatch):
        by_length = sorted(
            zip(ids(tiny_engine, ask(tiny_engine)), ask(tiny_engine), strict=True), key=lambda p: len(p[0])
        )
        expected, requests = zip(by_length[0], by_length[-1], strict=True)
        expected = list(expected)
        forward, failed = tiny_engine.model.forward, []

        def once(**inputs):
            if inputs["input_ids"].shape == (1, 1) and not failed:
                failed.append(True)
                raise torch.OutOfMemoryError("simulated")
            return forward(**inputs)

        monkeypatch.setattr(tiny_engine.model, "forward", once)
        monkeypatch.setattr(tiny_engine.limits, "tokens", 4000)
        assert ids(tiny_engine, requests) == expected
        assert failed

    def test_other_errors_pass(self, tiny_engine, monkeypatch):
        monkeypatch.setattr(tiny_engine.model, "forward", lambda **_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            ids(tiny_engine, ask(tiny_engine))


class TestSampler:
    def test_frequencies_follow_the_softmax(self):
        logits = torch.tensor([2.0, 1.0, 0.0, -1.0])
        sampler = RowSampler(Sampling(0.7, 1.0, 0, 1), range(40_000), CPU)
        drawn = sampler.draw(logits.expand(40_000, 4))
        shares = torch.bincount(drawn, minlength=4) / 40_000
        assert torch.allclose(shares, (logits / 0.7).softmax(-1), atol=0.01)

    @pytest.mark.parametrize("vocab", [5, 1000])
    @pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (3, 1.0), (0, 0.9), (3, 0.5), (0, 0.999), (700, 0.99)])
    def test_threshold_keeps_what_transformers_keeps(self, vocab, top_k, top_p):
        from transformers import TopKLogitsWarper, TopPLogitsWarper

        scores = torch.randn(8, vocab, generator=torch.Generator().manual_seed(vocab)) * 2
        kept = scores >= threshold(scores, Sampling(1.0, top_p, top_k, 1))
        expected = scores
        if top_k:
            expected = TopKLogitsWarper(top_k)(None, expected)
        if top_p < 1:
            expected = TopPLogitsWarper(top_p)(None, expected)
        assert torch.equal(kept, expected > -torch.inf)

    @pytest.mark.parametrize("shape", ["steep", "flat", "ties"])
    @pytest.mark.parametrize(
        "sampling",
        [
            Sampling(0.7, 0.95, 0, 1),
            Sampling(1.0, 0.999, 0, 1),
            Sampling(1.0, 1.0, 0, 1),
            Sampling(1.0, 1.0, 40, 1),
            Sampling(1.0, 0.9, 700, 1),
            Sampling(1.0, 1.0, 0, 1, min_p=0.3),
        ],
    )
    def test_a_draw_is_the_largest_sum_of_score_and_noise_among_all_kept_tokens(self, sampling, shape):
        """Also if more tokens are kept than the sampler looks at first, or many tie with the last of them."""
        rows, vocab = 6, 2000
        logits = torch.randn(rows, vocab, generator=torch.Generator().manual_seed(0)) * {"steep": 6}.get(shape, 0.5)
        if shape == "ties":
            logits = logits.round()
        given, sampler = logits.clone(), RowSampler(sampling, range(rows), CPU)
        generators = [torch.Generator().manual_seed(seed) for seed in range(rows)]
        scores = logits / sampling.temperature
        kept = scores.masked_fill(scores < threshold(scores, sampling), -torch.inf)
        for _ in range(5):
            noise = torch.stack([torch.empty(vocab).uniform_(generator=each) for each in generators])
            expected = (kept - (-noise.log()).log()).argmax(-1)
            assert torch.equal(sampler.draw(logits), expected)
        assert torch.equal(logits, given)

    def test_noise_belongs_to_the_token_not_to_its_rank(self):
        """Swapping two nearly equal logits must not change the token, as an inverse CDF over sorted mass would."""
        logits = torch.zeros(1, 1000)
        logits[0, 10], logits[0, 20] = 3.0, 3.0 + 1e-6
        swapped = logits.clone()
        swapped[0, 10], swapped[0, 20] = 3.0 + 1e-6, 3.0
        for seed in range(200):
            first, second = (RowSampler(SAMPLED, [seed], CPU).draw(scores) for scores in (logits, swapped))
            assert torch.equal(first, second)

    def test_rows_keep_their_own_noise_when_others_leave(self):
        logits = torch.zeros(3, 50)
        all_rows, last_row = RowSampler(SAMPLED, [1, 2, 3], CPU), RowSampler(SAMPLED, [3], CPU)
        assert all_rows.draw(logits)[2] == last_row.draw(logits[:1])[0]
        all_rows.keep([2])
        assert all_rows.draw(logits[:1]) == last_row.draw(logits[:1])


class TestEnds:
    """Where a draft ends with draft_until."""

    @pytest.mark.parametrize("stop", ["Question:", "\u95ee\u9898\uff1a"])
    def test_a_stop_string_is_found_whatever_its_tokens(self, tiny_engine, stop):
        tokenizer, sampling = tiny_engine.tokenizer, replace(SAMPLED, until=(stop,))
        token_ids = tokenizer.encode(f"so 5\n{stop}", add_special_tokens=False)
        assert has_ended(tokenizer, token_ids, tiny_engine.stop_ids, sampling)
        assert not has_ended(tokenizer, token_ids[:-1], tiny_engine.stop_ids, sampling)

    def test_a_stop_string_may_be_a_special_token(self, tiny_engine):
        tokenizer, sampling = tiny_engine.tokenizer, replace(SAMPLED, until=("<|im_start|>",))
        token_ids = tokenizer.encode("so 5<|im_start|>", add_special_tokens=False)
        assert has_ended(tokenizer, token_ids, tiny_engine.stop_ids, sampling)
        assert text_before_stop(tokenizer, token_ids, tiny_engine.stop_ids, sampling.until) == ("so 5", True)

    def test_beams_apply_no_penalty_of_the_generation_config(self, tiny_engine, monkeypatch):
        beams = ask(tiny_engine, replace(GREEDY, beams=3), 1)
        expected = ids(tiny_engine, beams)
        monkeypatch.setattr(tiny_engine.model.generation_config, "repetition_penalty", 1.8)
        assert ids(tiny_engine, beams) == expected


class TestLoading:
    host = HostArgs(1, None, "cpu")

    def test_unknown_arguments_are_named(self, tiny):
        with pytest.raises(ConfigError, match="did you mean dtype"):
            load_engine("hf", {"pretrained": tiny, "dtyp": "float32"}, self.host)

    def test_further_loader_arguments_go_in_model_kwargs(self, tiny):
        args = {"pretrained": tiny, "dtype": "float32", "model_kwargs": {"attn_implementation": "eager"}}
        assert load_engine("hf", args, self.host).model.config._attn_implementation == "eager"

    def test_pretrained_is_needed_and_must_exist(self, tmp_path):
        with pytest.raises(ConfigError, match="pretrained is missing"):
            load_engine("hf", {}, self.host)
        with pytest.raises(EngineError, match="cannot be loaded"):
            load_engine("hf", {"pretrained": str(tmp_path)}, self.host)

    def test_a_missing_gpu_means_cpu(self, tiny):
        if torch.cuda.is_available():
            pytest.skip("this machine has a GPU")
        engine = load_engine("hf", {"pretrained": tiny}, HostArgs(1, None, "cuda:0"))
        assert engine.info["device"] == "cpu"

    def test_the_fingerprint_tells_weights_dtype_and_ends_apart(self, tiny, tmp_path):
        base = load_engine("hf", {"pretrained": tiny, "dtype": "float32"}, self.host).fingerprint
        assert load_engine("hf", {"pretrained": tiny, "dtype": "float32"}, self.host).fingerprint == base
        assert load_engine("hf", {"pretrained": tiny, "dtype": "bfloat16"}, self.host).fingerprint != base
        other = save_tiny(tmp_path, "sliding")
        assert load_engine("hf", {"pretrained": other, "dtype": "float32"}, self.host).fingerprint != base

    def test_the_fingerprint_tells_apart_what_of_a_folder_is_loaded_and_how(self, tiny, tmp_path):
        shutil.copytree(tiny, tmp_path / "one")
        shutil.copytree(save_tiny(tmp_path / "other", "sliding"), tmp_path / "two")

        def loaded(**args) -> str:
            return load_engine("hf", {"pretrained": str(tmp_path), "dtype": "float32", **args}, self.host).fingerprint

        fingerprints = [loaded(subfolder="one"), loaded(subfolder="two")]
        fingerprints += [loaded(subfolder="one", model_kwargs={"num_hidden_layers": 1})]
        assert len(set(fingerprints)) == 3
        assert loaded(subfolder="one", model_kwargs={"attn_implementation": "eager"}) == fingerprints[0]

    @pytest.mark.parametrize(
        ("args", "reason"),
        [
            ({"dtype": "fp16"}, "fp16"),
            ({"model_kwargs": {"foo": 1}}, "foo"),
            ({"max_length": "abc"}, "abc"),
            ({"pretrained": "TRUNCATED"}, "MetadataIncompleteBuffer|incomplete|deserializing"),
            ({"pretrained": "ANOTHER SIZE"}, "size|mismatch"),
        ],
    )
    def test_what_does_not_fit_is_one_sentence(self, tiny, tmp_path, args, reason):
        folder = tmp_path / "model"
        shutil.copytree(tiny, folder)
        weights, config = folder / "model.safetensors", folder / "config.json"
        if args.get("pretrained") == "TRUNCATED":
            weights.write_bytes(weights.read_bytes()[:-1000])
        if args.get("pretrained") == "ANOTHER SIZE":
            config.write_text(json.dumps({**json.loads(config.read_text()), "hidden_size": 64}))
        with pytest.raises(EngineError, match=rf"cannot be loaded: .*({reason})"):
            load_engine("hf", {**args, "pretrained": str(folder)}, self.host)

    def test_settings_of_the_generation_config_without_effect_are_named(self, tiny, tmp_path, caplog):
        shutil.copytree(tiny, tmp_path / "model")
        config = tmp_path / "model" / "generation_config.json"
        config.write_text(json.dumps({**json.loads(config.read_text()), "repetition_penalty": 1.3}))
        load_engine("hf", {"pretrained": str(tmp_path / "model"), "truncation": True}, self.host)
        assert "sets repetition_penalty=1.3: --model hf applies it, --model aft does not" in caplog.text
        assert "truncation=True has no effect" in caplog.text

    def test_thinking_can_be_switched_on_without_hflms_own_condition(self, tiny):
        assert load_engine("hf", {"pretrained": tiny, "enable_thinking": True}, self.host).model is not None

    def test_an_encoder_decoder_is_refused(self, tiny, tmp_path):
        transformers.T5ForConditionalGeneration(
            transformers.T5Config(vocab_size=260, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
        ).save_pretrained(tmp_path)
        tiny_tokenizer().save_pretrained(tmp_path)
        with pytest.raises(EngineError, match="it is an encoder-decoder model, and engine=hf runs causal ones"):
            load_engine("hf", {"pretrained": str(tmp_path)}, self.host)

    def test_shape_leaves_the_embeddings_out(self, tiny_engine):
        weights = sum(w.numel() for w in tiny_engine.model.parameters())
        # The input embedding and the output head are left out.
        assert tiny_engine.shape.parameters == weights - 2 * 260 * 32
        assert (tiny_engine.shape.layers, tiny_engine.shape.attention_width) == (2, 32)


def test_the_head_gets_contiguous_states_of_several_prompts(tiny):
    engine, contiguous = HFEngine.load({"pretrained": tiny}, HostArgs("auto", None, "cpu")), []
    head = engine.model.get_output_embeddings()
    head.register_forward_pre_hook(lambda head, inputs: contiguous.append(inputs[0].is_contiguous()))
    ids(engine, ask(engine, samples=1))
    assert contiguous
    assert all(contiguous)


def test_a_spare_pad_changes_no_text(tiny_engine, monkeypatch):
    requests = ask(tiny_engine)
    expected = ids(tiny_engine, requests)
    # The value for bf16 on a CPU.
    monkeypatch.setattr(tiny_engine, "spare_pads", 1)
    assert ids(tiny_engine, requests) == expected


# peft raises it.
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False")
class TestAdapters:
    def adapted(self, model, folder, **settings) -> HFEngine:
        from peft import LoraConfig, get_peft_model

        model.save_pretrained(folder / "base")
        tiny_tokenizer().save_pretrained(folder / "base")
        get_peft_model(model, LoraConfig(r=2, task_type="CAUSAL_LM", **settings)).save_pretrained(folder / "adapter")
        given = {"pretrained": str(folder / "base"), "peft": str(folder / "adapter"), "dtype": "float32"}
        return HFEngine.load(given, HostArgs("auto", None, "cpu"))

    def test_a_model_with_learnt_positions_gets_them(self, tmp_path):
        sizes = {"vocab_size": 260, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512}
        torch.manual_seed(0)
        config = transformers.GPT2Config(**sizes, bos_token_id=1, eos_token_id=3, pad_token_id=0)
        model = transformers.GPT2LMHeadModel(config)
        with torch.no_grad():
            for weights in model.parameters():
                weights.mul_(6)
        engine = self.adapted(model, tmp_path, target_modules=["c_attn"])
        requests = ask(engine, GREEDY, samples=1)
        alone = [ids(engine, [replace(request)])[0] for request in requests]
        assert ids(engine, requests) == alone

    def test_logits_of_a_prompt_are_left_out_and_replaced_weights_not_counted(
        self, tiny_engine, tiny, tmp_path, monkeypatch
    ):
        model = transformers.AutoModelForCausalLM.from_pretrained(tiny)
        saved = ["embed_tokens", "lm_head"]
        engine = self.adapted(model, tmp_path, target_modules=["q_proj"], modules_to_save=saved)
        base, inputs = engine.model.get_base_model(), []
        forward = base.forward
        monkeypatch.setattr(base, "forward", lambda **given: inputs.append(given) or forward(**given))
        ids(engine, ask(engine, samples=1, texts=TEXTS[:1]))
        assert all(given.keys() >= {"position_ids", "logits_to_keep"} for given in inputs)
        assert inputs
        # The adapters of two layers.
        assert engine.shape.parameters == tiny_engine.shape.parameters + 2 * (2 * 32 + 2 * 32)
