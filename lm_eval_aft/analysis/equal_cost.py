"""What a vote over drafts would score at the cost of a run: the baselines of equal cost.

The drafts come from a pool, which is the traces of any run of a model. As many drafts are taken as generate no more
tokens than the run did. The run is compared with their majority vote and with their best draft, paired by question.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from lm_eval_aft.analysis.pairing import Document, samples_by_document
from lm_eval_aft.analysis.runs import RunEntry
from lm_eval_aft.analysis.stats import Interval, mean_interval, paired_bootstrap, paired_permutation
from lm_eval_aft.analysis.votes import gold_answers
from lm_eval_aft.analysis.voting import score_drafts
from lm_eval_aft.inference.dialogue import answer_of
from lm_eval_aft.inference.extraction import Extraction, choose_extraction, has_extraction
from lm_eval_aft.storage.results import Score


@dataclass(frozen=True, slots=True)
class EqualCostBaseline:
    """Drafts of one model as a baseline of a run.

    Attributes:
        kind: "majority vote" or "best draft". The best draft is the oracle, which needs the gold answer.
        pool: Label of the run whose drafts they are.
        drafts: How many drafts were taken.
        generated_tokens: A question, for that many drafts.
        enough: Whether one more draft would have cost more than the run.
        score: With its interval.
        difference: The run minus this baseline, paired, with its interval.
        p_value: Of the sign-flip test of that difference.
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
class DraftPool:
    """Drafts of one model on one task.

    Attributes:
        label: Label of the run that made them.
        answers: The answer in each draft of a document; None if there is none.
        tokens: Mean generated tokens of a draft.
    """

    label: str
    answers: Mapping[Document, tuple[str | None, ...]]
    tokens: float

    @property
    def size(self) -> int:
        """The number of drafts that every question has."""
        return min(map(len, self.answers.values()))


def equal_cost_baselines(
    entry: RunEntry,
    score: Score,
    pools: Sequence[DraftPool],
    entries: Sequence[RunEntry],
    regex: str | None,
    level: float,
) -> tuple[EqualCostBaseline, ...]:
    """Compare a run with votes of the same cost.

    Args:
        entry: The run.
        score: One of its scores; it must be 0 or 1 for each question.
        pools: Drafts that vote. A pool without all questions of the run is left out.
        entries: Runs whose samples hold the gold answers.
        regex: Finds answers instead of the task's own extraction.
        level: Confidence of the intervals.
    """
    cost = entry.costs.get(score.task)
    if cost is None:
        return ()
    samples = samples_by_document(entry, score.task, score.filter)
    scores = {document: sample.score(score.metric) for document, sample in samples.items()}
    baselines: list[EqualCostBaseline] = []
    for pool in pools:
        documents = {(score.task, doc_hash) for _, doc_hash in pool.answers}
        gold = gold_answers(entries, documents, regex)
        if not all(document in pool.answers and (score.task, document[1]) in gold for document in scores):
            continue
        truth = {document: gold[score.task, document[1]] for document in scores}
        baselines += _baselines(pool, scores, truth, cost.generated_tokens, choose_extraction(score.task, regex), level)
    return tuple(baselines)


def _baselines(
    pool: DraftPool,
    scores: Mapping[Document, float],
    truth: Mapping[Document, str],
    tokens: float,
    extraction: Extraction,
    level: float,
) -> Iterator[EqualCostBaseline]:
    """The majority vote and the best draft of one pool, for a run of these scores and this many tokens a question."""
    affordable = int(tokens / pool.tokens + 1e-9)
    n = max(1, min(affordable, pool.size))
    rights = {document: extraction.rights(pool.answers[document], gold) for document, gold in truth.items()}
    votes = [score_drafts(pool.answers[document], right, n)[1:] for document, right in rights.items()]
    run_scores = [scores[document] for document in rights]
    for kind, column in zip(("majority vote", "best draft"), zip(*votes, strict=True), strict=True):
        yield EqualCostBaseline(
            kind=kind,
            pool=pool.label,
            drafts=n,
            generated_tokens=n * pool.tokens,
            enough=affordable <= pool.size,
            score=mean_interval(column, level),
            difference=paired_bootstrap(column, run_scores, level=level),
            p_value=paired_permutation(column, run_scores).p_value,
        )


def draft_pool(entry: RunEntry, task: str, regex: str | None) -> DraftPool | None:
    """A run's drafts of a task; None if it has no traces, or answers cannot be found in them."""
    if entry.trace_folder is None or task not in entry.run.tasks or not (regex or has_extraction(task)):
        return None
    extraction = choose_extraction(task, regex)
    answers: dict[Document, tuple[str | None, ...]] = {}
    tokens: list[int] = []
    for trace in entry.traces():
        question = trace.question
        if question.task != task or question.repeat or question.turn:
            continue
        drafts = trace.layer(0)
        texts = [answer_of(question, draft) for draft in drafts]
        answers[question.doc_id, question.doc_hash] = tuple(map(extraction.answer, texts))
        tokens += [draft.completion.generated_tokens for draft in drafts]
    return DraftPool(entry.label, answers, fmean(tokens)) if tokens and sum(tokens) else None
