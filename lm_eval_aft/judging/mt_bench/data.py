"""The files of MT-Bench: questions, answers and references in FastChat's formats, and a run's own answers."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from lm_eval_aft.core.errors import RecordError
from lm_eval_aft.core.files import file_name, files_below, reading
from lm_eval_aft.core.jsonl import parse_json, read_jsonl, write_jsonl
from lm_eval_aft.core.names import display_name
from lm_eval_aft.core.thinking import without_thoughts
from lm_eval_aft.judging.cache import CACHE_FILE
from lm_eval_aft.storage.location import benchmark_folder
from lm_eval_aft.storage.results import EvalRun, filtered_answer, is_results_file, read_runs, results_files

MT_BENCH_TASK = "aft_mt_bench"
MT_BENCH_FOLDER, QUESTION_FILE = "mt_bench", "question.jsonl"
ANSWER_FOLDER, JUDGMENT_FOLDER = "model_answer", "model_judgment"
# FastChat's sampling temperature of each category
TEMPERATURES = {
    **{"writing": 0.7, "roleplay": 0.7, "reasoning": 0.0, "math": 0.0},
    **{"coding": 0.0, "extraction": 0.0, "stem": 0.1, "humanities": 0.1},
}
CATEGORIES = tuple(TEMPERATURES)
CATEGORIES_WITH_REFERENCE = ("math", "reasoning", "coding")
FIRST_ID, QUESTION_COUNT = 81, 80


@dataclass(frozen=True, slots=True)
class MTBenchQuestion:
    """One question of two turns.

    Attributes:
        question_id: FastChat's number, 81 to 160.
        category: One of ``CATEGORIES``.
        turns: What the user says in each turn.
        reference: The data set's own short reference for each turn; an empty text for a turn without one.
    """

    question_id: int
    category: str
    turns: tuple[str, ...]
    reference: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class MTBenchAnswer:
    """A model's answer to each turn of one question."""

    question_id: int
    turns: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class AnswerSet:
    """All that a judge needs of one model.

    Attributes:
        model: The model's name.
        questions: The questions that were answered.
        answers: The answer to each question, in the same order.
        folder: Where judgements and scores are written.
    """

    model: str
    questions: tuple[MTBenchQuestion, ...]
    answers: tuple[MTBenchAnswer, ...]
    folder: Path


def parse_question(row: Mapping[str, Any], place: int = -1) -> MTBenchQuestion:
    """A question from a row of FastChat's file or of the hub's data set.

    The hub's data set names the turns "prompt" and has no ids.

    Args:
        row: The row.
        place: Its place in the data set, from 0. FastChat's id follows from it.

    Raises:
        RecordError: If the row is of another kind.
    """
    number = row.get("question_id")
    number = FIRST_ID + place if number is None and place >= 0 else number
    turns = row.get("turns") or row.get("prompt")
    category = row.get("category")
    named = isinstance(number, int | str) and str(number).isdecimal() and isinstance(category, str)
    two_turns = isinstance(turns, list) and len(turns) == 2 and all(isinstance(turn, str) for turn in turns)
    references = row.get("reference") or ()
    if not named or not two_turns or category not in CATEGORIES or not isinstance(references, list | tuple):
        raise RecordError(
            f"row {place + 1} of the questions is not one of MT-Bench's: it needs question_id, two turns and a "
            f"category of {', '.join(CATEGORIES)}."
        )
    return MTBenchQuestion(int(str(number)), str(category), tuple(turns or ()), tuple(map(str, references)))


def read_question_file(file: Path) -> tuple[MTBenchQuestion, ...]:
    """The questions of FastChat's question.jsonl.

    Raises:
        RecordError: If the file is of another kind.
    """
    rows = read_jsonl(file)
    try:
        return tuple(parse_question(row, place) for place, row in enumerate(rows))
    except RecordError as error:
        raise RecordError(f"{file}: {error}") from error


