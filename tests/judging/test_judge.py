"""The judge client against a server on 127.0.0.1 that fails as each test sets it up."""

from __future__ import annotations

import logging
import multiprocessing
import os
import sqlite3
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest

from helpers.fake_judge import KEY, FakeJudge, chat_completion, quick_judge
from lm_eval_aft.core.errors import BudgetReached, ConfigError, JudgeError
from lm_eval_aft.core.records import Message
from lm_eval_aft.core.usage import TokenCosts
from lm_eval_aft.inference.budget import Budget
from lm_eval_aft.judging.cache import JudgeCache
from lm_eval_aft.judging.judge import Estimate, Judge, JudgeCall
from lm_eval_aft.storage.draft_store import SQLiteStore


@pytest.fixture
def server(monkeypatch):
    with quick_judge(monkeypatch) as fake:
        yield fake


def calls(count: int, **settings) -> list[JudgeCall]:
    options = {"temperature": 0.0, "max_tokens": 64, **settings}
    return [JudgeCall((Message("system", "Judge."), Message("user", f"answer {n}")), **options) for n in range(count)]


def judge(server, cache=None, **settings) -> Judge:
    options = {"timeout_s": 10, "retries": 3, "quiet": True, **settings}
    return Judge("m", server.url, cache=cache, **options)


def ask(server, questions, cache=None, **settings) -> list[str]:
    with closing(judge(server, cache, **settings)) as client:
        replies = dict(client.ask(questions))
    return [replies[number].text for number in range(len(questions))]


class TestAsking:
    def test_what_is_sent_and_what_comes_back(self, server):
        server.trouble = lambda number, body: (200, chat_completion("m", top={"M": -2.0, "m": -0.5}), {})
        with closing(judge(server)) as client:
            ((_, reply),) = client.ask(calls(1, top_logprobs=5, temperature=1.0, max_tokens=1))
        assert server.calls == [
            {
                "model": "m",
                "messages": [{"role": "system", "content": "Judge."}, {"role": "user", "content": "answer 0"}],
                "temperature": 1.0,
                "max_tokens": 1,
                "logprobs": True,
                "top_logprobs": 5,
            }
        ]
        assert (reply.text, reply.prompt_tokens, reply.generated_tokens) == ("m", 11, 3)
        assert dict(reply.top_logprobs) == {"M": -2.0, "m": -0.5}

    def test_further_fields_are_sent_and_kept_apart_and_null_takes_one_of_ours_away(self, server, tmp_path):
        ask(server, calls(1), tmp_path / "c")
        extra = {"max_tokens": None, "max_completion_tokens": 9, "structured_outputs": {"regex": "x"}}
        ask(server, calls(1), tmp_path / "c", extra_body=extra)
        assert server.calls[1].keys() == (server.calls[0].keys() - {"max_tokens"}) | (extra.keys() - {"max_tokens"})
        ask(server, calls(1), tmp_path / "c", extra_body=extra)
        assert len(server.calls) == 2
        for name in ("messages", "api_key"):
            with pytest.raises(ConfigError, match=name) as refused:
                judge(server, extra_body={name: "sk-1"})
            assert "sk-1" not in str(refused.value)

    def test_logprobs_are_asked_for_only_where_wanted_and_may_be_missing(self, server):
        with closing(judge(server)) as client:
            ((_, plain),) = client.ask(calls(1))
            assert not {"logprobs", "top_logprobs"} & set(server.calls[0])
            ((_, without),) = client.ask(calls(1, top_logprobs=5))
        assert plain.top_logprobs is None
        assert without.top_logprobs is None

    def test_equal_calls_are_made_once_and_each_position_gets_its_reply(self, server):
        server.say = lambda body: body["messages"][-1]["content"].upper()
        assert ask(server, [*calls(3), *calls(3)]) == ["ANSWER 0", "ANSWER 1", "ANSWER 2"] * 2
        assert len(server.calls) == 3

    def test_no_more_at_a_time_than_asked(self, server):
        server.delay_s = 0.05
        ask(server, calls(12), concurrency=3)
        assert 1 < server.most_running <= 3

    def test_replies_come_as_they_end_and_are_on_disk_by_then(self, server, tmp_path):
        gate, file = threading.Event(), tmp_path / "judge.sqlite"
        server.trouble = lambda number, body: (
            gate.wait(10) and None if body["messages"][-1]["content"] == "answer 0" else None
        )
        with closing(judge(server, file)) as client:
            steps = client.ask(calls(3))
            assert sorted(next(steps)[0] for _ in range(2)) == [1, 2]
            with closing(sqlite3.connect(file)) as other:
                assert other.execute("SELECT count(*) FROM judgements").fetchone() == (2,)
            gate.set()
            assert next(steps)[0] == 0


