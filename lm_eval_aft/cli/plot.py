"""``aft plot``: figures of scores at equal cost, against k and layers, of frontiers, and of training losses."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

import click

from lm_eval_aft.analysis.conditions import primary_score
from lm_eval_aft.analysis.cost import Cost
from lm_eval_aft.analysis.curves import Curves, curves, finished_runs, votes_of
from lm_eval_aft.analysis.frontier import Frontier, frontiers
from lm_eval_aft.analysis.groups import listed_names
from lm_eval_aft.analysis.losses import read_losses
from lm_eval_aft.analysis.report.figures import draw_costs, draw_curves, draw_frontier, draw_losses
from lm_eval_aft.analysis.report.frontier_tables import frontier_table
from lm_eval_aft.analysis.report.tables import FORMS, Form, render
from lm_eval_aft.analysis.runs import RunEntry, read_entries, stored_traces, traces_below
from lm_eval_aft.analysis.scores import score_interval
from lm_eval_aft.analysis.stats import Interval
from lm_eval_aft.analysis.votes import Votes
from lm_eval_aft.cli.options import MEMBERS, REGEX, traces_option
from lm_eval_aft.cli.paths import PATH
from lm_eval_aft.core.errors import ConfigError, RecordError
from lm_eval_aft.core.files import file_name
from lm_eval_aft.core.records import Trace
from lm_eval_aft.core.terminal import note, show, visible
from lm_eval_aft.storage.results import Score, results_files


@click.command()
@click.argument("out", type=PATH, nargs=-1, required=True)
@traces_option("OUT")
@click.option("--png", type=PATH, help="Folder of the figures. The default is the first OUT.")
@click.option(
    "--cost",
    type=click.Choice(["tokens", "flops"]),
    help="Cost to draw. The default is tokens. With --curves or --frontier it is flops if every run has them.",
)
@REGEX
@click.option("--curves", "by_setting", is_flag=True, help="Draw scores against k, against layers and against cost.")
@click.option("--frontier", is_flag=True, help="Draw and print the best score of each model at each cost.")
@click.option("--format", "form", type=click.Choice(FORMS), help="Form of the table that --frontier prints.")
@MEMBERS
@click.option("--training", is_flag=True, help="Draw the loss curves of the training runs below OUT.")
def plot(
    out: tuple[Path, ...],
    traces: Path | None,
    png: Path | None,
    cost: Cost | None,
    regex: str | None,
    by_setting: bool,
    frontier: bool,
    form: Form | None,
    members: bool,
    training: bool,
) -> None:
    """Draw the scores of all runs below OUT against the tokens that they generated.

    There is a figure for each task or group, as PNG and as SVG. It shows each run, and the majority vote of the drafts
    in the traces. With --curves there is a figure for each metric and filter, of runs that differ in k and layers.
    """
    if form and not frontier:
        raise ConfigError(f"--format {form} is for the table that --frontier prints: add --frontier.")
    folder = png or (out[0].parent if out[0].suffix == ".json" else out[0])
    if training:
        _plot_losses(out, folder)
        return
    entries = read_entries(out, traces)
    votes = votes_of(entries, _drafted(out, traces, entries), regex)
    if by_setting:
        _plot_curves(curves(entries, votes, members=members), cost, folder)
    elif frontier:
        _plot_frontiers(_frontiers(finished_runs(entries), votes, cost, members), form or "text", folder)
    else:
        _plot_costs(_frontiers(finished_runs(entries), votes, cost or "tokens", members), folder)


def _drafted(out: Sequence[Path], traces: Path | None, entries: Sequence[RunEntry]) -> Iterator[Trace]:
    """The traces of all runs: those in ``traces`` if it is given, else those of each path."""
    for path in [traces] if traces else out:
        if path.is_dir():
            yield from traces_below(path, entries)
        else:
            files = {file.resolve() for file in results_files(path)}
            yield from stored_traces(path, [entry for entry in entries if entry.run.path.resolve() in files])


def _plot_curves(figures: Sequence[Curves], cost: Cost | None, folder: Path) -> None:
    """Draw each figure. A message names those of a single point, which say nothing that a table does not."""
    if not figures:
        raise RecordError("no score of these runs is a finite number, so there is nothing to draw.")
    single = [figure.name for figure in figures if figure.single_point]
    reason = "one point is no curve: give runs with another k or layers too, or use aft report."
    _name_left_out(single, reason, len(figures))
    for figure in figures:
        if not figure.single_point:
            _show_files(draw_curves(figure, cost, folder / f"{figure.name}.png"))


def _plot_costs(drawn: Sequence[Frontier], folder: Path) -> None:
    """Draw the costs of each task. A message names the tasks of a single point, which a table shows as well.

    Raises:
        RecordError: Every task has a single point.
    """
    single = [
        each for each in drawn if len({(point.model, point.name, point.cost, point.score) for point in each.points}) < 2
    ]
    reason = "one point makes no figure: give a second run, or use aft report."
    _name_left_out([each.task for each in single], reason, len(drawn))
    for each in drawn:
        if each not in single:
            _show_files(draw_costs(each, folder / f"{_stem(each, each.kind)}.png"))


def _name_left_out(names: Sequence[str], reason: str, count: int) -> None:
    """Name the figures that are left out, and why.

    Raises:
        RecordError: These are all figures; ``count`` is their number.
    """
    if names:
        message = f"{', '.join(names)}: {reason}"
        if len(names) == count:
            raise RecordError(message)
        note(message)


def _stem(drawn: Frontier, kind: str) -> str:
    """The name of a figure's files."""
    return file_name(re.sub(r"[^A-Za-z0-9_.-]", "-", f"{drawn.task}_{kind}"))


