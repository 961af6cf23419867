"""Selection: the last layer chooses one of the texts of the layer before instead of writing a new one.

    strategy=majority     the most frequent answer, found by the task's own filter or by ``vote_regex``
    strategy=best_of_n    the best text by ``reward_model``, a sequence-classification checkpoint with one output

The texts, their seeds and their place in the draft store are those of ``strategy=aggregate``. So a selection generates
nothing if an earlier run has generated the drafts.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from lm_eval_aft.core.config import AFTConfig
from lm_eval_aft.core.engine import HostArgs
from lm_eval_aft.core.log import warn_once
from lm_eval_aft.core.records import Draft, Message, Question
from lm_eval_aft.core.usage import Usage
from lm_eval_aft.inference.answers import AnswerFinder
from lm_eval_aft.inference.dialogue import answer_of
from lm_eval_aft.inference.reward_model import RewardModel
from lm_eval_aft.inference.task_grading import RunGrader
from lm_eval_aft.storage.draft_store import Store


@dataclass(frozen=True, slots=True)
class Choice:
    """Which of several texts is the answer.

    Attributes:
        index: Index of the text. If several are equally good, it is the one with the lowest seed.
        scores: The votes or the reward of each text.
        usage: Cost of choosing. Nothing is generated.
    """

    index: int
    scores: tuple[float, ...]
    usage: Usage = field(default_factory=Usage)


class Selector(Protocol):
    """Chooses one text per question."""

    def select(self, candidates: Sequence[tuple[Question, Sequence[Draft]]]) -> list[Choice]:
        """Choose among the texts of each question. Choices come in the order of the questions."""

    def for_run(self, grader: RunGrader) -> Selector:
        """The selector for the requests of a run, whose tasks ``grader`` knows.

        Raises:
            ConfigError: If it cannot choose among the texts of one of the tasks.
        """


def best(scores: Sequence[float], drafts: Sequence[Draft]) -> int:
    """The index of the highest score. Of equal scores the text with the lowest seed wins.

    Seeds are hashes, so that is a draw by lot which depends on no text's position. A run that is repeated draws the
    same.
    """
    return max(range(len(scores)), key=lambda index: (scores[index], -drafts[index].seed))


@dataclass(frozen=True, slots=True)
class Majority:
    """Chooses a text with the most frequent answer.

    If several answers are equally frequent, seeds draw one of them by lot. Texts without an answer have no vote. If no
    text has an answer, seeds draw one of all texts.
    """

    finder: AnswerFinder = field(default_factory=AnswerFinder)

    def for_run(self, grader: RunGrader) -> Majority:
        """See ``Selector.for_run``."""
        selector = replace(self, finder=self.finder.for_run(grader))
        for task in dict.fromkeys(task for task, *_ in grader.documents):
            selector._check(task)
        return selector

    def select(self, candidates: Sequence[tuple[Question, Sequence[Draft]]]) -> list[Choice]:
        """See ``Selector.select``.

        Raises:
            ConfigError: If a task's answers cannot be found without a regex.
        """
        choices = [self._count(question, drafts) for question, drafts in candidates]
        silent = sum(not any(choice.scores) for choice in choices)
        if silent:
            warn_once(
                f"strategy=majority: {self.finder.name} finds no answer in any text of {silent} of {len(choices)} "
                "questions, and draws one of the texts there."
            )
        return choices

    def _check(self, task: str) -> None:
        self.finder.check(task, "strategy=majority", "use strategy=best_of_n")

    def _count(self, question: Question, drafts: Sequence[Draft]) -> Choice:
        self._check(question.task)
        return vote(self.finder.answers(question, drafts), drafts)


def vote(answers: Sequence[str | None], drafts: Sequence[Draft]) -> Choice:
    """The majority vote over the answers of texts.

    Args:
        answers: The answer in each text; None has no vote.
        drafts: The texts, whose seeds decide ties.
    """
    counts = Counter(answers)
    votes = tuple(float(counts[answer]) if answer is not None else 0.0 for answer in answers)
    return Choice(best(votes, drafts), votes)


@dataclass(frozen=True, slots=True)
class BestOfN:
    """Chooses the text that a reward model scores highest. A text without an answer is chosen only if none has one."""

    model: RewardModel

    def for_run(self, grader: RunGrader) -> BestOfN:
        """See ``Selector.for_run``. A reward model scores the texts of any task."""
        return self

    def select(self, candidates: Sequence[tuple[Question, Sequence[Draft]]]) -> list[Choice]:
        """See ``Selector.select``."""
        chats = [[_answered_chat(question, draft) for draft in drafts] for question, drafts in candidates]
        rewards = self.model.score(chats)
        return [
            Choice(_best_answered(row, answered, drafts), tuple(row), self.model.cost(answered))
            for row, answered, (_, drafts) in zip(rewards, chats, candidates, strict=True)
        ]


def _answered_chat(question: Question, draft: Draft) -> tuple[Message, ...]:
    """The chat, followed by the answer in a text. The text holds no prefill: only the last layer continues one."""
    return (*question.chat.messages, Message("assistant", answer_of(question, draft)))


def _best_answered(rewards: Sequence[float], chats: Sequence[tuple[Message, ...]], drafts: Sequence[Draft]) -> int:
    """The index of the highest reward among the chats with an answer, else of the highest reward."""
    answered = [bool(chat[-1].content.strip()) for chat in chats]
    allowed = answered if any(answered) else [True] * len(rewards)
    return best([reward if ok else -math.inf for reward, ok in zip(rewards, allowed, strict=True)], drafts)


def load_selector(config: AFTConfig, store: Store, host: HostArgs) -> Selector | None:
    """Load the selector of a strategy. None if the last layer writes its text.

    Raises:
        ConfigError: If the regex is not valid, or the reward model has several outputs or no chat template.
        EngineError: If the reward model cannot be loaded.
    """
    if config.strategy == "majority":
        return Majority(AnswerFinder(config.vote_regex))
    if config.strategy == "best_of_n":
        batch_size = host.batch_size if isinstance(host.batch_size, int) else 8
        return BestOfN(RewardModel(str(config.reward_model), store, host.device, batch_size))
    return None
