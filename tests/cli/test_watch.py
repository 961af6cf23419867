"""``aft watch`` shows a run that is killed and resumed, and changes nothing in its folder."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from lm_eval_aft.analysis.watching import as_lines, blocks, duration, look_at
from lm_eval_aft.cli import aft
from lm_eval_aft.core.errors import ConfigError, RecordError, StoreError
from lm_eval_aft.core.records import Completion
from lm_eval_aft.storage.draft_store import SQLiteStore
from lm_eval_aft.storage.run_state import MeanGrade, RunState

# A run of 4 questions with k=3, layers=2: 28 generations. It waits in layer 1 until it is killed.
RUN = """
import sys, time
from pathlib import Path
from lm_eval_aft.core.config import AFTConfig
from lm_eval_aft.core.prompts import Template
from lm_eval_aft.core.records import Chat, Message, Question, Sampling
from lm_eval_aft.engines.scripted import ScriptedEngine
from lm_eval_aft.inference.schedule import propose_and_aggregate
from lm_eval_aft.storage import draft_store, run_state
draft_store.COMMIT_AFTER_S = run_state.WRITE_AFTER_S = 0.05
folder, stop = Path(sys.argv[1]), sys.argv[2] == "stop"

class Engine(ScriptedEngine):
    layer = 0
    def generate(self, requests):
        for number, step in enumerate(super().generate(requests)):
            if stop and self.layer == 1 and number == 5:
                time.sleep(600)
            yield step
        self.layer += 1

sampling = Sampling(0.7, 0.95, 0, 64)
questions = [Question(Chat((Message("user", f"{n}?"),)), sampling, sampling, "t", n, "h", 0) for n in range(4)]
state = run_state.RunState("m", "scripted", "aggregate", {"t": 4}, 3, 2, 28)
store = draft_store.SQLiteStore(folder / "drafts.sqlite")
with run_state.recording(state, folder / "run_t.json") as recorder:
    propose_and_aggregate(questions, Engine(), Template.load(None), AFTConfig(k=3, layers=2), store,
                          recorder=recorder, quiet=True)
"""
COMMAND = [sys.executable, "-c", "from lm_eval_aft.cli import main; main()", "watch"]


def start(folder: Path, end: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", RUN, str(folder), end])


def watch(*arguments: object) -> Result:
    return CliRunner().invoke(aft, ["watch", *map(str, arguments)])


def once(folder: Path) -> list[str]:
    result = watch(folder, "--once")
    assert result.exit_code == 0, result.output
    return result.output.splitlines()


def files(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}


def wait_for(folder: Path, done: int) -> None:
    for _ in range(600):
        if (folder / "run_t.json").is_file() and look_at(folder).runs[0].done >= done:
            # The store commits as often as the state is written.
            time.sleep(0.2)
            return
        time.sleep(0.05)
    raise AssertionError("the run does not get there")


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was killed in layer 1, after 17 of 28 generations."""
    folder = tmp_path_factory.mktemp("killed")
    process = start(folder, "stop")
    try:
        wait_for(folder, 17)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    return folder


def test_a_run_is_watched_while_it_runs_is_killed_and_resumes(tmp_path):
    process = start(tmp_path, "stop")
    try:
        wait_for(tmp_path, 17)
        before = files(tmp_path)
        lines = once(tmp_path)
        # The run itself writes its state now and then.
        assert {**files(tmp_path), "run_t.json": 0} == {**before, "run_t.json": 0}
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert lines[0] == "t (4 questions): m, scripted, k=3, layers=2"
    assert lines[1].startswith("  running     for 0:00:0")
    assert lines[2] == "  now         layer 1 of 2: 5 of 12 generations (41%), 7 left"
    assert lines[3] == "  whole run   17 of 28 generations (60%), 11 left"
    assert lines[4] == "  generated   17 new (204 tokens), 0 reused"
    assert " tokens/s, " in lines[5]
    assert lines[6] == "  texts       0 cut at the token limit, 0 without an answer"
    assert lines[7:9] == ["drafts.sqlite", lines[8]]
    assert lines[8].startswith("  stored      17 generations, 204 tokens, ")

    assert start(tmp_path, "finish").wait() == 0
    resumed = once(tmp_path)
    assert resumed[1].startswith("  finished    after 0:00:0")
    assert resumed[2] == "  generated   11 new (132 tokens), 17 reused"
    assert resumed[6].startswith("  stored      28 generations, 336 tokens, ")


