"""Arguments that hold a secret are refused wherever they stand, and no message repeats the secret."""

from __future__ import annotations

import base64
import json
import logging
import random
import string
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.fake_judge import FakeJudge, chat_completion
from helpers.server_answers import ANSWERS, error_reply, generate, judge, messages_of
from lm_eval_aft.cli import aft
from lm_eval_aft.core.arguments import key_values, mapping, refuse_secrets
from lm_eval_aft.core.config import AFTConfig, refuse_unknown
from lm_eval_aft.core.engine import HostArgs
from lm_eval_aft.core.errors import AFTError, ConfigError, EngineError, JudgeError
from lm_eval_aft.core.log import log
from lm_eval_aft.core.secrets import hide, hide_in_message, is_secret, public, secret_places
from lm_eval_aft.engines.api.client import ChatClient
from lm_eval_aft.engines.hf.loading import HFArgs
from lm_eval_aft.engines.registry import load_engine
from lm_eval_aft.judging.judge import Judge
from lm_eval_aft.judging.metadata import NamedJudge
from trainers.settings import load_config, make_config

KEY = "sk-planted+key/5d0c77a1=="
TOKEN = "hf_plantedToken93b1e2"
KEYS = {
    "OPENAI_API_KEY": KEY,
    "HF_TOKEN": TOKEN,
    "MY_SERVICE_API_KEY": "Zx81-9911-service",
    "CI_JOB_TOKEN": "tok77job77x",
}
# A secret that is in no environment variable and has no known form: only its name gives it away.
NAMED = "correct horse"
NAMES = [
    *("api_key", "apikey", "apiKey", "API_KEY", "x-api-key", "openai_api_key", "access_key", "keys", "secret"),
    *("client_secret", "password", "passwd", "pwd", "token", "hf_token", "use_auth_token", "accessToken", "auth_token"),
    *("authorization", "Authorization", "Proxy-Authorization", "bearer", "auth", "credential", "credentials", "cookie"),
]
PLAIN = [
    *(
        "add_bos_token",
        "think_end_token",
        "pad_token",
        "eos_token",
        "max_tokens",
        "tokenizer",
        "num_speculative_tokens",
    ),
    *("draft_max_tokens", "return_token_ids", "author", "keyboard", "monkey", "tokens_per_second", "valid_tokens"),
]


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def leaks(text: str, secret: str, length: int = 6) -> list[str]:
    """The parts of a secret that a text shows."""
    return [part for i in range(len(secret) - length + 1) if (part := secret[i : i + length]) in text]


def refused(call: Callable[[], Any], *secrets: str) -> str:
    """The message of the ConfigError that a call raises. It shows no part of a secret."""
    with pytest.raises(ConfigError) as caught:
        call()
    text = str(caught.value)
    assert not [part for secret in (*KEYS.values(), *secrets) for part in leaks(text, secret)], text
    return text


def coded(secret: str) -> dict[str, str]:
    """A secret in the encodings in which it may be given or come back."""
    return {
        "as it is": secret,
        "url": quote(secret, safe=""),
        "basic": base64.b64encode(f"user:{secret}".encode()).decode(),
        "base64": base64.b64encode(secret.encode()).decode(),
        "base64 after one": base64.b64encode(b"x" + secret.encode()).decode(),
        "hex": secret.encode().hex(),
        "upper case": secret.upper(),
        "json": json.dumps(secret).replace("/", "\\/")[1:-1],
        "shortened": secret.rstrip("="),
    }


# Where a dictionary, a list or a text can hold a secret. Each function gets a name and a value.
SHAPES: dict[str, Callable[[str, str], Any]] = {
    "dictionary": lambda name, value: {name: value},
    "nested": lambda name, value: {"headers": {"x": 1, name: value}},
    "in a list": lambda name, value: {"tools": [{"a": 1}, {"deep": [{name: value}]}]},
    "list under the name": lambda name, value: {name: [value]} if name != "keys" else {name: value},
    "JSON text": lambda name, value: json.dumps({name: value}),
    "JSON text inside": lambda name, value: {"config": json.dumps({"a": [{name: value}]})},
    "bytes": lambda name, value: {name: value.encode()},
}
DICTIONARIES = [
    *(("hf", name) for name in ("model_kwargs", "chat_template_args", "quantization_config", "max_memory_per_gpu")),
    *(("vllm", name) for name in ("hf_overrides", "model_loader_extra_config", "override_generation_config")),
    *(("api", name) for name in ("extra_body",)),
    *(("scripted", name) for name in ("pretrained",)),
]


