"""The client for LLM judges, which are any OpenAI-compatible chat servers.

The client first reads the replies that its cache holds, and makes the other calls, several at a time. It retries a
failed call if that can help, and keeps each whole reply as soon as it arrives. So after a failure the same command
makes only the calls that are missing. The key comes from the environment variable OPENAI_API_KEY only.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

from lm_eval_aft.core.arguments import refuse_secrets
from lm_eval_aft.core.errors import BudgetReached, ConfigError, JudgeError
from lm_eval_aft.core.files import reading
from lm_eval_aft.core.jsonl import parse_json
from lm_eval_aft.core.progress import Bar
from lm_eval_aft.core.records import Chat, Message
from lm_eval_aft.core.secrets import KEY_VARIABLE
from lm_eval_aft.core.usage import TokenCosts
from lm_eval_aft.engines.api.client import Cancelled, ChatClient, Refused, Unreachable
from lm_eval_aft.engines.api.pool import run_calls
from lm_eval_aft.engines.api.renderers import EstimateRenderer
from lm_eval_aft.engines.api.responses import ENDED, LENGTH_WORDS
from lm_eval_aft.inference.budget import Budget
from lm_eval_aft.judging.cache import JudgeCache

# Defaults of the commands and of a judge that --metadata names.
CONCURRENCY, TIMEOUT_S, RETRIES = 8, 300.0, 8
# Wait before the first retry of a call whose reply is broken, and the longest wait.
FIRST_WAIT_S, MAX_WAIT_S = 1.0, 30.0
# A refusal with one of these statuses can concern a single call.
CALL_STATUSES = (400, 413, 422)


@dataclass(frozen=True, slots=True)
class JudgeCall:
    """One call to the judge.

    Attributes:
        messages: The judge prompt.
        temperature: Temperature of the judge; 0 is greedy.
        max_tokens: Upper bound of the tokens of the reply.
        top_logprobs: Number of likely first tokens to request; 0 requests none.
        attempt: From 0. Equal calls with different attempts have replies of their own.
    """

    messages: tuple[Message, ...]
    temperature: float
    max_tokens: int
    top_logprobs: int = 0
    attempt: int = 0


@dataclass(frozen=True, slots=True)
class JudgeReply:
    """The judge's reply to one call.

    Attributes:
        text: The text; empty if the server refused the call.
        top_logprobs: Log-probability of each likely first token; None if the server gives none.
        prompt_tokens: Number of prompt tokens; 0 if the server does not count them.
        generated_tokens: Number of generated tokens; 0 if the server does not count them.
        refused: Why the server refused this call (too long, filtered); empty if it did not. A refusal is not cached.
        cut: Whether the reply ended at its token limit.
    """

    text: str
    top_logprobs: Mapping[str, float] | None = None
    prompt_tokens: int = 0
    generated_tokens: int = 0
    refused: str = ""
    cut: bool = False


@dataclass(frozen=True, slots=True)
class Estimate:
    """The expected cost of a list of calls, before the first is made.

    Attributes:
        calls: Number of calls; equal calls count once.
        kept: Calls whose reply is cached.
        prompt_tokens: Approximate prompt tokens of the other calls.
        max_generated_tokens: Upper bound of the generated tokens of the other calls.
    """

    calls: int
    kept: int
    prompt_tokens: int
    max_generated_tokens: int

    @property
    def to_send(self) -> int:
        """Number of calls to make."""
        return self.calls - self.kept

    def sentence(self, price_in: float | None = None, price_out: float | None = None) -> str:
        """The estimate as a sentence.

        Args:
            price_in: Cost of a million prompt tokens. If either is None, the sentence leaves money out.
            price_out: Cost of a million generated tokens.
        """
        text = (
            f"{self.to_send} judge calls to make ({self.kept} of {self.calls} are kept from before): about "
            f"{self.prompt_tokens:,} prompt tokens and at most {self.max_generated_tokens:,} generated tokens"
        )
        if price_in is None or price_out is None:
            return text + "."
        money = TokenCosts(price_in, price_out).of(self.prompt_tokens, self.max_generated_tokens)
        return f"{text}, at most about {money:,.2f} by --price-in and --price-out."


class JudgeClient(Protocol):
    """Where calls are sent: a chat server, or an engine in its place."""

    base_url: str

    @property
    def has_key(self) -> bool:
        """Whether a key is sent."""

    def post(self, path: str, body: Mapping[str, Any], stop: threading.Event) -> dict[str, Any]:
        """See ``ChatClient.post``."""

    def disconnect(self) -> None:
        """Close the connection of the calling thread."""


class Judge:
    """Makes calls to one judge, and caches their replies.

    The key of a reply is made of the judge's name and revision, the version of the judge prompts, the call, and the
    extra fields.
    """

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
        budget: Budget | None = None,
        costs: TokenCosts | None = None,
        timeout_s: float = TIMEOUT_S,
        retries: int = RETRIES,
        quiet: bool = False,
        client: JudgeClient | None = None,
        extra_body: Mapping[str, Any] | None = None,
    ) -> None:
        """Check the address and open the cache. Nothing is sent yet.

        Args:
            model: The server's name of the judge.
            base_url: Address with the version, such as http://127.0.0.1:8000/v1.
            cache: The file that keeps the replies; None keeps them in memory.
            revision: The weights that the server runs, in the user's words.
            prompt_version: Name or digest of the judge prompts.
            concurrency: Maximum calls under way at a time.
            max_calls: Upper bound of the number of calls; None for no bound.
            budget: What the replies may cost, those of the cache included; None for no bound.
            costs: What a million tokens of the judge cost; None if that is unknown.
            timeout_s: Seconds to wait for one reply.
            retries: Number of further attempts of a failed call.
            quiet: Whether to hide the progress bar.
            client: Where calls are sent in place of ``base_url``.
            extra_body: Further fields of every call. A field with the value None is left out of the call.

        Raises:
            ConfigError: If the address or the key is not valid, or ``extra_body`` holds a reserved field or a secret.
            JudgeError: If the cache cannot be opened.
        """
        refuse_secrets({"model": model, "revision": revision}, "the judge's options")
        self.model, self.revision, self.prompt_version = model, revision, prompt_version
        self.concurrency, self.max_calls, self.retries, self.quiet = concurrency, max_calls, retries, quiet
        self.client = client or ChatClient(base_url, timeout_s=timeout_s, max_retries=retries)
        self.extra_body = _checked_extra(extra_body or {})
        self.cache = JudgeCache(cache)
        self.calls_made = 0
        self._budget, self._costs = budget or Budget(), costs
        # Keys of the replies that the budget has counted.
        self._counted: set[str] = set()

    def estimate(self, calls: Sequence[JudgeCall]) -> Estimate:
        """The expected cost of calls. Nothing is sent."""
        distinct = {self.key(call): call for call in calls}
        kept = self.cache.get(distinct)
        rest = [call for key, call in distinct.items() if key not in kept]
        return Estimate(len(distinct), len(kept), sum(map(_prompt_tokens, rest)), sum(call.max_tokens for call in rest))

    def ask(self, calls: Sequence[JudgeCall]) -> Iterator[tuple[int, JudgeReply]]:
        """Yield the position and the reply of each call as it ends. Cached replies come first.

        Raises:
            JudgeError: If ``max_calls`` does not allow all calls, and then none is made. Or if the judge fails, and
                then the cache holds the replies that arrived.
            BudgetReached: If a bound of the cost is reached and calls are left. The cache holds the replies.
        """
        positions: dict[str, list[int]] = {}
        for position, call in enumerate(calls):
            positions.setdefault(self.key(call), []).append(position)
        kept = self.cache.get(positions)
        calls_of = {key: calls[places[0]] for key, places in positions.items()}
        missing = {key: call for key, call in calls_of.items() if key not in kept}
        self._afford(len(missing), len(kept))
        with Bar(desc="judging", total=len(calls), disable=self.quiet, unit="call") as bar:
            for key, reply in self._replies(kept, missing, calls_of):
                bar.update(len(positions[key]))
                for position in positions[key]:
                    yield position, reply

    def key(self, call: JudgeCall) -> str:
        """The key of a call's reply: SHA-256 of all that determines the reply, in hexadecimal."""
        parts: list[Any] = ["v1", self.model, self.revision, self.prompt_version, asdict(call)]
        parts += [self.extra_body] if self.extra_body else []
        return sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def kept(self, command: str = "the same command") -> str:
        """What is kept if the command stops now, and how to resume; see ``core.stops``.

        Args:
            command: Names the command that resumes.
        """
        if self.cache.path is None:
            return f"no judgement is kept without --cache: {command} starts again."
        return f"the judgements made are kept in {self.cache.path}: {command} resumes and makes the rest."

    def close(self) -> None:
        """Close the cache."""
        self.cache.close()

    def _afford(self, needed: int, kept: int) -> None:
        if self.max_calls is not None and self.calls_made + needed > self.max_calls:
            made = f"{self.calls_made} were made and " if self.calls_made else ""
            raise JudgeError(
                f"--max-judge-calls={self.max_calls} is too low: {made}{needed} more are needed ({kept} "
                "are kept from before): raise it, or judge less."
            )

    def _replies(
        self, kept: Mapping[str, str], missing: Mapping[str, JudgeCall], calls: Mapping[str, JudgeCall]
    ) -> Iterator[tuple[str, JudgeReply]]:
        for key, text in kept.items():
            with reading(f"{self.cache.path} at {key[:12]}", "a judge's reply", JudgeError):
                reply = JudgeReply(**parse_json(text))
            self._count(key, calls[key], reply)
            yield key, reply
        if missing:
            self._check_budget()
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
        """Make calls, and yield each with its reply or the exception that it raised; see ``run_calls``.

        Raises:
            BudgetReached: If a bound is reached and calls are left. Those under way are waited for and yielded.
        """
        stop, left, failed = threading.Event(), len(missing), False
        outcomes = run_calls(
            missing.items(),
            self._reply_to,
            stop,
            concurrency=self.concurrency,
            disconnect=self.client.disconnect,
        )
        for (key, call), outcome in outcomes:
            self.calls_made += 1
            left -= 1
            if isinstance(outcome, JudgeReply):
                self._count(key, call, outcome)
            else:
                failed = True
            if self._budget.reached():
                stop.set()
            yield key, outcome
        if left and not failed:
            self._check_budget()

    def _count(self, key: str, call: JudgeCall, reply: JudgeReply) -> None:
        """Count the tokens of a reply once. Tokens that the server does not count are estimated."""
        if key in self._counted or reply.refused:
            return
        self._counted.add(key)
        prompt_tokens = reply.prompt_tokens or _prompt_tokens(call)
        generated_tokens = reply.generated_tokens or EstimateRenderer().count(reply.text)
        self._budget.add(prompt_tokens, generated_tokens, self._costs)

    def _check_budget(self) -> None:
        """Raise ``BudgetReached`` if a bound is reached. The message says what is kept and how to resume."""
        if reached := self._budget.reached():
            name, sentence = reached
            option = "--" + name.replace("_", "-")
            sentence = sentence.replace(name, option, 1)
            raise BudgetReached(f"{sentence}; {self.kept(f'the same command with a higher {option}')}")

    def _reply_to(self, keyed_call: tuple[str, JudgeCall], stop: threading.Event) -> JudgeReply:
        """Make one call, and cache its reply at once unless the server refused it."""
        key, call = keyed_call
        reply = self._whole_reply(call, stop)
        if not reply.refused:
            self.cache.put(key, json.dumps(asdict(reply)))
        return reply

    def _whole_reply(self, call: JudgeCall, stop: threading.Event) -> JudgeReply:
        """Make one call until its reply is whole, at most ``retries + 1`` times."""
        reason = ""
        for attempt in range(self.retries + 1):
            if attempt and stop.wait(min(FIRST_WAIT_S * 2 ** (attempt - 1), MAX_WAIT_S)):
                raise Cancelled
            try:
                return parse_reply(self.client.post("/chat/completions", self._body(call), stop))
            except BrokenReply as error:
                reason = str(error)
            except Refused as error:
                if error.status >= 300:
                    return _refused(error)
                reason = error.message
        raise Unreachable(f"{reason}, {self.retries + 1} times")

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
        """The error that the user reads. An error that is not the server's is returned as it is."""
        state = f"{done} of {total} judgements are done, {total - done} are left"
        kept = f"; those done are kept in {self.cache.path}" if self.cache.path and done else ""
        then = f"{state}{kept}: start the same command again to judge the rest."
        where = f"the judge at {self.client.base_url}"
        if isinstance(error, Unreachable):
            return JudgeError(f"{where} stopped answering ({error}); {then}")
        if isinstance(error, Refused) and error.status in (401, 403):
            reason = f"refuses the key in {KEY_VARIABLE}" if self.client.has_key else f"wants a key: set {KEY_VARIABLE}"
            return JudgeError(f"{where} {reason} (HTTP {error.status}: {error.message}); {then}")
        if isinstance(error, Refused):
            return JudgeError(f"{where} refuses model {self.model} (HTTP {error.status}: {error.message}); {then}")
        return error


