"""The vLLM engine on vLLM's CPU build, with SmolLM2 in fp32."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import astuple, replace
from types import SimpleNamespace

import pytest

from helpers.tiny_models import save_tiny_for_vllm
from lm_eval_aft.core.engine import HostArgs
from lm_eval_aft.core.errors import ConfigError, EngineError
from lm_eval_aft.core.records import Chat, Confidence, Message, Request, Sampling
from lm_eval_aft.core.usage import ModelShape
from lm_eval_aft.engines.registry import load_engine

vllm_only = [
    pytest.mark.vllm,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed here"),
]
CPU = HostArgs(1, None, "cpu")
SAMPLED, GREEDY = Sampling(0.7, 0.95, 0, 24), Sampling(0.0, 1.0, 0, 24)
# More than one block of 128 tokens.
LONG = "Name three colours and explain each one in a sentence of its own. " * 14
TEXTS = ["What is 2+3?", "Name a city.", LONG, "Why is the sky blue?"]


def ask(engine, sampling: Sampling = SAMPLED, samples: int = 3, texts=TEXTS) -> list[Request]:
    prompts = [engine.renderer.encode(Chat((Message("user", text),))) for text in texts]
    return [Request(prompt, sampling, 100 * i + j) for i, prompt in enumerate(prompts) for j in range(samples)]


def complete(engine, requests: list[Request]):
    pairs = list(engine.generate(requests))
    # Each position comes once.
    assert sorted(position for position, _ in pairs) == list(range(len(requests)))
    return [completion for _, completion in sorted(pairs, key=lambda pair: pair[0])]


def ids(engine, requests: list[Request]) -> list[tuple[int, ...]]:
    return [completion.token_ids for completion in complete(engine, requests)]


def instance(kind: str, *args, doc_id: int = 0):
    from helpers.instances import make_instance

    metadata = ("t", doc_id, 1)
    return make_instance(request_type=kind, doc={"id": doc_id}, arguments=args, idx=0, metadata=metadata)


@pytest.mark.parametrize("name", ["vllm", "api"])
def test_engines_that_spread_the_work_themselves_run_in_one_process(name, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(ConfigError, match=f"engine={name} runs in one process, and 4 were started"):
        load_engine(name, {"pretrained": "x"}, CPU)


def test_of_several_likeliest_tokens_each_is_greedy():
    from lm_eval_aft.engines.vllm.prompt_lm import continuation_score

    def row(**logprobs: float) -> dict[int, SimpleNamespace]:
        return {int(token[1:]): SimpleNamespace(logprob=value, rank=2) for token, value in logprobs.items()}

    scored = SimpleNamespace(prompt_token_ids=[1, 2, 3], prompt_logprobs=[None, row(t2=-0.5, t9=-0.5), row(t3=-1.0)])
    assert continuation_score(scored, 2) == (-1.5, True)
    scored.prompt_logprobs[1] = row(t2=-0.7, t9=-0.5)
    assert continuation_score(scored, 2) == (-1.7, False)


def test_absent_vllm_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(EngineError, match=r"pip install 'lm_eval_aft\[vllm\]'"):
        load_engine("vllm", {"pretrained": "x"}, CPU)


class TestArguments:
    pytestmark = vllm_only

    def check(self, host: HostArgs = CPU, **args):
        from lm_eval_aft.engines.vllm.arguments import VLLMArgs

        return VLLMArgs.of({"pretrained": "no/such-model", **args}, host)

    @pytest.mark.parametrize(
        ("args", "message"),
        [
            ({"tensor_paralel_size": 2}, "did you mean tensor_parallel_size"),
            ({"data_parallel_size": 2}, "vllm serve MODEL --data-parallel-size 2 .*engine=api"),
            ({"max_length": 5, "max_model_len": 5}, "only one of them"),
            ({"engine_seed": -1}, "engine_seed=-1 is not allowed"),
            ({"seed": 3}, "seed=3 is not an argument"),
            ({"lora_local_path": "/no/such/folder"}, "no readable adapter_config.json"),
        ],
    )
    def test_wrong_ones_are_refused_before_loading(self, args, message):
        with pytest.raises(ConfigError, match=message):
            self.check(**args)

    def test_more_devices_than_there_are(self):
        with pytest.raises(EngineError, match="tensor_parallel_size=64 needs 64 devices and this machine has"):
            self.check(tensor_parallel_size=64)

    def test_heads_of_a_size_that_a_cpu_does_not_run(self):
        from lm_eval_aft.bundled import locate

        with pytest.raises(EngineError, match=r"heads of size 24, and vLLM on a CPU runs sizes 32, .*: use engine=hf"):
            self.check(pretrained=locate("bundled:aft"))

    def test_other_log_probabilities_than_the_models_own_give_no_confidence(self, smollm2):
        assert self.check(pretrained=smollm2).no_confidence == ""
        assert self.check(pretrained=smollm2, logprobs_mode="raw_logprobs").no_confidence == ""
        processed = self.check(pretrained=smollm2, logprobs_mode="processed_logprobs")
        assert processed.no_confidence == "leave logprobs_mode out, or give logprobs_mode=raw_logprobs"

    def test_a_device_of_ones_own_choice(self):
        with pytest.raises(ConfigError, match=r"--device cuda:1 has no effect .* set CUDA_VISIBLE_DEVICES=1 instead"):
            self.check(HostArgs(1, None, "cuda:1"))

    def test_no_device_at_all(self, monkeypatch):
        from vllm.platforms import current_platform

        monkeypatch.setattr(type(current_platform), "is_unspecified", lambda self: True)
        with pytest.raises(EngineError, match="finds no device that it supports"):
            self.check()

    def test_what_vllm_gets(self, smollm2):
        args = self.check(
            HostArgs(1, 32, "cpu"), pretrained=smollm2, max_length=1000.0, engine_seed=7, quantization="none"
        )
        assert args.for_llm() == {
            "model": smollm2,
            "seed": 7,
            "max_model_len": 1000,
            "max_num_seqs": 32,
            "enforce_eager": True,
            "block_size": 32,
            "enable_chunked_prefill": False,
            "max_num_batched_tokens": 4096,
        }
        assert self.check(pretrained=smollm2, block_size=64).engine["block_size"] == 64
        # The model's own context length.
        assert self.check(pretrained=smollm2).engine["max_num_batched_tokens"] == 8192

    def test_a_checkpoint_that_is_not_there(self, tmp_path):
        with pytest.raises(ConfigError, match="nothing does not exist: give the folder of a checkpoint"):
            load_engine("vllm", {"pretrained": str(tmp_path / "nothing")}, CPU)


@pytest.fixture(scope="module")
def model(smollm2):
    """--model aft as the command line makes it. Most tests here use its engine."""
    from lm_eval_aft.model import AFTLM

    return AFTLM(pretrained=smollm2, engine="vllm", dtype="float32", max_model_len=2048, k=3, layers=1, max_gen_toks=16)


@pytest.fixture(scope="module")
def engine(model):
    return model.engine


@pytest.fixture(scope="module")
def hf_engine(smollm2):
    from lm_eval_aft.engines.hf.engine import HFEngine

    return HFEngine.load({"pretrained": smollm2, "dtype": "float32", "max_length": 2048}, HostArgs("auto", None, "cpu"))


class TestGeneration:
    pytestmark = vllm_only

    def test_a_seed_gives_its_text_alone_reversed_and_in_company(self, engine):
        requests = ask(engine)
        together = ids(engine, requests)
        # Samples of one prompt differ.
        assert len(set(together)) > 2 * len(TEXTS)
        assert ids(engine, requests[::-1])[::-1] == together
        assert [ids(engine, [request])[0] for request in requests[:4]] == together[:4]

    def test_without_seeds_texts_differ_from_run_to_run(self, engine):
        requests = ask(engine, Sampling(1.0, 1.0, 0, 24, seeded=False), samples=2)
        assert ids(engine, requests) != ids(engine, requests)

    def test_counts_are_those_of_the_tokens(self, engine):
        engine.llm.reset_prefix_cache()
        requests = ask(engine, Sampling(1.0, 0.9, 0, 60))
        completions = complete(engine, requests)
        assert {c.finish_reason for c in completions} == {"stop", "length"}
        for request, completion in zip(requests, completions, strict=True):
            assert completion.prompt_tokens == len(request.prompt.token_ids)
            assert completion.generated_tokens == len(completion.token_ids) <= 60
            ended = completion.token_ids[-1] == engine.tokenizer.eos_token_id
            assert completion.finish_reason == ("stop" if ended else "length")
            assert "<|im_end|>" not in completion.text

        # One request computes the long prompt. The others find its whole blocks of 32 tokens in the cache.
        def shared(completion):
            return completion.prompt_tokens - completion.computed_prompt_tokens

        def whole_blocks(completion):
            return (completion.prompt_tokens - 1) // 32 * 32

        blocks = whole_blocks(completions[6])
        assert blocks > 128
        assert sorted(map(shared, completions[6:9])) == [0, blocks, blocks]
        assert all(shared(c) in (0, whole_blocks(c)) for c in completions)

    def test_each_text_comes_as_it_ends(self, engine):
        slow, quick = Sampling(1.0, 1.0, 0, 48, until=("\x00",)), Sampling(1.0, 1.0, 0, 1)
        requests = [*ask(engine, slow, samples=1), *ask(engine, quick, samples=1)]
        order = [position for position, _ in engine.generate(requests)]
        assert set(order[:4]) == {4, 5, 6, 7}

    def test_stop_strings_end_and_are_cut(self, engine):
        requests = ask(engine, Sampling(0.0, 1.0, 0, 40, until=(" is", " the")))
        for completion in complete(engine, requests):
            assert " is" not in completion.text
            assert " the" not in completion.text
            assert completion.finish_reason == "stop" or completion.generated_tokens == 40

    def test_leaving_early_frees_vllm_and_changes_nothing(self, engine):
        requests = ask(engine)
        steps = engine.generate(requests)
        position, first = next(steps)
        steps.close()
        assert engine.llm.llm_engine.get_num_unfinished_requests() == 0
        assert complete(engine, requests)[position].token_ids == first.token_ids

    def test_a_step_that_fails_is_one_sentence_and_keeps_what_was_yielded(self, engine, monkeypatch):
        inner, steps, names = engine.llm.llm_engine, [], []
        real, add = inner.step, inner.add_request

        def step():
            steps.append(1)
            if len(steps) > 24:
                raise RuntimeError("the worker is gone")
            return real()

        def add_request(name, *rest, **named):
            names.append(name)
            return add(name, *rest, **named)

        kept = []
        with monkeypatch.context() as patch:
            patch.setattr(inner, "step", step)
            patch.setattr(inner, "add_request", add_request)
            requests = [*ask(engine, Sampling(1.0, 1.0, 0, 2)), *ask(engine, Sampling(1.0, 1.0, 0, 200, ("\x00",)))]
            with pytest.raises(EngineError, match=r"with \d+ texts .* unfinished \(the worker is gone\)"):
                kept.extend(position for position, _ in engine.generate(requests))
        assert set(range(12)) <= set(kept)
        # The other tests use this vLLM.
        inner.abort_request(names)

    def test_many_seeded_prompts_longer_than_a_batch(self, engine):
        """The CPU build died here when prompts were prefilled in chunks."""
        texts = [f"Question {number}. {LONG * 3}" for number in range(12)]
        assert len(set(ids(engine, ask(engine, Sampling(1.0, 1.0, 0, 4), 5, texts)))) > 40

    def test_greedy_texts_prompts_and_shape_are_those_of_the_hf_engine(self, engine, hf_engine):
        requests = ask(engine, GREEDY, samples=1)
        assert [r.prompt.token_ids for r in requests] == [r.prompt.token_ids for r in ask(hf_engine, GREEDY, 1)]
        ours, theirs = complete(engine, requests), complete(hf_engine, requests)
        assert [c.text for c in ours] == [c.text for c in theirs]
        assert [c.token_ids for c in ours] == [c.token_ids for c in theirs]
        assert [c.finish_reason for c in ours] == [c.finish_reason for c in theirs]
        assert engine.shape == hf_engine.shape == ModelShape(106203456, 30, 576)
        assert engine.fingerprint.split("|")[1:3] == hf_engine.fingerprint.split("|")[1:3]
        assert engine.fingerprint != hf_engine.fingerprint

    def test_confidence_is_that_of_the_hf_engine(self, engine, hf_engine):
        requests = [replace(request, confidence=True) for request in ask(engine, SAMPLED, samples=2)]
        completions = complete(engine, requests)
        prompts = [request.prompt.token_ids for request in requests]
        texts = [completion.token_ids for completion in completions]
        again = dict(engine.scorer.token_logprobs(prompts, texts, quiet=True))
        theirs = dict(hf_engine.scorer.token_logprobs(prompts, texts, quiet=True))
        for position, completion in enumerate(completions):
            expected = astuple(Confidence.of(theirs[position]))
            assert astuple(completion.confidence) == pytest.approx(expected, rel=2e-3, abs=2e-3)
            assert astuple(Confidence.of(again[position])) == pytest.approx(expected, rel=2e-3, abs=2e-3)
        # Nothing changes in the texts.
        plain = complete(engine, [replace(request, confidence=False) for request in requests])
        assert [completion.confidence for completion in plain] == [None] * len(requests)
        assert [completion.token_ids for completion in plain] == texts

    def test_loglikelihoods_are_those_of_hflm(self, engine, hf_engine):
        pairs = [("The capital of France is", " Paris"), ("The capital of France is", " a cheese"), ("", "Hello you")]
        requests = [instance("loglikelihood", *pair) for pair in pairs]
        ours = engine.scorer.loglikelihood(requests, disable_tqdm=True)
        theirs = hf_engine.scorer.loglikelihood(requests, disable_tqdm=True)
        assert [score for score, _ in ours] == pytest.approx([score for score, _ in theirs], abs=2e-3)
        assert [best for _, best in ours] == [best for _, best in theirs]
        texts = [instance("loglikelihood_rolling", "Paris is the capital of France. " * 4)]
        rolling = engine.scorer.loglikelihood_rolling(texts, disable_tqdm=True)
        ((_, ((expected, _),)),) = engine.scorer.score_choices([[1]], [[engine.tokenizer.encode(texts[0].args[0])]])
        assert rolling == pytest.approx([expected], abs=2e-3)
        assert rolling == pytest.approx(hf_rolling(hf_engine, texts[0].args[0]), abs=1e-2)
        # As lm-eval 0.5 asks.
        texts = [instance("loglikelihood_rolling", "", texts[0].args[0])]
        assert engine.scorer.loglikelihood_rolling(texts, disable_tqdm=True) == [
            (pytest.approx(expected, abs=2e-3), False)
        ]


def hf_rolling(engine, text: str) -> list[float]:
    """HFLM's own rolling method measures memory if its batch size is automatic. This calls the method below it."""
    tokens = engine.lm.tok_encode(text)
    rows = [((None, None), [engine.lm.prefix_token_id], tokens)]
    return [engine.lm._loglikelihood_tokens(rows, disable_tqdm=True, override_bs=1)[0][0]]


