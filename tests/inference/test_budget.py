"""A run that reaches a bound of its cost stops in order, and resumes with a higher bound."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from helpers.fake_server import FakeServer
from helpers.instances import make_instance
from lm_eval_aft.core.config import AFTConfig
from lm_eval_aft.core.errors import BudgetReached, ConfigError
from lm_eval_aft.model import AFTLM
from lm_eval_aft.storage.draft_store import SQLiteStore
from lm_eval_aft.storage.traces import read_traces

QUESTIONS = [f"{number}+{number}?" for number in range(6)]


def ask(lm: AFTLM) -> list[str]:
    requests = [
        make_instance("generate_until", {"q": text}, (text, {"max_gen_toks": 9}), 0, ("t", row, 1))
        for row, text in enumerate(QUESTIONS)
    ]
    return lm.generate_until(requests, disable_tqdm=True)


def api(server: FakeServer, store: Path, **settings: Any) -> AFTLM:
    args = {"base_url": server.url, "model": "m", "max_retries": 0, "concurrency": 2, "max_length": 900}
    return AFTLM(engine="api", k=2, layers=1, cache=str(store), **args, **settings)


def stored(path: Path) -> tuple[int, int]:
    """Generations and tokens of a store."""
    with SQLiteStore(path) as store:
        info = store.info()
    return info.generations, info.generated_tokens


def test_a_bound_of_the_cost_stops_a_run_and_a_higher_one_resumes_it(server, tmp_path):
    whole = api(server, tmp_path / "whole.sqlite", price_in=3, price_out=15)
    answers, count = ask(whole), len(server.calls)
    cost = whole.get_model_info()["aft"]["usage"]["cost"]
    # Each prompt has 10 tokens, by the server's count.
    assert cost == pytest.approx((10 * count * 3 + stored(tmp_path / "whole.sqlite")[1] * 15) / 1e6)
    server.calls.clear()
    store = tmp_path / "s.sqlite"
    settings = {"price_in": 3, "price_out": 15}
    with pytest.raises(BudgetReached) as stopped:
        ask(api(server, store, max_cost=cost / 2, **settings))
    paid, kept = len(server.calls), stored(store)[0]
    # What was under way was waited for: nothing that was paid for is lost.
    assert kept == paid
    assert count / 2 - 1 <= paid <= count / 2 + 3
    assert stopped.value.exit_code == 2
    assert str(stopped.value).startswith(f"max_cost={cost / 2:g} is reached: ")
    assert f"; {kept} finished generations are in {store}: the same command with a higher" in str(stopped.value)
    # The same bound again pays nothing, and a higher one pays for the rest alone.
    with pytest.raises(BudgetReached):
        ask(api(server, store, max_cost=cost / 2, **settings))
    assert len(server.calls) == paid
    assert ask(api(server, store, max_cost=2 * cost, **settings)) == answers
    assert len(server.calls) == count


@pytest.mark.parametrize("bound", [1, 30, 80])
def test_a_bound_of_the_tokens_stops_any_engine(tmp_path, bound):
    def run(name: str, **settings: Any) -> AFTLM:
        return AFTLM(engine="scripted", k=2, layers=1, record=str(tmp_path / name), **settings)

    whole, stops = run("whole"), run("stops", max_generated_tokens=bound)
    answers = ask(whole)
    store = tmp_path / "stops" / "drafts.sqlite"
    with pytest.raises(BudgetReached, match=rf"^max_generated_tokens={bound} is reached: \d+ tokens are generated; "):
        ask(stops)
    generations, tokens = stored(store)
    most = max(draft.completion.generated_tokens for trace in read_traces(tmp_path / "whole") for draft in trace.drafts)
    assert bound <= tokens < bound + most
    resumed = run("stops", max_generated_tokens=10**6)
    assert ask(resumed) == answers
    assert resumed.computed_usage.generations == 18 - generations


def test_texts_that_end_in_one_step_are_all_kept(tiny, tmp_path):
    store, settings = tmp_path / "s.sqlite", {"k": 4, "layers": 1, "batch_size": "auto", "draft_max_tokens": 1}
    with pytest.raises(BudgetReached):
        ask(AFTLM(pretrained=tiny, dtype="float32", cache=str(store), max_generated_tokens=1, **settings))
    assert stored(store)[0] == 4 * len(QUESTIONS)


def test_stored_generations_are_used_beyond_a_bound(tmp_path):
    settings = {"engine": "scripted", "k": 2, "layers": 1, "cache": str(tmp_path / "s.sqlite")}
    answers = ask(AFTLM(**settings))
    again = AFTLM(**settings, max_generated_tokens=1)
    assert ask(again) == answers
    assert again.computed_usage.generations == 0


def test_a_bound_that_the_last_generation_reaches_stops_nothing(tmp_path):
    settings = {"engine": "scripted", "k": 2, "layers": 1}
    lm = AFTLM(**settings)
    answers = ask(lm)
    assert ask(AFTLM(**settings, max_generated_tokens=lm.usage.generated_tokens)) == answers


def test_without_a_store_the_sentence_says_that_nothing_is_kept():
    with pytest.raises(BudgetReached, match="nothing is kept without a draft store: give record=DIR or cache=FILE"):
        ask(AFTLM(engine="scripted", k=2, layers=1, max_generated_tokens=9))


def test_each_run_of_a_model_has_a_budget_of_its_own():
    lm = AFTLM(engine="scripted", k=2, layers=1)
    ask(lm)
    again = AFTLM(engine="scripted", k=2, layers=1, max_generated_tokens=lm.usage.generated_tokens)
    for _ in range(2):
        ask(again)
        again.get_model_info()


def test_costs_and_bounds_change_neither_texts_nor_traces(tmp_path):
    settings = {"engine": "scripted", "k": 2, "layers": 1}
    for name, more in (("a", {}), ("b", {"price_in": 1, "price_out": 2, "max_cost": 9, "max_generated_tokens": 9999})):
        ask(AFTLM(**settings, **more, record=str(tmp_path / name)))
    files = [{path.name for path in (tmp_path / name).glob("*.jsonl")} for name in ("a", "b")]
    assert files[0] == files[1]
    lm = AFTLM(**settings, record=str(tmp_path / "b"))
    ask(lm)
    assert lm.computed_usage.generations == 0


def test_several_models_have_costs_of_their_own(server, tmp_path):
    further = {"base_url": server.url, "model": "other", "max_length": 900}
    with pytest.raises(ConfigError, match="give price_in and price_out inside aggregator too"):
        api(server, tmp_path / "s", aggregator=further, price_in=1, price_out=1, max_cost=1)
    lm = api(server, tmp_path / "s", aggregator={**further, "price_in": 0, "price_out": 7}, price_in=1, price_out=0)
    ask(lm)
    info = lm.get_model_info()["aft"]
    rows = info["usage_by_model"]
    assert {name: row["cost"] for name, row in rows.items()} == {
        "m": pytest.approx(rows["m"]["prompt_tokens"] / 1e6),
        "other": pytest.approx(rows["other"]["generated_tokens"] * 7 / 1e6),
    }
    assert info["usage"]["cost"] == pytest.approx(sum(row["cost"] for row in rows.values()))


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"price_in": 1}, "price_in and price_out need each other"),
        ({"price_out": 1}, "price_in and price_out need each other"),
        ({"price_in": -1, "price_out": 1}, "price_in=-1 is not allowed"),
        ({"price_in": "nan", "price_out": 1}, "price_in=nan is not allowed"),
        ({"price_in": True, "price_out": 1}, "price_in=True is not allowed"),
        ({"max_cost": 1}, "max_cost=1.0 needs the cost of tokens: give price_in and price_out"),
        ({"max_cost": 0, "price_in": 1, "price_out": 1}, "max_cost=0 is not allowed"),
        ({"max_cost": "inf", "price_in": 1, "price_out": 1}, "max_cost=inf is not allowed"),
        ({"max_generated_tokens": 0}, "max_generated_tokens=0 is not allowed"),
        ({"max_generated_tokens": 1.5}, "max_generated_tokens=1.5 is not allowed"),
        ({"aggregator": {"max_cost": 1}}, "aggregator has max_cost=1, which belongs to the run"),
    ],
)
def test_wrong_values_are_refused(given, sentence):
    with pytest.raises(ConfigError, match=f"^{sentence}"):
        AFTConfig.split(given)