class TestArguments:
    @pytest.mark.parametrize("shape", SHAPES)
    @pytest.mark.parametrize(("engine", "argument"), DICTIONARIES)
    @pytest.mark.parametrize("name", ["token", "Authorization"])
    def test_by_name_in_every_dictionary(self, engine: str, argument: str, shape: str, name: str) -> None:
        arguments = {"engine": engine, argument: SHAPES[shape](name, NAMED)}
        if name == "token" and shape == "list under the name":
            pytest.skip("a JSON schema may have a list under this name")
        assert "must not be given in --model_args" in refused(lambda: AFTConfig.split(arguments), NAMED)

    @pytest.mark.parametrize("variable", KEYS)
    @pytest.mark.parametrize("shape", SHAPES)
    def test_by_the_value_of_a_variable_under_any_name(self, variable: str, shape: str) -> None:
        arguments = {"engine": "api", "extra_body": SHAPES[shape]("note", f"x {KEYS[variable]} y")}
        assert "must not be given" in refused(lambda: AFTConfig.split(arguments))

    @pytest.mark.parametrize("form", coded(KEY))
    @pytest.mark.parametrize("name", ["model", "revision", "pretrained", "record", "cache", "drafts_from", "template"])
    def test_by_value_in_every_text_and_encoding(self, name: str, form: str) -> None:
        refused(lambda: AFTConfig.split({"engine": "api", name: f"a-{coded(KEY)[form]}"}), *coded(KEY).values())

    @pytest.mark.parametrize("name", NAMES)
    def test_names(self, name: str) -> None:
        assert is_secret(name)
        for engine in ("hf", "vllm", "api", "scripted"):
            refused(lambda engine=engine: AFTConfig.split({"engine": engine, name: NAMED}), NAMED)
            refused(lambda engine=engine: load_engine(engine, {name: NAMED}, HostArgs()), NAMED)

    @pytest.mark.parametrize("name", PLAIN)
    def test_other_names(self, name: str) -> None:
        assert not is_secret(name)
        refuse_secrets({"a": {name: "x"}}, "--model_args")

    @pytest.mark.parametrize("value", [True, False, None, "none", "true", "", {}, []])
    def test_a_switch_is_no_secret(self, value: object) -> None:
        refuse_secrets({"model_kwargs": {"token": value}}, "--model_args")

    @pytest.mark.parametrize(
        "value",
        [
            {
                "guided_json": {
                    "properties": {"key": {"type": "string"}, "token": {"type": "integer"}},
                    "required": ["key"],
                }
            },
            {"logit_bias": {"1234": -100}},
            "You know basic arithmetic2 and Basic JavaScript",
            "https://gateway.example/v1/0123456789abcdef0123456789abcdef/x",
            "meta-llama/Llama-3.1-8B-Instruct",
            "/data/scratch/AbCdEf0123/checkpoint-1200",
        ],
    )
    def test_ordinary_values(self, value: object) -> None:
        refuse_secrets({"extra_body": value, "x": [value]}, "--model_args")

    @pytest.mark.parametrize(
        "value",
        [
            *("ghp_" + "a1B2" * 9, "sk-proj-" + "Ab3" * 12, "hf_" + "aB3d" * 8, "xoxb-123456789012-abcdefABCDEF"),
            *("AKIA" + "ABCD1234" * 2, "AIza" + "Sy3B" * 9, "eyJhbGciOiJI.eyJzdWIiOiIx.abc", "Bearer abc123def456ghi"),
            *("http://user:pass@proxy:3128/", "postgres://me:pw@host/db"),
        ],
    )
    def test_forms_of_keys_that_no_variable_holds(self, value: str) -> None:
        refused(lambda: refuse_secrets({"extra_body": {"note": [value]}}, "--model_args"), value)

    @settings(max_examples=200, database=None, derandomize=True)
    @given(
        st.recursive(
            st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8)),
            lambda inner: st.one_of(
                st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)
            ),
            max_leaves=20,
        ),
        st.lists(st.sampled_from(["list", "dict", "json"]), max_size=30),
    )
    def test_any_nesting(self, other: Any, path: list[str]) -> None:
        value: Any = f"see {KEY}"
        for step in path:
            value = [other, value] if step == "list" else {"a": other, "b": value}
            value = json.dumps(value, default=str) if step == "json" and len(str(value)) < 2000 else value
        assert list(secret_places({"x": value}))

    def test_a_nesting_without_end(self) -> None:
        deep: Any = "x"
        for _ in range(100_000):
            deep = [deep]
        assert list(secret_places({"x": deep, "y": "[" * 200_000})) == []
        assert list(secret_places({"x": [deep, KEY]})) == ["x"]


