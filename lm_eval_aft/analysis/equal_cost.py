"""What a vote over drafts would score at the cost of a run: the baselines of equal cost.

The drafts come from a pool, which is the traces of any run of a model. As many drafts are taken as generate no more
tokens than the run did. The run is compared with their majority vote and with their best draft, paired by question.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from lm_eval_aft.analysis.conditions import votable
from lm_eval_aft.analysis.marking import Marking, choose_marking, gold_answers, rule_for
from lm_eval_aft.analysis.pairing import Document, samples_by_document
from lm_eval_aft.analysis.replay import VotedDraft
from lm_eval_aft.analysis.runs import RunEntry
from lm_eval_aft.analysis.stats import Interval, mean_interval, paired_bootstrap, paired_permutation
from lm_eval_aft.analysis.votes import Ballot, drafter_of, run_ballots
from lm_eval_aft.analysis.voting import score_texts
from lm_eval_aft.storage.results import Score


@dataclass(frozen=True, slots=True)
class EqualCostBaseline:
    """Drafts of one model as a baseline of a run.

    Attributes:
        kind: "majority vote" or "best draft". The best draft is the oracle, which knows the right answer.
        pool: Label of the run whose drafts they are.
        drafts: How many drafts were taken.
        generated_tokens: A question, for that many drafts.
        enough: Whether one more draft would have cost more than the run.
        score: With its interval.
        difference: The run minus this baseline, paired, with its interval.
        p_value: Of the sign-flip test of that difference.
        extraction: How the vote found answers; "" for the best draft.
    """

    kind: str
    pool: str
    drafts: int
    generated_tokens: float
    enough: bool
    score: Interval
    difference: Interval
    p_value: float
    extraction: str = ""


@dataclass(frozen=True, slots=True)
class DraftPool:
    """Drafts of one model on one task.

    Attributes:
        label: Label of the run that made them.
        model: Fingerprint of the model that wrote them.
        answers: The answer in each draft of a document; None if there is none. The whole is None if there is nothing
            to vote on.
        values: The score of each draft of a document, in [0, 1].
        tokens: Mean generated tokens of a draft.
        extraction: How answers were found; "" if there are none.
        drafts: The drafts of each document one by one.
        prompt_tokens: Length of the drafts' prompt of each document.
    """

    label: str
    model: str
    answers: Mapping[Document, tuple[str | None, ...]] | None
    values: Mapping[Document, tuple[float, ...]]
    tokens: float
    extraction: str
    drafts: Mapping[Document, tuple[VotedDraft, ...]]
    prompt_tokens: Mapping[Document, int]

    def affordable(self, tokens: float) -> tuple[int, bool]:
        """How many drafts generate no more than this many tokens, and whether the pool has as many."""
        count = int(tokens / self.tokens + 1e-9)
        return max(1, min(count, self.size)), count <= self.size

    @property
    def size(self) -> int:
        """The number of drafts that every question has."""
        return min(map(len, self.values.values()))

    def restricted(self, documents: Sequence[Document]) -> DraftPool:
        """The pool of these documents, with equally many drafts of each."""
        drafts = {document: self.drafts[document][: self.size] for document in documents}
        answers = {document: tuple(each.answer for each in row) for document, row in drafts.items()}
        return replace(
            self,
            answers=answers if self.answers is not None else None,
            values={document: tuple(each.value for each in row) for document, row in drafts.items()},
            tokens=fmean(each.tokens for row in drafts.values() for each in row),
            drafts=drafts,
            prompt_tokens={document: self.prompt_tokens[document] for document in documents},
        )

    def scores(self, document: Document, n: int) -> tuple[float, float | None, float]:
        """Expected score of one draft, of the vote and of the oracle of n drafts, over all choices of n."""
        return score_texts(self.answers[document] if self.answers else None, self.values[document], n)


def equal_cost_baselines(
    entry: RunEntry, score: Score, pools: Sequence[DraftPool], level: float
) -> tuple[EqualCostBaseline, ...]:
    """Compare a run with votes of the same cost.

    Args:
        entry: The run.
        score: One of its scores; it must be 0 or 1 for each question.
        pools: Drafts that vote. A pool without all questions of the run is left out.
        level: Confidence of the intervals.
    """
    cost = entry.costs.get(score.task)
    if cost is None:
        return ()
    samples = samples_by_document(entry, score.task, score.filter)
    scores = {document: sample.score(score.metric) for document, sample in samples.items()}
    baselines: list[EqualCostBaseline] = []
    for pool in pools:
        if all(document in pool.values for document in scores):
            baselines += _baselines(pool, scores, cost.generated_tokens, level)
    return tuple(baselines)


def _baselines(
    pool: DraftPool, scores: Mapping[Document, float], tokens: float, level: float
) -> Iterator[EqualCostBaseline]:
    """The majority vote and the best draft of one pool, for a run of these scores and this many tokens a question."""
    n, enough = pool.affordable(tokens)
    votes = [pool.scores(document, n) for document in scores]
    _, majority, oracle = zip(*votes, strict=True)
    run_scores = list(scores.values())
    for kind, column in (("majority vote", majority), ("best draft", oracle)):
        if None in column:
            continue
        yield EqualCostBaseline(
            kind=kind,
            pool=pool.label,
            drafts=n,
            generated_tokens=n * pool.tokens,
            enough=enough,
            score=mean_interval(column, level),
            difference=paired_bootstrap(column, run_scores, level=level),
            p_value=paired_permutation(column, run_scores).p_value,
            extraction=pool.extraction if kind == "majority vote" else "",
        )


def draft_pool(entry: RunEntry, score: Score, entries: Sequence[RunEntry], regex: str | None) -> DraftPool | None:
    """A run's drafts of a task, marked as a score marks answers.

    Args:
        entry: The run.
        score: The score that the drafts are compared with.
        entries: Runs whose samples may hold the gold answers.
        regex: Finds answers instead of the task's own filter.

    Returns:
        The drafts; None if the run has no traces of the task, or nothing says which drafts are right.
    """
    task = score.task
    if entry.trace_folder is None or task not in entry.run.tasks:
        return None
    ballots = {
        (ballot.doc_id, ballot.doc_hash): ballot
        for group in run_ballots(entry, regex).values()
        for ballot in group.values()
        if ballot.task == task and not ballot.repeat and not ballot.turn
    }
    marked = _mark(score, ballots, entries, regex)
    tokens = [count for ballot in ballots.values() for count in ballot.tokens]
    if marked is None or not sum(tokens):
        return None
    extraction, answers, values = marked
    settings = entry.run.settings or {}
    drafter = drafter_of(settings)
    label = entry.label if drafter is settings else f"{drafter.get('model')}, read by {entry.label}"
    return DraftPool(
        label,
        str(drafter.get("fingerprint")),
        answers,
        values,
        fmean(tokens),
        extraction,
        {
            document: _voted_drafts(ballots[document], answers[document] if answers else None, scores)
            for document, scores in values.items()
        },
        {document: ballots[document].prompt_tokens for document in values},
    )


def _voted_drafts(
    ballot: Ballot, answers: Sequence[str | None] | None, values: Sequence[float]
) -> tuple[VotedDraft, ...]:
    found = answers or [None] * len(ballot.seeds)
    columns = zip(found, values, ballot.tokens, ballot.seeds, ballot.confidences, strict=True)
    return tuple(VotedDraft(*column) for column in columns)


_Marks = tuple[str, dict[Document, tuple[str | None, ...]] | None, dict[Document, tuple[float, ...]]]


def _mark(
    score: Score, ballots: Mapping[Document, Ballot], entries: Sequence[RunEntry], regex: str | None
) -> _Marks | None:
    """How answers were found, and the answer and the score of each draft by document; None if nothing says them."""
    graded = {document: ballot.grades for document, ballot in ballots.items() if ballot.grades}
    if graded and regex is None:
        rule = rule_for((score.metric, score.filter), [each for grades in graded.values() for each in grades])
        if rule is None:
            return None
        values = {document: tuple(rule.value(each) or 0.0 for each in grades) for document, grades in graded.items()}
        answers = {document: tuple(map(rule.answer, grades)) for document, grades in graded.items()}
        return Marking(rule=rule).name, answers if rule.answers else None, values
    extraction = choose_marking(score.task, [], entries, regex).extraction
    if extraction is None or not votable(score):
        return None
    found = {document: ballot.answers for document, ballot in ballots.items()}
    gold = gold_answers(entries, {(score.task, doc_hash) for _, doc_hash in found}, regex)
    values = {}
    for document, drafts in found.items():
        if (truth := gold.get((score.task, document[1]))) is not None:
            rights = extraction.rights(drafts, truth)
            values[document] = tuple(float(answer in rights) for answer in drafts)
    return (extraction.name, found, values) if values else None
