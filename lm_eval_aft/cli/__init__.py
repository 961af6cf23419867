"""The command ``aft``: what is done with checkpoints, runs and results outside lm-eval.

Knows the names of its commands, one line about each and where they live; imports a command only when it is called,
so that ``aft --help`` needs neither torch nor lm_eval. Other packages (our own ``trainers`` first of all) add commands
through the entry-point group ``lm_eval_aft.commands``. Called by the console script ``aft``.
"""

import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points

import click

from lm_eval_aft import __version__, _autoload
from lm_eval_aft.core.errors import AFTError, ConfigError

COMMAND_GROUP = "lm_eval_aft.commands"


@dataclass(frozen=True)
class Command:
    """Where a command lives ("module:attribute", a click command) and its line in ``aft --help``."""

    target: str
    short_help: str


COMMANDS: dict[str, Command] = {
    "cache": Command("lm_eval_aft.cli.cache:cache", "Look into a draft store."),
    "compare": Command("lm_eval_aft.cli.compare:compare", "Is a run better than a baseline: tests, intervals, cost."),
    "diagnose": Command(
        "lm_eval_aft.analysis.diagnosis:diagnose", "Say what aggregation did: selected, rescued, copied, lost."
    ),
    "judge": Command("lm_eval_aft.cli.judge:judge", "Have a run's answers judged: MT-Bench, AlpacaEval."),
    "plot": Command("lm_eval_aft.analysis.curves:plot", "Draw score against k, layers and cost from a folder of runs."),
    "report": Command(
        "lm_eval_aft.analysis.report.leaderboard:report",
        "A leaderboard of runs with cost; --html: a page of all drafts.",
    ),
    "sweep": Command("lm_eval_aft.cli.sweep:sweep", "Evaluate a grid of k and layers, generating nothing twice."),
    "template": Command("lm_eval_aft.cli.template:template", "Look at a prompt template."),
    "votes": Command(
        "lm_eval_aft.analysis.votes:votes", "Score the drafts themselves: mean draft, majority vote, oracle."
    ),
}


def _joined() -> dict[str, EntryPoint]:
    """Return the commands other packages add; a name of our own table cannot be taken over."""
    return {point.name: point for point in entry_points(group=COMMAND_GROUP) if point.name not in COMMANDS}


def load(name: str, target: str) -> click.Command:
    """Import a command; one that cannot be imported is a ConfigError."""
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


class LazyGroup(click.Group):
    """A click group that lists its commands from the table and imports the one that is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return every command's name, ours and joined, in alphabetical order."""
        return sorted({*super().list_commands(ctx), *COMMANDS, *_joined()})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return one command, or None where the name is unknown."""
        if cmd_name in COMMANDS:
            return load(cmd_name, COMMANDS[cmd_name].target)
        joined = _joined().get(cmd_name)
        return load(cmd_name, joined.value) if joined else super().get_command(ctx, cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands from the table: click's own way would import each of them."""
        rows = {name: command.short_help for name, command in COMMANDS.items()}
        rows |= {name: f"(from {point.module.partition('.')[0]})" for name, point in _joined().items()}
        if rows:
            with formatter.section("Commands"):
                formatter.write_dl(sorted(rows.items()))


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "-V", "--version", prog_name="lm_eval_aft")
def aft() -> None:
    """Aggregation fine-tuning beside lm-eval: runs are made by lm_eval --model aft, the rest is here."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ``aft``; an error of ours is one sentence on stderr and exit code 2."""
    try:
        aft.main(args=arguments, prog_name="aft")
    except AFTError as error:
        _autoload.print_error(error)
        sys.exit(error.exit_code)
