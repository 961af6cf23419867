"""Output on a terminal: no control character of any data, bounded lines, and one sentence if it cannot be written."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import sqlite3
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from helpers.fake_judge import FakeJudge
from helpers.made_runs import make_run
from helpers.made_traces import trace_of_texts
from helpers.server_answers import ANSWERS, generate, judge
from lm_eval_aft.analysis.losses import LossCurve
from lm_eval_aft.analysis.report.figures import draw_losses
from lm_eval_aft.analysis.report.tables import FORMS, MAX_CELL, Cell, Column, Row, Table, render
from lm_eval_aft.cli import main
from lm_eval_aft.core.engine import HostArgs
from lm_eval_aft.core.errors import AFTError, ConfigError
from lm_eval_aft.core.records import Completion
from lm_eval_aft.core.terminal import (
    MAX_MESSAGE,
    PIPE_CLOSED,
    message,
    note,
    output_guard,
    show,
    spreadsheet_text,
    visible,
    visible_in_json,
)
from lm_eval_aft.engines.registry import load_engine
from lm_eval_aft.storage.draft_store import SQLiteStore
from lm_eval_aft.storage.traces import write_traces

ESCAPES = {
    "OSC 52 writes the clipboard": "a\x1b]52;c;cm0gLXJm\x07b",
    "OSC 52 with ST": "a\x1b]52;c;cm0=\x1b\\b",
    "OSC 8 is a link": "a\x1b]8;;http://x.example\x1b\\good.example\x1b]8;;\x1b\\b",
    "OSC 0 sets the title": "a\x1b]0;title\x07b",
    "CSI colour": "a\x1b[31mred\x1b[0mb",
    "CSI clear": "a\x1b[2J\x1b[Hb",
    "CSI status report": "a\x1b[6nb",
    "DCS": "a\x1bP$qm\x1b\\b",
    "APC": "a\x1b_G;x\x1b\\b",
    "RIS resets": "a\x1bcb",
    "C1 CSI": "a\x9b31mb",
    "C1 OSC": "a\x9d52;c;eA==\x9cb",
    "NEL": "a\x85b",
    "right to left": "a\u202egnp.exeb",
    "isolate": "a\u2066b\u2069c",
    "Arabic mark": "a\u061cb",
    "carriage return": "aaaaaaaa\rb",
    "bell": "a\x07b",
    "backspace": "abc\x08\x08\x08x",
    "form feed": "a\x0cb",
    "vertical tab": "a\x0bb",
    "delete": "a\x7fb",
    "shift out": "a\x0eb",
    "zero-width space": "a\u200bb",
    "zero-width joiner": "a\u200db",
    "zero-width non-joiner": "a\u200cb",
    "word joiner": "a\u2060b",
    "invisible times": "a\u2062b",
    "soft hyphen": "a\u00adb",
    "byte order mark": "a\ufeffb",
    "line separator": "a\u2028b",
    "paragraph separator": "a\u2029b",
    "annotation": "a\ufff9b\ufffbc",
    "tag characters": "a\U000e0041\U000e007fb",
    "variation selector that hides data": "a\U000e0101b",
    "Mongolian separator": "a\u180eb",
}
ALL = "".join(ESCAPES.values())
# What no output may hold. A line feed and a tab are ours.
RAW = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e0fff]|[a-z][\u200c\u200d]"
)


def is_clean(text: str) -> bool:
    return not RAW.search(text)


@pytest.mark.parametrize("name", ESCAPES)
def test_every_way_to_show_a_text(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = ESCAPES[name]
    assert RAW.search(text)
    show(text)
    show(text, err=True)
    note(text)
    lines = "".join(capsys.readouterr())
    in_json = visible_in_json(json.dumps({"name": text}, ensure_ascii=False))
    for shown in (visible(text), message(text), lines, spreadsheet_text(text), in_json, str(ConfigError(text))):
        assert is_clean(shown), shown
    assert json.loads(in_json) == {"name": text}


@pytest.mark.parametrize(
    "text", ["न्\u200dय", "\u0645\u06cc\u200c\u062e\u0648", "👩\u200d🔬", "naïve Ω 漢字", "a\tb", "1 ± 2 · 3"]
)
def test_texts_that_are_shown_as_they_are(text: str) -> None:
    assert visible(text) == text.replace("\t", " ")


@pytest.mark.parametrize("length", [MAX_MESSAGE + 1, 10_000, 1_000_000])
def test_a_message_is_bounded(length: int) -> None:
    shown = message("start " + "x" * length + " end")
    assert len(shown) == MAX_MESSAGE
    assert shown.startswith("start ")
    assert shown.endswith(" end")
    assert f"[{length + 10 - MAX_MESSAGE:,} characters and more are left out here]" in shown


# ---------------------------------------------------------------- names in files


def table_with(text: str) -> Table:
    columns = (Column(text, text), Column("v", text, True, text, ("stderr",)))
    return Table(text, columns, (Row((Cell(text), Cell(text, 1.5, text, (0.5,))), (text,)),), (text,))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ESCAPES)
def test_a_table(name: str, form: str) -> None:
    assert is_clean(render([table_with(ESCAPES[name])], form))


def test_a_line_of_a_table_is_bounded() -> None:
    lines = render([table_with("x" * 1_000_000)], "text").splitlines()
    assert max(map(len, lines)) <= MAX_MESSAGE + 10
    # A title, a head, a rule, a row and two remarks.
    assert max(map(len, lines[1:-2])) <= 2 * MAX_CELL + 10


FORMULAS = ["=1+1", "+1", "-1+1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", " =1", "\xa0=1", "\uff1d1", "\u200b=1", "\x00=1"]


@pytest.mark.parametrize("start", FORMULAS)
def test_no_field_of_a_csv_file_is_a_formula(start: str) -> None:
    for text in (start, f'{start}","=1', f"{start}\r\n=1", f"x\r{start}"):
        written = render([table_with(text)], "csv")
        rows = list(csv.reader(io.StringIO(written)))
        assert len(rows) == 2
        fields = [field for row in rows for field in row]
        assert not any(field.lstrip().startswith(("=", "+", "-", "@", "\uff1d")) for field in fields), fields
        assert "\r" not in written


def plant(folder: Path, text: str) -> Path:
    """Two runs with traces whose names and texts all hold this text. The names of files hold what a file can have."""
    name = text.replace("\0", "").replace("/", "")[:60]
    for number, (scores, k) in enumerate((([1.0, 0.0], 1), ([0.0, 1.0], 2))):
        run, task = folder / f"{number}{name}", f"t{name}"
        make_run(run, scores, task=task, k=k, layers=1, model=f"m{number}{text}", chat_template=text)
        (path,) = run.glob("results_*.json")
        data = json.loads(path.read_text())
        row = data["results"][task]
        data["results"][task] = {**row, "alias": text, f"{text},none": 0.5, f"acc,{text}": 0.25}
        data["config"]["aft"] |= {"engine": text, "template": {"name": text, "sha256": text}, "version": text}
        path.write_text(json.dumps(data))
        traces = [
            trace_of_texts([f"{text} {doc}"] * k, [f"so {doc}{text}"], doc=doc, task=task, model=text, engine=text)
            for doc in range(2)
        ]
        write_traces(str(run / "traces"), traces[0].settings, traces)
    return folder


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return plant(tmp_path_factory.mktemp("planted"), ALL)


def run_aft(*words: object) -> int:
    """Run a command in this process.

    Returns:
        Its exit code.
    """
    with pytest.raises(SystemExit) as end:
        main([str(word) for word in words])
    return int(end.value.code or 0)


READING = [
    *("report ALL", "report ALL --format markdown", "report ALL --format csv", "report ALL --format json"),
    *(
        "report ALL --every",
        "report ALL --every --format csv",
        "report ALL --model-card",
        "report ALL --html OUT/p.html",
    ),
    *("export ALL --output OUT", "export ALL --output OUT --every-eval-ever", "export TEXT --output OUT"),
    *("report ALL --eval-results OUT --benchmark t=a/b:c", "report ALL --eval-results OUT --benchmark TEXT"),
    *("compare A B", "compare A B --format json", "compare A B --format csv", "compare A B --metric none"),
    *("compare A B --metric TEXT", "compare A B --task TEXT", "compare A B --task TEXT --regex TEXT"),
    *("votes ALL", "votes ALL --regex \\d", "votes ALL --regex [ --format json", "votes ALL --task TEXT"),
    *("votes A --regex \\d --format csv", "votes A --regex TEXT", "diagnose A", "diagnose A --format json"),
    *("diagnose A --regex \\d", "diagnose A --task TEXT", "diagnose A --format markdown"),
    *("plot ALL --curves --png OUT", "watch ALL --once", "watch TEXT", "watch A --interval TEXT"),
    *("plot ALL --png OUT", "plot ALL --frontier --png OUT", "plot ALL --frontier --format csv --png OUT"),
    *("report TEXT", "votes TEXT", "diagnose TEXT", "plot TEXT", "compare TEXT B", "compare A TEXT", "cache info TEXT"),
    *("cache verify TEXT", "template check TEXT", "data stats TEXT", "data import TEXT OUT/x", "data ppl TEXT"),
    *(
        "data import SOURCE OUT/x",
        "data import SOURCE OUT/x --field TEXT",
        "data import SOURCE OUT/x --field query=TEXT",
    ),
    *("data select SOURCE OUT/x --verifier TEXT", "data select SOURCE OUT/x --gold TEXT", "data stats SOURCE"),
    *("data stats SOURCE --against SOURCE --field TEXT", "data drafts SOURCE OUT/x --model_args engine=TEXT"),
    *("data drafts SOURCE OUT/x --model_args TEXT=1", "data import SOURCE OUT/x --layout TEXT"),
    *("judge mt_bench TEXT", "judge mt_bench --judgments TEXT", "judge mt_bench --judgments SOURCE", "judge TEXT"),
    *("judge mt_bench A --judge-model TEXT --judge-base-url http://127.0.0.1:9/v1", "judge alpaca_eval TEXT"),
    *("judge mt_bench A --judge-model m --judge-base-url TEXT", "judge alpaca_eval --annotations SOURCE"),
    *("sweep --model_args TEXT=1 --tasks TEXT --output_path OUT", "sweep --TEXT", "TEXT", "--TEXT", "report --TEXT"),
    *("train TEXT", "train sft --config TEXT", "train sft --config SOURCE", "train sft --config SOURCE --set TEXT=1"),
    *("report ALL --format TEXT", "votes ALL --level TEXT", "data drafts SOURCE OUT/x -n TEXT"),
]


@pytest.mark.parametrize("command", READING)
def test_a_command_shows_no_control_character_of_its_data(
    command: str, planted: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    first, second = sorted(planted.iterdir())
    text = ALL.replace("/", "")[:200]
    source = tmp_path / "source.jsonl"
    source.write_text(json.dumps({"query": ALL, ALL: ALL, "drafts": [ALL, ALL], "target": ALL, "gold": ALL}) + "\n")
    values = {"ALL": planted, "A": first, "B": second, "SOURCE": source, "OUT": tmp_path}
    words = [
        str(values.get(word, word)).replace("OUT", str(tmp_path)).replace("TEXT", text) for word in command.split()
    ]
    code = run_aft(*words)
    out, err = capfd.readouterr()
    assert out or err
    assert is_clean(out), RAW.search(out)
    assert is_clean(err), RAW.search(err)
    assert "Traceback" not in err
    assert max(map(len, err.splitlines()), default=0) <= MAX_MESSAGE + len("error: ")
    assert code in (0, 1, 2)


@pytest.mark.parametrize("name", ESCAPES)
def test_the_key_of_a_damaged_row_of_a_store(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with closing(SQLiteStore(tmp_path / "s.sqlite")) as store:
        store.put("00" * 32, Completion("a", (), "stop", 1, 1, 1))
    with closing(sqlite3.connect(tmp_path / "s.sqlite")) as db:
        db.execute("UPDATE generations SET key = ?", (ESCAPES[name],))
        db.commit()
    assert run_aft("cache", "verify", tmp_path / "s.sqlite") in (1, 2)
    assert is_clean("".join(capfd.readouterr()))


# ---------------------------------------------------------------- servers and judges


@pytest.fixture(scope="module")
def server() -> Iterator[FakeJudge]:
    with closing(FakeJudge()) as fake:
        yield fake


def sentences_of(call: Callable[[], object], caplog: pytest.LogCaptureFixture) -> str:
    """What a call shows: its error and its log. The causes of an error are not shown."""
    shown = []
    try:
        call()
    except AFTError as error:
        shown.append(str(error))
    return "\n".join([*shown, *caplog.messages])


@pytest.mark.parametrize("ask", [generate, judge])
@pytest.mark.parametrize("answer", ANSWERS)
def test_an_answer_of_a_server(
    server: FakeJudge, answer: str, ask: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    for text in (ALL, "x" * 1_000_000):
        server.faults = lambda number, body, text=text: ANSWERS[answer](_header_safe(text, answer))(body)
        shown = sentences_of(lambda: ask(server), caplog)
        assert is_clean(shown), RAW.search(shown)
        assert max(map(len, shown.splitlines()), default=0) <= 2 * MAX_MESSAGE


def _header_safe(text: str, answer: str) -> str:
    """What a header can hold, and the client takes for an address."""
    return "a\u202e\x9b31m\x9d52\xadb".encode().decode("latin-1") if "redirect" in answer else text


def test_a_list_of_models(server: FakeJudge, caplog: pytest.LogCaptureFixture) -> None:
    before = server.models
    server.models = (200, {"data": [{"id": text} for text in (*ESCAPES.values(), "x" * 1_000_000)]}, {})
    try:
        arguments = {"base_url": server.url, "model": "nobody", "max_retries": 0, "timeout_s": 10}
        shown = sentences_of(lambda: load_engine("api", arguments, HostArgs()), caplog)
    finally:
        server.models = before
    assert "nobody" in shown
    assert is_clean(shown)
    assert len(shown) <= 2 * MAX_MESSAGE


# ---------------------------------------------------------------- figures


# Drawing takes longer than any other way to show a text.
FURTHER = [pytest.param(name, marks=pytest.mark.long) for name in list(ESCAPES)[4:]]


@pytest.mark.parametrize("name", [*list(ESCAPES)[:4], *FURTHER, "long", "math", "other scripts"])
def test_a_figure_warns_of_no_name(name: str, tmp_path: Path) -> None:
    text = {**ESCAPES, "long": "x" * 100_000, "math": "$\\frac{", "other scripts": "漢字 ไทย العربية 👩"}[name]
    curve = LossCurve(text, ((1.0, 2.0), (2.0, 1.0)), ((1.0, 2.0),))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        files = draw_losses([curve, curve], tmp_path / "f.png")
    assert all(path.stat().st_size < 1_000_000 for path in files)
    tree = ElementTree.parse(files[1])
    assert sum(len(each) for each in tree.getroot().itertext()) < 10_000
    assert not caught


# ---------------------------------------------------------------- a stdout that takes no text


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with runs, traces, a store and rows that every command can read, with texts that are not ASCII."""
    folder = tmp_path_factory.mktemp("runs")
    for name, scores, k in (("a", [1.0, 0.0], 1), ("b", [0.0, 1.0], 2)):
        make_run(folder / name, scores, task="gsm8k", k=k, layers=1, model="modèle 漢 \u2192")
        traces = [trace_of_texts([f"is {doc}"] * k, [f"is {doc}"], doc=doc, model="modèle 漢") for doc in range(2)]
        write_traces(str(folder / name / "traces"), traces[0].settings, traces)
    with closing(SQLiteStore(folder / "s.sqlite")) as store:
        store.put("00" * 32, Completion("a", (), "stop", 1, 1, 1))
    rows = [{"query": f"q{number} 漢", "drafts": ["1", "2"], "target": "1", "gold": "1"} for number in range(4)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    category = {"question_id": 81, "category": "writing", "turns": ["q", "q"]}
    (folder / "question.jsonl").write_text(json.dumps(category) + "\n")
    ratings = [
        {"question_id": 81, "model": "modèle 漢", "judge": ["gpt-4", "single-v1"], "turn": turn, "score": 7}
        | {"user_prompt": "p", "judgment": "[[7]]", "tstamp": 1.0}
        for turn in (1, 2)
    ]
    (folder / "judged.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ratings))
    finished = {"model": "x", "data": str(folder / "rows.jsonl"), "output": str(folder / "trained")}
    (folder / "train.yaml").write_text(json.dumps(finished))
    return folder


PRINTING = [
    *("--help", "--version", "report --help", "data --help", "train --help", "judge --help", "judge mt_bench --help"),
    *("sweep --help", "cache --help", "plot --help", "report a b", "report a b --format json", "report a --format csv"),
    *("report a b --model-card", "compare a b", "compare a b --format json", "votes b", "votes b --format csv"),
    *("diagnose b", "plot a b --frontier --png OUT", "plot a b --png OUT", "plot a b --curves --png OUT"),
    *("cache info s.sqlite", "watch s.sqlite --once"),
    *("cache verify s.sqlite", "data stats rows.jsonl", "data import rows.jsonl OUT/o.jsonl", "template check"),
    *("data select rows.jsonl OUT/o.jsonl --verifier exact:", "judge mt_bench --judgments judged.jsonl"),
]


def full(buffering: int) -> Any:
    return io.TextIOWrapper(open("/dev/full", "wb", buffering), encoding="utf-8", write_through=not buffering)


def closed_pipe() -> Any:
    """The writing end of a pipe that nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    return open(writing, "w", encoding="utf-8")


@contextmanager
def stream_of(make: Callable[[], Any]) -> Iterator[Any]:
    stream = make()
    yield stream
    # It may hold text that nobody takes.
    with suppress(AttributeError, OSError):
        stream.close()


STREAMS: dict[str, tuple[Callable[[], Any], int, str]] = {
    "a full disk": (lambda: full(8192), 2, "No space left on device"),
    "a full disk, unbuffered": (lambda: full(0), 2, "No space left on device"),
    "a closed pipe": (closed_pipe, PIPE_CLOSED, ""),
    "a closed stdout": (lambda: None, 2, "is closed"),
}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("command", PRINTING)
def test_a_command_whose_output_nobody_takes(
    command: str,
    stream: str,
    runs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make, code, reason = STREAMS[stream]
    monkeypatch.chdir(runs)
    with stream_of(make) as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        assert run_aft(*command.replace("OUT", str(tmp_path)).split()) == code
    err = capsys.readouterr().err
    lines = [line for line in err.splitlines() if "output cannot be written" in line]
    assert len(lines) == bool(reason)
    assert reason in err
    assert "Traceback" not in err


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp437"])
@pytest.mark.parametrize("command", PRINTING)
def test_a_stdout_of_another_encoding(
    command: str, encoding: str, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = io.BytesIO()
    monkeypatch.chdir(runs)
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(file, encoding=encoding, write_through=True))
    assert run_aft(*command.replace("OUT", str(tmp_path)).split()) == 0
    text = file.getvalue().decode(encoding)
    assert text.strip()
    if command == "report a b":
        # Each letter that the encoding lacks is shown by its number.
        assert "\\u6f22" in text


def test_work_continues_without_its_notes_and_the_end_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done = []

    def work() -> None:
        with output_guard():
            for step in range(3):
                note(f"step {step}", err=False)
                done.append(step)

    with stream_of(lambda: full(8192)) as stdout, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stdout)
        with pytest.raises(SystemExit) as end:
            work()
    assert (done, end.value.code) == ([0, 1, 2], 2)
    assert capsys.readouterr().err.count("error: the output cannot be written (No space left on device)") == 1


@pytest.mark.parametrize("make", [closed_pipe, lambda: None])
def test_a_closed_stderr_hides_the_notes_alone(
    make: Callable[[], Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with stream_of(make) as stderr, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", stderr)
        with output_guard():
            note("not seen")
            show("seen")
    assert capsys.readouterr().out == "seen\n"
