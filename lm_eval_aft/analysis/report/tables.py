"""A table of plain values as text for a terminal, Markdown, CSV or JSON.

Knows nothing of what stands in it: ``report`` and ``compare`` fill ``pagedata.Table``, the page draws the same ones.
Model names and answers are untrusted: control characters and mark-up are made visible text.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Sequence
from typing import Literal

from lm_eval_aft.analysis.report.page.data import Cell, Table
from lm_eval_aft.core.errors import ConfigError

Form = Literal["text", "markdown", "csv", "json"]
FORMS = ("text", "markdown", "csv", "json")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_MARKS = "abcdefghijklmnopqrstuvwxyz"


def render(tables: Sequence[Table], form: Form) -> str:
    """All tables in one form.

    Raises:
        ConfigError: ``text`` is asked for and rich is not installed.
    """
    if form == "json":
        return json.dumps([_plain(table) for table in tables], indent=2, ensure_ascii=False)
    make = {"text": as_text, "markdown": as_markdown, "csv": as_csv}[form]
    return "\n\n".join(make(table) for table in tables)


def as_text(table: Table) -> str:
    """For a terminal, drawn by rich; as wide as it needs to be.

    Raises:
        ConfigError: rich is not installed.
    """
    try:
        from rich.box import SIMPLE_HEAD
        from rich.console import Console
        from rich.table import Table as Drawn
        from rich.text import Text
    except ImportError as error:
        raise ConfigError(
            "a table for the terminal needs rich: pip install 'lm_eval_aft[report]', or give --format markdown."
        ) from error
    drawn = Drawn(title=Text(table.title), title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for column in table.columns:
        drawn.add_column(Text(column.label), justify="right" if column.numeric else "left", no_wrap=True)
    remarks, marks = _marked(table)
    for row, mark in zip(table.rows, marks, strict=True):
        first, *others = [visible(cell.text) for cell in row.cells]
        drawn.add_row(Text(first + mark), *map(Text, others))
    out = io.StringIO()
    console = Console(file=out, width=2000, color_system=None)  # lines are not broken: a pager can scroll
    console.print(drawn)
    body = "\n".join(line.rstrip() for line in out.getvalue().rstrip().splitlines())
    return "\n".join([body, *(f"  {line}" for line in remarks)])


def as_markdown(table: Table) -> str:
    """A Markdown table under its title, remarks as lines below it."""
    remarks, marks = _marked(table)
    rule = ["--:" if column.numeric else "---" for column in table.columns]
    rows = [[escaped(column.label) for column in table.columns], rule]
    for row, mark in zip(table.rows, marks, strict=True):
        first, *others = [escaped(cell.text) for cell in row.cells]
        rows.append([first + mark, *others])
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    title = [f"**{escaped(table.title)}**", ""] if table.title else []
    return "\n".join([*title, *lines, *([""] if remarks else []), *(f"- {escaped(line)}" for line in remarks)])


def as_csv(table: Table) -> str:
    """Unrounded values where a cell has one, remarks in a last column."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*(column.label for column in table.columns), "remarks"])
    for row in table.rows:
        writer.writerow([*(_value(cell) for cell in row.cells), "; ".join(row.notes)])
    return out.getvalue().rstrip("\n")


def _value(cell: Cell) -> str:
    """A spreadsheet must not take a model's name for a formula."""
    if cell.value is not None:
        return repr(cell.value)
    text = visible(cell.text)
    return "'" + text if text[:1] in ("=", "+", "@") or (text[:1] == "-" and text != "-") else text


def _plain(table: Table) -> dict[str, object]:
    names = [column.label for column in table.columns]
    rows = [
        {
            **{name: {"text": c.text, "value": c.value} for name, c in zip(names, row.cells, strict=True)},
            "remarks": list(row.notes),
        }
        for row in table.rows
    ]
    return {"title": table.title, "rows": rows, "notes": list(table.notes)}


def _marked(table: Table) -> tuple[list[str], list[str]]:
    """Remarks to print below a table, and each row's marks that point to them."""
    distinct = list(dict.fromkeys(note for row in table.rows for note in row.notes))
    names = {note: _name(number) for number, note in enumerate(distinct)}
    remarks = [f"{name}) {visible(note)}" for note, name in names.items()]
    marks = [" " + ",".join(names[note] for note in row.notes) + ")" if row.notes else "" for row in table.rows]
    return [*remarks, *map(visible, table.notes)], marks


def _name(number: int) -> str:
    return _MARKS[number] if number < len(_MARKS) else f"{_MARKS[number % len(_MARKS)]}{number // len(_MARKS)}"


def visible(text: str) -> str:
    """The text on one line, control characters and such as change direction written as code points."""
    return _CONTROL.sub(lambda found: " " if found[0] in "\n\t\r" else f"<U+{ord(found[0]):04X}>", text)


def escaped(text: str) -> str:
    """Text that Markdown shows as it is."""
    marks = re.sub(r"([\\`*|\[\]]|(?<!\w)_|_(?!\w))", r"\\\1", visible(text))  # within a word _ is a letter
    return marks.replace("<", "&lt;")
