"""The files of MT-Bench: questions, answers and references in FastChat's formats, and where a run keeps its own.

Knows the eight categories, what each is sampled with, and which are judged against references; nothing of judges.
Called by the other ``mt_bench`` modules and the task aft_mt_bench. Over 200 lines because every file is checked here.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from lm_eval_aft.core.chat import THINK
from lm_eval_aft.core.errors import RecordError
from lm_eval_aft.core.files import file_name, reading, write_text
from lm_eval_aft.core.jsonl import read_jsonl
from lm_eval_aft.core.names import display_name
from lm_eval_aft.storage.results import EvalRun, read_runs

TASK = "aft_mt_bench"
FOLDER, QUESTIONS = "mt_bench", "question.jsonl"
ANSWERS, JUDGMENTS = "model_answer", "model_judgment"
TEMPERATURES = {  # FastChat's
    **{"writing": 0.7, "roleplay": 0.7, "reasoning": 0.0, "math": 0.0},
    **{"coding": 0.0, "extraction": 0.0, "stem": 0.1, "humanities": 0.1},
}
CATEGORIES = tuple(TEMPERATURES)
WITH_REFERENCE = ("math", "reasoning", "coding")
FIRST_ID, WHOLE = 81, 80


@dataclass(frozen=True, slots=True)
class Dialogue:
    """One question: what the user says, turn by turn.

    Attributes:
        question_id: FastChat's number, 81 to 160.
        category: One of eight.
        turns: What the user says.
        reference: The data set's own short references; a turn without one has an empty text.
    """

    question_id: int
    category: str
    turns: tuple[str, ...]
    reference: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model said in the turns of one question."""

    question_id: int
    turns: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Material:
    """All that a judge needs of one model.

    Attributes:
        model: Its name.
        dialogues: The questions that were answered.
        answers: One for each, in the same order.
        folder: Where judgements go.
    """

    model: str
    dialogues: tuple[Dialogue, ...]
    answers: tuple[Answer, ...]
    folder: Path


def dialogue(row: Mapping[str, Any], place: int = -1) -> Dialogue:
    """A question from a row of FastChat's file, or of the hub's data set, which calls turns "prompt" and has no ids.

    Args:
        row: The row.
        place: Its place in the data set; FastChat's ids follow from it.

    Raises:
        RecordError: If it is neither.
    """
    number = row.get("question_id")
    number = FIRST_ID + place if number is None and place >= 0 else number
    turns = row.get("turns") or row.get("prompt")
    category = row.get("category")
    given = isinstance(number, int | str) and str(number).isdecimal() and isinstance(category, str)
    two = isinstance(turns, list) and len(turns) == 2 and all(isinstance(turn, str) for turn in turns)
    references = row.get("reference") or ()
    if not given or not two or category not in CATEGORIES or not isinstance(references, list | tuple):
        raise RecordError(
            f"row {place + 1} of the questions is not one of MT-Bench's: it needs question_id, two turns and a "
            f"category of {', '.join(CATEGORIES)}."
        )
    return Dialogue(int(str(number)), str(category), tuple(turns or ()), tuple(map(str, references)))


def read_dialogues(file: Path) -> tuple[Dialogue, ...]:
    """FastChat's question.jsonl.

    Raises:
        RecordError: If it is none.
    """
    rows = read_jsonl(file)
    try:
        return tuple(dialogue(row, place) for place, row in enumerate(rows))
    except RecordError as error:
        raise RecordError(f"{file}: {error}") from error


def hub_dialogues() -> tuple[Dialogue, ...]:
    """The questions from the hub.

    Raises:
        RecordError: If they cannot be had.
    """
    from datasets import load_dataset

    try:
        rows = load_dataset("HuggingFaceH4/mt_bench_prompts", split="train")
    except (OSError, ValueError) as error:  # datasets has no common error: no network and no cache are both of these
        raise RecordError(
            "the questions of MT-Bench cannot be had from the hub: give FastChat's question.jsonl with "
            "--questions FILE."
        ) from error
    return tuple(dialogue(row, place) for place, row in enumerate(rows))


def read_answers(file: Path) -> tuple[str, tuple[Answer, ...]]:
    """A model_answer file of FastChat: the model's name and its answers.

    Raises:
        RecordError: If it is none, or holds several models or a question twice.
    """
    rows = read_jsonl(file)
    with reading(file, "a model_answer file of FastChat"):
        answers = tuple(_answer(row["question_id"], row["choices"][0]["turns"]) for row in rows)
        models = {str(row["model_id"]) for row in rows}
    if len(models) != 1:
        raise RecordError(f"{file} holds answers of {len(models)} models ({', '.join(sorted(models))}): give one's.")
    _refuse_twins(answers, str(file))
    return models.pop(), answers


def read_references(file: Path) -> dict[int, tuple[str, ...]]:
    """Reference answers by question, from FastChat's reference_answer file."""
    return {answer.question_id: answer.turns for answer in read_answers(file)[1]}


