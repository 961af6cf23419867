"""The documents say what the code says: messages exist, links lead somewhere, commands and options are real."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import click
import pytest

from helpers.paths import ROOT
from lm_eval_aft.cli import aft
from lm_eval_aft.core.config import AFTConfig

PAGES = sorted(page for pattern in ("*.md", "docs/*.md", "tasks/*/*.md") for page in ROOT.glob(pattern))
ENGINES_OWN = {
    "base_url",
    "concurrency",
    "dtype",
    "model",
    "peft",
    "pretrained",
    "tokenizer",
}  # of those the pages show


def source() -> str:
    """All string literals of both packages run together, so that a sentence broken over lines is found."""
    files = [file for package in ("lm_eval_aft", "trainers") for file in (ROOT / package).rglob("*.py")]
    text = "".join(file.read_text(encoding="utf-8") for file in files)
    return re.sub(r'"\s*\n\s*f?"', "", text)


def messages() -> list[str]:
    rows = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8").splitlines()
    cells = [row.split("|")[1] for row in rows if row.startswith("| `")]
    return [part for cell in cells for part in re.findall(r"`([^`]+)`", cell)]


@pytest.mark.parametrize("message", messages())
def test_every_message_of_troubleshooting_is_one_of_ours(message: str):
    known = source().replace("{kind}", "loglikelihood")
    assert message in known or message.replace("loglikelihood requests", "{kind} requests") in known


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page: Path):
    links = re.findall(r"\]\((?!http)([^)#]+)", page.read_text(encoding="utf-8"))
    missing = [link for link in links if not (page.parent / link).exists()]
    assert not missing


def command_of(words: list[str]) -> tuple[click.Command, list[str]]:
    """The command that words name, groups followed down, and what is left of the words."""
    command: click.Command = aft
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        found = command.get_command(click.Context(command), words[0])
        assert found is not None, f"{command.name} has no command {words[0]}"
        command, words = found, words[1:]
    return command, words


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_aft_command_and_option_on_a_page_exists(page: Path):
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    for line in re.findall(r"^ {4,}(aft [a-z].*)$", text, re.MULTILINE):
        command, words = command_of(line.split("  #")[0].split()[1:])
        known = {option for parameter in command.params for option in parameter.opts} | {"--help", "-h"}
        used = {word.split("=")[0] for word in words if word.startswith("-")}
        assert used <= known, (line, used - known)


def with_its_helpers(script: Path) -> str:
    """A script's source with those of the modules beside it that it imports."""
    source = script.read_text(encoding="utf-8")
    beside = (script.with_name(f"{name}.py") for name in re.findall(r"^from (\w+) import", source, re.MULTILINE))
    return source + "".join(file.read_text(encoding="utf-8") for file in beside if file.exists())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_script_and_option_on_a_page_exists(page: Path):
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    for script, rest in re.findall(r"python (benchmarks/\w+\.py)([^`\n]*)", text):
        source = with_its_helpers(ROOT / script)
        for option in re.findall(r" (--[\w-]+)", rest):
            assert f'"{option}"' in source, (script, option)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_model_argument_on_a_page_exists(page: Path):
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    ours = {field.name for field in dataclasses.fields(AFTConfig)}
    for line in re.findall(r"^ {4,}(lm_eval --model aft .*)$", text, re.MULTILINE):
        given = re.search(r"--model_args (\S+)", line)
        names = set(re.findall(r"(?:^|,)(\w+)=", given[1])) if given else set()
        assert names <= ours | ENGINES_OWN, (line, names - ours - ENGINES_OWN)
        assert "--tasks" in line or line.endswith("..."), line
