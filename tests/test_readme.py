"""The README agrees with the code: arguments, start-up line, commands and links."""

from __future__ import annotations

import re

import pytest
from click.testing import CliRunner

from helpers.paths import ROOT
from lm_eval_aft.cli import COMMANDS, aft
from lm_eval_aft.core.config import markdown_table

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_table_of_arguments_is_that_of_the_config():
    assert markdown_table() in README


def test_the_start_up_line_is_quoted_exactly():
    line = (ROOT / "startup" / "lm_eval_aft.pth").read_text().strip()
    assert f"`{line}`" in README


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_shows_its_help(name):
    result = CliRunner().invoke(aft, [name, "--help"])
    assert result.exit_code == 0, result.output
    assert "Usage:" in result.output


def test_commands_and_options_in_the_readme_exist():
    block = " ".join(re.findall(r"^    (.*)$", README, re.MULTILINE))
    options = set(re.findall(r"aft sweep.*?--output_path", block)[0].split())
    help_text = CliRunner().invoke(aft, ["sweep", "--help"]).output
    assert all(option in help_text for option in options if option.startswith("--"))
    targets = re.findall(r"^(\S+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {"demo", "test"} <= set(targets)
    # Both stand on the first screen.
    assert README.index("make demo") < README.index("make test") < 1500


def test_every_link_to_a_file_works():
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target