def write_answers(folder: Path, model: str, dialogues: Sequence[Dialogue], answers: Sequence[Answer]) -> Path:
    """Write the answers in FastChat's format, and the questions beside them, so that they can be judged later.

    Returns:
        The file of answers.
    """
    now = time.time()
    rows = [_row(model, answer, now) for answer in answers]
    questions = [
        {"question_id": d.question_id, "category": d.category, "turns": d.turns}
        | ({"reference": d.reference} if d.reference else {})
        for d in dialogues
    ]
    write_rows(folder / QUESTIONS, questions)
    return write_rows(folder / ANSWERS / f"{file_name(model)}.jsonl", rows)


def write_rows(file: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Write lines of JSON, whole or not at all."""
    return write_text(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def find_material(run: Path, questions: Path | None) -> Material:
    """The answers to judge, from a model_answer file or a run's folder.

    Args:
        run: A model_answer file, or a folder: the one of --output_path (with --log_samples) or of record=.
        questions: FastChat's question.jsonl; None finds the questions with the answers, or on the hub.

    Raises:
        RecordError: If there are no answers, those of several runs, or answers that do not fit the questions.
    """
    if run.is_file():
        return _of_file(run, questions)
    logged = [found for found in _runs(run) if TASK in found.tasks and found.samples_file(TASK).is_file()]
    if len(logged) > 1:
        raise RecordError(f"{run} holds several runs of {TASK}: give one of {', '.join(str(r.path) for r in logged)}.")
    if logged:
        return of_samples(logged[0])
    files = sorted(run.rglob(f"{ANSWERS}/*.jsonl"))
    if len(files) != 1:
        have = (
            f"several: give one of {', '.join(map(str, files))}" if files else "none: run with --log_samples or record="
        )
        raise RecordError(f"answers to MT-Bench in {run}: {have}.")
    return _of_file(files[0], questions)


def of_samples(run: EvalRun) -> Material:
    """The answers in the samples that lm-eval logged for a run.

    Raises:
        RecordError: If they are not those of our task.
    """
    file = run.samples_file(TASK)
    rows = read_jsonl(file)
    with reading(file, f"a samples file of {TASK}"):
        dialogues = tuple(dialogue(row["doc"]) for row in rows)
        answers = tuple(parse_response(d, row["filtered_resps"][0]) for d, row in zip(dialogues, rows, strict=True))
    settings = run.settings or {}
    name = display_name(run.model, settings.get("k"), settings.get("layers"))
    return _checked(Material(name, dialogues, answers, run.path.parent / FOLDER), str(file))


def parse_response(asked: Dialogue, response: str) -> Answer:
    """The answers in what --model aft returns for a dialogue, without think blocks: a judge reads what a user would.

    Raises:
        ValueError, KeyError, TypeError: If it is something else.
    """
    answer = _answer(asked.question_id, json.loads(response)["turns"])
    return Answer(answer.question_id, tuple(THINK.sub("", turn).strip() for turn in answer.turns))


def _of_file(file: Path, questions: Path | None) -> Material:
    """A model_answer file; in FastChat's layout the questions lie above it."""
    home = file.parent.parent if file.parent.name == ANSWERS else file.parent
    model, answers = read_answers(file)
    beside = home / QUESTIONS
    dialogues = read_dialogues(questions or beside) if questions or beside.is_file() else hub_dialogues()
    by_id = {d.question_id: d for d in dialogues}
    unknown = [answer.question_id for answer in answers if answer.question_id not in by_id]
    if unknown:
        raise RecordError(f"{file} answers questions that are not among the {len(by_id)} asked: {unknown[:5]}.")
    return _checked(Material(model, tuple(by_id[a.question_id] for a in answers), answers, home), str(file))


def _runs(folder: Path) -> tuple[EvalRun, ...]:
    try:
        return read_runs(folder)
    except RecordError:
        if not folder.is_dir():
            raise RecordError(f"there is no {folder}: give a run's folder or a model_answer file.") from None
        if any(folder.rglob("results_*.json")):
            raise
        return ()


def _checked(material: Material, source: str) -> Material:
    _refuse_twins(material.answers, source)
    for asked, answer in zip(material.dialogues, material.answers, strict=True):
        if len(asked.turns) != len(answer.turns):
            raise RecordError(
                f"{source} has {len(answer.turns)} answers to the {len(asked.turns)} turns of question "
                f"{asked.question_id}: it is unfinished, or another benchmark's."
            )
    return material


def _refuse_twins(answers: Sequence[Answer], source: str) -> None:
    twins = [number for number, count in Counter(a.question_id for a in answers).items() if count > 1]
    if twins:
        raise RecordError(f"{source} answers a question more than once: {twins[:5]}.")


def _answer(number: Any, turns: Any) -> Answer:
    if not isinstance(turns, list) or not all(isinstance(turn, str) for turn in turns):
        raise ValueError("turns is not a list of texts")
    return Answer(int(number), tuple(turns))


def _row(model: str, answer: Answer, now: float) -> dict[str, Any]:
    name = sha256(json.dumps([model, answer.question_id, answer.turns]).encode()).hexdigest()[:22]
    choices = [{"index": 0, "turns": answer.turns}]
    return {
        "question_id": answer.question_id,
        "answer_id": name,
        "model_id": model,
        "choices": choices,
        "tstamp": now,
    }
