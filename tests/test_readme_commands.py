"""Every command the README shows is run as it stands, or is named below with the reason why not.

A command without an entry in ``TABLE`` fails, and so does an entry without its command. Commands run in the README's
order in one folder, as a reader would type them. Changed before running: what stands for the user's own files, the
limit, gsm8k, whose questions come from a file of ours as no hub is asked, and the engine of the sweep, whose ten points
take a minute with a model.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from helpers.paths import ROOT
from helpers.tiny_models import save_tiny

README = (ROOT / "README.md").read_text(encoding="utf-8")
PROGRAMS = "accelerate|aft|bash|cat|curl|docker|export|git|lm_eval|make|pip|python3?|serve|torchrun|vllm"
TEMPLATE = "{% block draft %}{% endblock %}{% block aggregate %}{{ drafts | join(' / ') }}{% endblock %}"
SMALL = "--include_path tasks --limit 1"


@dataclass(frozen=True)
class Run:
    """Run; ``change`` maps parts of the command to what stands in their place, ``says`` is part of its output."""

    says: str
    change: Mapping[str, str] = field(default_factory=dict)
    more: str = ""


@dataclass(frozen=True)
class Check:
    """Not run, for the reason given; its options must be in the help that ``help_of`` prints."""

    reason: str
    help_of: str


INSTALLS = "an install takes minutes and a registry: tests/test_install.py does it"
FIGURES = "takes minutes on a real model; tests/benchmarks/test_benchmarks.py holds the scripts' own tests"

TABLE: dict[str, Run | Check] = {
    "make demo": Check(INSTALLS + ", and tests/cli/test_demo.py runs what comes after", "make -n demo"),
    "make test": Check("it would run this test", "make -n test"),
    "make demo-chat": Check("fetches a real checkpoint", "make -n demo-chat"),
    "make checkpoints": Check("trains for hours; tests/trainers/test_family.py does it small", "make -n checkpoints"),
    "pip install .": Check(INSTALLS, "pip install --help"),
    "lm_eval --model aft --model_args pretrained=MODEL,k=5,layers=2,record=out/traces --tasks gsm8k "
    "--apply_chat_template --batch_size auto --output_path out --log_samples": Run("|gsm8k|", more=SMALL),
    "cat $(python -c \"import sysconfig; print(sysconfig.get_path('purelib'))\")/lm_eval_aft.pth": Run(
        "lm_eval_aft._autoload.install()"
    ),
    "python -m lm_eval_aft --model aft ...": Run(
        "|gsm8k|", {"...": "--model_args engine=scripted,k=2,layers=1 --tasks gsm8k --apply_chat_template"}, SMALL
    ),
    "python benchmarks/startup.py": Check(
        "two hundred starts take a minute: tests/test_autoload.py runs it with few",
        "python benchmarks/startup.py --help",
    ),
    "lm_eval --model aft --model_args pretrained=SMOLLM2,k=5,layers=2,dtype=bfloat16,record=out/smollm2/traces,"
    "max_gen_toks=256 --tasks gsm8k --limit 8 --device cpu --apply_chat_template --batch_size auto "
    "--output_path out/smollm2 --log_samples": Run(
        "|gsm8k|", {"SMOLLM2": "MODEL", "--limit 8": "--limit 2"}, "--include_path tasks"
    ),
    "aft votes out/smollm2": Run("gsm8k, k=5, layers=2: 2 questions"),
    "aft diagnose out/smollm2": Run("answers repeat a draft word for word"),
    "aft report out/smollm2 --html page.html": Run("The page is in page.html."),
    "aft compare": Check("it is named only; tests/analysis/test_compare.py runs it", "aft compare --help"),
    "aft judge mt_bench": Check("needs a judge: tests/judging/test_mt_bench.py has one", "aft judge mt_bench --help"),
    "aft judge alpaca_eval": Check(
        "needs a judge: tests/judging/test_alpaca_judge.py has one", "aft judge alpaca_eval --help"
    ),
    "python -m trainers.family train FAMILY --seed N": Check(
        "trains for an hour; tests/trainers/test_family.py does it small", "python -m trainers.family train --help"
    ),
    "python benchmarks/family.py FAMILY WORK --limit 4000 --ablations 4000 --seed N": Check(
        FIGURES, "python benchmarks/family.py --help"
    ),
    "python benchmarks/family_seeds.py WORK --markdown": Check(FIGURES, "python benchmarks/family_seeds.py --help"),
    "aft sweep --model_args pretrained=MODEL --k 1,3,5 --layers 0,1,2,3 --tasks gsm8k --apply_chat_template "
    "--output_path out/sweep": Run(
        "33 generations a question instead of 66", {"pretrained=MODEL": "engine=scripted"}, SMALL
    ),
    "aft cache info FILE": Run("generations", {"FILE": "out/traces/drafts.sqlite"}),
    "aft cache verify FILE": Run("0 damaged", {"FILE": "out/traces/drafts.sqlite"}),
    "python benchmarks/invariance.py --pretrained MODEL --questions test.jsonl --max_tokens 48": Check(
        FIGURES, "python benchmarks/invariance.py --help"
    ),
    "python benchmarks/prefill.py --pretrained MODEL --questions test.jsonl": Check(
        FIGURES, "python benchmarks/prefill.py --help"
    ),
    "python benchmarks/overhead.py --questions test.jsonl": Check(FIGURES, "python benchmarks/overhead.py --help"),
    "aft template check FILE.j2": Run("aggregate prompt"),
}


def shown() -> list[str]:
    """The README's commands, each once, in its order: lines of indented blocks, and inline code with an argument."""
    text = README.replace("\\\n", " ")
    pattern = rf"^ {{4}}((?:{PROGRAMS}) .*)$|`((?:{PROGRAMS})\s[^`]+)`"
    found = [first or second for first, second in re.findall(pattern, text, re.MULTILINE)]
    return list(dict.fromkeys(" ".join(command.split("  #")[0].split()) for command in found))


