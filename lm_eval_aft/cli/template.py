"""``aft template``: look at a prompt template before a run uses it."""

from __future__ import annotations

from pathlib import Path

import click

from lm_eval_aft.cli.paths import PATH
from lm_eval_aft.core.prompts import Template, check_templates
from lm_eval_aft.core.records import Chat, Message
from lm_eval_aft.core.terminal import show, visible

EXAMPLE = Chat((Message("user", "How many legs have 3 spiders?"),))
DRAFTS = ("3 * 8 = 24.\nThe answer is 24.", "Six legs each, so 18.")


@click.group()
def template() -> None:
    """Inspect a prompt template, the file that template= names."""


@template.command(short_help="Print the hash and both prompts of a template.")
@click.argument("file", type=PATH, required=False)
def check(file: Path | None) -> None:
    """Print the SHA-256 of a template, and both of its prompts for an example.

    FILE is a template. The default is the built-in one.
    """
    loaded = Template.load(None if file is None else str(file))
    show(visible(f"{loaded.name}: sha256 {loaded.digest}"))
    for name, chat in (("draft", loaded.draft_chat(EXAMPLE)), ("aggregate", loaded.aggregate_chat(EXAMPLE, DRAFTS))):
        show(f"\n{name} prompt")
        for message in chat.messages:
            show(visible(f"  {message.role}: {message.content!r}"))
    check_templates(loaded, None)
