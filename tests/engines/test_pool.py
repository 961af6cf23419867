"""The worker threads that make calls to a server."""

from __future__ import annotations

import threading
import time
from contextlib import closing

from lm_eval_aft.engines.api import pool
from lm_eval_aft.engines.api.client import Cancelled
from lm_eval_aft.engines.api.pool import run_calls


def disconnect() -> None:
    pass


def test_every_call_comes_back_with_its_result_and_every_worker_disconnects():
    closed: list[int] = []
    outcomes = run_calls(
        range(20),
        lambda call, stop: call * call,
        threading.Event(),
        concurrency=3,
        disconnect=lambda: closed.append(threading.get_ident()),
    )
    assert dict(outcomes) == {call: call * call for call in range(20)}
    assert len(closed) == 3


def test_a_system_that_allows_few_threads(monkeypatch):
    class Few(threading.Thread):
        started = 0

        def start(self):
            if Few.started == 3:
                raise RuntimeError("can't start new thread")
            Few.started += 1
            super().start()

    monkeypatch.setattr(pool, "Thread", Few)
    outcomes = run_calls(
        range(20), lambda call, stop: call, threading.Event(), concurrency=10**9, disconnect=disconnect
    )
    assert dict(outcomes) == {call: call for call in range(20)}


def test_no_calls_start_no_thread():
    outcomes = run_calls([], lambda call, stop: call, threading.Event(), concurrency=3, disconnect=disconnect)
    assert list(outcomes) == []


def test_after_a_failure_no_call_begins_and_those_under_way_are_yielded():
    slow_has_begun, made = threading.Event(), []

    def make(call: str, stop: threading.Event) -> str:
        made.append(call)
        if call == "slow":
            slow_has_begun.set()
            stop.wait(10)
            return "done"
        slow_has_begun.wait(10)
        raise ValueError(call)

    calls = ["slow", "bad", "never"]
    outcomes = dict(run_calls(calls, make, threading.Event(), concurrency=2, disconnect=disconnect))
    assert outcomes["slow"] == "done"
    assert isinstance(outcomes["bad"], ValueError)
    assert "never" not in made


def test_a_cancelled_call_is_not_yielded():
    def make(call: int, stop: threading.Event) -> int:
        if call:
            raise Cancelled
        return call

    stop = threading.Event()
    assert list(run_calls([0, 1, 2], make, stop, concurrency=1, disconnect=disconnect)) == [(0, 0)]


def test_leaving_early_begins_no_further_call():
    made: list[int] = []

    def make(call: int, stop: threading.Event) -> int:
        made.append(call)
        time.sleep(0.01)
        return call

    stop = threading.Event()
    with closing(run_calls(range(1000), make, stop, concurrency=2, disconnect=disconnect)) as outcomes:
        next(outcomes)
    assert stop.is_set()
    count = len(made)
    time.sleep(0.1)
    assert len(made) <= count + 2
