"""Tables of what drafts and repeated answers alone would score, of one task or of many runs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence

from lm_eval_aft.analysis.replay import ReplayedRule
from lm_eval_aft.analysis.report.tables import (
    NONE,
    Cell,
    Column,
    Row,
    Table,
    count_cell,
    interval_cell,
    number_cell,
    p_cell,
)
from lm_eval_aft.analysis.runs import RunEntry
from lm_eval_aft.analysis.votes import VotePoint, Votes, votes_of_run

ENDS = ("low", "high")
GAP = Column(
    "gap_closed", "gap closed %", True, "(answer - vote) / (oracle - vote) on the same drafts, with its interval", ENDS
)
NAMES = (
    "mean, majority and oracle are avg@n, maj@n and pass@n (or oracle@n). pass@n is the unbiased estimator of Chen "
    "et al. 2021."
)
GAP_NOTE = "Gap closed: (answer - vote) / (oracle - vote), of all drafts of the run itself."


def vote_table(votes: Votes) -> Table:
    """One row for each number of drafts, then for the answer, and for each number of repeated answers."""
    columns = (
        Column("drafts", "drafts", True, "number of drafts; the last rows are of answers"),
        Column("mean", "mean %", True, "mean accuracy of a draft, with its interval", ENDS, ("avg@n",)),
        Column("majority", "majority %", True, "accuracy of the majority vote, ties drawn by lot", ENDS, ("maj@n",)),
        Column(
            "oracle",
            "oracle %",
            True,
            "share of questions that at least one draft answers correctly",
            ENDS,
            ("oracle@n", "pass@n"),
        ),
        Column("generated_tokens", "tokens", True, "generated tokens a question"),
        GAP,
    )
    questions = f"{votes.questions} question{'s' * (votes.questions != 1)}"
    drafter = f", drafts of {votes.drafter}" if votes.drafter else ""
    layers = f", layers={votes.layers}" if votes.aggregate else ""
    title = f"{votes.task}, k={votes.k}{layers}{drafter}: {questions}"
    return Table(title, columns, (*map(_row, votes.points), *_answers(votes)), _notes(votes))


def _answers(votes: Votes) -> Iterator[Row]:
    if votes.aggregate:
        tokens = number_cell(votes.aggregate_tokens, ",.1f")
        gap = interval_cell(votes.gap.closed if votes.gap else None)
        yield Row((Cell("answer"), interval_cell(votes.aggregate), NONE, NONE, tokens, gap))
    for point in votes.answer_points[1:]:
        yield Row((Cell(f"{point.n} answers"), *_row(point).cells[1:]))


def _row(point: VotePoint) -> Row:
    scores = (interval_cell(interval) for interval in (point.mean, point.majority, point.oracle))
    return Row((count_cell(point.n), *scores, number_cell(point.generated_tokens, ",.1f"), NONE))


def _notes(votes: Votes) -> tuple[str, ...]:
    if votes.extraction:
        notes = [f"Answers by {votes.extraction}; {votes.silent:.1%} of the drafts hold no answer."]
    else:
        notes = [f"There is no answer string to vote on; {votes.empty:.1%} of the drafts are empty."]
    if votes.measure:
        judge = "a verifier" if votes.measure == "verifier" else f"the task's {votes.measure}"
        notes.append(f"Right by {judge}; a draft that is empty or only a thought is wrong.")
    notes += ["Each row is the exact mean over all choices of that many of the k drafts.", NAMES]
    if votes.answer_points:
        notes.append(f"The task has {len(votes.answer_points)} repeats, so each question has that many answers.")
    if votes.gap:
        notes.append(votes.gap.sentence or GAP_NOTE)
    if votes.without_gold:
        missing = "grades" if votes.measure else "a gold answer"
        notes.append(f"Left out without {missing}: {votes.without_gold}.")
    return tuple(notes)


def replay_table(votes: Votes) -> Table:
    """What each rule of ``stop_when`` would have scored and saved on the stored drafts."""
    columns = (
        Column("stop_when", "stop_when", title="the rule; the first row keeps all drafts"),
        Column("score", "vote %", True, "accuracy of the vote over the drafts kept, ties decided by seed", ENDS),
        Column("drafts", "drafts", True, "drafts kept, as a mean over questions"),
        Column("generated_tokens", "tokens", True, "generated tokens of the drafts kept, a question"),
        Column("drafts_saved", "drafts saved %", True, "share of all drafts"),
        Column("tokens_saved", "tokens saved %", True, "share of the generated tokens of all drafts"),
        Column("stopped", "stopped %", True, "share of the questions that keep fewer drafts than are stored"),
        Column("difference", "minus vote of all", True, "paired, with its interval", ENDS),
        Column("p", "p", True, "two-sided, not corrected"),
    )
    title = f"{votes.task}: stopping early on {votes.k} stored drafts, {votes.questions:,} questions"
    notes = [f"Answers by {votes.extraction}. Nothing is generated: a run with the rule keeps the same first drafts."]
    if rule := json.loads(votes.settings).get("stop_when"):
        notes.append(f"The stored drafts are those of a run with stop_when={rule}, which ended them early.")
    return Table(title, columns, tuple(map(_replay_row, votes.replays)), tuple(notes))


def _replay_row(replayed: ReplayedRule) -> Row:
    return Row(
        (
            Cell(replayed.rule or "all drafts"),
            interval_cell(replayed.score),
            number_cell(replayed.drafts, ",.2f"),
            number_cell(replayed.generated_tokens, ",.1f"),
            *(
                number_cell(share, ".1f", 100)
                for share in (replayed.drafts_saved, replayed.tokens_saved, replayed.stopped)
            ),
            interval_cell(replayed.difference, signed=True),
            p_cell(replayed.p_value),
        )
    )


def drafts_table(votes: Mapping[str, Sequence[Votes]]) -> Table | None:
    """The three scores of all drafts and of all repeated answers, and the gap closed, for many runs.

    Args:
        votes: The scores of each run by its label.

    Returns:
        A row for each run, task and kind of text; None if there is none.
    """
    rows = [row for label, counted in votes.items() for each in counted for row in _run_rows(label, each)]
    if not rows:
        return None
    columns = (
        Column("run", "run"),
        Column("task", "task"),
        Column("n", "n", True, "questions"),
        Column("k", "k", True, "drafts or repeated answers of a question"),
        Column("texts", "of", title="drafts, or answers if the task has repeats"),
        Column("avg_at_k", "avg@k %", True, "mean accuracy of one text, with its interval", ENDS, ("avg@k",)),
        Column("maj_at_k", "maj@k %", True, "accuracy of the majority vote, ties drawn by lot", ENDS, ("maj@k",)),
        Column("pass_at_k", "pass@k %", True, "share of questions with a right text", ENDS, ("pass@k", "oracle@k")),
        Column("answer", "answer %", True, "accuracy of the run's answer by the same rule", ENDS),
        GAP,
    )
    notes = ["pass@k is also called oracle@k; it is the unbiased estimator of Chen et al. 2021.", GAP_NOTE]
    return Table("The drafts alone", columns, tuple(rows), tuple(notes))


def votes_by_run(entries: Sequence[RunEntry], regex: str | None = None, level: float = 0.95) -> dict[str, list[Votes]]:
    """By the label of each run, the scores of its drafts and repeated answers; see ``votes_of_run``."""
    return {entry.label: list(votes_of_run(entry, entries, regex, level)) for entry in entries}


def _run_rows(label: str, votes: Votes) -> Iterator[Row]:
    gap = votes.gap
    kinds = (("drafts", votes.points if votes.k > 1 else ()), ("answers", votes.answer_points))
    for kind, points in kinds:
        if not points:
            continue
        last = points[-1]
        of_drafts = gap if kind == "drafts" else None
        cells = (
            Cell(label),
            Cell(votes.task),
            count_cell(votes.questions),
            count_cell(last.n),
            Cell(kind),
            *(interval_cell(score) for score in (last.mean, last.majority, last.oracle)),
            interval_cell(votes.aggregate),
            interval_cell(of_drafts.closed if of_drafts else None),
        )
        yield Row(cells, (of_drafts.sentence,) if of_drafts and of_drafts.sentence else ())