class TestKeeping:
    def test_a_second_time_nothing_is_sent(self, server, tmp_path):
        server.trouble = lambda number, body: (200, chat_completion("é [[7]]", top={"m": -0.5}), {})
        with closing(judge(server, tmp_path / "c")) as first:
            before = dict(first.ask(calls(5)))
        with closing(judge(server, tmp_path / "c")) as second:
            assert dict(second.ask(calls(5))) == before
            assert second.calls_made == 0
        assert len(server.calls) == 5

    @pytest.mark.parametrize(
        ("settings", "call"),
        [
            ({"revision": "2"}, {}),
            ({"prompt_version": "b"}, {}),
            ({}, {"attempt": 1}),
            ({}, {"temperature": 0.5}),
            ({}, {"max_tokens": 65}),
            ({}, {"top_logprobs": 1}),
        ],
    )
    def test_another_judge_prompt_set_setting_or_attempt_is_asked_anew(self, server, tmp_path, settings, call):
        ask(server, calls(2), tmp_path / "c")
        ask(server, calls(2, **call), tmp_path / "c", **settings)
        assert len(server.calls) == 4

    def test_an_address_may_change(self, server, tmp_path):
        ask(server, calls(2), tmp_path / "c")
        elsewhere = FakeJudge()
        try:
            assert ask(elsewhere, calls(2), tmp_path / "c") == ["Fine. [[7]]"] * 2
            assert elsewhere.calls == []
        finally:
            elsewhere.close()

    def test_files_of_other_programs_are_refused_and_left_alone(self, server, tmp_path):
        SQLiteStore(tmp_path / "drafts").close()
        (tmp_path / "text").write_text("not a database, though it is long enough to be looked at " * 30)
        for name in ("drafts", "text"):
            before = (tmp_path / name).read_bytes()
            with pytest.raises(JudgeError, match="give --cache another path"):
                judge(server, tmp_path / name)
            assert (tmp_path / name).read_bytes() == before


class TestFaults:
    def test_a_storm_of_429_is_waited_out(self, server):
        server.trouble = lambda number, body: (429, "slow down", {"Retry-After": "0"}) if number < 25 else None
        assert ask(server, calls(10), retries=8) == ["Fine. [[7]]"] * 10
        assert len(server.calls) == 35

    @pytest.mark.parametrize(
        "trouble",
        [
            (500, {"error": {"message": "oops"}}, {}),
            (0, "", {}),
            (200, '{"choices": [{"message": {"role": "assist', {}),
            (200, {"choices": []}, {}),
            (200, {"choices": [None]}, {}),
            (200, chat_completion("It deserves [[9", finish=None), {}),
            (200, chat_completion("It deserves [[9", finish="abort"), {}),
        ],
        ids=["500", "hang up", "half a body", "no choice", "null", "no end", "aborted"],
    )
    def test_half_replies_and_errors_are_asked_again_and_never_kept(self, server, tmp_path, trouble):
        server.trouble = lambda number, body: trouble if number < 2 else None
        assert ask(server, calls(1), tmp_path / "c") == ["Fine. [[7]]"]
        assert len(server.calls) == 3
        server.trouble = lambda number, body: trouble
        with pytest.raises(
            JudgeError, match=r"stopped answering \(.*4 times\); 0 of 1 judgements are done, 1 are left"
        ):
            ask(server, calls(1, attempt=1), tmp_path / "c")
        server.trouble = lambda number, body: None
        # no broken reply was kept
        assert ask(server, calls(1, attempt=1), tmp_path / "c") == ["Fine. [[7]]"]

    def test_time_outs(self, server):
        slow = threading.Event()
        server.trouble = lambda number, body: (slow.wait(5) and None) if number < 1 else None
        assert ask(server, calls(1), timeout_s=0.2) == ["Fine. [[7]]"]
        slow.set()
        assert len(server.calls) == 2

    @pytest.mark.long
    def test_one_that_dies_part_way_is_asked_only_for_the_rest(self, server, tmp_path):
        server.trouble = lambda number, body: (503, "gone", {}) if number >= 300 else None
        with pytest.raises(JudgeError) as stopped:
            ask(server, calls(805), tmp_path / "c", retries=1)
        assert "300 of 805 judgements are done, 505 are left" in str(stopped.value)
        assert f"505 are left; those done are kept in {tmp_path / 'c'}: start the same command again" in str(
            stopped.value
        )
        seen = len(server.calls)
        # calls under way end, and no other call begins
        assert seen <= 300 + 8 * 2
        server.trouble = lambda number, body: None
        assert ask(server, calls(805), tmp_path / "c") == ["Fine. [[7]]"] * 805
        assert len(server.calls) == seen + 505

    @pytest.mark.parametrize(
        ("status", "message"), [(401, "refuses the key in OPENAI_API_KEY"), (404, "refuses model m")]
    )
    def test_a_refusal_that_every_call_would_meet_ends_it_at_once(self, server, status, message):
        server.trouble = lambda number, body: (status, {"error": {"message": "no"}}, {})
        with pytest.raises(JudgeError, match=message):
            ask(server, calls(50), concurrency=2)
        assert len(server.calls) <= 2

    def test_a_call_too_long_for_the_judge_is_refused_alone_and_asked_again_next_time(self, server, tmp_path):
        long = {"error": {"message": "maximum context length is 8192", "code": "context_length_exceeded"}}
        server.trouble = lambda number, body: (400, long, {}) if body["messages"][-1]["content"] == "answer 1" else None
        with closing(judge(server, tmp_path / "c")) as client:
            replies = dict(client.ask(calls(3)))
            assert [replies[n].text for n in range(3)] == ["Fine. [[7]]", "", "Fine. [[7]]"]
            assert replies[1].refused == "HTTP 400: maximum context length is 8192"
            assert client.estimate(calls(3)).to_send == 1

    def test_no_interrupt_loses_what_was_paid_for(self, server, tmp_path):
        with closing(judge(server, tmp_path / "c", concurrency=1)) as client:
            steps = client.ask(calls(20))
            next(steps)
            steps.close()
            done = client.estimate(calls(20)).kept
        assert done >= 1
        assert len(server.calls) < 20


