"""What the drafts alone would score: the mean draft, the majority vote and the oracle of n drafts.

Others call these numbers avg@n, maj@n and pass@n. If a task has ``repeats``, the answers of a question are further
samples, and they have the same three numbers.

The task's own grades say which drafts are right, and its filter says what they answer. Without grades a regex or a
known extraction finds the answers, and gold answers come from lm-eval's samples.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from statistics import fmean
from typing import Any

from lm_eval_aft.analysis.cost import QuestionKey
from lm_eval_aft.analysis.gap import Gap, gap_closed
from lm_eval_aft.analysis.marking import UNGRADED, Marking, choose_marking, extraction_of, gold_answers
from lm_eval_aft.analysis.replay import ReplayedRule, VotedDraft, replay
from lm_eval_aft.analysis.runs import RunEntry, RunKey, by_run
from lm_eval_aft.analysis.scores import accuracy_interval
from lm_eval_aft.analysis.stats import Interval
from lm_eval_aft.analysis.voting import score_texts
from lm_eval_aft.core.early_stopping import StopRule
from lm_eval_aft.core.errors import ConfigError, RecordError
from lm_eval_aft.core.log import warn_once
from lm_eval_aft.core.records import Confidence, Grade, Trace
from lm_eval_aft.core.usage import ModelShape
from lm_eval_aft.inference.dialogue import answer_of, final_answer, is_empty
from lm_eval_aft.inference.extraction import Extraction, choose_extraction, has_extraction
from lm_eval_aft.storage.draft_files import DraftRow, read_draft_rows


@dataclass(frozen=True, slots=True)
class Ballot:
    """What a vote needs of one trace.

    Attributes:
        task: Name of the task.
        doc_id: Row of the document.
        doc_hash: lm-eval's hash of the document.
        answers: The answer in each draft by an extraction; None if there is none.
        grades: The task's grades of each draft; empty if there are none.
        prompt_tokens: Length of the drafts' prompt.
        tokens: Generated tokens of each draft.
        empty: Drafts that hold no answer: only white space, or a thought.
        final: The answer in the text of the last layer; None if there is none.
        final_grades: The task's grades of that text.
        final_tokens: Generated tokens of the whole trace.
        turn: Which turn of a dialogue.
        seeds: The seed of each draft.
        repeat: Which of the task's repeats.
        confidences: How likely the model found each draft.
        scores: Votes or rewards of the drafts, if the run selected one of them; -inf for a draft without an answer.
    """

    task: str
    doc_id: int
    doc_hash: str
    answers: tuple[str | None, ...]
    grades: tuple[tuple[Grade, ...], ...]
    prompt_tokens: int
    tokens: tuple[int, ...]
    empty: int
    final: str | None
    final_grades: tuple[Grade, ...]
    final_tokens: int
    turn: int = 0
    seeds: tuple[int, ...] = ()
    repeat: int = 0
    confidences: tuple[Confidence | None, ...] = ()
    scores: tuple[float, ...] = ()


# By run, then by question.
Ballots = Mapping[RunKey, Mapping[QuestionKey, Ballot]]


@dataclass(frozen=True, slots=True)
class _Marked:
    """A ballot with the score of each draft, and the last layer's answer with its score.

    ``answers`` is None if there is nothing to vote on.
    """

    ballot: Ballot
    answers: tuple[str | None, ...] | None
    values: tuple[float, ...]
    final: float
    final_answer: str | None = None


@dataclass(frozen=True, slots=True)
class VotePoint:
    """The three scores of n drafts, each a mean over all choices of n of the k drafts.

    Attributes:
        n: Number of drafts.
        mean: Mean accuracy of a draft, also called avg@n.
        majority: Accuracy of the most frequent answer, also called maj@n. Ties are drawn by lot, so this is the
            expected accuracy. None if the task has no answers to vote on.
        oracle: Share of questions that at least one draft answers correctly, also called oracle@n and pass@n. It is the
            unbiased estimator of Chen et al. 2021 (arXiv 2107.03374).
        generated_tokens: A question, for n drafts; None if it is not known.
        flops: A question, for n drafts and their prompt once; None if the shape of their model is unknown.
    """

    n: int
    mean: Interval
    majority: Interval | None
    oracle: Interval
    generated_tokens: float | None
    flops: float | None

    @property
    def named(self) -> dict[str, Interval]:
        """The scores by the names that others use, such as avg@5, maj@5, pass@5 and oracle@5."""
        scores = {"avg": self.mean, "maj": self.majority, "pass": self.oracle, "oracle": self.oracle}
        return {f"{name}@{self.n}": score for name, score in scores.items() if score is not None}


@dataclass(frozen=True, slots=True)
class Votes:
    """The drafts and their aggregate, over the questions of one task under one setting.

    Attributes:
        task: Name of the task.
        k: Drafts a question.
        layers: Aggregation layers after them.
        settings: The traces' settings, as JSON.
        extraction: How answers were found; "" if the task has no answers to vote on.
        silent: Share of drafts in which no answer was found. They do not vote.
        without_gold: Questions that are left out since they have neither a gold answer nor grades.
        points: For n = 1 to k.
        aggregate: Accuracy of the last layer's text by the same rule; None for a file of drafts, which has none.
        aggregate_tokens: Generated tokens a question for that text, drafts included.
        measure: The task's metric that says which texts are right; "" if gold answers say it.
        empty: Share of drafts that are only white space or a thought. They are wrong.
        drafter: The model that wrote the drafts; "" if it is the run's own.
        gap: How much of the gap between the vote and the oracle of all k drafts the answer closes. None if nothing is
            aggregated, or there is no vote.
        answer_points: The same three scores of n answers, for n = 1 to the task's ``repeats``. Empty without repeats.
        replays: The vote over all drafts, and over those that each rule of ``stop_when`` keeps. Empty without rules.
    """

    task: str
    k: int
    layers: int
    settings: str
    extraction: str
    silent: float
    without_gold: int
    points: tuple[VotePoint, ...]
    aggregate: Interval | None
    aggregate_tokens: float | None
    measure: str = ""
    empty: float = 0.0
    drafter: str = ""
    gap: Gap | None = None
    answer_points: tuple[VotePoint, ...] = ()
    replays: tuple[ReplayedRule, ...] = ()

    @property
    def questions(self) -> int:
        """The number of questions that are counted. The repeats of a question belong to it."""
        return self.points[0].mean.n


def count_row_votes(path: Path, regex: str | None = None, level: float = 0.95) -> Votes:
    """Score the drafts of a drafts file, as ``count_votes`` scores those of traces.

    Args:
        path: The file. A verifier has said which drafts are right, or ``regex`` is given and rows have ``gold``.
        regex: Finds answers in drafts and gold answers.
        level: Confidence of the intervals, in (0, 1).

    Raises:
        ConfigError: The regex is not valid, or nothing says which drafts are right.
        RecordError: The file cannot be read, or no row has drafts.
    """
    rows = list(read_draft_rows(path))
    if not rows:
        raise RecordError(f"{path} has no row with drafts: aft data drafts writes such a file.")
    extraction = choose_extraction(path.stem, regex) if regex is not None else None
    marked = [each for row in rows if (each := _mark_row(row, extraction))]
    if not marked:
        raise ConfigError(
            f"{path} does not say which drafts are right: give --regex for rows with a gold answer under gold, or "
            "grade the drafts with aft data select --verifier."
        )
    drafts = [answer for each in marked for answer in each.answers or ()]
    k = min(len(each.values) for each in marked)
    return Votes(
        task=path.stem,
        k=k,
        layers=0,
        settings="{}",
        extraction=extraction.name if extraction else "",
        silent=drafts.count(None) / len(drafts) if drafts else 0.0,
        without_gold=len(rows) - len(marked),
        points=tuple(_point(marked, n, None, level) for n in range(1, k + 1)),
        aggregate=None,
        aggregate_tokens=None,
        measure="" if extraction else "verifier",
        empty=sum(each.ballot.empty for each in marked) / sum(len(each.values) for each in marked),
    )


def _mark_row(row: DraftRow, extraction: Extraction | None) -> _Marked | None:
    """The score of each draft of a row; None if nothing says it."""
    empty = sum(not answer for answer in row.answers)
    ballot = Ballot("", row.number, "", (), (), 0, (), empty, None, (), 0)
    if extraction is None:
        if row.right is None:
            return None
        values = tuple(float(r and bool(a)) for r, a in zip(row.right, row.answers, strict=True))
        return _Marked(ballot, None, values, 0.0)
    truth = extraction.gold(row.gold)
    if not row.gold or truth is None:
        return None
    answers = tuple(map(extraction.answer, row.answers))
    rights = extraction.rights(answers, truth)
    return _Marked(ballot, answers, tuple(float(answer in rights) for answer in answers), 0.0)


def count_votes(
    traces: Iterable[Trace],
    entries: Sequence[RunEntry],
    regex: str | None = None,
    level: float = 0.95,
    strict: bool = True,
    rules: Sequence[StopRule] = (),
) -> tuple[Votes, ...]:
    """Score the drafts of traces, one result for each task and setting among them.

    Args:
        traces: Of any runs; read once, one at a time.
        entries: Runs whose logged samples hold the gold answers, paired on task and hash of the document. Traces with
            grades need none.
        regex: Finds answers instead of the task's own filter.
        level: Confidence of the intervals, in (0, 1).
        strict: Whether a task that cannot be scored is an error or a warning. If not, it is left out without a word.
        rules: Rules of ``stop_when`` that are replayed on the drafts.

    Returns:
        The results. A task whose texts have no grades and whose answers cannot be found has none; a warning names it.

    Raises:
        ConfigError: The regex is not valid, or rules are given for a task without answers to vote on.
        RecordError: There are no gold answers for a task.
    """
    return _count(_ballots(traces, regex), entries, regex, level, strict, rules)


def _ballots(traces: Iterable[Trace], regex: str | None) -> Ballots:
    return by_run(traces, lambda trace: _ballot(trace, extraction_of(trace, regex)))


def run_ballots(entry: RunEntry, regex: str | None = None) -> Ballots:
    """What votes need of the traces of a run. They are read once, and no text stays in memory.

    Args:
        entry: The run.
        regex: Finds answers instead of the tasks' own filters.

    Raises:
        ConfigError: The regex is not valid.
        RecordError: A file cannot be read.
    """
    return entry.once(("ballots", regex), lambda traces: _ballots(traces, regex))


def read_ballots(entries: Iterable[RunEntry], regex: str | None = None) -> None:
    """Read the traces of runs once for their votes and their costs; see ``run_ballots``."""
    for entry in entries:
        run_ballots(entry, regex)


def _count(
    groups: Ballots,
    entries: Sequence[RunEntry],
    regex: str | None,
    level: float,
    strict: bool,
    rules: Sequence[StopRule] = (),
) -> tuple[Votes, ...]:
    documents = {
        (ballot.task, ballot.doc_hash)
        for group in groups.values()
        for ballot in group.values()
        if regex or (not ballot.grades and has_extraction(ballot.task))
    }
    gold = gold_answers(entries, documents, regex)
    shapes = shapes_of(entries)
    counted = []
    for (settings, task, _), group in groups.items():
        ballots = list(group.values())
        graded = [grades for ballot in ballots if ballot.grades for grades in (*ballot.grades, ballot.final_grades)]
        marking = choose_marking(task, graded, entries, regex)
        marked = [each for ballot in ballots if (each := _mark(ballot, marking, gold))]
        if marked:
            votes = _votes(settings, marked, len(ballots) - len(marked), marking, shapes, level)
            if rules and json.loads(settings).get("proposers"):
                warn_once(f"--stop-when is left out for drafts of several models of {task}.")
            elif rules:
                votes = replace(votes, replays=_replays(marked, rules, level))
            counted.append(votes)
        elif strict:
            _refuse(task, marking, bool(graded))
    return tuple(counted)


def _refuse(task: str, marking: Marking, graded: bool) -> None:
    """Warn of a task that cannot be marked, or refuse it if only its gold answers are missing."""
    if marking.extraction is not None or marking.rule is not None:
        raise RecordError(f"there are no gold answers for {task}: give the --output_path of a run with --log_samples.")
    warn_once(f"{task} is left out: {'no metric of it is between 0 and 1' if graded else UNGRADED}.")


def votes_of_run(
    entry: RunEntry, entries: Sequence[RunEntry], regex: str | None = None, level: float = 0.95
) -> tuple[Votes, ...]:
    """The scores of a run's drafts and repeated answers, for each task that has several of either.

    Tasks that cannot be scored have none. A run without traces has none either.

    Args:
        entry: The run.
        entries: Runs whose logged samples may hold the gold answers.
        regex: Finds answers instead of the tasks' own filters.
        level: Confidence of the intervals, in (0, 1).

    Raises:
        RecordError: A file is damaged.
    """
    if entry.trace_folder is None or not _has_several(entry):
        return ()
    counted = _count(run_ballots(entry, regex), [entry, *entries], regex, level, strict=False)
    return tuple(votes for votes in counted if votes.k > 1 or votes.answer_points)


def _has_several(entry: RunEntry) -> bool:
    """Whether a run has several drafts or several answers of a question."""
    once = int((entry.run.settings or {}).get("generations_per_question", 1))
    return (entry.run.width or 1) > 1 or any(cost.generations > once for cost in entry.costs.values())


def shapes_of(entries: Sequence[RunEntry]) -> dict[str, ModelShape]:
    """The shapes of the models, by the fingerprint that their traces carry too."""
    settings = [entry.run.settings for entry in entries if entry.run.settings]
    settings += [row for each in settings for row in each.get("models") or ()]
    return {row["fingerprint"]: ModelShape(**row["model_shape"]) for row in settings if row.get("model_shape")}


def drafter_of(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """Model and fingerprint of the model that wrote the drafts: that of ``drafts_from=``, or the run's own.

    Several proposers count as one model of their joined names and fingerprints.
    """
    source = settings.get("drafts_from")
    settings = source if isinstance(source, Mapping) else settings
    proposers = settings.get("proposers")
    if not proposers:
        return settings
    return {name: " + ".join(str(each[name]) for each in proposers) for name in ("model", "fingerprint")}


def _ballot(trace: Trace, extraction: Extraction | None) -> Ballot:
    question, drafts = trace.question, trace.layer(0)
    answers = [extraction.answer(answer_of(question, draft)) if extraction else None for draft in drafts]
    return Ballot(
        task=question.task,
        doc_id=question.doc_id,
        doc_hash=question.doc_hash,
        answers=tuple(answers),
        grades=trace.grades[: len(drafts)],
        prompt_tokens=drafts[0].completion.prompt_tokens,
        tokens=tuple(draft.completion.generated_tokens for draft in drafts),
        empty=sum(is_empty(question, draft) for draft in drafts),
        final=extraction.answer(final_answer(trace)) if extraction else None,
        final_grades=trace.grades[-1] if trace.grades else (),
        final_tokens=trace.usage.generated_tokens,
        turn=question.turn,
        seeds=tuple(draft.seed for draft in drafts),
        repeat=question.repeat,
        confidences=tuple(draft.completion.confidence for draft in drafts),
        scores=_scores(trace) if len(trace.scores) == len(drafts) else (),
    )


def _scores(trace: Trace) -> tuple[float, ...]:
    """The score of each draft. A text without an answer is the last choice."""
    scored = zip(trace.layer(0), trace.scores, strict=True)
    return tuple(score if answer_of(trace.question, draft).strip() else -inf for draft, score in scored)


def _mark(ballot: Ballot, marking: Marking, gold: Mapping[tuple[str, str], str]) -> _Marked | None:
    """The score of each text; None if neither grades nor a gold answer say it."""
    if rule := marking.rule:
        values = [rule.value(grades) for grades in (*ballot.grades, ballot.final_grades)]
        known = [value for value in values if value is not None]
        if not ballot.grades or len(known) < len(values):
            return None
        answers = tuple(rule.answer(grades) for grades in ballot.grades) if rule.answers else None
        answer = rule.answer(ballot.final_grades) if rule.answers else None
        return _Marked(ballot, answers, tuple(known[:-1]), known[-1], answer)
    truth = gold.get((ballot.task, ballot.doc_hash))
    if truth is None or marking.extraction is None:
        return None
    rights = marking.extraction.rights((*ballot.answers, ballot.final), truth)
    scores = tuple(float(each in rights) for each in ballot.answers)
    return _Marked(ballot, ballot.answers, scores, float(ballot.final in rights), ballot.final)


def _votes(
    settings: str,
    marked: Sequence[_Marked],
    unmarked: int,
    marking: Marking,
    shapes: Mapping[str, ModelShape],
    level: float,
) -> Votes:
    values = json.loads(settings)
    k = min(len(each.values) for each in marked)
    drafts = [answer for each in marked for answer in each.answers or ()]
    drafter = drafter_of(values)
    shape = shapes.get(str(drafter.get("fingerprint")))
    layers = int(values["layers"])
    return Votes(
        task=marked[0].ballot.task,
        k=k,
        layers=layers,
        settings=settings,
        extraction=marking.name,
        silent=drafts.count(None) / len(drafts) if drafts else 0.0,
        without_gold=unmarked,
        points=tuple(_point(marked, n, shape, level) for n in range(1, k + 1)),
        aggregate=accuracy_interval((e.ballot.doc_id for e in marked), (e.final for e in marked), level),
        aggregate_tokens=fmean(each.ballot.final_tokens for each in marked),
        measure=marking.measure,
        empty=sum(each.ballot.empty for each in marked) / sum(len(each.values) for each in marked),
        drafter=str(drafter.get("model")) if drafter is not values else "",
        gap=_gap(marked, level) if layers else None,
        answer_points=_answer_points(marked, level),
    )


def _replays(marked: Sequence[_Marked], rules: Sequence[StopRule], level: float) -> tuple[ReplayedRule, ...]:
    """Rules of ``stop_when`` on the drafts."""
    questions = []
    for each in marked:
        if each.answers is None:
            raise ConfigError(
                f"--stop-when needs answers to vote on, and none can be found for {each.ballot.task}: give --regex, "
                "whose last match is the answer, or --task for another task."
            )
        columns = zip(each.answers, each.values, each.ballot.tokens, each.ballot.seeds, strict=True)
        questions.append([VotedDraft(*column) for column in columns])
    return replay([each.ballot.doc_id for each in marked], questions, rules, level)


def _gap(marked: Sequence[_Marked], level: float) -> Gap | None:
    """How much of the gap between the vote and the oracle of all drafts the answers close; None without a vote."""
    scores = [score_texts(each.answers, each.values, len(each.values)) for each in marked]
    votes = [vote for _, vote, _ in scores if vote is not None]
    if len(votes) < len(scores):
        return None
    oracles = [oracle for *_, oracle in scores]
    return gap_closed([each.final for each in marked], votes, oracles, [each.ballot.doc_id for each in marked], level)


def _answer_points(marked: Sequence[_Marked], level: float) -> tuple[VotePoint, ...]:
    """The scores of n answers of a question, for n up to the task's ``repeats``; empty without repeats."""
    questions: dict[tuple[int, int], list[_Marked]] = {}
    for each in marked:
        questions.setdefault((each.ballot.doc_id, each.ballot.turn), []).append(each)
    samples = [_samples(repeats) for repeats in questions.values()]
    repeats = min(len(each.values) for each in samples)
    return tuple(_point(samples, n, None, level) for n in range(1, repeats + 1)) if repeats > 1 else ()


