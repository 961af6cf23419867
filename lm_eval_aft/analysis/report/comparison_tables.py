"""Comparisons as sentences and tables, for the terminal, for Markdown and for the page.

Knows no formula: ``compare`` and ``equal_cost`` have them. Called by the command ``aft compare`` and ``report_page``.
A little over 200 lines: four tables, each plain.
"""

from __future__ import annotations

from collections.abc import Sequence

from lm_eval_aft.analysis.comparison import ALPHA, Comparison
from lm_eval_aft.analysis.conditions import votable
from lm_eval_aft.analysis.cost import TaskCost
from lm_eval_aft.analysis.equal_cost import EqualCostBaseline, Pool, equal_cost_baselines, pool_of
from lm_eval_aft.analysis.report.leaderboard import RunEntry
from lm_eval_aft.analysis.report.page.data import Cell, Column, Row, Table
from lm_eval_aft.analysis.report.tables import render
from lm_eval_aft.analysis.stats import Interval
from lm_eval_aft.inference.extraction import choose_extraction

NONE = Cell("-")


def verdicts(found: Sequence[Comparison]) -> list[str]:
    """One sentence for each task of each run."""
    return [_verdict(row) for row in found if not row.category]


def _at_cost(ratio: float | None) -> str:
    said = f"{ratio:.3g}" if ratio else ""
    return f", at {said} times the generated tokens" if said not in ("", "1") else ", at the same tokens" * bool(said)


def _verdict(row: Comparison) -> str:
    unit, scale = _unit(row)
    gain = row.difference.estimate * (1 if row.score.higher_is_better else -1)
    more, less = ("better", "worse") if row.score.ranked else ("higher", "lower")
    p_value = row.p_value if row.p_holm is None else row.p_holm
    apart = f"{abs(scale * gain):.1f}{unit} {more if gain > 0 else less} than" if gain else "level with"
    cost = _at_cost(row.cost_ratio)
    numbers = f"95% {_ends(row.difference, scale)}, p = {_p(p_value)}, n = {row.n}"
    if row.difference.level != 0.95:
        numbers = numbers.replace("95%", f"{100 * row.difference.level:g}%")
    sure = "" if p_value <= ALPHA else "; no difference is shown" + _detectable(row, scale, unit)
    what = "" if row.score.ranked else f" in {row.score.metric}, which is neither better nor worse"
    return f"{row.score.task}: {row.other} is {apart} {row.baseline}{what} ({numbers}){cost}{sure}."


def _detectable(row: Comparison, scale: float, unit: str) -> str:
    if row.detectable is None:
        return ", and this many questions could hardly show one"
    return f", and fewer than {scale * row.detectable:.1f}{unit} would be seen too seldom here"


def _unit(row: Comparison) -> tuple[str, float]:
    """Points of a percentage where both means lie within 0 and 1, else the metric's own unit."""
    shares = 0 <= row.baseline_mean <= 1 and 0 <= row.other_mean <= 1
    return (" points", 100.0) if shares else ("", 1.0)


def _p(value: float) -> str:
    return f"{value:.1e}" if value < 0.001 else f"{value:.3f}"


def _ends(interval: Interval, scale: float) -> str:
    return f"{scale * interval.low:+.1f} to {scale * interval.high:+.1f}"


def tables(
    base: RunEntry,
    others: Sequence[RunEntry],
    found: Sequence[Comparison],
    voters: Sequence[RunEntry],
    regex: str | None,
    level: float,
    form: str,
) -> str:
    """All tables of a comparison, rendered."""
    made = [paired_table(base.label, found), ledger_table([base, *others], found)]
    equal = equal_cost_table(base, others, found, voters, regex, level)
    if equal is not None:
        made.append(equal)
    return render(made, "markdown" if form == "markdown" else "text")


def paired_table(base: str, found: Sequence[Comparison]) -> Table:
    """Every comparison in a row, categories below their task."""
    columns = (
        Column("run"),
        Column("task"),
        Column("n", True, "pairs"),
        Column("baseline", True),
        Column("score", True),
        Column("difference", True, "score minus baseline, with its interval"),
        Column("p", True, "two-sided"),
        Column("p Holm", True, "corrected over the tasks of this run"),
        Column("above/level/below", False, "questions on which it scored above, level with and below the baseline"),
        Column("detectable", True, "least true difference that is found with a chance of 80%"),
        Column("tokens", True, "generated tokens a question by the baseline's"),
    )
    tests = sorted({row.test for row in found})
    notes = [f"Baseline: {base}. Tests: {', '.join(tests)}; intervals: {_methods(found)}."]
    if any(row.category for row in found):
        notes.append("Rows of a category are exploration: their p is not corrected.")
    neither = sorted({row.score.metric for row in found if not row.score.ranked})
    if neither:
        notes.append(f"More of {', '.join(neither)} is neither better nor worse: its p is not corrected.")
    return Table("Paired differences", columns, tuple(map(_paired_row, found)), tuple(notes))


def _methods(found: Sequence[Comparison]) -> str:
    names = {"tango": "Tango", "bca": "bootstrap BCa", "percentile": "bootstrap percentile"}
    return ", ".join(sorted({names.get(row.difference.method, row.difference.method) for row in found}))