def test_watching_a_killed_run_changes_no_byte(killed):
    before = files(killed)
    # SQLite's own files are there, as after every kill.
    assert {"drafts.sqlite", "drafts.sqlite-wal", "drafts.sqlite-shm"} < set(before)
    assert any("17 generations" in line for line in once(killed))
    assert once(killed / "drafts.sqlite")[1].startswith("  stored      17 generations, 204 tokens, ")
    assert files(killed) == before


def test_a_killed_run_is_called_killed_after_half_a_minute(killed):
    look = look_at(killed)
    later = replace(look, seconds=look.runs[0].updated + 45)
    text = as_lines(blocks(later))
    assert "\n  killed      after 0:00:0" in text
    assert ": no sign of life for 0:00:45; the same command resumes the run\n" in text
    assert "\n  running " in as_lines(blocks(look))


def test_a_store_alone_is_counted_and_left_as_it_is(tmp_path):
    store = SQLiteStore(tmp_path / "some.db")
    for number, (text, reason) in enumerate([("a", "stop"), ("b", "length"), (" \n", "stop")]):
        store.put(f"{number:064x}", Completion(text, (), reason, 5, 5, 2))
    store.close()
    before = files(tmp_path)
    lines = once(tmp_path / "some.db")
    assert lines[0] == str(tmp_path / "some.db")
    assert lines[1].startswith("  stored      3 generations, 6 tokens, ")
    assert lines[2] == "  texts       1 cut at the token limit, 1 empty"
    assert files(tmp_path) == before


def test_the_speed_of_a_store_is_counted_from_the_first_look(tmp_path):
    store = SQLiteStore(tmp_path / "drafts.sqlite")
    store.put("00" * 32, Completion("a", (), "stop", 5, 5, 7))
    store.flush()
    first = look_at(tmp_path)
    for number in range(1, 21):
        store.put(f"{number:064x}", Completion("a", (), "stop", 5, 5, 7))
    store.flush()
    later = replace(look_at(tmp_path), seconds=first.seconds + 10)
    assert "  speed       14 tokens/s, 2.0 generations/s\n" in as_lines(blocks(later, first))
    store.close()


def write_state(folder: Path, **changes: object) -> None:
    state = RunState("m", "hf", "aggregate", {"t": 2}, k=3, layers=1, generations=8, started=time.time())
    (folder / "run_t.json").write_text(replace(state, **{"updated": time.time(), **changes}).to_json())


def test_the_time_left_is_that_of_the_layer_at_its_speed(tmp_path):
    counts = {"done": 5, "reused": 2, "layer": "answers", "layer_new": 2, "layer_s": 60.0, "generating_s": 70.0}
    write_state(tmp_path, **counts, generated_tokens=140)
    lines = once(tmp_path)
    # 3 generations are left, and this layer needs 30 seconds for each.
    assert lines[1].endswith(", about 0:01:30 left")
    assert lines[5] == "  speed       2 tokens/s, 0.0 generations/s"


def test_scores_are_shown_once_they_are_known(tmp_path):
    grade = MeanGrade("t", "exact_match,strict-match", 0.5, 1 / 3, 1000)
    write_state(tmp_path, status="finished", grades=(grade,))
    assert once(tmp_path)[-1] == "  score       exact_match,strict-match 0.500, drafts 0.333 (n = 1,000)"
    write_state(tmp_path, status="finished", grades=(grade,), layers=0, questions={"t": 2, "u": 2})
    assert once(tmp_path)[-1] == "  score       t exact_match,strict-match 0.500 (n = 1,000)"