class TestCost:
    def test_the_estimate_comes_before_any_call(self, server, tmp_path):
        ask(server, calls(2), tmp_path / "c")
        with closing(judge(server, tmp_path / "c")) as client:
            estimate = client.estimate([*calls(5), *calls(5)])
        assert (estimate.calls, estimate.kept, estimate.to_send, estimate.max_generated_tokens) == (5, 2, 3, 3 * 64)
        # about one token for four bytes, and five tokens for each turn and for the reply's own
        assert estimate.prompt_tokens == 3 * (2 + 5 + 2 + 5 + 5)
        assert len(server.calls) == 2

    def test_the_estimate_in_words(self):
        estimate = Estimate(160, 10, 2_000_000, 1_000_000)
        assert "150 judge calls to make (10 of 160 are kept from before)" in estimate.sentence()
        assert estimate.sentence(3.0, 15.0).endswith("at most about 21.00 by --price-in and --price-out.")
        assert "--price" not in estimate.sentence(3.0, None)

    def test_more_calls_than_allowed_are_refused_before_one_is_made(self, server, tmp_path):
        with pytest.raises(JudgeError, match=r"--max-judge-calls=4 is too low: 5 more are needed"):
            ask(server, calls(5), tmp_path / "c", max_calls=4)
        assert server.calls == []
        ask(server, calls(4), tmp_path / "c", max_calls=4)
        # the replies to four calls are kept
        ask(server, calls(5), tmp_path / "c", max_calls=1)
        with closing(judge(server, max_calls=6)) as client:
            list(client.ask(calls(4)))
            with pytest.raises(JudgeError, match="4 were made and 3 more are needed"):
                list(client.ask(calls(3, attempt=1)))