BASE = "http://127.0.0.1:1/v1"
ADDRESSES = [
    f"http://me:{NAMED[:7]}@127.0.0.1:1/v1",
    f"http://{KEY[:10]}@127.0.0.1:1/v1",
    "http://@127.0.0.1:1/v1",
    f"{BASE}?key=abcdef123",
    f"{BASE}?x",
    f"{BASE}#abcdef123",
    f"{BASE}#",
    f"{BASE};token=abcdef123",
    f"{BASE};x",
    f"http://127.0.0.1:1/{KEY}/v1",
    f"http://127.0.0.1:1/{quote(KEY, safe='')}/v1",
    f"http://127.0.0.1:1/{TOKEN}/v1",
    "http://127.0.0.1:1/key=abcdef123/v1",
    "http://127.0.0.1:1/api-key/abcdef123/v1",
    "http://127.0.0.1:1/token/abcdef123/v1",
    "http://127.0.0.1:1/sk-short-1/v1",
    "http://127.0.0.1:1/v1/aB3dE5gH7jK9mN1pQ3sT5vW7",
    f"http://{TOKEN}.example/v1",
    "http://127.0.0.1:1/%73k-short-1/v1",
]


class TestAddresses:
    @pytest.mark.parametrize("address", ADDRESSES)
    def test_one_that_holds_a_key_is_refused(self, address: str) -> None:
        client = lambda: ChatClient(address, timeout_s=1, max_retries=0)  # noqa: E731
        text = refused(client, "abcdef123", NAMED[:7], "short-1", "aB3dE5gH7jK9mN1pQ3sT5vW7")
        assert "base_url holds a user, a password" in text
        assert "OPENAI_API_KEY" in text
        arguments = {"base_url": address, "model": "m", "check": False}
        refused(lambda: load_engine("api", arguments, HostArgs()))
        with pytest.raises(ConfigError):
            Judge("m", address)

    @pytest.mark.parametrize(
        "address",
        [
            *(BASE, f"{BASE}/", f"{BASE}/chat/completions", "https://api.openai.com/v1", "http://[::1]:8000/v1"),
            "https://gateway.ai.cloudflare.com/v1/0123456789abcdef0123456789abcdef/my-gateway/openai",
            "https://x.openai.azure.com/openai/deployments/gpt-4o-Mini-2024-07-18",
            "https://router.huggingface.co/hf-inference/models/meta-llama/Llama-3.1-8B-Instruct/v1",
            "https://generativelanguage.googleapis.com/v1beta/openai",
            "https://keys.example/token/v1",
        ],
    )
    def test_others_are_taken(self, address: str) -> None:
        client = ChatClient(address, timeout_s=1, max_retries=0)
        assert client.base_url == address.rstrip("/").removesuffix("/chat/completions")

    @pytest.mark.parametrize(
        "address", [f"me:{KEY}@host/v1", f"ftp://{TOKEN}/x", f"localhost:8000/{TOKEN}", KEY, TOKEN]
    )
    def test_what_is_no_address_is_not_repeated(self, address: str) -> None:
        refused(lambda: ChatClient(address, timeout_s=1, max_retries=0))


