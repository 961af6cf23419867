"""Scores in the two forms of the Hugging Face hub: a card's ``model-index``, and files in ``.eval_results``.

The forms are described in https://huggingface.co/docs/hub/eval-results and in the class ``EvalResult`` of
huggingface_hub.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from math import isfinite
from pathlib import Path
from typing import Any

import yaml

from lm_eval_aft.analysis.conditions import measure_name, primary_score
from lm_eval_aft.analysis.groups import listed_names
from lm_eval_aft.analysis.report.tables import is_share
from lm_eval_aft.analysis.runs import RunEntry
from lm_eval_aft.core.errors import ConfigError
from lm_eval_aft.core.files import file_name, write_text
from lm_eval_aft.core.log import log
from lm_eval_aft.core.secrets import hide
from lm_eval_aft.core.terminal import visible
from lm_eval_aft.storage.results import HUB_ID, Dataset, EvalRun, Score

FOLDER = ".eval_results"
# The identifier of a dataset's only task.
DEFAULT_TASK = "default"
_BENCHMARK = re.compile(rf"(?P<task>[^=]+)=(?P<dataset>{HUB_ID.pattern}):(?P<id>[\w.-]+)", re.ASCII)


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A leaderboard of the hub.

    Attributes:
        dataset: The dataset that has the leaderboard, as OWNER/NAME.
        task_id: The task's identifier in the file ``eval.yaml`` of the dataset.
    """

    dataset: str
    task_id: str


def read_benchmarks(texts: Iterable[str]) -> dict[str, Benchmark]:
    """Read ``TASK=OWNER/NAME:TASK_ID``.

    Raises:
        ConfigError: A text has another form.
    """
    found = {}
    for text in texts:
        match = _BENCHMARK.fullmatch(text)
        if match is None:
            raise ConfigError(
                f"--benchmark {text!r:.200} is not TASK=OWNER/NAME:TASK_ID: give for example gsm8k=openai/gsm8k:gsm8k."
            )
        found[match["task"]] = Benchmark(match["dataset"], match["id"])
    return found


def public_model(run: EvalRun) -> str:
    """The model as OWNER/NAME if it has this form, else the last part of its name or folder."""
    main = str((run.settings or {}).get("model", run.model))
    several = run.model != main
    name = run.model if several or HUB_ID.fullmatch(main) else Path(main).name or main
    return visible(name)


# ---------------------------------------------------------------- model-index


def model_index(entries: Sequence[RunEntry]) -> list[dict[str, Any]]:
    """The value of ``model-index``: an element a model, a result a dataset, a metric a run.

    Values have the metric's own unit, as lm-eval reports them. A score that is not a number is left out.
    """
    results: dict[str, dict[tuple[str, Dataset], dict[str, Any]]] = {}
    for entry in entries:
        for score in _main_scores(entry.run):
            dataset = entry.run.datasets.get(score.task, Dataset())
            key = (dataset.hub_id or score.task, dataset if dataset.hub_id else Dataset())
            of_model = results.setdefault(public_model(entry.run), {})
            of_model.setdefault(key, _result(*key))["metrics"].append(_metric(entry, score))
    return [{"name": model, "results": list(of_model.values())} for model, of_model in results.items()]


def front_matter(entries: Sequence[RunEntry]) -> str:
    """The head of a model card: ``model-index`` as YAML between two lines of hyphens."""
    return f"---\n{_as_yaml({'model-index': model_index(entries)})}---"


def _main_scores(run: EvalRun) -> Iterator[Score]:
    """The main score of each listed task or group that has a finite one."""
    for name in listed_names(run):
        score = primary_score(run, name)
        if isfinite(score.value):
            yield score


def _result(name: str, dataset: Dataset) -> dict[str, Any]:
    facts = {"name": name, "type": name, "config": dataset.name, "split": dataset.split}
    known = {key: visible(value) for key, value in facts.items() if value}
    return {"task": {"type": "text-generation"}, "dataset": known, "metrics": []}


