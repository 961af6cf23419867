"""Every way to make an answer from one pool of drafts, at one cost, with paired tests.

The pool is the drafts of one run. Strategies that need no new generation are computed from it:

- one draft, and the majority vote
- the vote weighted by confidence, if the drafts have it
- the best draft by stored rewards, if a run of ``strategy=best_of_n`` scored these drafts
- ``stop_when`` with the vote
- the oracle, which is a bound and no strategy

Other strategies are runs. Each row is compared with the majority vote of as many drafts as cost no more tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from statistics import fmean

from lm_eval_aft.analysis.comparison import PairedTest, Verdict, named_score, paired_test, verdict_of
from lm_eval_aft.analysis.conditions import conditions_of, group_differences
from lm_eval_aft.analysis.equal_cost import DraftPool, draft_pool
from lm_eval_aft.analysis.gap import Gap, gap_closed
from lm_eval_aft.analysis.pairing import SHOWN_IDS, Document, PairedScores, UnusableScores, samples_by_document
from lm_eval_aft.analysis.replay import VotedDraft
from lm_eval_aft.analysis.runs import RunEntry
from lm_eval_aft.analysis.scores import accuracy_interval
from lm_eval_aft.analysis.stats import Interval, holm
from lm_eval_aft.analysis.votes import draft_flops, read_ballots, run_ballots, shapes_of
from lm_eval_aft.analysis.voting import score_texts
from lm_eval_aft.core.early_stopping import StopRule
from lm_eval_aft.core.errors import ConfigError, RecordError
from lm_eval_aft.core.usage import ModelShape
from lm_eval_aft.inference.ballot import best, votes_for, weights_of
from lm_eval_aft.storage.results import Score

TOO_FEW_DRAFTS = "The pool has too few drafts for equal tokens: give a pool with a larger k."
# Score of each question.
Scores = Mapping[Document, float]


@dataclass(frozen=True, slots=True)
class StrategyRow:
    """One strategy on one task.

    Attributes:
        name: The strategy, or the label of a run.
        source: "pool" if it is computed from the pool, "run" if it was run, or "bound" for the oracle.
        score: Its accuracy.
        generated_tokens: A question; None if it is not known.
        flops: A question; None if it is not known.
        gap: How much of the gap between the vote and the oracle of all drafts of the pool it closes.
        vote_drafts: The number of drafts whose vote it is compared with; None if its cost is not known.
        vote_score: Accuracy of that vote.
        difference: The strategy minus that vote, paired, with its interval. None if it is that vote itself.
        p_value: Two-sided; None if there is no test.
        p_holm: Corrected over the rows of the task; None for the oracle.
        notes: What a reader must know of the row, a sentence each.
        higher_is_better: Whether more is better.
    """

    name: str
    source: str
    score: Interval
    generated_tokens: float | None
    flops: float | None
    gap: Gap
    vote_drafts: int | None = None
    vote_score: float | None = None
    difference: Interval | None = None
    p_value: float | None = None
    p_holm: float | None = None
    notes: tuple[str, ...] = ()
    higher_is_better: bool = True

    @property
    def verdict(self) -> Verdict | None:
        """Whether it is better or worse than the vote at equal tokens; None if it is not tested."""
        if self.difference is None or self.p_holm is None:
            return None
        return verdict_of(self.p_holm, self.difference, self.higher_is_better)


@dataclass(frozen=True, slots=True)
class Strategies:
    """All strategies on one task.

    Attributes:
        score: The score of the pool's run that says which texts are right.
        pool: Label of the run whose drafts they are.
        k: Drafts a question.
        questions: Number of questions.
        extraction: How votes find answers.
        rows: The strategies.
    """

    score: Score
    pool: str
    k: int
    questions: int
    extraction: str
    rows: tuple[StrategyRow, ...]


@dataclass(frozen=True, slots=True)
class _Measured:
    """A strategy before it is compared: its scores and its mean cost a question."""

    name: str
    source: str
    scores: Scores
    tokens: float | None
    flops: float | None = None
    notes: tuple[str, ...] = ()


def compare_strategies(
    pool: RunEntry,
    runs: Sequence[RunEntry],
    score: Score,
    rules: Sequence[StopRule],
    regex: str | None = None,
    common: bool = False,
    level: float = 0.95,
) -> Strategies:
    """Compare all strategies on one task.

    Args:
        pool: The run whose drafts are the pool.
        runs: Further runs, which are rows as they are. Those without the task are left out.
        score: The score of the task in the pool's run.
        rules: Rules of ``stop_when``.
        regex: Finds answers instead of the task's own filter.
        common: Compare the questions that all runs answered, if they answered different ones.
        level: Confidence of the intervals, in (0, 1).

    Raises:
        UnusableScores: The run has no traces of the task, one draft a question, or no answers to vote on.
        RecordError: A run did not answer the same questions, or a file is damaged.
    """
    whole = _checked(draft_pool(pool, score, (pool, *runs), regex), pool, score)
    others = [each for entry in (pool, *runs) if (each := _run(entry, pool, score))]
    drafts = whole.restricted(_shared_documents(whole, others, score, common))
    shape = shapes_of((pool, *runs)).get(drafts.model)
    # Rules follow the order of one model's drafts, and rewards are found by the seeds of one model's drafts.
    of_one_model = not (pool.run.settings or {}).get("proposers")
    computed = [*_from_pool(drafts, rules if of_one_model else (), shape)]
    computed += _best_of_n(drafts, (pool, *runs), score, regex) if of_one_model else ()
    measured = [*computed, *others]
    rows = [_row(each, drafts, level) for each in (*measured, _subset(drafts, drafts.size, "oracle", shape))]
    return Strategies(score, pool.label, drafts.size, len(drafts.values), drafts.extraction, _corrected(rows, score))


def strategies_by_task(
    pool: RunEntry,
    runs: Sequence[RunEntry],
    rules: Sequence[StopRule],
    tasks: Sequence[str] = (),
    metric: str | None = None,
    regex: str | None = None,
    common: bool = False,
    level: float = 0.95,
) -> tuple[tuple[Strategies, ...], tuple[str, ...]]:
    """Compare all strategies on each task of the pool.

    Args:
        pool: The run whose drafts are the pool.
        runs: Further runs, which are rows as they are.
        rules: Rules of ``stop_when``.
        tasks: These tasks and groups only; empty for all tasks.
        metric: ``NAME`` or ``NAME,FILTER`` instead of each task's primary score.
        regex: Finds answers instead of the tasks' own filters.
        common: See ``compare_strategies``.
        level: Confidence of the intervals, in (0, 1).

    Returns:
        The strategies of each task, and a sentence for each task that is left out.

    Raises:
        ConfigError: A task or a metric is not in the pool's run.
        RecordError: No task can be compared, or a run did not answer the same questions.
    """
    found: list[Strategies] = []
    left_out: list[str] = []
    read_ballots((pool, *runs), regex)
    for name in tasks or pool.run.tasks:
        if not pool.run.tasks_of(name):
            raise ConfigError(f"task {name} is not in {pool.run.path}: it has {', '.join(pool.run.tasks)}.")
        for task in pool.run.tasks_of(name):
            try:
                score = named_score(pool.run, task, metric)
                found.append(compare_strategies(pool, runs, score, rules, regex, common, level))
            except UnusableScores as error:
                left_out.append(str(error))
    if not found:
        raise RecordError(" ".join(left_out))
    return tuple(found), tuple(left_out)


def _checked(drafts: DraftPool | None, pool: RunEntry, score: Score) -> DraftPool:
    """The drafts, if they can vote."""
    if drafts is None:
        raise UnusableScores(
            f"{score.task}: {pool.label} has no drafts that {score.metric} says are right or wrong: run it with "
            "record=, or grade its traces with aft grade."
        )
    if drafts.size < 2:
        raise UnusableScores(
            f"{score.task}: {pool.label} has one draft a question, and a pool needs two or more: run it with k=5, say."
        )
    if drafts.answers is None:
        raise UnusableScores(f"{score.task}: there are no answers to vote on: give --regex, whose last match is one.")
    return drafts


# ------------------------------------------------------------------ what is computed from the pool


def _from_pool(pool: DraftPool, rules: Sequence[StopRule], shape: ModelShape | None) -> Iterator[_Measured]:
    yield _subset(pool, 1, "one draft", shape)
    yield _subset(pool, pool.size, "majority vote", shape)
    if all(each.confidence for drafts in pool.drafts.values() for each in drafts):
        chosen = {document: _weighted(drafts) for document, drafts in pool.drafts.items()}
        yield _taken(f"weighted vote of {pool.size}", pool.drafts, chosen, pool, shape)
    for rule in rules:
        answers = {key: [draft.answer for draft in each] for key, each in pool.drafts.items()}
        kept = {key: each[: rule.kept(answers[key])] for key, each in pool.drafts.items()}
        taken = _taken(f"vote, stop_when={rule}", kept, {key: _vote(each) for key, each in kept.items()}, pool, shape)
        # Each round computes the prompt.
        rounds = {key: rule.rounds(each) for key, each in answers.items()}
        yield replace(taken, flops=_flops(kept, pool, shape, rounds=rounds))


def _vote(drafts: Sequence[VotedDraft]) -> float:
    """The expected score of the vote of these drafts, ties drawn by lot."""
    answers, values = [draft.answer for draft in drafts], [draft.value for draft in drafts]
    return score_texts(answers, values, len(drafts))[1] or 0.0


def _weighted(drafts: Sequence[VotedDraft]) -> float:
    """The score of the vote in which a draft counts by the mean log-probability of its tokens."""
    numbers = [draft.confidence.mean if draft.confidence and draft.answer is not None else None for draft in drafts]
    return drafts[best(votes_for([draft.answer for draft in drafts], weights_of(numbers)), drafts)].value


def _subset(pool: DraftPool, n: int, name: str, shape: ModelShape | None) -> _Measured:
    """The expected score of n drafts over all choices of n: of one draft, of the vote, or of the oracle."""
    place = {"one draft": 0, "majority vote": 1, "oracle": 2}[name]
    scores = {document: pool.scores(document, n)[place] or 0.0 for document in pool.values}
    # The oracle needs the gold answer, so it is a bound.
    source = "bound" if name == "oracle" else "pool"
    flops = _flops(pool.drafts, pool, shape, n / pool.size)
    return _Measured(name if n == 1 else f"{name} of {n}", source, scores, n * pool.tokens, flops)


def _taken(
    name: str,
    kept: Mapping[Document, Sequence[VotedDraft]],
    scores: Scores,
    pool: DraftPool,
    shape: ModelShape | None,
) -> _Measured:
    """A strategy that takes one of the drafts that it keeps."""
    tokens = fmean(sum(draft.tokens for draft in drafts) for drafts in kept.values())
    return _Measured(name, "pool", scores, tokens, _flops(kept, pool, shape))


def _flops(
    kept: Mapping[Document, Sequence[VotedDraft]],
    pool: DraftPool,
    shape: ModelShape | None,
    share: float = 1.0,
    rounds: Mapping[Document, int] | None = None,
) -> float | None:
    """FLOPs a question, if a share of the drafts is generated; see ``draft_flops``."""
    if shape is None:
        return None
    return fmean(
        draft_flops(
            pool.prompt_tokens[document],
            [draft.tokens for draft in drafts],
            shape,
            share,
            rounds[document] if rounds else 1,
        )
        for document, drafts in kept.items()
    )


def _best_of_n(pool: DraftPool, entries: Sequence[RunEntry], score: Score, regex: str | None) -> Iterator[_Measured]:
    """The best draft of the pool by the rewards that a run of ``strategy=best_of_n`` stored.

    A run that chose among as many drafts is a row itself.
    """
    scored = [entry for entry in entries if (entry.run.settings or {}).get("strategy") == "best_of_n"]
    rewards = _rewards(pool, scored, score, regex)
    count = min(map(len, rewards.values()))
    if count < 2 or any(entry.run.k == count for entry in scored):
        return
    drafts = {document: each[:count] for document, each in pool.drafts.items()}
    scores = {key: each[best(rewards[key][:count], each)].value for key, each in drafts.items()}
    notes = ("Its FLOPs are not known, since those of the reward model are not stored.",)
    yield replace(_taken(f"best of {count}, stored rewards", drafts, scores, pool, None), notes=notes)


def _rewards(
    pool: DraftPool, entries: Sequence[RunEntry], score: Score, regex: str | None
) -> dict[Document, list[float]]:
    """The stored rewards of the first drafts of each question."""
    by_seed: dict[tuple[Document, int], float] = {}
    for ballot in (
        each for entry in entries for group in run_ballots(entry, regex).values() for each in group.values()
    ):
        if ballot.task == score.task and not ballot.repeat and ballot.scores:
            for seed, reward in zip(ballot.seeds, ballot.scores, strict=True):
                by_seed[(ballot.doc_id, ballot.doc_hash), seed] = reward
    rewards = {}
    for document, drafts in pool.drafts.items():
        found = (by_seed.get((document, draft.seed)) for draft in drafts)
        rewards[document] = [reward for reward in takewhile(lambda each: each is not None, found) if reward is not None]
    return rewards


# ------------------------------------------------------------------ what was run


def _run(entry: RunEntry, pool: RunEntry, score: Score) -> _Measured | None:
    """A run as it was; None if it has no answers of its own to the task.

    The pool's own answer is a row only if it is no vote of the drafts, which other rows are.
    """
    settings = entry.run.settings or {}
    vote = settings.get("strategy") in ("majority", "weighted") and entry.run.layers == 1
    if entry is pool and (vote or not entry.run.layers or not entry.logged(score.task)):
        return None
    if score.key not in {each.key for each in entry.run.scores_of(score.task)}:
        return None
    samples = samples_by_document(entry, score.task, score.filter)
    scores = {document: sample.score(score.metric) for document, sample in samples.items()}
    ours, theirs = conditions_of(pool.run, score.task), conditions_of(entry.run, score.task)
    notes = [f"Not the same test: {phrase}." for phrase in (group_differences(ours, theirs) if ours and theirs else ())]
    cost = {kind: entry.cost_per_answer(score.task, kind) for kind in ("tokens", "flops")}
    return _Measured(entry.label, "run", scores, cost["tokens"], cost["flops"], tuple(notes))


def _shared_documents(pool: DraftPool, runs: Sequence[_Measured], score: Score, common: bool) -> list[Document]:
    """The questions that the pool and all runs have.

    Raises:
        RecordError: A run answered others and ``common`` is not given, or no question is shared.
    """
    for run in runs:
        apart = sorted(doc_id for doc_id, _ in pool.values.keys() ^ run.scores.keys())
        if apart and not common:
            shown = ", ".join(map(str, apart[:SHOWN_IDS])) + (" and more" if len(apart) > SHOWN_IDS else "")
            raise RecordError(
                f"{run.name} and the pool did not answer the same questions of {score.task} (doc_id {shown}): run both "
                "with the same data and --limit, or give --common to compare those that all answered."
            )
    documents = [document for document in pool.values if all(document in run.scores for run in runs)]
    if not documents:
        raise RecordError(f"the pool and the runs share no question of {score.task}: give runs on the same data.")
    return documents


# ------------------------------------------------------------------ rows


def _row(each: _Measured, pool: DraftPool, level: float) -> StrategyRow:
    documents = list(pool.values)
    scores = [each.scores[document] for document in documents]
    whole = [pool.scores(document, pool.size) for document in documents]
    votes, oracles = [vote or 0.0 for _, vote, _ in whole], [oracle for *_, oracle in whole]
    row = StrategyRow(
        name=each.name,
        source=each.source,
        score=accuracy_interval((doc_id for doc_id, _ in documents), scores, level),
        generated_tokens=each.tokens,
        flops=each.flops,
        gap=gap_closed(scores, votes, oracles, documents, level),
        notes=each.notes,
    )
    if each.tokens is None:
        return replace(row, notes=(*row.notes, "Its tokens are not known, so it is not compared."))
    n, enough = pool.affordable(each.tokens)
    if not enough:
        row = replace(row, notes=(*row.notes, TOO_FEW_DRAFTS))
    equal = [pool.scores(document, n)[1] or 0.0 for document in documents]
    row = replace(row, vote_drafts=n, vote_score=fmean(equal))
    if each.name == "one draft" or each.name.startswith("majority vote of"):
        # It is that vote.
        return row
    test = _test(documents, equal, scores, level)
    return replace(row, difference=test.difference, p_value=test.p_value)


def _test(documents: Sequence[Document], votes: Sequence[float], scores: Sequence[float], level: float) -> PairedTest:
    pairs = PairedScores("", "", "", tuple(documents), ("",) * len(documents), tuple(votes), tuple(scores))
    return paired_test(pairs, level)


def _corrected(rows: Sequence[StrategyRow], score: Score) -> tuple[StrategyRow, ...]:
    """The rows with p-values after Holm's correction over the strategies that are tested."""
    tested = [row.p_value for row in rows if row.source != "bound" and row.p_value is not None]
    corrected = iter(holm(tested) if tested else ())
    return tuple(
        replace(
            row,
            p_holm=next(corrected) if row.source != "bound" and row.p_value is not None else None,
            higher_is_better=score.higher_is_better,
        )
        for row in rows
    )
