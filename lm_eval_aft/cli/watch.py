"""``aft watch``: a live view of a run that is under way or was killed."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from lm_eval_aft.analysis.watching import Block, Look, as_lines, blocks, look_at
from lm_eval_aft.cli.paths import PATH
from lm_eval_aft.core.arguments import real
from lm_eval_aft.core.errors import Stopped
from lm_eval_aft.core.terminal import show

# A store of gigabytes takes seconds to count. Counting takes at most this share of the time.
_BUSY_SHARE = 0.1
_BAR_WIDTH = 24
# The exit code of Ctrl-C.
LEFT = 128 + signal.SIGINT


def _interval(ctx: click.Context, parameter: click.Parameter, value: str) -> float:
    seconds: float = real(0.1, 86_400)("--interval", value)
    return seconds


@click.command()
@click.argument("folder", type=PATH)
@click.option("--once", is_flag=True, help="Print one state and end.")
@click.option(
    "--interval",
    metavar="SECONDS",
    default="2",
    show_default=True,
    callback=_interval,
    help="Seconds between two looks.",
)
def watch(folder: Path, once: bool, interval: float) -> None:
    """Show what the runs in FOLDER are doing, until all have finished or you press Ctrl-C.

    FOLDER is the folder that record= names, or the file of a draft store. Nothing in it is changed or locked.
    """
    first = look_at(folder)
    if once:
        show(as_lines(blocks(first)))
        return
    try:
        show_each = _show_live if _is_terminal() else _show_lines
        show_each(_looks(folder, first, interval))
    except Stopped as stop:
        # Ctrl-C is the way to leave.
        if stop.exit_code != LEFT:
            raise


def _is_terminal() -> bool:
    from rich.console import Console

    console = Console()
    return sys.stdout is not None and sys.stdout.isatty() and not console.is_dumb_terminal


def _show_lines(looks: Iterable[list[Block]]) -> None:
    """Print the lines of each state that differs from the one before."""
    shown = ""
    for seen in looks:
        text = as_lines(seen)
        if text != shown:
            show(text + "\n")
        shown = text


def _show_live(looks: Iterable[list[Block]]) -> None:
    """Draw each state in the same place of the terminal. The last state stays there."""
    from rich.live import Live

    with Live(auto_refresh=False) as live:
        for seen in looks:
            live.update(_drawn(seen), refresh=True)


def _looks(folder: Path, first: Look, interval: float) -> Iterator[list[Block]]:
    """What each look shows, until all runs have finished. The waits between are longer if looking takes long."""
    look, took_s = first, 0.0
    yield blocks(look, first)
    while not look.over:
        time.sleep(max(interval, took_s / _BUSY_SHARE))
        started = time.monotonic()
        look = look_at(folder)
        took_s = time.monotonic() - started
        yield blocks(look, first)


def _drawn(shown: Sequence[Block]) -> Any:
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    parts: list[Any] = []
    for block in shown:
        grid = Table.grid(padding=(0, 2))
        for line in block.lines:
            grid.add_row(Text(f"  {line.label}"), Text(line.text))
            if line.share is not None:
                grid.add_row("", ProgressBar(completed=100 * line.share, width=_BAR_WIDTH))
        parts += [Text(block.title, style="bold"), grid]
    return Group(*parts)
