"""Comparisons of runs as sentences and tables: paired differences, cost, and votes at equal cost."""

from __future__ import annotations

from collections.abc import Sequence

from lm_eval_aft.analysis.comparison import ALPHA, Comparison
from lm_eval_aft.analysis.conditions import votable
from lm_eval_aft.analysis.equal_cost import DraftPool, EqualCostBaseline, draft_pool, equal_cost_baselines
from lm_eval_aft.analysis.report.tables import (
    COST_COLUMNS,
    NONE,
    PERCENT,
    Cell,
    Column,
    Row,
    Table,
    Unit,
    cost_cells,
    count_cell,
    interval_cell,
    number_cell,
    p_cell,
    p_text,
    unit_of,
)
from lm_eval_aft.analysis.runs import RunEntry
from lm_eval_aft.inference.extraction import choose_extraction

METHODS = {"tango": "Tango", "bca": "bootstrap BCa", "percentile": "bootstrap percentile"}


def comparison_sentences(comparisons: Sequence[Comparison]) -> list[str]:
    """One sentence for each task of each run: how much better or worse, how sure, and at what cost."""
    return [_sentence(comparison) for comparison in comparisons if not comparison.category]


def _sentence(comparison: Comparison) -> str:
    c, difference, unit = comparison, comparison.difference, comparison_unit(comparison)
    points = " points" if unit == PERCENT else ""
    gain = difference.estimate * (1 if c.score.higher_is_better else -1)
    more, less = ("better", "worse") if c.score.ranked else ("higher", "lower")
    apart = f"{abs(unit.scale * gain):.1f}{points} {more if gain > 0 else less} than" if gain else "level with"
    metric = "" if c.score.ranked else f" in {c.score.metric}, which is neither better nor worse"
    low, high = (f"{unit.scale * end:+.1f}" for end in (difference.low, difference.high))
    p_value = c.p_value if c.p_holm is None else c.p_holm
    level = f"{100 * difference.level:.10g}%"
    numbers = f"{level} {low} to {high}, p = {p_text(p_value)}, n = {c.n}"
    doubt = "" if p_value <= ALPHA else f"; no difference is shown{_detectable(c, unit, points)}"
    return f"{c.score.task}: {c.other} is {apart} {c.baseline}{metric} ({numbers}){_at_cost(c.cost_ratio)}{doubt}."


def _at_cost(ratio: float | None) -> str:
    if not ratio:
        return ""
    times = f"{ratio:.3g}"
    return ", at the same tokens" if times == "1" else f", at {times} times the generated tokens"


def _detectable(comparison: Comparison, unit: Unit, points: str) -> str:
    if comparison.detectable is None:
        return ", and this many questions could hardly show one"
    return f", and fewer than {unit.scale * comparison.detectable:.1f}{points} would be seen too seldom here"


def comparison_unit(comparison: Comparison) -> Unit:
    """Percent if both means are shares, else the metric's own unit."""
    return unit_of((comparison.baseline_mean, comparison.other_mean))


def comparison_tables(
    base: RunEntry,
    others: Sequence[RunEntry],
    comparisons: Sequence[Comparison],
    voters: Sequence[RunEntry],
    regex: str | None,
    level: float,
) -> tuple[Table, ...]:
    """All tables of a comparison.

    Args:
        base: The baseline run.
        others: The runs that are compared with it.
        comparisons: Their comparisons.
        voters: Runs whose drafts vote at equal cost.
        regex: How votes find answers, instead of the task's own extraction.
        level: Confidence of the intervals.
    """
    equal = equal_cost_table(base, others, comparisons, voters, regex, level)
    found = (paired_table(base.label, comparisons), cost_table([base, *others], comparisons), equal)
    return tuple(table for table in found if table is not None)


def paired_table(base: str, comparisons: Sequence[Comparison]) -> Table:
    """Every comparison in a row, categories below their task; ``base`` is the baseline's label."""
    columns = (
        Column("run", "run"),
        Column("task", "task"),
        Column("n", "n", True, "pairs"),
        Column("baseline", "baseline", True, "mean score of the baseline"),
        Column("score", "score", True, "mean score of the run"),
        Column("difference", "difference", True, "score minus baseline, with its interval", ("low", "high")),
        Column("p", "p", True, "two-sided"),
        Column("p_holm", "p Holm", True, "corrected over the tasks of this run"),
        Column(
            "above_level_below",
            "above/level/below",
            title="questions on which the run scored above, level with and below the baseline",
        ),
        Column("detectable", "detectable", True, "least true difference that is found with a chance of 80%"),
        Column("token_ratio", "tokens", True, "generated tokens a question, divided by the baseline's"),
    )
    tests = sorted({comparison.test for comparison in comparisons})
    notes = [f"Baseline: {base}. Tests: {', '.join(tests)}; intervals: {_methods(comparisons)}."]
    if any(comparison.category for comparison in comparisons):
        notes.append("Rows of a category are exploration: their p is not corrected.")
    unranked = sorted({comparison.score.metric for comparison in comparisons if not comparison.score.ranked})
    if unranked:
        notes.append(f"More of {', '.join(unranked)} is neither better nor worse: its p is not corrected.")
    return Table("Paired differences", columns, tuple(map(_paired_row, comparisons)), tuple(notes))


