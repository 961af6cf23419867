"""A judge on 127.0.0.1 whose replies and failures each test sets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

import lm_eval_aft.judging.judge as judge_module
from helpers.fake_server import FakeServer, Reply
from lm_eval_aft.engines.api import client as api_client

KEY = "sk-planted-7d1f9c"


def chat_completion(text: str | None, finish: str | None = "stop", top: dict[str, float] | None = None) -> dict:
    """A whole reply of a chat server."""
    rows = [{"token": token, "logprob": value} for token, value in (top or {}).items()]
    logprobs = {"content": [{"token": rows[0]["token"], "top_logprobs": rows}]} if rows else None
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": finish, "logprobs": logprobs}
    return {"choices": [choice], "usage": {"prompt_tokens": 11, "completion_tokens": 3}}


class FakeJudge(FakeServer):
    """A judge whose reply to the body of a call is ``say``, unless ``trouble`` returns a reply."""

    def __init__(self) -> None:
        super().__init__()
        self.say: Callable[[dict], str] = lambda body: "Fine. [[7]]"
        self.trouble: Callable[[int, dict], Reply | None] = lambda number, body: None
        self.faults = lambda number, body: self.trouble(number, body) or (200, chat_completion(self.say(body)), {})

    def prompts(self) -> list[str]:
        """The last message of each call, in the order of the calls."""
        return [call["messages"][-1]["content"] for call in self.calls]


@contextmanager
def quick_judge(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeJudge]:
    """A judge with our key in the environment, and retries after milliseconds."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr(api_client, "BACKOFF_S", 0.005)
    monkeypatch.setattr(api_client, "QUOTA_BACKOFF_S", 0.005)
    monkeypatch.setattr(judge_module, "FIRST_WAIT_S", 0.005)
    fake = FakeJudge()
    yield fake
    fake.close()
