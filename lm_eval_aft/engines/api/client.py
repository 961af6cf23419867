"""HTTP to an OpenAI-compatible server: one question, one JSON answer, tried again where that can help.

408, 429, 5xx, time-outs, broken connections and replies that break off or state an error are tried again with
exponential backoff, and never before the server's ``Retry-After``. The key comes from the environment variable
OPENAI_API_KEY only and appears in no message. Knows nothing of chats. Called by the api engine, from several threads.
A little over 200 lines, as all that may go wrong on the way stands here.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from random import Random
from time import time
from typing import Any
from urllib.parse import urlsplit

import requests

from lm_eval_aft.core.errors import ConfigError
from lm_eval_aft.core.secrets import KEY_VARIABLE

CONNECT_S = 10.0
BUSY = (408, 429)
BACKOFF_S, LONGEST_BACKOFF_S = 0.5, 60.0
QUOTA_BACKOFF_S = 5.0  # after a 429 without Retry-After: five tries then last two minutes, as limits are by the minute
LONGEST_RETRY_AFTER_S = 600.0  # a server that asks for more has a quota, not a busy minute


class Refused(Exception):
    """The server answered, and asking again would not help."""

    def __init__(self, status: int, message: str, code: str = "") -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


class Unreachable(Exception):
    """The server did not answer, or not usefully, however often it was asked."""


class Cancelled(Exception):
    """The caller no longer wants the answer."""


class ChatClient:
    """Asks one server; safe for many threads, each of which keeps a connection of its own."""

    def __init__(self, base_url: str, *, timeout_s: float, max_retries: int) -> None:
        """Check the address; nothing is sent yet.

        Args:
            base_url: Up to and with the version, such as http://127.0.0.1:8000/v1.
            timeout_s: Seconds to wait for one answer.
            max_retries: How often to ask again.

        Raises:
            ConfigError: If the address or the key cannot be one.
        """
        self.base_url = _checked_url(base_url)
        self.timeout_s, self.max_retries = timeout_s, max_retries
        self._key = os.environ.get(KEY_VARIABLE, "").strip()
        if not re.fullmatch(r"[!-~]*", self._key):  # it would fail as a header, in a message that shows it
            raise ConfigError(
                f"{KEY_VARIABLE} holds characters that no key has, such as blanks or curly quotes: set it again."
            )
        self._local = threading.local()
        self._jitter = Random()  # the global generator belongs to tasks

    @property
    def has_key(self) -> bool:
        """Whether the environment holds a key."""
        return bool(self._key)

    def get(self, path: str) -> dict[str, Any]:
        """GET, parsed; raises as ``post`` does."""
        return self._ask("GET", path, None, threading.Event())

    def post(self, path: str, body: Mapping[str, Any], stop: threading.Event) -> dict[str, Any]:
        """POST, parsed.

        Args:
            path: Begins with a slash.
            body: Sent as JSON.
            stop: Once set, nothing is asked again.

        Raises:
            Refused: If the server says no.
            Unreachable: If it says nothing of use ``max_retries + 1`` times.
            Stopped: If ``stop`` was set before the next try.
        """
        return self._ask("POST", path, body, stop)

    def disconnect(self) -> None:
        """Close the connection of the calling thread."""
        self._session().close()

    def _ask(self, method: str, path: str, body: Mapping[str, Any] | None, stop: threading.Event) -> dict[str, Any]:
        reason, delay_s = "", 0.0
        for attempt in range(self.max_retries + 1):
            if attempt and stop.wait(delay_s):
                raise Cancelled
            jitter = self._jitter.uniform(0.75, 1.25)
            backoff_s = min(LONGEST_BACKOFF_S, BACKOFF_S * 2**attempt) * jitter
            try:
                response = self._session().request(
                    method,
                    self.base_url + path,
                    json=body,
                    auth=self._sign,
                    timeout=(CONNECT_S, self.timeout_s),
                    allow_redirects=False,  # requests would follow a POST with a GET
                )
            except requests.RequestException as error:
                reason, delay_s = self._hide(_root(error, self.timeout_s)), backoff_s
                continue
            status, said = response.status_code, ""
            if status not in BUSY and status < 500:
                parsed = self._parsed(response)
                if parsed and not parsed.get("error"):
                    return parsed
                said = "" if parsed else "its answer is not a JSON object"
                if method == "GET":  # no such server: asking again does not help
                    raise Refused(status, said or self._message(response)[0])
            said = said or self._message(response)[0]
            reason, asks = f"HTTP {status}: {said}", response.headers.get("Retry-After")
            asked_s = _retry_after(asks)
            if asked_s > LONGEST_RETRY_AFTER_S:
                raise Unreachable(f"{reason}; it asks to wait {asked_s:.0f} s")
            if status == 429 and not asks:
                backoff_s = min(LONGEST_BACKOFF_S, QUOTA_BACKOFF_S * 2**attempt) * jitter
            delay_s = max(backoff_s, asked_s)
        raise Unreachable(f"{reason}, {self.max_retries + 1} times")

    def _parsed(self, response: requests.Response) -> dict[str, Any]:
        """The JSON object of an answer; nothing where it is none.

        Raises:
            Refused: If the server says no.
        """
        if response.status_code >= 300:
            message, code = self._message(response)
            if response.is_redirect:
                message = f"it redirects to {response.headers['Location']}"
            raise Refused(response.status_code, message, code)
        try:
            parsed = response.json()
        except ValueError:
            return {}
        return parsed if isinstance(parsed, dict) else {}

    def _message(self, response: requests.Response) -> tuple[str, str]:
        """The server's words on one line and its error code, in the shapes servers use; without the key."""
        try:
            body = response.json()
        except ValueError:
            body = None
        error = body.get("error", body) if isinstance(body, dict) else {}
        error = error if isinstance(error, dict) else {"message": error}
        text = error.get("message") or error.get("detail") or response.reason or "no reason given"
        return self._hide(" ".join(str(text).split())[:300]).rstrip("."), str(error.get("code") or "")

    def _hide(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text

    def _sign(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """Add the key; given even without one, or requests would send a password out of ~/.netrc."""
        if self._key:
            request.headers["Authorization"] = f"Bearer {self._key}"
        return request

    def _session(self) -> requests.Session:
        if not hasattr(self._local, "session"):
            self._local.session = requests.Session()
        session: requests.Session = self._local.session
        return session


def _checked_url(base_url: str) -> str:
    """An address without what does not belong; lm-eval users give it with /chat/completions at its end."""
    parts = urlsplit(base_url.strip())
    if parts.username or parts.password or parts.query:
        raise ConfigError(
            "base_url must hold neither a user, a password nor a query, as it is written into result files: the key "
            f"comes from the environment variable {KEY_VARIABLE}."
        )
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"base_url={base_url} is not an address: give one such as http://127.0.0.1:8000/v1.")
    return base_url.strip().rstrip("/").removesuffix("/chat/completions").rstrip("/")


def _root(error: BaseException, timeout_s: float) -> str:
    """What went wrong below the layers of requests and urllib3."""
    if isinstance(error, requests.ReadTimeout):
        return f"no answer within timeout_s={timeout_s:g}"
    while error.__context__ is not None:
        error = error.__context__
    return " ".join(str(error).split()) or type(error).__name__


def _retry_after(header: str | None) -> float:
    """Seconds to wait: the header is a number of them, or a date."""
    if not header:
        return 0.0
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(header).timestamp() - time())
    except (TypeError, ValueError):
        return 0.0