def _methods(comparisons: Sequence[Comparison]) -> str:
    methods = {comparison.difference.method for comparison in comparisons}
    return ", ".join(sorted(METHODS.get(method, method) for method in methods))


def _paired_row(comparison: Comparison) -> Row:
    c, unit = comparison, comparison_unit(comparison)
    cells = (
        Cell(c.other),
        Cell(f"  {c.category}" if c.category else f"{c.score.task} {c.score.metric}{unit.mark}"),
        count_cell(c.n),
        Cell(unit.text(c.baseline_mean), c.baseline_mean),
        Cell(unit.text(c.other_mean), c.other_mean),
        interval_cell(c.difference, unit, signed=True),
        p_cell(c.p_value),
        p_cell(c.p_holm),
        Cell(f"{c.counts.wins}/{c.counts.ties}/{c.counts.losses}"),
        NONE if c.detectable is None else Cell(unit.text(c.detectable), c.detectable),
        NONE if c.cost_ratio is None else Cell(f"x {c.cost_ratio:.3g}", c.cost_ratio),
    )
    return Row(cells, tuple(f"{note}." for note in c.notes))


def cost_table(entries: Sequence[RunEntry], comparisons: Sequence[Comparison]) -> Table:
    """What each run cost on each task that is compared."""
    columns = (Column("run", "run"), Column("task", "task"), *COST_COLUMNS)
    tasks = list(dict.fromkeys(comparison.score.task for comparison in comparisons))
    rows = [
        Row((Cell(entry.label), Cell(task), *cost_cells(entry.costs.get(task)))) for task in tasks for entry in entries
    ]
    shared = any(cost and not cost.own for entry in entries for cost in entry.costs.values())
    notes = ("If a run has no traces of a task, its cost is the mean over all tasks of the run.",) if shared else ()
    return Table("Cost of a question", columns, tuple(rows), notes)


def equal_cost_table(
    base: RunEntry,
    others: Sequence[RunEntry],
    comparisons: Sequence[Comparison],
    voters: Sequence[RunEntry],
    regex: str | None,
    level: float,
) -> Table | None:
    """Each run against votes over as many drafts as cost the same; see ``comparison_tables`` for the arguments.

    Returns:
        None if no drafts can vote, or if the scores are not right or wrong and a vote cannot be compared with them.
    """
    rows: list[Row] = []
    for comparison in (each for each in comparisons if not each.category and votable(each.score)):
        other = next(entry for entry in others if entry.label == comparison.other)
        pools = _pools(voters, comparison.score.task, regex)
        means = {comparison.baseline_mean, comparison.other_mean}
        if not pools or (means - {0.0, 1.0} and comparison.test != "exact McNemar"):
            continue
        entries = (base, other, *voters)
        baselines = equal_cost_baselines(other, comparison.score, pools, entries, regex, level)
        rows += [_equal_cost_row(comparison, baseline) for baseline in baselines]
    if not rows:
        return None
    columns = (
        Column("run", "run"),
        Column("task", "task"),
        Column("baseline", "baseline"),
        Column("baseline_tokens", "its tokens", True, "generated tokens a question of the baseline"),
        Column("baseline_score", "its score %", True, "accuracy of the baseline", ("low", "high")),
        Column("difference", "run minus baseline", True, "paired, with its interval", ("low", "high")),
        Column("p", "p", True, "sign-flip test, not corrected"),
    )
    tasks = dict.fromkeys(row.cells[1].text for row in rows)
    extractions = ", ".join(dict.fromkeys(choose_extraction(task, regex).name for task in tasks))
    notes = (
        "The best draft needs the gold answer: it is the upper bound of choosing among the drafts.",
        f"How votes find answers: {extractions}; the run has the score that lm-eval gave it.",
    )
    return Table("At the same generated tokens", columns, tuple(rows), notes)


def _pools(voters: Sequence[RunEntry], task: str, regex: str | None) -> list[DraftPool]:
    """For each model, the drafts of its run with the largest k that has traces; one draft is no vote."""
    largest: dict[str, DraftPool] = {}
    for entry in voters:
        pool = draft_pool(entry, task, regex)
        if pool is None or pool.size < 2:
            continue
        model = str((entry.run.settings or {}).get("fingerprint"))
        if model not in largest or pool.size > largest[model].size:
            largest[model] = pool
    return list(largest.values())


def _equal_cost_row(comparison: Comparison, baseline: EqualCostBaseline) -> Row:
    notes = (
        () if baseline.enough else ("there are too few drafts for equal cost: give --drafts a run with a larger k.",)
    )
    cells = (
        Cell(comparison.other),
        Cell(comparison.score.task),
        Cell(f"{baseline.kind} of {baseline.drafts}, {baseline.pool}"),
        number_cell(baseline.generated_tokens, ",.0f"),
        interval_cell(baseline.score, ends=False),
        interval_cell(baseline.difference, signed=True),
        p_cell(baseline.p_value),
    )
    return Row(cells, notes)
