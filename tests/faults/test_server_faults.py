"""Servers that drip or flood, and a filling disk under engine=api: each run ends in one sentence and resumes whole."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path
from typing import BinaryIO

import pytest

from helpers.fake_server import FakeServer, completion_with
from helpers.full_disk import files_of_at_most
from helpers.instances import make_instance
from lm_eval_aft.core.errors import AFTError, EngineError, StoreError
from lm_eval_aft.engines.api import replies
from lm_eval_aft.model import AFTLM
from lm_eval_aft.storage.draft_store import SQLiteStore
from lm_eval_aft.storage.traces import read_traces

pytestmark = pytest.mark.faults
QUESTIONS, K, LAYERS = 6, 3, 2
TOTAL = QUESTIONS * (K * LAYERS + 1)
SEED = 20250121
ROUNDS = max(1, round(10 * float(os.environ.get("FAULT_SHARE", "1"))))


def drip(reply: BinaryIO) -> None:
    while True:
        reply.write(b" ")
        time.sleep(0.02)


def flood(reply: BinaryIO) -> None:
    while True:
        reply.write(b" " * (1 << 16))


def answer(folder: Path, url: str, **args) -> list[str]:
    """Run once. Returns the text of every generation, in the order of the traces."""
    settings = {"concurrency": 2, "max_retries": 0, "timeout_s": 20, "check": False, **args}
    lm = AFTLM(engine="api", base_url=url, model="m", k=K, layers=LAYERS, record=str(folder), **settings)
    requests = [make_instance("generate_until", {}, (f"Question {n}", {}), 0, ("t", n, 1)) for n in range(QUESTIONS)]
    lm.generate_until(requests, disable_tqdm=True)
    return [draft.completion.text for trace in read_traces(folder) for draft in trace.drafts]


def kept(folder: Path) -> int:
    store = SQLiteStore(folder / "drafts.sqlite", create=False)
    count = store.info().generations
    store.close()
    return count


def check_resume(folder: Path, server: FakeServer, expected: list[str]) -> None:
    """The same command again must make the missing calls only, and give the result of an undisturbed run."""
    before = kept(folder)
    assert 0 < before < TOTAL
    server.calls.clear()
    assert answer(folder, server.url) == expected
    assert len(server.calls) == TOTAL - before


@pytest.fixture
def expected(server, tmp_path) -> list[str]:
    return answer(tmp_path / "whole", server.url)


@pytest.mark.parametrize("number", range(ROUNDS))
@pytest.mark.parametrize(("spoil", "reason"), [(drip, "within timeout_s=1"), (flood, "larger than 1 MiB")])
def test_a_server_that_begins_to_drip_or_flood(server, expected, tmp_path, monkeypatch, spoil, reason, number):
    monkeypatch.setattr(replies, "MAX_REPLY_BYTES", 1 << 20)
    good = random.Random(f"{SEED} {number}").randint(1, TOTAL - 5)
    server.calls.clear()
    server.faults = lambda call, body: (200, spoil, {}) if call >= good else None
    with pytest.raises(EngineError, match=reason) as caught:
        answer(tmp_path / "run", server.url, timeout_s=1)
    assert "\n" not in str(caught.value)
    server.faults = lambda call, body: None
    check_resume(tmp_path / "run", server, expected)


@pytest.mark.parametrize("number", range(ROUNDS))
def test_a_filling_disk_keeps_every_paid_reply_that_fits(server, tmp_path, number):
    def of_some_length(_: int, body: dict):
        words = random.Random(body["seed"]).choice([1, 10, 400])
        return 200, completion_with(body, f"word {body['seed']} " * words), {}

    server.faults = of_some_length
    expected = answer(tmp_path / "whole", server.url)
    server.calls.clear()
    limit = random.Random(f"{SEED} {number}").randint(60_000, 150_000)
    with files_of_at_most(limit), pytest.raises(AFTError) as caught:
        answer(tmp_path / "run", server.url, concurrency=8)
    assert isinstance(caught.value, StoreError)
    assert "\n" not in str(caught.value)
    # Calls that were under way when the disk was full are waited for, and only texts that do not fit are lost.
    assert len(server.calls) - kept(tmp_path / "run") <= 8
    check_resume(tmp_path / "run", server, expected)
