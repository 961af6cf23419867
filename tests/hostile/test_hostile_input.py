"""Malformed input gives a value, or one sentence that names the file or the argument, never a traceback."""

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from helpers.made_runs import make_run
from helpers.made_traces import trace_of_texts
from helpers.scripted_runs import make_question, run
from lm_eval_aft.cli import aft
from lm_eval_aft.core.chat import decode
from lm_eval_aft.core.errors import AFTError, ChatError, ConfigError, RecordError, TemplateError
from lm_eval_aft.core.prompts import Template
from lm_eval_aft.core.records import Chat, Message
from lm_eval_aft.inference.checkpoint import CheckpointConfig
from lm_eval_aft.judging.alpaca_eval.files import read_annotations, read_outputs
from lm_eval_aft.judging.mt_bench.data import read_answers
from lm_eval_aft.storage.results import results_files
from lm_eval_aft.storage.traces import read_traces
from trainers.rows.importers import import_rows
from trainers.rows.row import read_training_rows
from trainers.settings import load_config


@pytest.mark.parametrize(
    "rest",
    [
        "",
        "[]}",
        "3}",
        '[{"role": "user", "content": 5}], "prefill": false}',
        '[{"role": "assistant", "content": "x"}]}',
        "[" * 100_000,
    ],
)
def test_a_damaged_chat_context(rest: str) -> None:
    with pytest.raises(ChatError, match="changed the chat context"):
        decode('{"aft_chat": ' + rest)


@pytest.mark.parametrize("line", [b"\xff\xfe", b"[]", b"3", b"null", b"{}", b'{"question": 1}', b"[" * 100_000])
def test_a_damaged_trace_names_file_and_line(tmp_path: Path, line: bytes) -> None:
    file = tmp_path / "t.jsonl"
    file.write_bytes(line + b"\n")
    with pytest.raises(RecordError, match=r"t\.jsonl line 1 (is not|cannot be read)"):
        list(read_traces(file))


@pytest.mark.parametrize(
    "attack",
    [
        "{{ 1 / 0 }}",
        "{{ drafts + 1 }}",
        "{{ range(10 ** 9) }}",
        "{{ question.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ drafts.append('x') }}",
    ],
)
def test_a_template_that_breaks_or_reaches_out_is_refused_by_name(attack: str) -> None:
    template = Template("{% block draft %}{% endblock %}{% block aggregate %}" + attack + "{% endblock %}", "mine.j2")
    with pytest.raises(TemplateError, match=r"template mine\.j2"):
        template.aggregate_chat(Chat((Message("user", "x"),)), ["a"])


def test_a_template_path_with_a_nul() -> None:
    with pytest.raises(TemplateError, match="holds a NUL"):
        Template.load("a\0b")


def test_a_set_value_that_is_not_yaml(tmp_path: Path) -> None:
    file = tmp_path / "s.yaml"
    file.write_text("seed: 0\n")
    with pytest.raises(ConfigError, match="--set k="):
        load_config(str(file), ["k=[1,"])


@pytest.mark.parametrize(
    "read", [read_answers, read_outputs, read_annotations, CheckpointConfig.load, read_training_rows, load_config]
)
@pytest.mark.parametrize("content", ["[" * 100_000, "2001-99-99", "[3]", '"x"'])
def test_a_file_of_another_kind_is_refused_by_name(tmp_path: Path, read, content: str) -> None:
    file = tmp_path / "odd.jsonl"
    file.write_text(content)
    with pytest.raises(AFTError, match=r"odd\.jsonl"):
        read(file if read is not load_config else str(file))


@pytest.mark.parametrize(
    ("layer", "message"), [(2**63, "layer 9223372036854775808"), (-1, "layer -1"), (None, "layer None")]
)
def test_an_impossible_layer_is_refused_before_anything_counts_up_to_it(tmp_path: Path, layer, message: str) -> None:
    (trace,) = run([make_question("q")], 2, 1)
    row = json.loads(trace.to_json())
    row["drafts"][0]["layer"] = layer
    (tmp_path / "t.jsonl").write_text(json.dumps(row))
    with pytest.raises(RecordError, match=rf"t\.jsonl line 1 is not a trace \(ValueError: {message}"):
        list(read_traces(tmp_path))


