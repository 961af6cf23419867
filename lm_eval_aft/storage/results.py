"""Reads what lm-eval writes: results_*.json, and the samples_*.jsonl beside it, of any model.

Knows lm-eval's file layout and the part that ``model`` adds under ``config.aft``; knows nothing of traces, tests or
tables, and imports neither torch nor lm_eval. ``votes``, ``plot``, ``compare`` and ``report`` call it. Groups are left
out: lm-eval makes them from the tasks that are here. Over 200 lines: half of them say what a field means.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from lm_eval_aft.core.errors import RecordError
from lm_eval_aft.core.files import reading
from lm_eval_aft.core.jsonl import iterate_jsonl
from lm_eval_aft.core.log import warn_once
from lm_eval_aft.core.usage import MAX_COUNT, Usage

RESULTS, SAMPLES = "results_", "samples_"
QUESTIONS = ("question", "prompt", "instruction", "problem", "query", "input")  # fields of documents
SCORED = ("scored_without_aggregation", "scored_after_drafts")
SEEDS = ("random_seed", "numpy_seed", "torch_seed", "fewshot_seed")
MEASURED = ("usage", "spent", "engine_info", "bare_prompts_wrapped", *SCORED)  # not chosen


@dataclass(frozen=True, slots=True)
class Score:
    """One number of one run.

    Attributes:
        task: Name of the task.
        metric: Name of the metric.
        filter: Name of lm-eval's filter, such as flexible-extract.
        value: What lm-eval reports.
        stderr: lm-eval's standard error; None where it gives none.
        n: Questions.
        higher_is_better: False where less is better.
        ranked: False where neither is: lm-eval writes null for a length, say.
    """

    task: str
    metric: str
    filter: str
    value: float
    stderr: float | None
    n: int
    higher_is_better: bool = True
    ranked: bool = True


@dataclass(frozen=True, slots=True)
class Conditions:
    """How a task was put to a model: what must agree before two of its scores stand side by side.

    Attributes:
        version: Of the task.
        shots: Examples in the prompt.
        questions: That were asked.
        prompt: "chat", "bare", or "wrapped" where --model aft made a user turn of a bare prompt.
        system: SHA-256 of the system instruction; empty without one.
        multiturn: Whether examples were turns of their own.
        generation: The task's generation settings with those of --gen_kwargs.
        judge: Model that judged within the run; empty where none did.
    """

    version: str
    shots: int | None
    questions: int
    prompt: str
    system: str = ""
    multiturn: bool = False
    generation: Mapping[str, Any] = field(default_factory=dict)
    judge: str = ""


@dataclass(frozen=True, slots=True)
class EvalRun:
    """One results file.

    Attributes:
        path: The file.
        model: Checkpoint or name of the model.
        settings: ``config.aft``; None where another model than ours was run.
        scores: In the order of the file.
        usage: Logical cost of all tasks together; None where another model was run.
        config: lm-eval's whole ``config``.
        conditions: How each task was put.
        host_version: Of lm-eval; empty where the file does not say.
        system_instruction: lm-eval's; empty without one.
    """

    path: Path
    model: str
    settings: Mapping[str, Any] | None
    scores: tuple[Score, ...]
    usage: Usage | None
    config: Mapping[str, Any] = field(default_factory=dict)
    conditions: Mapping[str, Conditions] = field(default_factory=dict)
    host_version: str = ""
    system_instruction: str = ""

    @property
    def k(self) -> int | None:
        """Texts per layer; None where another model was run."""
        return int(self.settings["k"]) if self.settings else None

    @property
    def layers(self) -> int | None:
        """Aggregation passes; None where another model was run."""
        return int(self.settings["layers"]) if self.settings else None

    @property
    def answers(self) -> int | None:
        """Questions answered in all tasks together, every turn and repeat counted; None where another model was run."""
        if self.settings is None or self.usage is None:
            return None
        return self.usage.generations // int(self.settings["generations_per_question"])

    @property
    def engine(self) -> str:
        """Our engine, or the kind of model that lm-eval ran."""
        return str(self.settings.get("engine") or "unknown" if self.settings else self.config.get("model", "unknown"))

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks it has scores for."""
        return tuple(dict.fromkeys(score.task for score in self.scores))

    def samples_file(self, task: str) -> Path:
        """Where --log_samples of this run puts a task's samples."""
        stamp = self.path.name.removeprefix(RESULTS).removesuffix(".json")
        return self.path.with_name(f"{SAMPLES}{task}_{stamp}.jsonl")


