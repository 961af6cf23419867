"""Builds the HTML page of runs: leaderboard, charts, comparisons, diagnostics, and every question with its texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import isfinite
from pathlib import Path

from lm_eval_aft.analysis.comparison import Comparison, compare_all
from lm_eval_aft.analysis.conditions import primary_score
from lm_eval_aft.analysis.curves import curves, drawable_runs, votes_of
from lm_eval_aft.analysis.groups import listed_names
from lm_eval_aft.analysis.report.comparison_tables import comparison_cells, comparison_unit, part_name
from lm_eval_aft.analysis.report.page.charts import charts
from lm_eval_aft.analysis.report.page.data import Chart, Effect, PageData
from lm_eval_aft.analysis.report.page.overview import (
    headlines,
    made_line,
    page_title,
    run_facts,
    strips,
    without_shared_columns,
)
from lm_eval_aft.analysis.report.page.samples import run_samples
from lm_eval_aft.analysis.report.page.write import write_page
from lm_eval_aft.analysis.report.tables import Table
from lm_eval_aft.analysis.runs import RunEntry
from lm_eval_aft.storage.results import Score


def write_report(
    path: Path, entries: Sequence[RunEntry], table: Table, baseline: Path | None, members: bool = False
) -> None:
    """Write the page of these runs.

    Args:
        path: The HTML file.
        entries: All runs on it, made with ``keep`` so that each of their files is read once.
        table: The leaderboard.
        baseline: See ``compare_all``.
        members: Whether the members of each group are compared too.

    Raises:
        ConfigError: ``baseline`` is none of the runs.
        RecordError: A file cannot be read or written, or a run cannot be paired with ``baseline``.
    """
    samples = [run_samples(entry, entries) for entry in entries]
    compared = compare_all(entries, baseline, members)
    base = compared.comparisons[0].baseline if compared.comparisons else ""
    scores, shared = without_shared_columns(table)
    data = PageData(
        title=page_title(entries, base),
        made=made_line(entries),
        headlines=tuple(headlines(compared, entries)),
        strips=tuple(strips(compared, entries, base)),
        leaderboard=scores,
        charts=tuple(_charts(entries)),
        effects=tuple(map(_effect, compared.comparisons)),
        diagnostics=tuple(panel for panels, _ in samples for panel in panels),
        samples=tuple(sample for _, of_run in samples for sample in of_run),
        runs=run_facts(entries),
        shared=shared,
        notes=compared.left_out,
    )
    write_page(path, data)


def _effect(comparison: Comparison) -> Effect:
    c, unit, difference = comparison, comparison_unit(comparison), comparison.difference
    sides = ("level", "level") if not c.score.ranked else ("better", "worse")
    above, below = sides if c.score.higher_is_better else sides[::-1]
    return Effect(
        baseline=c.baseline,
        other=c.other,
        name=part_name(c),
        metric=_measure(c.score),
        verdict=c.verdict,
        texts={key: cell.text for key, cell in comparison_cells(c).items()},
        difference=unit.scale * difference.estimate,
        low=unit.scale * difference.low if isfinite(difference.low) else None,
        high=unit.scale * difference.high if isfinite(difference.high) else None,
        outcomes=((above, c.counts.wins), ("level", c.counts.ties), (below, c.counts.losses)),
        unit=unit.mark,
        part=c.explores,
        level=f"{100 * difference.level:.10g}%",
        notes=tuple(f"{note}." for note in c.notes),
    )


def _charts(entries: Sequence[RunEntry]) -> Iterator[Chart]:
    """Charts of each task's main score, if runs of ours differ in k or layers."""
    if not drawable_runs(entries):
        return
    votes = [vote for entry in entries if entry.trace_folder for vote in votes_of(entries, entry.traces())]
    main = {primary_score(entry.run, name).key for entry in entries for name in listed_names(entry.run)}
    for each in curves(entries, votes):
        if each.key in main and not each.single_point:
            yield from charts(each)


def _measure(score: Score) -> str:
    """The metric, and the filter if there is one."""
    return score.metric if score.filter == "none" else f"{score.metric}, {score.filter}"
