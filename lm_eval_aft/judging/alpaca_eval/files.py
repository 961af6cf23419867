"""The files of AlpacaEval: model_outputs.json, lm-eval's samples of aft_alpaca_eval, annotations.

Knows their formats and where a run puts them; nothing of judges or scores, and imports neither alpaca_eval nor pandas.
Called by ``alpaca`` and the task aft_alpaca_eval.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lm_eval_aft.core.errors import RecordError
from lm_eval_aft.core.names import display_name
from lm_eval_aft.judging.alpaca_eval.data import Annotation, Output
from lm_eval_aft.storage.results import RESULTS, SAMPLES, read_run

TASK = "aft_alpaca_eval"
OUTPUTS = "model_outputs.json"


def find_outputs(path: str | Path) -> Path:
    """The file with a run's answers: the one given, else model_outputs.json, else the newest samples file below it.

    Raises:
        RecordError: If there is none, or there are some in several folders.
    """
    path = Path(path)
    if path.is_file():
        return path
    for pattern in (OUTPUTS, f"{SAMPLES}{TASK}_*.jsonl"):
        found = sorted(path.rglob(pattern), key=lambda file: (file.name, file))  # the stamps of samples sort by time
        if len({file.parent for file in found}) > 1:
            raise RecordError(
                f"{path} holds answers of several runs: name the one to judge, such as {found[-1].parent}."
            )
        if found:
            return found[-1]
    raise RecordError(
        f"there are no answers to judge in {path}: give a {OUTPUTS}, the folder that record= named, or the one that "
        f"--output_path named in a run of {TASK} with --log_samples."
    )


def read_outputs(file: Path, name: str | None = None) -> tuple[Output, ...]:
    """Answers from a model_outputs.json or from lm-eval's samples of aft_alpaca_eval.

    Args:
        file: As ``find_outputs`` names it.
        name: What to call the model instead of the file's own name for it.

    Raises:
        RecordError: If the file is not such a file, names several models, or holds an instruction twice.
    """
    rows = _read_rows(file)
    samples = file.suffix == ".jsonl"
    if samples:
        name = name or _model_of(file)
    try:
        outputs = tuple(_sample(row, name or "") if samples else _output(row, name) for row in rows)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        what = "samples of " + TASK if samples else "model outputs (instruction, output, generator)"
        raise RecordError(f"{file} holds a row that is not of {what}: {type(error).__name__} {error}.") from error
    _refuse_doubles(file, (row.instruction for row in outputs))
    generators = sorted({row.generator for row in outputs})
    if len(generators) > 1:
        raise RecordError(f"{file} holds outputs of {len(generators)} models ({', '.join(generators[:3])}): split it.")
    return outputs


def read_annotations(file: Path) -> tuple[Annotation, ...]:
    """Comparisons as alpaca_eval writes them; what is no preference is None, its -1 for a failed judgement too.

    Raises:
        RecordError: If the file is not of annotations, or holds an instruction twice.
    """
    try:
        rows = tuple(_annotation(row) for row in _read_rows(file))
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise RecordError(f"{file} holds a row that is no annotation: {type(error).__name__} {error}.") from error
    _refuse_doubles(file, (row.instruction for row in rows))
    for column in ("generator_1", "generator_2", "annotator"):
        names = sorted({getattr(row, column) for row in rows})
        if len(names) > 1:
            raise RecordError(f"{file} holds {len(names)} values of {column} ({', '.join(names[:3])}): split it.")
    return rows


def write_rows(file: Path, rows: Sequence[Output] | Sequence[Annotation]) -> None:
    """Write outputs or annotations in alpaca_eval's own format.

    Raises:
        RecordError: If the file cannot be written.
    """
    text = json.dumps([asdict(row) for row in rows], indent=2, ensure_ascii=False, allow_nan=False)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise RecordError(f"{file} cannot be written ({error.strerror}).") from error


def _read_rows(file: Path) -> list[Any]:
    try:
        text = file.read_text(encoding="utf-8")
        lines = [line for line in text.split("\n") if line]  # splitlines would also cut at U+2028 inside an answer
        rows = [json.loads(line) for line in lines] if file.suffix == ".jsonl" else json.loads(text)
    except OSError as error:
        raise RecordError(f"{file} cannot be read ({error.strerror}).") from error
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{file} is not JSON ({error}).") from error
    if not isinstance(rows, list) or not rows:
        raise RecordError(f"{file} does not hold a list of rows: give a file as alpaca_eval writes it.")
    return rows


def _model_of(samples: Path) -> str:
    """The name of the model whose samples these are, from the results file beside them."""
    results = samples.with_name(samples.name.replace(f"{SAMPLES}{TASK}_", RESULTS).removesuffix("l"))
    if not results.is_file():
        return samples.parent.name
    run = read_run(results)
    return display_name(run.model, run.k, run.layers)


def _output(row: Mapping[str, Any], name: str | None) -> Output:
    text = _text(row, "output")
    return Output(_text(row, "instruction"), text, name or _text(row, "generator"), str(row.get("dataset", "")))


def _sample(row: Mapping[str, Any], name: str) -> Output:
    doc = row["doc"]
    answer = _text(row["filtered_resps"], 0).strip()  # as the task itself writes it
    return Output(_text(doc, "instruction"), answer, name, str(doc.get("dataset", "")))


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
        return 1.5  # alpaca_eval's older way to write a draw
    if not 1 <= number <= 2:
        raise ValueError(f"preference {value}, which is not between 1 and 2")
    return number


def _text(row: Any, name: str | int) -> str:
    if not isinstance(row[name], str):
        raise TypeError(f"{name} is {row[name]!r}, not a text")
    return str(row[name])


def _refuse_doubles(file: Path, instructions: Iterable[str]) -> None:
    doubles = [text for text, count in Counter(instructions).items() if count > 1]
    if doubles:
        raise RecordError(
            f"{file} holds {len(doubles)} instructions more than once, the first being {doubles[0][:60]!r}: keep one "
            "answer to each."
        )
