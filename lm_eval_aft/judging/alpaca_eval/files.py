"""The files of AlpacaEval: model_outputs.json, lm-eval's samples of aft_alpaca_eval, and annotations."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lm_eval_aft.core.errors import RecordError
from lm_eval_aft.core.files import files_below, write_text
from lm_eval_aft.core.jsonl import read_json, read_jsonl
from lm_eval_aft.core.names import display_name
from lm_eval_aft.core.paths import missing_or
from lm_eval_aft.core.thinking import without_thoughts
from lm_eval_aft.judging.alpaca_eval.data import Annotation, ModelOutput
from lm_eval_aft.storage.location import benchmark_folder
from lm_eval_aft.storage.results import (
    SAMPLES,
    filtered_answer,
    is_results_file,
    read_run,
    results_files,
    run_of_samples,
)

ALPACA_TASK = "aft_alpaca_eval"
# The folder of annotations and scores, and the files in it.
ALPACA_FOLDER, ANNOTATIONS_FILE, SCORES_FILE = "alpaca_eval", "annotations.json", "scores.json"
OUTPUT_FILE = "model_outputs.json"


def find_outputs(path: str | Path) -> Path:
    """The file with a run's answers: the path itself, else model_outputs.json below it, else the newest samples file.

    Raises:
        RecordError: If there is no such file, or several folders hold one.
    """
    path = Path(path)
    if path.is_file() and not is_results_file(path):
        return path
    for files in (files_below(path, OUTPUT_FILE), _samples_files(path)):
        if len({file.parent for file in files}) > 1:
            raise RecordError(
                f"{path} holds answers of several runs: name the one to judge, such as {files[-1].parent}."
            )
        if files:
            return files[-1]
    problem = missing_or(path, f"there are no answers to judge in {path}")
    raise RecordError(
        f"{problem}: give a {OUTPUT_FILE}, the folder that record= named, or the one that --output_path named in a run "
        f"of {ALPACA_TASK} with --log_samples."
    )


def _samples_files(path: Path) -> list[Path]:
    """The samples files of a run, the newest last: the stamps in their names sort by time."""
    if path.is_dir():
        names = (f"{SAMPLES}{ALPACA_TASK}_*.jsonl", f"{SAMPLES}*::{ALPACA_TASK}_*.jsonl")
        files = [file for name in names for file in files_below(path, name)]
    else:
        files = [read_run(results).samples_file(ALPACA_TASK) for results in results_files(path)]
    return sorted((file for file in files if file.is_file()), key=lambda file: (file.name, file))


def judged_folder(outputs: Path, cache: str) -> Path:
    """The folder for the annotations and scores of a file of answers, with one cache of judgements for a run.

    Args:
        outputs: See ``find_outputs``.
        cache: Name of the file that keeps judgements.
    """
    run = run_of_samples(outputs, ALPACA_TASK) if outputs.suffix == ".jsonl" else None
    return outputs.parent / ALPACA_FOLDER if run is None else benchmark_folder(run, ALPACA_FOLDER, cache)


def read_outputs(file: Path, name: str | None = None) -> tuple[ModelOutput, ...]:
    """Answers from a model_outputs.json or from lm-eval's samples of aft_alpaca_eval.

    Args:
        file: See ``find_outputs``.
        name: The model's name; None takes it from the file.

    Raises:
        RecordError: If the file is of another kind, names several models, or holds an instruction twice.
    """
    samples = file.suffix == ".jsonl"
    rows = _read_rows(file)
    if samples:
        name = name or _model_of(file)
    try:
        outputs = tuple(_sample(row, name or "") if samples else _output(row, name) for row in rows)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        what = "samples of " + ALPACA_TASK if samples else "model outputs (instruction, output, generator)"
        raise RecordError(f"{file} holds a row that is not of {what}: {type(error).__name__} {error}.") from error
    _refuse_repeated(file, (row.instruction for row in outputs))
    generators = sorted({row.generator for row in outputs})
    if len(generators) > 1:
        raise RecordError(f"{file} holds outputs of {len(generators)} models ({', '.join(generators[:3])}): split it.")
    return outputs


def read_annotations(file: Path) -> tuple[Annotation, ...]:
    """Comparisons as alpaca_eval writes them. Its -1, a failed judgement, becomes None.

    Raises:
        RecordError: If the file does not hold annotations, or holds an instruction twice.
    """
    try:
        rows = tuple(_annotation(row) for row in _read_rows(file))
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise RecordError(f"{file} holds a row that is not an annotation: {type(error).__name__} {error}.") from error
    _refuse_repeated(file, (row.instruction for row in rows))
    names = {
        "generator_1": {row.generator_1 for row in rows},
        "generator_2": {row.generator_2 for row in rows},
        "annotator": {row.annotator for row in rows},
    }
    for column, values in names.items():
        if len(values) > 1:
            raise RecordError(
                f"{file} holds {len(values)} values of {column} ({', '.join(sorted(values)[:3])}): split it."
            )
    return rows


def write_rows(file: Path, rows: Sequence[ModelOutput] | Sequence[Annotation]) -> None:
    """Write outputs or annotations in alpaca_eval's own format, whole or not at all.

    Raises:
        RecordError: If the file cannot be written.
    """
    text = json.dumps([asdict(row) for row in rows], indent=2, ensure_ascii=False, allow_nan=False)
    write_text(file, text + "\n")


def _read_rows(file: Path) -> list[Any]:
    if file.suffix == ".jsonl":
        return list(read_jsonl(file))
    rows = read_json(file, "JSON")
    if not isinstance(rows, list) or not rows:
        raise RecordError(f"{file} does not hold a list of rows: give a file as alpaca_eval writes it.")
    return rows


def _model_of(samples: Path) -> str:
    """The name of the model whose samples these are, from the results file beside them."""
    run = run_of_samples(samples, ALPACA_TASK)
    return samples.parent.name if run is None else display_name(run.model, run.k, run.layers)


def _output(row: Mapping[str, Any], name: str | None) -> ModelOutput:
    text = without_thoughts(_text(row, "output"))
    return ModelOutput(_text(row, "instruction"), text, name or _text(row, "generator"), str(row.get("dataset", "")))


def _sample(row: Mapping[str, Any], name: str) -> ModelOutput:
    doc = row["doc"]
    # the task itself writes answers without surrounding blanks
    answer = without_thoughts(_text({"answer": filtered_answer(row)}, "answer")).strip()
    return ModelOutput(_text(doc, "instruction"), answer, name, str(doc.get("dataset", "")))


def _annotation(row: Mapping[str, Any]) -> Annotation:
    texts = {name: _text(row, name) for name in ("instruction", "output_1", "output_2", "generator_1", "generator_2")}
    return Annotation(
        **texts,
        annotator=str(row.get("annotator", "")),
        preference=_preference(row["preference"]),
        raw_completion=row.get("raw_completion"),
    )


def _preference(value: Any) -> float | None:
    if value is None or math.isnan(number := float(value)) or number == -1:
        return None
    if number == 0:
        # older versions of alpaca_eval write a draw as 0
        return 1.5
    if not 1 <= number <= 2:
        raise ValueError(f"preference {value}, which is not between 1 and 2")
    return number


def _text(row: Any, name: str | int) -> str:
    if not isinstance(row[name], str):
        raise TypeError(f"{name} is {row[name]!r}, not a text")
    return str(row[name])


def _refuse_repeated(file: Path, instructions: Iterable[str]) -> None:
    repeated = [text for text, count in Counter(instructions).items() if count > 1]
    if repeated:
        raise RecordError(
            f"{file} holds {len(repeated)} instructions more than once, the first being {repeated[0][:60]!r}: keep one "
            "answer to each."
        )
