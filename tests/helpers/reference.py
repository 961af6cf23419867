"""The reference pages, made from the code.

``python tests/helpers/reference.py`` writes them.
"""

from __future__ import annotations

import inspect
import re
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2])]

import click

from helpers.paths import ROOT
from lm_eval_aft.analysis import frames
from lm_eval_aft.analysis.frames import FrameColumn
from lm_eval_aft.cli import aft
from lm_eval_aft.core.config import AFTConfig
from lm_eval_aft.core.cuts import Cuts
from lm_eval_aft.core.records import (
    Chat,
    Completion,
    Confidence,
    Draft,
    Grade,
    LookAhead,
    Message,
    Question,
    Sampling,
    Trace,
)
from lm_eval_aft.core.settings import markdown_table
from lm_eval_aft.core.usage import ModelShape, Usage
from lm_eval_aft.inference.checkpoint import CheckpointConfig
from lm_eval_aft.inference.equal_drafts import EqualDrafts
from lm_eval_aft.inference.sweep_plan import SweepPlan
from lm_eval_aft.judging.alpaca_eval.data import Annotation, ModelOutput
from lm_eval_aft.judging.mt_bench.scores import MTBenchScores
from lm_eval_aft.storage.run_state import MeanGrade, RunState
from trainers.settings import RLConfig, TrainConfig

DOCS = ROOT / "docs"
# Records whose fields are those of a file.
RECORDS = (
    *(Usage, Cuts, EqualDrafts, ModelShape, Trace, Question, Chat, Message, Sampling, Draft, Completion, Confidence),
    *(LookAhead, Grade, RunState, MeanGrade, SweepPlan, MTBenchScores, ModelOutput, Annotation, CheckpointConfig),
)
# Fields that have another name in the file.
FILE_NAMES = {(Trace, "computed_usage"): "spent"}
WIDTH = 120  # characters of a line
CLI_HEAD = """\
# Commands

This page lists every command of `aft` with its options, as `aft COMMAND --help` prints them. To evaluate one model, run
`lm_eval --model aft`: see [model arguments](arguments.md).

A command that succeeds exits with code 0. If an argument or a file is wrong, the command prints one sentence and exits
with code 2.
"""


def pages() -> dict[Path, str]:
    """Each page with its text."""
    parts = {
        "reference/python.md": {"frames": frame_tables()},
        "reference/arguments.md": {"arguments": markdown_table(AFTConfig, "argument") + "\n"},
        "reference/files.md": {record.__name__: record_table(record) for record in RECORDS},
        "training.md": {
            "settings": markdown_table(TrainConfig, "setting") + "\n",
            "rl settings": _rl_settings() + "\n",
        },
    }
    made = {DOCS / "reference" / "cli.md": cli_page()}
    for name, texts in parts.items():
        page = (DOCS / name).read_text(encoding="utf-8")
        for mark, text in texts.items():
            page = _between_marks(page, mark, text)
        made[DOCS / name] = page
    return made


def _between_marks(page: str, name: str, text: str) -> str:
    """The page with this text between the two comments that carry a name."""
    begin, end = f"<!-- {name}: made by tests/helpers/reference.py -->\n", f"<!-- /{name} -->\n"
    assert page.count(begin) == page.count(end) == 1, name
    before, _, rest = page.partition(begin)
    return before + begin + text + end + rest.partition(end)[2]


def _rl_settings() -> str:
    """The table of the settings that reinforcement learning has besides those of every training."""
    shared = set(markdown_table(TrainConfig, "setting").splitlines()[2:])
    return "\n".join(line for line in markdown_table(RLConfig, "setting").splitlines() if line not in shared)


# ---------------------------------------------------------------- commands


def cli_page() -> str:
    """The page of commands."""
    context = click.Context(aft, info_name="aft")
    return CLI_HEAD + "".join(section for each in _commands(context, aft) for section in _command(*each))


def _commands(context: click.Context, command: click.Command) -> Iterator[tuple[click.Context, click.Command]]:
    """The commands below a group, each followed by those below it."""
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            inner = click.Context(below, context, name)
            yield inner, below
            yield from _commands(inner, below)


def _command(context: click.Context, command: click.Command) -> Iterator[str]:
    depth = context.command_path.count(" ")
    yield f"\n{'#' * (depth + 1)} {context.command_path}\n"
    yield f"\n```text\n{context.command_path} {' '.join(command.collect_usage_pieces(context))}\n```\n"
    for paragraph in (command.help or "").split("\n\n"):
        yield f"\n{textwrap.fill(_text(' '.join(paragraph.split())), WIDTH)}\n"
    options = [each for each in command.params if isinstance(each, click.Option)]
    if options:
        yield "\n" + _table(("option", "default", "meaning"), (_option(context, each) for each in options))


def _option(context: click.Context, option: click.Option) -> tuple[str, str, str]:
    name = ", ".join(option.opts)
    metavar = "" if option.is_flag else f" {option.make_metavar(context)}"
    default = option.get_default(context)
    if option.required:
        shown = "required"
    elif option.is_flag or default is None or default in ((), "") or not isinstance(default, str | int | float | tuple):
        shown = ""
    else:
        shown = ", ".join(map(str, default)) if isinstance(default, tuple) else str(default)
    return f"`{name}{metavar}`".replace("|", "\\|"), shown, _text(option.help or "")


def _text(text: str) -> str:
    """Plain text as Markdown."""
    for mark in ("|", "<", "*"):
        text = text.replace(mark, "\\" + mark)
    return text


# ---------------------------------------------------------------- files


def record_table(record: type) -> str:
    """The fields of a dataclass with the meanings in its docstring."""
    meanings = attributes(record)
    rows = (
        (f"`{FILE_NAMES.get((record, f.name), f.name)}`", _text(meanings[f.name].replace("``", "`")))
        for f in fields(record)
    )
    return _table(("field", "meaning"), rows)


def attributes(record: type) -> dict[str, str]:
    """The attributes that the docstring of a class lists."""
    listed = inspect.getdoc(record).partition("Attributes:\n")[2]
    found = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", listed, re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in found}


# ---------------------------------------------------------------- frames


def frame_tables() -> str:
    """A table of columns for each frame."""
    tables = (
        ("runs", "One row for each run, task or group, and metric.", frames.RUN_COLUMNS),
        ("samples", "One row for each logged question and filter.", frames.SAMPLE_COLUMNS),
        ("drafts", "One row for each generation: drafts, hidden layers and answers.", frames.DRAFT_COLUMNS),
        (
            "votes",
            "One row for each run, task and number of drafts. A task with repeats has rows for its answers too.",
            frames.VOTE_COLUMNS,
        ),
        ("judgements", "One row for each judged turn. It is empty if no run is judged.", frames.JUDGEMENT_COLUMNS),
    )
    return "".join(f"\n### {name}\n\n{sentence}\n\n{_columns(columns)}" for name, sentence, columns in tables) + "\n"


def _columns(columns: Mapping[str, FrameColumn]) -> str:
    rows = ((f"`{name}`", column.dtype, column.meaning) for name, column in columns.items())
    return _table(("column", "type", "meaning"), rows)


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = tuple(head)
    lines = (head, ("---",) * len(head), *rows)
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
