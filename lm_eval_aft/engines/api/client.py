"""HTTP calls to an OpenAI-compatible server, with retries.

The client retries after status 408, 429 and 5xx, time-outs, broken connections, and replies that break off or state
an error. It waits with exponential backoff, and at least as long as the server's ``Retry-After``. The key comes from
the environment variable OPENAI_API_KEY only and appears in no message.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from itertools import pairwise
from random import Random
from time import time
from typing import Any
from urllib.parse import unquote, urlsplit

import requests

from lm_eval_aft.core.errors import ConfigError
from lm_eval_aft.core.jsonl import parse_json
from lm_eval_aft.core.secrets import KEY_VARIABLE, hide, hide_in_message, is_secret, looks_secret, public
from lm_eval_aft.engines.api.replies import ENCODINGS, Oversized, Reply, TimedAdapter, read_reply

CONNECT_S = 10.0
BUSY = (408, 429)
BACKOFF_S, MAX_BACKOFF_S = 0.5, 60.0
# After a 429 without Retry-After. Rate limits are per minute, and five retries then take two minutes.
QUOTA_BACKOFF_S = 5.0
# A server that requires a longer wait has a quota, not a busy minute.
MAX_RETRY_AFTER_S = 600.0
# The longest time to wait for one reply: a week.
MAX_TIMEOUT_S = 604_800.0
# A retry would send the same call, which no server would receive.
NEVER_SENT = (
    requests.exceptions.InvalidURL,
    requests.exceptions.InvalidSchema,
    requests.exceptions.InvalidHeader,
    requests.exceptions.InvalidProxyURL,
    requests.exceptions.InvalidJSONError,
)
# A shorter part of a path, such as "v1", is not a key.
MIN_KEY_LENGTH = 6


class Refused(Exception):
    """The server at ``base_url`` refuses the call, and a retry would not help."""

    def __init__(self, status: int, message: str, code: str = "", base_url: str = "") -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.base_url = status, message, code, base_url


class Unreachable(Exception):
    """The server gave no usable reply to any attempt."""


class Cancelled(Exception):
    """The caller no longer needs the reply."""


class ChatClient:
    """Sends calls to one server. It is thread-safe: each thread has its own connection."""

    def __init__(self, base_url: str, *, timeout_s: float, max_retries: int) -> None:
        """Check the address and the key. Nothing is sent yet.

        Args:
            base_url: Address with the version, such as http://127.0.0.1:8000/v1.
            timeout_s: Seconds to wait for one whole reply.
            max_retries: Number of further attempts.

        Raises:
            ConfigError: If the address, the time-out or the key is not valid.
        """
        self.base_url = _checked_url(base_url)
        if not 0 < timeout_s <= MAX_TIMEOUT_S:
            raise ConfigError(
                f"timeout_s={timeout_s:g} is not allowed: give a number of seconds above 0 and up to "
                f"{MAX_TIMEOUT_S:,.0f}."
            )
        self.timeout_s, self.max_retries = timeout_s, max_retries
        self._key = os.environ.get(KEY_VARIABLE, "").strip()
        # Such a key would fail as a header, in a message that shows it.
        if not re.fullmatch(r"[!-~]*", self._key):
            raise ConfigError(
                f"{KEY_VARIABLE} holds characters that no key has, such as blanks or curly quotes: set it again."
            )
        self._local = threading.local()
        # Tasks may seed and use the global generator.
        self._jitter = Random()

    @property
    def has_key(self) -> bool:
        """Whether the environment holds a key."""
        return bool(self._key)

    def get(self, path: str) -> dict[str, Any]:
        """GET a path and parse the reply. Raises as ``post`` does. It leaves no connection open."""
        try:
            return self._request("GET", path, None, threading.Event())
        finally:
            self.disconnect()

    def post(self, path: str, body: Mapping[str, Any], stop: threading.Event) -> dict[str, Any]:
        """POST a body and parse the reply.

        Args:
            path: Begins with a slash.
            body: Sent as JSON.
            stop: Once it is set, no further attempt begins.

        Raises:
            Refused: If the server refuses the call.
            Unreachable: If no attempt got a usable reply.
            Cancelled: If ``stop`` was set before the next attempt.
        """
        return self._request("POST", path, body, stop)

    def disconnect(self) -> None:
        """Close the connection of the calling thread."""
        self._session().close()

    def _request(self, method: str, path: str, body: Mapping[str, Any] | None, stop: threading.Event) -> dict[str, Any]:
        """Send one call until its reply is usable, at most ``max_retries + 1`` times."""
        problem, delay_s = "", 0.0
        for attempt in range(self.max_retries + 1):
            if attempt and stop.wait(delay_s):
                raise Cancelled
            jitter = self._jitter.uniform(0.75, 1.25)
            # 2**1024 is too large for a float.
            doubled = 2 ** min(attempt, 20)
            backoff_s = min(MAX_BACKOFF_S, BACKOFF_S * doubled) * jitter
            try:
                response = self._send(method, path, body)
            except Oversized as error:
                raise Unreachable(hide_in_message(str(error))) from error
            except NEVER_SENT as error:
                raise Unreachable(hide_in_message(_root_cause(error, self.timeout_s))) from error
            except requests.RequestException as error:
                problem, delay_s = hide_in_message(_root_cause(error, self.timeout_s)), backoff_s
                continue
            # A missing file of certificates is an OSError of Python itself.
            except (OSError, ValueError, OverflowError) as error:
                raise Unreachable(hide_in_message(" ".join(str(error).split()) or type(error).__name__)) from error
            reason = ""
            if response.status not in BUSY and response.status < 500:
                reply = self._parse(response)
                if reply and not reply.get("error"):
                    return reply
                reason = "" if reply else "its answer is not a JSON object"
                # An address without a list of models is not a chat server, so a retry does not help.
                if method == "GET":
                    raise Refused(response.status, reason or self._message(response)[0], "", self.base_url)
            problem = f"HTTP {response.status}: {reason or self._message(response)[0]}"
            header = response.headers.get("Retry-After")
            requested_s = _retry_after(header)
            if requested_s > MAX_RETRY_AFTER_S:
                raise Unreachable(f"{problem}; it asks to wait {requested_s:.0f} s")
            if response.status == 429 and not header:
                backoff_s = min(MAX_BACKOFF_S, QUOTA_BACKOFF_S * doubled) * jitter
            delay_s = max(backoff_s, requested_s)
        raise Unreachable(f"{problem}, {self.max_retries + 1} times")

    def _send(self, method: str, path: str, body: Mapping[str, Any] | None) -> Reply:
        response = self._session().request(
            method,
            self.base_url + path,
            json=body,
            auth=self._sign,
            timeout=(CONNECT_S, self.timeout_s),
            # requests would follow a redirected POST with a GET.
            allow_redirects=False,
            stream=True,
        )
        return read_reply(response)

    def _parse(self, response: Reply) -> dict[str, Any]:
        """The JSON object of a reply. Empty if the reply holds none.

        Raises:
            Refused: If the server refuses the call.
        """
        if response.status >= 300:
            message, code = self._message(response)
            if response.redirects:
                # A query may hold anything of the call.
                place = re.split("[?#]", response.headers["Location"])[0]
                message = hide_in_message(f"it redirects to {place}")
            raise Refused(response.status, message, code, self.base_url)
        reply = self._json(response)
        return reply if isinstance(reply, dict) else {}

    def _json(self, response: Reply) -> Any:
        """The JSON of a reply without our key, which a server may repeat anywhere. None if the reply is no JSON."""
        try:
            return self._without_key(parse_json(response.body))
        except ValueError:
            return None

    def _without_key(self, value: Any) -> Any:
        if isinstance(value, str):
            return self._hide(value)
        if isinstance(value, dict):
            return {self._hide(name): self._without_key(part) for name, part in value.items()}
        return [self._without_key(part) for part in value] if isinstance(value, list) else value

    def _message(self, response: Reply) -> tuple[str, str]:
        """The server's error message on one line, and its error code. The message does not show the key."""
        body = self._json(response)
        error = body.get("error", body) if isinstance(body, dict) else {}
        error = error if isinstance(error, dict) else {"message": error}
        text = error.get("message") or error.get("detail") or response.reason or "no reason given"
        return hide_in_message(" ".join(str(text).split()))[:300].rstrip("."), str(error.get("code") or "")

    def _hide(self, text: str) -> str:
        return hide(text, [self._key]) if self._key else text

    def _sign(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """Add the key, if there is one. Without any ``auth`` requests would send a password from ~/.netrc."""
        if self._key:
            request.headers["Authorization"] = f"Bearer {self._key}"
        return request

    def _session(self) -> requests.Session:
        if not hasattr(self._local, "session"):
            self._local.session = _new_session()
        session: requests.Session = self._local.session
        return session


def _new_session() -> requests.Session:
    session = requests.Session()
    session.headers["Accept-Encoding"] = ", ".join(ENCODINGS)
    for scheme in ("http://", "https://"):
        session.mount(scheme, TimedAdapter())
    return session


def _checked_url(base_url: str) -> str:
    """The address without a path to /chat/completions, which lm-eval users append to it.

    Raises:
        ConfigError: If it is not an address, or holds a secret.
    """
    try:
        parts = urlsplit(base_url.strip())
        host, port = parts.hostname or "", parts.port
        # Names in other scripts are sent in this encoding.
        host.encode("idna")
    # A port beyond 65,535, a bracket that is not closed, an empty label between two dots, half a surrogate pair.
    except ValueError as error:
        # The reason may repeat a part of the address.
        holds_key = "@" in base_url or looks_secret(base_url)
        shown = "" if holds_key else f"={base_url!r:.200}"
        reason = "" if holds_key else f" ({' '.join(str(error).split())})"
        raise ConfigError(
            f"base_url{shown} is not an address{reason}: give one such as http://127.0.0.1:8000/v1."
        ) from None
    if "@" in parts.netloc or any(sign in base_url for sign in "?#;") or _holds_key(base_url, parts.path):
        raise ConfigError(
            "base_url holds a user, a password, a query, a fragment or a key, and it is written into "
            "result files: give the bare address, and set the key in the environment variable "
            f"{KEY_VARIABLE}."
        )
    if parts.scheme not in ("http", "https") or not host or port == 0:
        address = public("base_url", base_url)
        raise ConfigError(f"base_url={address} is not an address: give one such as http://127.0.0.1:8000/v1.")
    return base_url.strip().rstrip("/").removesuffix("/chat/completions").rstrip("/")


def _holds_key(base_url: str, path: str) -> bool:
    """Whether an address holds what may be a key: anywhere by its form, or in the path after the name of one."""
    if looks_secret(base_url) or looks_secret(unquote(base_url)):
        return True
    names = ["", *re.split("[/=:,&]", unquote(path))]
    return any(is_secret(name) and len(value) >= MIN_KEY_LENGTH for name, value in pairwise(names))


def _root_cause(error: BaseException, timeout_s: float) -> str:
    """The message of the exception that caused the exceptions of requests and urllib3."""
    if isinstance(error, requests.ReadTimeout):
        return f"no answer within timeout_s={timeout_s:g}"
    while error.__context__ is not None:
        error = error.__context__
    return " ".join(str(error).split()) or type(error).__name__


def _retry_after(header: str | None) -> float:
    """Seconds to wait. The header is a number of seconds, or a date."""
    if not header:
        return 0.0
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(header).timestamp() - time())
    except (TypeError, ValueError, OverflowError, OSError):
        return 0.0
