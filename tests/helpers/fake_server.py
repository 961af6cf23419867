"""A chat server on 127.0.0.1 that fails in every way that a test requests."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import BinaryIO

# A body may be a function that writes without end.
Reply = tuple[int, dict | str | Callable[[BinaryIO], None], dict[str, str]]


class FakeServer:
    """Serves model "m". ``faults`` gets every call first and may return another reply."""

    def __init__(self) -> None:
        self.calls: list[dict] = []
        self.headers: list[dict[str, str]] = []
        self.faults: Callable[[int, dict], Reply | None] = lambda number, body: None
        self.models: Reply = (200, {"data": [{"id": "m", "max_model_len": 4096}, {"id": "other"}]}, {})
        self.running, self.most_running = 0, 0
        self.delay_s = 0.0
        self._lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                server.headers.append(dict(self.headers))
                known = self.path == "/v1/models"
                self.answer(server.models if known else (404, {"detail": "Not Found"}, {}))

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                server.headers.append(dict(self.headers))
                self.answer(server.chat(body))

            def answer(self, reply: Reply) -> None:
                status, body, headers = reply
                # Status 0 closes the connection without a reply.
                if status == 0:
                    self.close_connection = True
                    self.connection.close()
                    return
                if callable(body):
                    self.send_response(status)
                    self.end_headers()
                    self.close_connection = True
                    body(self.wfile)
                    return
                content = body if isinstance(body, str) else json.dumps(body)
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content.encode())))
                self.end_headers()
                self.wfile.write(content.encode())

            def log_message(self, *args) -> None:
                pass

            def handle(self) -> None:
                # The client may have timed out, or this server may have closed the connection.
                with suppress(OSError, ValueError):
                    super().handle()

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    def chat(self, body: dict) -> Reply:
        with self._lock:
            self.calls.append(body)
            number = len(self.calls) - 1
            self.running += 1
            self.most_running = max(self.most_running, self.running)
        try:
            time.sleep(self.delay_s)
            return self.faults(number, body) or (200, completion(body), {})
        finally:
            with self._lock:
                self.running -= 1

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()


def completion(body: dict, usage: bool = True, finish: str = "stop") -> dict:
    """The server's reply: a text that names the seed of the call, with exact counts of words."""
    last = body["messages"][-1]["content"]
    texts = [f"answer {body.get('seed', 'free')} {number} to {last[:20]}" for number in range(body.get("n", 1))]
    choices = [
        {"index": i, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
        for i, text in enumerate(texts)
    ]
    counts = {
        "prompt_tokens": 10,
        "completion_tokens": sum(len(text.split()) + 1 for text in texts),
        "prompt_tokens_details": {"cached_tokens": 4},
    }
    return {"choices": choices, **({"usage": counts} if usage else {})}


def completion_with(body: dict, content: object) -> dict:
    """A completion with this content."""
    reply = completion(body)
    reply["choices"][0]["message"]["content"] = content
    return reply
