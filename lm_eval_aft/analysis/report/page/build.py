"""Fills the HTML page from runs: leaderboard, curves, comparisons, diagnostics, and every question with its drafts.

Knows no HTML (``page`` has it) and no formula. Called by ``aft report --html``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from lm_eval_aft import __version__
from lm_eval_aft.analysis.comparison import Comparison, compare_entries
from lm_eval_aft.analysis.conditions import primary
from lm_eval_aft.analysis.curves import curves, drawable, votes_of
from lm_eval_aft.analysis.report.comparison_tables import comparison_unit
from lm_eval_aft.analysis.report.page.charts import charts
from lm_eval_aft.analysis.report.page.data import Chart, Effect, PageData
from lm_eval_aft.analysis.report.page.samples import run_samples
from lm_eval_aft.analysis.report.page.write import write_page
from lm_eval_aft.analysis.report.tables import Table
from lm_eval_aft.analysis.runs import RunEntry
from lm_eval_aft.core.errors import AFTError, ConfigError
from lm_eval_aft.storage.results import EvalRun


def write_report(path: Path, entries: Sequence[RunEntry], table: Table, baseline: Path | None) -> None:
    """Write the page of these runs.

    Args:
        path: The HTML file.
        entries: All runs on it.
        table: The leaderboard.
        baseline: Results file or folder of the run that the others are compared with; None takes the first of them.

    Raises:
        ConfigError: ``baseline`` is none of the runs.
        RecordError: A file cannot be read or written, or a baseline that was named cannot be paired with another run.
    """
    runs = [entry.run for entry in entries]
    shown = [run_samples(entry, entries) for entry in entries]
    compared, notes = _comparisons(entries, baseline)
    data = PageData(
        title="Propose and aggregate",
        made=f"lm_eval_aft {__version__}; {len(entries)} runs of {', '.join(_tasks(runs))}",
        leaderboard=table,
        charts=tuple(_charts(entries)),
        effects=tuple(map(_effect, compared)),
        diagnostics=tuple(panel for panels, _ in shown for panel in panels),
        samples=tuple(sample for _, samples in shown for sample in samples),
        notes=notes,
    )
    write_page(path, data)


def _tasks(runs: Sequence[EvalRun]) -> list[str]:
    return list(dict.fromkeys(task for run in runs for task in run.tasks))


def _comparisons(entries: Sequence[RunEntry], baseline: Path | None) -> tuple[tuple[Comparison, ...], tuple[str, ...]]:
    """Of all runs with the baseline, and why runs are left out; of a baseline that was named none is."""
    if baseline is not None:
        base = _named(entries, baseline)
        return compare_entries(base, [entry for entry in entries if entry is not base]), ()
    found: list[Comparison] = []
    notes: list[str] = []
    for other in entries[1:]:
        try:
            found += compare_entries(entries[0], [other])
        except AFTError:  # the page is whole without this pair
            notes.append(
                f"{other.label} is not compared with {entries[0].label}: they did not answer the same questions, or no "
                "samples were logged; aft compare says which."
            )
    return tuple(found), tuple(notes)


def _named(entries: Sequence[RunEntry], baseline: Path) -> RunEntry:
    place = baseline.resolve()
    found = [entry for entry in entries if place in (entry.run.path.resolve(), *entry.run.path.resolve().parents)]
    if len(found) != 1:
        have = ", ".join(str(entry.run.path) for entry in (found or entries)[:4])
        raise ConfigError(
            f"--baseline {baseline} names {len(found)} of these runs and must name one; give one of {have}."
        )
    return found[0]


def _effect(row: Comparison) -> Effect:
    return Effect(
        baseline=row.baseline,
        other=row.other,
        task=row.score.task,
        metric=row.score.metric if row.score.filter == "none" else f"{row.score.metric}, {row.score.filter}",
        n=row.n,
        baseline_score=row.baseline_mean,
        other_score=row.other_mean,
        difference=row.difference.estimate,
        low=row.difference.low,
        high=row.difference.high,
        p_value=row.p_value,
        p_holm=row.p_holm,
        wins=row.counts.wins,
        ties=row.counts.ties,
        losses=row.counts.losses,
        cost_ratio=row.cost_ratio,
        detectable=row.detectable,
        category=row.category,
        scale=comparison_unit(row).scale,
        higher_is_better=row.score.higher_is_better if row.score.ranked else None,
        level=row.difference.level,
        notes=row.notes,
    )


def _charts(entries: Sequence[RunEntry]) -> Iterator[Chart]:
    """Score against layers, k and cost, wherever runs of ours differ in them, beside the majority vote."""
    runs = [entry.run for entry in entries]
    if not drawable(entries):
        return
    votes = [vote for entry in entries if entry.trace_folder for vote in votes_of(entries, entry.traces())]
    shown = {(s.metric, s.filter) for run in runs for task in run.tasks for s in [primary(run, task)]}
    measures = {metric if name == "none" else f"{metric}, {name}" for metric, name in shown}
    for each in curves(entries, votes):
        if len(each.points) > 1 and each.measure in measures:
            yield from charts(each)
