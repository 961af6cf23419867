"""A server that ignores the seed of a call: a warning after the drafts, a count in the results, and seed_field=."""

from __future__ import annotations

import logging

import pytest

from helpers.fake_server import FakeServer, completion_with
from helpers.instances import make_instance
from lm_eval_aft.core.engine import HostArgs
from lm_eval_aft.core.errors import ConfigError, EngineError
from lm_eval_aft.engines.registry import load_engine
from lm_eval_aft.model import AFTLM

LONG = "First we add four and five, which gives nine. The answer is 9."


def answer(server: FakeServer, questions: int = 4, gen_kwargs: dict | None = None, **args) -> dict:
    """Answer questions, and return what the results file gets under ``config.aft``."""
    lm = AFTLM(engine="api", base_url=server.url, model="m", cache="none", **{"k": 3, "layers": 2, **args})
    kwargs = {"until": [], **(gen_kwargs or {})}
    requests = [
        make_instance("generate_until", {}, (f"Question {n}", kwargs), 0, ("seeds", n, 1)) for n in range(questions)
    ]
    lm.generate_until(requests, disable_tqdm=True)
    return lm.get_model_info()["aft"]


def one_text(server: FakeServer, text: str = LONG) -> None:
    """Let the server give this text to every call. It follows the seed only if the text names it."""

    def reply(number: int, body: dict):
        content = completion_with(body, text.format(**body))
        content["usage"]["completion_tokens"] = len(text.split())
        return 200, content, {}

    server.faults = reply


def equal_drafts_warnings(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if "drafts of a question are equal" in record.getMessage()]


def test_equal_drafts_are_said_once_and_counted(server, caplog):
    caplog.set_level(logging.WARNING)
    one_text(server)
    assert answer(server)["equal_drafts"] == {"questions": 4, "equal": 4}
    (warning,) = equal_drafts_warnings(caplog)
    assert warning == (
        "With k=3 all drafts of a question are equal in 4 of 4 questions (100.0%), although each has a seed of its own "
        "and the temperature is above 0. The server may ignore the seed of a call: name its seed parameter with "
        "seed_field=NAME, or give seed=none to request the drafts of a question in one call."
    )


def test_the_warning_comes_before_the_layers(server, caplog):
    caplog.set_level(logging.WARNING)
    one_text(server)
    reply = server.faults

    def fail_after_the_drafts(number: int, body: dict):
        return reply(number, body) if number < 12 else (400, {"error": {"message": "no more"}}, {})

    server.faults = fail_after_the_drafts
    with pytest.raises(EngineError, match="no more"):
        answer(server)
    assert len(equal_drafts_warnings(caplog)) == 1


@pytest.mark.parametrize(
    ("text", "args", "counted"),
    [
        ("This text of eight words follows seed {seed}.", {}, {"questions": 4, "equal": 0}),
        # A model may be certain of a short answer.
        ("The answer is B.", {}, {"questions": 0, "equal": 0}),
        (LONG, {"temperature": 0}, {"questions": 0, "equal": 0}),
        (LONG, {"k": 1}, {"questions": 0, "equal": 0}),
        (LONG, {"questions": 2}, {"questions": 2, "equal": 2}),
    ],
)
def test_equal_drafts_that_say_nothing_about_seeds_give_no_warning(server, caplog, text, args, counted):
    caplog.set_level(logging.WARNING)
    one_text(server, text)
    assert answer(server, **args)["equal_drafts"] == counted
    assert not equal_drafts_warnings(caplog)


def test_seed_field_names_the_servers_parameter(server):
    answer(server, seed_field="sampling_seed")
    assert all("seed" not in call for call in server.calls)
    assert len({call["sampling_seed"] for call in server.calls}) == len(server.calls) == 4 * (2 * 3 + 1)


def test_seed_field_is_in_the_store_key_only_if_it_is_another(server):
    args = {"base_url": server.url, "model": "m"}
    assert load_engine("api", {**args, "seed_field": "seed"}, HostArgs()).fingerprint == "api|m|"
    other = load_engine("api", {**args, "seed_field": "random_seed"}, HostArgs())
    assert other.fingerprint == "api|m||seed_field=random_seed"


@pytest.mark.parametrize("name", ["", "max_tokens", "two words", 7, "messages"])
def test_seed_field_must_be_the_name_of_another_field(server, name):
    with pytest.raises(ConfigError, match=r"seed_field=.* is not allowed"):
        answer(server, seed_field=name)


def test_seed_field_and_extra_body_do_not_give_one_field_twice(server):
    with pytest.raises(ConfigError, match="extra_body must not hold random_seed"):
        answer(server, seed_field="random_seed", extra_body={"random_seed": 3})
