"""Selection: the last layer chooses one of the texts of the layer before instead of writing a new one.

    strategy=majority     the most frequent answer, found by the task's own filter or by ``vote_regex``
    strategy=weighted     as majority, but the vote of a text counts more if the model was surer of its tokens
    strategy=best_of_n    the best text by ``reward_model``, a sequence-classification checkpoint with one output
    strategy=mbr          the text that is most similar to the others
    strategy=select       the text whose number the model writes after reading all of them
    strategy=rsa          ends as majority does if the answers of the task can be found

The texts, their seeds and their place in the draft store are those of ``strategy=aggregate``. So a selection generates
nothing if an earlier run has generated the drafts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pkgutil import resolve_name
from typing import Protocol

from lm_eval_aft.core.config import AFTConfig
from lm_eval_aft.core.engine import HostArgs
from lm_eval_aft.core.log import warn_once
from lm_eval_aft.core.records import Draft, Message, Question
from lm_eval_aft.core.usage import Usage
from lm_eval_aft.inference.answers import AnswerFinder
from lm_eval_aft.inference.ballot import best, votes_for
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


@dataclass(frozen=True, slots=True)
class Candidates:
    """The texts of one question, of which one becomes the answer.

    Attributes:
        question: The question.
        drafts: The texts, by index.
        choice: The text that names the best of them, if the strategy writes one.
    """

    question: Question
    drafts: Sequence[Draft]
    choice: Draft | None = None


class Selector(Protocol):
    """Chooses one text per question."""

    @property
    def reads_choice(self) -> bool:
        """Whether the model writes which text to take."""

    def chooses(self, task: str) -> bool:
        """Whether it can choose among the texts of a task. If not, the last layer writes a text."""

    def select(self, candidates: Sequence[Candidates]) -> list[Choice]:
        """Choose among the texts of each question. Choices come in the order of the questions."""

    def for_run(self, grader: RunGrader) -> Selector:
        """The selector for the requests of a run, whose tasks ``grader`` knows.

        Raises:
            ConfigError: If it cannot choose among the texts of one of the tasks.
        """


@dataclass(frozen=True, slots=True)
class Majority:
    """Chooses a text with the most frequent answer.

    If several answers are equally frequent, seeds draw one of them by lot. Texts without an answer have no vote. If no
    text has an answer, seeds draw one of all texts.

    Attributes:
        finder: Finds the answers.
        setting: The setting that needs the vote, such as "strategy=majority".
        otherwise: What a user can do if answers cannot be found. "" lets the last layer write a text then.
    """

    finder: AnswerFinder = field(default_factory=AnswerFinder)
    setting: str = "strategy=majority"
    otherwise: str = "use strategy=best_of_n"
    reads_choice = False

    def chooses(self, task: str) -> bool:
        """See ``Selector.chooses``."""
        return bool(self.otherwise) or self.finder.can_find(task)

    def for_run(self, grader: RunGrader) -> Majority:
        """See ``Selector.for_run``."""
        selector = replace(self, finder=self.finder.for_run(grader))
        for task in dict.fromkeys(task for task, *_ in grader.documents):
            selector._check(task)
        return selector

    def select(self, candidates: Sequence[Candidates]) -> list[Choice]:
        """See ``Selector.select``.

        Raises:
            ConfigError: If a task's answers cannot be found without a regex.
        """
        choices = [self._count(each.question, each.drafts) for each in candidates]
        silent = sum(not any(choice.scores) for choice in choices)
        if silent:
            warn_once(
                f"{self.setting}: {self.finder.name} finds no answer in any text of {silent} of {len(choices)} "
                "questions, and draws one of the texts there."
            )
        return choices

    def _check(self, task: str) -> None:
        if self.otherwise:
            self.finder.check(task, self.setting, self.otherwise)

    def _count(self, question: Question, drafts: Sequence[Draft]) -> Choice:
        self._check(question.task)
        return vote(self.finder.answers(question, drafts), drafts)


def vote(answers: Sequence[str | None], drafts: Sequence[Draft], weights: Sequence[float] | None = None) -> Choice:
    """The majority vote over the answers of texts.

    Args:
        answers: The answer in each text; None has no vote.
        drafts: The texts, whose seeds decide ties.
        weights: What the vote of each text counts; 1 if there are none.
    """
    votes = votes_for(answers, weights)
    return Choice(best(votes, drafts), votes)


@dataclass(frozen=True, slots=True)
class BestOfN:
    """Chooses the text that a reward model scores highest. A text without an answer is chosen only if none has one."""

    model: RewardModel
    reads_choice = False

    def chooses(self, task: str) -> bool:
        """See ``Selector.chooses``. A reward model scores the texts of any task."""
        return True

    def for_run(self, grader: RunGrader) -> BestOfN:
        """See ``Selector.for_run``."""
        return self

    def select(self, candidates: Sequence[Candidates]) -> list[Choice]:
        """See ``Selector.select``."""
        chats = [[_answered_chat(each.question, draft) for draft in each.drafts] for each in candidates]
        rewards = self.model.score(chats)
        return [
            Choice(_best_answered(row, answered, each.drafts), tuple(row), self.model.cost(answered))
            for row, answered, each in zip(rewards, chats, candidates, strict=True)
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
    if not config.kind.selector:
        return None
    load: Loader = resolve_name(config.kind.selector)
    return load(config, store, host)


Loader = Callable[[AFTConfig, Store, HostArgs], Selector]


def load_majority(config: AFTConfig, store: Store, host: HostArgs) -> Selector:
    """The selector of ``strategy=majority``."""
    return Majority(AnswerFinder(config.vote_regex))


def load_rsa_vote(config: AFTConfig, store: Store, host: HostArgs) -> Selector:
    """The selector of ``strategy=rsa``."""
    return Majority(AnswerFinder(config.vote_regex), "strategy=rsa", otherwise="")


def load_best_of_n(config: AFTConfig, store: Store, host: HostArgs) -> Selector:
    """The selector of ``strategy=best_of_n``."""
    batch_size = host.batch_size if isinstance(host.batch_size, int) else 8
    return BestOfN(RewardModel(str(config.reward_model), store, host.device, batch_size))
