"""Reads a server's reply within bounds: a deadline for the whole of it, and a size after decompression.

A time-out of a socket holds for one read, so a server that sends a byte now and then never reaches it. ``TimedAdapter``
makes each read wait until the reply's deadline at most.
"""

from __future__ import annotations

import io
import socket
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from http.client import HTTPResponse
from time import monotonic
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from requests.structures import CaseInsensitiveDict

# 128 texts of 32,768 tokens with token ids have about 50 MB.
MAX_REPLY_BYTES = 64 << 20
# Bytes from the server that are decompressed at a time. Gzip makes at most 1,030 bytes of one.
PIECE_BYTES = 1 << 14
# What the client offers to decompress. Other compressions make millions of bytes of one.
ENCODINGS = ("gzip", "deflate")


class Oversized(Exception):
    """The reply is larger than the bound, or compressed in a way that has no bound."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole reply.

    Attributes:
        status: The status code.
        reason: The text beside the status code.
        headers: The headers; their names ignore case.
        body: The body after decompression.
        redirects: Whether the server names another address.
    """

    status: int
    reason: str
    headers: CaseInsensitiveDict[str]
    body: bytes
    redirects: bool


def read_reply(response: requests.Response) -> Reply:
    """Read the body of a response that was requested with ``stream=True``, and close it unless it is whole.

    Raises:
        Oversized: If the body is larger than ``MAX_REPLY_BYTES``.
        requests.RequestException: If the connection breaks, or the deadline is over.
    """
    try:
        body = _body(response)
    except BaseException:
        # The rest of the body must not be read as the next reply.
        response.close()
        raise
    return Reply(response.status_code, response.reason or "", response.headers, body, response.is_redirect)


def _body(response: requests.Response) -> bytes:
    encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in ("identity", "", *ENCODINGS):
        raise Oversized(f"its reply is compressed as {encoding[:40]!r}, which was not offered")
    body = bytearray()
    for piece in response.iter_content(PIECE_BYTES):
        body += piece
        if len(body) > MAX_REPLY_BYTES:
            raise Oversized(f"its reply is larger than {MAX_REPLY_BYTES >> 20} MiB")
    return bytes(body)


class TimedAdapter(HTTPAdapter):
    """Reads each reply until its deadline, which is the read time-out of its request."""

    def get_connection_with_tls_context(self, *args: Any, **kwargs: Any) -> Any:
        """See ``HTTPAdapter``. The connections of the pool read with a deadline."""
        pool = super().get_connection_with_tls_context(*args, **kwargs)
        if not isinstance(pool.ConnectionCls, partial):
            # urllib3 only calls it.
            pool.ConnectionCls = partial(_timed_connection, pool.ConnectionCls)  # type: ignore[assignment]
        return pool


def _timed_connection(connection_class: Any, *args: Any, **kwargs: Any) -> Any:
    connection = connection_class(*args, **kwargs)
    connection.response_class = _TimedResponse
    return connection


class _TimedResponse(HTTPResponse):
    """A response of the standard library whose reads end at a deadline."""

    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self.fp = io.BufferedReader(_TimedReader(self.fp, sock))


class _TimedReader(io.RawIOBase):
    """Reads from a socket until a deadline, which is the socket's time-out from now on."""

    def __init__(self, file: io.BufferedReader, sock: socket.socket) -> None:
        super().__init__()
        self._file, self._sock = file, sock
        self._timeout_s = sock.gettimeout()
        self._deadline = None if self._timeout_s is None else monotonic() + self._timeout_s

    def readable(self) -> bool:
        """See ``io.RawIOBase``."""
        return True

    def readinto(self, buffer: Any) -> int:
        """See ``io.RawIOBase``. It waits for one piece of the reply.

        Raises:
            TimeoutError: If the deadline is over.
        """
        piece = None
        if self._set_time_left():
            with suppress(TimeoutError):
                piece = self._file.read1(len(buffer))
        if piece is None:
            raise TimeoutError(f"its reply was not complete within timeout_s={self._timeout_s:g}")
        buffer[: len(piece)] = piece
        return len(piece)

    def close(self) -> None:
        """See ``io.RawIOBase``."""
        self._file.close()
        super().close()

    def _set_time_left(self) -> bool:
        """Let the socket wait until the deadline. Returns whether there is time left."""
        if self._deadline is None:
            return True
        left_s = self._deadline - monotonic()
        if left_s > 0:
            self._sock.settimeout(left_s)
        return left_s > 0
