"""Marking: how the texts of a task are found right or wrong, for every reader of traces.

There are three ways, the first one that applies:

- a regex of the user finds the answers, and lm-eval's samples hold the gold answers
- the task graded the texts while lm-eval ran, or ``aft grade`` did (``Trace.grades``)
- a known extraction finds the answers of a few tasks in traces without grades, and the samples hold the gold answers
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass

from lm_eval_aft.analysis.conditions import measure_name, primary_score
from lm_eval_aft.analysis.runs import RunEntry
from lm_eval_aft.core.records import Grade, Trace
from lm_eval_aft.inference.extraction import (
    Extraction,
    choose_extraction,
    has_extraction,
    vote_spelling,
    voting_grade,
)

# Metric and filter
Measure = tuple[str, str]
UNGRADED = "its texts are not graded; run aft grade, or give --regex"


@dataclass(frozen=True, slots=True)
class TaskRule:
    """Reads the task's own grades.

    Attributes:
        metric: The metric that says whether a text is right, or how good it is, in [0, 1].
        filter: The filter under which it is read.
        answers: The filter whose answers vote; "" if no filter of the task extracts answers.
        binary: Whether the metric is 0 or 1 for every text.
    """

    metric: str
    filter: str
    answers: str
    binary: bool

    def value(self, grades: Sequence[Grade]) -> float | None:
        """The score of a text; None if the text has no grade."""
        return _value(grades, (self.metric, self.filter))

    def right(self, grades: Sequence[Grade]) -> bool | None:
        """Whether a text is right; None if it has no grade, or the metric has values between 0 and 1."""
        value = self.value(grades)
        return None if value is None or not self.binary else value == 1

    def answer(self, grades: Sequence[Grade]) -> str | None:
        """The answer in a text, in its ``vote_spelling``; None if there is none."""
        return next((vote_spelling(grade.answer) for grade in grades if grade.filter == self.answers), None)


@dataclass(frozen=True, slots=True)
class Marking:
    """How the texts of one task are marked. Without an extraction and a rule nothing is right or wrong.

    Attributes:
        extraction: Finds answers, which are compared with gold answers.
        rule: Reads the task's grades.
    """

    extraction: Extraction | None = None
    rule: TaskRule | None = None

    @property
    def votes(self) -> bool:
        """Whether there are answers to vote on."""
        return self.extraction is not None or bool(self.rule and self.rule.answers)

    @property
    def name(self) -> str:
        """How answers are found; "" if there are none."""
        if self.extraction:
            return self.extraction.name
        if not self.rule or not self.rule.answers:
            return ""
        return "the task's filter" + (f" {self.rule.answers}" if self.rule.answers != "none" else "")

    @property
    def measure(self) -> str:
        """The task's metric that says what is right; "" if gold answers say it."""
        return measure_name(self.rule.metric, self.rule.filter) if self.rule else ""


def choose_marking(
    task: str, graded: Sequence[Sequence[Grade]], entries: Iterable[RunEntry], regex: str | None = None
) -> Marking:
    """How the texts of a task are marked.

    Args:
        task: Name of the task.
        graded: The grades of each graded text; empty if none was graded.
        entries: Runs, whose results say which metric of the task comes first.
        regex: Finds answers instead of the task.

    Raises:
        ConfigError: The regex is not valid.
    """
    if regex is not None:
        return Marking(choose_extraction(task, regex))
    if graded:
        return Marking(rule=_choose_rule(task, graded, entries))
    return Marking(choose_extraction(task) if has_extraction(task) else None)


def extraction_of(trace: Trace, regex: str | None = None) -> Extraction | None:
    """The extraction that finds the answers in a trace's texts. None if grades hold them, or they cannot be found.

    Raises:
        ConfigError: The regex is not valid.
    """
    task = trace.question.task
    if regex is None and (trace.grades or not has_extraction(task)):
        return None
    return choose_extraction(task, regex)


def rule_for(measure: Measure, graded: Sequence[Sequence[Grade]]) -> TaskRule | None:
    """The rule of one metric and filter; None if a text lacks it, or a value is outside of 0 to 1."""
    values = [_value(grades, measure) for grades in graded]
    if not values or not all(value is not None and 0 <= value <= 1 for value in values):
        return None
    own = next((grade for grade in graded[0] if grade.filter == measure[1]), None)
    voting = own if own and own.extracts else voting_grade(graded[0])
    return TaskRule(*measure, voting.filter if voting else "", {0.0, 1.0}.issuperset(values))


def _choose_rule(task: str, graded: Sequence[Sequence[Grade]], entries: Iterable[RunEntry]) -> TaskRule | None:
    """The rule of the first metric that is 0 or 1 for every text, else of the first one between 0 and 1."""
    rules = [rule for measure in _measures(task, graded[0], entries) if (rule := rule_for(measure, graded))]
    return next((rule for rule in rules if rule.binary), rules[0] if rules else None)


def _measures(task: str, grades: Sequence[Grade], entries: Iterable[RunEntry]) -> list[Measure]:
    """The metrics of which more is better: first that of the task's main score, then in the results' order."""
    flexible_first = sorted(grades, key=lambda grade: not grade.filter.startswith("flexible"))
    measures = [(metric, grade.filter) for grade in flexible_first for metric in grade.metrics]
    run = next((entry.run for entry in entries if entry.run.scores_of(task)), None)
    if run is None:
        return measures
    scores = run.scores_of(task)
    unfit = {(score.metric, score.filter) for score in scores if not (score.ranked and score.higher_is_better)}
    first = [(score.metric, score.filter) for score in (primary_score(run, task), *scores)]
    return [measure for measure in dict.fromkeys([*first, *measures]) if measure not in unfit]


def _value(grades: Sequence[Grade], measure: Measure) -> float | None:
    return next((grade.metrics.get(measure[0]) for grade in grades if grade.filter == measure[1]), None)


def gold_answers(
    entries: Sequence[RunEntry], documents: Set[tuple[str, str]], regex: str | None = None
) -> dict[tuple[str, str], str]:
    """Gold answers by task and document hash, from as few samples files as hold them all.

    Args:
        entries: Runs whose logged samples may hold the gold answers.
        documents: Task and hash of the documents whose gold answers are needed.
        regex: Finds answers instead of the tasks' own extraction.
    """
    gold: dict[tuple[str, str], str] = {}
    for entry in entries:
        for task in entry.run.tasks:
            lacking = any(name == task and (name, doc) not in gold for name, doc in documents)
            if not lacking or not entry.logged(task):
                continue
            for sample in entry.scored(task):
                answer = choose_extraction(task, regex).gold(sample.target)
                if answer is not None:
                    gold[task, sample.key.doc_hash] = answer
    return gold
