"""Values of another shape: replies, results, stores, checkpoints and settings that are parsed and then do not fit."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from zipfile import ZipFile

import pytest
from click.testing import CliRunner

from helpers.fake_server import FakeServer
from helpers.made_runs import STAMP, make_run
from helpers.scripted_runs import make_question, run
from helpers.tiny_models import save_tiny
from lm_eval_aft.cli import aft
from lm_eval_aft.core.config import AFTConfig
from lm_eval_aft.core.engine import HostArgs
from lm_eval_aft.core.errors import AFTError, ConfigError, EngineError, RecordError, StoreError
from lm_eval_aft.core.files import locked
from lm_eval_aft.core.loading import reason_of
from lm_eval_aft.core.records import Completion
from lm_eval_aft.engines.registry import load_engine
from lm_eval_aft.inference.requests import announce
from lm_eval_aft.judging.alpaca_eval.files import read_annotations, read_outputs
from lm_eval_aft.judging.alpaca_eval.package import find_difficulty
from lm_eval_aft.judging.mt_bench.data import read_answers, read_question_file
from lm_eval_aft.judging.mt_bench.rate import RatingOptions, judge_answers
from lm_eval_aft.model import AFTLM
from lm_eval_aft.storage.draft_store import SQLiteStore
from lm_eval_aft.storage.results import read_runs
from lm_eval_aft.storage.traces import write_traces
from trainers.fitting.run import check_checkpoint
from trainers.rows.row import read_training_rows
from trainers.rows.samples import make_samples
from trainers.settings import TrainConfig, make_config
from trainers.train import run_training


class Hang(BaseException):
    """A block waited without end."""


@pytest.fixture
def no_hang() -> Iterator[None]:
    def end(*_: object) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


# ------------------------------------------------------------------ counts

ENDLESS: dict[str, dict[str, Any]] = {
    "k": {"k": 10**9},
    "layers": {"layers": 10**6},
    "both": {"k": 10**5, "layers": 10**5},
    "digits": {"k": 10**400},
    "orders": {"mcq": "drafts", "mcq_orders": 10**9},
    "beams": {"strategy": "beam", "k": 10**9},
    "votes": {"strategy": "majority", "k": 10**9},
    "refine": {"strategy": "refine", "layers": 10**7},
    "subset": {"subset": 2, "layers": 10**12},
}


@pytest.mark.parametrize("name", ENDLESS)
def test_settings_without_end_say_how_many_generations_they_would_be(name: str) -> None:
    with pytest.raises(ConfigError, match=r"would be (\d[\d,]*|more than 10\*\*30) generations a question"):
        AFTConfig.split(ENDLESS[name])


def test_the_largest_settings_are_allowed() -> None:
    assert AFTConfig.split({"k": 1000, "layers": 99})[0].generations == 99_001


def test_many_questions_of_many_generations() -> None:
    questions = [make_question("x")] * 2_000
    with pytest.raises(ConfigError, match="2,000 questions would be 198,002,000 generations, and at most 100,000,000"):
        announce(questions, AFTConfig(k=1000, layers=99), 2_000)


def test_repeats_of_a_judge(tmp_path: Path) -> None:
    answers = SimpleNamespace(questions=[SimpleNamespace(turns=("a", "b"))] * 80, answers=[])
    options = RatingOptions(repeats=10**9)
    with pytest.raises(ConfigError, match="--repeats 1,000,000,000 would be 160,000,000,000 generations of the judge"):
        judge_answers(answers, SimpleNamespace(), SimpleNamespace(model="j"), options, print)  # type: ignore[arg-type]


def test_sets_of_a_query(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"query": "q", "drafts": ["a", "b"], "target": "t"}\n' * 3)
    config = TrainConfig(model="m", data="d", output="o", sets_per_query=10**9)
    with pytest.raises(ConfigError, match="sets_per_query=1000000000 of 3 rows would be 3,000,000,000 examples"):
        make_samples(read_training_rows(file), "aft", config)


@pytest.mark.parametrize("k", ["1000000000", "1,1000000"])
def test_a_sweep(tmp_path: Path, k: str) -> None:
    words = ["sweep", "--model_args", "engine=scripted", "--tasks", "aft_arith", "--output_path", str(tmp_path / "o")]
    done = CliRunner().invoke(aft, [*words, "--k", k])
    assert isinstance(done.exception, ConfigError)
    assert "generations a question, and at most 100,000" in str(done.exception)


@pytest.mark.parametrize("rank", [10**9, 65_536, -1, "x", 1.5])
def test_a_rank_that_no_adapter_has(rank: object) -> None:
    with pytest.raises(ConfigError, match=r"lora_rank=.* is not allowed"):
        make_config({"model": "m", "data": "d", "output": "o", "lora_rank": rank}, "c.yaml")


# ------------------------------------------------------------------ streams and locks


PIPED = ("report OUT", "report OUT --html PAGE", "votes OUT", "diagnose OUT", "compare OUT OUT")


@pytest.mark.usefixtures("no_hang")
@pytest.mark.parametrize("place", ["traces", "samples", "results", "log"])
@pytest.mark.parametrize(
    "command", ["report OUT", "report OUT --html PAGE", "votes OUT", "diagnose OUT", "compare OUT OUT"]
)
def test_a_pipe_among_the_files_of_a_run(tmp_path: Path, place: str, command: str) -> None:
    results = make_run(tmp_path, [1.0, 1.0, 0.0, 0.0], k=2, layers=1)
    traces = run([make_question(f"q{number}", doc_id=number) for number in range(4)], 2, 1)
    (trace_file,) = write_traces(str(tmp_path / "traces"), {"k": 2, "layers": 1, "model": "m"}, traces)
    named = {"traces": trace_file, "samples": tmp_path / f"samples_t_{STAMP}.jsonl", "results": results}
    pipe = named.get(place, tmp_path / "log.jsonl")
    pipe.unlink(missing_ok=True)
    os.mkfifo(pipe)
    words = [{"OUT": str(tmp_path), "PAGE": str(tmp_path / "p.html")}.get(word, word) for word in command.split()]
    done = CliRunner().invoke(aft, words)
    assert done.exception is None or isinstance(done.exception, AFTError | SystemExit), done.exception


@pytest.mark.usefixtures("no_hang")
@pytest.mark.parametrize(
    "command",
    [
        *("template check PIPE", "cache info PIPE", "cache verify PIPE", "train sft --config PIPE", "data stats PIPE"),
        *("data import PIPE out", "report PIPE", "votes PIPE", "judge mt_bench --judgments PIPE"),
        *("judge alpaca_eval --annotations PIPE", "compare PIPE PIPE"),
    ],
)
def test_a_pipe_in_place_of_a_file(tmp_path: Path, command: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    done = CliRunner().invoke(aft, [str(tmp_path / "pipe") if word == "PIPE" else word for word in command.split()])
    assert isinstance(done.exception, AFTError), done.exception


CHECKPOINT_FILES = ("config.json", "tokenizer.json", "model.safetensors", "aft_config.json", "x.safetensors.index.json")


@pytest.mark.usefixtures("no_hang")
@pytest.mark.parametrize("name", CHECKPOINT_FILES)
def test_a_pipe_among_the_files_of_a_checkpoint(tmp_path: Path, tiny: str, name: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny, folder)
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    with pytest.raises(AFTError, match="stream, not a file"):
        AFTLM(pretrained=str(folder), device="cpu")
    (tmp_path / "rows.jsonl").write_text('{"query": "a", "drafts": [], "target": "", "sft_target": "b"}\n')
    config = TrainConfig(model=str(folder), data=str(tmp_path / "rows.jsonl"), output=str(tmp_path / "out"))
    with pytest.raises(AFTError, match="stream, not a file"):
        run_training("sft", config)


@pytest.mark.usefixtures("no_hang")
@pytest.mark.parametrize("name", ["optimizer.pt", "adapter_config.json", "adapter_model.safetensors"])
def test_a_pipe_among_the_files_of_a_training(tmp_path: Path, name: str) -> None:
    for file in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", name):
        if file == name:
            (tmp_path / file).unlink(missing_ok=True)
            os.mkfifo(tmp_path / file)
        elif file.endswith(".json"):
            (tmp_path / file).write_text("{}")
        else:
            ZipFile(tmp_path / file, "w").close()
    with pytest.raises(AFTError, match="stream, not a file"):
        check_checkpoint(tmp_path)


@pytest.mark.usefixtures("no_hang")
def test_a_pipe_in_place_of_the_difficulties(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "df_gamed.csv")
    with pytest.raises(AFTError, match="stream, not a file"):
        find_difficulty(tmp_path)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_is_named_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    import fcntl

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "lockf", refuse)
    with pytest.raises(StoreError, match=r"s\.sqlite has no locks \(.*\), .* give cache= a path on a local disk"):
        SQLiteStore(tmp_path / "s.sqlite")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_locked_for_one_process(tmp_path: Path) -> None:
    with locked(tmp_path, "busy"), pytest.raises(ConfigError, match="busy"), locked(tmp_path, "busy"):
        pass
    with locked(tmp_path, "busy"):
        assert list(tmp_path.iterdir()) == []


def test_a_lock_ends_with_the_process_that_holds_it(tmp_path: Path) -> None:
    ready, go_on = os.pipe()
    child = os.fork()
    if not child:
        with locked(tmp_path, "busy"):
            os.write(go_on, b"x")
            signal.pause()
    os.read(ready, 1)
    with pytest.raises(ConfigError, match="busy"), locked(tmp_path, "busy"):
        pass
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with locked(tmp_path, "busy"):
        pass


def test_a_folder_that_cannot_be_locked_is_used_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import fcntl

    def refuse(*_: object) -> None:
        raise OSError(errno.EBADF, "Bad file descriptor")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with locked(tmp_path, "busy"):
        assert "cannot be locked" in caplog.text


# ------------------------------------------------------------------ replies


@pytest.fixture
def server() -> Iterator[FakeServer]:
    made = FakeServer()
    yield made
    made.close()


def load_api(server: FakeServer) -> Any:
    return load_engine("api", {"base_url": server.url, "model": "m", "max_retries": 0}, HostArgs(1, None, "cpu"))


@pytest.mark.parametrize(
    "models",
    [
        *({"data": 5}, {"data": "x"}, {"data": {"id": "m"}}, {"data": None}, {"data": [5, "x", None, []]}, {"x": 1}),
        *({"data": [{"id": ["m"]}]}, {"data": [{"name": "m"}]}, {"object": "list"}),
    ],
)
def test_a_list_of_models_of_another_shape(server: FakeServer, models: dict[str, Any]) -> None:
    server.models = 200, models, {}
    with pytest.raises(EngineError, match="has no model=m: it lists"):
        load_api(server)


@pytest.mark.parametrize("length", [True, -5, 0, "8192", 1.5, None, [1], 10**400])
def test_a_context_length_that_is_none_is_assumed(server: FakeServer, length: Any) -> None:
    server.models = 200, {"data": [{"id": "m", "max_model_len": length}]}, {}
    assert load_api(server).max_length == 8192


@pytest.mark.parametrize("body", ["[" * 200_000, '{"a":' * 100_000, "5", "", "null", "[]", "{", "9" * 5_000])
@pytest.mark.parametrize("status", [200, 302, 400, 500])
def test_a_reply_that_is_no_json_object(server: FakeServer, body: str, status: int) -> None:
    server.models = status, body, {"Location": "http://a..b/"} if status == 302 else {}
    with pytest.raises(EngineError, match="base_url="):
        load_api(server)


# ------------------------------------------------------------------ results and stores


@pytest.mark.parametrize("count", [0, -1, 10**31, "x", None, [], {}, float("nan")])
def test_a_number_of_questions_that_is_none(tmp_path: Path, count: Any) -> None:
    make_run(tmp_path, [1.0, 0.0], **{"n-samples": {"t": {"original": 2, "effective": count}}})
    with pytest.raises(RecordError, match=r"results_.*json is not a results file of lm-eval"):
        read_runs(tmp_path)


TASKS = ("../../x", "/etc/x", "..", ".", "a/b", "x" * 5_000, "\u20ac" * 500, "a\0b", "\ud800", "", "\u202e", "a\nb")
COMMANDS = ("report OUT", "report OUT --html PAGE", "votes OUT", "plot OUT --frontier --png PNG", "compare OUT OUT2")


# Fonts have no letters for the two names that are left out.
UNDRAWN = ("a\0b", "\ud800")
NAMED = [(command, task) for command in COMMANDS for task in TASKS if "plot" not in command or task not in UNDRAWN]


@pytest.mark.parametrize(("command", "task"), NAMED)
def test_a_task_of_another_name(tmp_path: Path, task: str, command: str) -> None:
    for name in ("out", "out2"):
        path = make_run(tmp_path / "in" / name, [1.0, 0.0])
        data = json.loads(path.read_text())
        for part in ("results", "n-samples", "versions", "n-shot", "higher_is_better"):
            data[part] = {task: data[part]["t"]}
        path.write_text(json.dumps(data))
    places = {"OUT": "in/out", "OUT2": "in/out2", "PAGE": "in/p.html", "PNG": "in/png"}
    words = [str(tmp_path / places[word]) if word in places else word for word in command.split()]
    done = CliRunner().invoke(aft, words)
    assert done.exception is None or isinstance(done.exception, AFTError | SystemExit), done.exception
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize("key", ["a text", "", "\u202e", 5, 1.5, "x" * 10_000])
def test_a_row_of_the_store_whose_key_is_no_hash(tmp_path: Path, key: Any) -> None:
    path = tmp_path / "s.sqlite"
    store = SQLiteStore(path)
    store.put("ab" * 32, Completion("text", (1,), "stop", 5, 5, 1))
    store.close()
    with closing(sqlite3.connect(path)) as db, db:
        db.execute(
            "INSERT INTO generations SELECT ?, text, token_ids, finish_reason, 1, 1, 1, NULL, NULL, NULL, NULL, digest "
            "FROM generations",
            [key],
        )
    db.close()
    info = SQLiteStore(path, create=False).verify()
    assert len(info.damaged) == 1
    assert len(info.damaged[0]) <= 80
    done = CliRunner().invoke(aft, ["cache", "verify", str(path)])
    assert done.exit_code == 1
    assert SQLiteStore(path).get(["ab" * 32])["ab" * 32].text == "text"


ANSWER = {"question_id": 81, "model_id": "m", "choices": [{"index": 0, "turns": ["one", "two"]}], "tstamp": 1.5}
DIALOGUE = {"question_id": 81, "category": "math", "turns": ["first", "second"], "reference": ["a", "b"]}
OUTPUT = [{"instruction": "i", "output": "o", "generator": "g", "dataset": "d"}]
COMPARISON = [
    {"instruction": "i", "output_1": "a", "output_2": "b", "generator_1": "x", "generator_2": "y", "preference": 1}
]


@pytest.mark.parametrize(
    ("name", "value", "read"),
    [
        ("a.jsonl", ANSWER, read_answers),
        ("q.jsonl", DIALOGUE, read_question_file),
        ("o.json", OUTPUT, read_outputs),
        ("n.json", COMPARISON, read_annotations),
    ],
)
def test_a_byte_order_mark(tmp_path: Path, name: str, value: Any, read: Callable[[Path], Any]) -> None:
    (tmp_path / name).write_text(json.dumps(value), encoding="utf-8")
    expected = read(tmp_path / name)
    (tmp_path / name).write_text(json.dumps(value), encoding="utf-8-sig")
    assert read(tmp_path / name) == expected


# ------------------------------------------------------------------ checkpoints


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(save_tiny(tmp_path_factory.mktemp("sound")))


CONFIGS: list[dict[str, Any]] = [
    *({"num_attention_heads": 0}, {"num_attention_heads": 3}, {"num_key_value_heads": 0}, {"num_key_value_heads": 3}),
    *({"eos_token_id": "x"}, {"eos_token_id": [["a"]]}, {"hidden_size": 0}, {"hidden_size": -4}, {"hidden_size": "x"}),
    *({"hidden_size": 64}, {"num_hidden_layers": -1}, {"vocab_size": 0}, {"model_type": "nonsense"}, {"model_type": 5}),
    *({"hidden_act": "nope"}, {"head_dim": 0}, {"dtype": "nope"}, {"intermediate_size": None}, {"rms_norm_eps": "x"}),
    *({"quantization_config": 5}, {"quantization_config": {"quant_method": "nope"}}, {"rope_parameters": 5}),
]


def load_or_refuse(folder: Path) -> None:
    """Load a checkpoint. Our own error is one line that names the folder and gives a reason."""
    try:
        load_engine("hf", {"pretrained": str(folder)}, HostArgs(1, None, "cpu"))
        message = ""
    except EngineError as error:
        message = str(error)
    assert "\n" not in message
    assert not message or re.fullmatch(f"pretrained={re.escape(str(folder))} cannot be loaded: .*[^:]", message)


@pytest.mark.parametrize("change", CONFIGS, ids=str)
def test_a_config_that_no_model_has(sound: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    folder = tmp_path / "odd"
    shutil.copytree(sound, folder)
    config = json.loads((folder / "config.json").read_text()) | change
    (folder / "config.json").write_text(json.dumps(config))
    load_or_refuse(folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"])
@pytest.mark.parametrize("content", ["", "[]", "5", '"x"', "null", "{", "[" * 100_000])
def test_a_file_of_a_checkpoint_of_another_kind(sound: Path, tmp_path: Path, name: str, content: str) -> None:
    folder = tmp_path / "odd"
    shutil.copytree(sound, folder)
    (folder / name).write_text(content)
    load_or_refuse(folder)


# peft uses a name that transformers deprecates.
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_an_adapter_of_another_size(sound: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base, small = AutoModelForCausalLM.from_pretrained(sound), LoraConfig(r=2, target_modules=["q_proj"])
    model = get_peft_model(base, small)
    model.save_pretrained(tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text()) | {"r": 4}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    args = {"pretrained": str(sound), "peft": str(tmp_path / "adapter")}
    with pytest.raises(EngineError, match=r"cannot be loaded: .*size mismatch for .*lora_A"):
        load_engine("hf", args, HostArgs(1, None, "cpu"))


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (
            RuntimeError("Error(s) in loading X:\n\tsize mismatch for a:\n b is not c\nmore"),
            ": size mismatch for a: b is not c",
        ),
        (KeyError("q"), "KeyError: 'q'"),
        (ZeroDivisionError("integer division or modulo by zero"), "ZeroDivisionError: integer"),
        (ValueError(), "ValueError"),
        (ValueError("\n\n one\ntwo"), "one"),
        (ValueError("x" * 5_000), "x" * 300),
    ],
)
def test_the_reason_that_an_error_gives(error: Exception, reason: str) -> None:
    assert reason in reason_of(error)
    assert len(reason_of(error)) <= 300


def test_a_tokenizer_of_a_server_that_makes_a_loader_fail(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text("[" * 100_000)
    args = {"base_url": "http://127.0.0.1:9/v1", "model": "m", "tokenizer": str(tmp_path)}
    with pytest.raises(EngineError, match=r"tokenizer=.* cannot be loaded: "):
        load_engine("api", args, HostArgs(1, None, "cpu"))