def test_what_a_file_says_is_shown_as_text(tmp_path):
    write_state(tmp_path, model="\x1b[2Jm[bold]", layer="\x07", questions={f"t{n}\n": 1 for n in range(6)})
    text = "\n".join(once(tmp_path))
    assert "6 tasks (6 questions): <U+001B>[2Jm[bold], hf" in text
    assert "<U+0007>: 0 of 0" in text
    assert "\x1b" not in text


def test_lines_are_printed_until_all_runs_have_finished(tmp_path):
    write_state(tmp_path, status="finished", done=8)
    result = watch(tmp_path)
    assert (result.exit_code, result.output.count("finished")) == (0, 1)


def in_terminal(folder: Path, **environment: str) -> bytes:
    """What the command draws on a terminal until the run has finished."""
    ours, theirs = pty.openpty()
    env = {**os.environ, "TERM": "xterm", "COLUMNS": "100", "LINES": "30", **environment}
    process = subprocess.Popen([*COMMAND, str(folder), "--interval", "0.1"], stdout=theirs, stderr=theirs, env=env)
    os.close(theirs)
    drawn = b""
    try:
        while part := os.read(ours, 65536):
            drawn += part
            if b"whole run" in drawn:
                write_state(folder, status="finished", done=8)
    # Linux answers so when the other side is closed.
    except OSError:
        pass
    os.close(ours)
    assert process.wait() == 0, drawn
    return drawn


def test_a_terminal_shows_bars_and_the_last_state_stays(tmp_path):
    write_state(tmp_path, done=4)
    drawn = in_terminal(tmp_path)
    assert b"\x1b[" in drawn
    assert "━━━".encode() in drawn
    assert b"4 of 8 generations (50%), 4 left" in drawn
    assert b"0 without an answer" in drawn.rpartition(b"finished")[2]


def test_a_dumb_terminal_shows_lines(tmp_path):
    write_state(tmp_path, done=4)
    drawn = in_terminal(tmp_path, TERM="dumb")
    assert b"\x1b[" not in drawn
    assert b"4 of 8 generations (50%), 4 left" in drawn


@pytest.mark.parametrize(
    ("number", "code", "message"), [(signal.SIGINT, 0, b""), (signal.SIGTERM, 143, b"error: stopped by SIGTERM;")]
)
def test_ctrl_c_leaves_the_view(tmp_path, number, code, message):
    write_state(tmp_path, done=4)
    command = [*COMMAND, str(tmp_path), "--interval", "0.1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(number)
        _, err = process.communicate()
    assert process.returncode == code
    assert err.startswith(message)
    assert bool(err) is bool(message)


@pytest.mark.parametrize("value", ["0", "nan", "inf", "-1", "soon", "1e9"])
def test_a_wrong_interval_is_refused(tmp_path, value):
    with pytest.raises(ConfigError, match="--interval"):
        raise watch(tmp_path, "--interval", value).exception or AssertionError


def test_bad_input_is_one_sentence(tmp_path):
    with pytest.raises(RecordError, match="nowhere does not exist: give the folder that record= names"):
        raise watch(tmp_path / "nowhere").exception or AssertionError
    with pytest.raises(RecordError, match="there is neither a run nor a draft store in"):
        raise watch(tmp_path).exception or AssertionError
    (tmp_path / "notes.txt").write_text("my notes\n" * 1000)
    with pytest.raises(StoreError, match=r"notes\.txt"):
        raise watch(tmp_path / "notes.txt", "--once").exception or AssertionError
    (tmp_path / "run_t.json").write_text("{")
    with pytest.raises(RecordError, match=r"run_t\.json"):
        raise watch(tmp_path, "--once").exception or AssertionError


def test_durations_are_bounded():
    assert [duration(each) for each in (-5, 59.9, 3723, 1e60)] == [
        "0:00:00",
        "0:00:59",
        "1:02:03",
        "more than 1,000 days",
    ]
