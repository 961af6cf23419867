"""What trackers show of our runs: lm-eval's loggers, and the tables of ``aft export --wandb``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from helpers.graded_tasks import graded_task, scripted_model, texts
from helpers.paths import ROOT
from lm_eval_aft.analysis.frames import DRAFT_COLUMNS
from lm_eval_aft.cli import aft
from lm_eval_aft.core.errors import ConfigError

RUN = ROOT / "tests" / "fixtures" / "version_0_1_0" / "aft"
pytestmark = pytest.mark.usefixtures("quick_lm_eval")


@pytest.fixture
def results() -> dict[str, Any]:
    """What lm-eval hands to loggers: a run whose answers are "so 2", with chat prompts."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    results = lm_eval.simple_evaluate(
        model=scripted_model(texts("so 2"), k=1, layers=1),
        tasks=[graded_task()],
        task_manager=TaskManager(include_defaults=False),
        apply_chat_template=True,
        bootstrap_iters=0,
    )
    # A loaded model has no name there.
    results["config"]["model"] = "aft"
    return results


def test_trackio_shows_the_rendered_prompt_and_the_answer(results: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    loggers = pytest.importorskip("lm_eval.loggers.trackio_logger")
    logged: list[dict[str, Any]] = []
    fake = ModuleType("trackio")
    vars(fake).update(
        init=lambda **_: None,
        log=lambda row, step=None: logged.append(row),
        Trace=lambda messages, metadata: SimpleNamespace(messages=messages, metadata=metadata),
        config={},
    )
    monkeypatch.setitem(sys.modules, "trackio", fake)
    logger = loggers.TrackioLogger({"project": "p"})
    logger.post_init(results)
    logger.log_eval_samples(results["samples"])
    shown = [row["numbers/sample"] for row in logged]
    # Three questions under two filters.
    assert [trace.messages[1]["content"] for trace in shown] == ["[invalid]"] * 3 + ["2"] * 3
    prompt, *_ = results["samples"]["numbers"][0]["arguments"][0]
    assert shown[0].messages[0]["content"] == prompt
    assert "q0" in prompt
    assert not prompt.startswith("{")


@pytest.mark.filterwarnings("ignore")
def test_wandb_of_lm_eval_shows_the_rendered_prompt_and_the_answer(
    results: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pytest.importorskip("wandb")
    from lm_eval.loggers import WandbLogger

    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = WandbLogger({"project": "p", "mode": "offline", "dir": str(tmp_path)})
    logger.post_init(results)
    logger.log_eval_result()
    logger.log_eval_samples(results["samples"])
    logger.run.finish()
    tables = [json.loads(file.read_text()) for file in tmp_path.glob("wandb/offline-run*/files/media/table/*.json")]
    rows = [dict(zip(table["columns"], row, strict=True)) for table in tables for row in table["data"]]
    assert {row["raw_predictions"] for row in rows} == {"so 2"}
    prompts = {sample["arguments"][0][0] for sample in results["samples"]["numbers"]}
    assert {row["data"] for row in rows} == prompts
    assert not any(prompt.startswith("{") for prompt in prompts)


def export(*words: str) -> str:
    done = CliRunner().invoke(aft, ["export", str(RUN), *words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.filterwarnings("ignore")
def test_our_tables_are_logged_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    # W&B reads its variables once.
    wandb.teardown()
    assert "Logged to W&B: runs, samples, drafts" in export("--wandb", "p")
    (file,) = tmp_path.glob("wandb/offline-run*/files/media/table/drafts*.json")
    table = json.loads(file.read_text())
    assert table["columns"] == list(DRAFT_COLUMNS)
    # Eight questions of four generations.
    assert len(table["data"]) == 32


class FakeRun:
    """W&B's run. It keeps what is logged."""

    def __init__(self, logged: dict[str, Any]) -> None:
        self.logged = logged

    def __enter__(self) -> FakeRun:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def log(self, tables: dict[str, Any]) -> None:
        self.logged.update(tables)


def test_the_tables_have_the_columns_of_the_frames(monkeypatch: pytest.MonkeyPatch):
    logged: dict[str, Any] = {}
    fake = ModuleType("wandb")
    vars(fake).update(init=lambda **given: logged.update(given) or FakeRun(logged), Table=lambda dataframe: dataframe)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    export("--wandb", "my-project")
    assert logged["project"] == "my-project"
    assert list(logged["drafts"].columns) == list(DRAFT_COLUMNS)
    assert len(logged["drafts"]) == 32
    assert len(logged["runs"]) == 1


def test_without_wandb_one_sentence_says_so(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"--wandb needs the package wandb \(.*\): pip install wandb"):
        export("--wandb", "p")


def test_what_wandb_refuses_is_one_sentence(monkeypatch: pytest.MonkeyPatch):
    def refuse(**_: object) -> None:
        raise RuntimeError("no key")

    fake = ModuleType("wandb")
    vars(fake).update(init=refuse)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    with pytest.raises(ConfigError, match=r"wandb cannot log to --wandb p \(.*no key.*\): correct it, or"):
        export("--wandb", "p")


def test_files_and_wandb_are_one_or_the_other():
    with pytest.raises(ConfigError, match="--wandb is for tables: leave out it or --every-eval-ever"):
        export("--wandb", "p", "--every-eval-ever")
