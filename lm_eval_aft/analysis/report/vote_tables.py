"""The table of what the drafts alone would score, beside their aggregate."""

from __future__ import annotations

from collections.abc import Iterator

from lm_eval_aft.analysis.report.tables import NONE, Cell, Column, Row, Table, count_cell, interval_cell, number_cell
from lm_eval_aft.analysis.votes import VotePoint, Votes


def vote_table(votes: Votes) -> Table:
    """One row for each number of drafts, and one for the answer."""
    ends = ("low", "high")
    columns = (
        Column("drafts", "drafts", True, "number of drafts; the last row is the answer"),
        Column("mean", "mean %", True, "mean accuracy of a draft, with its interval", ends),
        Column("majority", "majority %", True, "accuracy of the majority vote, ties drawn by lot", ends),
        Column("oracle", "oracle %", True, "share of questions that at least one draft answers correctly", ends),
        Column("generated_tokens", "tokens", True, "generated tokens a question"),
    )
    questions = f"{votes.questions} question{'s' * (votes.questions != 1)}"
    drafter = f", drafts of {votes.drafter}" if votes.drafter else ""
    layers = f", layers={votes.layers}" if votes.aggregate else ""
    title = f"{votes.task}, k={votes.k}{layers}{drafter}: {questions}"
    return Table(title, columns, (*map(_row, votes.points), *_answer(votes)), _notes(votes))


def _answer(votes: Votes) -> Iterator[Row]:
    if votes.aggregate:
        tokens = number_cell(votes.aggregate_tokens, ",.1f")
        yield Row((Cell("answer"), interval_cell(votes.aggregate), NONE, NONE, tokens))


def _row(point: VotePoint) -> Row:
    scores = (interval_cell(interval) for interval in (point.mean, point.majority, point.oracle))
    return Row((count_cell(point.n), *scores, number_cell(point.generated_tokens, ",.1f")))


def _notes(votes: Votes) -> tuple[str, ...]:
    if votes.extraction:
        notes = [f"Answers by {votes.extraction}; {votes.silent:.1%} of the drafts hold no answer."]
    else:
        notes = [f"There is no answer string to vote on; {votes.empty:.1%} of the drafts are empty."]
    if votes.measure:
        judge = "a verifier" if votes.measure == "verifier" else f"the task's {votes.measure}"
        notes.append(f"Right by {judge}; a draft that is empty or only a thought is wrong.")
    notes.append("Each row is the exact mean over all choices of that many of the k drafts.")
    if votes.without_gold:
        missing = "grades" if votes.measure else "a gold answer"
        notes.append(f"Left out without {missing}: {votes.without_gold}.")
    return tuple(notes)