class TestBudget:
    """The fake judge counts 11 prompt tokens and 3 generated ones a call."""

    def test_a_bound_of_the_tokens_stops_and_a_higher_one_resumes(self, server, tmp_path):
        cache = tmp_path / "c"
        with pytest.raises(BudgetReached) as stopped:
            ask(server, calls(9), cache, budget=Budget(12), concurrency=1)
        paid = len(server.calls)
        # The worker may have begun a further call at the bound.
        assert 4 <= paid <= 5
        assert stopped.value.exit_code == 2
        assert str(stopped.value) == (
            f"--max-generated-tokens=12 is reached: {3 * paid} tokens are generated; the judgements made are kept in "
            f"{cache}: the same command with a higher --max-generated-tokens resumes and makes the rest."
        )
        # The same bound again pays nothing, and a higher one pays for the rest alone.
        with pytest.raises(BudgetReached):
            ask(server, calls(9), cache, budget=Budget(12))
        assert len(server.calls) == paid
        assert ask(server, calls(9), cache, budget=Budget(100)) == ["Fine. [[7]]"] * 9
        assert len(server.calls) == 9

    def test_calls_under_way_at_the_bound_are_kept(self, server, tmp_path):
        with pytest.raises(BudgetReached):
            ask(server, calls(40), tmp_path / "c", budget=Budget(30), concurrency=4)
        assert 10 <= len(server.calls) <= 14
        with closing(judge(server, tmp_path / "c")) as client:
            assert client.estimate(calls(40)).kept == len(server.calls)

    def test_a_bound_of_the_cost(self, server, tmp_path):
        costs = TokenCosts(1e6, 10e6)
        with pytest.raises(BudgetReached, match=r"--max-cost=80 is reached: (82|123) are spent; no judgement is kept"):
            ask(server, calls(9), budget=Budget(max_cost=80), costs=costs, concurrency=1)
        # Equal calls are one call, and each is counted once however often it is read.
        with closing(judge(server, budget=Budget(max_cost=82.5), costs=costs)) as client:
            for _ in range(3):
                assert len(dict(client.ask([*calls(2), *calls(2)]))) == 4

    def test_kept_judgements_are_used_beyond_a_bound(self, server, tmp_path):
        ask(server, calls(5), tmp_path / "c")
        assert len(ask(server, calls(5), tmp_path / "c", budget=Budget(1))) == 5

    def test_tokens_that_the_server_does_not_count_are_estimated(self, server):
        uncounted = {key: value for key, value in chat_completion("Fine. [[7]]").items() if key != "usage"}
        server.trouble = lambda number, body: (200, uncounted, {})
        with pytest.raises(BudgetReached):
            ask(server, calls(9), budget=Budget(6), concurrency=1)
        assert 2 <= len(server.calls) <= 3

    def test_a_failure_is_said_even_at_a_bound(self, server):
        server.trouble = lambda number, body: (401, {"error": {"message": "no"}}, {}) if number == 2 else None
        with pytest.raises(JudgeError, match="refuses the key"):
            ask(server, calls(9), budget=Budget(6), concurrency=2)


class TestKey:
    def test_it_goes_to_the_server_and_nowhere_else(self, server, tmp_path, caplog, capfd):
        caplog.set_level(logging.DEBUG)
        ask(server, calls(2), tmp_path / "c", quiet=False)
        assert {headers["Authorization"] for headers in server.headers} == {f"Bearer {KEY}"}
        for status in (401, 400, 500):
            words = {"error": {"message": f"bad key {KEY}"}}
            server.trouble = lambda number, body, status=status, words=words: (status, words, {})
            with pytest.raises(JudgeError) as refused:
                ask(server, calls(1, attempt=1), tmp_path / "c")
            assert KEY not in str(refused.value)
            assert "***" in str(refused.value)
        assert KEY not in caplog.text + "".join(capfd.readouterr())
        files = list(tmp_path.iterdir())
        assert files
        assert not any(KEY.encode() in file.read_bytes() for file in files)

    def test_an_address_must_not_hold_one(self, server):
        with pytest.raises(ConfigError) as refused:
            Judge("m", f"http://user:{KEY}@127.0.0.1:1/v1")
        assert KEY not in str(refused.value)


@pytest.mark.parametrize("change", ["'{\"text\": '", "replace(reply, '7', '9')", "x'ff'"])
def test_a_kept_reply_that_was_changed_is_refused_and_its_file_named(server, tmp_path, change):
    file = tmp_path / "judge.sqlite"
    assert ask(server, calls(1), cache=file)
    with closing(sqlite3.connect(file)) as db, db:
        before = db.execute("SELECT reply FROM judgements").fetchone()
        db.execute(f"UPDATE judgements SET reply = {change}")
        assert db.execute("SELECT reply FROM judgements").fetchone() != before
    with pytest.raises(JudgeError, match=r"judge\.sqlite is damaged at .*: give --cache another path"):
        ask(server, calls(1), cache=file)


def _keep_one(path: Path, start: float) -> str:
    while time.time() < start:
        pass
    with closing(JudgeCache(path)) as cache:
        cache.put(str(os.getpid()), "a reply")
    return "kept"


@pytest.mark.long
def test_several_processes_make_one_cache_at_once(tmp_path):
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        for number in range(10):
            path, start = tmp_path / f"{number}.sqlite", time.time() + (0.05 if number else 3)
            assert pool.starmap(_keep_one, [(path, start)] * 4, chunksize=1) == ["kept"] * 4
