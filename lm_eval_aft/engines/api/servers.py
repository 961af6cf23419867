"""Several servers of one model: each call goes to the least loaded one, and one that stops answering is left out."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lm_eval_aft.core.log import log
from lm_eval_aft.engines.api.client import Cancelled, ChatClient, Unreachable

# How often a call that waits for a server looks whether it is still wanted.
LOOK_AFTER_S = 0.5


@dataclass(slots=True)
class _Server:
    """One server. The lock of ``Servers`` guards it.

    Attributes:
        client: Sends calls to it.
        under_way: Calls under way.
        sent: Calls sent so far.
        failure: Why it is left out; "" if it is not.
    """

    client: ChatClient
    under_way: int = 0
    sent: int = 0
    failure: str = ""


class Servers:
    """Sends calls to one or several servers. It is thread-safe.

    Attributes:
        moved: Calls that were sent to another server, because the first one stopped answering.
    """

    def __init__(self, clients: Sequence[ChatClient], concurrency: int) -> None:
        """Take the clients of at least one server. Nothing is sent yet.

        Args:
            clients: One for each server.
            concurrency: Maximum calls under way at a time at one server.
        """
        self._servers = [_Server(client) for client in clients]
        self._concurrency = concurrency
        self._changed = threading.Condition()
        self.moved = 0

    @property
    def urls(self) -> tuple[str, ...]:
        """The addresses of all servers."""
        return tuple(server.client.base_url for server in self._servers)

    @property
    def left_out(self) -> tuple[str, ...]:
        """The addresses of the servers that stopped answering and are left out."""
        return tuple(server.client.base_url for server in self._servers if server.failure)

    @property
    def concurrency(self) -> int:
        """Maximum calls under way at a time at all servers together."""
        return self._concurrency * (len(self._servers) - len(self.left_out))

    @property
    def info(self) -> Mapping[str, Any]:
        """Facts for the results file: the addresses, and what several servers did."""
        if len(self._servers) == 1:
            return {"base_url": self.urls[0]}
        calls = {server.client.base_url: server.sent for server in self._servers}
        return {
            "base_url": list(self.urls),
            "calls": calls,
            "servers_left_out": list(self.left_out),
            "calls_moved": self.moved,
        }

    def post(self, path: str, body: Mapping[str, Any], stop: threading.Event) -> dict[str, Any]:
        """POST a body to the least loaded server; see ``ChatClient.post``.

        Raises:
            Refused: If a server refuses the call.
            Unreachable: If no server gives a usable reply.
            Cancelled: If ``stop`` is set before a server replies.
        """
        while True:
            server = self._take(stop)
            try:
                return server.client.post(path, body, stop)
            except Unreachable as error:
                self._leave_out(server, error)
            finally:
                self._give_back(server)

    def disconnect(self) -> None:
        """Close the connections of the calling thread."""
        for server in self._servers:
            server.client.disconnect()

    def leave_out(self, failures: Mapping[str, str]) -> None:
        """Leave out servers that do not answer before the first call: the reason of each, by its address."""
        for server in self._servers:
            server.failure = failures.get(server.client.base_url, "")

    def sentence(self) -> str:
        """How many servers are left out and how many calls were moved, for a message; "" if all servers answer."""
        if not self.left_out:
            return ""
        names, count = ", ".join(self.left_out), len(self._servers)
        return f"{len(self.left_out)} of {count} servers are left out ({names}), and {self.moved:,} calls were moved"

    def _take(self, stop: threading.Event) -> _Server:
        """Wait for a server that may get another call, and count the call there."""
        with self._changed:
            while not stop.is_set():
                free = [each for each in self._servers if not each.failure and each.under_way < self._concurrency]
                if free:
                    server = min(free, key=lambda each: (each.under_way, each.sent))
                    server.under_way += 1
                    server.sent += 1
                    return server
                self._changed.wait(LOOK_AFTER_S)
        raise Cancelled

    def _give_back(self, server: _Server) -> None:
        with self._changed:
            server.under_way -= 1
            self._changed.notify()

    def _leave_out(self, server: _Server, error: Unreachable) -> None:
        """Leave a server out, so that its call is sent to another.

        Raises:
            Unreachable: If no other server is left. It names all of them.
        """
        with self._changed:
            others = [each for each in self._servers if each is not server and not each.failure]
            if not others:
                failures = [f"{each.client.base_url}: {each.failure}" for each in self._servers if each.failure]
                own = f"{server.client.base_url}: {error}"
                raise Unreachable("; ".join([*failures, own]) if failures else str(error)) from error
            self.moved += 1
            if server.failure:
                return
            server.failure = str(error)
            self._changed.notify_all()
        log.warning(
            "The server at %s stopped answering (%s) and is left out: its calls are moved.",
            server.client.base_url,
            error,
        )
