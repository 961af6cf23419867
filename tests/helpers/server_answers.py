"""Server answers that hold a given text, such as a key, and calls that receive them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from typing import Any
from urllib.parse import quote

import pytest

from helpers.fake_judge import FakeJudge
from helpers.fake_server import completion
from lm_eval_aft.core.engine import HostArgs
from lm_eval_aft.core.errors import AFTError
from lm_eval_aft.core.records import Chat, Message, Request, Sampling
from lm_eval_aft.engines.registry import load_engine
from lm_eval_aft.judging.judge import Judge, JudgeCall


def error_reply(text: str, status: int = 400) -> tuple[int, dict, dict[str, str]]:
    return status, {"error": {"message": text, "code": text}}, {}


def changed(change: Callable[[dict[str, Any]], object]) -> Callable[[dict], tuple[int, dict, dict[str, str]]]:
    """A completion that a function has changed."""

    def reply(body: dict) -> tuple[int, dict, dict[str, str]]:
        whole = completion(body)
        change(whole)
        return 200, whole, {}

    return reply


# What a server answers with a text that it should not repeat.
ANSWERS: dict[str, Callable[[str], Callable[[dict], Any]]] = {
    "error": lambda text: lambda body: error_reply(f"Incorrect API key provided: {text}."),
    "error of a string": lambda text: lambda body: (400, {"error": text}, {}),
    "detail": lambda text: lambda body: (422, {"detail": [{"loc": ["body"], "input": text}]}, {}),
    "401": lambda text: lambda body: error_reply(text, 401),
    "404": lambda text: lambda body: error_reply(text, 404),
    "too long": lambda text: lambda body: error_reply(f"maximum context length of {text} exceeded"),
    "system": lambda text: lambda body: error_reply(f"system role {text}"),
    "429": lambda text: lambda body: (429, {"error": {"message": text}}, {"Retry-After": "0"}),
    "503": lambda text: lambda body: (503, {"error": {"message": text}}, {"Retry-After": "9999"}),
    "redirect": lambda text: lambda body: (307, {}, {"Location": f"http://elsewhere/?key={quote(text, safe='')}"}),
    "redirect as it is": lambda text: lambda body: (302, {}, {"Location": f"http://elsewhere/{text}"}),
    "finish reason": lambda text: changed(lambda whole: whole["choices"][0].update(finish_reason=text)),
    "finish reason in a list": lambda text: changed(lambda whole: whole["choices"][0].update(finish_reason=[text])),
    "usage": lambda text: changed(lambda whole: whole["usage"].update(prompt_tokens=text)),
    "usage of completion": lambda text: changed(lambda whole: whole["usage"].update(completion_tokens={text: 1})),
    "content of another type": lambda text: changed(
        lambda whole: whole["choices"][0]["message"].update(content={"t": text})
    ),
    "content as a number in a list": lambda text: changed(lambda whole: whole["choices"][0].update(message=[text])),
    "error in a whole reply": lambda text: lambda body: (200, {**completion(body), "error": {"message": text}}, {}),
    "no JSON": lambda text: lambda body: (200, f"<html>{text}", {}),
    "no JSON, refused": lambda text: lambda body: (400, f"<html>{text}", {}),
}


def messages_of(call: Callable[[], object], caplog: pytest.LogCaptureFixture) -> str:
    """Everything that a call shows: its errors with all their causes, and the log."""
    shown = []
    try:
        call()
    except AFTError as error:
        cause: BaseException | None = error
        while cause is not None:
            shown.append(f"{cause} {cause.args}" if not isinstance(cause, AFTError) else str(cause))
            # Some errors are raised from themselves.
            cause = None if cause.__cause__ is cause else cause.__cause__
    return "\n".join([*shown, *(record.getMessage() for record in caplog.records)])


def generate(server: FakeJudge) -> list[str]:
    engine = load_engine(
        "api", {"base_url": server.url, "model": "m", "max_retries": 0, "timeout_s": 10, "check": False}, HostArgs()
    )
    prompt = engine.renderer.encode(Chat((Message("user", "Why?"),)))
    return [made.text for _, made in engine.generate([Request(prompt, Sampling(0.7, 0.95, 0, 24), 7)])]


def judge(server: FakeJudge) -> list[str]:
    with closing(Judge("m", server.url, timeout_s=10, retries=0, quiet=True)) as client:
        return [
            f"{reply.text} {reply.refused}" for _, reply in client.ask([JudgeCall((Message("user", "Rate"),), 0.0, 8)])
        ]
