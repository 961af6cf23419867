"""Selection: the last layer chooses one of the texts of the layer before instead of writing a new one.

    strategy=majority     the most frequent answer, found by the task's own filter or by ``vote_regex``
    strategy=best_of_n    the best text by ``reward_model``, a sequence-classification checkpoint with one output

The texts, their seeds and their place in the draft store are those of ``strategy=aggregate``. So a selection generates
nothing if an earlier run has generated the drafts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from lm_eval_aft.core.config import AFTConfig
from lm_eval_aft.core.engine import HostArgs
from lm_eval_aft.core.errors import ConfigError
from lm_eval_aft.core.log import warn_once
from lm_eval_aft.core.records import Message, Question
from lm_eval_aft.core.usage import Usage
from lm_eval_aft.inference.dialogue import answer_in
from lm_eval_aft.inference.extraction import choose_extraction, has_extraction
from lm_eval_aft.inference.reward_model import RewardModel
from lm_eval_aft.inference.task_grading import RunGrader
from lm_eval_aft.storage.draft_store import Store


@dataclass(frozen=True, slots=True)
class Choice:
    """Which of several texts is the answer.

    Attributes:
        index: Index of the text; the first one if several are equally good.
        scores: The votes or the reward of each text.
        usage: Cost of choosing. Nothing is generated.
    """

    index: int
    scores: tuple[float, ...]
    usage: Usage = field(default_factory=Usage)


class Selector(Protocol):
    """Chooses one text per question."""

    def select(self, candidates: Sequence[tuple[Question, Sequence[str]]]) -> list[Choice]:
        """Choose among the texts of each question. Choices come in the order of the questions."""

    def for_run(self, grader: RunGrader) -> Selector:
        """The selector for the requests of a run, whose tasks ``grader`` knows.

        Raises:
            ConfigError: If it cannot choose among the texts of one of the tasks.
        """


@dataclass(frozen=True, slots=True)
class Majority:
    """Chooses the first text with the most frequent answer.

    If several answers are equally frequent, the one that was written first wins. All drafts are sampled alike, so that
    is a random choice. Texts without an answer have no vote. If no text has an answer, the first text is chosen.
    """

    regex: str | None = None
    grader: RunGrader = field(default_factory=RunGrader)

    def for_run(self, grader: RunGrader) -> Majority:
        """See ``Selector.for_run``."""
        selector = replace(self, grader=grader)
        for task in dict.fromkeys(task for task, *_ in grader.documents):
            selector._check(task)
        return selector

    def select(self, candidates: Sequence[tuple[Question, Sequence[str]]]) -> list[Choice]:
        """See ``Selector.select``.

        Raises:
            ConfigError: If a task's answers cannot be found without a regex.
        """
        choices = [self._count(question, texts) for question, texts in candidates]
        silent = sum(not any(choice.scores) for choice in choices)
        if silent:
            finder = "the task's filter" if self.regex is None else f"vote_regex={self.regex}"
            warn_once(
                f"strategy=majority: {finder} finds no answer in any text of {silent} of {len(choices)} questions, "
                "and takes the first text there."
            )
        return choices

    def _check(self, task: str) -> None:
        if self.regex is None and not self.grader.can_extract(task) and not has_extraction(task):
            raise ConfigError(
                f"strategy=majority cannot find the answers of {task}: give vote_regex=PATTERN, whose last "
                "match is the answer, or use strategy=best_of_n."
            )

    def _count(self, question: Question, texts: Sequence[str]) -> Choice:
        answers = self._answers(question, [answer_in(question, text) for text in texts])
        counts = Counter(answers)
        votes = tuple(float(counts[answer]) if answer is not None else 0.0 for answer in answers)
        return Choice(votes.index(max(votes)), votes)

    def _answers(self, question: Question, texts: Sequence[str]) -> list[str | None]:
        """The answer in each text: by the regex, by the task's filter, or by the extraction of a known task."""
        self._check(question.task)
        if self.regex is None and self.grader.can_extract(question.task):
            return self.grader.answers(question, texts)
        return list(map(choose_extraction(question.task, self.regex).answer, texts))


@dataclass(frozen=True, slots=True)
class BestOfN:
    """Chooses the text that a reward model scores highest. A text without an answer is chosen only if none has one."""

    model: RewardModel

    def for_run(self, grader: RunGrader) -> BestOfN:
        """See ``Selector.for_run``. A reward model scores the texts of any task."""
        return self

    def select(self, candidates: Sequence[tuple[Question, Sequence[str]]]) -> list[Choice]:
        """See ``Selector.select``."""
        chats = [[_answered_chat(question, text) for text in texts] for question, texts in candidates]
        rewards = self.model.score(chats)
        return [
            Choice(_best(row, answered), tuple(row), self.model.cost(answered))
            for row, answered in zip(rewards, chats, strict=True)
        ]


def _answered_chat(question: Question, text: str) -> tuple[Message, ...]:
    """The chat, followed by the answer in a text. The text holds no prefill: only the last layer continues one."""
    return (*question.chat.messages, Message("assistant", answer_in(question, text)))


def _best(rewards: Sequence[float], chats: Sequence[tuple[Message, ...]]) -> int:
    """The index of the highest reward among the chats with an answer, else of the highest reward."""
    answered = [index for index, chat in enumerate(chats) if chat[-1].content.strip()]
    return max(answered or range(len(rewards)), key=lambda index: rewards[index])


def load_selector(config: AFTConfig, store: Store, host: HostArgs) -> Selector | None:
    """Load the selector of a strategy. None if the last layer writes its text.

    Raises:
        ConfigError: If the regex is not valid, or the reward model has several outputs or no chat template.
        EngineError: If the reward model cannot be loaded.
    """
    if config.strategy == "majority":
        if config.vote_regex is not None:
            choose_extraction("", config.vote_regex)
        return Majority(config.vote_regex)
    if config.strategy == "best_of_n":
        batch_size = host.batch_size if isinstance(host.batch_size, int) else 8
        return BestOfN(RewardModel(str(config.reward_model), store, host.device, batch_size))
    return None