class TestModel:
    pytestmark = vllm_only

    def test_propose_and_aggregate_from_end_to_end(self, model, tmp_path):
        from lm_eval_aft.model import AFTLM
        from lm_eval_aft.storage.draft_store import SQLiteStore

        contexts = [model.apply_chat_template([{"role": "user", "content": text}]) for text in TEXTS[:2]]
        requests = [
            instance("generate_until", context, {"until": []}, doc_id=i)
            for i, context in enumerate([*contexts, "A bare prompt"])
        ]
        plain = model.generate_until(requests, disable_tqdm=True)
        assert all(isinstance(answer, str) for answer in plain)
        usage = model.get_model_info()["aft"]["usage"]
        assert usage["generations"] == 3 * 4
        assert usage["flops"] > 2 * 106203456 * usage["generated_tokens"]

        store = SQLiteStore(tmp_path / "drafts.sqlite")
        first = AFTLM.around(model.engine, model.config, model.template, store, "x")
        assert first.generate_until(requests, disable_tqdm=True) == plain
        again = AFTLM.around(model.engine, model.config, model.template, store, "x")
        assert again.generate_until(requests, disable_tqdm=True) == plain
        assert again.computed_usage.generations == 0
        assert again.usage.generated_tokens == first.usage.generated_tokens
        store.close()

    def test_scoring_requests_are_rendered_and_scored(self, model):
        context = model.apply_chat_template([{"role": "user", "content": "The capital of France?"}])
        (score, _), (worse, _) = model.loglikelihood(
            [instance("loglikelihood", context, answer) for answer in ("Paris", "Cheese")], disable_tqdm=True
        )
        assert 0 > score > worse

    def test_scoring_that_fails_is_one_sentence(self, model, monkeypatch):
        def dead(*given, **rest):
            raise RuntimeError("its engine process died")

        monkeypatch.setattr(model.engine.llm, "generate", dead)
        with pytest.raises(
            EngineError, match=r"stopped working while it scored .its engine process died.: start the same"
        ):
            model.loglikelihood([instance("loglikelihood", "a", "b")], disable_tqdm=True)


