"""Inputs that break the code which reads them: JSON, templates, regular expressions, paths and addresses.

Each kind has one guard in core, and every place that takes such an input uses it. A case gives one sentence.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from helpers.made_runs import make_run
from helpers.tiny_models import CHATML, tiny_tokenizer
from lm_eval_aft.cli import aft
from lm_eval_aft.core import limits, regexes, rendering
from lm_eval_aft.core.arguments import key_values, mapping
from lm_eval_aft.core.chat import ChatContext, TokenizerRenderer, decode
from lm_eval_aft.core.config import AFTConfig
from lm_eval_aft.core.errors import AFTError, ChatError, ConfigError, TemplateError
from lm_eval_aft.core.jsonl import MAX_DEPTH, iterate_jsonl, parse_json, read_json
from lm_eval_aft.core.paths import check_path
from lm_eval_aft.core.prompts import Template
from lm_eval_aft.core.records import Chat, Message
from lm_eval_aft.engines.api.client import ChatClient, Unreachable
from lm_eval_aft.inference.checkpoint import CheckpointConfig
from lm_eval_aft.inference.extraction import choose_extraction
from lm_eval_aft.judging.alpaca_eval.files import read_annotations, read_outputs
from lm_eval_aft.judging.metadata import path_setting
from lm_eval_aft.judging.mt_bench.data import read_answers, read_question_file
from lm_eval_aft.judging.mt_bench.replies import read_judgements
from lm_eval_aft.storage.results import read_runs, results_files
from lm_eval_aft.storage.traces import read_traces
from trainers.fitting.resume import open_run
from trainers.generation.verifiers import load_verifier
from trainers.rows.importers import import_rows
from trainers.rows.row import read_training_rows
from trainers.settings import TrainConfig, load_config


def sentence(error: pytest.ExceptionInfo[BaseException]) -> str:
    """The message of an error, which is one line of at most 1,000 characters."""
    message = str(error.value)
    assert "\n" not in message.strip()
    assert len(message) < 1000
    return message


# ------------------------------------------------------------------ JSON

DEEP = {
    "lists": "[" * 200_000,
    "closed lists": "[" * 5_000 + "]" * 5_000,
    "objects": '{"a":' * 50_000,
    "closed objects": '{"a":' * 3_000 + "1" + "}" * 3_000,
    "one level too many": "[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1),
    "a list in an object": '{"query": ' + "[" * 900 + "]" * 900 + "}",
    "digits": "9" * 5_000,
    "cut": '{"a": [1, 2',
    "not UTF-8": b"\xff\xfe{",
    "a half of UTF-8": b'{"a": "\xe2\x82',
    "nothing": "",
    "a NUL": "\0",
}


@pytest.mark.parametrize("name", DEEP)
def test_parse_json_raises_only_value_error(name: str) -> None:
    with pytest.raises(ValueError, match=r"nested|digits|delimiter|decode|value|Expecting|property"):
        parse_json(DEEP[name])


def test_parse_json_takes_byte_order_marks_and_the_deepest_allowed_value() -> None:
    assert parse_json(b"\xef\xbb\xbf[1]") == parse_json("\ufeff[1]") == [1]
    assert parse_json("[" * MAX_DEPTH + "]" * MAX_DEPTH)


JSON_READERS: dict[str, Callable[[Path], Any]] = {
    "traces": lambda file: list(read_traces(file)),
    "JSON lines": lambda file: list(iterate_jsonl(file)),
    "JSON file": lambda file: read_json(file, "JSON"),
    "FastChat answers": read_answers,
    "MT-Bench questions": read_question_file,
    "judgements": read_judgements,
    "alpaca outputs": read_outputs,
    "alpaca annotations": read_annotations,
    "aft_config.json": CheckpointConfig.load,
    "training rows": read_training_rows,
    "import": import_rows,
    "results": lambda file: read_runs(file),
}


@pytest.mark.parametrize("reader", JSON_READERS)
@pytest.mark.parametrize("name", [name for name in DEEP if name != "nothing"])
def test_every_reader_of_json_files_names_the_file(tmp_path: Path, reader: str, name: str) -> None:
    content = DEEP[name]
    file = tmp_path / "odd.json"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(AFTError, match=r"odd\.json") as error:
        JSON_READERS[reader](file)
    sentence(error)


@pytest.mark.parametrize("name", DEEP)
def test_a_folder_with_such_a_file_has_no_runs(tmp_path: Path, name: str) -> None:
    content = DEEP[name]
    (tmp_path / "odd.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    assert results_files(tmp_path) == []


@pytest.mark.parametrize("name", [name for name, text in DEEP.items() if isinstance(text, str)])
@pytest.mark.parametrize("argument", ["extra_body", "model_kwargs", "chat_template_args"])
def test_dictionaries_on_the_command_line(argument: str, name: str) -> None:
    with pytest.raises(ConfigError, match=argument):
        mapping(argument, DEEP[name])


def test_a_deep_dictionary_that_lm_eval_has_parsed() -> None:
    value: Any = {}
    for _ in range(5_000):
        value = {"a": value}
    with pytest.raises(ConfigError, match="extra_body is not allowed: it is nested more than 200 levels"):
        mapping("extra_body", value)


@pytest.mark.parametrize("name", ["closed objects", "objects"])
def test_model_arguments_of_our_commands(name: str) -> None:
    with pytest.raises(ConfigError, match="--model_args cannot be read"):
        key_values("--model_args", str(DEEP[name]))


@pytest.mark.parametrize("name", [name for name, text in DEEP.items() if isinstance(text, str)])
def test_a_chat_context(name: str) -> None:
    with pytest.raises(ChatError, match="changed the chat context"):
        decode('{"aft_chat": ' + str(DEEP[name]))


@pytest.mark.parametrize("name", DEEP)
def test_run_json_of_a_training(tmp_path: Path, name: str) -> None:
    content = DEEP[name]
    (tmp_path / "run.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    (tmp_path / "rows.jsonl").write_text('{"query": "q", "target": "t"}\n')
    config = TrainConfig(model="m", data=str(tmp_path / "rows.jsonl"), output=str(tmp_path))
    with pytest.raises(ConfigError, match=r"run\.json cannot be read"):
        open_run("sft", config)


# ------------------------------------------------------------------ templates

PIECES = {
    "{{ 1 / 0 }}": "zero",
    "{{ 'a' * 10 ** 10 }}": "memory",
    "{{ 'a' * 200000000 }}": "200,000,000 characters|memory",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}": "calls itself|nested",
    "{% for a in [1] recursive %}{{ loop([1]) }}{% endfor %}": "calls itself|nested",
    "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}": "nested|memory|parenthes",
    "{{ " + "[" * 3000 + "]" * 3000 + " }}": "nested|memory|parenthes",
    "{{ " + "-" * 3000 + "1 }}": "nested|memory|parenthes",
    "{{ " + "not " * 3000 + "1 }}": "nested|memory|parenthes",
    "{% if 1 %}" * 300 + "{% endif %}" * 300: "nested|memory|indent|blocks",
    "{{ 'x'.y.z }}": "",
    "{{ 'x' + 1 }}": "",
    "{{ [] | first | upper }}": "",
    "{{ {}['a'] }}": "",
    "{{ range(10 ** 9) }}": "Range",
    "{{ '%d' | format('x') }}": "",
    "{{ 'a' | center(10 ** 11) }}": "memory",
    "{{ ''.join(5) }}": "",
    "{{ nothing }}": "undefined",
    "{{ 1.0 ** 'a' }}": "",
    "{{ 'a' | int(base=99) | nosuchfilter }}": "filter",
    "{% include 'other.j2' %}": "loader|load",
    "{% extends 'other.j2' %}": "",
    "{% import 'x' as y %}": "",
    "{{ ''.__class__.__mro__ }}": "",
    "{{ self.__init__.__globals__ }}": "",
    "{{ cycler.__init__.__globals__.os }}": "",
    "{{ lipsum.__globals__ }}": "",
    "{{ [1].append(2) }}": "",
    "{{ '{0.__class__}'.format(1) }}": "",
    "{{ 'x'.encode('nothing') }}": "",
    "{{ '\\ud800'.encode() }}": "",
    "{{ 10.0 ** 1000 }}": "",
    "{{ [3, 'a'] | sort }}": "",
    "{{ 5 | sum }}": "",
    "{{ 'a' | batch(0) | list }}": "",
    "{{ dict(5) }}": "",
}


def outcome(render: Callable[[], str], error: type[AFTError]) -> tuple[str, str]:
    """The text, or the message of the error."""
    try:
        return render(), ""
    except error as refused:
        return "", str(refused)


@pytest.mark.parametrize("block", ["draft", "aggregate"])
@pytest.mark.parametrize("piece", PIECES, ids=range(len(PIECES)))
def test_a_prompt_template(piece: str, block: str) -> None:
    other = "aggregate" if block == "draft" else "draft"
    source = f"{{% block {other} %}}{{% endblock %}}{{% block {block} %}}{piece}{{% endblock %}}"
    chat = Chat((Message("user", "x"),))

    def render() -> str:
        template = Template(source, "mine.j2")
        made = template.draft_chat(chat) if block == "draft" else template.aggregate_chat(chat, ["a"])
        return "".join(message.content for message in made.messages)

    text, message = outcome(render, TemplateError)
    # If the sandbox lets an expression pass, it prints nothing of Python's inside.
    assert len(text) < 1000
    assert not PIECES[piece] or message
    assert not message or ("mine.j2" in message and re.search(PIECES[piece], message))


@pytest.mark.parametrize("piece", PIECES, ids=range(len(PIECES)))
def test_a_chat_template(piece: str) -> None:
    renderer = TokenizerRenderer(tiny_tokenizer(piece + CHATML))
    chat = Chat((Message("system", "s"), Message("user", "x")))
    text, message = outcome(lambda: renderer.render(chat), ChatError)
    assert len(text) < 1000
    # transformers prints nothing for an unknown name.
    assert not PIECES[piece] or message or piece == "{{ nothing }}"
    assert not message or ("chat template refuses a chat of" in message and re.search(PIECES[piece], message))


PARTS_ONLY = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for part in m['content'] %}{{ part['text'] }}{% endfor %}"
    "<|im_end|>\n{% endfor %}"
)


@pytest.mark.parametrize("template", [PARTS_ONLY, "{{ 1 / 0 }}", "nothing of the chat", "{{ messages[5]['role'] }}"])
def test_a_prefill_that_a_chat_template_cannot_continue(template: str) -> None:
    renderer = TokenizerRenderer(tiny_tokenizer(template))
    with pytest.raises(ChatError, match="chat template refuses a chat of user, assistant turns") as error:
        renderer.render(Chat((Message("user", "x"),), prefill="The answer is"))
    sentence(error)


@pytest.mark.parametrize("loop", [f"{{% for b in range(99999) %}}{text}{{% endfor %}}" for text in ("", "x")])
def test_a_template_without_end(loop: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering, "MAX_SECONDS", 0.3)
    endless = "{% for a in range(99999) %}" + loop + "{% endfor %}"
    template = Template("{% block draft %}" + endless + "{% endblock %}{% block aggregate %}{% endblock %}", "mine.j2")
    with pytest.raises(TemplateError, match=r"block draft of the template mine\.j2 .*more than 0\.3 seconds"):
        template.draft_chat(Chat((Message("user", "x"),)))
    with pytest.raises(ChatError, match=r"more than 0\.3 seconds"):
        TokenizerRenderer(tiny_tokenizer(endless)).render(Chat((Message("user", "x"),)))


def test_a_limit_leaves_no_timer_and_no_memory_limit_behind() -> None:
    import resource
    import signal

    before = signal.getsignal(signal.SIGALRM), resource.getrlimit(resource.RLIMIT_AS)
    with pytest.raises(limits.OutOfTime), limits.time_limit(0.05):
        time.sleep(10)
    with pytest.raises(MemoryError), limits.memory_limit(1 << 20):
        bytes(1 << 30)
    assert (signal.getsignal(signal.SIGALRM), resource.getrlimit(resource.RLIMIT_AS)) == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


ONE_TURN = "{% if messages | length > 1 %}{{ raise_exception('one turn only') }}{% endif %}" + CHATML
NO_SECOND_USER = (
    "{% if messages | selectattr('role', 'equalto', 'user') | list | length > 1 %}"
    "{{ raise_exception('one question only') }}{% endif %}" + CHATML
)


@pytest.mark.parametrize(("template", "ends"), [(ONE_TURN, set()), (NO_SECOND_USER, {3})])
def test_a_chat_template_that_refuses_a_second_turn_answers_one(template: str, ends: set[int]) -> None:
    renderer = TokenizerRenderer(tiny_tokenizer(template))
    assert renderer.turn_end_ids == ends
    assert renderer.render(Chat((Message("user", "x"),))) == "<|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\n"
    assert renderer.clean("a<|im_end|>b") == "ab"
    with pytest.raises(ChatError, match="refuses a chat of user, assistant, user turns: one "):
        renderer.render(Chat((Message("user", "x"), Message("assistant", "y"), Message("user", "z"))))


def test_an_empty_question_for_a_tokenizer_without_bos_and_eos() -> None:
    tokenizer = tiny_tokenizer(None)
    tokenizer.bos_token = tokenizer.eos_token = None
    renderer = TokenizerRenderer(tokenizer)
    assert renderer.encode(Chat((Message("user", "x"),))).prompt_tokens == 1
    with pytest.raises(ChatError, match="is empty, and the tokenizer has neither a BOS nor an EOS token"):
        renderer.encode(Chat((Message("user", ""),)))


HALF_PAIRS = ("\ud800", "a\udfffb", "\udc80\ud800", "x" * 50 + "\udcff")


@pytest.mark.parametrize("text", HALF_PAIRS)
def test_half_a_surrogate_pair_in_a_question(text: str) -> None:
    renderer = TokenizerRenderer(tiny_tokenizer())
    for context in (text, ChatContext.of([{"role": "user", "content": text}])):
        chat = decode(context)
        assert "\ufffd" in chat.messages[0].content
        assert chat.identity
        assert renderer.encode(chat).prompt_tokens > 5
    assert renderer.count(text) == renderer.count(text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))
    assert renderer.trim(text, 100) is not None


@pytest.mark.parametrize("text", HALF_PAIRS)
def test_half_a_surrogate_pair_in_the_template_of_a_checkpoint(text: str, tmp_path: Path) -> None:
    source = text + "{% block draft %}{% endblock %}{% block aggregate %}{% endblock %}"
    (tmp_path / "aft_config.json").write_text(json.dumps({"template": source, "template_sha256": "x"}))
    with pytest.raises(ConfigError, match=r"aft_config\.json cannot be read"):
        CheckpointConfig.load(tmp_path / "aft_config.json")


# ------------------------------------------------------------------ regular expressions

EXPRESSIONS = {
    "a huge repeat": "a{99999999999}",
    "nested groups": "(" * 500 + "a" + ")" * 500,
    "more nested groups": "(?:" * 5000 + "a" + ")" * 5000,
    "nested looks": "(?=" * 1000 + "a" + ")" * 1000,
    "an open group": "(",
    "an open class": "[",
    "an open end": "a\\",
    "a bad group": "(?<n>a)",
    "a bad reference": r"(a)\9",
    "two of one name": "(?P<a>x)(?P<a>y)",
    "a bad range": "[z-a]",
    "nothing to repeat": "*a",
    "a look-behind of any length": "(?<=a+)b",
    "a bad flag": "(?Q)a",
    "a long one": "a" * 1_000_000,
    "a bad conditional": "(?(9)a|b)",
    "a bad name": r"\N{NO SUCH NAME}",
}


@pytest.mark.parametrize("name", EXPRESSIONS)
@pytest.mark.parametrize(
    "compile_",
    [
        lambda expression: regexes.compile_regex(expression, "--regex"),
        lambda expression: choose_extraction("t", expression),
        lambda expression: load_verifier(f"exact:{expression}"),
    ],
    ids=["core", "extraction", "verifier"],
)
def test_a_regex_that_does_not_compile(name: str, compile_: Callable[[str], Any]) -> None:
    with pytest.raises(ConfigError, match=r"is not a valid regular expression|at most 10,000 are allowed") as error:
        compile_(EXPRESSIONS[name])
    sentence(error)


@pytest.mark.parametrize("expression", ["(a+)+$", "(a|a)*b", "(a|aa)+$", "(.*a){25}$"])
def test_a_regex_that_never_ends(expression: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regexes, "MAX_SECONDS", 0.2)
    text = "a" * 60 + "!"
    answer = choose_extraction("t", expression).answer
    with pytest.raises(ConfigError, match="cannot be searched in a text of 61 characters") as error:
        answer(text)
    sentence(error)
    verify = load_verifier(f"exact:{expression}")
    with pytest.raises(ConfigError, match="cannot be searched in a text of 61 characters"):
        verify(text, {"query": "q", "gold": "1"})


@pytest.mark.parametrize("command", ["votes", "diagnose", "compare"])
def test_a_regex_of_a_command(command: str, tmp_path: Path) -> None:
    from helpers.made_traces import SETTINGS, trace_of_tokens
    from lm_eval_aft.storage.traces import write_traces

    make_run(tmp_path / "a", [1.0, 0.0], k=1, layers=0)
    make_run(tmp_path / "b", [0.0, 1.0], k=1, layers=0)
    for name in ("a", "b"):
        write_traces(str(tmp_path / name / "traces"), SETTINGS, [trace_of_tokens(doc, tokens=200) for doc in range(2)])
    words = [command, str(tmp_path / "a"), *([str(tmp_path / "b")] if command == "compare" else [])]
    done = CliRunner().invoke(aft, [*words, "--regex", "a{99999999999}"])
    assert done.exception is None or isinstance(done.exception, AFTError | SystemExit), done.exception


# ------------------------------------------------------------------ paths

PATHS = {
    "empty": "",
    "blank": "  ",
    "a NUL": "a\0b",
    "a long name": "x" * 256,
    "a long name in a folder": "a/" + "x" * 300 + "/b",
    "a long name in UTF-8": "\u20ac" * 100,
    "a long path": "ab/" * 1500,
    "not UTF-8": "a\udcff",
    "half a pair": "a\ud800b",
    "an address": "s3://bucket/a",
    "an address of a file": "file:///tmp/a",
    "SQLite's memory": ":memory:",
    "the home of nobody": "~no-such-user/a",
}
TAKES = {
    "record=": lambda path: AFTConfig.split({"record": path}),
    "cache=": lambda path: AFTConfig.split({"cache": path}),
    "drafts_from=": lambda path: AFTConfig.split({"drafts_from": path}),
    "template=": lambda path: AFTConfig.split({"template": path}),
    "Template.load": Template.load,
    "judge_prompts in --metadata": lambda path: path_setting({"judge_prompts": path}, "judge_prompts"),
    "check_path": lambda path: check_path("--html", path),
    "model of aft train": lambda path: train_with(model=path),
    "data of aft train": lambda path: train_with(data=path),
    "output of aft train": lambda path: train_with(output=path),
    "validation of aft train": lambda path: train_with(validation=path),
    "template of aft train": lambda path: train_with(template=path),
    "--config": lambda path: load_config(path),
}


def train_with(**changes: str) -> TrainConfig:
    from trainers.settings import make_config

    return make_config({"model": "m", "data": "d", "output": "o"} | changes, "c.yaml")


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("take", TAKES)
def test_an_argument_that_is_a_path(take: str, name: str) -> None:
    if take.startswith("judge_prompts") and not PATHS[name]:
        assert TAKES[take]("") is None
        return
    with pytest.raises(AFTError) as error:
        TAKES[take](PATHS[name])
    sentence(error)


COMMANDS = (
    *("report PATH", "report RUN --html PATH", "report RUN --traces PATH", "report RUN --html x.html --baseline PATH"),
    *("votes PATH", "votes RUN --traces PATH", "diagnose PATH", "diagnose RUN --traces PATH"),
    *("compare PATH RUN", "compare RUN PATH", "compare RUN RUN --traces PATH", "compare RUN RUN --drafts PATH"),
    *("plot PATH", "plot RUN --png PATH", "plot RUN --traces PATH", "plot PATH --training"),
    *("cache info PATH", "cache verify PATH", "template check PATH", "watch PATH", "watch PATH --once"),
    *("judge mt_bench PATH", "judge mt_bench --judgments PATH", "judge mt_bench RUN --judge-prompts PATH"),
    *("judge mt_bench RUN --references PATH", "judge mt_bench RUN --questions PATH", "judge mt_bench RUN --cache PATH"),
    *("judge mt_bench RUN --output PATH", "judge alpaca_eval PATH", "judge alpaca_eval --annotations PATH"),
    *("judge alpaca_eval RUN --reference PATH", "judge alpaca_eval RUN --difficulty PATH"),
    "sweep --model_args x=1 --tasks t --output_path PATH",
    "sweep --include_path PATH --model_args x=1 --tasks t --output_path o",
    "train sft --config PATH",
    *("data import PATH out", "data import RUN PATH", "data stats PATH", "data stats RUN --against PATH"),
    *("data select PATH out", "data select RUN out --match PATH", "data drafts PATH out --model_args x=1"),
    *("data drafts RUN out --model_args x=1 --demonstrations PATH", "data aggregate PATH out --model_args x=1"),
    *("data ppl PATH --model_args x=1",),
)


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_that_takes_a_path(command: str, name: str) -> None:
    words = [{"PATH": PATHS[name], "RUN": "nowhere"}.get(word, word) for word in command.split(" ")]
    done = CliRunner().invoke(aft, words)
    assert isinstance(done.exception, AFTError), (done.exception, done.output)
    assert "the path of" in str(done.exception)
    assert "\n" not in str(done.exception)


@pytest.mark.parametrize("name", [name for name in PATHS if name not in ("empty", "blank")])
@pytest.mark.parametrize("argument", ["pretrained", "peft", "lora_local_path", "subfolder"])
def test_the_folder_of_a_checkpoint(argument: str, name: str) -> None:
    from lm_eval_aft.inference.checkpoint import choose_template

    with pytest.raises(ConfigError, match="the path of") as error:
        choose_template(AFTConfig(), {argument: PATHS[name]})
    sentence(error)


# ------------------------------------------------------------------ addresses

NO_ADDRESS = (
    *("http://[::1/v1", "http://a..b/v1", "http://.a/v1", "http://127.0.0.1:99999/v1", "http://127.0.0.1:-1/v1"),
    *("http://127.0.0.1:port/v1", "http://127.0.0.1:0/v1", "http://:80/v1", "http://", "ftp://a/v1", "a/v1", ""),
    *("http://\udc80/v1", "http://" + "a" * 300 + "/v1", "http:///v1", "http://[/v1", "http://]/v1", "//a/v1"),
)
NO_HOST = ("http://a\0b/v1", "http://a b/v1", "http://[v1.x]/v1", "http://%zz/v1", "http://a\nb/v1", "http://*/v1")


@pytest.mark.parametrize("address", NO_ADDRESS)
def test_an_address_that_is_none(address: str) -> None:
    with pytest.raises(ConfigError, match="is not an address") as error:
        ChatClient(address, timeout_s=1, max_retries=0)
    sentence(error)


@pytest.mark.parametrize(
    "address", ["http://user:sk-secret@[::1/v1", "http://sk-secret@a..b/v1", "http://x:sk-secret@h:9x"]
)
def test_an_address_with_a_key_that_cannot_be_read_is_not_shown(address: str) -> None:
    with pytest.raises(ConfigError) as error:
        ChatClient(address, timeout_s=1, max_retries=0)
    assert "sk-secret" not in str(error.value)


@pytest.mark.parametrize("address", NO_HOST)
def test_an_address_that_nothing_can_be_sent_to_is_tried_once(address: str) -> None:
    client = ChatClient(address, timeout_s=1, max_retries=50)
    with pytest.raises(Unreachable) as error:
        client.get("/models")
    sentence(error)


def test_a_missing_file_of_certificates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/nowhere.pem")
    client = ChatClient("https://127.0.0.1:9/v1", timeout_s=1, max_retries=50)
    with pytest.raises(Unreachable, match=r"nowhere\.pem"):
        client.get("/models")


def test_a_proxy_that_is_no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://[::1")
    with pytest.raises(Unreachable):
        ChatClient("http://192.0.2.1:9/v1", timeout_s=1, max_retries=50).get("/models")


@pytest.mark.parametrize("body", [{"x": float("nan")}, {"x": float("inf")}])
def test_a_call_that_cannot_be_written_as_json_is_tried_once(body: dict[str, Any]) -> None:
    import threading

    with pytest.raises(Unreachable):
        ChatClient("http://127.0.0.1:9/v1", timeout_s=1, max_retries=50).post("/x", body, threading.Event())


@pytest.mark.parametrize("timeout_s", [0, -1, 1e308, float("inf"), float("nan"), 1e10])
def test_a_time_out_that_no_socket_takes(timeout_s: float) -> None:
    with pytest.raises(ConfigError, match=r"timeout_s=.* is not allowed: give a number .* up to 604,800\."):
        ChatClient("http://127.0.0.1:9/v1", timeout_s=timeout_s, max_retries=0)
