"""Fixtures of the trainers' tests."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest

from helpers.training_runs import SHORT
from lm_eval_aft.core.records import Request
from lm_eval_aft.engines.scripted import ScriptedEngine
from trainers.settings import TrainConfig


@pytest.fixture(autouse=True, scope="session")
def quick_trainings():
    """Omit a collection of garbage after each training, and parse peft's model card only once."""
    import accelerate.utils.memory
    import jinja2

    patch = pytest.MonkeyPatch()
    patch.setattr(accelerate.utils.memory, "gc", SimpleNamespace(collect=lambda: 0))
    patch.setattr(jinja2, "Template", cache(jinja2.Template))
    yield
    patch.undo()


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A function that lets another one write the texts of engine=scripted."""

    def use(script: Callable[[Request], str], **options: int) -> None:
        monkeypatch.setattr(ScriptedEngine, "load", classmethod(lambda cls, args, host: cls(script, **options)))

    return use


@pytest.fixture
def config(tmp_path: Path, tiny: str) -> TrainConfig:
    """A training on eight short rows, with a step for every two examples."""
    rows = [
        {
            "query": f"{n} + 1?",
            "drafts": [f"{n + d}" for d in range(3)],
            "target": f"it is {n + 1}",
            "sft_target": f"{n + 1}",
        }
        for n in range(8)
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "rows.jsonl").write_text(text)
    (tmp_path / "short.j2").write_text(SHORT)
    return TrainConfig(
        model=tiny,
        data=str(tmp_path / "rows.jsonl"),
        output=str(tmp_path / "run"),
        template=str(tmp_path / "short.j2"),
        k=(1, 3),
        lora_rank=2,
        batch_size=2,
        learning_rate=1e-3,
        log_every=1,
        save_every=2,
        device="cpu",
    )
