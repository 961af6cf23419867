"""Finding the answers in the texts of a question: by a regex, by the task's own filter, or by a known extraction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from lm_eval_aft.core.errors import ConfigError
from lm_eval_aft.core.records import Draft, Question
from lm_eval_aft.inference.dialogue import answer_of
from lm_eval_aft.inference.extraction import choose_extraction, has_extraction
from lm_eval_aft.inference.task_grading import RunGrader


@dataclass(frozen=True, slots=True)
class AnswerFinder:
    """Finds the answers of the tasks of a run.

    Attributes:
        regex: Finds answers instead of the task's own filter: the first group (or all) of the last match.
        grader: Knows the tasks of the run and their filters.
    """

    regex: str | None = None
    grader: RunGrader = field(default_factory=RunGrader)

    def __post_init__(self) -> None:
        """Refuse a regex that is not valid.

        Raises:
            ConfigError: If it is not.
        """
        if self.regex is not None:
            choose_extraction("", self.regex)

    def for_run(self, grader: RunGrader) -> AnswerFinder:
        """The finder for the tasks that ``grader`` knows."""
        return replace(self, grader=grader)

    @property
    def name(self) -> str:
        """What messages call the way in which answers are found."""
        return "the task's filter" if self.regex is None else f"vote_regex={self.regex}"

    def can_find(self, task: str) -> bool:
        """Whether answers of a task can be found."""
        return self.regex is not None or self.grader.can_extract(task) or has_extraction(task)

    def check(self, task: str, setting: str, otherwise: str) -> None:
        """Refuse a task whose answers cannot be found.

        Args:
            task: Name of the task.
            setting: The setting that needs answers, such as "strategy=majority".
            otherwise: What the user can do instead of giving a regex.

        Raises:
            ConfigError: If they cannot be found.
        """
        if not self.can_find(task):
            raise ConfigError(
                f"{setting} cannot find the answers of {task}: give vote_regex=PATTERN, whose last match is the "
                f"answer, or {otherwise}."
            )

    def answers(self, question: Question, drafts: Sequence[Draft]) -> list[str | None]:
        """The answer in each text; None if it has none. Equal answers have one spelling."""
        texts = [answer_of(question, draft) for draft in drafts]
        if self.regex is None and self.grader.can_extract(question.task):
            return self.grader.answers(question, texts)
        return list(map(choose_extraction(question.task, self.regex).answer, texts))
