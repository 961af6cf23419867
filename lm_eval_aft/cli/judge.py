"""``aft judge``: the benchmarks that a model judges, a command each, imported when it is called.

Knows their names and one line about each. Called by ``cli``.
"""

from __future__ import annotations

import click

from lm_eval_aft.cli import Command, load

BENCHMARKS = {
    "alpaca_eval": Command(
        "lm_eval_aft.cli.judge_alpaca_eval:alpaca_eval", "Win rates against reference answers, length-controlled."
    ),
    "mt_bench": Command("lm_eval_aft.cli.judge_mt_bench:mt_bench", "Ratings from 1 to 10 of each turn of a dialogue."),
}


class Benchmarks(click.Group):
    """A group that lists its commands from the table and imports the one that is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Every benchmark's name, in alphabetical order."""
        return sorted(BENCHMARKS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return one command, or None where the name is unknown."""
        return load(cmd_name, BENCHMARKS[cmd_name].target) if cmd_name in BENCHMARKS else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list from the table."""
        with formatter.section("Commands"):
            formatter.write_dl(sorted((name, command.short_help) for name, command in BENCHMARKS.items()))


@click.group(cls=Benchmarks)
def judge() -> None:
    """Have a run's answers judged by any model behind an OpenAI-compatible address.

    The key, where one is needed, comes from the environment variable OPENAI_API_KEY. Each judgement is kept the moment
    it comes, so a command that was stopped goes on where it was.
    """
