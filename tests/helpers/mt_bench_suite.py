"""MT-Bench with a small local file of questions."""

from __future__ import annotations

import json
from pathlib import Path

from lm_eval_aft.judging.mt_bench.data import CATEGORIES, MT_BENCH_TASK


def write_suite(folder: Path, hub: bool = False) -> Path:
    """Write a group that gives our task a small local file, and return its folder.

    Args:
        folder: Where the files go.
        hub: Whether the file has the hub's column names.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number, category in enumerate(CATEGORIES):
        turns = [f"first of {category}", f"second of {category}"]
        names = ("prompt", "prompt_id") if hub else ("turns", "question_id")
        rows.append({names[0]: turns, names[1]: 81 + 10 * number, "category": category})
        if category == "math":
            rows[-1]["reference"] = ["42", ""]
    (folder / "question.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = [
        "group: offline_suite",
        "task:",
        f"  - task: {MT_BENCH_TASK}",
        "    dataset_path: json",
        "    dataset_name: null",
    ]
    lines += ["    dataset_kwargs:", "      data_files:", f"        train: {folder / 'question.jsonl'}"]
    (folder / "suite").mkdir(exist_ok=True)
    (folder / "suite" / "offline_suite.yaml").write_text("\n".join(lines) + "\n")
    return folder / "suite"
