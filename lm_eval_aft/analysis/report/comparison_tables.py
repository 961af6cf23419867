"""Comparisons of runs as sentences and tables: paired differences, cost, and votes at equal cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from lm_eval_aft.analysis.comparison import ALPHA, Comparison
from lm_eval_aft.analysis.conditions import measure_name
from lm_eval_aft.analysis.equal_cost import DraftPool, EqualCostBaseline, draft_pool, equal_cost_baselines
from lm_eval_aft.analysis.report.leaderboard import models_table
from lm_eval_aft.analysis.report.tables import (
    NONE,
    PERCENT,
    Cell,
    Column,
    Row,
    Table,
    Unit,
    cost_cells,
    cost_columns,
    count_cell,
    interval_cell,
    number_cell,
    p_cell,
    p_text,
    ratio_text,
    to_json,
    to_jsonable,
    unit_of,
)
from lm_eval_aft.analysis.report.vote_tables import drafts_table, votes_by_run
from lm_eval_aft.analysis.runs import RunEntry
from lm_eval_aft.analysis.votes import Votes
from lm_eval_aft.core.terminal import message
from lm_eval_aft.storage.results import Score

METHODS = {
    "tango": "Tango",
    "bca": "bootstrap BCa",
    "percentile": "bootstrap percentile",
    "stratified": "Student's t, stratified by task",
}


def comparison_sentences(comparisons: Sequence[Comparison]) -> list[str]:
    """One sentence for each task or group of each run: whether it is better or worse, how sure, and at what cost."""
    return [message(_sentence(comparison)) for comparison in comparisons if not comparison.explores]


def _sentence(comparison: Comparison) -> str:
    c, unit = comparison, comparison_unit(comparison)
    apart = c.verdict if c.verdict in ("better", "worse") else "higher" if c.difference.estimate > 0 else "lower"
    size = unit.text(abs(c.difference.estimate)) + points(unit)
    relation = f"{size} {apart} than" if c.difference.estimate else "level with"
    metric = "" if c.score.ranked else f" in {c.score.metric}, which is neither better nor worse"
    doubt = f"; no difference is shown{_detectable(c, unit)}" if c.verdict == "no difference shown" else ""
    name = c.score.task + ("" if c.score.filter == "none" else f", filter {c.score.filter}")
    numbers = f"({_interval(c, unit)}p = {p_text(c.p)}, n = {c.n:,})"
    return f"{name}: {c.other} is {relation} {c.baseline}{metric} {numbers}{_at_cost(c.cost_ratio)}{doubt}."


def points(unit: Unit, before: str = " ") -> str:
    """The word for a difference of percentages, after ``before``; empty for other units."""
    return f"{before}points" if unit == PERCENT else ""


def _interval(comparison: Comparison, unit: Unit) -> str:
    """The interval with its level, or the words that there is none."""
    difference = comparison.difference
    if not difference.bounded:
        return "no interval, "
    low, high = unit.text(difference.low, signed=True), unit.text(difference.high, signed=True)
    return f"{100 * difference.level:.10g}% {low} to {high}, "


def _at_cost(ratio: float | None) -> str:
    if not ratio:
        return ""
    times = ratio_text(ratio).removeprefix("x ")
    return ", at the same tokens" if times == "1" else f", at {times} times the generated tokens"


def _detectable(comparison: Comparison, unit: Unit) -> str:
    if not comparison.difference.bounded:
        return ""
    if comparison.detectable is None:
        return ", and this many questions can hardly show one"
    return f"; the least difference that is detectable here is {unit.text(comparison.detectable)}{points(unit)}"


def comparison_unit(comparison: Comparison) -> Unit:
    """Percent if both means are shares, else the metric's own unit."""
    return unit_of((comparison.baseline_mean, comparison.other_mean))


def comparisons_json(comparisons: Sequence[Comparison], votes: Mapping[str, Sequence[Votes]]) -> str:
    """The comparisons as a JSON list, each with its verdict and what the other run's drafts score alone.

    Args:
        comparisons: The comparisons.
        votes: The scores of each run's drafts, by its label.
    """
    return to_json(
        [
            {
                **to_jsonable(each),
                "verdict": each.verdict,
                "drafts": [_named_scores(v) for v in votes.get(each.other, ()) if v.task == each.score.task],
            }
            for each in comparisons
        ]
    )


