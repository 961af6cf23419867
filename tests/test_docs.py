"""The documents say what the code says: messages exist, links lead somewhere, commands and options are real."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lm_eval_aft.cli import COMMANDS, aft

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*(ROOT / "docs").glob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"])


def source() -> str:
    """All string literals of the package run together, so that a sentence broken over lines is found."""
    text = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "lm_eval_aft").rglob("*.py"))
    return re.sub(r'"\s*\n\s*f?"', "", text)


def messages() -> list[str]:
    rows = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8").splitlines()
    cells = [row.split("|")[1] for row in rows if row.startswith("| `")]
    return [part for cell in cells for part in re.findall(r"`([^`]+)`", cell)]


@pytest.mark.parametrize("message", messages())
def test_every_message_of_troubleshooting_is_one_of_ours(message: str):
    known = source().replace("{kind}", "loglikelihood")
    assert message in known or message.replace("loglikelihood requests", "{kind} requests") in known


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path):
    links = re.findall(r"\]\((?!http)([^)#]+)", page.read_text(encoding="utf-8"))
    missing = [link for link in links if not (page.parent / link).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_aft_command_and_option_on_a_page_exists(page: Path):
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    for line in re.findall(r"^ {4,}(aft [a-z].*)$", text, re.MULTILINE):
        command, *words = line.split("  #")[0].split()[1:]
        if command not in COMMANDS:  # commands of trainers have tests of their own
            continue
        loaded = aft.get_command(None, command)
        group = getattr(loaded, "commands", None) or hasattr(loaded, "get_command")
        if group:
            continue
        known = {option for parameter in loaded.params for option in parameter.opts} | {"--help", "-h"}
        used = {word.split("=")[0] for word in words if word.startswith("--")}
        assert used <= known, (line, used - known)
