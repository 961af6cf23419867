"""``aft template``: look at a prompt template before a run uses it."""

from __future__ import annotations

from pathlib import Path

import click

from lm_eval_aft.cli.paths import PATH
from lm_eval_aft.core.prompts import Template
from lm_eval_aft.core.records import Chat, Message
from lm_eval_aft.core.terminal import show, visible

EXAMPLE = Chat((Message("user", "How many legs have 3 spiders?"),))
DRAFTS = ("3 * 8 = 24.\nThe answer is 24.", "Six legs each, so 18.")


@click.group()
def template() -> None:
    """Look at a prompt template, as template= of --model aft takes it."""


@template.command()
@click.argument("file", type=PATH, required=False)
def check(file: Path | None) -> None:
    """Compile FILE or the default template, and print its sha256 and both prompts for an example."""
    loaded = Template.load(None if file is None else str(file))
    show(visible(f"{loaded.name}: sha256 {loaded.digest}"))
    for name, chat in (("draft", loaded.draft_chat(EXAMPLE)), ("aggregate", loaded.aggregate_chat(EXAMPLE, DRAFTS))):
        show(f"\n{name} prompt")
        for message in chat.messages:
            show(visible(f"  {message.role}: {message.content!r}"))
