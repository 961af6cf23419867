"""The pages agree with the code: the messages, links, files, commands and options that they name exist."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import click
import pytest

from helpers.pages import FENCE, code_lines
from helpers.paths import ROOT
from lm_eval_aft.cli import aft
from lm_eval_aft.core.config import AFTConfig

PAGES = sorted(page for pattern in ("*.md", "docs/**/*.md", "tasks/*/*.md") for page in ROOT.glob(pattern))
# Model arguments of engines that the pages use.
ENGINE_ARGUMENTS = {
    "base_url",
    "concurrency",
    "dtype",
    "look_ahead",
    "lora_local_path",
    "model",
    "peft",
    "pretrained",
    "tokenizer",
}


# Files that a page tells its reader to write.
FILES_OF_READERS = {"arith_reward.py", "fleet.py"}
# Placeholders of message templates, with the value that the pages show.
PLACEHOLDERS = {"{kind}": "loglikelihood", "{kind.name}": "draft store"}


def source() -> str:
    """The code of both packages, with adjacent string literals joined and placeholders filled in."""
    files = [file for package in ("lm_eval_aft", "trainers") for file in (ROOT / package).rglob("*.py")]
    text = re.sub(r'"\s*\n\s*f?"', "", "".join(file.read_text(encoding="utf-8") for file in files))
    for placeholder, value in PLACEHOLDERS.items():
        text = text.replace(placeholder, value)
    return text


def messages() -> list[str]:
    rows = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8").splitlines()
    cells = [row.split("|")[1] for row in rows if row.startswith("| `")]
    return [part for cell in cells for part in re.findall(r"`([^`]+)`", cell)]


@pytest.mark.parametrize("message", messages())
def test_every_message_of_troubleshooting_is_one_of_ours(message: str):
    assert message in source()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_between_pages_works(page: Path):
    links = re.findall(r"\]\((?!http)([^)#]+)", page.read_text(encoding="utf-8"))
    missing = [link for link in links if not (page.parent / link).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_module_on_a_page_exists(page: Path):
    folders = (page.parent, ROOT, ROOT / "lm_eval_aft", ROOT / "trainers")
    for name in re.findall(r"(?<![\w/.])[a-z_][a-z_/]*\.py\b", page.read_text(encoding="utf-8")):
        assert name in FILES_OF_READERS or any((folder / name).exists() for folder in folders), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_code_is_in_fenced_blocks_with_a_language(page: Path):
    text = page.read_text(encoding="utf-8")
    fences = re.findall(r"^```(.*)$", text, re.MULTILINE)
    assert len(fences) % 2 == 0
    assert all(fences[::2])
    assert not re.search(r"\n\n {4,}\S", FENCE.sub("", text))


def command_of(words: list[str]) -> tuple[click.Command, list[str]]:
    """Follow command groups by the first words. Returns the command and the remaining words."""
    command: click.Command = aft
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        subcommand = command.get_command(click.Context(command), words[0])
        assert subcommand is not None, f"{command.name} has no command {words[0]}"
        command, words = subcommand, words[1:]
    return command, words


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_aft_command_and_option_on_a_page_exists(page: Path):
    for line in code_lines(page.read_text(encoding="utf-8")):
        if not re.match(r"aft [a-z]", line):
            continue
        command, words = command_of(line.split()[1:])
        known = {option for parameter in command.params for option in parameter.opts} | {"--help", "-h"}
        used = {word.split("=")[0] for word in words if word.startswith("-")}
        assert used <= known, (line, used - known)


def with_its_helpers(script: Path) -> str:
    """The source of a script, followed by the sources of the modules in its folder that it imports."""
    source = script.read_text(encoding="utf-8")
    modules = (script.with_name(f"{name}.py") for name in re.findall(r"^from (\w+) import", source, re.MULTILINE))
    return source + "".join(file.read_text(encoding="utf-8") for file in modules if file.exists())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_script_and_option_on_a_page_exists(page: Path):
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    for script, rest in re.findall(r"python (benchmarks/\w+\.py)([^`\n]*)", text):
        source = with_its_helpers(ROOT / script)
        for option in re.findall(r" (--[\w-]+)", rest):
            assert f'"{option}"' in source, (script, option)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_model_argument_on_a_page_exists(page: Path):
    ours = {field.name for field in dataclasses.fields(AFTConfig)}
    for line in code_lines(page.read_text(encoding="utf-8")):
        if not line.startswith("lm_eval --model aft "):
            continue
        arguments = re.search(r"--model_args (\w\S+)", line)
        names = set(re.findall(r"(?:^|,)(\w+)=", arguments[1])) if arguments else set()
        assert names <= ours | ENGINE_ARGUMENTS, (line, names - ours - ENGINE_ARGUMENTS)
        assert "--tasks" in line or line.endswith("..."), line
