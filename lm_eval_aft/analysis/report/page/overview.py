"""The first screen of the page: title, verdict on each task, scores of all runs on one axis, and how runs were made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from math import isfinite

from lm_eval_aft import __version__
from lm_eval_aft.analysis.comparison import ComparedRuns, Comparison, Verdict, cost_ratio
from lm_eval_aft.analysis.conditions import primary_score
from lm_eval_aft.analysis.groups import listed_names
from lm_eval_aft.analysis.report.comparison_tables import (
    comparison_cells,
    comparison_sentences,
    comparison_unit,
    measure,
    points,
)
from lm_eval_aft.analysis.report.model_card import command, settings_line
from lm_eval_aft.analysis.report.page.axes import linear_axis
from lm_eval_aft.analysis.report.page.data import Fact, Headline, RunFacts, Strip, StripRow
from lm_eval_aft.analysis.report.tables import NONE, PERCENT, Table, ratio_text, unit_of
from lm_eval_aft.analysis.runs import RunEntry
from lm_eval_aft.analysis.scores import score_interval
from lm_eval_aft.core.terminal import message
from lm_eval_aft.storage.results import Score

# Names that a title lists.
_LISTED = 3
# From the best verdict to the worst one.
_ORDER: tuple[Verdict, ...] = ("better", "no difference shown", "neither better nor worse", "worse")
# The columns that stay where they are equal: what the runs are and what they score.
_KEPT = ("model", "k", "layers")


def task_names(entries: Sequence[RunEntry], members: bool = False) -> tuple[str, ...]:
    """The tasks and groups under which the results of all runs are listed."""
    return tuple(dict.fromkeys(name for entry in entries for name in listed_names(entry.run, members)))


def page_title(entries: Sequence[RunEntry], baseline: str) -> str:
    """The runs and the tasks; ``baseline`` is the label of the baseline, or empty."""
    tasks = _listed(task_names(entries))
    others = [entry.label for entry in entries if entry.label != baseline]
    runs = others[0] if len(others) == 1 else f"{len(others)} runs"
    return f"{runs} against {baseline} on {tasks}" if baseline else f"{runs} on {tasks}"


def _listed(names: Sequence[str]) -> str:
    shown, more = names[:_LISTED], len(names) - _LISTED
    if more > 0:
        return f"{', '.join(shown)} and {more} more"
    return " and ".join([", ".join(shown[:-1]), shown[-1]]) if len(shown) > 1 else "".join(shown)


def made_line(entries: Sequence[RunEntry]) -> str:
    """The version, the number of runs and the days on which they ended."""
    days = sorted({entry.run.stamp[:10] for entry in entries if _is_time(entry.run.stamp)})
    when = f", ended {' to '.join(dict.fromkeys((days[0], days[-1])))}" if days else ""
    count = f"{len(entries)} run{'s' * (len(entries) > 1)}"
    return f"lm_eval_aft {__version__}; {count}{when}"


def _is_time(stamp: str) -> bool:
    return stamp[:4].isdigit() and stamp[10:11] == "T"


# ---------------------------------------------------------------- verdicts


def headlines(
    compared: ComparedRuns, entries: Sequence[RunEntry], findings: Mapping[tuple[str, str], str]
) -> Iterator[Headline]:
    """The verdict on each task or group that was compared. If none was, the best score of each task.

    Args:
        compared: The comparisons with the baseline.
        entries: All runs.
        findings: By label and task, what votes of equal cost and aggregation did there.
    """
    by_name: dict[str, list[Comparison]] = {}
    for comparison in compared.comparisons:
        if not comparison.explores:
            by_name.setdefault(comparison.score.task, []).append(comparison)
    for name, comparisons in by_name.items():
        best = min(comparisons, key=_rank)
        counted = (_counted(comparisons),) if len(comparisons) > 1 else ()
        found = (findings[best.other, name],) if (best.other, name) in findings else ()
        sentences = (*comparison_sentences([best]), *counted, *found)
        yield Headline(name, best.other, best.verdict, sentences, tuple(_facts(best, entries)))
    if not by_name:
        yield from _best_scores(entries, findings)


def _best_scores(entries: Sequence[RunEntry], findings: Mapping[tuple[str, str], str]) -> Iterator[Headline]:
    """The run with the best score on each task or group, of runs that were not compared."""
    for name in task_names(entries):
        scored = _scored_alike(entries, name)
        if not scored:
            continue
        unit = unit_of(score.value for _, score in scored)
        side = 1 if scored[0][1].higher_is_better else -1
        entry, score = max(scored, key=lambda each: side * each[1].value)
        tokens = _tokens(entry, name)
        cost = f", at {tokens} generated tokens a question" if tokens else ""
        value = unit.interval(score_interval(entry, score))
        sentence = f"{name}: {entry.label} scores {value} ({measure(score, unit)}; n = {score.n:,}){cost}."
        found = (findings[entry.label, name],) if (entry.label, name) in findings else ()
        yield Headline(name, entry.label, "", (message(sentence), *found))


def _rank(comparison: Comparison) -> tuple[int, float]:
    """Less for a better run."""
    side = 1 if comparison.score.higher_is_better else -1
    return _ORDER.index(comparison.verdict), -side * comparison.difference.estimate


def _counted(comparisons: Sequence[Comparison]) -> str:
    """How many of several runs have each verdict."""
    counts = Counter(comparison.verdict for comparison in comparisons)
    parts = [f"{counts[verdict]} {verdict}" for verdict in _ORDER if counts[verdict]]
    counted = f"{len(comparisons)} runs against {comparisons[0].baseline}: {', '.join(parts)}"
    return f"This is the best of {counted}."


def _facts(comparison: Comparison, entries: Sequence[RunEntry]) -> Iterator[Fact]:
    cells = comparison_cells(comparison)
    yield Fact(f"difference{points(comparison_unit(comparison), ' in ')}", cells["difference"].text)
    yield Fact("p, corrected by Holm over tasks", (cells["p"] if cells["p_holm"] == NONE else cells["p_holm"]).text)
    if cells["token_ratio"] != NONE:
        other = next(entry for entry in entries if entry.label == comparison.other)
        tokens = _tokens(other, comparison.score.task)
        yield Fact("generated tokens, times the baseline's", f"{cells['token_ratio'].text} ({tokens} a question)")


# ---------------------------------------------------------------- scores of all runs


def strips(compared: ComparedRuns, entries: Sequence[RunEntry], baseline: str) -> Iterator[Strip]:
    """The scores of all runs on each task or group that any of them has."""
    verdicts = {(c.other, c.score.task): c.verdict for c in compared.comparisons if not c.explores}
    for name in task_names(entries):
        if alike := _scored_alike(entries, name):
            yield _strip(name, alike, baseline, verdicts)


def _scored_alike(entries: Sequence[RunEntry], name: str) -> list[tuple[RunEntry, Score]]:
    """The runs with a score of one metric and filter on a task or group. Others would need an axis of their own."""
    scored = [(entry, primary_score(entry.run, name)) for entry in entries if entry.run.scores_of(name)]
    finite = [(entry, score) for entry, score in scored if isfinite(score.value)]
    return [(entry, score) for entry, score in finite if score.key == finite[0][1].key]


def _strip(
    name: str, scored: Sequence[tuple[RunEntry, Score]], baseline: str, verdicts: Mapping[tuple[str, str], Verdict]
) -> Strip:
    unit = unit_of(score.value for _, score in scored)
    base = next((entry for entry, _ in scored if entry.label == baseline), None)
    rows = []
    for entry, score in scored:
        interval = score_interval(entry, score)
        value, low, high = unit.drawn(interval)
        ratio = cost_ratio(base, entry, name) if base else None
        row = StripRow(
            name=entry.label,
            value=value,
            low=low,
            high=high,
            score=unit.interval(interval),
            tokens=_tokens(entry, name),
            ratio=ratio_text(ratio) if ratio else "",
            baseline=entry is base,
            verdict=verdicts.get((entry.label, name), ""),
        )
        rows.append(row)
    score = scored[0][1]
    ends = [end for row in rows for end in (row.value, row.low, row.high) if end is not None]
    label = measure(score, unit) + ("" if score.higher_is_better or not score.ranked else "; less is better")
    axis = linear_axis(ends, label, within=(0, 100) if unit == PERCENT else None)
    return Strip(f"{name}, {score.n:,} questions", axis, tuple(rows))


def _tokens(entry: RunEntry, name: str) -> str:
    cost = entry.cost_of(name)
    return "" if cost is None else f"{cost.generated_tokens:,.0f}"


# ---------------------------------------------------------------- tables and settings


def without_shared_columns(table: Table) -> tuple[Table, tuple[Fact, ...]]:
    """The leaderboard with the scores first, without the columns that are empty or equal in all rows.

    Returns:
        The table, and the columns that were left out, with their text.
    """
    columns = list(enumerate(table.columns))
    scores = [i for i, column in columns if column.parts == ("stderr",)]
    model = [i for i, column in columns if column.key == "model"]
    order = [*model, *scores, *(i for i, _ in columns if i not in (*model, *scores))]
    left_out: dict[int, str] = {}
    for i, column in columns:
        texts = {row.cells[i].text for row in table.rows}
        constant = len(texts) == 1 and (len(table.rows) > 1 or texts == {NONE.text})
        if constant and i not in scores and column.key not in _KEPT:
            left_out[i] = texts.pop()
    kept = [i for i in order if i not in left_out]
    rows = tuple(replace(row, cells=tuple(row.cells[i] for i in kept)) for row in table.rows)
    facts = (Fact(table.columns[i].title or table.columns[i].label, text) for i, text in left_out.items())
    shown = tuple(fact for fact in facts if fact.text != NONE.text)
    return replace(table, columns=tuple(table.columns[i] for i in kept), rows=rows), shown


def run_facts(entries: Sequence[RunEntry]) -> tuple[RunFacts, ...]:
    """How each run was made."""
    return tuple(
        RunFacts(
            entry.label,
            settings_line(entry).removeprefix(f"{entry.label}: "),
            f"{entry.run.stamp[:10]} {entry.run.stamp[11:16].replace('-', ':')}" if _is_time(entry.run.stamp) else "",
            command(entry.run),
        )
        for entry in entries
    )
