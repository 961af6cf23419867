"""The one client for models that judge: any OpenAI-compatible chat server.

What is asked is looked up first; the rest is counted before a call leaves, asked so many at a time, tried again where
that can help, and kept the moment it comes. Only a whole reply is kept: after a failure the same command asks for what
is missing. The key comes from the environment variable OPENAI_API_KEY only. Knows nothing of benchmarks. Called by
``mt_bench`` and ``alpaca``. Over 200 lines because what crosses the border is explained here.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

from lm_eval_aft.core.errors import ConfigError, JudgeError
from lm_eval_aft.core.records import Message
from lm_eval_aft.core.secrets import KEY_VARIABLE, refuse_secrets
from lm_eval_aft.engines.api.client import Cancelled, ChatClient, Refused, Unreachable
from lm_eval_aft.engines.api.pool import run_calls
from lm_eval_aft.engines.api.responses import ENDED, LENGTH_WORDS
from lm_eval_aft.judging.cache import JudgeCache

CACHE_FILE = "judgements.sqlite"  # in the folder of the results
CONCURRENCY, TIMEOUT_S, RETRIES = 8, 300.0, 8  # defaults of every judge, also of one that --metadata names
BYTES_PER_TOKEN, TOKENS_PER_TURN = 4, 4  # English, about; only the estimate uses it
FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 30.0  # before a broken reply is asked for again
THIS_CALL_ONLY = (400, 413, 422)


@dataclass(frozen=True, slots=True)
class JudgeCall:
    """One question to the judge.

    Attributes:
        messages: The judge prompt.
        temperature: 0 is greedy.
        max_tokens: Upper bound of the reply.
        top_logprobs: How many likely first tokens to ask for; 0 asks for none.
        attempt: 0, or the number of times that the same question was asked before and is to be asked afresh.
    """

    messages: tuple[Message, ...]
    temperature: float
    max_tokens: int
    top_logprobs: int = 0
    attempt: int = 0


@dataclass(frozen=True, slots=True)
class JudgeReply:
    """What the judge said.

    Attributes:
        text: Its words; empty where it refused.
        top_logprobs: Log-probability of each likely first token; None where the server gave none.
        prompt_tokens: As the server counts them; 0 where it does not.
        generated_tokens: Likewise.
        refused: Why the server would not answer this very call (too long, filtered); such a reply is never kept.
    """

    text: str
    top_logprobs: Mapping[str, float] | None = None
    prompt_tokens: int = 0
    generated_tokens: int = 0
    refused: str = ""


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a list of calls will take, before the first is made.

    Attributes:
        calls: All of them, equal ones counted once.
        kept: Those that were answered before.
        prompt_tokens: Of the rest, about.
        most_generated_tokens: Of the rest, if every reply is as long as it may be.
    """

    calls: int
    kept: int
    prompt_tokens: int
    most_generated_tokens: int

    @property
    def to_send(self) -> int:
        """Calls that must be made."""
        return self.calls - self.kept

    def sentence(self, price_in: float | None = None, price_out: float | None = None) -> str:
        """The estimate in words; prices are per million tokens, and left out where either is unknown."""
        text = (
            f"{self.to_send} judge calls to make ({self.kept} of {self.calls} are kept from before): about "
            f"{self.prompt_tokens:,} prompt tokens and at most {self.most_generated_tokens:,} generated tokens"
        )
        if price_in is None or price_out is None:
            return text + "."
        most = (self.prompt_tokens * price_in + self.most_generated_tokens * price_out) / 1e6
        return f"{text}, at most about {most:,.2f} at the prices given."


class Client(Protocol):
    """What a judge asks: a chat server, or an engine in its place."""

    base_url: str

    @property
    def has_key(self) -> bool:
        """Whether a key is sent."""

    def post(self, path: str, body: Mapping[str, Any], stop: threading.Event) -> dict[str, Any]:
        """See ``ChatClient.post``."""

    def disconnect(self) -> None:
        """Close what the calling thread holds open."""


