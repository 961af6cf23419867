"""``strategy=mbr``: the text that agrees most with all others, for tasks whose answers are whole texts.

Minimum Bayes risk decoding chooses the text with the highest mean similarity to the other texts (Bertsch et al. 2023,
arXiv 2310.01387). The similarity is chrF, the F-score of character n-grams (Popović 2015), by sacrebleu.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lm_eval_aft.core.config import AFTConfig
from lm_eval_aft.core.engine import HostArgs
from lm_eval_aft.inference.ballot import best
from lm_eval_aft.inference.dialogue import answer_of
from lm_eval_aft.inference.selection import Candidates, Choice, Selector
from lm_eval_aft.inference.task_grading import RunGrader
from lm_eval_aft.storage.draft_store import Store


@dataclass(frozen=True, slots=True)
class MinimumBayesRisk:
    """Chooses the text with the highest mean chrF to the other texts. A text without an answer is like no other."""

    reads_choice = False

    def chooses(self, task: str) -> bool:
        """See ``Selector.chooses``. Texts of any task can be compared."""
        return True

    def for_run(self, grader: RunGrader) -> MinimumBayesRisk:
        """See ``Selector.for_run``."""
        return self

    def select(self, candidates: Sequence[Candidates]) -> list[Choice]:
        """See ``Selector.select``. The scores are between 0 and 100."""
        return [_choose([answer_of(each.question, draft) for draft in each.drafts], each) for each in candidates]


def _choose(texts: Sequence[str], each: Candidates) -> Choice:
    # It is part of lm-eval, and takes 0.1 s to import.
    from sacrebleu.metrics.chrf import CHRF

    metric = CHRF()
    others = max(1, len(texts) - 1)
    scores = tuple(
        sum(metric.sentence_score(text, [other]).score for j, other in enumerate(texts) if j != i) / others
        for i, text in enumerate(texts)
    )
    return Choice(best(scores, each.drafts), scores)


def load_mbr(config: AFTConfig, store: Store, host: HostArgs) -> Selector:
    """The selector of ``strategy=mbr``."""
    return MinimumBayesRisk()