def _paired_row(row: Comparison) -> Row:
    _, scale = _unit(row)
    digits = 1 if scale == 100 else 2
    d = row.difference
    shown = f"{scale * d.estimate:+.{digits}f} [{scale * d.low:+.{digits}f}, {scale * d.high:+.{digits}f}]"
    task = f"  {row.category}" if row.category else f"{row.score.task} {row.score.metric}{' %' if scale == 100 else ''}"
    detectable = NONE
    if row.detectable is not None:
        detectable = Cell(f"{scale * row.detectable:.{digits}f}", row.detectable)
    cells = (
        Cell(row.other),
        Cell(task),
        Cell(f"{row.n:,}", row.n),
        Cell(f"{scale * row.baseline_mean:.{digits}f}", row.baseline_mean),
        Cell(f"{scale * row.other_mean:.{digits}f}", row.other_mean),
        Cell(shown, d.estimate),
        Cell(_p(row.p_value), row.p_value),
        NONE if row.p_holm is None else Cell(_p(row.p_holm), row.p_holm),
        Cell(f"{row.counts.wins}/{row.counts.ties}/{row.counts.losses}"),
        detectable,
        NONE if row.cost_ratio is None else Cell(f"x {row.cost_ratio:.3g}", row.cost_ratio),
    )
    return Row(cells, tuple(f"{note}." for note in row.notes))


def ledger_table(entries: Sequence[RunEntry], found: Sequence[Comparison]) -> Table:
    """What each side paid for each task that is compared."""
    columns = (
        Column("run"),
        Column("task"),
        Column("texts", True, "generated texts a question"),
        Column("tokens", True, "generated tokens a question"),
        Column("prompt", True, "prompt tokens a question, each text with its whole prompt"),
        Column("TFLOPs", True, "operations a question, 10^12"),
        Column("cut %", True, "texts that ended at the token limit"),
    )
    tasks = list(dict.fromkeys(row.score.task for row in found))
    rows = [_ledger_row(entry.label, task, entry.costs.get(task)) for task in tasks for entry in entries]
    shared = any(cost and not cost.own for entry in entries for cost in entry.costs.values())
    notes = ("Where a run has no traces of a task, its cost is the mean over all tasks of the run.",) if shared else ()
    return Table("Cost of a question", columns, tuple(rows), notes)


def _ledger_row(label: str, task: str, cost: TaskCost | None) -> Row:
    if cost is None:
        return Row((Cell(label), Cell(task), *[NONE] * 5))
    return Row(
        (
            Cell(label),
            Cell(task),
            Cell(f"{cost.generations:.3g}", cost.generations),
            Cell(f"{cost.generated_tokens:,.0f}", cost.generated_tokens),
            Cell(f"{cost.prompt_tokens:,.0f}", cost.prompt_tokens),
            NONE if cost.flops is None else Cell(f"{cost.flops / 1e12:.3g}", cost.flops),
            Cell(f"{100 * cost.cut / cost.texts:.1f}", cost.cut / cost.texts) if cost.texts else NONE,
        )
    )


def equal_cost_table(
    base: RunEntry,
    others: Sequence[RunEntry],
    found: Sequence[Comparison],
    voters: Sequence[RunEntry],
    regex: str | None,
    level: float,
) -> Table | None:
    """Each run against votes over drafts at its own price; None where no drafts can vote, or not beside the scores."""
    rows: list[Row] = []
    for row in (row for row in found if not row.category and votable(row.score)):
        other = next(entry for entry in others if entry.label == row.other)
        pools = _pools(voters, row.score.task, regex)
        if not pools or ({row.baseline_mean, row.other_mean} - {0.0, 1.0} and row.test != "exact McNemar"):
            continue
        runs = [entry.run for entry in (base, other, *voters)]
        rows += [_equal_row(row, each) for each in equal_cost_baselines(other, row.score, pools, runs, regex, level)]
    if not rows:
        return None
    columns = (
        Column("run"),
        Column("task"),
        Column("opponent"),
        Column("its tokens", True, "generated tokens a question"),
        Column("its score %", True),
        Column("run minus opponent", True, "paired, with its interval"),
        Column("p", True, "sign-flip test, not corrected"),
    )
    tasks = dict.fromkeys(row.cells[1].text for row in rows)
    ways = ", ".join(dict.fromkeys(choose_extraction(task, regex).name for task in tasks))
    notes = (
        "The best draft needs the gold answer: it bounds what choosing among drafts could reach.",
        f"How votes find answers: {ways}; the run has the score that lm-eval gave it.",
    )
    return Table("At the same generated tokens", columns, tuple(rows), notes)


def _pools(voters: Sequence[RunEntry], task: str, regex: str | None) -> list[Pool]:
    """For each model, the drafts of its widest run that has traces; one draft is no vote."""
    widest: dict[str, Pool] = {}
    for entry in voters:
        pool = pool_of(entry, task, regex)
        if pool is None or pool.size < 2:
            continue
        key = str((entry.run.settings or {}).get("fingerprint"))
        if key not in widest or pool.size > widest[key].size:
            widest[key] = pool
    return list(widest.values())


def _equal_row(row: Comparison, opponent: EqualCostBaseline) -> Row:
    d = opponent.difference
    shown = f"{100 * d.estimate:+.1f} [{100 * d.low:+.1f}, {100 * d.high:+.1f}]"
    name = f"{opponent.kind} of {opponent.drafts}, {opponent.pool}"
    notes = (
        () if opponent.enough else ("there are too few drafts for equal cost: give --drafts a run with a larger k.",)
    )
    cells = (
        Cell(row.other),
        Cell(row.score.task),
        Cell(name),
        Cell(f"{opponent.generated_tokens:,.0f}", opponent.generated_tokens),
        Cell(f"{100 * opponent.score.estimate:.1f}", opponent.score.estimate),
        Cell(shown, d.estimate),
        Cell(_p(opponent.p_value), opponent.p_value),
    )
    return Row(cells, notes)