@dataclass(frozen=True, slots=True)
class SampleKey:
    """What pairs two runs' answers: never the prompt's hash, which depends on the model."""

    task: str
    doc_id: int
    doc_hash: str
    filter: str


@dataclass(frozen=True, slots=True)
class Sample:
    """One question under one filter.

    Attributes:
        key: Which.
        target: The gold answer as lm-eval logs it; of a multiple choice its text.
        resps: The model's responses, before the filter.
        filtered: The responses after it.
        metrics: What each metric gave for this question.
        category: The document's category; empty where it has none.
        prompt: What the model was asked, examples included, as lm-eval logs it.
        question: The document's own question, without the task's frame; empty where no field is known to hold it.
        file: Where it was read.
    """

    key: SampleKey
    target: str
    resps: tuple[Any, ...]
    filtered: tuple[Any, ...]
    metrics: Mapping[str, Any]
    category: str = ""
    prompt: str = ""
    question: str = ""
    file: Path | None = None

    def score(self, metric: str) -> float:
        """What the metric gave for this question, as a number.

        Raises:
            RecordError: If the metric is not there, or gives something else than one number a question.
        """
        value = self.metrics.get(metric)
        if not isinstance(value, int | float):
            have = ", ".join(self.metrics) or "none"
            where = f" in {self.file}" if self.file else ""
            raise RecordError(
                f"{metric} of {self.key.task} is not one number a question{where}; its metrics are: {have}."
            )
        return float(value)


def read_runs(folder: str | Path) -> tuple[EvalRun, ...]:
    """Every run below a folder (or the one results file given), in the order of their paths.

    Where one folder holds several files of equal settings, tasks and conditions, the same command was run again: the
    newest wins, and stderr says which file is left out.

    Raises:
        RecordError: If there is none, or one cannot be read.
    """
    folder = Path(folder)
    files = [folder] if folder.is_file() else sorted(folder.rglob(f"{RESULTS}*.json"))  # stamps sort by time
    if not files:
        raise RecordError(f"there is no {RESULTS}*.json in {folder}: give the folder that --output_path named.")
    newest: dict[str, EvalRun] = {}
    for run in map(_read_run, files):
        older = newest.get(_identity(run))
        if older is not None:
            # A command may read a folder more than once.
            warn_once(f"{older.path} is left out: {run.path.name} beside it is a later run of the same command.")
        newest[_identity(run)] = run
    return tuple(newest.values())


def read_run(path: str | Path) -> EvalRun:
    """One run: a results file, or the newest one below a folder.

    Raises:
        RecordError: If there is none, or it cannot be read.
    """
    path = Path(path)
    files = [path] if path.is_file() else list(path.rglob(f"{RESULTS}*.json"))
    if not files:
        raise RecordError(f"there is no {RESULTS}*.json in {path}: give the folder that --output_path named.")
    return _read_run(max(files, key=lambda file: file.name))


def read_samples(run: EvalRun, task: str) -> tuple[Sample, ...]:
    """The samples of one task, one for each question and filter, in the order of the file.

    Raises:
        RecordError: If they were not logged, a line is damaged, or a question is there twice.
    """
    file = run.samples_file(task)
    if not file.is_file():
        raise RecordError(f"the samples of {task} are not beside {run.path}: run lm_eval with --log_samples.")
    samples = []
    for where, row in iterate_jsonl(file):
        with reading(where, "a sample of lm-eval"):
            samples.append(_sample(task, row, file))
    if len({sample.key for sample in samples}) < len(samples):
        raise RecordError(f"{file} holds a question twice under one filter: it was joined from several runs.")
    return tuple(samples)


def _identity(run: EvalRun) -> str:
    """Equal for runs of which only the newest counts: one folder, one model, equal settings, tasks and conditions."""
    chosen = {name: value for name, value in (run.settings or {}).items() if name not in MEASURED}
    asked = [run.config.get(name) for name in ("model", "gen_kwargs", *SEEDS)]
    asked += [None if run.settings else run.config.get("model_args")]
    put = {task: asdict(conditions) for task, conditions in run.conditions.items()}
    return json.dumps([str(run.path.parent), run.model, chosen, asked, run.tasks, put], sort_keys=True, default=str)


def _read_run(file: Path) -> EvalRun:
    with reading(file, "a results file of lm-eval"):
        data = json.loads(file.read_text(encoding="utf-8"))
        config = data["config"]
        settings = config.get("aft")
        usage = _usage(settings["usage"]) if settings else None
        model = settings["model"] if settings else data.get("model_name") or config["model"]
        if settings:
            _check_settings(settings)
        return EvalRun(
            file,
            str(model),
            settings,
            tuple(_scores(data)),
            usage,
            config,
            _conditions(data),
            str(data.get("lm_eval_version") or ""),
            str(data.get("system_instruction") or ""),
        )


