"""``strategy=weighted``: a vote in which a text counts more if the model was surer of its tokens.

DeepConf (arXiv 2508.15260) weighs votes by confidence in the same way, with other numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from lm_eval_aft.core.config import DEFAULT_CONFIDENCE, AFTConfig
from lm_eval_aft.core.engine import HostArgs
from lm_eval_aft.core.errors import ConfigError
from lm_eval_aft.core.records import Draft, Question
from lm_eval_aft.inference.answers import AnswerFinder
from lm_eval_aft.inference.ballot import weights_of
from lm_eval_aft.inference.selection import Choice, Majority, Selector, vote
from lm_eval_aft.storage.draft_store import Store


@dataclass(frozen=True, slots=True)
class Weighted(Majority):
    """Chooses a text of the answer with the largest sum of weights. Equal weights make it ``Majority``.

    The texts of the chosen answer are equally good; seeds draw one of them.

    Attributes:
        confidence: The number of ``Confidence`` whose exponential is the weight.
    """

    setting: str = "strategy=weighted"
    confidence: str = DEFAULT_CONFIDENCE

    def _count(self, question: Question, drafts: Sequence[Draft]) -> Choice:
        self._check(question.task)
        answers = self.finder.answers(question, drafts)
        return vote(answers, drafts, confidence_weights(answers, drafts, self.confidence))


def confidence_weights(answers: Sequence[str | None], drafts: Sequence[Draft], name: str) -> list[float]:
    """What the vote of each text counts; see ``weights_of``.

    Args:
        answers: The answer in each text; a text without one weighs 0.
        drafts: The texts.
        name: The number of ``Confidence`` to use: sum, mean, tail or window.

    Raises:
        ConfigError: If a text with an answer has no confidence.
    """
    numbers = [
        None if answer is None or draft.completion.confidence is None else asdict(draft.completion.confidence)[name]
        for answer, draft in zip(answers, drafts, strict=True)
    ]
    lacking = sum(number is None and answer is not None for number, answer in zip(numbers, answers, strict=True))
    if lacking:
        raise ConfigError(
            f"strategy=weighted: {lacking} of {len(drafts)} texts of a question have no confidence to weigh their vote "
            f"by: generate the drafts again with confidence={name}, or use strategy=majority."
        )
    return weights_of(numbers)


def load_weighted(config: AFTConfig, store: Store, host: HostArgs) -> Selector:
    """The selector of ``strategy=weighted``."""
    return Weighted(AnswerFinder(config.vote_regex), confidence=config.confidence or DEFAULT_CONFIDENCE)
