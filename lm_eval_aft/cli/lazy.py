"""A command group that lists its commands from a table and imports a command only when it is called.

So ``aft --help`` needs neither torch nor lm_eval. Other packages can add commands through an entry-point group.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from lm_eval_aft.cli.runner import run_guarded
from lm_eval_aft.core.errors import AFTError, ConfigError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

# Characters of a command's line in the help of its group.
MAX_SHORT_HELP = 70


@dataclass(frozen=True, slots=True)
class Command:
    """One command of a table.

    Attributes:
        target: Where it is: "module:attribute", a click command.
        short_help: Its line in the group's help.
    """

    target: str
    short_help: str


class LazyGroup(click.Group):
    """A click group whose commands are imported when they are called."""

    def __init__(
        self, *arguments: Any, table: Mapping[str, Command], entry_point_group: str = "", **settings: Any
    ) -> None:
        """Make the group.

        Args:
            *arguments: See ``click.Group``.
            table: The commands by name.
            entry_point_group: Entry-point group of commands of other packages; empty for none.
            **settings: See ``click.Group``.
        """
        super().__init__(*arguments, **settings)
        self.table, self.entry_point_group = table, entry_point_group

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **settings: Any,
    ) -> Any:
        """Run the group; see ``click.Command.main`` and ``run_guarded``."""
        if standalone_mode:
            run_guarded(super().main, args, prog_name=prog_name, complete_var=complete_var, **settings)
        return super().main(args, prog_name, complete_var, standalone_mode=False, **settings)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of all commands, in alphabetical order."""
        return sorted({*super().list_commands(ctx), *self.table, *self._added()})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return one command, or None if the name is unknown."""
        if cmd_name in self.table:
            return _load(cmd_name, self.table[cmd_name].target)
        added = self._added().get(cmd_name)
        return _load(cmd_name, added.value) if added else super().get_command(ctx, cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands with their short help. Only commands of other packages are imported."""
        if rows := self._short_helps():
            with formatter.section("Commands"):
                formatter.write_dl(rows)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """The commands, and options if one is begun, that a shell offers. Commands of the table are not imported."""
        rows = self._short_helps()
        commands = [CompletionItem(name, help=text) for name, text in rows if name.startswith(incomplete)]
        return [*commands, *click.Command.shell_complete(self, ctx, incomplete)]

    def _short_helps(self) -> list[tuple[str, str]]:
        """The names of all commands with their short help, in alphabetical order."""
        rows = {name: command.short_help for name, command in self.table.items()}
        rows |= {name: _short_help(name, point) for name, point in self._added().items()}
        return sorted(rows.items())

    def _added(self) -> dict[str, EntryPoint]:
        """The commands of other packages. They cannot replace a command of the table."""
        if not self.entry_point_group:
            return {}
        # This import takes a tenth of a command's start, and commands of the table do not need it.
        from importlib.metadata import entry_points

        points = entry_points(group=self.entry_point_group)
        return {point.name: point for point in points if point.name not in self.table}


def _short_help(name: str, point: EntryPoint) -> str:
    """The short help of another package's command, or the package's name if the command cannot be loaded."""
    try:
        return _load(name, point.value).get_short_help_str(limit=MAX_SHORT_HELP)
    except AFTError:
        return f"(from {point.module.partition('.')[0]}, which cannot be loaded)"


def _load(name: str, target: str) -> click.Command:
    module, _, attribute = target.partition(":")
    try:
        command = getattr(importlib.import_module(module), attribute)
    except ImportError as error:
        raise ConfigError(
            f"the command {name!r} cannot be loaded ({error}): install what is missing; the extras of lm_eval_aft "
            "are alpaca, ifeval, report and vllm"
        ) from error
    if not isinstance(command, click.Command):
        raise ConfigError(f"the command {name!r} points at {target}, which is not a click command: fix its entry point")
    return command
