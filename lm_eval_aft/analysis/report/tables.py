"""Tables of plain values: their columns and cells, how numbers are written in them, and the forms they are printed in.

Model names, tasks and answers come from files and models. Control characters and markup in them are shown as text.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import TYPE_CHECKING, Any, Literal

from lm_eval_aft.core.terminal import message, shortened, spreadsheet_text, visible, visible_in_json

if TYPE_CHECKING:
    from lm_eval_aft.analysis.cost import TaskCost
    from lm_eval_aft.analysis.stats import Interval

Form = Literal["text", "markdown", "csv", "json"]
FORMS = ("text", "markdown", "csv", "json")
# The key of a row's notes in CSV and JSON.
REMARKS = "remarks"
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
# rich breaks lines that are longer than its console; a pager scrolls sideways instead.
_CONSOLE_WIDTH = 2000
# Characters of a cell of a text table. Labels of runs are shorter, but names come from files.
MAX_CELL = 160


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table.

    Attributes:
        key: Its name in JSON and CSV. It stays the same if the head changes, and no two columns of a table share it.
        label: Its head.
        numeric: Aligned to the right, and sorted by value, largest first.
        title: What it means, in a sentence.
        parts: Names of the further numbers in its cells, such as ("stderr",) or ("low", "high"). In CSV each is a
            column of its own, KEY/NAME.
        also: Further keys of the same values in JSON and CSV, such as the names that other tools use.
    """

    key: str
    label: str
    numeric: bool = False
    title: str = ""
    parts: tuple[str, ...] = ()
    also: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell.

    Attributes:
        text: What is shown.
        value: The unrounded number, by which the column is sorted. None sorts by the text, and comes last in a numeric
            column.
        note: A remark, shown if the pointer is on the cell, and read aloud by a screen reader.
        parts: The further numbers that the column names; empty if there are none.
    """

    text: str
    value: float | None = None
    note: str = ""
    parts: tuple[float | None, ...] = ()


NONE = Cell("-")


@dataclass(frozen=True, slots=True)
class Row:
    """One row. ``notes`` says what a reader must know of it, such as why it is another test, a sentence each."""

    cells: tuple[Cell, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Table:
    """A sortable table. Each row has as many cells as there are columns.

    Attributes:
        title: Its heading.
        columns: From left to right; each has a key of its own.
        rows: In the order first shown.
        notes: Shown below it, a sentence each.
    """

    title: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        keys = [*(key for column in self.columns for key in (column.key, *column.also)), REMARKS]
        if len(set(keys)) < len(keys):
            raise ValueError(f"two columns of the table {self.title!r} have one key: {', '.join(keys)}")


def joined_key(*parts: str) -> str:
    """A column's key made of several names, with ``/`` between them; a ``/`` inside a name is written ``%2F``."""
    return "/".join(part.replace("%", "%25").replace("/", "%2F") for part in parts)


# ---------------------------------------------------------------- numbers in cells


@dataclass(frozen=True, slots=True)
class Unit:
    """How the values of one metric are written.

    Attributes:
        scale: What a value is multiplied by.
        digits: After the decimal point.
        mark: What a column's head ends with.
    """

    scale: float
    digits: int
    mark: str = ""

    def text(self, value: float, signed: bool = False) -> str:
        """A value in this unit, such as 42.0 or, signed, +4.2."""
        return f"{self.scale * value:{'+' if signed else ''}.{self.digits}f}"

    def interval(self, interval: Interval, signed: bool = False) -> str:
        """An estimate with its interval, such as 42.0 [38.1, 46.0]; without the interval if there is none."""
        if not interval.bounded:
            return self.text(interval.estimate, signed)
        estimate, low, high = (self.text(value, signed) for value in (interval.estimate, interval.low, interval.high))
        return f"{estimate} [{low}, {high}]"

    def drawn(self, interval: Interval) -> tuple[float, float | None, float | None]:
        """An estimate and the ends of its interval, for a drawing; None for an end that there is not."""
        low, high = (self.scale * end if math.isfinite(end) else None for end in (interval.low, interval.high))
        return self.scale * interval.estimate, low, high


PERCENT = Unit(100, 1, " %")
OWN_UNIT = Unit(1, 2)


def is_share(values: Iterable[float]) -> bool:
    """Whether a metric is a share, which people read as a percentage: all its values lie between 0 and 1.

    NaN and the open end of an interval say nothing of it.
    """
    return all(0 <= value <= 1 for value in values if math.isfinite(value))


def unit_of(values: Iterable[float]) -> Unit:
    """Percent if all values of the metric are shares, else the metric's own unit."""
    return PERCENT if is_share(values) else OWN_UNIT


