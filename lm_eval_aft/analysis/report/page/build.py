"""Builds the HTML page of runs: leaderboard, charts, comparisons, diagnostics, and every question with its texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from lm_eval_aft import __version__
from lm_eval_aft.analysis.comparison import Comparison, compare_entries
from lm_eval_aft.analysis.conditions import primary_score
from lm_eval_aft.analysis.curves import curves, drawable_runs, votes_of
from lm_eval_aft.analysis.report.comparison_tables import comparison_unit
from lm_eval_aft.analysis.report.page.charts import charts
from lm_eval_aft.analysis.report.page.data import Chart, Effect, PageData
from lm_eval_aft.analysis.report.page.samples import run_samples
from lm_eval_aft.analysis.report.page.write import write_page
from lm_eval_aft.analysis.report.tables import Table
from lm_eval_aft.analysis.runs import RunEntry
from lm_eval_aft.core.errors import AFTError, ConfigError
from lm_eval_aft.storage.results import Score


def write_report(path: Path, entries: Sequence[RunEntry], table: Table, baseline: Path | None) -> None:
    """Write the page of these runs.

    Args:
        path: The HTML file.
        entries: All runs on it, made with ``keep`` so that each of their files is read once.
        table: The leaderboard.
        baseline: Results file or folder of the run that the others are compared with; None compares them with the
            first run.

    Raises:
        ConfigError: ``baseline`` is none of the runs.
        RecordError: A file cannot be read or written, or a run cannot be paired with ``baseline``.
    """
    samples = [run_samples(entry, entries) for entry in entries]
    comparisons, notes = _comparisons(entries, baseline)
    tasks = dict.fromkeys(task for entry in entries for task in entry.run.tasks)
    data = PageData(
        title="Propose and aggregate",
        made=f"lm_eval_aft {__version__}; {len(entries)} runs of {', '.join(tasks)}",
        leaderboard=table,
        charts=tuple(_charts(entries)),
        effects=tuple(map(_effect, comparisons)),
        diagnostics=tuple(panel for panels, _ in samples for panel in panels),
        samples=tuple(sample for _, of_run in samples for sample in of_run),
        notes=notes,
    )
    write_page(path, data)


def _comparisons(entries: Sequence[RunEntry], baseline: Path | None) -> tuple[tuple[Comparison, ...], tuple[str, ...]]:
    """The comparisons of all runs with the baseline, and notes on runs that cannot be compared.

    If the user named the baseline, a run that cannot be compared with it is an error.
    """
    if baseline is not None:
        base = _named_entry(entries, baseline)
        return compare_entries(base, [entry for entry in entries if entry is not base]), ()
    comparisons: list[Comparison] = []
    notes: list[str] = []
    for other in entries[1:]:
        try:
            comparisons += compare_entries(entries[0], [other])
        except AFTError:
            # The page is of use without this pair.
            notes.append(
                f"{other.label} is not compared with {entries[0].label}: they did not answer the same questions, or no "
                "samples were logged; aft compare says which."
            )
    return tuple(comparisons), tuple(notes)


def _named_entry(entries: Sequence[RunEntry], baseline: Path) -> RunEntry:
    wanted = baseline.resolve()
    named = [entry for entry in entries if wanted in (entry.run.path.resolve(), *entry.run.path.resolve().parents)]
    if len(named) != 1:
        files = ", ".join(str(entry.run.path) for entry in (named or entries)[:4])
        raise ConfigError(
            f"--baseline {baseline} names {len(named)} of these runs and must name one; give one of {files}."
        )
    return named[0]


def _effect(comparison: Comparison) -> Effect:
    c, score = comparison, comparison.score
    return Effect(
        baseline=c.baseline,
        other=c.other,
        task=score.task,
        metric=_measure(score),
        n=c.n,
        baseline_score=c.baseline_mean,
        other_score=c.other_mean,
        difference=c.difference.estimate,
        low=c.difference.low,
        high=c.difference.high,
        p_value=c.p_value,
        p_holm=c.p_holm,
        wins=c.counts.wins,
        ties=c.counts.ties,
        losses=c.counts.losses,
        cost_ratio=c.cost_ratio,
        detectable=c.detectable,
        category=c.category,
        scale=comparison_unit(c).scale,
        higher_is_better=score.higher_is_better if score.ranked else None,
        level=c.difference.level,
        notes=c.notes,
    )


def _charts(entries: Sequence[RunEntry]) -> Iterator[Chart]:
    """Charts of each task's main score, if runs of ours differ in k or layers."""
    if not drawable_runs(entries):
        return
    votes = [vote for entry in entries if entry.trace_folder for vote in votes_of(entries, entry.traces())]
    measures = {_measure(primary_score(entry.run, task)) for entry in entries for task in entry.run.tasks}
    for each in curves(entries, votes):
        if len(each.points) > 1 and each.measure in measures:
            yield from charts(each)


def _measure(score: Score) -> str:
    """The metric, and the filter if there is one."""
    return score.metric if score.filter == "none" else f"{score.metric}, {score.filter}"
