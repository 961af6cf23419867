"""Grading: what a task of lm-eval makes of a text, by the task's own filters and ``process_results``.

A request of lm-eval names its task but does not hold it. ``RunGrader`` finds the task among the variables of the call
of lm-eval that is running (``host_call.host_tasks``). ``TaskLoader`` builds a task by name, for stored runs.

Nothing is generated here. Grading may neither use the network nor run longer than ``GRADE_SECONDS`` a document, and it
leaves the random generators of the process as they were. If it fails, a warning says why and the run continues.
"""

from __future__ import annotations

import copy
import random
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from math import isfinite
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.filters.extraction import RegexFilter

from lm_eval_aft.core.errors import RecordError
from lm_eval_aft.core.limits import no_network, time_limit
from lm_eval_aft.core.loading import reason_of
from lm_eval_aft.core.log import log, warn_once
from lm_eval_aft.core.names import plain_task
from lm_eval_aft.core.records import Grade, Question, Trace
from lm_eval_aft.inference.dialogue import TURNS, Dialogue, answer_of, final_answer
from lm_eval_aft.inference.extraction import vote_spelling, voting_grade
from lm_eval_aft.inference.host_call import host_allows_unsafe_code, host_tasks
from lm_eval_aft.inference.requests import document_hash
from lm_eval_aft.inference.task_equality import equality_of

GRADE_SECONDS = 60.0  # a document
# A task that fails on this many documents is not asked again: each may take GRADE_SECONDS.
MAX_FAILURES = 5
# What the code of a task may raise. A script may end with sys.exit.
TASK_FAILURES = (Exception, SystemExit)
# lm-eval's metric of tasks that score nothing.
BYPASS = "bypass"
# Filters that keep the whole text, or one of several texts.
KEEPING_FILTERS = (
    "LowercaseFilter",
    "MajorityVoteFilter",
    "NoopFilter",
    "TakeFirstFilter",
    "TakeKFilter",
    "UppercaseFilter",
    "WhitespaceFilter",
)
# Task, row and hash of a document.
DocumentKey = tuple[str, int, str]
Grades = tuple[tuple[Grade, ...], ...]


