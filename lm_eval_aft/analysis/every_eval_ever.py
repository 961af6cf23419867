"""Runs as records of Every Eval Ever, the shared format of https://evalevalai.com for results of evaluations.

A record is a JSON file for each task of each run. The logged questions are in a file beside it, one a line. The paths
are those of the project's datastore: ``data/TASK/DEVELOPER/MODEL/UUID.json`` and ``UUID_samples.jsonl``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from math import isfinite
from pathlib import Path
from typing import Any, Literal
from uuid import UUID

from lm_eval_aft.analysis.conditions import RIGHT_OR_WRONG
from lm_eval_aft.analysis.frames import Cells, logged_samples, mean_value
from lm_eval_aft.analysis.report.hub_results import public_model
from lm_eval_aft.analysis.report.model_card import command, settings_line
from lm_eval_aft.analysis.runs import RunEntry, sampling_of
from lm_eval_aft.core.chat import decode
from lm_eval_aft.core.errors import ChatError, ConfigError, RecordError
from lm_eval_aft.core.files import file_digest, file_name, write_text
from lm_eval_aft.core.jsonl import write_jsonl
from lm_eval_aft.core.log import log
from lm_eval_aft.core.secrets import hide
from lm_eval_aft.inference.dialogue import answers_in
from lm_eval_aft.storage.results import Dataset, EvalRun, Sample, Score

# The version of the format, whose JSON schemas are in https://github.com/evaleval/every_eval_ever.
SCHEMA_VERSION = "0.3.0"
Relationship = Literal["first_party", "third_party", "collaborative", "other"]
RELATIONSHIPS: tuple[Relationship, ...] = ("first_party", "third_party", "collaborative", "other")
UNKNOWN = "unknown"
# Names that a part of a path cannot have in the datastore or on Windows.
_RESERVED = {"DATA", "CON", "PRN", "AUX", "NUL", *(f"{port}{n}" for port in ("COM", "LPT") for n in range(10))}
# Engines that run on machines of whoever evaluates.
_LOCAL_ENGINES = ("hf", "vllm")
Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Publisher:
    """Who publishes the records.

    Attributes:
        organization: Its name.
        relationship: How it is related to whoever made the model.
        developer: Who made a model whose name does not say it, as OWNER/NAME does.
    """

    organization: str = UNKNOWN
    relationship: Relationship = "other"
    developer: str = UNKNOWN


def write_every_eval_ever(
    folder: Path, entries: Sequence[RunEntry], publisher: Publisher, now: float
) -> tuple[Path, ...]:
    """Write the records of all tasks of some runs. A record that was written before is replaced.

    Args:
        folder: The records are below ``FOLDER/data``.
        entries: The runs.
        publisher: Who publishes them.
        now: Seconds since 1970.

    Returns:
        The JSON files.

    Raises:
        ConfigError: No task has a finite score, or a file cannot be written.
        RecordError: A file of a run cannot be read.
    """
    paths = [
        _write_record(folder, _Subject(entry, task, str(now), publisher), scores)
        for entry in entries
        for task in entry.run.tasks
        if (scores := _finite_scores(entry, task))
    ]
    if not paths:
        raise ConfigError("no task of these runs has a score that is a number: there is nothing to export.")
    return tuple(paths)


def _finite_scores(entry: RunEntry, task: str) -> list[Score]:
    scores = entry.run.scores_of(task)
    for score in scores:
        if not isfinite(score.value):
            log.warning(
                "%s,%s of %s in %s is left out: it is not a number.", score.metric, score.filter, task, entry.label
            )
    return [score for score in scores if isfinite(score.value)]


@dataclass(frozen=True, slots=True)
class _Subject:
    """One task of one run, and its names in the format."""

    entry: RunEntry
    task: str
    now: str
    publisher: Publisher

    @property
    def run(self) -> EvalRun:
        return self.entry.run

    @property
    def model(self) -> str:
        return public_model(self.run)

    @property
    def developer(self) -> str:
        owner, slash, _ = self.model.partition("/")
        return owner if slash else self.publisher.developer

    @property
    def evaluation_id(self) -> str:
        return f"{self.task}/{self.model}/{self.now}/{file_name(self.entry.label)}"

    @property
    def uuid(self) -> UUID:
        """The same for each export of a run, so that exporting again makes no second record."""
        identity = json.dumps([self.task, self.model, self.entry.label, self.run.path.name, self.run.date])
        return UUID(bytes=sha256(identity.encode(errors="replace")).digest()[:16], version=4)

    @property
    def place(self) -> str:
        """The folder in the datastore."""
        return "/".join(["data", *map(_part, (self.task, self.developer, self.model.rpartition("/")[2]))])

    @property
    def dataset(self) -> Dataset:
        return self.run.datasets.get(self.task, Dataset())


def _part(name: str) -> str:
    """A name as part of a path in the datastore."""
    part = file_name(name).rstrip(".") or "_"
    return f"_{part}" if part.partition(".")[0].upper() in _RESERVED or part.startswith(".") else part


def _write_record(folder: Path, subject: _Subject, scores: Sequence[Score]) -> Path:
    record = {
        "schema_version": SCHEMA_VERSION,
        "evaluation_id": subject.evaluation_id,
        **({} if subject.run.date is None else {"evaluation_timestamp": str(subject.run.date)}),
        "retrieved_timestamp": subject.now,
        "source_metadata": {
            "source_name": "lm-evaluation-harness",
            "source_type": "evaluation_run",
            "source_organization_name": subject.publisher.organization,
            "evaluator_relationship": subject.publisher.relationship,
        },
        "eval_library": _library(subject.run),
        "model_info": _model_info(subject),
        "evaluation_results": [_result(subject, score) for score in scores],
    }
    if subject.entry.logged(subject.task) and (samples := _write_samples(folder, subject)):
        record["detailed_evaluation_results"] = samples
    text = json.dumps(record, ensure_ascii=False, allow_nan=False, indent=2)
    return write_text(folder / subject.place / f"{subject.uuid}.json", hide(text) + "\n", ConfigError)


def _library(run: EvalRun) -> Record:
    library: Record = {"name": "lm_eval", "version": run.host_version or UNKNOWN}
    version = (run.settings or {}).get("version")
    return {**library, "additional_details": {"lm_eval_aft": str(version)}} if version else library


def _model_info(subject: _Subject) -> Record:
    run = subject.run
    details = {
        "deployment_type": "self_deployed" if run.engine in _LOCAL_ENGINES else UNKNOWN,
        "model_availability": UNKNOWN,
        "label": subject.entry.label,
        "settings": settings_line(subject.entry),
    }
    if run.settings:
        names = ("k", "layers", "strategy", "seed")
        details |= {name: str(run.settings[name]) for name in names if run.settings.get(name) is not None}
    return {
        "name": subject.model,
        "id": subject.model,
        "developer": subject.developer,
        "inference_engine": {"name": run.engine},
        "additional_details": details,
    }


# ---------------------------------------------------------------- results


def _result(subject: _Subject, score: Score) -> Record:
    config = _generation_config(subject)
    return {
        "evaluation_result_id": _result_id(score.task, score.metric, score.filter),
        "evaluation_name": _evaluation_name(score.task, score.filter),
        "source_data": _source_data(subject),
        **({} if subject.run.date is None else {"evaluation_timestamp": str(subject.run.date)}),
        "metric_config": _metric_config(score),
        "score_details": {
            "score": score.value,
            "details": _cost_details(subject),
            "uncertainty": _uncertainty(score),
        },
        **({"generation_config": config} if config else {}),
    }


def _result_id(task: str, metric: str, filter_name: str) -> str:
    return f"{task}/{metric}/{filter_name}"


def _evaluation_name(task: str, filter_name: str) -> str:
    return task if filter_name == "none" else f"{task}/{filter_name}"


def _source_data(subject: _Subject) -> Record:
    dataset = subject.dataset
    if not dataset.hub_id:
        return {"dataset_name": subject.task, "source_type": "other"}
    return {
        "dataset_name": subject.task,
        "source_type": "hf_dataset",
        "hf_repo": dataset.hub_id,
        **({"hf_split": dataset.split} if dataset.split else {}),
        **({"additional_details": {"config": dataset.name}} if dataset.name else {}),
    }


def _metric_config(score: Score) -> Record:
    config: Record = {
        "metric_id": score.metric,
        "metric_name": score.metric,
        "evaluation_description": f"{score.metric} of {score.task}, filter {score.filter}",
        "lower_is_better": not score.higher_is_better,
    }
    if score.metric in RIGHT_OR_WRONG:
        return config | {"score_type": "continuous", "min_score": 0, "max_score": 1, "metric_unit": "proportion"}
    details = {"bounds_status": UNKNOWN}
    if not score.ranked:
        details["direction"] = "neither more nor less is better"
    return config | {"additional_details": details}


def _uncertainty(score: Score) -> Record:
    known = score.stderr is not None and isfinite(score.stderr)
    return {"num_samples": score.n} | ({"standard_error": {"value": score.stderr}} if known else {})


def _cost_details(subject: _Subject) -> dict[str, str]:
    """The cost of a question."""
    cost = subject.entry.cost_of(subject.task) or subject.entry.costs.get(subject.task)
    if cost is None:
        return {}
    numbers = {
        "generations": cost.generations,
        "generated_tokens": cost.generated_tokens,
        "prompt_tokens": cost.prompt_tokens,
        "flops": cost.flops,
    }
    return {f"{name}_per_question": f"{value:.15g}" for name, value in numbers.items() if value is not None}


def _generation_config(subject: _Subject) -> Record:
    """How the answer was sampled; empty for a task that generates nothing."""
    run, conditions = subject.run, subject.run.conditions.get(subject.task)
    if conditions is None or not conditions.generates:
        return {}
    arguments: Record = {"execution_command": command(run)}
    if run.settings:
        drafts, final = sampling_of(run, conditions.generation)
        sampling = {"temperature": final.temperature, "top_p": final.top_p, "max_tokens": final.max_tokens}
        arguments |= sampling | ({"top_k": final.top_k} if final.top_k else {})
        details = {"draft_temperature": f"{drafts.temperature:g}", "draft_max_tokens": str(drafts.max_tokens)}
    else:
        details = {name: json.dumps(value) for name, value in conditions.generation.items()}
    if conditions.shots is not None:
        details["num_fewshot"] = str(conditions.shots)
    return {"generation_args": arguments, "additional_details": details}


# ---------------------------------------------------------------- questions


def _write_samples(folder: Path, subject: _Subject) -> Record | None:
    """Write the logged questions of a task, and return the reference to the file; None if none can be written."""
    relative = f"{subject.place}/{subject.uuid}_samples.jsonl"
    rows = list(_sample_rows(subject))
    if not rows:
        return None
    path = folder / relative
    try:
        count = write_jsonl(path, rows, errors="replace")
        checksum = file_digest(path)
    except RecordError as error:
        raise ConfigError(str(error)) from error
    return {
        "format": "jsonl",
        "file_path": relative,
        "hash_algorithm": "sha256",
        "checksum": checksum,
        "total_rows": count,
    }


def _sample_rows(subject: _Subject) -> Iterator[Record]:
    """A row for each question and filter. The format needs a number, so a question without one is left out."""
    left_out = 0
    for sample, cells in logged_samples(subject.entry, subject.task):
        scored = _scored(sample, cells)
        if scored is None:
            left_out += 1
        else:
            yield _sample_row(subject, sample, cells, *scored)
    if left_out:
        log.warning(
            "%d of the questions of %s in %s are left out: they have no score that is a number.",
            left_out,
            subject.task,
            subject.entry.label,
        )


def _scored(sample: Sample, cells: Cells) -> tuple[str, float] | None:
    """The metric of a question and its value; None if no metric has a number.

    A judge's metrics have no number for a question, so another metric of the task can be the first with one.
    """
    first = (cells["metric"], cells["score"])
    others = ((name, mean_value(value)) for name, value in sample.metrics.items())
    return next(((name, value) for name, value in (first, *others) if value is not None and isfinite(value)), None)


def _sample_row(subject: _Subject, sample: Sample, cells: Cells, metric: str, score: float) -> Record:
    key = sample.key
    interaction = _interaction(sample, cells["answer"])
    question, reference = interaction["input"]["raw"], interaction["input"]["reference"]
    # The recipe of the format, by which other programs find the same question.
    hashed = json.dumps({"raw": question, "reference": reference}, sort_keys=True, separators=(",", ":"))
    turns = {"num_turns": len(interaction["messages"])} if "messages" in interaction else {}
    return {
        "schema_version": SCHEMA_VERSION,
        "evaluation_id": subject.evaluation_id,
        "model_id": subject.model,
        "evaluation_name": _evaluation_name(key.task, key.filter),
        "evaluation_result_id": _result_id(key.task, metric, key.filter),
        "sample_id": str(key.doc_id),
        "sample_hash": sha256(hashed.encode()).hexdigest(),
        **interaction,
        "evaluation": {"score": score, "is_correct": score == 1, **turns},
        "token_usage": _token_usage(cells),
        "metadata": {"doc_hash": key.doc_hash, "metrics": json.dumps(dict(sample.metrics)), **_other_dialogues(sample)},
    }


def _interaction(sample: Sample, answer: str | None) -> Record:
    """What was said, as one answer or as a dialogue, and where the answer stands in it."""
    answers = _answers_of_turns(sample)
    if answers:
        return _dialogue(sample, answers, answer)
    question = sample.question or str(sample.prompt)
    found = [] if answer is None else [_attribution(sample, "output.raw", 0, answer, last=True)]
    return {
        "interaction_type": "single_turn",
        "input": {"raw": question, "formatted": sample.rendered or None, "reference": [sample.target]},
        "output": {"raw": [text if isinstance(text, str) else json.dumps(text) for text in sample.resps]},
        "answer_attribution": found,
    }


def _answers_of_turns(sample: Sample) -> tuple[str, ...]:
    """The answer to each turn of a dialogue; empty for one answer, or for a response that is no dialogue's."""
    first = sample.resps[0] if sample.resps else None
    answers = answers_in(first) if sample.later_turns and isinstance(first, str) else ()
    return answers if len(answers) == 1 + len(sample.later_turns) else ()