@pytest.fixture(scope="module")
def adapter(smollm2, tmp_path_factory) -> str:
    """A LoRA adapter of rank 20 whose weights change the texts."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(smollm2)
    tuned = get_peft_model(base, LoraConfig(r=20, lora_alpha=20, target_modules=["q_proj", "v_proj"]))
    for name, weights in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weights, std=0.02)
    folder = tmp_path_factory.mktemp("adapter")
    tuned.save_pretrained(folder)
    return str(folder)


class TestAdapter:
    pytestmark = vllm_only

    def test_lora_without_merging_gives_what_peft_gives(self, smollm2, adapter, hf_engine):
        from lm_eval_aft.engines.hf.engine import HFEngine

        settings = {"pretrained": smollm2, "dtype": "float32"}
        engine = load_engine("vllm", {**settings, "max_model_len": 512, "lora_local_path": adapter}, CPU)
        assert engine.args.engine["max_lora_rank"] == 32
        requests = ask(engine, GREEDY, 1, TEXTS[:2])
        ours = ids(engine, requests)
        assert ours != ids(hf_engine, requests)
        tuned = HFEngine.load({**settings, "peft": adapter}, HostArgs("auto", None, "cpu"))
        assert ours == ids(tuned, requests)
        assert adapter not in engine.fingerprint
        # Parts for the adapter and the settings.
        assert len(engine.fingerprint.split("|")) == len(hf_engine.fingerprint.split("|")) + 2
        pair = [instance("loglikelihood", "The capital of France is", " Paris")]
        (score, _), (expected, _) = (lm.scorer.loglikelihood(pair, disable_tqdm=True)[0] for lm in (engine, tuned))
        assert score == pytest.approx(expected, abs=2e-3)


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory) -> str:
    """A tiny Llama with random weights."""
    return save_tiny_for_vllm(tmp_path_factory.mktemp("vllm") / "tiny")


class TestTiny:
    pytestmark = vllm_only

    def test_prompts_greedy_texts_and_shape_are_those_of_the_hf_engine(self, tiny_folder):
        from lm_eval_aft.engines.hf.engine import HFEngine

        settings = {"pretrained": tiny_folder, "dtype": "float32"}
        hf = HFEngine.load(dict(settings), HostArgs("auto", None, "cpu"))
        engine = load_engine("vllm", settings, CPU)
        assert engine.max_length == hf.max_length == 2048
        assert engine.shape == hf.shape
        assert engine.stop_ids == hf.stop_ids == {3}
        requests = ask(engine, Sampling(0.0, 1.0, 0, 48), 1)
        assert [r.prompt for r in requests] == [r.prompt for r in ask(hf, GREEDY, 1)]
        greedy = ids(engine, requests)
        assert greedy == ids(hf, requests)
        for penalty in ("repetition_penalty", "frequency_penalty", "presence_penalty"):
            penalised = ask(engine, Sampling(0.0, 1.0, 0, 48, **{penalty: 1.5}), 1)
            assert greedy != ids(engine, penalised) == ids(hf, penalised)


class TestDeath:
    """These tests come last, because they kill the engine that the tests above share."""

    pytestmark = vllm_only

    def test_a_killed_engine_is_one_sentence_and_a_resume_computes_only_the_rest(self, model, tmp_path):
        import psutil

        from lm_eval_aft.model import AFTLM
        from lm_eval_aft.storage.draft_store import SQLiteStore

        contexts = [model.apply_chat_template([{"role": "user", "content": text}]) for text in TEXTS]
        store = SQLiteStore(tmp_path / "drafts.sqlite")
        doomed = AFTLM.around(model.engine, model.config, model.template, store, "x")
        settings = {"until": [], "max_gen_toks": 200}
        requests = [instance("generate_until", context, settings, doc_id=i) for i, context in enumerate(contexts)]
        real, kept = store.put, []

        def put(key, completion):
            real(key, completion)
            kept.append(key)
            if len(kept) == 2:
                # An engine of another test may still run. The system cuts the names of processes.
                for process in psutil.Process().children(recursive=True):
                    if process.name().startswith("VLLM::EngineCor"):
                        process.kill()

        store.put = put
        with pytest.raises(EngineError, match=r"vLLM stopped working with \d+ texts"):
            doomed.generate_until(requests, disable_tqdm=True)
        assert 2 <= len(kept) < 12
        # A resumed run finds them all.
        assert set(store.get(kept)) == set(kept)
        # A dead engine fails at once.
        with pytest.raises(EngineError, match="vLLM stopped working"):
            doomed.generate_until(requests, disable_tqdm=True)
        store.close()