def _check_settings(settings: Mapping[str, Any]) -> None:
    """Raise ValueError or TypeError where our own block of a results file is not as we write it."""
    for name, least in (("k", 1), ("layers", 0), ("generations_per_question", 1)):
        if not isinstance(settings[name], int) or not least <= settings[name] < MAX_COUNT:
            raise ValueError(f"{name} is {settings[name]!r}")
    for name, kind in (("model", str), ("engine", str), ("template", dict), ("model_shape", dict)):
        if not isinstance(settings.get(name) or kind(), kind):
            raise TypeError(f"{name} is {settings[name]!r}")


def _scores(data: dict[str, Any]) -> Iterator[Score]:
    for task, row in data["results"].items():
        if task not in data["n-samples"]:
            continue  # a group
        n = int(data["n-samples"][task]["effective"])
        better = data.get("higher_is_better", {}).get(task, {})
        for name, value in row.items():
            metric, comma, filter_name = name.partition(",")
            if not comma or metric.endswith("_stderr") or metric == "bypass" or not isinstance(value, int | float):
                continue
            stderr = row.get(f"{metric}_stderr,{filter_name}")
            known = float(stderr) if isinstance(stderr, int | float) else None  # lm-eval writes "N/A" otherwise
            direction = better.get(metric, True)
            yield Score(
                task, metric, filter_name, float(value), known, n, direction is not False, direction is not None
            )


def _conditions(data: dict[str, Any]) -> dict[str, Conditions]:
    """By task; what an older or foreign file does not say is left empty."""
    wrapped = (data["config"].get("aft") or {}).get("bare_prompts_wrapped")
    prompt = "wrapped" if wrapped else "chat" if data.get("chat_template") is not None else "bare"
    return {
        task: Conditions(
            version=str(data.get("versions", {}).get(task, "")),
            shots=data.get("n-shot", {}).get(task),
            questions=int(samples["effective"]),
            prompt=prompt,
            system=data.get("system_instruction_sha") or "",
            multiturn=bool(data.get("fewshot_as_multiturn")),
            generation=_task(data, task).get("generation_kwargs") or {},
            judge=str((_task(data, task).get("metadata") or {}).get("judge_model") or ""),
        )
        for task, samples in data["n-samples"].items()
    }


def _task(data: dict[str, Any], task: str) -> dict[str, Any]:
    config: dict[str, Any] = data.get("configs", {}).get(task) or {}
    return config


def _usage(row: dict[str, Any]) -> Usage:
    """The counts under ``config.aft.usage``; FLOPs are 0 where the model's shape is unknown."""
    counts = {f.name: int(row[f.name] or 0) for f in fields(Usage)}
    if not all(0 <= count < MAX_COUNT for count in counts.values()):
        raise ValueError("a count of usage is below zero or beyond counting")
    return Usage(**counts)


def _target(row: Mapping[str, Any]) -> str:
    """The gold answer; where lm-eval logs a choice by its number, the choice as it was asked."""
    arguments = row.get("arguments")
    asked = arguments.get(f"gen_args_{row['target']}") if isinstance(arguments, dict) else None
    choice = asked.get("arg_1") if isinstance(asked, dict) else None
    return choice.strip() if isinstance(choice, str) else str(row["target"])


def _sample(task: str, row: dict[str, Any], file: Path) -> Sample:
    key = SampleKey(task, int(row["doc_id"]), str(row["doc_hash"]), str(row["filter"]))
    resps = tuple(text for instance in row["resps"] for text in instance)
    metrics = {name: row[name] for name in row["metrics"]}
    for value in metrics.values():
        isinstance(value, int) and float(value)  # an OverflowError here rather than in whoever adds them up
    doc = row["doc"] if isinstance(row.get("doc"), dict) else {}
    return Sample(
        key,
        _target(row),
        resps,
        tuple(row["filtered_resps"]),
        metrics,
        category=str(doc.get("category") or ""),
        prompt=_prompt(row.get("arguments")),
        question=next((doc[name] for name in QUESTIONS if isinstance(doc.get(name), str)), ""),
        file=file,
    )


def _prompt(arguments: Any) -> str:
    """Of the first request; empty where another version of lm-eval logged requests in another form."""
    first = arguments.get("gen_args_0") if isinstance(arguments, dict) else None
    return str(first.get("arg_0", "")) if isinstance(first, dict) else ""