class Judge:
    """Asks one judge; replies are kept by judge, revision, messages, parameters, prompt version and attempt."""

    def __init__(
        self,
        model: str,
        base_url: str,
        *,
        cache: str | Path | None = None,
        revision: str = "",
        prompt_version: str = "",
        concurrency: int = CONCURRENCY,
        max_calls: int | None = None,
        timeout_s: float = TIMEOUT_S,
        retries: int = RETRIES,
        quiet: bool = False,
        client: Client | None = None,
        extra_body: Mapping[str, Any] | None = None,
    ) -> None:
        """Check the address and open the cache; nothing is sent yet.

        Args:
            model: The server's name of the judge.
            base_url: Up to and with the version, such as http://127.0.0.1:8000/v1.
            cache: File in which replies are kept; None keeps them for the life of this object.
            revision: Which weights the server runs, in the user's words.
            prompt_version: Name or digest of the judge prompts.
            concurrency: Calls under way at a time.
            max_calls: More than so many are never made; None is no bound.
            timeout_s: Seconds to wait for one reply.
            retries: How often to ask again where that can help.
            quiet: No progress bar.
            client: Asked in the place of a server; ``base_url`` is then not read.
            extra_body: Further fields of every call; None takes a field of ours away. Part of what a reply is kept by.

        Raises:
            ConfigError: If the address or the key cannot be one, or ``extra_body`` holds what is not its to say.
            JudgeError: If the cache cannot be opened.
        """
        self.model, self.revision, self.prompt_version = model, revision, prompt_version
        self.concurrency, self.max_calls, self.retries, self.quiet = concurrency, max_calls, retries, quiet
        self.client = client or ChatClient(base_url, timeout_s=timeout_s, max_retries=retries)
        self.extra_body = _checked_extra(extra_body or {})
        self.cache = JudgeCache(cache)
        self.calls_made = 0

    def estimate(self, calls: Sequence[JudgeCall]) -> Estimate:
        """Say what asking would take; nothing is sent."""
        distinct = {self.key(call): call for call in calls}
        kept = self.cache.get(distinct)
        rest = [call for key, call in distinct.items() if key not in kept]
        return Estimate(len(distinct), len(kept), sum(map(_prompt_tokens, rest)), sum(call.max_tokens for call in rest))

    def ask(self, calls: Sequence[JudgeCall]) -> Iterator[tuple[int, JudgeReply]]:
        """Yield the position and the reply of each call as it ends, those kept from before first.

        Raises:
            JudgeError: If more calls would be needed than ``max_calls`` allows (then none is made), or the judge
                cannot be asked; what had been answered by then is kept, and asking again goes on from there.
        """
        positions: dict[str, list[int]] = {}
        for position, call in enumerate(calls):
            positions.setdefault(self.key(call), []).append(position)
        kept = self.cache.get(positions)
        missing = {key: calls[positions[key][0]] for key in positions if key not in kept}
        self._afford(len(missing), len(kept))
        with tqdm(desc="judging", total=len(calls), disable=self.quiet, unit="call") as bar:
            for key, reply in self._replies(kept, missing):
                bar.update(len(positions[key]))
                for position in positions[key]:
                    yield position, reply

    def key(self, call: JudgeCall) -> str:
        """What decides a reply, as hexadecimal SHA-256."""
        parts: list[Any] = ["v1", self.model, self.revision, self.prompt_version, asdict(call)]
        parts += [self.extra_body] if self.extra_body else []
        return sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def close(self) -> None:
        """Close the cache."""
        self.cache.close()

    def _afford(self, needed: int, kept: int) -> None:
        if self.max_calls is not None and self.calls_made + needed > self.max_calls:
            made = f"{self.calls_made} were made and " if self.calls_made else ""
            raise JudgeError(
                f"--max-judge-calls={self.max_calls} does not suffice: {made}{needed} more are needed ({kept} are kept "
                "from before): raise it, or judge less."
            )

    def _replies(self, kept: Mapping[str, str], missing: Mapping[str, JudgeCall]) -> Iterator[tuple[str, JudgeReply]]:
        for key, text in kept.items():
            yield key, JudgeReply(**json.loads(text))
        done, failure = len(kept), None
        for key, outcome in self._run(missing):
            if isinstance(outcome, JudgeReply):
                done += not outcome.refused
                yield key, outcome
            else:
                failure = failure or outcome
        if failure is not None:
            raise self._explain(failure, done, len(kept) + len(missing)) from failure

    def _run(self, missing: Mapping[str, JudgeCall]) -> Iterator[tuple[str, JudgeReply | Exception]]:
        """Make the calls; after the first that fails no other is begun, but those under way are waited for."""
        outcomes = run_calls(
            missing.items(),
            self._reply_to,
            threading.Event(),
            concurrency=self.concurrency,
            disconnect=self.client.disconnect,
        )
        for (key, _), outcome in outcomes:
            self.calls_made += 1
            yield key, outcome

    def _reply_to(self, keyed_call: tuple[str, JudgeCall], stop: threading.Event) -> JudgeReply:
        """Make one call, and keep its reply at once unless the server refused it."""
        key, call = keyed_call
        reply = self._one(call, stop)
        if not reply.refused:
            self.cache.put(key, json.dumps(asdict(reply)))
        return reply

    def _one(self, call: JudgeCall, stop: threading.Event) -> JudgeReply:
        """One whole reply; a broken one is asked for again."""
        wait_s, broken = FIRST_WAIT_S, ""
        for attempt in range(self.retries + 1):
            if attempt and stop.wait(min(wait_s * 2 ** (attempt - 1), LONGEST_WAIT_S)):
                raise Cancelled
            try:
                return parse_reply(self.client.post("/chat/completions", self._body(call), stop))
            except BrokenReply as error:
                broken = str(error)
            except Refused as error:
                if error.status >= 300:
                    return _refused(error)
                broken = error.message
        raise Unreachable(f"{broken}, {self.retries + 1} times")

    def _body(self, call: JudgeCall) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [asdict(message) for message in call.messages],
            "temperature": call.temperature,
            "max_tokens": call.max_tokens,
        }
        body |= {"logprobs": True, "top_logprobs": call.top_logprobs} if call.top_logprobs else {}
        return {name: value for name, value in (body | self.extra_body).items() if value is not None}

    def _explain(self, error: Exception, done: int, total: int) -> Exception:
        """The sentence that the user reads; what is no fault of the server stays what it is."""
        left = f"{done} of {total} judgements are done, {total - done} are left"
        kept = f"; those done are kept in {self.cache.path}" if self.cache.path and done else ""
        then = f"{left}{kept}: start the same command again to go on."
        where = f"the judge at {self.client.base_url}"
        if isinstance(error, Unreachable):
            return JudgeError(f"{where} stopped answering ({error}); {then}")
        if isinstance(error, Refused) and error.status in (401, 403):
            state = f"refuses the key in {KEY_VARIABLE}" if self.client.has_key else f"wants a key: set {KEY_VARIABLE}"
            return JudgeError(f"{where} {state} (HTTP {error.status}: {error.message}); {then}")
        if isinstance(error, Refused):
            return JudgeError(f"{where} refuses model {self.model} (HTTP {error.status}: {error.message}); {then}")
        return error


