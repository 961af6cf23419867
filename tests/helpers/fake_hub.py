"""A hub on this machine that takes datasets: the parts of the Hugging Face API that an upload needs."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "1" * 40


class FakeHub(ThreadingHTTPServer):
    """Keeps the files of each commit.

    Attributes:
        files: Content by ``repository/path``.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}

    @property
    def address(self) -> str:
        """What HF_ENDPOINT takes."""
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    """A hub that runs until the block ends."""
    with FakeHub() as hub:
        threading.Thread(target=hub.serve_forever, daemon=True).start()
        yield hub
        hub.shutdown()


class _Handler(BaseHTTPRequestHandler):
    server: FakeHub

    def log_message(self, *_: object) -> None:
        """Print nothing."""

    def do_POST(self) -> None:
        """Make a repository, say how each file is sent, check a card, or take a commit."""
        body = self._body()
        match self._path():
            case ["api", "repos", "create"]:
                wanted = json.loads(body)
                name = f"{wanted['organization']}/{wanted['name']}"
                self._send({"url": f"{self.server.address}/datasets/{name}", "name": name})
            case ["api", "validate-yaml"]:
                self._send({"errors": [], "warnings": []})
            case ["api", "datasets", _, _, "preupload", _]:
                wanted = [file["path"] for file in json.loads(body)["files"]]
                modes = [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in wanted]
                self._send({"files": modes})
            case ["api", "datasets", owner, name, "paths-info", _]:
                asked = parse_qs(body.decode())["paths"]
                self._send([entry for entry in self._listing(owner, name) if entry["path"] in asked])
            case ["api", "datasets", owner, name, "commit", _]:
                for entry in map(json.loads, body.splitlines()):
                    if entry["key"] == "file":
                        value = entry["value"]
                        self.server.files[f"{owner}/{name}/{value['path']}"] = base64.b64decode(value["content"])
                url = f"{self.server.address}/datasets/{owner}/{name}/commit/{COMMIT}"
                self._send({"commitUrl": url, "commitOid": COMMIT})
            case _:
                self._refuse()

    def do_GET(self) -> None:
        """List a repository, or send a file."""
        match self._path():
            case ["api", "datasets", owner, name] | ["api", "datasets", owner, name, "revision", _]:
                self._send({"id": f"{owner}/{name}", "sha": COMMIT})
            case ["api", "datasets", owner, name, "tree", *_]:
                self._send(self._listing(owner, name))
            case ["datasets", owner, name, "resolve", _, *path] if content := self.server.files.get(
                "/".join([owner, name, *path])
            ):
                self._send_bytes(content, "application/octet-stream")
            case _:
                self._refuse()

    do_HEAD = do_GET

    def _listing(self, owner: str, name: str) -> list[dict[str, Any]]:
        """The files of a repository."""
        start, files = f"{owner}/{name}/", self.server.files.items()
        return [
            {"type": "file", "oid": COMMIT, "size": len(content), "path": path.removeprefix(start)}
            for path, content in files
            if path.startswith(start)
        ]

    def _path(self) -> list[str]:
        return unquote(urlsplit(self.path).path).strip("/").split("/")

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers["Content-Length"]))

    def _send(self, value: Any) -> None:
        self._send_bytes(json.dumps(value).encode(), "application/json")

    def _send_bytes(self, content: bytes, kind: str, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", '"1"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _refuse(self) -> None:
        self._send_bytes(b"{}", "application/json", 404)
