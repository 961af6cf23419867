"""Elections: the last pass chooses one of the texts of the layer before instead of writing a new one.

    strategy=majority     the most frequent answer, found by the task's own extraction or by ``vote_regex``
    strategy=best_of_n    the best text by ``reward_model``, a sequence-classification checkpoint with one output

Nothing else of the schedule changes: the texts, their seeds and their store are those of ``aggregate``, so an
election over k drafts costs nothing where a run has drawn them before. Called by ``schedule``; made by ``model``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from lm_eval_aft.core.config import AFTConfig
from lm_eval_aft.core.engine import HostArgs
from lm_eval_aft.core.errors import ConfigError
from lm_eval_aft.core.records import Message, Question
from lm_eval_aft.core.usage import Usage
from lm_eval_aft.inference.dialogue import answer_in
from lm_eval_aft.inference.extraction import choose_extraction, has_extraction
from lm_eval_aft.inference.reward_model import RewardModel
from lm_eval_aft.storage.draft_store import Store


@dataclass(frozen=True, slots=True)
class Choice:
    """Which of several texts is the answer.

    Attributes:
        index: Of the text; the first of equals.
        scores: One a text: votes, or the reward.
        usage: What choosing cost; nothing is generated.
    """

    index: int
    scores: tuple[float, ...]
    usage: Usage = field(default_factory=Usage)


class Selector(Protocol):
    """Chooses one text a question."""

    def select(self, asked: Sequence[tuple[Question, Sequence[str]]]) -> list[Choice]:
        """One election for each question and its texts, in their order."""


@dataclass(frozen=True, slots=True)
class Majority:
    """The most frequent answer; its first text stands for it.

    Of equally frequent ones the first written wins: drafts are drawn alike, so that is a draw by lot. Texts without
    an answer do not vote; where none has one, the first text is the answer.
    """

    regex: str | None = None

    def select(self, asked: Sequence[tuple[Question, Sequence[str]]]) -> list[Choice]:
        """See ``Selector.select``.

        Raises:
            ConfigError: A task's answers cannot be found without a regex.
        """
        return [self._count(question, texts) for question, texts in asked]

    def _count(self, question: Question, texts: Sequence[str]) -> Choice:
        if self.regex is None and not has_extraction(question.task):
            raise ConfigError(
                f"strategy=majority cannot find the answers of {question.task}: give vote_regex=PATTERN, whose last "
                "match is the answer, or use strategy=best_of_n."
            )
        extraction = choose_extraction(question.task, self.regex)
        answers = [extraction.answer(answer_in(question, text)) for text in texts]
        counts = Counter(answers)
        votes = tuple(float(counts[answer]) if answer is not None else 0.0 for answer in answers)
        return Choice(votes.index(max(votes)), votes)


@dataclass(frozen=True, slots=True)
class BestOfN:
    """The text that a reward model scores highest."""

    model: RewardModel

    def select(self, asked: Sequence[tuple[Question, Sequence[str]]]) -> list[Choice]:
        """See ``Selector.select``."""
        chats = [[_dialogue(question, text) for text in texts] for question, texts in asked]
        scored = self.model.score(chats)
        return [
            Choice(row.index(max(row)), tuple(row), self.model.cost(texts))
            for row, texts in zip(scored, chats, strict=True)
        ]


def _dialogue(question: Question, text: str) -> tuple[Message, ...]:
    """The chat with what the task is given of a text; texts that are elected were not begun by a prefill."""
    return (*question.chat.messages, Message("assistant", answer_in(question, text)))


def load_selector(config: AFTConfig, store: Store, host: HostArgs) -> Selector | None:
    """What the strategy elects with; None where the last pass writes.

    Raises:
        ConfigError: ``best_of_n`` without a reward model, or a regex that is not valid.
        EngineError: The reward model cannot be loaded.
    """
    if config.strategy == "majority":
        if config.vote_regex is not None:
            choose_extraction("", config.vote_regex)
        return Majority(config.vote_regex)
    if config.strategy == "best_of_n":
        batch_size = host.batch_size if isinstance(host.batch_size, int) else 8
        return BestOfN(RewardModel(str(config.reward_model), store, host.device, batch_size))
    return None
