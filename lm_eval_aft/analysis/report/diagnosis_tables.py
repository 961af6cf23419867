"""Diagnostics of a run as sentences and tables, for the terminal, for Markdown and for the page."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lm_eval_aft.analysis.diagnosis import Change, Diagnostics, LayerStats, Reading, VoteShare
from lm_eval_aft.analysis.gap import Gap
from lm_eval_aft.analysis.report.tables import (
    NONE,
    PERCENT,
    Cell,
    Column,
    Row,
    Table,
    count_cell,
    escaped,
    interval_cell,
    number_cell,
    render,
)
from lm_eval_aft.analysis.stats import Interval
from lm_eval_aft.analysis.votes import drafter_of
from lm_eval_aft.core.names import joined_name
from lm_eval_aft.core.terminal import message

INTERVAL = ("low", "high")
NOTHING_MARKED = "nothing is right or wrong, since texts are not graded and no answers are found"


@dataclass(frozen=True, slots=True)
class DiagnosticsPanel:
    """What aggregation did in one run on one task.

    Attributes:
        run: Name of the run.
        task: Name of the task.
        remarks: What was counted, and how, a sentence each.
        findings: What to read first, a sentence each: against the vote, where drafts disagree, and copies.
        tables: The numbers.
    """

    run: str
    task: str
    remarks: tuple[str, ...]
    findings: tuple[str, ...]
    tables: tuple[Table, ...]


def diagnostics_panel(diagnostics: Diagnostics, run: str = "") -> DiagnosticsPanel:
    """The sentences and tables of one run on one task; ``run`` is a name to show instead of the model's."""
    tables = [_accuracies(diagnostics)] if diagnostics.judged else []
    tables.append(_lengths(diagnostics))
    if diagnostics.readings:
        tables.append(_readings(diagnostics))
    if diagnostics.changes:
        tables.append(_changes(diagnostics))
    if diagnostics.vote_shares and diagnostics.k > 1 and diagnostics.layers:
        tables.append(_vote_shares(diagnostics))
    layers = diagnostics.layers + diagnostics.scored
    model = joined_name(Path(diagnostics.model).name or "model", json.loads(diagnostics.settings))
    name = run or f"{model}, k={diagnostics.k}, layers={layers}"
    remarks, findings = tuple(_remarks(diagnostics)), tuple(_findings(diagnostics))
    return DiagnosticsPanel(name, diagnostics.task, remarks, findings, tuple(tables))


def _remarks(diagnostics: Diagnostics) -> Iterator[str]:
    d = diagnostics
    yield _marked(d)
    settings = json.loads(d.settings)
    if (drafter := drafter_of(settings)) is not settings:
        given = ", which drafts_from= gave" if settings.get("drafts_from") else ""
        yield f"The drafts are those of {drafter.get('model')}{given}."
    if cut := d.cuts.sentence():
        yield f"{cut[0].upper()}{cut[1:]}."
    if d.scored:
        yield "The last layer scored choices. The numbers below are about the texts in its prompt."


def _findings(diagnostics: Diagnostics) -> Iterator[str]:
    d = diagnostics
    if not d.readings or d.scored:
        return
    for change in d.changes[:1]:
        fixed, broken, tied = map(count_text, (change.fixed, change.broken, change.tied))
        more = f"; on {tied} more the vote is tied" if change.tied else ""
        yield f"Against the {change.beside} {fixed} fixed, {broken} broken{more}.{_gap(d.gap)}"
    last = d.readings[-1]
    if last.selected and last.random:
        vote = f", the majority vote {_percent(last.majority)}" if last.majority else ""
        yield (
            f"Drafts disagree in correctness on {_questions(last.disputed)}: there the answer is right "
            f"{_percent(last.selected)} of the time, a random draft {_percent(last.random)}{vote}."
        )
    yield f"{last.copy_rate:.1%} of the answers repeat a draft word for word ({last.copies} of {last.texts})."


def _gap(gap: Gap | None) -> str:
    if gap is None or gap.closed is None:
        return f" {gap.sentence}" if gap and gap.apart else ""
    estimate, *ends = PERCENT.interval(gap.closed).split(" ", 1)
    return f" It closes {' '.join([estimate + '%', *ends])} of the gap between the vote and the oracle."


def _marked(d: Diagnostics) -> str:
    """How many questions were marked, and by what."""
    questions = _questions(d.questions)
    if d.measure:
        answers = f"answers by {d.extraction}" if d.extraction else "no answer string to vote on"
        return f"{questions}, {d.judged} graded by the task's {d.measure}; {answers}."
    if d.extraction:
        return f"{questions}, {d.judged} with a gold answer; answers by {d.extraction}."
    return f"{questions}; {NOTHING_MARKED}."