class TaskGrader:
    """Grades texts by one task.

    Attributes:
        task: lm-eval's task.
        name: Its name.
    """

    def __init__(self, task: Any, name: str) -> None:
        """Take a task of lm-eval and its name."""
        self.task, self.name = task, name
        # A filter may want as many responses as the task has repeats. All of them are then the same text.
        self._repeats = max(1, int(task.get_config("repeats") or 1))
        self._extracting = {ensemble.name: _extracts(ensemble) for ensemble in _ensembles(task)}
        self._equality = equality_of(task)

    @property
    def extracts(self) -> bool:
        """Whether one of the task's filters extracts answers, or its own code does."""
        return self._equality is not None or any(self._extracting.values())

    def refusal(self, unsafe_code: bool) -> str:
        """Why texts of this task cannot be graded; "" if they can.

        Args:
            unsafe_code: Whether the user allows tasks that run what a model wrote.
        """
        if self.task.OUTPUT_TYPE != "generate_until":
            return f"its requests are {self.task.OUTPUT_TYPE}, not generate_until"
        if _runs_code(self.task) and not unsafe_code:
            return "it runs what the model wrote, which needs --confirm_run_unsafe_code"
        return ""

    def answers(self, document: Any, texts: Sequence[str]) -> list[str | None]:
        """The answer that the task extracts from each text, in its ``vote_spelling``; None if there is none.

        Raises:
            Exception: Whatever the filter raises.
        """
        with _bounded(document):
            found = self._spelled([self._filter(document, text)[1] for text in texts])
        return [vote_spelling(grade.answer) if (grade := voting_grade(grades)) else None for grades in found]

    def grade(self, document: Any, texts: Sequence[str]) -> Grades:
        """Grade texts that answer a document. Equal texts are graded once. Empty ones are wrong.

        Raises:
            Exception: Whatever the task raises, and ``OutOfTime`` after ``GRADE_SECONDS``.
        """
        written = list(dict.fromkeys(text for text in texts if text.strip()))
        with _bounded(document):
            grades = self._spelled([self._grade(document, text) for text in written or [""]])
        graded = dict(zip(written or [""], grades, strict=True))
        wrong = tuple(self._as_wrong(grade) for grade in next(iter(graded.values())))
        return tuple(graded[text] if text.strip() else wrong for text in texts)

    def _grade(self, document: Any, text: str) -> tuple[Grade, ...]:
        filtered, grades = self._filter(document, text)
        # A task that sets an alarm of its own switches off that of ``_bounded``. Leaving this block sets it again.
        with time_limit(GRADE_SECONDS):
            return self._with_metrics(document, filtered, grades)

    def _with_metrics(self, document: Any, filtered: Mapping[str, Any], grades: Sequence[Grade]) -> tuple[Grade, ...]:
        results = [self._metrics(document, grade.filter, filtered[grade.filter]) for grade in grades]
        return tuple(replace(grade, metrics=_numbers(metrics)) for grade, metrics in zip(grades, results, strict=True))

    def _spelled(self, graded: Sequence[tuple[Grade, ...]]) -> list[tuple[Grade, ...]]:
        """The grades of a question's texts. Answers that the task takes as equal get one spelling."""
        if self._equality is None:
            return list(graded)
        columns = [
            [replace(grade, answer=answer) for grade, answer in zip(column, spellings, strict=True)]
            for column in zip(*graded, strict=True)
            if (spellings := self._equality.spellings([grade.answer for grade in column]))
        ]
        return list(zip(*columns, strict=True))

    def _metrics(self, document: Any, name: str, filtered: Any) -> Mapping[str, Any]:
        """The task's metrics of one filtered text."""
        results = self.task.process_results(document, [filtered])
        if results is not None:
            return dict(results)
        # lm-eval 0.5: a task without a function of its own leaves this to the scorer of each filter.
        scorer = next(scorer for scorer in self.task.scorers if scorer.name == name)
        scores = scorer.score(self.task.doc_to_target(document), [filtered])
        return {metric: value[0] if isinstance(value, list) and value else value for metric, value in scores.items()}

    def _as_wrong(self, grade: Grade) -> Grade:
        """The grade of a text without an answer. For metrics of which less is better there is none."""
        better = self.task.higher_is_better() or {}
        return replace(
            grade, answer=None, metrics={name: 0.0 for name in grade.metrics if better.get(name) is not False}
        )

    def _filter(self, document: Any, text: str) -> tuple[dict[str, Any], tuple[Grade, ...]]:
        """What each filter makes of a text, and grades without metrics that hold the extracted answers."""
        filtered = self._filtered(document, text)
        grades = []
        for name, value in filtered.items():
            if self._equality is not None:
                grades.append(Grade(name, {}, self._equality.answer(document, value), True))
                continue
            answer = self._answer_string(name, value)
            if answer is not None and answer not in text and answer == self._default(name, document):
                # A filter that finds nothing gives a text of its own, such as [invalid].
                answer = None
            grades.append(Grade(name, {}, answer, self._gives_answers(name, value)))
        return filtered, tuple(grades)

    def _filtered(self, document: Any, text: str) -> dict[str, Any]:
        instance = Instance(
            request_type="generate_until",
            doc=document,
            arguments=("", {}),
            idx=0,
            metadata=(self.name, 0, self._repeats),
            # lm-eval 0.5 wants two parts of the metadata by name.
            task_name=self.name,
            doc_id=0,
            resps=[text] * self._repeats,
        )
        for ensemble in _ensembles(self.task):
            ensemble.apply([instance])
        if _is_0_4(self.task):
            return dict(instance.filtered_resps)
        # lm-eval 0.5 keeps a list of as many results as there were responses.
        return {name: values[0] if values else values for name, values in instance.filtered_resps.items()}

    def _default(self, name: str, document: Any) -> str | None:
        """What a filter gives for a text without an answer."""
        try:
            return self._answer_string(name, self._filtered(document, "")[name])
        except TASK_FAILURES:
            return None

    def _gives_answers(self, name: str, value: Any) -> bool:
        """Whether a filter that gave this value extracts answers. Custom code may make lists of programs, say."""
        kind = self._extracting[name]
        return kind == "regex" or (kind == "custom" and isinstance(value, str))

    def _answer_string(self, name: str, value: Any) -> str | None:
        """The string that an extracting filter gives; None for other values and filters."""
        if self._extracting[name] == "regex" and isinstance(value, list | tuple) and value:
            value = value[0]
        answer = value.strip() if self._extracting[name] and isinstance(value, str) else ""
        return answer or None