class TestElsewhere:
    @pytest.mark.parametrize("shape", [name for name in SHAPES if name != "JSON text"])
    def test_the_judge_s_further_fields(self, shape: str) -> None:
        extra = SHAPES[shape]("authorization", NAMED)
        refused(lambda: Judge("m", BASE, extra_body=extra), NAMED)
        for settings_of_run in ({"judge_extra_body": extra}, {"judge_api_key": NAMED}, {"judge_revision": KEY}):
            named = {"judge_model": "m", "judge_base_url": BASE, **settings_of_run}
            refused(lambda named=named: NamedJudge.from_metadata(named, "out"), NAMED)

    @pytest.mark.parametrize("field", ["model", "revision"])
    def test_the_judge_s_name(self, field: str) -> None:
        refused(lambda: Judge(**{"model": "m", "base_url": BASE, field: KEY}))

    @pytest.mark.parametrize("variable", KEYS)
    @pytest.mark.parametrize(
        "words",
        [
            "report {}",
            "votes out --regex {}",
            "judge mt_bench out --judge-model {} --judge-base-url http://127.0.0.1:1/v1",
            "judge mt_bench out --judge-model m --judge-base-url http://127.0.0.1:1/{}/v1",
            'judge mt_bench out --judge-model m --judge-base-url http://127.0.0.1:1/v1 --extra-body {{"a":["{}"]}}',
            "sweep --tasks t --output_path out --model_args engine=api,model={}",
            "sweep --tasks t --output_path out --model_args engine=scripted --gen_kwargs note={}",
            "sweep --tasks t --output_path out --model_args engine=scripted --system_instruction {}",
            "data drafts in out --model_args engine=scripted --ask {}",
            "data import in out --field query={}",
            "train sft --config c.yaml --set model={}",
        ],
    )
    def test_no_command_takes_a_key(self, words: str, variable: str, folder: Path) -> None:
        done = CliRunner().invoke(aft, [word.format(KEYS[variable]) for word in words.split()])
        assert isinstance(done.exception, ConfigError)
        assert not [part for key in KEYS.values() for part in leaks(done.output + str(done.exception), key)]
        assert not list(folder.iterdir())

    @pytest.mark.parametrize(
        "words",
        [
            "sweep --tasks t --output_path out --model_args api_key={}",
            'sweep --tasks t --output_path out --model_args {{"model_kwargs":{{"token":"{}"}}}}',
            "sweep --tasks t --output_path out --model_args engine=scripted --gen_kwargs api_key={}",
            "data drafts in.jsonl out --model_args engine=api,api_key={}",
            'data aggregate in.jsonl out --model_args {{"engine":"api","extra_body":{{"a":[{{"secret":"{}"}}]}}}}',
            "train sft --config c.yaml --set hub_token={}",
            "train sft --config c.yaml --set hub_token:{}",
            "data drafts in.jsonl out --model_args api_key:{}",
        ],
    )
    def test_no_command_takes_a_secret_by_its_name(self, words: str, folder: Path) -> None:
        (folder / "in.jsonl").write_text('{"query": "q", "drafts": ["a", "b", "c", "d", "e"]}\n')
        (folder / "c.yaml").write_text("model: m\ndata: d\noutput: o\n")
        done = CliRunner().invoke(aft, [word.format("horse77battery") for word in words.split()])
        assert isinstance(done.exception, ConfigError)
        assert not leaks(done.output + str(done.exception), "horse77battery", 4)

    @pytest.mark.parametrize("name", ["hub_token", "api_key", "note"])
    def test_settings_of_a_training(self, name: str, tmp_path: Path) -> None:
        value = KEY if name == "note" else NAMED
        good = {"model": "m", "data": "d", "output": "o"}
        refused(lambda: make_config({**good, name: value}, "c.yaml"), NAMED)
        refused(lambda: make_config({**good, "template": KEY}, "c.yaml"))
        (tmp_path / "c.yaml").write_text(f"model: m\n  bad: [\n{name}: {value}\n")
        refused(lambda: load_config(str(tmp_path / "c.yaml")), NAMED)

    def test_a_token_changes_no_store_key(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def settings_of(**model_kwargs: object) -> dict[str, Any]:
            return dict(HFArgs.of({"pretrained": "p", "model_kwargs": model_kwargs}, HostArgs()).text_settings)

        assert settings_of(token=True) == settings_of() == {}
        monkeypatch.setenv("HF_TOKEN", "hf_" + "aB3d" * 8)
        assert settings_of(use_auth_token=True, rope_theta=2) == {"rope_theta": 2}


class TestMistyped:
    """An argument that is refused for another reason is shown, but not what looks secret in it."""

    @pytest.mark.parametrize("engine", ["hf", "vllm", "api", "scripted"])
    @pytest.mark.parametrize(
        ("name", "value"),
        [
            *((name, NAMED) for name in NAMES),
            ("heders", {"authorization": NAMED}),
            ("heders", [{"x": {"api_key": NAMED}}]),
            ("heders", {"x": KEY}),
            ("modle", KEY),
            ("modle", "sk-" + "x" * 9),
            ("modle", "me:correct-horse@host"),
            ("modle", "aB3dE5gH7jK9mN1pQ3sT5vW7"),
            ("modle", coded(KEY)["basic"]),
        ],
    )
    def test_an_unknown_one(self, engine: str, name: str, value: object) -> None:
        text = refused(lambda: refuse_unknown({name: value}, {"x"}, engine), NAMED, "aB3dE5gH7jK9mN1pQ3sT5vW7", "x" * 9)
        assert name in text

    def test_an_ordinary_one_is_shown(self) -> None:
        for name, value in (("K", 5), ("heders", {"a": [1, "b"]}), ("modle", "Qwen/Qwen3-8B"), ("x1", True)):
            assert f"{name}={value} is not" in refused(
                lambda name=name, value=value: refuse_unknown({name: value}, {"m"}, "hf")
            )

    @pytest.mark.parametrize(
        "value", [{"token": NAMED}, [{"password": NAMED}], KEY, "{'authorization': 'correct horse'}"]
    )
    @pytest.mark.parametrize("name", ["k", "temperature", "top_k", "mcq_orders", "seed", "mcq", "strategy"])
    def test_one_of_a_wrong_type(self, name: str, value: object) -> None:
        refused(lambda: AFTConfig.split({name: value}), NAMED)

    @pytest.mark.parametrize(
        "text",
        [
            *(f"{name} {NAMED}" for name in NAMES),
            f"a=1,{KEY}",
            f"a=1,authorization Bearer {NAMED}",
            f"{{'api_key': '{NAMED}'",
        ],
    )
    def test_an_option_that_is_no_list_of_names_and_values(self, text: str, folder: Path) -> None:
        refused(lambda: AFTConfig.split(key_values("--model_args", text)), NAMED)
        (folder / "c.yaml").write_text("model: m")
        refused(lambda: load_config("c.yaml", [text.replace("=", " ")]), NAMED)

    @pytest.mark.parametrize(
        "text", [f"{{'token': '{KEY}'}}", f'"{KEY}"', f"authorization: {KEY}", f'[{{"api_key":"{NAMED}"}}]']
    )
    def test_a_dictionary_that_is_none(self, text: str) -> None:
        refused(lambda: mapping("--extra-body", text), NAMED)

    def test_what_is_public(self) -> None:
        value = {"a": {"token": NAMED, "keys": {"type": "x"}}, "b": ["ok", KEY], "password": {"x": 1}, "n": None}
        assert public("x", value) == {
            "a": {"token": "***", "keys": {"type": "x"}},
            "b": ["ok", "***"],
            "password": "***",
            "n": None,
        }


# ---------------------------------------------------------------- hiding

SENTENCES = [
    "the server at http://127.0.0.1:1/v1 says HTTP 400: {}.",
    "{}",
    "Incorrect API key provided: {}. You can find it at https://x.",
    '{{"error": "{}"}}',
    "Authorization: Bearer {}",
    "a\n{}\tb",
    "it redirects to http://x/?key={}&a=b",
]


class TestHiding:
    @pytest.mark.parametrize("sentence", SENTENCES)
    @pytest.mark.parametrize("form", coded(KEY))
    @pytest.mark.parametrize("variable", KEYS)
    def test_every_form_in_every_sentence(self, variable: str, form: str, sentence: str) -> None:
        secret = coded(KEYS[variable])[form]
        text = hide_in_message(sentence.format(secret))
        assert not leaks(text, secret, 5), text
        assert hide_in_message(text) == text
        assert not leaks(hide(sentence.format(secret)), secret, 8)

    @pytest.mark.parametrize("end", range(4, len(KEY) + 1))
    def test_a_key_that_is_cut(self, end: int) -> None:
        for text in (
            f"bad key {KEY[:end]}",
            f"bad key: {KEY[:end]}; go.",
            f"'{KEY[:end]}...",
            f"{KEY[:end]}***{KEY[-4:]}",
        ):
            assert not leaks(hide_in_message(text), KEY, 4), hide_in_message(text)

    @pytest.mark.parametrize("start", range(len(KEY) - 4))
    def test_a_key_without_its_start(self, start: int) -> None:
        assert not leaks(hide_in_message(f"bad key ****{KEY[start:]}"), KEY, 4)

    @settings(max_examples=300, database=None, derandomize=True)
    @given(
        st.text(string.ascii_letters + string.digits + "+/=_-.!$&%", min_size=12, max_size=80),
        st.text(max_size=40),
        st.text(max_size=40),
        st.data(),
    )
    def test_any_key_in_any_text(self, key: str, before: str, after: str, data: Any) -> None:
        start = data.draw(st.integers(0, len(key) - 8))
        part = key[start : data.draw(st.integers(start + 8, len(key)))]
        shown = hide(f"{before}{part}{after}", [key])
        if part.isalpha() and len(part) < 12:
            return
        assert part not in shown
        assert len(shown) <= len(before) + len(after) + 3 + 8

    @pytest.mark.parametrize(
        "text",
        [
            "wants a key: set OPENAI_API_KEY (HTTP 401: no).",
            "--model_args cannot be read (x): give key=value,key=value.",
            "t.jsonl line 1 is not a trace (KeyError: 'layers'): it is damaged.",
            "max_tokens=5 is not an argument of --model aft: did you mean draft_max_tokens?",
            "think_end_token=</think> and pad_token='<pad>' are ignored.",
            "base_url must hold neither a user, a password, a query, a fragment nor a key, as it is written down.",
            "the settings c.yaml are not a list of key: value lines: see docs/training.md.",
            "set the environment variable OPENAI_API_KEY instead, or HF_TOKEN for a token of the hub.",
            "one sequence of 4096 tokens does not fit the memory of cuda:0: lower max_gen_toks.",
            "a required path /home/user@host/x is missing at 12:30, see http://127.0.0.1:8000/v1.",
            "risk-adjusted desk-top tasks, mask-filling: sk-",
        ],
    )
    def test_ordinary_sentences_stay(self, text: str) -> None:
        assert hide_in_message(text) == text

    @pytest.mark.parametrize("value", ["EMPTY", "none", "x", "", "1234", "dummy"])
    def test_a_stand_in_for_a_key_hides_no_words(self, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OPENAI_API_KEY", value)
        text = "EMPTY texts, none x of 1234 dummy questions"
        assert hide_in_message(text) == text
        refuse_secrets({"model": f"m-{value}"}, "--model_args")

    @pytest.mark.parametrize("value", ["not-needed", "no-key-required", "local-server-key"])
    def test_a_key_of_words_hides_no_other_words(self, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OPENAI_API_KEY", value)
        text = "the server at x has no required model, which is needed"
        assert hide_in_message(text) == text
        assert value not in hide_in_message(f"bad key {value}")

    def test_a_short_key(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OPENAI_API_KEY", "ab12c")
        assert hide_in_message("bad key ab12c, but not ab12cd") == "bad key ***, but not ab12cd"

    def test_long_texts_take_linear_time(self) -> None:
        for text in (
            "a=" * 200_000,
            "eyJ-" * 100_000,
            "://" * 100_000,
            "a:" * 200_000,
            "a='" * 100_000,
            "Basic " * 90_000,
        ):
            hide_in_message(text)

    @pytest.mark.parametrize("kind", AFTError.__subclasses__())
    def test_every_error_of_ours_hides(self, kind: type[AFTError]) -> None:
        error = kind(f"bad {KEY}", *([130] if kind.__name__ == "RunStopped" else []))
        assert str(error) == "bad ***"
        assert kind.__name__ in repr(error)

    def test_what_is_logged(self, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.INFO):
            log.warning("the server says %s and %d", KEY, 5)
            log.info("%s", EngineError(f"bad {TOKEN}"))
        assert [record.getMessage() for record in caplog.records] == ["the server says *** and 5", "bad ***"]


# ---------------------------------------------------------------- what a server may send


@pytest.fixture(scope="module")
def server() -> Iterator[FakeJudge]:
    with closing(FakeJudge()) as fake:
        yield fake


class TestServers:
    @pytest.mark.parametrize("ask", [generate, judge])
    @pytest.mark.parametrize("form", ["as it is", "url", "basic", "base64", "shortened", "upper case"])
    @pytest.mark.parametrize("answer", ANSWERS)
    def test_no_answer_brings_the_key_back(
        self, server: FakeJudge, answer: str, form: str, ask: Callable, caplog: pytest.LogCaptureFixture
    ) -> None:
        secret = coded(KEY)[form]
        server.faults = lambda number, body: ANSWERS[answer](secret)(body)
        texts: list[str] = []
        shown = messages_of(lambda: texts.extend(ask(server)), caplog)
        assert shown or texts
        assert not leaks(shown + "".join(texts), secret), shown

    @pytest.mark.parametrize("cut", range(1, len(KEY)))
    @pytest.mark.parametrize("ask", [generate, judge])
    def test_a_body_that_is_cut_inside_the_key(
        self, server: FakeJudge, ask: Callable, cut: int, caplog: pytest.LogCaptureFixture
    ) -> None:
        for body in (
            {"error": {"message": f"bad key {KEY[:cut]}"}},
            {"error": {"message": "x" * (300 - cut) + " " + KEY}},
        ):
            server.faults = lambda number, _, body=body: (400, body, {})
            shown = messages_of(lambda: ask(server), caplog)
            assert shown
            assert not leaks(shown, KEY, 4), shown
        whole = json.dumps({"error": {"message": f"bad key {KEY}"}})
        server.faults = lambda number, _: (400, whole[: whole.index(KEY) + cut], {})
        assert not leaks(messages_of(lambda: ask(server), caplog), KEY, 4)

    @pytest.mark.parametrize("form", coded(KEY))
    def test_a_list_of_models(self, server: FakeJudge, form: str, caplog: pytest.LogCaptureFixture) -> None:
        secret = coded(KEY)[form]
        arguments = {"base_url": server.url, "model": "nobody", "max_retries": 0, "timeout_s": 10}
        before = server.models
        try:
            for models in (
                (200, {"data": [{"id": secret}, {"id": f"x/{secret}"}]}, {}),
                (403, {"error": {"message": secret}}, {}),
                (404, {"detail": secret}, {}),
                (307, {}, {"Location": f"http://x/{quote(secret)}"}),
                (200, {"data": [{"id": "nobody", "max_model_len": secret}]}, {}),
                (200, {"error": secret}, {}),
            ):
                server.models = models
                shown = messages_of(lambda: load_engine("api", arguments, HostArgs()), caplog)
                assert not leaks(shown, secret), shown
        finally:
            server.models = before

    @pytest.mark.parametrize("form", ["as it is", "url", "base64", "shortened"])
    def test_a_text_that_holds_the_key_is_kept_without_it(self, server: FakeJudge, form: str) -> None:
        secret = coded(KEY)[form]
        server.faults = lambda number, body: (200, chat_completion(f"Sure: {secret}. [[7]]"), {})
        for texts in (generate(server), judge(server)):
            assert "Sure: ***" in texts[0]
            assert "[[7]]" in texts[0]

    def test_other_texts_stay_as_they_are(self, server: FakeJudge) -> None:
        characters = random.Random(0).choices(string.printable + "é漢", k=5000)
        text = "".join(characters) + " " + TOKEN
        server.faults = lambda number, body: (200, chat_completion(text), {})
        assert generate(server) == [text]

    def test_a_refusal_that_judging_keeps(self, server: FakeJudge) -> None:
        server.faults = lambda number, body: error_reply(f"content_filter: {KEY}")
        assert judge(server) == [" HTTP 400: content_filter: ***"]

    def test_a_judge_that_refuses_the_key(self, server: FakeJudge) -> None:
        server.faults = lambda number, body: error_reply(f"bad {KEY}", 401)
        with pytest.raises(JudgeError, match=r"refuses the key in OPENAI_API_KEY \(HTTP 401: bad \*\*\*\)"):
            judge(server)
