"""What a plain vote over drafts would have scored at the price of a run: the opponents of equal cost.

Takes as many drafts of a pool (the traces of any run of the model in question) as generate no more tokens than the
run did, and sets the run against their majority vote and against their best draft, paired by question. Extraction is
that of ``answers``, gold answers those of lm-eval's samples. Called by ``compare``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lm_eval_aft.analysis.pairing import Document, samples_of
from lm_eval_aft.analysis.runs import RunEntry
from lm_eval_aft.analysis.stats import Interval, mean_interval, paired_bootstrap, paired_permutation
from lm_eval_aft.analysis.votes import gold_answers
from lm_eval_aft.analysis.voting import score_drafts
from lm_eval_aft.inference.dialogue import answer_in
from lm_eval_aft.inference.extraction import choose_extraction, has_extraction
from lm_eval_aft.storage.results import Score


@dataclass(frozen=True, slots=True)
class EqualCostBaseline:
    """Drafts of one model in the place of a run's answer.

    Attributes:
        kind: "majority vote" or "best draft" (the oracle, which needs the gold answer).
        pool: Label of the run whose drafts they are.
        drafts: How many were taken.
        generated_tokens: A question, for that many.
        enough: Whether one more would have cost more than the run did.
        score: With its interval.
        difference: The run minus this opponent, paired, with its interval.
        p_value: Sign-flip test of that difference.
    """

    kind: str
    pool: str
    drafts: int
    generated_tokens: float
    enough: bool
    score: Interval
    difference: Interval
    p_value: float


@dataclass(frozen=True, slots=True)
class Pool:
    """Drafts of one model on one task: by document, the answers found and the mean tokens a draft."""

    label: str
    answers: Mapping[Document, tuple[str | None, ...]]
    tokens: float

    @property
    def size(self) -> int:
        """Drafts that every question has."""
        return min(map(len, self.answers.values()))


def equal_cost_baselines(
    entry: RunEntry, score: Score, pools: Sequence[Pool], entries: Sequence[RunEntry], regex: str | None, level: float
) -> tuple[EqualCostBaseline, ...]:
    """Set a run against votes at its own price.

    Args:
        entry: The run.
        score: Which of its scores; 0/1 a question.
        pools: Drafts to vote with.
        entries: Whose samples hold the gold answers.
        regex: Instead of the task's own extraction.
        level: Of the intervals.
    """
    cost = entry.costs.get(score.task)
    if cost is None:
        return ()
    own = {
        document: sample.score(score.metric) for document, sample in samples_of(entry, score.task, score.filter).items()
    }
    found: list[EqualCostBaseline] = []
    for pool in pools:
        wanted = {(score.task, doc_hash) for _, doc_hash in pool.answers}
        gold = gold_answers(entries, wanted, regex)
        shared = [doc for doc in own if doc in pool.answers and (score.task, doc[1]) in gold]
        if len(shared) < len(own):
            continue  # a vote over other questions is no opponent
        affordable = int(cost.generated_tokens / pool.tokens + 1e-9)
        n = max(1, min(affordable, pool.size))
        extraction = choose_extraction(score.task, regex)
        rights = [extraction.rights(pool.answers[doc], gold[score.task, doc[1]]) for doc in shared]
        votes = [score_drafts(pool.answers[doc], right, n)[1:] for doc, right in zip(shared, rights, strict=True)]
        mine = [own[doc] for doc in shared]
        for kind, column in zip(("majority vote", "best draft"), zip(*votes, strict=True), strict=True):
            found.append(
                EqualCostBaseline(
                    kind=kind,
                    pool=pool.label,
                    drafts=n,
                    generated_tokens=n * pool.tokens,
                    enough=affordable <= pool.size,
                    score=mean_interval(column, level),
                    difference=paired_bootstrap(column, mine, level=level),
                    p_value=paired_permutation(column, mine).p_value,
                )
            )
    return tuple(found)


def pool_of(entry: RunEntry, task: str, regex: str | None) -> Pool | None:
    """A run's drafts of a task; None where it has no traces, or answers cannot be found in them."""
    if entry.trace_folder is None or task not in entry.run.tasks or not (regex or has_extraction(task)):
        return None
    extraction = choose_extraction(task, regex)
    answers: dict[Document, tuple[str | None, ...]] = {}
    tokens: list[int] = []
    for trace in entry.traces():
        asked = trace.question
        if asked.task != task or asked.repeat or asked.turn:
            continue
        drafts = [draft.completion for draft in trace.layer(0)]
        texts = [answer_in(asked, draft.text) for draft in drafts]
        answers[asked.doc_id, asked.doc_hash] = tuple(map(extraction.answer, texts))
        tokens += [draft.generated_tokens for draft in drafts]
    return Pool(entry.label, answers, sum(tokens) / len(tokens)) if tokens and sum(tokens) else None
