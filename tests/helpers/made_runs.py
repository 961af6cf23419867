"""Results folders as lm-eval writes them, made of plain numbers, for tests of report and compare."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from helpers.made_traces import SETTINGS, trace_of_tokens
from lm_eval_aft.core.usage import Usage
from lm_eval_aft.storage.traces import write_traces

STAMP = "2026-01-02T03-04-05.000006"


def make_run(
    folder: Path,
    scores: Sequence[Any],
    task: str = "t",
    k: int | None = 5,
    layers: int = 2,
    model: str = "m",
    metric: str = "acc",
    ids: Sequence[int] | None = None,
    categories: Sequence[str] | None = None,
    tokens: int = 300,
    **changes: Any,
) -> Path:
    """Write one results file with its samples, and return its path.

    Args:
        folder: Where the files go.
        scores: A score for each question, or a list of the scores of its parts.
        task: Name of the task.
        k: Texts per layer; None makes the run of another model.
        layers: Aggregation layers.
        model: Name of the model.
        metric: Name of the metric.
        ids: The doc_id of each question; by default from 0.
        categories: The category of each question.
        tokens: Generated tokens a question.
        changes: Parts of the results file to replace.
    """
    numbers = [part for score in scores for part in (score if isinstance(score, list) else [score])]
    mean = sum(numbers) / len(numbers)
    n = len(scores)
    usage = {"generations": n * (k or 0) * layers + n, "prompt_tokens": 9 * n, "computed_prompt_tokens": 4 * n}
    usage |= {"generated_tokens": tokens * n, "flops": 7 * n}
    aft: dict[str, Any] = {"k": k, "layers": layers, "generations_per_question": (k or 0) * layers + 1, "model": model}
    aft |= {"seed": 1, "spent": usage, "usage": usage, "engine": "hf", "version": "0.1.0"}
    aft |= {"template": {"name": "default", "sha256": "ab" * 32}, "temperature": 0.7, "fingerprint": model}
    row = {"alias": task, "name": task, f"{metric},none": mean, f"{metric}_stderr,none": 0.1}
    config = {"model": "aft" if k else "hf", "model_args": {"pretrained": f"/disk/{model}"}}
    data = {
        "results": {task: row},
        "n-samples": {task: {"original": n, "effective": n}},
        "versions": {task: 1.0},
        "n-shot": {task: 0},
        "higher_is_better": {task: {metric: True}},
        "chat_template": "x",
        "config": {**config, **({"aft": aft} if k else {})},
        "model_name": model,
        "lm_eval_version": "0.4.13",
        **changes,
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"results_{STAMP}.json"
    path.write_text(json.dumps(data), encoding="utf-8")
    rows = [
        {
            "doc_id": doc_id,
            "doc_hash": f"h{doc_id}",
            "doc": {"category": categories[place]} if categories else {},
            "filter": "none",
            "target": "18",
            "resps": [[f"answer {doc_id}"]],
            "filtered_resps": ["18"],
            "metrics": [metric],
            metric: scores[place],
        }
        for place, doc_id in enumerate(ids if ids is not None else range(n))
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / f"samples_{task}_{STAMP}.jsonl").write_text(lines, encoding="utf-8")
    return path


def log_targets(folder: Path, targets: dict[int, str], task: str = "gsm8k") -> None:
    """Write results and samples of another model's run, which hold these gold answers by doc_id."""
    folder.mkdir(parents=True, exist_ok=True)
    results = {
        "results": {task: {"exact_match,x": 0.5}},
        "n-samples": {task: {"effective": len(targets)}},
        "config": {"model": "hf"},
    }
    (folder / "results_1.json").write_text(json.dumps(results))
    rows = [
        {"doc_id": doc, "doc_hash": f"h{doc}", "target": gold, "filter": "x", "resps": [["?"]], "filtered_resps": ["?"]}
        for doc, gold in targets.items()
    ]
    lines = [json.dumps({**row, "metrics": ["exact_match"], "exact_match": 0}) + "\n" for row in rows]
    (folder / f"samples_{task}_1.jsonl").write_text("".join(lines))


def add_task(folder: Path, task: str, scores: list) -> None:
    """Add another task to a run's files."""
    more = folder / "more"
    make_run(more, scores, task=task)
    (path,) = folder.glob("results_*.json")
    data, extra = json.loads(path.read_text()), json.loads((more / path.name).read_text())
    for part in ("results", "n-samples", "versions", "n-shot", "higher_is_better"):
        data[part] |= extra[part]
    path.write_text(json.dumps(data))
    for file in more.glob("samples_*"):
        file.rename(folder / file.name)
    (more / path.name).unlink()


def two_tasks(out: Path) -> Path:
    """Write a run of two tasks. By its traces t costs 200 tokens a question, which leaves 100 for u without traces."""
    make_run(out, [1, 0], k=1, layers=0, tokens=300)
    add_task(out, "u", [1, 0])
    traces = [replace(trace_of_tokens(doc, tokens=200), usage=Usage(1, 5, 3, 200)) for doc in range(2)]
    write_traces(str(out / "traces"), SETTINGS, traces)
    return out
