"""The table of all strategies on one pool of drafts."""

from __future__ import annotations

from lm_eval_aft.analysis.comparison import ALPHA
from lm_eval_aft.analysis.conditions import measure_name
from lm_eval_aft.analysis.report.tables import (
    NONE,
    PERCENT,
    Cell,
    Column,
    Row,
    Table,
    count_cell,
    interval_cell,
    number_cell,
    p_cell,
    short_number,
)
from lm_eval_aft.analysis.strategies import Strategies, StrategyRow

ENDS = ("low", "high")


def strategy_table(strategies: Strategies) -> Table:
    """One row for each strategy: first those of the pool, then the runs, then the oracle."""
    columns = (
        Column("strategy", "strategy"),
        Column("source", "source", title="computed from the pool, run, or a bound that no strategy reaches"),
        Column("score", "score %", True, "accuracy, with its interval", ENDS),
        Column("generated_tokens", "tokens", True, "generated tokens a question"),
        Column("tflops", "FLOPs", True, "floating-point operations a question; JSON and CSV state them in 10^12"),
        Column(
            "gap_closed",
            "gap closed %",
            True,
            "(score - vote) / (oracle - vote) on all drafts of the pool, with its interval",
            ENDS,
        ),
        Column("vote_drafts", "vote of", True, "drafts of the pool that cost no more tokens"),
        Column("vote_score", "vote %", True, "accuracy of the majority vote of that many drafts"),
        Column("difference", "minus vote", True, "score minus that vote, paired, with its interval", ENDS),
        Column("p", "p", True, "two-sided, paired by question"),
        Column("p_holm", "p Holm", True, "corrected over the rows"),
        Column("verdict", "verdict", title=f"by p Holm, at most {ALPHA:g}, and the interval, without 0"),
    )
    s = strategies
    title = f"{s.score.task}: strategies on the {s.k} drafts of {s.pool}, {s.questions:,} questions"
    measure = measure_name(s.score.metric, s.score.filter)
    notes = [
        f"Right by {measure}; answers by {s.extraction}. The rows of the pool need no generation.",
        "vote of: as many drafts of the pool as cost no more tokens. Each row is compared with their majority vote.",
        "A row may generate up to one draft more than that vote.",
        "The rows of the pool are the expected scores if lots decide ties. Seeds decide ties in runs, in the weighted "
        "vote and in the best draft by stored rewards.",
        "The oracle takes a right draft if there is one. It needs the gold answer, so it is a bound.",
    ]
    if sentence := s.rows[0].gap.sentence:
        notes.append(sentence)
    return Table(title, columns, tuple(map(_row, s.rows)), tuple(notes))


def _row(row: StrategyRow) -> Row:
    vote = NONE if row.vote_score is None else Cell(PERCENT.text(row.vote_score), row.vote_score)
    cells = (
        Cell(row.name),
        Cell(row.source),
        interval_cell(row.score),
        number_cell(row.generated_tokens, ",.0f"),
        NONE if row.flops is None else Cell(short_number(row.flops), row.flops / 1e12),
        interval_cell(row.gap.closed),
        count_cell(row.vote_drafts),
        vote,
        interval_cell(row.difference, signed=True),
        p_cell(row.p_value),
        p_cell(row.p_holm),
        Cell(row.verdict) if row.verdict else NONE,
    )
    return Row(cells, row.notes)