def count_text(count: float) -> str:
    """A count with parts: a repeat is a part of a question, a copy of two texts is a half of each."""
    return f"{count:,.1f}".removesuffix(".0")


def _questions(count: int) -> str:
    return f"{count} question" if count == 1 else f"{count} questions"


def _percent(interval: Interval) -> str:
    return f"{interval.estimate:.1%}"


def _accuracies(diagnostics: Diagnostics) -> Table:
    columns = (
        Column("layer", "layer"),
        Column("generations", "generations", True, "of all questions together"),
        Column("mean", "mean %", True, "mean accuracy of the layer's texts, with its interval", INTERVAL),
        Column("majority", "majority %", True, "accuracy of the majority vote over the layer's answers", INTERVAL),
        Column("oracle", "oracle %", True, "share of questions that at least one text answers rightly", INTERVAL),
    )
    note = (
        "mean: average accuracy of the layer's texts. oracle: at least one text is right. The mean of a later layer is "
        "what a run with that many layers would score."
    )
    rows = tuple(_accuracy_row(layer, _is_answer(diagnostics, layer.layer)) for layer in diagnostics.by_layer)
    return Table("Accuracy by layer", columns, rows, (note,))


def _accuracy_row(layer: LayerStats, answer: bool) -> Row:
    votes = (NONE, NONE) if answer else (interval_cell(layer.majority), interval_cell(layer.oracle))
    return Row((_layer_cell(layer, answer), count_cell(layer.texts), interval_cell(layer.mean), *votes))


def _lengths(diagnostics: Diagnostics) -> Table:
    columns = (
        Column("layer", "layer"),
        Column("distinct_answers", "distinct answers", True, "different answers a question"),
        Column("distinct_texts", "distinct texts", True, "different texts a question"),
        Column("generated_tokens", "tokens", True, "generated tokens a text"),
        Column("growth", "growth", True, "tokens a text, divided by those of a draft"),
        Column("silent", "no answer", True, "texts from which no answer could be extracted"),
        Column("repeats", "duplicates", True, "texts equal to an earlier one of their layer"),
        Column("empty", "empty", True, "texts without an answer: empty, or cut inside a thought"),
        Column("cut", "truncated", True, "texts that ended at the token limit"),
        Column("cut_prompts", "prompts cut", True, "prompts of the layer whose drafts were cut to fit the context"),
    )
    note = (
        "growth: length relative to the drafts. no answer: none could be extracted. duplicates: equal to an earlier "
        "text of the layer. truncated: ended at the token limit. prompts cut: drafts were cut to fit the context."
    )
    drafts = diagnostics.by_layer[0].generated_tokens
    rows = tuple(_length_row(layer, drafts, _is_answer(diagnostics, layer.layer)) for layer in diagnostics.by_layer)
    return Table("Diversity and length by layer", columns, rows, (note,))


def _length_row(layer: LayerStats, draft_tokens: float, answer: bool) -> Row:
    growth = layer.generated_tokens / draft_tokens if draft_tokens else None
    return Row(
        (
            _layer_cell(layer, answer),
            NONE if answer else number_cell(layer.distinct_answers, ".2f"),
            NONE if answer else number_cell(layer.distinct_texts, ".2f"),
            number_cell(layer.generated_tokens, ".1f"),
            number_cell(growth, ".2f"),
            count_cell(layer.silent),
            NONE if answer else count_cell(layer.duplicates),
            count_cell(layer.empty),
            count_cell(layer.cut),
            count_cell(layer.cuts.cut_prompts) if layer.cuts.prompts else NONE,
        )
    )


def _layer_cell(layer: LayerStats, answer: bool) -> Cell:
    return Cell("answer" if answer else f"layer {layer.layer}" if layer.layer else "drafts", layer.layer)


def _is_answer(diagnostics: Diagnostics, layer: int) -> bool:
    return layer == diagnostics.layers and not diagnostics.scored


