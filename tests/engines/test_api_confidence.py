"""Log-probabilities of a server's texts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from helpers.fake_server import FakeServer, completion
from lm_eval_aft.core.engine import HostArgs
from lm_eval_aft.core.errors import EngineError
from lm_eval_aft.core.records import Chat, Completion, Confidence, Message, Request, Sampling
from lm_eval_aft.engines.api.engine import APIEngine
from lm_eval_aft.engines.registry import load_engine
from lm_eval_aft.inference.generate import generate_or_reuse
from lm_eval_aft.storage.draft_store import SQLiteStore

SAMPLED = Sampling(0.7, 0.95, 0, 24)
LOGPROBS = [-0.5, -1.5, -0.25]


def load(server: FakeServer, **args: Any) -> APIEngine:
    settings = {"base_url": server.url, "model": "m", "timeout_s": 20, "max_retries": 0, "concurrency": 1, **args}
    return load_engine("api", settings, HostArgs())


def ask(engine: APIEngine, count: int = 4, sampling: Sampling = SAMPLED, confidence: bool = True) -> list[Request]:
    prompt = engine.renderer.encode(Chat((Message("user", "Why?"),)))
    return [Request(prompt, sampling, seed, confidence) for seed in range(count)]


def complete(engine: APIEngine, requests: list[Request]) -> list[Completion]:
    return [made for _, made in sorted(engine.generate(requests), key=lambda pair: pair[0])]


def chat_form(values: list[Any]) -> dict[str, Any]:
    return {"content": [{"token": "x", "logprob": value, "top_logprobs": []} for value in values]}


def completions_form(values: list[Any]) -> dict[str, Any]:
    return {"tokens": ["x"] * len(values), "token_logprobs": values, "top_logprobs": None}


def answers(logprobs: Callable[[dict, int], Any]) -> Callable[[int, dict], Any]:
    """A server whose choices hold what a function says."""

    def reply(number: int, body: dict) -> tuple[int, dict, dict]:
        made = completion(body)
        for index, choice in enumerate(made["choices"]):
            choice["logprobs"] = logprobs(body, index)
        return 200, made, {}

    return reply


@pytest.mark.parametrize("form", [chat_form, completions_form])
def test_both_forms_are_read(server: FakeServer, form: Callable):
    server.faults = answers(lambda body, index: form(LOGPROBS) if body.get("logprobs") is True else None)
    engine = load(server)
    assert [made.confidence for made in complete(engine, ask(engine))] == [Confidence.of(LOGPROBS)] * 4


def test_each_choice_of_a_call_has_its_own(server: FakeServer):
    server.faults = answers(lambda body, index: chat_form([-float(index)]))
    engine = load(server)
    made = complete(engine, ask(engine, 3, Sampling(0.7, 0.95, 0, 24, seeded=False)))
    assert len(server.calls) == 1
    assert [each.confidence for each in made] == [Confidence.of([-float(index)]) for index in range(3)]


def test_calls_ask_for_them_only_if_they_are_needed(server: FakeServer):
    engine = load(server)
    assert [made.confidence for made in complete(engine, ask(engine, confidence=False))] == [None] * 4
    assert all("logprobs" not in call for call in server.calls)


@pytest.mark.parametrize(
    "logprobs",
    [
        None,
        {},
        {"content": None},
        {"content": []},
        "yes",
        chat_form([-1.0, None]),
        chat_form([True]),
        chat_form(["-1"]),
        chat_form([float("nan")]),
        chat_form([10**400]),
        {"content": [-1.0]},
        completions_form([None, -1.0]),
        {"token_logprobs": "-1"},
    ],
)
def test_a_server_that_gives_none_is_refused_and_its_texts_are_kept(server: FakeServer, tmp_path, logprobs: Any):
    server.faults = answers(lambda body, index: logprobs)
    engine, store = load(server), SQLiteStore(tmp_path / "s.sqlite")
    with pytest.raises(EngineError, match=r"^the server's replies hold no logprobs, which strategy=weighted") as error:
        list(generate_or_reuse(ask(engine), engine, store))
    assert "\n" not in str(error.value)
    # What the call under way brought is kept, and no further call began.
    assert store.info().generations == len(server.calls) < 4
    store.close()


def test_an_empty_text_needs_none(server: FakeServer):
    def reply(number: int, body: dict) -> tuple[int, dict, dict]:
        made = completion(body)
        made["choices"][0]["message"]["content"] = ""
        return 200, made, {}

    server.faults = reply
    engine = load(server)
    assert [(made.text, made.confidence) for made in complete(engine, ask(engine, 2))] == [("", None)] * 2


def test_a_server_that_refuses_the_field_is_named(server: FakeServer):
    message = "logprobs is not supported with this model"
    server.faults = lambda number, body: (400, {"error": {"message": message}}, {})
    engine = load(server)
    with pytest.raises(EngineError, match="strategy=weighted and confidence= need logprobs"):
        complete(engine, ask(engine))


def test_stored_texts_without_confidence_are_refused(server: FakeServer, tmp_path):
    engine, store = load(server), SQLiteStore(tmp_path / "s.sqlite")
    list(generate_or_reuse(ask(engine, confidence=False), engine, store))
    with pytest.raises(EngineError, match="4 stored texts have no confidence, and this engine cannot score them"):
        list(generate_or_reuse(ask(engine), engine, store))
    assert len(server.calls) == 4
    store.close()
