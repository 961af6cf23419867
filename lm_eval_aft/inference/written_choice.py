"""``strategy=select``: the model reads all texts and writes the number of the best one, which becomes the answer.

GenSelect (arXiv 2507.17797) trains models to do so. Universal Self-Consistency (arXiv 2311.17311) asks any model.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from lm_eval_aft.core.config import AFTConfig
from lm_eval_aft.core.engine import HostArgs
from lm_eval_aft.core.log import warn_once
from lm_eval_aft.core.records import Draft, Question, Trace
from lm_eval_aft.inference.answers import AnswerFinder
from lm_eval_aft.inference.dialogue import is_empty, without_thinking
from lm_eval_aft.inference.selection import Candidates, Choice, Selector, vote
from lm_eval_aft.inference.task_grading import RunGrader
from lm_eval_aft.storage.draft_store import Store

# "Best draft: 2", "Response 2", "\\boxed{2}", or nothing but the number.
_CHOICE = re.compile(
    r"(?:draft|response|solution|candidate|choice|judge?ment)\b[^\w\n]{0,8}(\d{1,9})\b|\\boxed\{\s*(\d{1,9})\s*\}"
    r"|\A\W{0,8}(\d{1,9})\W{0,8}\Z",
    re.IGNORECASE,
)


def chosen_index(text: str, shown: int) -> int | None:
    """The index, from 0, of the text that a written choice names last; None if it names none of those shown.

    Args:
        text: What the model wrote.
        shown: How many texts it read. They are numbered from 1.
    """
    named = [int(next(filter(None, groups))) for groups in _CHOICE.findall(text)]
    return named[-1] - 1 if named and 1 <= named[-1] <= shown else None


@dataclass(frozen=True, slots=True)
class WrittenChoice:
    """Takes the text whose number the model writes.

    If the model names none of the texts, the question falls back to the vote. Without answers to vote on, seeds draw
    one of the texts.
    """

    finder: AnswerFinder = field(default_factory=AnswerFinder)
    reads_choice = True

    def chooses(self, task: str) -> bool:
        """See ``Selector.chooses``. A model can choose among the texts of any task."""
        return True

    def for_run(self, grader: RunGrader) -> WrittenChoice:
        """See ``Selector.for_run``."""
        return replace(self, finder=self.finder.for_run(grader))

    def select(self, candidates: Sequence[Candidates]) -> list[Choice]:
        """See ``Selector.select``."""
        named = [_named(each) for each in candidates]
        if missing := named.count(None):
            warn_once(
                f"strategy=select: {missing:,} of {len(named):,} choices name none of the drafts; the vote decides."
            )
        return [
            self._fall_back(each) if index is None else _one_hot(index, each)
            for each, index in zip(candidates, named, strict=True)
        ]

    def _fall_back(self, each: Candidates) -> Choice:
        if self.finder.can_find(each.question.task):
            return vote(self.finder.answers(each.question, each.drafts), each.drafts)
        return vote([None] * len(each.drafts), each.drafts)


def shown_drafts(question: Question, drafts: Sequence[Draft]) -> list[int]:
    """The indices of the texts that a prompt shows. Empty texts are left out."""
    return [index for index, draft in enumerate(drafts) if not is_empty(question, draft)]


def _named(each: Candidates) -> int | None:
    """The index of the text that the choice names, among all texts."""
    shown = shown_drafts(each.question, each.drafts)
    number = chosen_index(without_thinking(each.question, each.choice), len(shown)) if each.choice else None
    return None if number is None else shown[number]


def names_no_text(trace: Trace) -> bool:
    """Whether the written choice of a trace names none of the texts that it read."""
    drafts = trace.layer(trace.drafts[-1].layer - 1)
    return trace.choice is not None and _named(Candidates(trace.question, drafts, trace.choice)) is None


def _one_hot(index: int, each: Candidates) -> Choice:
    return Choice(index, tuple(float(other == index) for other in range(len(each.drafts))))


def load_written_choice(config: AFTConfig, store: Store, host: HostArgs) -> Selector:
    """The selector of ``strategy=select``."""
    return WrittenChoice(AnswerFinder(config.vote_regex))
