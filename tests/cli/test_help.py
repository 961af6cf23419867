"""The help of every command: whole sentences in plain words, and short lists that are not cut."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields

import click
import pytest

from helpers.prose import FORBIDDEN_WORD, MOST_WORDS, sentences
from lm_eval_aft.cli import aft
from lm_eval_aft.core.config import AFTConfig
from trainers.family.__main__ import main as family
from trainers.settings import TrainConfig

# A capital letter at the start, and a full stop at the end.
SENTENCE = re.compile(r"[A-Z].*\.", re.DOTALL)


def commands(command: click.Command, context: click.Context) -> Iterator[tuple[click.Context, click.Command]]:
    """A command and all commands below it, each with its context."""
    yield context, command
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            yield from commands(below, click.Context(below, context, name))


ALL = [
    pytest.param(context, command, id=context.command_path)
    for root, name in ((aft, "aft"), (family, "family"))
    for context, command in commands(root, click.Context(root, info_name=name))
]


def check(text: str) -> None:
    """The text is made of whole sentences in plain words."""
    assert SENTENCE.fullmatch(text), text
    assert not FORBIDDEN_WORD.search(text), text
    assert all(len(sentence.split()) <= MOST_WORDS for sentence in sentences(text)), text


@pytest.mark.parametrize(("context", "command"), ALL)
def test_a_command_and_its_options_are_explained_in_sentences(context: click.Context, command: click.Command):
    paragraphs = [" ".join(part.split()) for part in (command.help or "").split("\n\n")]
    for paragraph in paragraphs:
        check(paragraph)
    for parameter in command.get_params(context):
        if isinstance(parameter, click.Option):
            assert parameter.help, parameter.opts
            check(parameter.help)


@pytest.mark.parametrize(("context", "command"), [each for each in ALL if isinstance(each.values[1], click.Group)])
def test_the_list_of_commands_is_whole_at_100_columns(context: click.Context, command: click.Command):
    wide = click.Context(command, context.parent, context.info_name, terminal_width=100)
    listed = command.get_help(wide).partition("Commands:\n")[2].splitlines()
    names = command.list_commands(wide)
    assert [line.split()[0] for line in listed] == names
    for line in listed:
        check(line.split(maxsplit=1)[1])
        assert not line.endswith("..."), line


@pytest.mark.parametrize("settings", [AFTConfig, TrainConfig])
def test_each_setting_is_explained_in_a_sentence(settings: type):
    for field in fields(settings):
        check(field.metadata["meaning"])