def _samples(repeats: Sequence[_Marked]) -> _Marked:
    """The answers of a question's repeats, in the place of drafts."""
    answers = None if repeats[0].answers is None else tuple(each.final_answer for each in repeats)
    ballot = replace(repeats[0].ballot, tokens=tuple(each.ballot.final_tokens for each in repeats))
    return _Marked(ballot, answers, tuple(each.final for each in repeats), 0.0)


def _point(marked: Sequence[_Marked], n: int, shape: ModelShape | None, level: float) -> VotePoint:
    means, majorities, oracles = zip(*(score_texts(each.answers, each.values, n) for each in marked), strict=True)
    documents = [each.ballot.doc_id for each in marked]
    voted = [score for score in majorities if score is not None]
    ballots = [each.ballot for each in marked]
    return VotePoint(
        n=n,
        mean=accuracy_interval(documents, means, level),
        majority=accuracy_interval(documents, voted, level) if voted else None,
        oracle=accuracy_interval(documents, oracles, level),
        generated_tokens=fmean(n * fmean(ballot.tokens) for ballot in ballots) if ballots[0].tokens else None,
        flops=fmean(_flops(ballot, n, shape) for ballot in ballots) if shape else None,
    )


def _flops(ballot: Ballot, n: int, shape: ModelShape) -> float:
    """FLOPs of n drafts of mean cost."""
    return draft_flops(ballot.prompt_tokens, ballot.tokens, shape, share=n / len(ballot.tokens))


def draft_flops(start: int, tokens: Sequence[int], shape: ModelShape, share: float = 1.0, rounds: int = 1) -> float:
    """FLOPs of a share of some drafts.

    Args:
        start: Tokens of their prompt.
        tokens: Generated tokens of each draft.
        shape: The shape of their model.
        share: The share.
        rounds: How often the prompt is computed. Inference computes it once for all drafts of a round.
    """
    written = sum(shape.flops(start, start + count) for count in tokens)
    return rounds * float(shape.flops(0, start)) + share * written