def _named_scores(votes: Votes) -> dict[str, object]:
    """The scores of all drafts and of all repeated answers by their known names, and the gap closed."""
    drafts = votes.points[-1].named if votes.k > 1 else {}
    answers = votes.answer_points[-1].named if votes.answer_points else {}
    return {"drafts": drafts, "answers": answers, "gap_closed": votes.gap.closed if votes.gap else None}


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
        regex: How votes find answers, instead of the task's own filter.
        level: Confidence of the intervals.
    """
    equal = equal_cost_table(list(equal_costs(base, others, comparisons, voters, regex, level)))
    runs = [base, *others]
    drafts = drafts_table(votes_by_run(runs, regex, level))
    costs = cost_table(runs, comparisons), models_table(runs)
    found = (paired_table(base.label, comparisons), *costs, drafts, equal)
    return tuple(table for table in found if table is not None)


def paired_table(base: str, comparisons: Sequence[Comparison]) -> Table:
    """Every comparison in a row, its categories and members below it; ``base`` is the baseline's label."""
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
            "wins/ties/losses",
            title="questions on which the run scored more than the baseline, the same, and less",
        ),
        Column("detectable", "detectable", True, "least true difference that is found with a chance of 80%"),
        Column("token_ratio", "tokens", True, "generated tokens a question, divided by the baseline's"),
        Column("verdict", "verdict", title=f"by p Holm, at most {ALPHA:g}, and the interval, without 0"),
    )
    tests = sorted({comparison.test for comparison in comparisons})
    notes = [f"Baseline: {base}. Tests: {', '.join(tests)}; intervals: {_methods(comparisons)}."]
    notes.append("detectable: the least true difference that this many questions show with a chance of 80%.")
    filters = dict.fromkeys(_filter_phrase(comparison) for comparison in comparisons if not comparison.explores)
    filters.pop("", None)
    if filters:
        notes.append(f"{'; '.join(filters)}.")
    if any(comparison.explores for comparison in comparisons):
        notes.append("Rows of a category or of a member of a group are exploration: their p is not corrected.")
    unranked = sorted({comparison.score.metric for comparison in comparisons if not comparison.score.ranked})
    if unranked:
        notes.append(f"More of {', '.join(unranked)} is neither better nor worse: its p is not corrected.")
    return Table("Paired differences", columns, tuple(map(_paired_row, comparisons)), tuple(notes))


def _methods(comparisons: Sequence[Comparison]) -> str:
    methods = {comparison.difference.method for comparison in comparisons}
    return ", ".join(sorted(METHODS.get(method, method) for method in methods))


def _filter_phrase(comparison: Comparison) -> str:
    """Which filter a score is read with; empty if there is none to tell."""
    task, metric, name = comparison.score.key
    return "" if name == "none" else f"{task} {metric} is read with filter {name}"


def _paired_row(comparison: Comparison) -> Row:
    cells = comparison_cells(comparison)
    names = (Cell(comparison.other), Cell(f"{'  ' * comparison.explores}{part_name(comparison)}{_measure(comparison)}"))
    return Row((*names, *cells.values()), tuple(f"{note}." for note in comparison.notes))


def measure(score: Score, unit: Unit) -> str:
    """The metric with its filter, if it has one, and its unit."""
    return measure_name(score.metric, score.filter) + unit.mark.replace(" ", ", ")


def part_name(comparison: Comparison) -> str:
    """What a comparison is of: a task, a group, or a category."""
    return comparison.category or comparison.score.task


def _measure(comparison: Comparison) -> str:
    return "" if comparison.category else f" {comparison.score.metric}{comparison_unit(comparison).mark}"


def comparison_cells(comparison: Comparison) -> dict[str, Cell]:
    """The numbers of a comparison, by the key of their column. The terminal, cards and the page show these texts."""
    c, unit = comparison, comparison_unit(comparison)
    return {
        "n": count_cell(c.n),
        "baseline": Cell(unit.text(c.baseline_mean), c.baseline_mean),
        "score": Cell(unit.text(c.other_mean), c.other_mean),
        "difference": interval_cell(c.difference, unit, signed=True),
        "p": p_cell(c.p_value),
        "p_holm": p_cell(c.p_holm),
        "above_level_below": Cell(f"{c.counts.wins:,}/{c.counts.ties:,}/{c.counts.losses:,}"),
        "detectable": NONE if c.detectable is None else Cell(unit.text(c.detectable), c.detectable),
        "token_ratio": NONE if c.cost_ratio is None else Cell(ratio_text(c.cost_ratio), c.cost_ratio),
        "verdict": Cell(c.verdict),
    }


