"""Many malformed inputs: every reader gives a value, or one sentence that names what it read, never a traceback.

Each test changes a valid file in one or two places and reads it again. A change is a value of another kind, a missing
key, flipped bytes, or a missing end. ``make test`` runs few examples, CI runs more, and ``make test-hostile`` runs a
thousand.
"""

from __future__ import annotations

import copy
import json
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers.made_runs import STAMP, make_run
from helpers.scripted_runs import make_question, run
from lm_eval_aft.cli import aft
from lm_eval_aft.core.chat import ChatContext, decode
from lm_eval_aft.core.config import AFTConfig, names, samplings
from lm_eval_aft.core.errors import AFTError
from lm_eval_aft.core.prompts import Template
from lm_eval_aft.core.records import Chat, Completion, Message
from lm_eval_aft.engines.api.responses import completions
from lm_eval_aft.engines.scripted import ScriptedEngine
from lm_eval_aft.inference.checkpoint import CheckpointConfig
from lm_eval_aft.judging.alpaca_eval.files import read_annotations, read_outputs
from lm_eval_aft.judging.judge import BrokenReply, JudgeReply, parse_reply
from lm_eval_aft.judging.mt_bench.data import read_answers, read_question_file
from lm_eval_aft.judging.mt_bench.replies import parse_rating, read_judgements
from lm_eval_aft.storage.draft_store import SQLiteStore
from lm_eval_aft.storage.traces import read_traces, write_traces
from trainers.rows.row import read_training_rows
from trainers.settings import load_config

EXAMPLES = int(os.environ.get("HOSTILE_EXAMPLES", "8"))
few = settings(
    max_examples=EXAMPLES,
    derandomize=EXAMPLES <= 30,
    database=None,
    suppress_health_check=list(HealthCheck),
)
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([10**400, -1, 0, 2**63]),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(
        ["", "\x00", "\ud800".encode("utf-8", "surrogatepass").decode("utf-8", "replace"), "../../x", "{}"]
    ),
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
)


@contextmanager
def refusing(*names: str) -> Iterator[list[str]]:
    """Accept one of our errors if its message is one line and holds one of the names. Yield the list of messages."""
    messages: list[str] = []
    try:
        yield messages
    except AFTError as error:
        messages.append(str(error))
        assert "\n" not in messages[0].strip(), messages[0]
        assert any(name in messages[0] for name in names), messages[0]


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place inside a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, part in inner for place in places(part, (*path, key)))]


def changed(value: Any, path: tuple[Any, ...], other: Any, *, drop: bool) -> Any:
    if not path:
        return other
    value = copy.deepcopy(value)
    holder = value
    for key in path[:-1]:
        holder = holder[key]
    if drop:
        del holder[path[-1]]
    else:
        holder[path[-1]] = other
    return value


@st.composite
def damaged(draw: Any, valid: Any) -> Any:
    """A valid JSON value with one or two places changed."""
    for _ in range(draw(st.integers(1, 2))):
        path = draw(st.sampled_from(places(valid)))
        valid = changed(valid, path, draw(values), drop=draw(st.booleans()))
    return valid


@st.composite
def damaged_bytes(draw: Any, valid: bytes) -> bytes:
    """The bytes with some of them changed, and perhaps without their end."""
    made = bytearray(valid)
    for _ in range(draw(st.integers(0, 4))):
        made[draw(st.integers(0, len(made) - 1))] = draw(st.integers(0, 255))
    return bytes(made[: draw(st.integers(0, len(made)))] if draw(st.booleans()) else made)


def trace_row() -> dict[str, Any]:
    (trace,) = run([make_question("how many?")], 2, 1)
    row: dict[str, Any] = json.loads(trace.to_json())
    return row | {"settings": {"k": 2, "layers": 1, "model": "m"}}


ANSWER = {"question_id": 81, "model_id": "m", "choices": [{"index": 0, "turns": ["one", "two"]}], "tstamp": 1.5}
DIALOGUE = {"question_id": 81, "category": "math", "turns": ["first", "second"], "reference": ["a", "b"]}
JUDGEMENT = {"question_id": 81, "model": "m", "judge": ["gpt-4", "single-v1"], "judgment": "[[7]]", "score": 7}
JUDGEMENT |= {"turn": 1, "user_prompt": "x", "tstamp": 1.5}
OUTPUT = [{"instruction": "i", "output": "o", "generator": "g", "dataset": "d"}]
ANNOTATION = [{"instruction": "i", "output_1": "a", "output_2": "b", "generator_1": "x", "generator_2": "y"}]
ANNOTATION[0] |= {"annotator": "n", "preference": 1.5}  # type: ignore[dict-item]
CARD = {
    "template": "{% block draft %}{% endblock %}{% block aggregate %}{% endblock %}",
    "template_sha256": "x",
    "k": 5,
}
ROW = {"query": "q", "drafts": ["a", "b"], "target": "t"}
READERS: dict[str, tuple[Any, str, Callable[[Path], Any]]] = {
    "trace": (trace_row(), "t.jsonl", lambda file: list(read_traces(file))),
    "FastChat answers": (ANSWER, "a.jsonl", read_answers),
    "MT-Bench questions": (DIALOGUE, "q.jsonl", read_question_file),
    "judgements": (JUDGEMENT, "j.jsonl", read_judgements),
    "alpaca outputs": (OUTPUT, "o.json", read_outputs),
    "alpaca annotations": (ANNOTATION, "n.json", read_annotations),
    "checkpoint config": (CARD, "aft_config.json", CheckpointConfig.load),
    "training rows": (ROW, "r.jsonl", read_training_rows),
    "training config": ({"model": "m", "data": "d", "output": "o", "k": 3}, "c.yaml", lambda f: load_config(str(f))),
}


