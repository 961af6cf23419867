"""The server engine against a small chat server on 127.0.0.1 that fails as each test requires."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from email.utils import formatdate
from types import SimpleNamespace

import pytest

from helpers.fake_server import FakeServer, Reply, completion, completion_with
from helpers.full_disk import files_of_at_most
from lm_eval_aft.core.config import AFTConfig
from lm_eval_aft.core.engine import HostArgs
from lm_eval_aft.core.errors import ConfigError, EngineError, PromptTooLong, StoreError
from lm_eval_aft.core.prompts import Template
from lm_eval_aft.core.records import Chat, Message, Question, Request, Sampling
from lm_eval_aft.engines.api import client as api_client
from lm_eval_aft.engines.api.engine import APIEngine
from lm_eval_aft.engines.api.renderers import EstimateRenderer
from lm_eval_aft.engines.api.responses import split_total
from lm_eval_aft.engines.registry import load_engine
from lm_eval_aft.inference.generate import generate_or_reuse
from lm_eval_aft.inference.schedule import propose_and_aggregate
from lm_eval_aft.storage.draft_store import SQLiteStore

SAMPLED = Sampling(0.7, 0.95, 0, 24)
SECRET = "sk-very-secret-1234"


@pytest.fixture
def server(server, monkeypatch):
    monkeypatch.setattr(api_client, "BACKOFF_S", 0.01)
    monkeypatch.setattr(api_client, "QUOTA_BACKOFF_S", 0.01)
    return server


def load(server: FakeServer, **args) -> APIEngine:
    settings = {"base_url": server.url, "model": "m", "timeout_s": 20, "max_retries": 2, **args}
    return load_engine("api", settings, HostArgs())


def ask(engine: APIEngine, count: int = 6, sampling: Sampling = SAMPLED, text: str = "Why?") -> list[Request]:
    prompt = engine.renderer.encode(Chat((Message("user", text),)))
    return [Request(prompt, sampling, 2**62 + seed) for seed in range(count)]


def complete(engine: APIEngine, requests: list[Request]):
    pairs = sorted(engine.generate(requests), key=lambda pair: pair[0])
    assert [position for position, _ in pairs] == list(range(len(requests)))
    return [completion for _, completion in pairs]


def refuse(status: int, message: str, code: str | None = None) -> Callable[[int, dict], Reply]:
    return lambda number, body: (status, {"error": {"message": message, "code": code}}, {})


class TestAsking:
    def test_one_call_a_generation_with_its_own_seed(self, server):
        engine = load(server)
        completions = complete(engine, ask(engine))
        assert sorted(call["seed"] for call in server.calls) == [2**62 + i for i in range(6)]
        assert [c.text for c in completions] == [f"answer {2**62 + i} 0 to Why?" for i in range(6)]
        assert server.calls[0] == {
            "model": "m",
            "messages": [{"role": "user", "content": "Why?"}],
            "temperature": 0.7,
            "top_p": 0.95,
            "max_tokens": 24,
            "seed": server.calls[0]["seed"],
        }

    def test_counts_come_from_usage(self, server):
        engine = load(server)
        completion = complete(engine, ask(engine, 1))[0]
        assert (completion.prompt_tokens, completion.computed_prompt_tokens) == (10, 6)
        assert completion.generated_tokens == len(completion.text.split()) + 1
        assert completion.finish_reason == "stop"
        server.faults = lambda number, body: (200, completion_with_end(body, "length"), {})
        assert complete(engine, ask(engine, 1))[0].finish_reason == "length"

    def test_without_seeds_equal_requests_share_a_call(self, server):
        engine = load(server)
        requests = ask(engine, 5, Sampling(0.7, 0.95, 0, 24, seeded=False))
        requests += ask(engine, 1, Sampling(0.7, 0.95, 0, 24, seeded=False), "Another?")
        completions = complete(engine, requests)
        assert sorted(call.get("n", 1) for call in server.calls) == [1, 5]
        assert all("seed" not in call for call in server.calls)
        assert [c.computed_prompt_tokens for c in completions] == [6, 0, 0, 0, 0, 6]
        assert sum(c.generated_tokens for c in completions[:5]) == 5 * 6
        server.faults = lambda number, body: (200, completion({**body, "n": 1}), {})
        with pytest.raises(EngineError, match="n=5 with 1 choices"):
            complete(engine, requests)

    def testsplit_total_of_a_sum_keep_the_sum(self):
        assert split_total(10, [1, 1, 2]) == [2, 3, 5]
        assert split_total(7, [0, 0, 0]) == [2, 2, 3]
        assert sum(split_total(1001, [3, 11, 5, 0])) == 1001

    @pytest.mark.parametrize(
        ("content", "text"),
        [
            (None, ""),
            ([{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "5"}, {"type": "text"}], "5"),
            ("half \ud83d a pair", "half \ufffd a pair"),
            ("whole \U0001f600", "whole \U0001f600"),
        ],
    )
    def test_what_a_server_may_send_for_a_text(self, server, tmp_path, content, text):
        server.faults = lambda number, body: (200, completion_with(body, content), {})
        engine, store = load(server), SQLiteStore(tmp_path / "drafts.sqlite")
        (request,) = ask(engine, 1)
        ((_, completion),) = engine.generate([request])
        assert completion.text == text
        key = store.key(engine.fingerprint, request)
        store.put(key, completion)
        store.flush()
        assert store.get([key])[key].text == text
        store.close()

    def test_texts_under_a_servers_own_defaults_are_others(self, server):
        server.models = (200, {"data": [{"id": "m", "max_model_len": 4096, "owned_by": "vllm"}]}, {})
        neutral, unknown = load(server), load(server, check=False)
        assert neutral.fingerprint != unknown.fingerprint

    def test_an_adapter_has_the_context_of_its_model(self, server):
        adapter = {"id": "tuned", "parent": "m", "max_model_len": None, "owned_by": "vllm"}
        server.models = (200, {"data": [{"id": "m", "max_model_len": 4096, "owned_by": "vllm"}, adapter]}, {})
        tuned = load(server, model="tuned")
        assert tuned.max_length == 4096
        assert tuned.fingerprint != load(server).fingerprint

    def test_fields_that_only_some_calls_have(self, server):
        engine = load(server, extra_body={"min_p": 0.1})
        chat = Chat((Message("user", "Count."),), prefill="One,")
        sampling = Sampling(1.0, 1.0, 40, 9, until=("\n",))
        complete(engine, [Request(engine.renderer.encode(chat), sampling, 5)])
        (call,) = server.calls
        assert call["messages"][-1] == {"role": "assistant", "content": "One,"}
        assert (call["continue_final_message"], call["add_generation_prompt"]) == (True, False)
        assert (call["top_k"], call["stop"], call["min_p"], call["seed"]) == (40, ["\n"], 0.1, 5)
        assert "min_p" in engine.fingerprint

    def test_a_vllm_server_gets_its_own_sampling_defaults_undone(self, server):
        server.models = (200, {"data": [{"id": "m", "owned_by": "vllm", "max_model_len": 64}]}, {})
        complete(load(server), ask(load(server), 1))
        complete(load(server, extra_body={"min_p": 0.2}), ask(load(server), 1, Sampling(1.0, 1.0, 30, 9)))
        fields = ("top_k", "min_p", "repetition_penalty")
        assert [[call[name] for name in fields] for call in server.calls] == [[0, 0.0, 1.0], [30, 0.2, 1.0]]

    def test_concurrency_limits_calls_and_order_changes_nothing(self, server):
        server.delay_s = 0.1
        engine = load(server, concurrency=3)
        requests = ask(engine, 12)
        together = [c.text for c in complete(engine, requests)]
        # A busy machine may be late with the third call.
        assert 1 < server.most_running <= 3
        assert [c.text for c in complete(engine, requests[::-1])][::-1] == together

    def test_each_text_comes_as_it_ends(self, server):
        gate = threading.Event()

        def hold(number, body):
            if body["seed"] == 2**62:
                gate.wait(10)

        server.faults = hold
        engine = load(server)
        steps = engine.generate(ask(engine, 4))
        assert sorted(next(steps)[0] for _ in range(3)) == [1, 2, 3]
        gate.set()
        assert next(steps)[0] == 0


def completion_with_end(body: dict, finish: str) -> dict:
    return completion(body, finish=finish)


class TestTryingAgain:
    @pytest.mark.parametrize("status", [408, 429, 500, 502, 503])
    def test_busy_and_broken_servers_are_retried(self, server, status):
        server.faults = lambda number, body: (status, "busy", {}) if number < 2 else None
        engine = load(server)
        assert len(complete(engine, ask(engine, 1))) == 1
        assert len(server.calls) == 3

    @pytest.mark.parametrize(
        ("reply", "reason"),
        [
            ("<html>busy</html>", "its answer is not a JSON object"),
            ("", "its answer is not a JSON object"),
            ({"error": {"code": 429, "message": "Rate limit exceeded"}}, "Rate limit exceeded"),
        ],
    )
    def test_a_broken_reply_with_status_200_is_retried_and_its_message_is_shown(self, server, reply, reason):
        server.faults = lambda number, body: (200, reply, {}) if number < 2 else None
        engine = load(server)
        assert len(complete(engine, ask(engine, 1))) == 1
        assert len(server.calls) == 3
        server.faults = lambda number, body: (200, reply, {})
        with pytest.raises(EngineError, match=rf"stopped answering \(HTTP 200: {reason}, 3 times\)"):
            complete(engine, ask(engine, 1))

    def test_a_limit_by_the_minute_is_outlasted(self, server, monkeypatch):
        waits: list[float] = []
        monkeypatch.setattr(api_client, "QUOTA_BACKOFF_S", 5.0)
        server.faults = lambda number, body: (429, {"error": "slow down"}, {})
        client = api_client.ChatClient(server.url, timeout_s=5, max_retries=5)
        with pytest.raises(api_client.Unreachable, match="slow down, 6 times"):
            client.post("/chat/completions", {"messages": []}, SimpleNamespace(wait=waits.append))
        assert sum(waits) > 90

    @pytest.mark.parametrize("kind", ["seconds", "date"])
    def test_retry_after_is_honoured(self, server, kind):
        waits = {"seconds": lambda: "1", "date": lambda: formatdate(time.time() + 2, usegmt=True)}
        server.faults = lambda number, body: (429, "busy", {"Retry-After": waits[kind]()}) if number < 1 else None
        engine = load(server)
        started = time.monotonic()
        complete(engine, ask(engine, 1))
        assert 0.9 < time.monotonic() - started < 5

    def test_a_quota_is_not_waited_for(self, server):
        server.faults = lambda number, body: (429, {"error": {"message": "quota"}}, {"Retry-After": "86400"})
        engine = load(server)
        with pytest.raises(EngineError, match="quota; it asks to wait 86400 s"):
            complete(engine, ask(engine, 1))
        assert len(server.calls) == 1

    def test_time_outs_and_hang_ups(self, server):
        def faults(number, body):
            if number == 0:
                time.sleep(1.2)
            return (0, "", {}) if number == 1 else None

        server.faults = faults
        engine = load(server, timeout_s=0.6)
        assert len(complete(engine, ask(engine, 1))) == 1
        assert len(server.calls) == 3

    def test_leaving_early_stops_the_asking(self, server):
        server.delay_s = 0.05
        engine = load(server, concurrency=1)
        steps = engine.generate(ask(engine, 50))
        next(steps)
        steps.close()
        time.sleep(0.2)
        assert len(server.calls) <= 3


class TestFailing:
    def test_a_server_that_dies_mid_layer_keeps_what_ended_and_a_resume_asks_for_the_rest(self, server, tmp_path):
        server.faults = lambda number, body: (500, "dead", {}) if number >= 7 else None
        engine = load(server, concurrency=2)
        config = AFTConfig(k=4, layers=1, max_gen_toks=24)
        questions = [Question(Chat((Message("user", f"Question {i}"),)), SAMPLED, SAMPLED, doc_id=i) for i in range(3)]
        store = SQLiteStore(tmp_path / "drafts.sqlite")

        def run():
            return propose_and_aggregate(questions, engine, Template.load(None), config, store, quiet=True)

        with pytest.raises(EngineError, match=r"stopped answering \(HTTP 500: .*3 times\) with 5 texts .* unfinished"):
            run()
        server.faults = lambda number, body: None
        server.calls.clear()
        traces = run()
        assert len(server.calls) == 15 - 7
        assert sum(trace.usage.generations for trace in traces) == 15
        server.calls.clear()
        assert [trace.answer for trace in run()] == [trace.answer for trace in traces]
        assert not server.calls
        store.close()

    @pytest.mark.parametrize(
        ("fault", "kind", "message"),
        [
            (refuse(404, "The model `m` does not exist"), EngineError, "no model=m .*it has m, other: correct model="),
            (refuse(401, "Unauthorized"), EngineError, "wants a key: set OPENAI_API_KEY"),
            (refuse(400, "maximum context length is 4096 tokens"), PromptTooLong, "give tokenizer= or max_length="),
            (refuse(400, "too many", "context_length_exceeded"), PromptTooLong, "does not fit"),
            (refuse(400, "System role not supported"), EngineError, "HTTP 400: System role .*system_role=false"),
            (refuse(400, "no top_k here"), EngineError, "says HTTP 400: no top_k here"),
            (lambda n, b: (200, completion(b, usage=False), {}), EngineError, "states no usage.* give tokenizer="),
            (lambda n, b: (200, completion(b, finish="abort"), {}), EngineError, "finish_reason='abort'"),
            (lambda n, b: (200, {"object": "list"}, {}), EngineError, "holds no chat completion"),
            (lambda n, b: (200, {"choices": []}, {}), EngineError, "with 0 choices: see the server's log"),
            (
                lambda n, b: (200, completion_with(b, 5), {}),
                EngineError,
                "sent 5 for a text: does base_url name a chat",
            ),
            (lambda n, b: (307, "", {"Location": "https://x/v1"}), EngineError, "redirects to https://x/v1"),
        ],
    )
    def test_refusals_are_one_sentence_and_not_retried(self, server, fault, kind, message):
        engine = load(server, concurrency=1)
        server.faults = fault
        with pytest.raises(kind, match=message):
            complete(engine, ask(engine, 9))
        # The next call may be under way while a reply is read.
        assert len(server.calls) <= 2

    def test_usage_is_counted_here_where_a_tokenizer_is_given(self, server, tiny):
        server.faults = lambda number, body: (200, completion(body, usage=False), {})
        engine = load(server, tokenizer=tiny)
        completion_ = complete(engine, ask(engine, 1))[0]
        assert completion_.generated_tokens == engine.renderer.count(completion_.text) + 1
        # The tokenizer has one token a byte.
        assert completion_.prompt_tokens == 1 + len("user\nWhy?") + 1 + len("\n") + 1 + len("assistant\n")

    def test_loglikelihood_is_refused_by_name(self, server):
        from lm_eval_aft.model import AFTLM

        model = AFTLM(engine="api", base_url=server.url, model="m")
        with pytest.raises(EngineError, match="engine=api cannot answer loglikelihood requests"):
            model.loglikelihood([])


class TestPaidReplies:
    """A reply of a server is kept as soon as it arrives, and none is lost because another does not fit the disk."""

    @staticmethod
    def generations(path) -> int:
        store = SQLiteStore(path, create=False)
        count = store.info().generations
        store.close()
        return count

    def test_each_reply_is_committed_before_the_next_step(self, server, tmp_path):
        store, engine = SQLiteStore(tmp_path / "drafts.sqlite"), load(server)
        steps = generate_or_reuse(ask(engine, 4), engine, store)
        kept = [self.generations(store.path) for _ in steps]
        assert kept == [1, 2, 3, 4]
        store.close()

    def test_a_full_disk_waits_for_calls_under_way_and_keeps_those_that_fit(self, server, tmp_path):
        started = threading.Barrier(8)

        def one_long_reply(number, body):
            if number < 8:
                started.wait(20)
            if body["seed"] == 2**62 + 3:
                return 200, completion_with(body, "long" * 500_000), {}
            # The others arrive after the store has failed.
            time.sleep(0.3)
            return None

        server.faults = one_long_reply
        store, engine = SQLiteStore(tmp_path / "drafts.sqlite"), load(server, concurrency=8)
        with files_of_at_most(200_000), pytest.raises(StoreError, match="cannot be written"):
            list(generate_or_reuse(ask(engine, 40), engine, store))
        # A call may begin before the store has failed.
        assert 8 <= len(server.calls) < 20
        assert self.generations(store.path) == len(server.calls) - 1
        store.close()


class TestLoading:
    def test_length_and_names(self, server, caplog):
        engine = load(server, revision="v3")
        assert engine.max_length == 4096
        assert engine.fingerprint == "api|m|v3"
        assert load(server, max_length=100).max_length == 100
        args = {"base_url": server.url + "/chat/completions/", "pretrained": "other"}
        assert load_engine("api", args, HostArgs()).max_length == 8192
        assert "max_length=8192 is assumed" in caplog.text

    @pytest.mark.parametrize(
        ("args", "kind", "message"),
        [
            ({"model": "nobody"}, EngineError, "has no model=nobody: it lists m, other"),
            ({"base_url": "localhost:8000"}, ConfigError, "is not an address"),
            ({"base_url": "http://me:pw@x/v1"}, ConfigError, "holds a user, a password, a query, a fragment or a key"),
            (
                {"base_url": "http://127.0.0.1:9/v1", "max_retries": 1},
                EngineError,
                "cannot be reached .*refused.*2 times",
            ),
            ({"max_tokens": 3}, ConfigError, "max_tokens=3 is not an argument"),
            ({"tokeniser": "x"}, ConfigError, "did you mean tokenizer"),
            ({"concurency": 3}, ConfigError, "did you mean concurrency"),
            ({"concurrency": 0}, ConfigError, "concurrency=0 is not allowed"),
            ({"timeout_s": 0}, ConfigError, "timeout_s=0 is not allowed"),
            ({"pretrained": "m2"}, ConfigError, "model=m and pretrained=m2 differ"),
            ({"extra_body": {"seed": 3}}, ConfigError, "must not hold seed"),
            ({"tokenizer": "/no/such/folder"}, ConfigError, "tokenizer=/no/such/folder does not exist"),
        ],
    )
    def test_wrong_arguments_are_one_sentence(self, server, args, kind, message):
        with pytest.raises(kind, match=message):
            load(server, **args)

    def test_a_wrong_path_names_v1_and_the_way_round(self, server):
        with pytest.raises(EngineError, match=r"most addresses end in /v1; check=false"):
            load(server, base_url=server.url.removesuffix("/v1"))
        assert load(server, base_url=server.url.removesuffix("/v1"), check=False).max_length == 8192

    def test_missing_ones(self, server):
        with pytest.raises(ConfigError, match="model is missing"):
            load_engine("api", {"base_url": server.url}, HostArgs())
        with pytest.raises(ConfigError, match="base_url is missing"):
            load_engine("api", {"model": "m"}, HostArgs())


class TestKey:
    def test_it_goes_to_the_server_and_nowhere_else(self, server, monkeypatch, caplog):
        monkeypatch.setenv("OPENAI_API_KEY", SECRET)
        engine = load(server)
        complete(engine, ask(engine, 1))
        assert [headers["Authorization"] for headers in server.headers] == [f"Bearer {SECRET}"] * 2
        server.faults = refuse(401, f"Incorrect API key provided: {SECRET}")
        with pytest.raises(EngineError, match=r"refuses the key in OPENAI_API_KEY \(HTTP 401: .*\*\*\*") as caught:
            complete(engine, ask(engine, 1))
        shown = f"{caught.value} {caplog.text} {engine.info} {engine.fingerprint} {vars(engine)}"
        assert SECRET not in shown

    def test_none_is_sent_where_there_is_none_not_even_from_netrc(self, server, monkeypatch, tmp_path):
        (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password hidden\n")
        monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
        engine = load(server)
        complete(engine, ask(engine, 1))
        assert all("Authorization" not in headers for headers in server.headers)

    @pytest.mark.parametrize("key", ["sk two words", "\u201csk-1\u201d"])
    def test_one_that_cannot_be_a_header_is_refused_and_not_shown(self, server, monkeypatch, key):
        monkeypatch.setenv("OPENAI_API_KEY", key)
        with pytest.raises(ConfigError, match="holds characters that no key has") as caught:
            load(server)
        assert "sk" not in str(caught.value).replace("ask", "")

    @pytest.mark.parametrize("name", ["api_key", "openai_api_key", "hf_token", "password"])
    def test_it_is_no_model_argument(self, server, name):
        with pytest.raises(ConfigError, match="OPENAI_API_KEY instead") as caught:
            load(server, **{name: SECRET})
        assert SECRET not in str(caught.value)


class TestMeasuring:
    def test_estimates(self):
        renderer = EstimateRenderer()
        assert renderer.count("four" * 10) == 10
        assert renderer.trim("four" * 10, 3) == "four" * 3
        assert renderer.trim("é" * 10, 1) == "éé"
        assert renderer.count("漢字漢字") == 3
        chat = Chat((Message("user", "x" * 400),))
        prompt = renderer.encode(chat)
        assert prompt.token_ids is None
        assert 100 < prompt.prompt_tokens < 120
        assert prompt.digest == chat.identity
        assert renderer.clean("a<|im_end|>b<think>c</think>") == "ab"

    def test_a_tokenizer_counts_and_changes_no_key(self, server, tiny):
        chat = Chat((Message("system", "Be brief."), Message("user", "Why?")))
        plain, counted = load(server).renderer.encode(chat), load(server, tokenizer=tiny).renderer.encode(chat)
        assert counted.digest == plain.digest
        assert counted.prompt_tokens != plain.prompt_tokens

    def test_system_messages_are_folded_where_the_template_has_no_such_role(self, server, tmp_path):
        from helpers.tiny_models import NO_SYSTEM, tiny_tokenizer

        tiny_tokenizer(NO_SYSTEM).save_pretrained(tmp_path)
        chat = Chat((Message("system", "Be brief."), Message("user", "Why?")))
        folded = (Message("user", "Be brief.\n\nWhy?"),)
        assert load(server, tokenizer=str(tmp_path)).renderer.encode(chat).chat.messages == folded
        assert load(server, system_role=False).renderer.encode(chat).chat.messages == folded
        assert load(server).renderer.encode(chat).chat.messages == chat.messages
