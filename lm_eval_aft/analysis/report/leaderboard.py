"""The leaderboard: one row a run, with the scores and the cost of each.

Scores carry lm-eval's standard error. A row that was not the same test as the others is marked with the reason. A group
to which lm-eval gives a score has a column in place of its tasks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import isfinite

from lm_eval_aft.analysis.conditions import primary_score, unusual_conditions
from lm_eval_aft.analysis.cost import TaskCost
from lm_eval_aft.analysis.groups import listed_names, question_count
from lm_eval_aft.analysis.report.tables import (
    NONE,
    Cell,
    Column,
    Row,
    Table,
    Unit,
    cost_cells,
    cost_columns,
    count_cell,
    joined_key,
    score_cell,
    unit_of,
)
from lm_eval_aft.analysis.runs import RunEntry
from lm_eval_aft.core.errors import RecordError
from lm_eval_aft.storage.results import EvalRun, Score

# Task, metric and filter: what a score column shows.
Measure = tuple[str, str, str]


def leaderboard(entries: Sequence[RunEntry], every: bool = False, members: bool = False) -> Table:
    """The table: one row a run.

    Args:
        entries: Runs of any models.
        every: All metrics and filters instead of one for each task or group.
        members: Also the tasks and groups within each group.

    Raises:
        RecordError: None of the runs has a score.
    """
    runs = [entry.run for entry in entries]
    measures = _measures(runs, every, members)
    if not measures:
        files = ", ".join(str(run.path) for run in runs)
        raise RecordError(f"no score in {files}: run lm_eval without --predict_only.")
    units = {measure: _unit(runs, measure) for measure in measures}
    costs = cost_columns(entry.cost for entry in entries)
    columns = (
        Column("model", "model"),
        Column("k", "k", True, "drafts, and texts per hidden layer"),
        Column("layers", "layers", True, "aggregation layers after the drafts"),
        *(_score_column(measure, measures, unit) for measure, unit in units.items()),
        Column("n", "n", True, "questions of each task or group"),
        *costs,
        Column("engine", "engine"),
        Column("judge", "judge"),
    )
    rows = tuple(_row(entry, units, runs, costs) for entry in entries)
    return Table("Scores and cost", columns, rows, _notes(entries, measures))


def models_table(entries: Sequence[RunEntry]) -> Table | None:
    """The cost of a question by model, of the runs with several models; None if there is none."""
    costs: list[tuple[str, str, TaskCost]] = []
    for entry in entries:
        questions = sum(conditions.questions for conditions in entry.run.conditions.values())
        for name, usage in entry.run.usage_by_model.items():
            money = entry.run.money_by_model.get(name)
            costs.append((entry.label, name, TaskCost("", questions, usage, total_money=money)))
    all_columns = cost_columns(cost for _, _, cost in costs)
    # Nothing tells which model wrote the texts that ended at the token limit.
    shown = [place for place, column in enumerate(all_columns) if column.key != "cut"]
    rows = []
    for label, name, cost in costs:
        cells = cost_cells(cost, all_columns)
        rows.append(Row((Cell(label), Cell(name), *(cells[place] for place in shown))))
    columns = (Column("run", "run"), Column("model", "model"), *(all_columns[place] for place in shown))
    return Table("Cost of a question by model", columns, tuple(rows)) if rows else None


def _measures(runs: Sequence[EvalRun], every: bool, members: bool) -> list[Measure]:
    """The columns, in the order in which tasks and metrics first appear."""
    measures: dict[Measure, None] = {}
    for run in runs:
        for name in listed_names(run, members):
            scores = run.scores_of(name) if every else [primary_score(run, name)]
            measures |= dict.fromkeys(score.key for score in scores)
    return list(measures)


def _score(run: EvalRun, measure: Measure) -> Score | None:
    return next((score for score in run.scores_of(measure[0]) if score.key == measure), None)


def _unit(runs: Sequence[EvalRun], measure: Measure) -> Unit:
    return unit_of(score.value for run in runs if (score := _score(run, measure)))


def _score_column(measure: Measure, measures: Sequence[Measure], unit: Unit) -> Column:
    """The head names the filter if the table has the metric under several."""
    task, metric, filter_name = measure
    several = sum(other[:2] == (task, metric) for other in measures) > 1
    label = f"{task} {metric}{f', {filter_name}' if several else ''}{unit.mark}"
    filtered = "" if filter_name == "none" else f", filter {filter_name}"
    title = f"{metric} of {task}{filtered}, with its standard error"
    return Column(joined_key(*measure), label, True, title, ("stderr",))


def _row(entry: RunEntry, units: Mapping[Measure, Unit], runs: Sequence[EvalRun], costs: Sequence[Column]) -> Row:
    run = entry.run
    judges = sorted({run.conditions[task].judge for task in run.tasks} - {""})
    cells = (
        Cell(entry.label, note=run.path.name),
        count_cell(run.width),
        count_cell(run.layers),
        *(_score_cell(_score(run, measure), unit) for measure, unit in units.items()),
        _count_cell(run),
        *cost_cells(entry.cost, costs),
        Cell(_engine(run)),
        Cell(", ".join(judges)) if judges else NONE,
    )
    return Row(cells, (*_remarks(run, runs), *_cut_remark(entry)))


def _score_cell(score: Score | None, unit: Unit) -> Cell:
    return NONE if score is None else score_cell(score.value, score.stderr, unit, f"{score.n} questions")


def _engine(run: EvalRun) -> str:
    version = f" {run.settings['version']}" if run.settings and run.settings.get("version") else ""
    return f"{run.engine}, aft{version}" if run.settings else f"{run.engine}, lm_eval {run.host_version}".rstrip()


def _count_cell(run: EvalRun) -> Cell:
    """The questions of a task or group; of several with different numbers, the least and the most."""
    counts = sorted({question_count(run, name) for name in listed_names(run)})
    return count_cell(counts[0]) if len(counts) == 1 else Cell(f"{counts[0]:,} to {counts[-1]:,}") if counts else NONE


def _remarks(run: EvalRun, runs: Sequence[EvalRun]) -> Iterator[str]:
    """Why a row is not the same test as most others, a sentence for each task or group; and scores without a value."""
    for name in listed_names(run):
        if phrases := unusual_conditions(run, runs, name):
            yield f"{name}: do not compare this row with the others: {'; '.join(phrases)}."
    for score in (*run.scores, *(score for group in run.groups.values() for score in group.scores)):
        if not isfinite(score.value):
            yield f"{score.task}: {score.metric},{score.filter} is not a finite number."


def _cut_remark(entry: RunEntry) -> tuple[str, ...]:
    """A sentence if drafts were cut to fit the context, which makes the run worse than its k and layers say."""
    cut = entry.cuts().sentence()
    return (f"{cut[0].upper()}{cut[1:]}.",) if cut else ()


def _notes(entries: Sequence[RunEntry], measures: Sequence[Measure]) -> tuple[str, ...]:
    filters = [f"{task} {metric} is read with filter {name}" for task, metric, name in measures if name != "none"]
    notes = [f"{'; '.join(filters)}."] if filters else []
    several = any(len(entry.run.conditions) > 1 for entry in entries)
    notes.append(f"Scores with lm-eval's standard error; cost is per question{', all tasks together' * several}.")
    notes.append("Prompt tokens: each generation counts its whole prompt. Truncated: ended at the token limit.")
    if any(entry.cost is None for entry in entries):
        notes.append("The cost of other models than --model aft is not known: run them as --model aft with layers=0.")
    return tuple(notes)