def count_cell(count: int | None) -> Cell:
    """A whole number."""
    return NONE if count is None else Cell(f"{count:,}", count)


def number_cell(value: float | None, form: str, scale: float = 1) -> Cell:
    """A number in a format of Python's, multiplied by ``scale`` for the text only."""
    return NONE if value is None else Cell(f"{value if scale == 1 else scale * value:{form}}", value)


def score_cell(value: float, stderr: float | None, unit: Unit, note: str = "") -> Cell:
    """A score with its standard error; for columns with the part "stderr"."""
    spread = "" if stderr is None or math.isnan(stderr) else f" ± {unit.text(stderr)}"
    return Cell(unit.text(value) + spread, value, note, (stderr,))


def interval_cell(interval: Interval | None, unit: Unit = PERCENT, signed: bool = False, ends: bool = True) -> Cell:
    """An estimate with its interval, for columns with the parts "low" and "high".

    Args:
        interval: What to show; None gives an empty cell.
        unit: How it is written.
        signed: Whether a plus sign is written, as for differences.
        ends: Whether the text shows the interval.
    """
    if interval is None:
        return NONE
    text = unit.interval(interval, signed) if ends else unit.text(interval.estimate, signed)
    return Cell(text, interval.estimate, parts=(interval.low, interval.high))


def short_number(value: float) -> str:
    """A number in three digits, such as 42, 1.23k or 4.5T."""
    for size, letter in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{float(f'{value / size:.3g}'):g}{letter}"
    return f"{float(f'{value:.3g}'):g}"


def p_text(p_value: float) -> str:
    """A p-value, such as 0.031 or 1.2e-05."""
    return f"{p_value:.1e}" if p_value < 0.001 else f"{p_value:.3f}"


def ratio_text(ratio: float) -> str:
    """How many times a cost is another one, such as x 9.6."""
    return f"x {ratio:.3g}"


def p_cell(p_value: float | None) -> Cell:
    """A p-value; None gives an empty cell."""
    return NONE if p_value is None else Cell(p_text(p_value), p_value)


COST_COLUMNS = (
    Column("generations", "generations", True, "generations a question"),
    Column("generated_tokens", "tokens", True, "generated tokens a question"),
    Column("prompt_tokens", "prompt tokens", True, "prompt tokens a question; each generation counts its whole prompt"),
    Column("tflops", "FLOPs", True, "floating-point operations a question; JSON and CSV state them in 10^12"),
    Column("cut", "truncated %", True, "share of the generations that ended at the token limit"),
)


MONEY_COLUMN = Column("cost", "cost", True, "cost of a question in money, by price_in and price_out of the run")


def cost_columns(costs: Iterable[TaskCost | None]) -> tuple[Column, ...]:
    """The columns of these costs. There is a column of money if the cost in money of one of them is known."""
    money = any(cost is not None and cost.total_money is not None for cost in costs)
    return (*COST_COLUMNS, MONEY_COLUMN) if money else COST_COLUMNS


def cost_cells(cost: TaskCost | None, columns: Sequence[Column] = COST_COLUMNS) -> tuple[Cell, ...]:
    """The cost of a question, for ``cost_columns``; empty cells for what is unknown."""
    if cost is None:
        return (NONE,) * len(columns)
    money = (number_cell(cost.money, ",.4g"),) if MONEY_COLUMN in columns else ()
    return (
        number_cell(cost.generations, ",.3g"),
        number_cell(cost.generated_tokens, ",.0f"),
        number_cell(cost.prompt_tokens, ",.0f"),
        NONE if cost.flops is None else Cell(short_number(cost.flops), cost.flops / 1e12),
        number_cell(cost.cut / cost.texts if cost.texts else None, ".1f", 100),
        *money,
    )


# ---------------------------------------------------------------- forms


def render(tables: Sequence[Table], form: Form) -> str:
    """All tables in one form."""
    if form == "json":
        return to_json([_json_table(table) for table in tables])
    write = {"text": as_text, "markdown": as_markdown, "csv": as_csv}[form]
    return "\n\n".join(write(table) for table in tables)


