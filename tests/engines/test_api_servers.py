"""engine=api with several servers: the least loaded one gets a call, and one that dies is left out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from helpers.fake_server import FakeServer
from lm_eval_aft.core.engine import HostArgs
from lm_eval_aft.core.errors import ConfigError, EngineError, PromptTooLong
from lm_eval_aft.core.records import Chat, Completion, Message, Request, Sampling
from lm_eval_aft.engines.api import client as api_client
from lm_eval_aft.engines.api.engine import APIEngine
from lm_eval_aft.engines.registry import load_engine
from lm_eval_aft.inference.generate import generate_or_reuse
from lm_eval_aft.storage.draft_store import SQLiteStore

CLOSED = "http://127.0.0.1:9/v1"


@pytest.fixture
def three(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[FakeServer]]:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr(api_client, "BACKOFF_S", 0.01)
    servers = [FakeServer() for _ in range(3)]
    yield servers
    for server in servers:
        server.close()


def load(base_url: Any, **args: Any) -> APIEngine:
    return load_engine(
        "api", {"base_url": base_url, "model": "m", "timeout_s": 20, "max_retries": 1, **args}, HostArgs()
    )


def urls(servers: list[FakeServer]) -> list[str]:
    return [server.url for server in servers]


def requests(engine: APIEngine, count: int) -> list[Request]:
    prompt = engine.renderer.encode(Chat((Message("user", "Why?"),)))
    return [Request(prompt, Sampling(0.7, 0.95, 0, 24), seed) for seed in range(count)]


def complete(engine: APIEngine, count: int) -> list[Completion]:
    pairs = sorted(engine.generate(requests(engine, count)), key=lambda pair: pair[0])
    assert [position for position, _ in pairs] == list(range(count))
    return [completion for _, completion in pairs]


def dies_after(server: FakeServer, calls: int) -> None:
    """Let a server close every connection after some calls."""
    server.faults = lambda number, body: (0, {}, {}) if number >= calls else None


def test_calls_are_spread_and_each_server_has_its_own_limit(three):
    for server in three:
        server.delay_s = 0.02
    engine = load(urls(three), concurrency=2)
    texts = complete(engine, 36)
    assert [text.text for text in texts] == [text.text for text in complete(load(three[0].url), 36)]
    assert [server.most_running for server in three[1:]] == [2, 2]
    assert all(9 <= len(server.calls) <= 15 for server in three[1:])
    info = engine.info
    assert info["base_url"] == urls(three)
    assert sum(info["calls"].values()) == 36
    assert (info["servers_left_out"], info["calls_moved"]) == ([], 0)


def test_a_slow_server_gets_fewer_calls(three):
    three[0].delay_s = 0.5
    complete(load(urls(three), concurrency=1), 60)
    assert len(three[0].calls) < 10
    assert all(len(server.calls) > 20 for server in three[1:])


def test_a_server_that_dies_is_left_out_and_nothing_is_lost_or_generated_twice(three, caplog):
    expected = [text.text for text in complete(load(three[0].url), 40)]
    for server in three:
        server.calls.clear()
        server.delay_s = 0.01
    dies_after(three[1], 5)
    engine = load(urls(three), concurrency=4)
    assert [text.text for text in complete(engine, 40)] == expected
    answered = [body["seed"] for body in (*three[0].calls, *three[1].calls[:5], *three[2].calls)]
    assert sorted(answered) == list(range(40))
    info = engine.info
    assert info["servers_left_out"] == [three[1].url]
    assert 1 <= info["calls_moved"] <= 4
    assert f"The server at {three[1].url} stopped answering" in caplog.text
    moved = info["calls_moved"]
    assert f"1 of 3 servers are left out ({three[1].url}), and {moved} calls were moved." in caplog.text
    # It stays out in the next layer.
    dead_calls = len(three[1].calls)
    complete(engine, 10)
    assert len(three[1].calls) == dead_calls


def test_if_all_die_one_sentence_says_so_and_a_resume_generates_the_rest(three, tmp_path):
    for server in three:
        dies_after(server, 4)
    engine, store = load(urls(three), concurrency=2), SQLiteStore(tmp_path / "s.sqlite")
    with pytest.raises(EngineError, match=r"all 3 servers stopped answering \(http://127.*; http://127.*; http://127"):
        list(generate_or_reuse(requests(engine, 30), engine, store))
    assert store.info().generations == 12
    for server in three:
        server.faults = lambda number, body: None
        server.calls.clear()
    # The servers are back, and the same command loads a new engine.
    steps = list(generate_or_reuse(requests(engine, 30), load(urls(three)), store))
    assert len(steps) == 30
    assert sum(len(server.calls) for server in three) == 18


def test_a_server_that_is_away_at_the_start_is_left_out(three, caplog):
    engine = load([CLOSED, three[0].url], max_retries=0)
    assert len(complete(engine, 6)) == len(three[0].calls) == 6
    assert engine.info["servers_left_out"] == [CLOSED]
    assert f"The server at {CLOSED} cannot be reached (" in caplog.text
    with pytest.raises(EngineError, match=rf"^base_url={CLOSED} cannot be reached"):
        load([CLOSED, "http://127.0.0.1:10/v1"], max_retries=0)


def test_every_server_must_have_the_model_and_sample_alike(three):
    three[1].models = (200, {"data": [{"id": "other"}]}, {})
    with pytest.raises(EngineError, match=f"the server at {three[1].url} has no model=m: it lists other"):
        load(urls(three))
    three[1].models = (200, {"data": [{"id": "m", "owned_by": "vllm", "max_model_len": 128}]}, {})
    with pytest.raises(ConfigError, match="base_url names vLLM servers and others, which sample differently"):
        load(urls(three))


def test_the_shortest_context_counts(three):
    three[2].models = (200, {"data": [{"id": "m", "max_model_len": 128}]}, {})
    assert load(urls(three)).max_length == 128


def test_servers_are_no_part_of_the_store_key(three):
    assert load(urls(three)).fingerprint == load(three[0].url).fingerprint


def test_a_refusal_names_its_server(three):
    three[1].faults = lambda number, body: (404, {"error": {"message": "gone"}}, {})
    with pytest.raises(EngineError, match=f"the server at {three[1].url} has no model=m or no chat completions"):
        complete(load(urls(three), concurrency=1), 9)
    three[1].faults = lambda number, body: (400, {"error": {"message": "maximum context length is 4"}}, {})
    with pytest.raises(PromptTooLong):
        complete(load(urls(three), concurrency=1), 9)


def test_how_several_addresses_are_written(three):
    for given in (urls(three), tuple(urls(three)), "|".join(urls(three)), json.dumps(urls(three))):
        assert load(given).info["base_url"] == urls(three)
    for given in (three[0].url, [three[0].url], f" {three[0].url}/ "):
        assert load(given).info == {"base_url": three[0].url, "revision": ""}


@pytest.mark.parametrize("given", [[], [1], "", "|", "http://a/v1|", ["http://a/v1", ""], {"a": 1}, 5, "[]", '["x"]'])
def test_what_is_no_list_of_addresses_is_refused(given):
    with pytest.raises(ConfigError, match=r"^base_url.* is not a"):
        load(given)


def test_an_address_given_twice_is_refused():
    for twice in ("http://a/v1|http://a/v1/", ["http://a/v1", "http://b/v1", "http://a/v1/chat/completions"]):
        with pytest.raises(ConfigError, match="base_url names http://a/v1 twice: give each server once"):
            load(twice)


def test_no_address_may_hold_a_key():
    with pytest.raises(ConfigError, match="base_url holds a user, a password, a query, a fragment or a key"):
        load("http://a/v1|http://user:secret@b/v1")