def hub_questions() -> tuple[MTBenchQuestion, ...]:
    """The questions of the hub's data set.

    Raises:
        RecordError: If they are not in the hub's cache and cannot be downloaded.
    """
    from datasets import load_dataset

    try:
        rows = load_dataset("HuggingFaceH4/mt_bench_prompts", split="train")
    # datasets has no error class of its own for a missing network and an empty cache
    except (OSError, ValueError) as error:
        raise RecordError(
            "the questions of MT-Bench cannot be downloaded: give FastChat's question.jsonl with --questions FILE."
        ) from error
    return tuple(parse_question(row, place) for place, row in enumerate(rows))


def read_answers(file: Path) -> tuple[str, tuple[MTBenchAnswer, ...]]:
    """The model's name and its answers from a model_answer file of FastChat.

    Raises:
        RecordError: If the file is of another kind, or holds several models or two answers to a question.
    """
    rows = read_jsonl(file)
    with reading(file, "a model_answer file of FastChat"):
        answers = tuple(_answer(row["question_id"], row["choices"][0]["turns"]) for row in rows)
        models = {str(row["model_id"]) for row in rows}
    if len(models) != 1:
        raise RecordError(
            f"{file} holds answers of {len(models)} models ({', '.join(sorted(models))}): give a file of one model."
        )
    _refuse_repeated(answers, str(file))
    return models.pop(), answers


def read_references(file: Path) -> dict[int, tuple[str, ...]]:
    """Reference answers by question, from FastChat's reference_answer file."""
    return {answer.question_id: answer.turns for answer in read_answers(file)[1]}


def write_answers(
    folder: Path, model: str, questions: Sequence[MTBenchQuestion], answers: Sequence[MTBenchAnswer]
) -> Path:
    """Write the answers in FastChat's format, and the questions beside them, so that they can be judged later.

    Returns:
        The file of answers.
    """
    now = time.time()
    rows = [
        {"question_id": question.question_id, "category": question.category, "turns": question.turns}
        | ({"reference": question.reference} if question.reference else {})
        for question in questions
    ]
    file = folder / ANSWER_FOLDER / f"{file_name(model)}.jsonl"
    write_jsonl(folder / QUESTION_FILE, rows, errors="replace")
    write_jsonl(file, [_answer_row(model, answer, now) for answer in answers], errors="replace")
    return file


def find_answers(run: Path, questions: Path | None) -> AnswerSet:
    """The answers to judge, from a model_answer file or a run's folder.

    Args:
        run: A model_answer file, or a folder that --output_path (with --log_samples) or record= named.
        questions: FastChat's question.jsonl; None reads the file beside the answers, or else the hub's data set.

    Raises:
        RecordError: If there are no answers, answers of several runs, or answers that do not match the questions.
    """
    if run.is_file() and not is_results_file(run):
        return _of_file(run, questions)
    logged = [r for r in _runs(run) if MT_BENCH_TASK in r.tasks and r.samples_file(MT_BENCH_TASK).is_file()]
    if len(logged) > 1:
        paths = ", ".join(str(found.path) for found in logged)
        raise RecordError(f"{run} holds several runs of {MT_BENCH_TASK}: give one of {paths}.")
    if logged:
        return _of_samples(logged[0])
    files = [file for file in files_below(run, "*.jsonl") if file.parent.name == ANSWER_FOLDER]
    if len(files) != 1:
        problem = "no answers to MT-Bench: run lm_eval with --log_samples or record="
        if files:
            problem = f"{len(files)} files of answers to MT-Bench: give one of {', '.join(map(str, files))}"
        raise RecordError(f"{run} holds {problem}.")
    return _of_file(files[0], questions)


def parse_response(question: MTBenchQuestion, response: str) -> MTBenchAnswer:
    """The answer in the JSON text that --model aft returns for a dialogue.

    Raises:
        ValueError, KeyError, TypeError: If the response is of another kind.
    """
    answer = _answer(question.question_id, parse_json(response)["turns"])
    return MTBenchAnswer(answer.question_id, tuple(turn.strip() for turn in answer.turns))