def _is_0_4(task: Any) -> bool:
    """Whether lm-eval 0.4 made a task. Version 0.5 moved the filters from the task to its scorers."""
    return hasattr(task, "_filters")


def _ensembles(task: Any) -> Sequence[Any]:
    """The filter ensembles of a task."""
    return task._filters if _is_0_4(task) else [scorer.filter for scorer in task.scorers]


def _extracts(ensemble: Any) -> str:
    """How an ensemble extracts answers: by "regex", by "custom" code, or "" if its filters keep the text."""
    kinds = [getattr(make, "func", make) for make in ensemble.filters]
    if any(isinstance(kind, type) and issubclass(kind, RegexFilter) for kind in kinds):
        return "regex"
    return "custom" if any(kind.__name__ not in KEEPING_FILTERS for kind in kinds) else ""


def _runs_code(task: Any) -> bool:
    return bool(getattr(task, "UNSAFE_CODE", False) or task.get_config("unsafe_code"))


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The metrics that are a plain number. A task may give lists, pairs, or numbers that carry more than a number."""
    import numpy as np

    numbers = {}
    for name, value in metrics.items():
        plain = type(value) in (bool, int, float) or isinstance(value, np.number | np.bool_)
        if name != BYPASS and plain and isfinite(value):
            numbers[name] = float(value)
    return numbers


@contextmanager
def _bounded(document: Any) -> Iterator[None]:
    """Run a task's code without network and within its time, with generators that are seeded by the document."""
    with kept_generators(), no_network(), time_limit(GRADE_SECONDS):
        _seed_generators(repr(document))
        yield


@contextmanager
def kept_generators() -> Iterator[None]:
    """Restore the random generators of Python, numpy and torch afterwards. Some tasks draw random numbers."""
    numpy, torch = sys.modules.get("numpy"), sys.modules.get("torch")
    states = random.getstate(), numpy and numpy.random.get_state(), torch and torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        if numpy:
            numpy.random.set_state(states[1])
        if torch:
            torch.set_rng_state(states[2])


def _seed_generators(text: str) -> None:
    seed = random.Random(text).getrandbits(32)
    random.seed(seed)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(seed)
    if torch := sys.modules.get("torch"):
        torch.default_generator.manual_seed(seed)


@dataclass
class GradingLog:
    """What happened while the texts of one task were graded.

    Attributes:
        texts: Texts that have grades.
        without_answer: Those of them that hold no answer, which are wrong.
        failures: Why documents have no grades, with how many.
        skipped: Documents of which the task was not asked, after too many failures.
        unscored: Documents of which the task has no metric that is a number.
    """

    texts: int = 0
    without_answer: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    skipped: int = 0
    unscored: int = 0

    @property
    def failed(self) -> int:
        """Documents without grades."""
        return self.failures.total() + self.skipped

    def sentence(self, task: str) -> str:
        """Why documents have no grades."""
        reason, _ = self.failures.most_common(1)[0]
        documents = f"{self.failed:,} document{'s' * (self.failed != 1)}"
        return f"The texts of {documents} of {task} are not graded, since grading failed: {reason}."