@pytest.mark.parametrize("kind", READERS)
def test_a_valid_file_is_read(kind: str, tmp_path: Path) -> None:
    valid, name, read = READERS[kind]
    (tmp_path / name).write_text(json.dumps(valid))
    if kind not in ("checkpoint config", "training config"):
        assert read(tmp_path / name)


@pytest.mark.parametrize("kind", READERS)
@few
@given(data=st.data())
def test_a_file_with_one_place_wrong(kind: str, tmp_path: Path, data: Any) -> None:
    valid, name, read = READERS[kind]
    text = json.dumps(data.draw(damaged(valid)))
    (tmp_path / name).write_text(text)
    # The message about a setting may name the setting instead of the file.
    with refusing(name, *(valid if kind == "training config" else ())):
        read(tmp_path / name)


@pytest.mark.parametrize("kind", READERS)
@few
@given(data=st.data())
def test_a_file_with_bytes_flipped(kind: str, tmp_path: Path, data: Any) -> None:
    valid, name, read = READERS[kind]
    (tmp_path / name).write_bytes(data.draw(damaged_bytes(json.dumps(valid).encode())))
    with refusing(name, *(valid if kind == "training config" else ())):
        read(tmp_path / name)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A valid run, and the results, samples and traces of another."""
    root = tmp_path_factory.mktemp("runs")
    make_run(root / "good", [1.0, 0.0, 1.0, 0.0])
    results = make_run(root / "bad", [1.0, 1.0, 0.0, 0.0], k=2, layers=1)
    traces = run([make_question(f"q{number}", doc_id=number) for number in range(4)], 2, 1)
    traces = [replace(t, question=replace(t.question, doc_hash=f"h{t.question.doc_id}")) for t in traces]
    (file,) = write_traces(str(root / "bad" / "traces"), {"k": 2, "layers": 1, "model": "m"}, traces)
    return {"root": root, "results": results, "samples": root / "bad" / f"samples_t_{STAMP}.jsonl", "traces": file}


COMMANDS = (
    "report good bad",
    "report bad --html page.html",
    "report good bad --model-card",
    "compare good bad",
    "votes bad",
    r"votes bad --regex (\d+)",
    "diagnose bad",
    r"diagnose bad --regex (\d+)",
    "plot bad --png figures",
    "export good bad --output tables",
    "export good bad --output records --every-eval-ever",
    "report bad --eval-results hub --benchmark t=a/b:c",
)


@settings(few, max_examples=3 * EXAMPLES)
@given(data=st.data())
def test_results_samples_and_traces_of_runs(runs: dict[str, Path], data: Any) -> None:
    """Every command that reads a damaged file gives a result, or one line that names the file."""
    kind = data.draw(st.sampled_from(["results", "samples", "traces"]))
    valid = runs[kind].read_text()
    lines = [valid] if kind == "results" else valid.splitlines()
    place = data.draw(st.integers(0, len(lines) - 1))
    lines[place] = json.dumps(data.draw(damaged(json.loads(lines[place]))))
    words = data.draw(st.sampled_from(COMMANDS)).split()
    paths = ("good", "bad", "page.html", "figures", "tables", "records", "hub")
    runs[kind].write_text("\n".join(lines))
    try:
        done = CliRunner().invoke(aft, [str(runs["root"] / word) if word in paths else word for word in words])
    finally:
        runs[kind].write_text(valid)
    # The message names a file, an option or a question.
    with refusing(str(runs["root"]), "--", "doc_id", "t: one point makes no figure"):
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception


@few
@given(args=st.dictionaries(st.one_of(st.sampled_from(names()), st.text(max_size=8)), values, max_size=4))
def test_model_arguments(args: dict[str, Any]) -> None:
    with refusing(*names()):
        config, rest = AFTConfig.split(args)
        samplings(config, {})
        assert set(rest) <= set(args)
        assert config.k >= 1
        assert config.layers >= 0


@few
@given(kwargs=st.dictionaries(st.sampled_from(["temperature", "top_p", "top_k", "max_gen_toks", "do_sample"]), values))
def test_generation_settings_of_a_task(kwargs: dict[str, Any]) -> None:
    with refusing(*kwargs):
        _, final = samplings(AFTConfig(), kwargs)
        assert final.max_tokens >= 1
        assert final.temperature >= 0


@few
@given(context=st.one_of(st.text(max_size=60), st.text(max_size=40).map(lambda text: '{"aft_chat": ' + text)))
def test_any_string_as_a_context(context: str) -> None:
    with refusing("chat context", "context"):
        assert decode(context).messages


@few
@given(turns=st.lists(st.tuples(st.sampled_from(["system", "user", "assistant"]), st.text(max_size=30)), min_size=1))
def test_any_conversation_is_the_same_after_lm_eval(turns: list[tuple[str, str]]) -> None:
    history = [{"role": role, "content": content} for role, content in turns]
    with refusing("message", "turn", "chat"):
        chat = decode(str(ChatContext.of(history, True)))
        assert [(m.role, m.content) for m in chat.messages] == turns


@few
@given(source=st.one_of(st.text(max_size=60), st.text(max_size=30).map("{{{{ {} }}}}".format)))
def test_any_template(source: str) -> None:
    blocks = "{% block draft %}{% endblock %}{% block aggregate %}" + source + "{% endblock %}"
    for text in (source, blocks):
        with refusing("mine.j2") as messages:
            Template(text, "mine.j2").aggregate_chat(Chat((Message("user", "q"),)), ["a", "b"])
        assert messages or "block" in text


@few
@given(text=st.text(max_size=200))
def test_any_reply_of_a_judge(text: str) -> None:
    found = parse_rating(text)
    assert found is None or 1 <= found <= 10


REPLY = {
    "choices": [{"message": {"content": "text"}, "finish_reason": "stop", "token_ids": [1, 2]}],
    "usage": {"prompt_tokens": 3, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 1}},
}


@few
@given(body=damaged(REPLY).filter(lambda body: isinstance(body, dict)))
def test_any_reply_of_a_server(body: dict[str, Any]) -> None:
    renderer = ScriptedEngine().renderer
    prompt = renderer.encode(Chat((Message("user", "q"),)))
    with refusing("server"):
        (found,) = completions(body, prompt, 1, renderer)
        assert isinstance(found.text, str)
        assert found.generated_tokens >= 0


TOP = [{"token": "m", "logprob": -0.1}, {"token": "M", "logprob": -2.5}]
PREFERENCE = {
    "choices": [
        {"message": {"content": "m"}, "finish_reason": "length", "logprobs": {"content": [{"top_logprobs": TOP}]}}
    ],
    "usage": {"prompt_tokens": 3, "completion_tokens": 1},
}


@few
@given(body=damaged(PREFERENCE).filter(lambda body: isinstance(body, dict)))
def test_any_reply_with_probabilities_of_a_judge(body: dict[str, Any]) -> None:
    """A reply is read or requested again; alpaca_eval reads the probabilities of m and M from it."""
    try:
        reply = parse_reply(body)
    except BrokenReply:
        return
    assert isinstance(reply, JudgeReply)
    assert isinstance(reply.text, str)
    assert all(isinstance(number, float) for number in (reply.top_logprobs or {}).values())
    assert isinstance(reply.prompt_tokens + reply.generated_tokens, int)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bytes of a store of forty rows, with nothing left in its write-ahead log."""
    path = tmp_path_factory.mktemp("store") / "s.sqlite"
    made = SQLiteStore(path)
    for number in range(40):
        made.put(f"{number:064x}", Completion(f"text {number} " * 20, (number, 7), "stop", 5, 5, 2))
    made.close()
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("PRAGMA journal_mode = DELETE")
    return path.read_bytes()


@few
@given(data=st.data())
def test_a_store_with_bytes_flipped_never_gives_a_wrong_text(store: bytes, tmp_path: Path, data: Any) -> None:
    path = tmp_path / "s.sqlite"
    for old in tmp_path.iterdir():
        old.unlink()
    path.write_bytes(data.draw(damaged_bytes(store)))
    wanted = [f"{number:064x}" for number in range(40)]
    with refusing("s.sqlite"):
        opened = SQLiteStore(path)
        try:
            found = opened.get(wanted)
        finally:
            opened.close()
        for number, key in enumerate(wanted):
            assert key not in found or found[key] == Completion(f"text {number} " * 20, (number, 7), "stop", 5, 5, 2)


@few
@given(text=st.text(max_size=200))
def test_trace_files_of_any_task_stay_in_their_folder(text: str, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    (trace,) = run([make_question("q")], 1, 0)
    named = replace(trace, question=replace(trace.question, task=text * 3))
    (file,) = write_traces(str(folder), {"k": 1, "layers": 0}, [named])
    assert file.resolve().parent == folder.resolve()
    assert len(file.name.encode()) <= 200
    assert [one.question.task for one in read_traces(file)] == [text * 3]
    file.unlink()
