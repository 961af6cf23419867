"""Replies that never end, come byte by byte, or unpack to gigabytes are bounded, for engine=api and for judges."""

from __future__ import annotations

import gzip
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress

import pytest

from lm_eval_aft.core.engine import HostArgs
from lm_eval_aft.core.errors import EngineError, JudgeError
from lm_eval_aft.core.records import Chat, Message, Request, Sampling
from lm_eval_aft.engines.api import client as api_client
from lm_eval_aft.engines.api import replies
from lm_eval_aft.engines.registry import load_engine
from lm_eval_aft.judging.judge import Judge, JudgeCall

OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
USAGE = b'{"prompt_tokens":3,"completion_tokens":2}'
WHOLE = b'{"choices":[{"message":{"content":"4"},"finish_reason":"stop"}],"usage":' + USAGE + b"}"


class RawServer:
    """A server that answers every connection by a function of its socket."""

    def __init__(self, answer: Callable[[socket.socket], None]) -> None:
        self.connections = 0
        self._answer = answer
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/v1"
        self.closed = threading.Event()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while not self.closed.is_set():
            with suppress(OSError):
                connection, _ = self._listener.accept()
                self.connections += 1
                threading.Thread(target=self._handle, args=(connection,), daemon=True).start()

    def _handle(self, connection: socket.socket) -> None:
        with suppress(OSError), connection:
            received = b""
            while b"\r\n\r\n" not in received:
                received += connection.recv(65536)
            self._answer(connection)

    def close(self) -> None:
        self.closed.set()
        self._listener.close()


@pytest.fixture
def serve(monkeypatch):
    """A function that starts a raw server."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr(api_client, "BACKOFF_S", 0.01)
    servers: list[RawServer] = []

    def start(answer: Callable[[socket.socket], None]) -> RawServer:
        servers.append(RawServer(answer))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def complete(server: RawServer, **args) -> str:
    """One completion by engine=api."""
    settings = {"base_url": server.url, "model": "m", "check": False, "max_retries": 0, "timeout_s": 0.5, **args}
    engine = load_engine("api", settings, HostArgs())
    prompt = engine.renderer.encode(Chat((Message("user", "2+2?"),)))
    ((_, completion),) = engine.generate([Request(prompt, Sampling(0.7, 0.95, 0, 24), 7)])
    return completion.text


def drip(before: bytes, rest: bytes) -> Callable[[socket.socket], None]:
    """Send the first bytes at once, and one of the others each 50 ms."""

    def answer(connection: socket.socket) -> None:
        connection.sendall(before)
        for byte in rest:
            connection.sendall(bytes([byte]))
            time.sleep(0.05)

    return answer


LENGTH = f"Content-Length: {len(WHOLE)}\r\n\r\n".encode()
DRIPS = {
    "the body": (OK + LENGTH, WHOLE),
    "a header": (OK, b"X-Slow: " + b"a" * 1000),
    "the status": (b"", OK + LENGTH + WHOLE),
    "chunks": (OK + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n" * 200),
    "until the end of the connection": (OK + b"\r\n", b" " * 1000),
    "compressed": (OK + b"Content-Encoding: gzip\r\n\r\n", gzip.compress(WHOLE) * 10),
}


@pytest.mark.parametrize("what", DRIPS)
def test_a_dripping_server_ends_at_the_deadline(serve, what):
    server = serve(drip(*DRIPS[what]))
    started = time.monotonic()
    with pytest.raises(EngineError, match=r"stopped answering \(.*within timeout_s=0\.5, 2 times\)"):
        complete(server, max_retries=1)
    assert 1.0 <= time.monotonic() - started < 4
    assert server.connections == 2


def test_a_slow_reply_that_is_whole_in_time_is_taken(serve):
    half = len(WHOLE) // 2

    def answer(connection: socket.socket) -> None:
        for part in (OK + LENGTH, WHOLE[:half], WHOLE[half:]):
            connection.sendall(part)
            time.sleep(0.2)

    assert complete(serve(answer), timeout_s=20) == "4"


def test_each_attempt_and_each_call_has_its_own_deadline(serve):
    """The second call uses the connection of the first one."""

    def answer(connection: socket.socket) -> None:
        for _ in range(2):
            time.sleep(0.4)
            connection.sendall(OK + LENGTH + WHOLE)
            connection.recv(65536)

    server = serve(answer)
    client = api_client.ChatClient(server.url, timeout_s=0.7, max_retries=0)
    for _ in range(2):
        assert client.post("/chat/completions", {}, threading.Event())["choices"]
    assert server.connections == 1


def test_a_gzip_bomb_ends_at_the_bound(serve, monkeypatch):
    monkeypatch.setattr(replies, "MAX_REPLY_BYTES", 8 << 20)
    bomb = gzip.compress(b" " * (64 << 20))
    head = OK + f"Content-Encoding: gzip\r\nContent-Length: {len(bomb)}\r\n\r\n".encode()
    server = serve(lambda connection: connection.sendall(head + bomb))
    with pytest.raises(EngineError, match=r"stopped answering \(its reply is larger than 8 MiB\)"):
        complete(server, timeout_s=20, max_retries=5)
    # The same call again would get the same reply.
    assert server.connections == 1


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, gzip"])
def test_a_compression_without_a_bound_is_not_unpacked(serve, encoding):
    head = OK + f"Content-Encoding: {encoding}\r\nContent-Length: 4\r\n\r\n".encode()
    server = serve(lambda connection: connection.sendall(head + b"abcd"))
    with pytest.raises(EngineError, match=r"its reply is compressed as .*, which was not offered"):
        complete(server, timeout_s=20)


def test_gzip_is_unpacked(serve):
    packed = gzip.compress(WHOLE)
    head = OK + f"Content-Encoding: gzip\r\nContent-Length: {len(packed)}\r\n\r\n".encode()
    assert complete(serve(lambda connection: connection.sendall(head + packed)), timeout_s=20) == "4"


def flood(connection: socket.socket) -> None:
    """Send a body without end."""
    connection.sendall(OK + b"\r\n")
    while True:
        connection.sendall(b" " * 65536)


def test_a_flooding_server_ends_at_the_bound(serve, monkeypatch):
    monkeypatch.setattr(replies, "MAX_REPLY_BYTES", 4 << 20)
    with pytest.raises(EngineError, match=r"its reply is larger than 4 MiB\) with 1 texts of this layer unfinished"):
        complete(serve(flood), timeout_s=20)


def test_the_list_of_models_is_bounded_too(serve, monkeypatch):
    monkeypatch.setattr(replies, "MAX_REPLY_BYTES", 1 << 20)
    with pytest.raises(EngineError, match=r"cannot be reached \(its reply is larger than 1 MiB\)"):
        complete(serve(flood), timeout_s=20, check=True)


@pytest.mark.parametrize(("answer", "reason"), [(flood, "larger than 2 MiB"), (drip(OK + b"\r\n", b" " * 99), "0.5")])
def test_a_judge_has_the_same_bounds(serve, monkeypatch, tmp_path, answer, reason):
    monkeypatch.setattr(replies, "MAX_REPLY_BYTES", 2 << 20)
    judge = Judge(
        "m", serve(answer).url, cache=tmp_path / "judgements.sqlite", timeout_s=0.5, retries=0, prompt_version="p"
    )
    with pytest.raises(JudgeError, match=rf"stopped answering \(.*{reason}"):
        list(judge.ask([JudgeCall((Message("user", "Rate."),), 0.0, 5)]))
    judge.close()