def grade_trace(trace: Trace, grader: TaskGrader, document: Any, done: GradingLog) -> Trace:
    """The trace with grades, or as it was if the task fails. ``done`` counts it."""
    if done.failures.total() >= MAX_FAILURES:
        done.skipped += 1
        return trace
    answered = [answer_of(trace.question, draft) for draft in trace.drafts[:-1]]
    texts = [*answered, final_answer(trace)]
    try:
        grades = grader.grade(copy.deepcopy(document), texts)
    # A task's code may raise anything, and a run of hours must not end for it.
    except TASK_FAILURES as error:
        reason = reason_of(error)
        kind = type(error).__name__
        done.failures[reason if reason.startswith(kind) else f"{kind}: {reason}"] += 1
        return trace
    if not any(grade.metrics for text in grades for grade in text):
        done.unscored += 1
        return trace
    done.texts += len(texts)
    done.without_answer += sum(not text.strip() for text in texts)
    return replace(trace, grades=grades)


def ungradable(trace: Trace) -> str:
    """Why the texts of a trace cannot be graded one by one; "" if they can."""
    if trace.question.turn:
        return "its requests have several turns"
    if trace.question.chat.prefill and len(trace.drafts) > 1:
        return "its answer continues a beginning that drafts do not have"
    if trace.drafts[-1].layer < int(trace.settings.get("layers", 0)):
        return "its last layer scored choices"
    return ""


@dataclass(frozen=True)
class RunGrader:
    """Grades the texts of the requests that lm-eval has a model answer.

    Attributes:
        tasks: The tasks whose texts can be graded.
        documents: The document of each question.
        reasons: For every other task, why its texts cannot be graded.
    """

    tasks: Mapping[str, TaskGrader] = field(default_factory=dict)
    documents: Mapping[DocumentKey, Any] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, requests: Sequence[Instance], dialogues: Sequence[Dialogue]) -> RunGrader:
        """Find the tasks and documents of requests.

        Args:
            requests: lm-eval's requests.
            dialogues: The dialogue of each.
        """
        documents: dict[DocumentKey, Any] = {}
        owners: dict[DocumentKey, int] = {}
        reasons: dict[str, str] = {}
        for request, dialogue in zip(requests, dialogues, strict=True):
            key = document_key(dialogue.opening)
            documents[key] = request.doc
            if owners.setdefault(key, id(request)) != id(request):
                reasons[key[0]] = "it makes several requests of one document"
            if TURNS in request.args[1]:
                reasons[key[0]] = "its requests have several turns"
        tasks: dict[str, TaskGrader] = {}
        for name in dict.fromkeys(task for task, *_ in documents if task not in reasons):
            grader, reason = _host_grader(name)
            if grader is None:
                reasons[name] = reason
            else:
                tasks[name] = grader
        return cls(tasks, documents, reasons)

    def can_extract(self, task: str) -> bool:
        """Whether the task's own filters extract answers."""
        return task in self.tasks and self.tasks[task].extracts

    def answers(self, question: Question, texts: Sequence[str]) -> list[str | None]:
        """The answer in each text of a question, by the task's filter; None if there is none, or the filter fails."""
        try:
            return self.tasks[question.task].answers(self.documents[document_key(question)], texts)
        except TASK_FAILURES as error:
            warn_once(f"The filter of {question.task} fails, so texts have no vote: {reason_of(error)}.")
            return [None] * len(texts)

    def grade(self, traces: Sequence[Trace]) -> list[Trace]:
        """The traces with grades. A warning a task says why some of them have none."""
        logs: dict[str, GradingLog] = {}
        reasons = dict(self.reasons)
        graded = []
        for trace in traces:
            task = trace.question.task
            if reason := ungradable(trace):
                reasons[task] = reason
            if task in reasons or task not in self.tasks:
                graded.append(trace)
                continue
            document = self.documents[document_key(trace.question)]
            graded.append(grade_trace(trace, self.tasks[task], document, logs.setdefault(task, GradingLog())))
        for task, reason in reasons.items():
            log.info("The drafts of %s are not graded: %s.", task, reason)
        for task, done in logs.items():
            report(task, done)
        return graded


def report(task: str, done: GradingLog) -> None:
    """Log how many texts of a task were graded, and warn of failures."""
    if done.unscored:
        log.info("%s of the documents of %s have no metric that is a number, so no grades.", done.unscored, task)
    log.info("%s: %s texts are graded; %s without an answer are wrong.", task, done.texts, done.without_answer)
    if done.failed:
        warn_once(done.sentence(task))


