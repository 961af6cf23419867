"""No file, no output and no process list of a whole evaluation, failures included, holds a key of the environment."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from urllib.parse import quote

import pytest
from click.testing import CliRunner

from helpers.fake_judge import FakeJudge, chat_completion
from helpers.warm import WarmPython
from lm_eval_aft.cli import aft
from lm_eval_aft.core.engine import HostArgs
from lm_eval_aft.core.errors import ConfigError
from lm_eval_aft.engines.registry import load_engine
from lm_eval_aft.judging.mt_bench.data import CATEGORIES, MTBenchAnswer, MTBenchQuestion, write_answers

KEYS = {
    "OPENAI_API_KEY": "sk-planted+key/5d0c77a1==",
    "HF_TOKEN": "hf_plantedToken93b1e2",
    "HUGGING_FACE_HUB_TOKEN": "hf_plantedOther4471aa",
    "ANTHROPIC_API_KEY": "sk-ant-planted-22c9",
}


def forms(key: str) -> list[bytes]:
    """A key as it is, URL-encoded, and in base64 at three offsets; neighbours change its ends, so these are cut."""
    whole = key.encode()
    coded = [base64.b64encode(b"x" * offset + whole)[4:-4] for offset in range(3)]
    return [whole, quote(key, safe="").encode(), *coded]


class ProcessList(threading.Thread):
    """Reads the command line and the environment of every process that this one starts, as ``ps`` shows them.

    Attributes:
        commands: All command lines.
        variables: All variables, as name and value, of their environments and of this process at the end.
    """

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.commands: set[bytes] = set()
        self.variables: set[tuple[bytes, bytes]] = set()
        self.done = threading.Event()

    def run(self) -> None:
        while not self.done.wait(0.05):
            for process in self.started():
                # A process may end meanwhile.
                with suppress(OSError):
                    self.commands.add(Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" "))
                    environment = Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
                    self.variables |= {tuple(each.split(b"=", 1)) for each in environment if b"=" in each}

    def started(self) -> set[int]:
        """All processes whose parents lead to this one."""
        parents = {}
        for path in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):
                parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        found = {os.getpid()}
        while more := {process for process, parent in parents.items() if parent in found} - found:
            found |= more
        return found - {os.getpid()}

    def __enter__(self) -> ProcessList:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.join()
        self.variables |= {(os.fsencode(name), os.fsencode(value)) for name, value in os.environ.items()}


class Workshop:
    """Runs our commands with planted keys, against a server that repeats the key of a request when it refuses it."""

    def __init__(self, folder: Path, server: FakeJudge, python: list[str]) -> None:
        self.folder, self.server, self.python, self.output = folder, server, python, b""

    def aft(self, *arguments: object, refused: bool = False) -> str:
        """One of our commands, in this process."""
        done = CliRunner().invoke(aft, [str(argument) for argument in arguments])
        output = done.output + str(done.exception or "")
        self.output += output.encode()
        assert bool(done.exception) == refused, output
        return output

    def evaluate(self, name: str, *more: str, code: int = 0, whole: bool = False) -> str:
        """Run lm_eval with engine=api in a process of its own; if whole, as users start it."""
        args = {"engine": "api", "base_url": self.server.url, "model": "m", "record": self.folder / name / "traces"}
        model_args = ",".join([*(f"{key}={value}" for key, value in args.items()), *more])
        results = ("--output_path", self.folder / name, "--log_samples", "--apply_chat_template", "--limit", 2)
        command = ("--model", "aft", "--model_args", model_args, "--tasks", "aft_arith", *results)
        done = subprocess.run(
            [*([sys.executable] if whole else self.python), "-m", "lm_eval_aft", *map(str, command)],
            check=False,
            capture_output=True,
            env={**os.environ, **KEYS, "HOME": str(self.folder)},
            cwd=self.folder,
            timeout=300,
        )
        output = done.stdout + done.stderr
        self.output += output
        assert done.returncode == code, output.decode()[-2000:]
        return output.decode()

    def shown(self, processes: ProcessList, *more: str) -> list[tuple[str, str]]:
        """Every key that a file, the output, a command line or a further variable shows, with the place.

        Args:
            processes: Command lines and variables.
            *more: Further keys.
        """
        content = {str(path): path.read_bytes() for path in self.folder.rglob("*") if path.is_file()}
        content |= {f"command line {number}": command for number, command in enumerate(processes.commands)}
        content |= {f"variable {name!r}": value for name, value in processes.variables if name.decode() not in KEYS}
        content["output"] = self.output
        keys = [*KEYS.items(), *(("another form", key) for key in more)]
        return [
            (name, where)
            for where, text in content.items()
            for name, key in keys
            for form in forms(key)
            if form in text
        ]

    def stumble(self) -> None:
        """Let every third request end in 429 or 503, with the request's key in the reply."""

        def stumbled(number: int, body: dict) -> tuple[int, dict, dict[str, str]]:
            sent = self.server.headers[-1].get("Authorization", "")
            if number % 3 == 0:
                status = 429 if number % 2 else 503
                return status, {"error": {"message": f"slow down, {sent}"}}, {"Retry-After": "0", "X-Sent": sent}
            return 200, chat_completion("3 + 4 = 8"), {}

        self.server.trouble = stumbled

    def refuse(self) -> None:
        """Let every request end in 401, with its key in body and header, as careless gateways do."""

        def refused(number: int, body: dict) -> tuple[int, dict, dict[str, str]]:
            sent = self.server.headers[-1].get("Authorization", "")
            return 401, {"error": {"message": f"Incorrect API key provided: {sent}."}}, {"X-Sent": sent}

        self.server.trouble = refused


