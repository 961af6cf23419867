"""Replay of ``stop_when`` on stored drafts: what a rule would have scored and saved. Nothing is generated.

A run with a rule keeps the first drafts of a run without one. So the stored answers, in the order of the drafts, say
where the rule stops. The vote over the drafts that are kept is that of ``strategy=majority``: seeds decide ties.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from lm_eval_aft.analysis.comparison import paired_test
from lm_eval_aft.analysis.pairing import PairedScores
from lm_eval_aft.analysis.scores import accuracy_interval
from lm_eval_aft.analysis.stats import Interval
from lm_eval_aft.core.early_stopping import StopRule
from lm_eval_aft.core.records import Confidence
from lm_eval_aft.inference.ballot import best, votes_for


@dataclass(frozen=True, slots=True)
class VotedDraft:
    """What a replay needs of one draft.

    Attributes:
        answer: The answer in it; None if there is none.
        value: Its score, in [0, 1].
        tokens: Its generated tokens.
        seed: The seed of its generation, which decides ties.
        confidence: How likely the model found it; None if the engine did not say.
    """

    answer: str | None
    value: float
    tokens: int
    seed: int
    confidence: Confidence | None = None


@dataclass(frozen=True, slots=True)
class ReplayedRule:
    """A rule on the stored drafts of one task.

    Attributes:
        rule: The rule as it is given, such as agree:0.95; "" for no rule, which keeps all drafts.
        score: Accuracy of the vote over the drafts kept.
        scores: The same for each question.
        drafts: Drafts kept, as a mean over questions.
        generated_tokens: Generated tokens of these, as a mean over questions.
        drafts_saved: Share of all stored drafts that the rule does not need.
        tokens_saved: Share of their generated tokens.
        stopped: Share of the questions that keep fewer drafts than are stored.
        difference: The vote over the drafts kept minus the vote over all, paired, with its interval. None without a
            rule.
        p_value: Two-sided, of that difference.
    """

    rule: str
    score: Interval
    scores: tuple[float, ...]
    drafts: float
    generated_tokens: float
    drafts_saved: float
    tokens_saved: float
    stopped: float
    difference: Interval | None = None
    p_value: float | None = None


def voted(drafts: Sequence[VotedDraft]) -> VotedDraft:
    """The draft that the majority vote takes."""
    return drafts[best(votes_for([draft.answer for draft in drafts]), drafts)]


def replay(
    doc_ids: Sequence[int], questions: Sequence[Sequence[VotedDraft]], rules: Sequence[StopRule], level: float
) -> tuple[ReplayedRule, ...]:
    """Replay rules on stored drafts.

    Args:
        doc_ids: The document of each question. Its repeats are drawn together.
        questions: The drafts of each question, by index.
        rules: The rules.
        level: Confidence of the intervals, in (0, 1).

    Returns:
        All drafts first, then each rule.
    """
    whole = _replayed("", doc_ids, questions, [len(drafts) for drafts in questions], level)
    replayed = [whole]
    for rule in rules:
        kept = [rule.kept([draft.answer for draft in drafts]) for drafts in questions]
        replayed.append(_compared(_replayed(str(rule), doc_ids, questions, kept, level), whole, doc_ids, level))
    return tuple(replayed)


def _replayed(
    name: str, doc_ids: Sequence[int], questions: Sequence[Sequence[VotedDraft]], kept: Sequence[int], level: float
) -> ReplayedRule:
    first = [drafts[:count] for drafts, count in zip(questions, kept, strict=True)]
    stored, tokens = sum(map(len, questions)), sum(map(_tokens, questions))
    tokens_kept = sum(map(_tokens, first))
    scores = tuple(voted(drafts).value for drafts in first)
    return ReplayedRule(
        rule=name,
        score=accuracy_interval(doc_ids, scores, level),
        scores=scores,
        drafts=fmean(kept),
        generated_tokens=tokens_kept / len(questions),
        drafts_saved=1 - sum(kept) / stored,
        tokens_saved=1 - tokens_kept / tokens if tokens else 0.0,
        stopped=fmean(count < len(drafts) for count, drafts in zip(kept, questions, strict=True)),
    )


def _compared(rule: ReplayedRule, whole: ReplayedRule, doc_ids: Sequence[int], level: float) -> ReplayedRule:
    """The rule with its difference from the vote over all drafts."""
    documents = tuple((doc_id, "") for doc_id in doc_ids)
    pairs = PairedScores("", "", "", documents, ("",) * len(documents), whole.scores, rule.scores)
    test = paired_test(pairs, level)
    return replace(rule, difference=test.difference, p_value=test.p_value)


def _tokens(drafts: Sequence[VotedDraft]) -> int:
    return sum(draft.tokens for draft in drafts)
