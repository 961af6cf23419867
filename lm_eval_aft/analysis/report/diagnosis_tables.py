"""Diagnostics as sentences and tables, once, for the terminal, for Markdown and for the page.

Knows no formula: ``diagnose`` has them. Called by the command ``aft diagnose`` and by ``report``. A little over 200
lines because every column's meaning stands beside its name.
"""

from __future__ import annotations

from pathlib import Path

from lm_eval_aft.analysis.diagnosis import Change, Diagnostics, LayerStats, Reading, VoteShare
from lm_eval_aft.analysis.report.page.data import Cell, Column, DiagnosticsPanel, Row, Table
from lm_eval_aft.analysis.report.tables import escaped, render, visible
from lm_eval_aft.analysis.stats import Interval

NONE = Cell("-")


def panel(found: Diagnostics, run: str = "") -> DiagnosticsPanel:
    """What a run's diagnostics say, and the tables they say it from; ``run`` is a name to show for it."""
    tables = [_accuracies(found)] if found.judged else []
    tables.append(_lengths(found))
    if found.readings:
        tables.append(_readings(found))
    if found.changes:
        tables.append(_changes(found))
    if found.vote_shares and found.k > 1 and found.layers:
        tables.append(_vote_shares(found))
    layers = found.layers + found.scored
    name = run or f"{Path(found.model).name or 'model'}, k={found.k}, layers={layers}"
    return DiagnosticsPanel(name, found.task, tuple(_findings(found)), tuple(tables))


def _findings(found: Diagnostics) -> list[str]:
    """The sentences to read first."""
    counted = _questions(found.questions) + (f", {found.judged} with a gold answer" if found.extraction else "")
    how = f"answers by {found.extraction}" if found.extraction else "no answers to find, so nothing is right or wrong"
    said = [f"{counted}; {how}."]
    if found.scored:
        said.append("The last pass scored choices: what follows is about the texts it read.")
    if not found.readings or found.scored:
        return said
    last = found.readings[-1]
    said.append(f"{last.copy_rate:.1%} of the answers repeat a draft word for word ({last.copies} of {last.texts}).")
    if last.selected and last.random and last.majority:
        said.append(
            f"Where drafts disagree in correctness ({_questions(last.disputed)}), the answer is right "
            f"{_percent(last.selected)} of the time, a random draft {_percent(last.random)}, the majority vote "
            f"{_percent(last.majority)}."
        )
    for change in found.changes[:1]:
        tied = f"; on {change.tied} more the vote is tied" if change.tied else ""
        said.append(f"Against the majority vote {change.fixed:g} fixed, {change.broken:g} broken{tied}.")
    return said


def _accuracies(found: Diagnostics) -> Table:
    columns = (
        Column("layer"),
        Column("texts", True, "texts of all questions together"),
        Column("mean %", True, "mean accuracy of the layer's texts, with its interval"),
        Column("majority %", True, "accuracy of the majority vote over the layer's answers"),
        Column("oracle %", True, "share of questions that at least one text answers rightly"),
    )
    note = "mean %: a text of the layer, so above the drafts what stopping there would score; oracle %: one is right."
    rows = tuple(_accuracy_row(layer, _answers(found, layer.layer)) for layer in found.by_layer)
    return Table("Accuracy by layer", columns, rows, (note,))


def _accuracy_row(layer: LayerStats, last: bool) -> Row:
    votes = (NONE, NONE) if last else (_accuracy(layer.majority), _accuracy(layer.oracle))
    return Row((_name(layer, last), _number(layer.texts, "d"), _accuracy(layer.mean), *votes))


def _lengths(found: Diagnostics) -> Table:
    columns = (
        Column("layer"),
        Column("distinct answers", True, "different answers a question"),
        Column("distinct texts", True, "different texts a question"),
        Column("tokens", True, "generated tokens a text"),
        Column("growth", True, "tokens a text by those of a draft"),
        Column("silent", True, "texts in which no answer was found"),
        Column("repeats", True, "texts equal to an earlier one of their layer"),
        Column("empty", True, "empty texts"),
        Column("cut", True, "texts that ended at the token limit"),
    )
    note = (
        "growth: tokens by those of a draft; silent: no answer found; repeats: equal to an earlier text of the layer."
    )
    drafts = found.by_layer[0].generated_tokens
    rows = tuple(_length_row(layer, drafts, _answers(found, layer.layer)) for layer in found.by_layer)
    return Table("Diversity and length by layer", columns, rows, (note,))


def _length_row(layer: LayerStats, draft_tokens: float, last: bool) -> Row:
    growth = layer.generated_tokens / draft_tokens if draft_tokens else None
    return Row(
        (
            _name(layer, last),
            NONE if last else _number(layer.distinct_answers, ".2f"),
            NONE if last else _number(layer.distinct_texts, ".2f"),
            _number(layer.generated_tokens, ".1f"),
            _number(growth, ".2f"),
            _number(layer.silent, "d"),
            NONE if last else _number(layer.duplicates, "d"),
            _number(layer.empty, "d"),
            _number(layer.cut, "d"),
        )
    )


