"""Fixtures of the trainers' tests."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from helpers.training_runs import SHORT
from trainers.settings import TrainConfig


@pytest.fixture
def config(tmp_path: Path, tiny: str) -> TrainConfig:
    """Eight short rows, one step every two examples."""
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
