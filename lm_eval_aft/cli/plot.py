"""``aft plot``: figures of score against k, layers and cost, of frontiers, and of training losses."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from lm_eval_aft.analysis.conditions import primary
from lm_eval_aft.analysis.cost import Cost
from lm_eval_aft.analysis.curves import curves, finished, votes_of
from lm_eval_aft.analysis.runs import RunEntry, read_entries
from lm_eval_aft.analysis.scores import score_interval
from lm_eval_aft.analysis.votes import Votes
from lm_eval_aft.core.errors import RecordError
from lm_eval_aft.storage.traces import read_traces


@click.command()
@click.argument("out", type=click.Path(path_type=Path), nargs=-1, required=True)
@click.option("--traces", type=click.Path(path_type=Path), help="Where record= put the traces, if not below OUT.")
@click.option("--png", type=click.Path(path_type=Path), help="Folder of the figures; the first OUT by default.")
@click.option("--cost", type=click.Choice(["tokens", "flops"]), help="Of the third panel; FLOPs where they are known.")
@click.option("--regex", help="How the majority vote finds answers; see aft votes.")
@click.option("--frontier", is_flag=True, help="Instead: the best of all points at each budget, model against model.")
@click.option("--training", is_flag=True, help="Instead: the loss curves of the training runs below OUT.")
def plot(
    out: tuple[Path, ...],
    traces: Path | None,
    png: Path | None,
    cost: Cost | None,
    regex: str | None,
    frontier: bool,
    training: bool,
) -> None:
    """Draw score against k, layers and cost of all runs below OUT: one PNG for each task, metric and filter."""
    if training:
        _plot_losses(out, png or out[0])
        return
    entries = read_entries(out, traces)
    found = (trace for folder in ([traces] if traces else out) for trace in read_traces(folder))
    votes = votes_of(entries, found, regex)
    if frontier:
        _plot_frontiers(finished(entries), votes, cost, png or out[0])
        return
    from lm_eval_aft.analysis.report.figures import draw

    for each in curves(entries, votes):
        kind: Cost = cost or ("flops" if each.costs("flops") else "tokens")
        click.echo(draw(each, kind, (png or out[0]) / f"{each.name}.png"))


def _plot_losses(out: Sequence[Path], folder: Path) -> None:
    from lm_eval_aft.analysis.losses import read_losses
    from lm_eval_aft.analysis.report.figures import draw_losses

    click.echo(draw_losses(read_losses(out), folder / "training.png"))


def _probed(settings: Mapping[str, Any]) -> bool:
    return settings.get("probe", "none") != "none" or bool(settings.get("drafts_from"))


def _plot_frontiers(entries: Sequence[RunEntry], votes: Sequence[Votes], cost: Cost | None, folder: Path) -> None:
    """Print and draw one frontier a task, of each task's primary score."""
    from lm_eval_aft.analysis.frontier import frontiers, show
    from lm_eval_aft.analysis.report.figures import draw_frontier

    probed = [entry for entry in entries if _probed(entry.run.settings or {})]
    if probed:
        click.echo(
            f"{len(probed)} run{'s' * (len(probed) > 1)} with probe= or drafts_from= left out: no way to answer.",
            err=True,
        )
    entries = [entry for entry in entries if entry not in probed]
    known = all(entry.run.usage is not None and entry.run.usage.flops for entry in entries)
    best = [(entry, {task: primary(entry.run, task) for task in entry.run.tasks}) for entry in entries]
    lengths = [f"{entry.label} on {task}" for entry, scores in best for task in scores if not scores[task].ranked]
    if lengths:
        text = f"{', '.join(lengths)}: no score is better or worse yet, so no point: judge the answers first."
        if not any(score.ranked for _, scores in best for score in scores.values()):
            raise RecordError(text)
        click.echo(text, err=True)
    scored = [(e, {t: score_interval(e, s) for t, s in scores.items() if s.ranked}) for e, scores in best]
    for each in frontiers(scored, votes, cost or ("flops" if known else "tokens")):
        name = re.sub(r"[^A-Za-z0-9_.-]", "-", f"{each.task}_frontier")
        click.echo(show(each))
        click.echo(draw_frontier(each, folder / f"{name}.png"))