def as_text(table: Table) -> str:
    """The table for a terminal, as wide as it needs to be."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    drawn = RichTable(box=SIMPLE_HEAD, pad_edge=False)
    for column in table.columns:
        justify: Literal["left", "right"] = "right" if column.numeric else "left"
        drawn.add_column(Text(_cell_text(column.label)), justify=justify, no_wrap=True)
    remarks, marks = _remarks(table)
    for row, mark in zip(table.rows, marks, strict=True):
        first, *others = [_cell_text(cell.text) for cell in row.cells]
        drawn.add_row(Text(first + mark), *map(Text, others))
    out = io.StringIO()
    Console(file=out, width=_CONSOLE_WIDTH, color_system=None).print(drawn)
    lines = [line.rstrip() for line in out.getvalue().rstrip().splitlines()]
    # rich would break a title that is longer than its table.
    return "\n".join([message(table.title), *lines, *(f"  {line}" for line in remarks)])


def _cell_text(text: str) -> str:
    return shortened(visible(text), MAX_CELL)


def as_markdown(table: Table) -> str:
    """A Markdown table under its title, with the remarks as a list below it."""
    remarks, marks = _remarks(table)
    rule = ["--:" if column.numeric else "---" for column in table.columns]
    rows = [[escaped(column.label) for column in table.columns], rule]
    for row, mark in zip(table.rows, marks, strict=True):
        first, *others = [escaped(cell.text) for cell in row.cells]
        rows.append([first + mark, *others])
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    title = [f"**{escaped(table.title)}**", ""] if table.title else []
    return "\n".join([*title, *lines, *([""] if remarks else []), *(f"- {escaped(line)}" for line in remarks)])


def as_csv(table: Table) -> str:
    """Keys as heads, unrounded values, and a column for each part of a cell (KEY/stderr).

    Further keys of the same values follow, and the remarks come last. A value that is not known is an empty field.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    heads = [head for column in table.columns for head in (column.key, *_part_keys(column))]
    more = [(key, place) for place, column in enumerate(table.columns) for key in column.also]
    writer.writerow([*map(spreadsheet_text, (*heads, *(key for key, _ in more))), REMARKS])
    for row in table.rows:
        fields_of = [_csv_fields(column, cell) for column, cell in zip(table.columns, row.cells, strict=True)]
        values = [field for fields_here in fields_of for field in fields_here]
        again = [fields_of[place][0] for _, place in more]
        writer.writerow([*values, *again, spreadsheet_text("; ".join(row.notes))])
    return out.getvalue().rstrip("\n")


def _part_keys(column: Column) -> list[str]:
    return [f"{column.key}/{name}" for name in column.parts]


def _csv_fields(column: Column, cell: Cell) -> list[str]:
    text = "" if cell == NONE else spreadsheet_text(cell.text)
    parts = cell.parts or (None,) * len(column.parts)
    return [text if cell.value is None else _csv_number(cell.value), *map(_csv_number, parts)]


def _csv_number(value: float | None) -> str:
    return "" if value is None or not math.isfinite(value) else repr(value)


def _json_table(table: Table) -> dict[str, object]:
    rows = [
        {
            **{
                key: _json_cell(column, cell)
                for column, cell in zip(table.columns, row.cells, strict=True)
                for key in (column.key, *column.also)
            },
            REMARKS: row.notes,
        }
        for row in table.rows
    ]
    columns = [{"key": column.key, "label": column.label, "title": column.title} for column in table.columns]
    return {"title": table.title, "columns": columns, "rows": rows, "notes": table.notes}


def _json_cell(column: Column, cell: Cell) -> dict[str, object]:
    parts = cell.parts or (None,) * len(column.parts)
    return {"text": cell.text, "value": cell.value, **dict(zip(column.parts, parts, strict=True))}


def to_json(value: object) -> str:
    """Indented JSON of dataclasses, lists and plain values; see ``to_jsonable``."""
    return visible_in_json(json.dumps(to_jsonable(value), indent=2, ensure_ascii=False, allow_nan=False))


def to_jsonable(value: Any) -> Any:
    """Dataclasses as dictionaries, tuples as lists, and numbers that JSON cannot hold (NaN, infinity) as None."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_jsonable(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {key: to_jsonable(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [to_jsonable(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _remarks(table: Table) -> tuple[list[str], list[str]]:
    """The remarks to print below a table, and for each row the marks that point to its own."""
    distinct = list(dict.fromkeys(note for row in table.rows for note in row.notes))
    names = {note: _letters(number) for number, note in enumerate(distinct)}
    remarks = [f"{name}) {message(note)}" for note, name in names.items()]
    marks = [" " + ",".join(names[note] for note in row.notes) + ")" if row.notes else "" for row in table.rows]
    return [*remarks, *map(message, table.notes)], marks


def _letters(number: int) -> str:
    letter = _LETTERS[number % len(_LETTERS)]
    return letter if number < len(_LETTERS) else f"{letter}{number // len(_LETTERS)}"


def escaped(text: str) -> str:
    """Text that Markdown shows as it is."""
    # An underscore within a word is a letter to Markdown.
    marks = re.sub(r"([\\`*|\[\]]|(?<!\w)_|_(?!\w))", r"\\\1", visible(text))
    return marks.replace("<", "&lt;")
