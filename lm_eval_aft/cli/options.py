"""The options that several commands share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import click

from lm_eval_aft.analysis.report.tables import FORMS
from lm_eval_aft.cli.numbers import Real
from lm_eval_aft.cli.paths import PATH
from lm_eval_aft.core.errors import ConfigError
from lm_eval_aft.core.usage import TokenCosts

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

LEVEL = click.option(
    "--level",
    type=Real(0, 1, min_open=True, max_open=True),
    default=0.95,
    show_default=True,
    help="Confidence of the intervals, between 0 and 1.",
)
MEMBERS = click.option("--members", is_flag=True, help="Also show the tasks and groups within each group.")
REGEX = click.option(
    "--regex",
    help="Regular expression that extracts answers. The answer is its last match, or the first group of that match. "
    "The default is the task's filter.",
)


# A command receives them as ``price_in`` and ``price_out``.
_MONEY = (
    click.option("--price-in", type=Real(0), help="Cost of a million prompt tokens, for runs that do not state it."),
    click.option("--price-out", type=Real(0), help="Cost of a million generated tokens, likewise."),
)


def money_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--price-in`` and ``--price-out`` to a command."""
    for option in reversed(_MONEY):
        command = option(command)
    return command


def given_costs(price_in: float | None, price_out: float | None) -> TokenCosts | None:
    """What tokens cost by the options of ``money_options``; None if they are not given.

    Raises:
        ConfigError: If only one is given.
    """
    if price_in is None and price_out is None:
        return None
    if price_in is None or price_out is None:
        raise ConfigError("--price-in and --price-out need each other: give both, 0 for tokens that cost nothing.")
    return TokenCosts(price_in, price_out)


def traces_option(place: str) -> Decorator:
    """The option ``--traces`` of a command that searches for traces below ``place``."""
    return click.option(
        "--traces", type=PATH, help=f"Folder that record= named. Give it if the traces are not below {place}."
    )


def format_option(forms: Sequence[str] = FORMS) -> Decorator:
    """The option ``--format``, which a command receives as ``form``."""
    return click.option(
        "--format", "form", type=click.Choice(forms), default="text", show_default=True, help="Form of the output."
    )
