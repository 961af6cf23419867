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
from lm_eval_aft.analysis.report.page.data import Cell, Column, Row, Table
from lm_eval_aft.analysis.report.tables import FORMS, Form, render
from lm_eval_aft.core.errors import ConfigError, RecordError
from lm_eval_aft.storage.results import EvalRun, Score, read_runs

NONE = Cell("-")
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
    """The table: one row an entry.

    Args:
        entries: Of any models.
        every: All metrics and filters instead of one a task.

    Raises:
        RecordError: None of the runs has a score.
    """
    runs = [entry.run for entry in entries]
    measures = _measures(runs, every)
    if not measures:
        read = ", ".join(str(run.path) for run in runs)
        raise RecordError(f"no score in {read}: were they made with --predict_only?")
    percent = {measure: _is_share(runs, measure) for measure in measures}
    columns = [Column("model"), Column("k", True, "texts per layer"), Column("layers", True, "aggregation passes")]
    columns += [Column(_head(measure, percent[measure]), True, _title(measure)) for measure in measures]
    columns += [
        Column("n", True, "questions, all tasks together"),
        Column("texts", True, "generated texts a question"),
        Column("tokens", True, "generated tokens a question"),
        Column("prompt", True, "prompt tokens a question, each text with its whole prompt"),
        Column("TFLOPs", True, "operations a question, 10^12"),
        Column("cut %", True, "texts that ended at the token limit"),
        Column("engine"),
        Column("judge"),
    ]
    rows = tuple(_row(entry, measures, percent, runs) for entry in entries)
    return Table("Scores and cost", tuple(columns), rows, _notes(entries, measures))


def _measures(runs: Sequence[EvalRun], every: bool) -> list[Measure]:
    """The columns: in the order in which tasks and metrics first appear."""
    found: dict[Measure, None] = {}
    for run in runs:
        for task in run.tasks:
            scores = [s for s in run.scores if s.task == task] if every else [primary(run, task)]
            found |= dict.fromkeys((s.task, s.metric, s.filter) for s in scores)
    return list(found)


def _score(run: EvalRun, measure: Measure) -> Score | None:
    return next((s for s in run.scores if (s.task, s.metric, s.filter) == measure), None)


def _is_share(runs: Sequence[EvalRun], measure: Measure) -> bool:
    """Whether a metric lies between 0 and 1 in every run, so that percent is how it is read."""
    values = [score.value for run in runs if (score := _score(run, measure))]
    return all(0 <= value <= 1 for value in values)


def _head(measure: Measure, percent: bool) -> str:
    task, metric, _ = measure
    return f"{task} {metric}{' %' if percent else ''}"


def _title(measure: Measure) -> str:
    task, metric, name = measure
    return f"{metric} of {task}" + ("" if name == "none" else f", filter {name}") + ", with its standard error"


def _row(entry: RunEntry, measures: Sequence[Measure], percent: Mapping[Measure, bool], runs: Sequence[EvalRun]) -> Row:
    run, cost = entry.run, entry.cost
    cells = [Cell(entry.label, note=run.path.name), _count(run.k), _count(run.layers)]
    cells += [_score_cell(_score(run, measure), percent[measure]) for measure in measures]
    cells.append(_count(sum(run.conditions[task].questions for task in run.tasks)))
    cells += [_mean(cost, name, form) for name, form in _COSTS]
    cells += [_flops(cost), _cut(cost), Cell(_engine(run))]
    judges = sorted({run.conditions[task].judge for task in run.tasks} - {""})
    cells.append(Cell(", ".join(judges)) if judges else NONE)
    return Row(tuple(cells), _remarks(run, runs))


_COSTS = (("generations", ",.3g"), ("generated_tokens", ",.0f"), ("prompt_tokens", ",.0f"))


def _count(number: int | None) -> Cell:
    return NONE if number is None else Cell(f"{number:,}", number)


def _score_cell(score: Score | None, percent: bool) -> Cell:
    if score is None:
        return NONE
    scale, digits = (100, 1) if percent else (1, 2)
    spread = "" if score.stderr is None else f" ± {scale * score.stderr:.{digits}f}"
    return Cell(f"{scale * score.value:.{digits}f}{spread}", score.value, f"{score.n} questions")


def _mean(cost: TaskCost | None, name: str, form: str) -> Cell:
    """A cost a question, over all tasks together."""
    if cost is None:
        return NONE
    value = getattr(cost, name)
    return Cell(f"{value:{form}}", value)


def _flops(cost: TaskCost | None) -> Cell:
    if cost is None or cost.flops is None:
        return NONE
    value = cost.flops / 1e12
    return Cell(f"{value:.3g}", value)


def _cut(cost: TaskCost | None) -> Cell:
    if cost is None or not cost.texts:
        return NONE
    share = cost.cut / cost.texts
    return Cell(f"{100 * share:.1f}", share)


def _engine(run: EvalRun) -> str:
    version = f" {run.settings['version']}" if run.settings and run.settings.get("version") else ""
    return f"{run.engine}, aft{version}" if run.settings else f"{run.engine}, lm_eval {run.host_version}".rstrip()


def _remarks(run: EvalRun, runs: Sequence[EvalRun]) -> tuple[str, ...]:
    """Why a row is not the same test as most others, a sentence a task."""
    said = []
    for task in run.tasks:
        found = differences(usual_conditions(runs, task), run.conditions[task])
        if found:
            said.append(f"{task}: not to be compared with the other rows: {'; '.join(found)}.")
    return tuple(said)


def _notes(entries: Sequence[RunEntry], measures: Sequence[Measure]) -> tuple[str, ...]:
    filters = [f"{task} {metric} is read with filter {name}" for task, metric, name in measures if name != "none"]
    said = [f"{'; '.join(filters)}."] if filters else []
    said.append("Scores with lm-eval's standard error; cost is per question.")
    if any(not entry.costs for entry in entries):
        said.append("The cost of other models than --model aft is not known: run them as --model aft with layers=0.")
    return tuple(said)


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
