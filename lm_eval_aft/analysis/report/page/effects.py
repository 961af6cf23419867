"""The page's comparisons: all runs against the baseline, and against votes of equal cost, on one axis."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from lm_eval_aft.analysis.comparison import ComparedRuns, Comparison
from lm_eval_aft.analysis.equal_cost import EqualCostBaseline
from lm_eval_aft.analysis.report.comparison_tables import (
    comparison_cells,
    comparison_unit,
    equal_costs,
    measure,
    part_name,
    points,
)
from lm_eval_aft.analysis.report.page.axes import linear_axis
from lm_eval_aft.analysis.report.page.data import Effect, EffectGroup, Effects
from lm_eval_aft.analysis.report.tables import NONE, PERCENT, Unit, p_text, ratio_text
from lm_eval_aft.analysis.runs import RunEntry
from lm_eval_aft.analysis.stats import Interval
from lm_eval_aft.core.strategies import SELECTIONS

# Label of the run, name of the task.
Gaps = Mapping[tuple[str, str], Interval]

_COLUMNS = (
    ("p", "p", "two-sided, paired by question"),
    ("p_holm", "p, Holm", "corrected over the tasks of this run"),
    ("above_level_below", "wins / ties / losses", "questions on which the run scores above, level with and below"),
    ("token_ratio", "tokens", "generated tokens of the run, divided by those of what it is compared with"),
    ("gap_closed", "gap closed %", "(run - vote) / (oracle - vote) on the same drafts, with its interval"),
    ("detectable", "detectable", "least true difference that a test of so many questions finds with a chance of 80%"),
    ("n", "n", "pairs of questions"),
)


def effects(compared: ComparedRuns, entries: Sequence[RunEntry], gaps: Gaps) -> Effects | None:
    """All comparisons, a group for each task; None if there are none.

    Args:
        compared: The comparisons with the baseline.
        entries: All runs. Their drafts vote.
        gaps: How much of the gap between vote and oracle each run closes on each task.
    """
    if not compared.comparisons:
        return None
    by_name: dict[str, list[tuple[Unit, Effect]]] = {}
    for comparison, effect in _all_effects(compared.comparisons, entries, gaps):
        name = comparison.member_of or comparison.score.task
        by_name.setdefault(name, []).append((comparison_unit(comparison), effect))
    whole = {each.score.task: each for each in compared.comparisons if not each.explores}
    groups = [_group(whole[name], found, by_name) for name, found in by_name.items()]
    shown = [effect for group in groups for effect in group.effects]
    return Effects(tuple(_columns(shown)), tuple(groups), tuple(_notes(compared.comparisons, shown)))


def vote_sentences(effects: Effects | None) -> dict[tuple[str, str], str]:
    """By run and task, the run against the best majority vote of equal cost."""
    sentences: dict[tuple[str, str], str] = {}
    for group in effects.groups if effects else ():
        task = next(effect.name for effect in group.effects if effect.kind == "run")
        # The last one of a run stays: the best vote leaves the least difference.
        for vote in sorted(group.effects, key=lambda effect: -effect.difference):
            if vote.kind == "vote":
                against = f"Against the {vote.name} ({vote.texts['token_ratio']} its tokens)"
                sentences[vote.run, task] = f"{against}: {vote.texts['difference']} points."
    return sentences


def _columns(shown: Sequence[Effect]) -> Iterator[tuple[str, str, str]]:
    """The columns in which a row has a text.

    Of one task, p and p, Holm are equal. A number of pairs that all rows share is in the title.
    """
    corrected = any(effect.texts["p_holm"] != effect.texts["p"] for effect in shown if effect.kind == "run")
    sizes = {effect.texts["n"] for effect in shown if "n" in effect.texts}
    needless = {"p_holm": not corrected, "n": len(sizes) == 1}
    for column in _COLUMNS:
        filled = any(effect.texts.get(column[0], NONE.text) != NONE.text for effect in shown)
        if filled and not needless.get(column[0]):
            yield column


def _all_effects(
    comparisons: Sequence[Comparison], entries: Sequence[RunEntry], gaps: Gaps
) -> Iterator[tuple[Comparison, Effect]]:
    """Each comparison, with the votes of equal cost after the parts of a whole task or group."""
    by_label = {entry.label: entry for entry in entries}
    level = comparisons[0].difference.level
    votes: dict[tuple[str, str], list[EqualCostBaseline]] = {}
    for comparison, vote in equal_costs(by_label[comparisons[0].baseline], entries, comparisons, entries, None, level):
        # A run that votes itself would be compared with itself.
        if (by_label[comparison.other].run.settings or {}).get("strategy") not in SELECTIONS:
            votes.setdefault((comparison.other, comparison.score.task), []).append(vote)
    for whole, *parts in _blocks(comparisons):
        for comparison in (whole, *parts):
            yield comparison, _effect(comparison, gaps)
        for vote in votes.get((whole.other, whole.score.task), ()):
            tokens = by_label[whole.other].costs[whole.score.task].generated_tokens
            yield whole, _vote_effect(whole, vote, tokens)


def _blocks(comparisons: Sequence[Comparison]) -> list[list[Comparison]]:
    """Each comparison of a whole task or group, with its parts after it."""
    blocks: list[list[Comparison]] = []
    for comparison in comparisons:
        if comparison.explores:
            blocks[-1].append(comparison)
        else:
            blocks.append([comparison])
    return blocks


def _effect(comparison: Comparison, gaps: Gaps) -> Effect:
    c, unit = comparison, comparison_unit(comparison)
    sides = ("level", "level") if not c.score.ranked else ("better", "worse")
    above, below = sides if c.score.higher_is_better else sides[::-1]
    gap = None if c.explores else gaps.get((c.other, c.score.task))
    texts = {key: cell.text for key, cell in comparison_cells(c).items()}
    difference, low, high = unit.drawn(c.difference)
    return Effect(
        run=c.other,
        name=part_name(c),
        kind="part" if c.explores else "run",
        verdict=c.verdict,
        texts=texts if gap is None else texts | {"gap_closed": PERCENT.interval(gap)},
        difference=difference,
        low=low,
        high=high,
        outcomes=((above, c.counts.wins), ("level", c.counts.ties), (below, c.counts.losses)),
        notes=tuple(f"{note}." for note in c.notes),
    )


def _vote_effect(comparison: Comparison, vote: EqualCostBaseline, tokens: float) -> Effect:
    bound = vote.kind == "best draft"
    difference, low, high = PERCENT.drawn(vote.difference)
    return Effect(
        run=comparison.other,
        name=f"{'oracle bound' if bound else 'majority vote'} of {vote.drafts}, {vote.pool}",
        kind="bound" if bound else "vote",
        verdict="",
        texts={
            "baseline": PERCENT.text(vote.score.estimate),
            "score": PERCENT.text(comparison.other_mean),
            "difference": PERCENT.interval(vote.difference, signed=True),
            "p": p_text(vote.p_value),
            "token_ratio": ratio_text(tokens / vote.generated_tokens),
        },
        difference=difference,
        low=low,
        high=high,
    )


def _group(
    whole: Comparison, found: Sequence[tuple[Unit, Effect]], by_name: Mapping[str, Sequence[tuple[Unit, Effect]]]
) -> EffectGroup:
    """The effects on one task, on the axis of all effects with its unit."""
    unit = comparison_unit(whole)
    alike = [effect for effects in by_name.values() for its_unit, effect in effects if its_unit == unit]
    ends = [end for effect in alike for end in (effect.difference, effect.low, effect.high) if end is not None]
    axis = linear_axis([0.0, *ends], f"difference{points(unit, ', ')}", signed=True, most_ticks=5)
    return EffectGroup(
        f"{whole.score.task} {measure(whole.score, unit)}; {whole.n:,} questions",
        axis,
        tuple(effect for _, effect in found),
    )


def _notes(comparisons: Sequence[Comparison], shown: Sequence[Effect]) -> Iterator[str]:
    level = f"{100 * comparisons[0].difference.level:.10g}%"
    yield f"Baseline: {comparisons[0].baseline}. Paired by question; intervals of {level}."
    runs = len({each.other for each in comparisons})
    yield "A run is better or worse if p, Holm is at most 0.05 and the interval leaves out 0."
    over = f" Nothing is corrected over the {runs} runs." if runs > 1 else ""
    yield f"Holm's correction covers the tasks of each run.{over}"
    if any(effect.kind in ("vote", "bound") for effect in shown):
        yield (
            "A vote is of as many drafts as generate no more tokens than the run, or of all that there are; its p is "
            "not corrected. The oracle takes the best of these drafts by the gold answer: it is an upper bound."
        )
    if any(effect.texts.get("gap_closed", NONE.text) != NONE.text for effect in shown):
        yield "Gap closed: (run - vote) / (oracle - vote), on the drafts of the run itself."
    if any(effect.kind == "part" for effect in shown):
        yield "Categories and members of a group are exploration: their p is not corrected."