def cost_table(entries: Sequence[RunEntry], comparisons: Sequence[Comparison]) -> Table:
    """What each run cost on each task that is compared."""
    tasks = list(dict.fromkeys(comparison.score.task for comparison in comparisons))
    costs = [(entry.label, task, entry.cost_of(task)) for task in tasks for entry in entries]
    shown = cost_columns(cost for _, _, cost in costs)
    columns = (Column("run", "run"), Column("task", "task"), *shown)
    rows = [Row((Cell(label), Cell(task), *cost_cells(cost, shown))) for label, task, cost in costs]
    unknown = any(entry.cost and entry.cost_of(task) is None for task in tasks for entry in entries)
    notes = ("Only traces tell the cost of one task among several: run with record=DIR.",) if unknown else ()
    return Table("Cost of a question", columns, tuple(rows), notes)


def equal_cost_table(found: Sequence[tuple[Comparison, EqualCostBaseline]]) -> Table | None:
    """Each run against votes over as many drafts as cost the same; None if there are none. See ``equal_costs``."""
    rows = [_equal_cost_row(comparison, baseline) for comparison, baseline in found]
    extractions = dict.fromkeys(baseline.extraction for _, baseline in found if baseline.extraction)
    if not rows:
        return None
    columns = (
        Column("run", "run"),
        Column("task", "task"),
        Column("baseline", "baseline"),
        Column("baseline_tokens", "baseline tokens", True, "generated tokens a question of the baseline"),
        Column("baseline_score", "baseline score %", True, "accuracy of the baseline", ("low", "high")),
        Column("difference", "run minus baseline", True, "paired, with its interval", ("low", "high")),
        Column("p", "p", True, "sign-flip test, not corrected"),
    )
    how = f"How votes find answers: {', '.join(extractions)}; " if extractions else ""
    notes = (
        "best draft: the right draft if there is one. It needs the gold answer, so it bounds any selection.",
        f"{how}the run has the score that lm-eval gave it.",
    )
    return Table("At the same generated tokens", columns, tuple(rows), notes)


def equal_costs(
    base: RunEntry,
    others: Sequence[RunEntry],
    comparisons: Sequence[Comparison],
    voters: Sequence[RunEntry],
    regex: str | None,
    level: float,
) -> Iterator[tuple[Comparison, EqualCostBaseline]]:
    """Each comparison with the votes of as many drafts as cost the same; see ``comparison_tables`` for the arguments.

    A run whose scores are not right or wrong is left out, and so are categories and members.
    """
    pools: dict[tuple[str, str, str], list[DraftPool]] = {}
    for comparison in (each for each in comparisons if not each.explores):
        other = next(entry for entry in others if entry.label == comparison.other)
        means = {comparison.baseline_mean, comparison.other_mean}
        if means - {0.0, 1.0} and comparison.test != "exact McNemar":
            continue
        key = comparison.score.key
        if key not in pools:
            pools[key] = _pools(voters, comparison.score, (base, *others, *voters), regex)
        for baseline in equal_cost_baselines(other, comparison.score, pools[key], level):
            yield comparison, baseline


def _pools(voters: Sequence[RunEntry], score: Score, entries: Sequence[RunEntry], regex: str | None) -> list[DraftPool]:
    """For each model, the drafts of its run with the largest k that has traces; one draft is no vote."""
    largest: dict[str, DraftPool] = {}
    for entry in voters:
        pool = draft_pool(entry, score, entries, regex)
        if pool is None or pool.size < 2:
            continue
        if pool.model not in largest or pool.size > largest[pool.model].size:
            largest[pool.model] = pool
    return list(largest.values())


TOO_FEW_DRAFTS = "too few drafts for equal cost: run the model with a larger k, and name that run with --drafts."


def _equal_cost_row(comparison: Comparison, baseline: EqualCostBaseline) -> Row:
    notes = () if baseline.enough else (TOO_FEW_DRAFTS,)
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