def _readings(diagnostics: Diagnostics) -> Table:
    columns = (
        Column("step", "step"),
        Column("copies", "copies %", True, "texts equal to one in their prompt, percent"),
        Column(
            "copies_by_position",
            "copies by position",
            True,
            "how many copy the first, second, ... text; white space normalised",
        ),
        Column(
            "nearest", "nearest overlap %", True, "share of a text's word 3-grams in the nearest text of its prompt"
        ),
        Column("any", "mean overlap %", True, "the same, averaged over the texts of its prompt"),
        Column("disputed", "disputed", True, "questions on which the earlier texts disagree in correctness"),
        Column("selected", "text right %", True, "accuracy of the later texts on those, with its interval", INTERVAL),
        Column("random", "random right %", True, "accuracy of a random earlier text on those", INTERVAL),
        Column("majority", "vote right %", True, "accuracy of the earlier texts' majority vote on those", INTERVAL),
    )
    notes = (
        "overlap: share of a text's word 3-grams that occur in an earlier text, the nearest one or the mean over all.",
        "copies by position: a copy of several equal texts counts as a part at each of their positions.",
        "disputed: questions on which the earlier texts disagree in correctness. The columns after it count only "
        "these: accuracy of the later text, of a random earlier text, and of the majority vote of the earlier texts.",
    )
    rows = tuple(_reading_row(reading, _is_answer(diagnostics, reading.layer)) for reading in diagnostics.readings)
    return Table("What each layer took from an earlier one", columns, rows, notes)


def _reading_row(reading: Reading, answer: bool) -> Row:
    name = "answer" if answer else f"layer {reading.layer}"
    source = f"layer {reading.read}" if reading.read else "the drafts"
    positions = " / ".join(map(count_text, reading.copies_by_position))
    return Row(
        (
            Cell(f"{name} from {source}", reading.layer - reading.read / 100),
            number_cell(reading.copy_rate, ".1f", 100),
            Cell(positions),
            number_cell(reading.nearest_overlap, ".1f", 100),
            number_cell(reading.mean_overlap, ".1f", 100),
            count_cell(reading.disputed),
            interval_cell(reading.selected),
            interval_cell(reading.random, ends=False),
            interval_cell(reading.majority, ends=False),
        )
    )


def _changes(diagnostics: Diagnostics) -> Table:
    columns = (
        Column("against", "against"),
        Column(
            "fixed",
            "fixed",
            True,
            "right after aggregation, wrong by this one; for the mean draft, the expected number",
        ),
        Column(
            "broken",
            "broken",
            True,
            "wrong after aggregation, right by this one; for the mean draft, the expected number",
        ),
        Column("net", "net", True, "fixed minus broken"),
        Column("tied", "tied", True, "questions on which right and wrong answers tie in the vote"),
    )
    notes = ("fixed: right after aggregation and wrong before. broken: the reverse. Tied votes count in neither.",)
    return Table("Fixed and broken", columns, tuple(map(_change_row, diagnostics.changes)), notes)


def _change_row(change: Change) -> Row:
    net = change.fixed - change.broken
    whole = change.beside != "mean draft" and all(map(float.is_integer, map(float, (change.fixed, change.broken))))
    form = ".0f" if whole else ".1f"
    tied = Cell(count_text(change.tied), change.tied) if change.beside == "majority vote" else NONE
    counts = (number_cell(change.fixed, form), number_cell(change.broken, form), number_cell(net, "+" + form))
    return Row((Cell(change.beside), *counts, tied))


def _vote_shares(diagnostics: Diagnostics) -> Table:
    columns = (
        Column("right_drafts", "right drafts", True, "how many of a question's drafts are right"),
        Column("questions", "questions", True),
        Column("answer", "answer right %", True, "share of these questions that the answer gets right"),
        Column("majority", "vote right %", True, "share of these questions that the majority vote gets right"),
    )
    rows = tuple(_vote_share_row(share, diagnostics.k) for share in diagnostics.vote_shares)
    return Table("By right drafts", columns, rows)


def _vote_share_row(share: VoteShare, k: int) -> Row:
    return Row(
        (
            Cell(f"{share.right_drafts} of {k}", share.right_drafts),
            Cell(count_text(share.questions), share.questions),
            number_cell(share.answer, ".1f", 100),
            number_cell(share.majority, ".1f", 100),
        )
    )


def panel_text(panel: DiagnosticsPanel) -> str:
    """The panel for a terminal."""
    head = [f"{panel.task}: {panel.run}", *panel.remarks, *panel.findings]
    return "\n".join([*map(message, head), "", render(panel.tables, "text")])


def panel_markdown(panel: DiagnosticsPanel) -> str:
    """The panel as Markdown."""
    sentences = (*panel.remarks, *panel.findings)
    head = [f"### {escaped(panel.task)}: {escaped(panel.run)}", "", *(f"- {escaped(each)}" for each in sentences)]
    return "\n".join([*head, "", render(panel.tables, "markdown")])