def _show_files(files: Sequence[Path], *, err: bool = False) -> None:
    for file in files:
        show(visible(str(file)), err=err)


def _plot_losses(out: Sequence[Path], folder: Path) -> None:
    """Draw the losses of all runs.

    Raises:
        RecordError: Every run has a single logged step, which is no curve.
    """
    logged = read_losses(out)
    if all(len(curve.training) < 2 and len(curve.validation) < 2 for curve in logged):
        points = ", ".join(f"{each.name}: loss {each.training[0][1]:.4f}" for each in logged)
        raise RecordError(f"one logged step is no curve ({points}): train longer, or set log_every lower.")
    _show_files(draw_losses(logged, folder / "training.png"))


def _plot_frontiers(drawn: Sequence[Frontier], form: Form, folder: Path) -> None:
    """Print the frontier of each task, and draw it. Only the table is on stdout if it is CSV or JSON."""
    show(render([frontier_table(each) for each in drawn], form))
    for each in drawn:
        files = draw_frontier(each, folder / f"{_stem(each, 'frontier')}.png")
        _show_files(files, err=form in ("csv", "json"))


def _frontiers(entries: Sequence[RunEntry], votes: Sequence[Votes], cost: Cost | None, members: bool) -> list[Frontier]:
    """The frontier of each task's or group's primary score."""
    answering = [entry for entry in entries if not _is_probe(entry.run.settings or {})]
    probes = len(entries) - len(answering)
    if probes:
        note(f"{probes} run{'s' * (probes > 1)} with probe= or drafts_from= left out: no way to answer.")
    known = all(entry.run.usage is not None and entry.run.usage.flops for entry in answering)
    kind: Cost = cost or ("flops" if known else "tokens")
    return frontiers(_scored(answering, kind, members), votes, kind)


def _is_probe(settings: Mapping[str, Any]) -> bool:
    return settings.get("probe", "none") != "none" or bool(settings.get("drafts_from"))


def _scored(entries: Sequence[RunEntry], kind: Cost, members: bool) -> list[tuple[RunEntry, dict[str, Interval]]]:
    """The interval of each run's primary scores. A message names those that are no points, and why.

    Raises:
        RecordError: No score is a point.
    """
    points: list[tuple[RunEntry, dict[str, Interval]]] = []
    missing: dict[str, list[str]] = {}
    for entry in entries:
        intervals = {}
        for name in listed_names(entry.run, members):
            score = primary_score(entry.run, name)
            if reason := _no_point(entry, score, kind):
                missing.setdefault(reason, []).append(f"{entry.label} on {name}")
            else:
                intervals[name] = score_interval(entry, score)
        points.append((entry, intervals))
    messages = [f"{', '.join(names)}: {reason}." for reason, names in missing.items()]
    if not any(intervals for _, intervals in points):
        raise RecordError(" ".join(messages) or f"{entries[0].run.path} has no score: run lm_eval again.")
    for message in messages:
        note(message)
    return points


def _no_point(entry: RunEntry, score: Score, kind: Cost) -> str:
    """Why a score is no point of a frontier; empty if it is one."""
    if not score.ranked:
        return "no score is better or worse yet, so no point: judge the answers first"
    if not isfinite(score.value):
        return "the score is not a finite number, so no point"
    if entry.cost_per_answer(score.task, kind) is None:
        return f"the cost in {kind} is not known, so no point: run with record=DIR"
    return ""