def _metric(entry: RunEntry, score: Score) -> dict[str, Any]:
    """A metric of model-index. Its name tells the runs of a dataset apart."""
    run = entry.run
    arguments: dict[str, Any] = {"task": visible(score.task), "filter": visible(score.filter), "n": score.n}
    if run.settings:
        arguments |= {"k": run.width, "layers": run.layers, "strategy": _strategy(run)}
    if score.stderr is not None and isfinite(score.stderr):
        arguments["stderr"] = score.stderr
    name = f"{score.task} {measure_name(score.metric, score.filter)}: {entry.label}"
    return {"type": visible(score.metric), "value": score.value, "name": visible(name), "args": arguments}


# ---------------------------------------------------------------- .eval_results


def write_eval_results(
    folder: Path, entries: Sequence[RunEntry], benchmarks: Mapping[str, Benchmark] | None = None
) -> tuple[Path, ...]:
    """Write ``FOLDER/.eval_results/NAME.yaml``, a file a run.

    A share, such as an accuracy, is written in percent, as the hub's leaderboards read it.

    Args:
        folder: Folder of the model's repository.
        entries: The runs.
        benchmarks: The leaderboard of each task. Without one a task is of the dataset that it loads from the hub.

    Raises:
        ConfigError: No score of the runs belongs to a dataset of the hub, or a benchmark is of no task.
    """
    given = dict(benchmarks or {})
    tasks = {name for entry in entries for name in listed_names(entry.run)}
    if unknown := [task for task in given if task not in tasks]:
        raise ConfigError(f"--benchmark names {unknown[0]!r:.200}, and the runs have {', '.join(sorted(tasks))}.")
    found = [(entry, rows) for entry in entries if (rows := list(_rows(entry, given)))]
    if not found:
        raise ConfigError(
            "no score of these runs belongs to a dataset of the hub: give --benchmark TASK=OWNER/NAME:TASK_ID."
        )
    paths = []
    for entry, rows in found:
        path = folder / FOLDER / f"{file_name(entry.label)}.yaml"
        paths.append(write_text(path, _as_yaml(rows), ConfigError))
    return tuple(paths)


def _rows(entry: RunEntry, benchmarks: Mapping[str, Benchmark]) -> Iterator[dict[str, Any]]:
    for score in _main_scores(entry.run):
        dataset = entry.run.datasets.get(score.task, Dataset())
        of_dataset = Benchmark(dataset.hub_id, dataset.name or DEFAULT_TASK) if dataset.hub_id else None
        benchmark = benchmarks.get(score.task, of_dataset)
        if benchmark is None:
            log.warning(
                "%s of %s is left out, since the task loads no dataset of the hub: give --benchmark.",
                score.task,
                entry.label,
            )
            continue
        yield {
            "dataset": {"id": benchmark.dataset, "task_id": benchmark.task_id},
            "value": round(100 * score.value, 10) if is_share([score.value]) else score.value,
            **_date_field(entry.run),
            "notes": visible(_notes(entry, score)),
        }


def _date_field(run: EvalRun) -> dict[str, str]:
    return {} if run.date is None else {"date": datetime.fromtimestamp(run.date, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")}


def _notes(entry: RunEntry, score: Score) -> str:
    """How the score was reached, in one line."""
    run, shots = entry.run, entry.run.conditions[score.task].shots if score.task in entry.run.conditions else None
    parts = [entry.label, f"{score.task} {measure_name(score.metric, score.filter)}", f"n={score.n}"]
    if shots is not None:
        parts.append(f"{shots}-shot")
    if run.settings:
        parts.append(f"k={run.width}, layers={run.layers}, {_strategy(run)}")
    if cost := entry.cost_of(score.task) or entry.costs.get(score.task):
        parts.append(f"{cost.generations:g} generations and {cost.generated_tokens:.0f} generated tokens a question")
    version = (run.settings or {}).get("version")
    parts.append(f"lm_eval {run.host_version}" + (f" with lm_eval_aft {version}" if version else ""))
    return "; ".join(parts)


def _strategy(run: EvalRun) -> str:
    return str((run.settings or {}).get("strategy", "aggregate"))


def _as_yaml(value: Any) -> str:
    """YAML in ASCII, so that no reader can take a character of a name for a command."""
    return hide(yaml.safe_dump(value, sort_keys=False, width=1000))
