"""The server engine: any OpenAI-compatible chat server, from a laptop's to a fleet behind one address.

Messages go out, one call a generation, so many at a time; texts and token counts come back as they end. Knows nothing
of drafts. Loaded by ``engine=api``: ``api_args`` checks its arguments, ``api_client`` does HTTP and tries again,
``api_renderer`` measures prompts, ``api_reply`` reads answers.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue
from threading import Event, Thread
from typing import Any

from lm_eval_aft.core.errors import EngineError
from lm_eval_aft.core.records import Completion, Request
from lm_eval_aft.core.usage import ModelShape
from lm_eval_aft.engines.api.arguments import APIArgs
from lm_eval_aft.engines.api.client import Cancelled, Refused, Unreachable
from lm_eval_aft.engines.api.responses import completions, refusal
from lm_eval_aft.engines.base import HostArgs

MOST_CHOICES = 128  # OpenAI's bound on n


@dataclass(frozen=True, slots=True)
class _Call:
    """One request to the server: the positions it answers, and its body."""

    positions: tuple[int, ...]
    body: dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Answer:
    """What became of a call: the server's reply, or what went wrong."""

    call: _Call
    reply: dict[str, Any] = field(default_factory=dict)
    error: Exception | None = None


class APIEngine:
    """Asks a chat server for every text."""

    shape: ModelShape | None = None
    counts_shared_prefill = False
    scorer: Any = None

    def __init__(self, args: APIArgs) -> None:
        """Take checked arguments; nothing is asked yet."""
        self._args, self._client = args, args.client
        self.renderer, self.max_length = args.renderer, args.max_length
        extra = [json.dumps(args.extra_body, sort_keys=True)] if args.extra_body else []
        extra += [json.dumps(dict(args.neutral), sort_keys=True)] if args.neutral else []  # else the server's defaults
        self.fingerprint = "|".join(["api", args.model, args.revision, *extra])
        self.info: Mapping[str, Any] = {"base_url": args.client.base_url, "revision": args.revision}

    @classmethod
    def load(cls, engine_args: dict[str, Any], host: HostArgs) -> APIEngine:
        """Check the arguments, and that the server has the model.

        Raises:
            ConfigError: If an argument is unknown, missing or wrong.
            EngineError: If the server cannot be reached, refuses the key, or does not have the model.
        """
        return cls(APIArgs.of(engine_args))

    def generate(self, requests: Sequence[Request]) -> Iterator[tuple[int, Completion]]:
        """See ``Engine.generate``; when a call fails, those under way are still waited for and yielded."""
        calls = deque(self._calls(requests))
        answers: SimpleQueue[_Answer | None] = SimpleQueue()
        stop = Event()
        workers = min(self._args.concurrency, len(calls))
        for _ in range(workers):  # daemons: an interrupted run need not wait for the server
            Thread(target=self._work, args=(calls, answers, stop), daemon=True).start()
        left, failure = len(requests), None
        try:
            while workers:
                answer = answers.get()
                if answer is None:
                    workers -= 1
                    continue
                try:
                    texts = self._read(requests, answer)
                except Exception as error:  # raised below, when every call under way has ended
                    stop.set()
                    failure = failure or error
                    continue
                left -= len(texts)
                yield from zip(answer.call.positions, texts, strict=True)
        finally:
            stop.set()
        if failure is not None:
            raise self._explain(failure, left) from failure

    def _work(self, calls: deque[_Call], answers: SimpleQueue[_Answer | None], stop: Event) -> None:
        """Make calls until none is left or one goes wrong."""
        while not stop.is_set() and (call := _next(calls)):
            try:
                answers.put(_Answer(call, self._client.post("/chat/completions", call.body, stop)))
            except Cancelled:
                break
            except Exception as error:  # ``generate`` raises it
                answers.put(_Answer(call, error=error))
                break
        self._client.disconnect()
        answers.put(None)

    def _read(self, requests: Sequence[Request], answer: _Answer) -> tuple[Completion, ...]:
        """The completions in an answer; not in the workers, since fast tokenizers do not bear several threads."""
        if answer.error is not None:
            raise answer.error
        positions = answer.call.positions
        return completions(answer.reply, requests[positions[0]].prompt, len(positions), self.renderer)

    def _calls(self, requests: Sequence[Request]) -> Iterator[_Call]:
        """One call a request; where seeds do not matter, equal requests share one with ``n``."""
        equal: dict[Any, list[int]] = {}
        for position, request in enumerate(requests):
            alone = position if request.sampling.seeded else None
            equal.setdefault((request.prompt.digest, request.sampling, alone), []).append(position)
        for positions in equal.values():
            for start in range(0, len(positions), MOST_CHOICES):
                part = tuple(positions[start : start + MOST_CHOICES])
                yield _Call(part, self._body(requests[part[0]], len(part)))

    def _body(self, request: Request, choices: int) -> dict[str, Any]:
        sampling, chat = request.sampling, request.prompt.chat
        messages = [message.to_dict() for message in chat.with_prefill]
        body: dict[str, Any] = {
            "model": self._args.model,
            "messages": messages,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_tokens,
            **self._args.neutral,
        }
        if sampling.top_k:
            body["top_k"] = sampling.top_k  # vLLM's extension, as are the two fields of a prefill below
        if sampling.until:
            body["stop"] = list(sampling.until)
        if sampling.seeded:
            body["seed"] = request.seed
        if choices > 1:
            body["n"] = choices
        if chat.prefill:
            body |= {"continue_final_message": True, "add_generation_prompt": False}
        return body | self._args.extra_body

    def _explain(self, error: Exception, left: int) -> Exception:
        """The sentence that the user reads."""
        if isinstance(error, Unreachable):
            return EngineError(
                f"the server at {self._client.base_url} stopped answering ({error}) with {left} texts of this layer "
                "unfinished: those that had ended are kept in the draft store if there is one (cache= or record=); "
                "start the same command again to go on."
            )
        if isinstance(error, Refused):
            return refusal(error, self._client, self._args.model, self._args.served)
        return error


def _next(calls: deque[_Call]) -> _Call | None:
    """The next call, or None; several threads take from one queue."""
    try:
        return calls.popleft()
    except IndexError:
        return None