class TaskLoader:
    """Builds tasks of lm-eval by their names."""

    def __init__(self, folders: Sequence[str]) -> None:
        """Keep the folders of tasks, besides those of lm-eval."""
        self._folders = list(folders)
        self._managers: dict[tuple[bool, str], Any] = {}
        self._loaded: dict[tuple[bool, str, str], Mapping[str, Any]] = {}

    def load(self, name: str, groups: Sequence[str], metadata: Mapping[str, Any]) -> TaskGrader:
        """Build a task as a run had it.

        Args:
            name: Name of the task.
            groups: The groups that it was in, the outer ones first. A group may change the settings of its tasks.
            metadata: What lm-eval hands to its tasks: the model arguments of the run.

        Raises:
            RecordError: If lm-eval cannot build the task.
        """
        reason = "lm-eval has no task of this name"
        # lm-eval needs seconds to list its own tasks.
        for defaults in (False, True):
            for source in (*groups, name):
                try:
                    task = self._tasks(defaults, source, metadata).get(name)
                    if task is not None:
                        return TaskGrader(task, name)
                # The data of a task may be missing, damaged or elsewhere, and its code may raise anything.
                except TASK_FAILURES as error:
                    reason = reason_of(error)
        raise RecordError(
            f"the task {name} cannot be loaded ({reason}): give its folder with --include_path, or download its data "
            "with lm_eval first."
        )

    def _tasks(self, defaults: bool, source: str, metadata: Mapping[str, Any]) -> Mapping[str, Any]:
        """The tasks of a task or a group; empty if lm-eval does not know it."""
        from lm_eval.tasks import TaskManager

        given = repr(metadata)
        if (defaults, given) not in self._managers:
            self._managers[defaults, given] = TaskManager(
                include_path=list(self._folders), include_defaults=defaults, metadata=dict(metadata)
            )
        manager = self._managers[defaults, given]
        if source not in manager.all_tasks:
            return {}
        if (defaults, given, source) not in self._loaded:
            self._loaded[defaults, given, source] = _by_plain_name(manager.load([source])["tasks"])
        return self._loaded[defaults, given, source]


class StoredDocuments:
    """The documents of a task, found by lm-eval's hash."""

    def __init__(self, grader: TaskGrader) -> None:
        """Read and hash the documents.

        Args:
            grader: Holds the task.

        Raises:
            RecordError: If the task's data cannot be read.
        """
        try:
            self._documents = {document_hash(document): document for document in grader.task.eval_docs}
        except TASK_FAILURES as error:
            raise RecordError(f"the documents of {grader.name} cannot be read ({reason_of(error)}).") from error

    def find(self, question: Question) -> Any:
        """The document of a question.

        Raises:
            RecordError: If the task does not have it.
        """
        if question.doc_hash not in self._documents:
            raise RecordError(
                f"document {question.doc_id} of {question.task} is not in the task's data, so the data or "
                "the task has changed since the run: give the earlier version of the task with "
                "--include_path."
            )
        return self._documents[question.doc_hash]


def document_key(question: Question) -> DocumentKey:
    """Task, row and hash of a question's document."""
    return question.task, question.doc_id, question.doc_hash


def _by_plain_name(tasks: Mapping[str, Any]) -> dict[str, Any]:
    return {plain_task(name): task for name, task in tasks.items()}


def _host_grader(name: str) -> tuple[TaskGrader | None, str]:
    """The grader of a task that lm-eval is evaluating, or None and the reason why there is none."""
    task = _by_plain_name(host_tasks()).get(name)
    if task is None:
        return None, "lm-eval's task object was not found; aft grade OUT grades them"
    try:
        grader = TaskGrader(task, name)
        reason = grader.refusal(host_allows_unsafe_code())
    # A task in Python may be of any make.
    except TASK_FAILURES as error:
        grader, reason = None, reason_of(error)
    return (None, reason) if reason else (grader, "")