def answers_of(run: EvalRun, task: str, folder: Path) -> AnswerSet | None:
    """The answers of a run, from its samples if they were logged, else from the folder that it kept them in.

    Args:
        run: The run.
        task: Name of the task in the run.
        folder: The folder of MT-Bench's files.

    Returns:
        None if there are no answers of this model.
    """
    if run.samples_file(task).is_file():
        return _of_samples(run, task)
    file = folder / ANSWER_FOLDER / f"{file_name(_model_name(run))}.jsonl"
    return _of_file(file, None) if file.is_file() and (folder / QUESTION_FILE).is_file() else None


def _model_name(run: EvalRun) -> str:
    return display_name(run.model, run.k, run.layers)


def _of_samples(run: EvalRun, task: str = MT_BENCH_TASK) -> AnswerSet:
    """The answers in the samples that lm-eval logged for a run."""
    file = run.samples_file(task)
    rows = read_jsonl(file)
    with reading(file, f"a samples file of {MT_BENCH_TASK}"):
        questions = tuple(parse_question(row["doc"]) for row in rows)
        responses = [filtered_answer(row) for row in rows]
        answers = tuple(parse_response(*pair) for pair in zip(questions, responses, strict=True))
    folder = benchmark_folder(run, MT_BENCH_FOLDER, CACHE_FILE)
    return _checked(AnswerSet(_model_name(run), questions, answers, folder), str(file))


def _of_file(file: Path, questions: Path | None) -> AnswerSet:
    """The answers of a model_answer file. In FastChat's layout the questions are in the folder above."""
    home = file.parent.parent if file.parent.name == ANSWER_FOLDER else file.parent
    model, answers = read_answers(file)
    beside = home / QUESTION_FILE
    known = read_question_file(questions or beside) if questions or beside.is_file() else hub_questions()
    by_id = {question.question_id: question for question in known}
    unknown = [answer.question_id for answer in answers if answer.question_id not in by_id]
    if unknown:
        raise RecordError(f"{file} answers questions that are not among the {len(by_id)} known ones: {unknown[:5]}.")
    return _checked(AnswerSet(model, tuple(by_id[a.question_id] for a in answers), answers, home), str(file))


def _runs(folder: Path) -> tuple[EvalRun, ...]:
    """The runs of lm-eval below a folder; empty if it holds none."""
    try:
        return read_runs(folder)
    except RecordError:
        if results_files(folder):
            raise
        if not folder.is_dir():
            raise RecordError(f"there is no {folder}: give a run's folder or a model_answer file.") from None
        return ()


def _checked(answer_set: AnswerSet, source: str) -> AnswerSet:
    _refuse_repeated(answer_set.answers, source)
    for question, answer in zip(answer_set.questions, answer_set.answers, strict=True):
        if len(question.turns) != len(answer.turns):
            raise RecordError(
                f"{source} has {len(answer.turns)} answers to the {len(question.turns)} turns of question "
                f"{question.question_id}: it is unfinished, or another benchmark's."
            )
    return answer_set


def _refuse_repeated(answers: Sequence[MTBenchAnswer], source: str) -> None:
    repeated = [number for number, count in Counter(a.question_id for a in answers).items() if count > 1]
    if repeated:
        raise RecordError(f"{source} answers a question more than once: {repeated[:5]}.")


def _answer(number: Any, turns: Any) -> MTBenchAnswer:
    """An answer without its thoughts, since a judge reads what a user would read."""
    if not isinstance(turns, list) or not all(isinstance(turn, str) for turn in turns):
        raise ValueError("turns is not a list of texts")
    return MTBenchAnswer(int(number), tuple(map(without_thoughts, turns)))


def _answer_row(model: str, answer: MTBenchAnswer, now: float) -> dict[str, Any]:
    """A line of FastChat's model_answer file."""
    answer_id = sha256(json.dumps([model, answer.question_id, answer.turns]).encode()).hexdigest()[:22]
    return {
        "question_id": answer.question_id,
        "answer_id": answer_id,
        "model_id": model,
        "choices": [{"index": 0, "turns": answer.turns}],
        "tstamp": now,
    }
