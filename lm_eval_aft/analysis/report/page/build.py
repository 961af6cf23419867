"""Builds the HTML page of runs: leaderboard, charts, comparisons, diagnostics, and every question with its texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from lm_eval_aft.analysis.comparison import compare_all
from lm_eval_aft.analysis.conditions import primary_score
from lm_eval_aft.analysis.curves import curves, drawable_runs, votes_of
from lm_eval_aft.analysis.groups import listed_names
from lm_eval_aft.analysis.report.leaderboard import models_table
from lm_eval_aft.analysis.report.page.aggregation import aggregation
from lm_eval_aft.analysis.report.page.charts import charts
from lm_eval_aft.analysis.report.page.data import Aggregation, Chart, PageData, PageSample
from lm_eval_aft.analysis.report.page.effects import effects, vote_sentences
from lm_eval_aft.analysis.report.page.overview import (
    headlines,
    made_line,
    page_title,
    run_facts,
    strips,
    without_shared_columns,
)
from lm_eval_aft.analysis.report.page.samples import featured, run_samples
from lm_eval_aft.analysis.report.page.write import write_page
from lm_eval_aft.analysis.report.tables import Table
from lm_eval_aft.analysis.report.vote_tables import drafts_table, votes_by_run
from lm_eval_aft.analysis.runs import RunEntry


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
    shown = tuple(sample for _, of_run in samples for sample in of_run)
    diagnostics = [(entry.label, d) for entry, (each, _) in zip(entries, samples, strict=True) for d in each]
    panels = [aggregation(each, label) for label, each in diagnostics]
    gaps = {(label, each.task): each.gap_closed for label, each in diagnostics if each.gap_closed}
    compared_effects = effects(compared, entries, gaps)
    votes = vote_sentences(compared_effects)
    found = {(each.panel.run, each.panel.task): each.panel.findings[0] for each in panels if each.panel.findings}
    # The page shows what both say of a run on a task below its verdict.
    remarks = {key: " ".join(each[key] for each in (votes, found) if key in each) for key in (*votes, *found)}
    verdicts = tuple(headlines(compared, entries, remarks))
    scores, shared = without_shared_columns(table)
    data = PageData(
        title=page_title(entries, base),
        made=made_line(entries),
        headlines=verdicts,
        strips=tuple(strips(compared, entries, base)),
        leaderboard=scores,
        models=models_table(entries),
        drafts=drafts_table(votes_by_run(entries)),
        charts=tuple(_charts(entries)),
        effects=compared_effects,
        diagnostics=tuple(panels),
        samples=shown,
        featured=featured(shown, verdicts[0].run if verdicts else ""),
        runs=run_facts(entries),
        shared=shared,
        notes=(*compared.left_out, *_missing(panels, shown)),
    )
    write_page(path, data)


def _missing(panels: Sequence[Aggregation], samples: Sequence[PageSample]) -> Iterator[str]:
    """Why parts of the page are not there."""
    if not panels:
        yield "No run that aggregated has traces, so nothing is said of drafts: run with record=DIR."
    if not samples:
        yield "No samples were logged, so there is no question to show: run with --log_samples."


def _charts(entries: Sequence[RunEntry]) -> Iterator[Chart]:
    """Charts of each task's main score, if runs of ours differ in k or layers."""
    if not drawable_runs(entries):
        return
    votes = [vote for entry in entries if entry.trace_folder for vote in votes_of(entries, entry.traces())]
    main = {primary_score(entry.run, name).key for entry in entries for name in listed_names(entry.run)}
    for each in curves(entries, votes):
        if each.key in main and not each.single_point:
            yield from charts(each)