def _dialogue(sample: Sample, answers: Sequence[str], answer: str | None) -> Record:
    """The parts of a row that hold a dialogue. A turn of the format is a message, and its number is its position."""
    try:
        opening = decode(sample.prompt)
    except ChatError as error:
        raise RecordError(f"{sample.file}: {error}") from error
    said = [(message.role, message.content) for message in opening.messages]
    asked = [sample.question or said[-1][1], *sample.later_turns]
    places = []
    for number, text in enumerate(answers):
        said += [("user", sample.later_turns[number - 1])] if number else []
        places.append(len(said))
        said.append(("assistant", text if number else opening.prefill + text))
    # A filter that takes something from the whole response is shown at the last answer.
    taken = answers if answer is None or answer == sample.resps[0] else (answer,)
    return {
        "interaction_type": "multi_turn",
        "input": {"raw": "\n".join(asked), "formatted": None, "reference": [sample.target]},
        "messages": [{"turn_idx": place, "role": role, "content": text} for place, (role, text) in enumerate(said)],
        "answer_attribution": [
            _attribution(sample, f"messages[{place}].content", place, value, last=place == places[-1])
            for place, value in zip(places[-len(taken) :], taken, strict=True)
        ],
    }


def _attribution(sample: Sample, source: str, turn: int, value: str, last: bool) -> Record:
    return {
        "turn_idx": turn,
        "source": source,
        "extraction_method": sample.key.filter,
        "is_terminal": last,
        "extracted_value": value,
    }


def _other_dialogues(sample: Sample) -> dict[str, str]:
    """The responses of a task's repeats beside the first. The format has room for one dialogue."""
    others = sample.resps[1:] if _answers_of_turns(sample) else ()
    return {"other_responses": json.dumps(others)} if others else {}


def _token_usage(cells: Mapping[str, Any]) -> Record | None:
    """Tokens of all generations of a question; None without traces."""
    if "generated_tokens" not in cells:
        return None
    prompt, generated = cells["prompt_tokens"], cells["generated_tokens"]
    return {
        "input_tokens": prompt,
        "output_tokens": generated,
        "total_tokens": prompt + generated,
        "input_tokens_cache_read": prompt - cells["computed_prompt_tokens"],
    }