def _name(layer: LayerStats, last: bool) -> Cell:
    return Cell("answer" if last else f"layer {layer.layer}" if layer.layer else "drafts", layer.layer)


def _answers(found: Diagnostics, layer: int) -> bool:
    return layer == found.layers and not found.scored


def _readings(found: Diagnostics) -> Table:
    columns = (
        Column("texts"),
        Column("copies %", True, "texts equal to one they read, percent"),
        Column("copies by position", True, "how many copy the first, second, ... text; white space normalised"),
        Column("nearest %", True, "share of a text's word 3-grams found in the nearest text read, percent"),
        Column("any %", True, "the same for a text read at random, percent"),
        Column("disputed", True, "questions whose texts read are partly right and partly wrong"),
        Column("right there %", True, "accuracy on those, percent, with its interval"),
        Column("random %", True, "what a text read, chosen at random, scores there"),
        Column("majority %", True, "what the majority vote over the texts read scores there"),
    )
    notes = (
        "nearest %: share of a text's word 3-grams found in the nearest text it read; any %: in one read at random.",
        "disputed: questions whose texts read are partly right; the columns after it count these alone: the text "
        "written, a random one of those read, and their majority vote.",
    )
    rows = tuple(_reading(reading, _answers(found, reading.layer)) for reading in found.readings)
    return Table("What became of the texts read", columns, rows, notes)


def _reading(reading: Reading, last: bool) -> Row:
    name = "answer" if last else f"layer {reading.layer}"
    source = f"layer {reading.read}" if reading.read else "the drafts"
    positions = " / ".join(f"{count:g}" if count % 1 == 0 else f"{count:.1f}" for count in reading.copies_by_position)
    return Row(
        (
            Cell(f"{name} from {source}", reading.layer - reading.read / 100),
            _number(reading.copy_rate, ".1f", 100),
            Cell(positions),
            _number(reading.nearest_overlap, ".1f", 100),
            _number(reading.mean_overlap, ".1f", 100),
            _number(reading.disputed, "d"),
            _accuracy(reading.selected),
            _accuracy(reading.random, ends=False),
            _accuracy(reading.majority, ends=False),
        )
    )


def _changes(found: Diagnostics) -> Table:
    columns = (
        Column("against"),
        Column("fixed", True, "right answers to questions that it gets wrong; expected ones for the mean draft"),
        Column("broken", True, "wrong answers to questions that it gets right"),
        Column("net", True, "fixed less broken"),
        Column("tied", True, "questions whose vote is drawn by lot between right and wrong: counted in neither"),
    )
    notes = ("fixed: the answer is right and the other way wrong; broken: the reverse; tied votes are in neither.",)
    return Table("Fixed and broken", columns, tuple(_change(change) for change in found.changes), notes)


def _change(change: Change) -> Row:
    net = change.fixed - change.broken
    form = ".1f" if change.beside == "mean draft" else ".0f"
    tied = _number(change.tied, "d") if change.beside == "majority vote" else NONE
    counts = (_number(change.fixed, form), _number(change.broken, form), _number(net, "+" + form))
    return Row((Cell(change.beside), *counts, tied))


def _vote_shares(found: Diagnostics) -> Table:
    columns = (
        Column("right drafts", True, "how many of a question's drafts are right"),
        Column("questions", True),
        Column("answer right %", True, "share of them that the answer gets right, percent"),
        Column("vote right %", True, "share that the majority vote gets right, percent"),
    )
    return Table("By right drafts", columns, tuple(_vote_share(share, found.k) for share in found.vote_shares))


def _vote_share(share: VoteShare, k: int) -> Row:
    return Row(
        (
            Cell(f"{share.right_drafts} of {k}", share.right_drafts),
            _number(share.questions, "d"),
            _number(share.answer, ".1f", 100),
            _number(share.majority, ".1f", 100),
        )
    )


def _number(value: float | None, form: str, scale: float = 1) -> Cell:
    return NONE if value is None else Cell(f"{scale * value:{form}}" if scale != 1 else f"{value:{form}}", value)


def _questions(count: int) -> str:
    return f"{count} question" if count == 1 else f"{count} questions"


def _percent(interval: Interval) -> str:
    return f"{interval.estimate:.1%}"


def _accuracy(interval: Interval | None, ends: bool = True) -> Cell:
    if interval is None:
        return NONE
    shown = f" [{100 * interval.low:.1f}, {100 * interval.high:.1f}]" if ends else ""
    return Cell(f"{100 * interval.estimate:.1f}{shown}", interval.estimate)


def panel_text(shown: DiagnosticsPanel) -> str:
    """The panel for a terminal."""
    head = [f"{shown.task}: {shown.run}", *shown.findings]
    return "\n".join([*map(visible, head), "", render(shown.tables, "text")])


def panel_markdown(shown: DiagnosticsPanel) -> str:
    """The panel as Markdown."""
    head = [f"### {escaped(shown.task)}: {escaped(shown.run)}", "", *(f"- {escaped(each)}" for each in shown.findings)]
    return "\n".join([*head, "", render(shown.tables, "markdown")])