class BrokenReply(Exception):
    """A reply that is no whole chat completion."""


def _checked_extra(extra_body: Mapping[str, Any]) -> dict[str, Any]:
    """Further fields of a call, as they are."""
    if clash := {"model", "messages", "stream", "n"} & set(extra_body):
        raise ConfigError(f"the judge's extra body must not hold {', '.join(sorted(clash))}: that is said elsewhere.")
    refuse_secrets(extra_body, "the judge's extra body")
    return dict(extra_body)


def parse_reply(body: Mapping[str, Any]) -> JudgeReply:
    """The reply in a server's answer.

    Raises:
        BrokenReply: If it is not there, or was broken off.
    """
    try:
        choice = body["choices"][0]
        text, end = choice["message"]["content"], choice["finish_reason"]
        if not isinstance(text, str | None):
            raise TypeError("content is no text")
        usage = body.get("usage") or {}
        counts = int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0)
        top = _first_token(choice.get("logprobs"))
    except (KeyError, IndexError, TypeError, ArithmeticError, ValueError, AttributeError) as error:
        raise BrokenReply("its reply is no chat completion") from error
    if end != "length" and end not in ENDED:
        raise BrokenReply(f"its reply was broken off (finish_reason={end!r})")
    return JudgeReply(text or "", top, *counts)


def _first_token(logprobs: Mapping[str, Any] | None) -> dict[str, float] | None:
    """Token to log-probability at the first place; of two spellings of one token the likelier counts."""
    content = (logprobs or {}).get("content")
    if not content or not content[0].get("top_logprobs"):
        return None
    ranked = sorted(content[0]["top_logprobs"], key=lambda top: top["logprob"])
    return {str(top["token"]): float(top["logprob"]) for top in ranked}


def _refused(error: Refused) -> JudgeReply:
    """A refusal that concerns this call only: too long for the judge, or filtered.

    Raises:
        Refused: Any other, which every call would meet.
    """
    said = f"{error.code} {error.message}".lower()
    own = any(word in said for word in ("context_length_exceeded", "content_filter", "content_policy", *LENGTH_WORDS))
    if error.status not in THIS_CALL_ONLY or not own:
        raise error
    return JudgeReply("", refused=f"HTTP {error.status}: {error.message}")


def _prompt_tokens(call: JudgeCall) -> int:
    return sum(len(m.content.encode(errors="replace")) // BYTES_PER_TOKEN + TOKENS_PER_TURN for m in call.messages)