def commands(kind: type) -> list[str]:
    return [command for command in shown() if isinstance(TABLE.get(command), kind)]


def environment(folder: Path) -> dict[str, str]:
    """A reader's: the programs of this Python, no hub, nothing of ours switched off."""
    ours = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "HF_HUB_OFFLINE": "1"}
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LM_EVAL_AFT")}
    return {**kept, **ours, "HF_DATASETS_CACHE": str(folder / "datasets"), "COLUMNS": "120"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a reader would stand: a checkpoint called MODEL, a template, and gsm8k with questions of ours."""
    from lm_eval.tasks import __file__ as stock

    folder = tmp_path_factory.mktemp("reader")
    save_tiny(folder / "MODEL")
    (folder / "FILE.j2").write_text(TEMPLATE)
    rows = [
        {"question": f"{n} pens cost {n} coins each. What do all cost?", "answer": f"#### {n * n}"} for n in range(9)
    ]
    (folder / "tasks").mkdir()
    (folder / "tasks" / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    files = {split: str(folder / "tasks" / "rows.jsonl") for split in ("train", "test")}
    task = {"include": str(Path(stock).parent / "gsm8k" / "gsm8k.yaml"), "task": "gsm8k", "dataset_path": "json"}
    task |= {"dataset_name": None, "dataset_kwargs": {"data_files": files}}
    (folder / "tasks" / "gsm8k.yaml").write_text(json.dumps(task))
    return folder


def test_every_command_of_the_readme_is_in_the_table():
    assert set(shown()) == set(TABLE)


def typed(command: str, entry: Run) -> str:
    for part, other in entry.change.items():
        assert command.count(part) == 1, part
        command = command.replace(part, other)
    return f"{command} {entry.more}"


@pytest.mark.parametrize("command", commands(Run), ids=lambda command: command[:40])
def test_it_runs_as_shown(folder: Path, command: str):
    entry = TABLE[command]
    line = typed(command, entry)
    done = subprocess.run(
        ["bash", "-c", line], cwd=folder, env=environment(folder), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert entry.says in done.stdout + done.stderr, done.stdout + done.stderr


@pytest.mark.parametrize("command", commands(Check), ids=lambda command: command[:40])
def test_what_is_not_run_exists_with_its_options(tmp_path: Path, command: str):
    entry = TABLE[command]
    assert entry.reason
    done = subprocess.run(
        shlex.split(entry.help_of), cwd=ROOT, env=environment(tmp_path), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    options = {word.split("=")[0] for word in command.split() if word.startswith("--")}
    assert all(re.search(rf"{option}\b", done.stdout) for option in options), options