@pytest.mark.parametrize("part", ["usage", "settings"])
@pytest.mark.parametrize("value", [[1], {}, -1, 10**400, float("nan"), "../../x"])
def test_a_trace_whose_counts_are_no_counts(tmp_path: Path, part: str, value: object) -> None:
    (trace,) = run([make_question("q")], 2, 1)
    row = json.loads(trace.to_json())
    row["settings"] |= {"k": 2, "layers": 1}
    row[part]["generated_tokens" if part == "usage" else "layers"] = value
    (tmp_path / "t.jsonl").write_text(json.dumps(row))
    with pytest.raises(RecordError, match=r"t\.jsonl line 1 is not a trace \(ValueError: a count is"):
        list(read_traces(tmp_path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: row["drafts"].clear(), "at least one text"),
        (lambda row: row["question"]["chat"]["messages"].clear(), "and a question"),
        (lambda row: row["drafts"][-1].update(layer=2), r"the layers \[0, 2\] and of none between"),
        (lambda row: row["settings"].pop("layers"), "KeyError: 'layers'"),
    ],
)
def test_a_trace_with_a_part_missing(tmp_path: Path, change, message: str) -> None:
    (trace,) = run([make_question("q")], 2, 1)
    row = json.loads(trace.to_json())
    row["settings"] |= {"k": 2, "layers": 1}
    change(row)
    (tmp_path / "t.jsonl").write_text(json.dumps(row))
    with pytest.raises(RecordError, match=rf"t\.jsonl line 1 is not a trace .*{message}"):
        list(read_traces(tmp_path))


@pytest.mark.parametrize("name", ["task", "doc_id", "doc_hash", "repeat", "turn"])
def test_a_trace_of_a_question_with_a_damaged_name(tmp_path: Path, name: str) -> None:
    (trace,) = run([make_question("q")], 2, 1)
    row = json.loads(trace.to_json())
    row["question"][name] = ["x"]
    (tmp_path / "t.jsonl").write_text(json.dumps(row))
    with pytest.raises(RecordError, match=r"t\.jsonl line 1 is not a trace \(TypeError"):
        list(read_traces(tmp_path))


def test_traces_that_are_not_there_have_a_message_about_reading(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"gone\.jsonl does not exist: give the folder that record= named"):
        list(read_traces(tmp_path / "gone.jsonl"))


WRONG_TYPES: dict[str, list[object]] = {
    "question/drafts/temperature": ["x", None, [1]],
    "question/drafts/seeded": [["a"], "x"],
    "question/final/repetition_penalty": [{}, "1"],
    "question/final/until": [[1], [None]],
    "question/until": [[1], [["a"]]],
    "question/task": [True, 5, None],
    "question/chat/messages/0/content": [["a"], None, 5],
    "question/chat/messages/0/role": [["a"], None],
    "question/chat/prefill": [["a"], 5],
    "question/think_end": [[None], 5],
    "cut_tokens": ["../..", [["x"]], [[None]], [[-1]]],
    "drafts/0/seed": ["x", []],
    "drafts/0/reused": ["x", []],
    "drafts/0/elapsed_s": ["x", {}],
    "drafts/0/completion/finish_reason": [5, ["stop"]],
    "drafts/0/completion/prompt_tokens": ["x", [1]],
}


WRONG = [(place, value) for place, values in WRONG_TYPES.items() for value in values]


@pytest.mark.parametrize(("place", "value"), WRONG)
def test_a_trace_with_a_value_of_another_type(tmp_path: Path, place: str, value: object) -> None:
    row = json.loads(trace_of_texts(["is 7"], ["is 8"]).to_json())
    *steps, last = place.split("/")
    at = row
    for step in steps:
        at = at[int(step)] if step.isdigit() else at[step]
    at[last] = value
    (tmp_path / "t.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(RecordError, match=r"t\.jsonl line 1"):
        list(read_traces(tmp_path))


@pytest.mark.parametrize("command", ["report", "report --model-card", "report --format csv", "votes"])
@pytest.mark.parametrize(
    "changes",
    [
        {"n-shot": {"t": ["a", "a"]}},
        {"n-shot": {"t": "five"}},
        {"n-shot": {"t": {}}},
        {"config": {"model": "hf", "limit": "ten"}},
        {"config": {"model": "hf", "limit": [1]}},
        {"config": {"model": "hf", "limit": {"a": 1}}},
    ],
)
def test_conditions_of_another_type(tmp_path: Path, changes: dict[str, object], command: str) -> None:
    make_run(tmp_path, [1.0, 0.0], **changes)
    done = CliRunner().invoke(aft, [*command.split(), str(tmp_path)])
    assert done.exception is None or isinstance(done.exception, AFTError | SystemExit), done.exception


def test_a_folder_that_is_removed_while_it_is_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_run(tmp_path / "a", [1.0, 0.0])
    (tmp_path / "b").mkdir()
    scan = os.scandir

    def scandir(path):
        if str(path) == str(tmp_path / "b"):
            raise FileNotFoundError(path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert [file.parent.name for file in results_files(tmp_path)] == ["a"]


@pytest.mark.parametrize("score", [10**400, "1e999", "nan", {}, [1], True])
def test_a_score_of_a_data_set_that_is_no_number(tmp_path: Path, score: object) -> None:
    source = tmp_path / "u.jsonl"
    row = {"instruction": "i", "completions": [{"response": "a", "overall_score": score}]}
    source.write_text(json.dumps(row) + "\n")
    if score is True:
        assert import_rows(source).rows[0]["scores"] == [1.0]
        return
    with pytest.raises(ConfigError, match=r"row 1 of .*u\.jsonl"):
        import_rows(source)