@pytest.fixture
def workshop(tmp_path: Path, warm: WarmPython, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workshop]:
    for name, key in KEYS.items():
        monkeypatch.setenv(name, key)
    server = FakeJudge()
    server.trouble = lambda number, body: (200, chat_completion("3 + 4 = 7"), {})
    with closing(server):
        yield Workshop(tmp_path, server, warm.command)


@pytest.mark.long
def test_keys_are_in_no_file_and_no_output(workshop: Workshop) -> None:
    folder = workshop.folder
    with ProcessList() as processes:
        workshop.evaluate("one", "k=2", "layers=1", whole=True)
    # The list has the evaluation, with the keys where the user put them.
    assert any(b"lm_eval_aft --model aft" in command for command in processes.commands)
    assert (b"OPENAI_API_KEY", KEYS["OPENAI_API_KEY"].encode()) in processes.variables
    # The evaluation did use the key.
    assert any(KEYS["OPENAI_API_KEY"] in sent.get("Authorization", "") for sent in workshop.server.headers)

    workshop.aft("report", folder / "one", "--html", folder / "page.html")
    workshop.aft("report", folder / "one", "--model-card")
    workshop.aft("export", folder / "one", "--output", folder / "tables", "--format", "jsonl")
    workshop.aft("export", folder / "one", "--output", folder / "records", "--every-eval-ever")
    workshop.aft("diagnose", folder / "one")

    workshop.stumble()
    before = len(workshop.server.headers)
    workshop.evaluate("second", "k=3", "layers=1", "seed=7")
    # More requests than generations: some were repeated.
    assert len(workshop.server.headers) - before > 2 * (3 + 1)
    assert "m (3, 1)" in workshop.aft("compare", folder / "one", folder / "second")
    workshop.aft("compare", folder / "one", folder / "second", "--format", "json")
    workshop.aft("report", folder / "one", folder / "second", "--html", folder / "both.html")

    questions = [MTBenchQuestion(81 + 10 * n, category, (f"a{n}", "b")) for n, category in enumerate(CATEGORIES[:2])]
    answers = write_answers(
        folder / "judged", "m", questions, [MTBenchAnswer(each.question_id, ("x", "y")) for each in questions]
    )
    judge = ("judge", "mt_bench", answers, "--judge-model", "m", "--judge-base-url", workshop.server.url)
    workshop.server.trouble = lambda number, body: None
    assert "7.00" in workshop.aft(*judge)

    workshop.refuse()
    assert "401" in workshop.evaluate("third", "k=3", code=2)
    fresh = write_answers(
        folder / "fresh", "n", questions, [MTBenchAnswer(each.question_id, ("p", "q")) for each in questions]
    )
    workshop.aft("judge", "mt_bench", fresh, *judge[3:], refused=True)
    shortened = KEYS["OPENAI_API_KEY"].rstrip("=")
    with pytest.raises(ConfigError, match="must not be given in --model_args") as refused:
        load_engine("api", {"base_url": workshop.server.url, "model": "m", "api_key": shortened}, HostArgs())
    workshop.output += str(refused.value).encode()

    files = [path for path in folder.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} >= {".json", ".jsonl", ".html", ".sqlite"}
    assert workshop.shown(processes, shortened) == []


@pytest.mark.long
@pytest.mark.usefixtures("quick_lm_eval")
@pytest.mark.filterwarnings("ignore")
def test_sweeps_data_trainings_and_judges_show_no_key(workshop: Workshop, tiny: str) -> None:
    folder, server = workshop.folder, workshop.server
    rows = [{"query": f"{n} + 1?", "drafts": ["1"], "target": f"{n + 1}", "sft_target": f"{n + 1}"} for n in range(4)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {"model": tiny, "data": str(folder / "rows.jsonl"), "output": str(folder / "run"), "device": "cpu"}
    (folder / "train.yaml").write_text(json.dumps({**settings, "lora_rank": 2, "max_steps": 2}))
    questions = [MTBenchQuestion(81, "writing", ("a", "b"))]
    answers = write_answers(folder / "judged", "m", questions, [MTBenchAnswer(81, ("x", "y"))])
    remote, local = f"engine=api,base_url={server.url},model=m", f"pretrained={tiny},dtype=float32"
    with ProcessList() as processes:
        sweep = ("--k", 1, "--layers", "0,1", "--tasks", "aft_arith", "--limit", 2, "--output_path", folder / "sweep")
        workshop.aft("sweep", "--model_args", remote, *sweep)
        for name, model in (("far", remote), ("near", local)):
            drafts = ("data", "drafts", folder / "rows.jsonl", folder / f"{name}.jsonl", "-n", 2, "--device", "cpu")
            workshop.aft(*drafts, "--model_args", model)
        workshop.aft("train", "sft", "--config", folder / "train.yaml")
        server.trouble = lambda number, body: None
        workshop.aft("judge", "mt_bench", answers, "--judge-model", "m", "--judge-base-url", server.url)
    assert any(KEYS["OPENAI_API_KEY"] in sent.get("Authorization", "") for sent in server.headers)
    assert workshop.shown(processes) == []
