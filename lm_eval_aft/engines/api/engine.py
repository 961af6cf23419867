"""The server engine: any OpenAI-compatible chat server, from one on a laptop to a fleet behind one address.

The engine sends messages, one call a generation, and yields texts and token counts as they arrive.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from threading import Event
from typing import Any

from lm_eval_aft.core.engine import HostArgs, Processes, Scorer, SingleProcess
from lm_eval_aft.core.errors import ConfigError, EngineError
from lm_eval_aft.core.log import log
from lm_eval_aft.core.records import Completion, Request
from lm_eval_aft.core.usage import ModelShape
from lm_eval_aft.engines.api.arguments import SEED_FIELD, APIArgs
from lm_eval_aft.engines.api.client import Refused, Unreachable
from lm_eval_aft.engines.api.pool import run_calls
from lm_eval_aft.engines.api.responses import completions, refusal

# OpenAI's maximum of n.
MAX_CHOICES = 128
SEED_ADVICE = (
    "The server may ignore the seed of a call: name its seed parameter with seed_field=NAME, or give seed=none to "
    "request the drafts of a question in one call."
)

NO_LOGPROBS = (
    "the server's replies hold no logprobs, which strategy=weighted and confidence= need: use a server and a model "
    "that give them, or leave these arguments out; the texts that came are kept in the draft store if there is one."
)


@dataclass(frozen=True, slots=True)
class _Call:
    """One call to the server.

    Attributes:
        positions: The requests that it answers.
        body: The JSON body.
    """

    positions: tuple[int, ...]
    body: dict[str, Any]


class APIEngine:
    """Requests every text from a chat server."""

    counts_shared_prefill = False
    seed_advice = SEED_ADVICE
    no_confidence = ""
    commits_each = True
    shape: ModelShape | None = None
    scorer: Scorer | None = None
    processes: Processes = SingleProcess()
    device: Any = None

    def __init__(self, args: APIArgs) -> None:
        """Take checked arguments. Nothing is sent yet."""
        self._args, self._servers = args, args.servers
        # Set it to begin no further call.
        self._stop = Event()
        self.renderer, self.max_length = args.renderer, args.max_length
        extra = [json.dumps(args.extra_body, sort_keys=True)] if args.extra_body else []
        # Without these fields the server's own sampling defaults apply, which give other texts.
        extra += [json.dumps(dict(args.neutral), sort_keys=True)] if args.neutral else []
        extra += [f"seed_field={args.seed_field}"] if args.seed_field != SEED_FIELD else []
        self.fingerprint = "|".join(["api", args.model, args.revision, *extra])

    @property
    def info(self) -> Mapping[str, Any]:
        """See ``Engine.info``."""
        return {**self._servers.info, "revision": self._args.revision}

    @classmethod
    def load(cls, engine_args: Mapping[str, Any], host: HostArgs) -> APIEngine:
        """Check the arguments, and that the server has the model.

        Raises:
            ConfigError: If an argument is unknown, missing or wrong.
            EngineError: If the server cannot be reached, refuses the key, or does not have the model.
        """
        return cls(APIArgs.of(engine_args))

    def use_chat_template(self, name: str | None) -> None:
        """See ``Engine.use_chat_template``. The server renders, and does not take a name.

        Raises:
            ConfigError: If there is a name.
        """
        if name is None:
            return
        raise ConfigError(
            f"--apply_chat_template {name} has no effect with engine=api, since the server renders the "
            "chat template: leave the name out, and start the server with that template."
        )

    def model_info(self) -> dict[str, Any]:
        """See ``Engine.model_info``."""
        return {}

    def generate(self, requests: Sequence[Request]) -> Iterator[tuple[int, Completion]]:
        """See ``Engine.generate``. If a call fails, those under way are still waited for and yielded."""
        stop = self._stop = Event()
        outcomes = run_calls(
            self._calls(requests),
            self._post,
            stop,
            concurrency=self._servers.concurrency,
            disconnect=self._servers.disconnect,
        )
        left, failure, moved = len(requests), None, self._servers.moved
        for call, outcome in outcomes:
            try:
                texts = self._read(requests, call, outcome)
            except Exception as error:
                stop.set()
                failure = failure or error
                continue
            left -= len(texts)
            yield from zip(call.positions, texts, strict=True)
            # The texts are paid for and complete, so they are kept before the run ends.
            if requests[call.positions[0]].confidence and any(t.text and t.confidence is None for t in texts):
                stop.set()
                failure = failure or EngineError(NO_LOGPROBS)
        if self._servers.moved > moved:
            log.warning("%s.", self._servers.sentence())
        if failure is not None:
            raise self._explain(failure, left) from failure

    def finish(self) -> None:
        """See ``Engine.finish``."""
        self._stop.set()

    def _post(self, call: _Call, stop: Event) -> dict[str, Any]:
        return self._servers.post("/chat/completions", call.body, stop)

    def _read(
        self, requests: Sequence[Request], call: _Call, outcome: dict[str, Any] | Exception
    ) -> tuple[Completion, ...]:
        """The completions in a reply. This runs in one thread only, because fast tokenizers are not thread-safe.

        Raises:
            Exception: The outcome itself, if the call failed.
            EngineError: If the reply is not usable.
        """
        if isinstance(outcome, Exception):
            raise outcome
        return completions(outcome, requests[call.positions[0]].prompt, len(call.positions), self.renderer)

    def _calls(self, requests: Sequence[Request]) -> Iterator[_Call]:
        """One call a request. If seeds do not matter, equal requests share a call with ``n``."""
        equal: dict[Any, list[int]] = {}
        for position, request in enumerate(requests):
            alone = position if request.sampling.seeded else None
            equal.setdefault((request.prompt.digest, request.sampling, alone), []).append(position)
        for positions in equal.values():
            for start in range(0, len(positions), MAX_CHOICES):
                part = tuple(positions[start : start + MAX_CHOICES])
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
            # An extension of vLLM, as are the two fields of a prefill below.
            body["top_k"] = sampling.top_k
        if sampling.until:
            body["stop"] = list(sampling.until)
        if sampling.seeded:
            body[self._args.seed_field] = request.seed
        if choices > 1:
            body["n"] = choices
        if request.confidence:
            body["logprobs"] = True
        if chat.prefill:
            body |= {"continue_final_message": True, "add_generation_prompt": False}
        # A task's own setting is for its last layer. extra_body is for all calls.
        return body | self._args.extra_body | sampling.extras

    def _explain(self, error: Exception, left: int) -> Exception:
        """The sentence that the user reads."""
        if isinstance(error, Unreachable):
            urls = self._servers.urls
            which = f"the server at {urls[0]}" if len(urls) == 1 else f"all {len(urls)} servers"
            return EngineError(
                f"{which} stopped answering ({error}) with {left} texts of this layer "
                "unfinished: those that had ended are kept in the draft store if there is one (cache= or record=); "
                "start the same command again to resume."
            )
        if isinstance(error, Refused):
            return refusal(error, self._args.has_key, self._args.model, self._args.served)
        return error