class BrokenReply(Exception):
    """A reply that is not a whole chat completion."""


def _checked_extra(extra_body: Mapping[str, Any]) -> dict[str, Any]:
    """Refuse extra fields that the client sets itself, and secrets."""
    if reserved := {"model", "messages", "stream", "n"} & set(extra_body):
        raise ConfigError(
            f"the judge's extra body must not hold {', '.join(sorted(reserved))}, which the client sets itself."
        )
    refuse_secrets(extra_body, "the judge's extra body")
    return dict(extra_body)


def parse_reply(body: Mapping[str, Any]) -> JudgeReply:
    """The reply in a chat completion.

    Raises:
        BrokenReply: If ``body`` is of another kind, or the completion breaks off.
    """
    try:
        choice = body["choices"][0]
        text, end = choice["message"]["content"], choice["finish_reason"]
        if not isinstance(text, str | None):
            raise TypeError("content is not a text")
        usage = body.get("usage") or {}
        counts = int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0)
        top = _first_token(choice.get("logprobs"))
    except (KeyError, IndexError, TypeError, ArithmeticError, ValueError, AttributeError) as error:
        raise BrokenReply("its reply is not a chat completion") from error
    if end != "length" and end not in ENDED:
        raise BrokenReply(f"its reply was broken off (finish_reason={end!r})")
    return JudgeReply(text or "", top, *counts, cut=end == "length")


def _first_token(logprobs: Mapping[str, Any] | None) -> dict[str, float] | None:
    """Log-probability of each likely first token. If the server lists a token twice, the larger value counts."""
    content = (logprobs or {}).get("content")
    if not content or not content[0].get("top_logprobs"):
        return None
    ranked = sorted(content[0]["top_logprobs"], key=lambda top: top["logprob"])
    return {str(top["token"]): float(top["logprob"]) for top in ranked}


def _refused(error: Refused) -> JudgeReply:
    """The reply to a call that the server refuses because it is too long or filtered.

    Raises:
        Refused: If the server would refuse every call.
    """
    text = f"{error.code} {error.message}".lower()
    words = ("context_length_exceeded", "content_filter", "content_policy", *LENGTH_WORDS)
    if error.status not in CALL_STATUSES or not any(word in text for word in words):
        raise error
    return JudgeReply("", refused=f"HTTP {error.status}: {error.message}")


def _prompt_tokens(call: JudgeCall) -> int:
    """The approximate number of prompt tokens."""
    return EstimateRenderer().encode(Chat(call.messages)).prompt_tokens
