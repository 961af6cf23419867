"""``aft report``: a leaderboard of lm-eval runs, ours and any other model's, with what each score cost.

One row a run; scores with lm-eval's standard error; rows that were not the same test as the others are marked with the
reason. Reads result files and traces only. ``compare`` says whether differences are real; ``page`` draws the HTML.
A little over 200 lines with the command.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from lm_eval_aft.analysis.conditions import differences, labels, primary, usual_conditions
from lm_eval_aft.analysis.cost import Cost, TaskCost, find_traces, task_costs
from lm_eval_aft.analysis.report.tables import (
    COST_COLUMNS,
    FORMS,
    NONE,
    Cell,
    Column,
    Form,
    Row,
    Table,
    Unit,
    cost_cells,
    count_cell,
    joined_key,
    render,
    score_cell,
    unit_of,
)
from lm_eval_aft.core.errors import ConfigError, RecordError
from lm_eval_aft.storage.results import EvalRun, Score, read_runs

Measure = tuple[str, str, str]  # task, metric, filter


@dataclass(frozen=True, slots=True)
class RunEntry:
    """One run of a report.

    Attributes:
        run: What lm-eval wrote.
        label: A name that no other entry has.
        traces: Folder of its traces; None where there are none.
        costs: By task; empty for other models than ours.
    """

    run: EvalRun
    label: str
    traces: Path | None
    costs: Mapping[str, TaskCost]

    @property
    def cost(self) -> TaskCost | None:
        """Of all tasks together, by the run's own totals: a task without traces has none of its own to add up."""
        if not self.costs or self.run.usage is None:
            return None
        questions = sum(self.run.conditions[task].questions for task in self.run.tasks)
        texts, cut, empty = (sum(getattr(c, name) for c in self.costs.values()) for name in ("texts", "cut", "empty"))
        return TaskCost("", questions, self.run.usage, texts=texts, cut=cut, empty=empty)

    def price(self, task: str, kind: Cost) -> float | None:
        """What an answer of a task cost, each repeat and turn being one, as votes are priced; None where unknown."""
        cost, settings = self.costs.get(task), self.run.settings
        if cost is None or settings is None:
            return None
        answers = max(cost.questions, cost.usage.generations // int(settings["generations_per_question"]))
        spent = cost.usage.generated_tokens if kind == "tokens" else cost.usage.flops
        return spent / answers or None


def read_entries(folders: Sequence[Path], traces: Path | None = None) -> tuple[RunEntry, ...]:
    """Every run below the folders, each once, with its cost.

    Raises:
        RecordError: A folder holds no run, or a file cannot be read; the message names it.
    """
    found: dict[Path, tuple[EvalRun, Path]] = {}
    for folder in folders:
        for run in read_runs(folder):
            found.setdefault(run.path.resolve(), (run, folder))
    runs = [run for run, _ in found.values()]
    places = [find_traces(run, traces, [root]) if run.settings else None for run, root in found.values()]
    rows = zip(runs, labels(runs), places, strict=True)
    return tuple(RunEntry(run, label, place, task_costs(run, place)) for run, label, place in rows)


def leaderboard(entries: Sequence[RunEntry], every: bool = False) -> Table:
    """The table: one row a run.

    Args:
        entries: Runs of any models.
        every: All metrics and filters instead of one a task.

    Raises:
        RecordError: None of the runs has a score.
    """
    runs = [entry.run for entry in entries]
    measures = _measures(runs, every)
    if not measures:
        files = ", ".join(str(run.path) for run in runs)
        raise RecordError(f"no score in {files}: were they made with --predict_only?")
    units = {measure: _unit(runs, measure) for measure in measures}
    columns = (
        Column("model", "model"),
        Column("k", "k", True, "drafts, and texts per hidden layer"),
        Column("layers", "layers", True, "aggregation layers after the drafts"),
        *(_score_column(measure, measures, unit) for measure, unit in units.items()),
        Column("n", "n", True, "questions, all tasks together"),
        *COST_COLUMNS,
        Column("engine", "engine"),
        Column("judge", "judge"),
    )
    rows = tuple(_row(entry, units, runs) for entry in entries)
    return Table("Scores and cost", columns, rows, _notes(entries, measures))


def _measures(runs: Sequence[EvalRun], every: bool) -> list[Measure]:
    """The columns, in the order in which tasks and metrics first appear."""
    measures: dict[Measure, None] = {}
    for run in runs:
        for task in run.tasks:
            scores = [score for score in run.scores if score.task == task] if every else [primary(run, task)]
            measures |= dict.fromkeys((score.task, score.metric, score.filter) for score in scores)
    return list(measures)


def _score(run: EvalRun, measure: Measure) -> Score | None:
    return next((score for score in run.scores if (score.task, score.metric, score.filter) == measure), None)


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


def _row(entry: RunEntry, units: Mapping[Measure, Unit], runs: Sequence[EvalRun]) -> Row:
    run = entry.run
    judges = sorted({run.conditions[task].judge for task in run.tasks} - {""})
    cells = (
        Cell(entry.label, note=run.path.name),
        count_cell(run.k),
        count_cell(run.layers),
        *(_score_cell(_score(run, measure), unit) for measure, unit in units.items()),
        count_cell(sum(run.conditions[task].questions for task in run.tasks)),
        *cost_cells(entry.cost),
        Cell(_engine(run)),
        Cell(", ".join(judges)) if judges else NONE,
    )
    return Row(cells, _remarks(run, runs))


def _score_cell(score: Score | None, unit: Unit) -> Cell:
    return NONE if score is None else score_cell(score.value, score.stderr, unit, f"{score.n} questions")


def _engine(run: EvalRun) -> str:
    version = f" {run.settings['version']}" if run.settings and run.settings.get("version") else ""
    return f"{run.engine}, aft{version}" if run.settings else f"{run.engine}, lm_eval {run.host_version}".rstrip()


def _remarks(run: EvalRun, runs: Sequence[EvalRun]) -> tuple[str, ...]:
    """Why a row is not the same test as most others, a sentence a task."""
    reasons = {task: differences(usual_conditions(runs, task), run.conditions[task]) for task in run.tasks}
    return tuple(
        f"{task}: not to be compared with the other rows: {'; '.join(phrases)}."
        for task, phrases in reasons.items()
        if phrases
    )


def _notes(entries: Sequence[RunEntry], measures: Sequence[Measure]) -> tuple[str, ...]:
    filters = [f"{task} {metric} is read with filter {name}" for task, metric, name in measures if name != "none"]
    notes = [f"{'; '.join(filters)}."] if filters else []
    notes.append("Scores with lm-eval's standard error; cost is per question.")
    if any(not entry.costs for entry in entries):
        notes.append("The cost of other models than --model aft is not known: run them as --model aft with layers=0.")
    return tuple(notes)


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--traces", type=click.Path(path_type=Path), help="Where record= put the traces, if not below RUNS.")
@click.option("--every", is_flag=True, help="All metrics and filters instead of one a task.")
@click.option("--format", "form", type=click.Choice(FORMS), default="text", show_default=True)
@click.option("--baseline", type=click.Path(path_type=Path), help="One of RUNS to compare the others with in --html.")
@click.option("--html", type=click.Path(path_type=Path), help="Write the page there: tables, curves and all samples.")
@click.option("--model-card", "card", is_flag=True, help="A Markdown block with table, settings and commands.")
def report(
    runs: tuple[Path, ...],
    traces: Path | None,
    every: bool,
    form: Form,
    baseline: Path | None,
    html: Path | None,
    card: bool,
) -> None:
    """Show the runs below RUNS, folders that --output_path named, as one table of scores and cost.

    Runs of any lm-eval model stand in it; rows that were another test than most are marked with the reason.
    """
    if baseline and not html:
        raise ConfigError("--baseline is for --html; on the terminal, aft compare BASELINE OTHER does it.")
    entries = read_entries(runs, traces)
    table = leaderboard(entries, every)
    if card:
        from lm_eval_aft.analysis.report.model_card import model_card

        click.echo(model_card(entries, table))
    else:
        click.echo(render([table], form))
    if html:
        from lm_eval_aft.analysis.report.page.build import write_report

        write_report(html, entries, table, baseline)
        click.echo(f"The page is in {html}.", err=True)
