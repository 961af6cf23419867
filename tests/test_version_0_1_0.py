"""What version 0.1.0 wrote is read as before: its store, traces, results, an adapter and a training folder.

The files in ``tests/fixtures/version_0_1_0`` were written at commit 330ae10 with the bundled checkpoints, by

    python -m lm_eval_aft run --model aft --tasks aft_arith --apply_chat_template --batch_size 8 --device cpu \
        --log_samples --limit 8 --model_args pretrained=bundled:aft,k=3,layers=1,record=aft/traces --output_path aft

(``sft``: ``pretrained=bundled:sft,layers=0``; ``adapter``: ``--limit 4``, ``pretrained=bundled:base,peft=whole,k=2,
layers=1``) and by ``aft train aft`` with the settings in ``run.json``. ``half`` was killed after the checkpoint of
step 2 of 4. ``expected`` holds what ``aft report``, ``compare``, ``votes`` and ``diagnose`` printed then,
except that k is 1 for a run with layers=0, that FLOPs have a prefix,
and that the label names the adapter.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager
from safetensors.torch import load_file

import lm_eval_aft
from helpers.paths import ROOT
from lm_eval_aft.cli import aft
from lm_eval_aft.model import AFTLM
from trainers.settings import make_config
from trainers.train import run_training

FIXTURES = ROOT / "tests" / "fixtures" / "version_0_1_0"
ARGUMENTS = {
    "sft": ({"pretrained": "bundled:sft", "layers": 0}, 8, 8),
    "aft": ({"pretrained": "bundled:aft", "k": 3, "layers": 1}, 8, 32),
    "adapter": ({"pretrained": "bundled:base", "peft": "whole", "k": 2, "layers": 1}, 4, 12),
}


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the files, in the working directory."""
    shutil.copytree(FIXTURES, tmp_path / "files")
    monkeypatch.chdir(tmp_path / "files")
    return tmp_path / "files"


def printed(*words: object) -> str:
    result = CliRunner().invoke(aft, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    return result.stdout


def settings_of(run: str) -> dict[str, object]:
    settings = json.loads(Path(run, "run.json").read_text())["config"]
    return {name: value for name, value in settings.items() if value not in (None, [])}


def numbers(text: str) -> list[str]:
    return re.findall(r"-?\d+(?:\.\d+)?(?:e-?\d+)?", text)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.usefixtures("files", "quick_lm_eval")
@pytest.mark.parametrize("name", ARGUMENTS)
def test_a_run_is_answered_from_its_store(name: str):
    arguments, limit, generations = ARGUMENTS[name]
    model = AFTLM(**arguments, record=f"{name}/traces", device="cpu", batch_size=8)
    tasks = TaskManager(include_path=str(lm_eval_aft.tasks_path()), include_defaults=False)
    results = simple_evaluate(
        model, tasks=["aft_arith"], limit=limit, apply_chat_template=True, task_manager=tasks, bootstrap_iters=0
    )
    ours = results["config"]["aft"]
    assert (ours["usage"]["generations"], ours["spent"]["generations"]) == (generations, 0)
    (file,) = Path(name).glob("*/results_*.json")
    before = json.loads(file.read_text())
    assert results["results"]["aft_arith"]["exact,none"] == before["results"]["aft_arith"]["exact,none"]
    assert ours["fingerprint"] == before["config"]["aft"]["fingerprint"]
    assert ours["usage"] == before["config"]["aft"]["usage"]


@pytest.mark.usefixtures("files")
def test_the_report_has_the_same_cells():
    (table,) = json.loads(Path("expected/report.json").read_text())
    # A later version has a second table.
    now, *_ = json.loads(printed("report", "sft", "aft", "adapter", "--format", "json"))
    for row, row_now in zip(table["rows"], now["rows"], strict=True):
        before = [(cell["text"], cell["value"]) for cell in row.values() if isinstance(cell, dict)]
        assert before == [(cell["text"], cell["value"]) for cell in row_now.values() if isinstance(cell, dict)]


@pytest.mark.usefixtures("files")
def test_the_comparison_is_the_same():
    expected = json.loads(Path("expected/compare.json").read_text())
    now = json.loads(printed("compare", "sft", "aft", "--format", "json"))
    # Later versions add fields.
    assert [{name: row[name] for name in before} for row, before in zip(now, expected, strict=True)] == expected


@pytest.mark.usefixtures("files")
def test_the_votes_have_the_same_numbers():
    expected = numbers(Path("expected/votes.txt").read_text())
    # Later versions add the gap closed and a note on names.
    assert set(expected) <= set(numbers(printed("votes", "aft")))


def without(value: Any, key: str) -> Any:
    """The value without a key, in every dictionary inside it."""
    if isinstance(value, dict):
        return {name: without(part, key) for name, part in value.items() if name != key}
    return [without(part, key) for part in value] if isinstance(value, list) else value


@pytest.mark.usefixtures("files")
def test_the_diagnosis_has_the_same_numbers():
    expected = numbers(Path("expected/diagnose.json").read_text())
    # Version 0.1.0 did not say which drafts were cut, nor what gap was closed.
    diagnosed = without(json.loads(printed("diagnose", "aft", "--format", "json")), "cuts")
    now = numbers(json.dumps(without(without(diagnosed, "gap_closed"), "gap")))
    assert [float(number) for number in now] == pytest.approx([float(number) for number in expected], rel=1e-9)


@pytest.mark.usefixtures("files")
def test_a_killed_training_resumes_to_the_same_weights(capfd: pytest.CaptureFixture[str]):
    settings = settings_of("half")
    run_training("aft", make_config(settings, "run.json"))
    steps = re.findall(r"^step (\d)/4", capfd.readouterr().out, re.MULTILINE)
    assert steps[-2:] == ["3", "4"]
    assert "1" not in steps
    now, before = load_file("half/adapter_model.safetensors"), load_file("whole/adapter_model.safetensors")
    assert now.keys() == before.keys()
    for name, weights in before.items():
        torch.testing.assert_close(now[name], weights, rtol=1e-3, atol=1e-5)


@pytest.mark.usefixtures("files")
def test_a_finished_training_has_nothing_left_to_train(capfd: pytest.CaptureFixture[str]):
    settings = settings_of("whole")
    digest = Path("whole/adapter_model.safetensors").read_bytes()
    run_training("aft", make_config(settings, "run.json"))
    assert "is finished" in capfd.readouterr().out
    assert Path("whole/adapter_model.safetensors").read_bytes() == digest
