"""The README and the pages it links agree with the code: arguments, start-up line, commands and links."""

from __future__ import annotations

import re
import tomllib

import pytest
import yaml
from click.testing import CliRunner

from helpers.paths import ROOT
from lm_eval_aft.cli import COMMANDS, aft

README = (ROOT / "README.md").read_text(encoding="utf-8")


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def test_the_readme_is_short_and_begins_with_the_two_commands():
    lines = README.splitlines()
    assert len(lines) <= 150
    demo, test = (
        next(n for n, line in enumerate(lines) if line.startswith(f"make {name}")) for name in ("demo", "test")
    )
    assert demo < test < 25
    targets = re.findall(r"^(\S+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {"demo", "test"} <= set(targets)


def test_the_start_up_line_is_quoted_exactly():
    line = (ROOT / "startup" / "lm_eval_aft.pth").read_text().strip()
    assert f"`{line}`" in page("install.md")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_shows_its_help_and_is_in_the_readme(name):
    result = CliRunner().invoke(aft, [name, "--help"])
    assert result.exit_code == 0, result.output
    assert "Usage:" in result.output
    assert f"`aft {name}" in README


def test_every_link_to_a_file_works():
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target


def test_the_table_of_versions_is_that_of_the_requirements_and_pins():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    required = [*project["dependencies"], *project["optional-dependencies"]["vllm"]]
    pinned = (ROOT / "constraints.txt").read_text() + (ROOT / "constraints-vllm.txt").read_text()
    rows = re.findall(r"^\| ([\w-]+) \| ([\d.]+) \| ([\d.]+) \|", page("install.md"), re.MULTILINE)
    assert len(rows) == 8
    assert rows.pop(0) == ("Python", project["requires-python"].removeprefix(">="), "3.11")
    for name, minimum, pin in rows:
        assert f"{name.lower()}>={minimum}" in required
        assert re.search(
            rf"^{name.replace('-', '_')}(?:-cpu)?=={re.escape(pin)}$", pinned, re.IGNORECASE | re.MULTILINE
        )


def test_the_citation_has_the_version_and_address_of_the_project():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    released = re.findall(r"^## \[([\d.]+)\]", page("../CHANGELOG.md"), re.MULTILINE)
    assert citation["version"] == released[0]
    assert citation["authors"] == [{"name": "The lm_eval_aft contributors"}]
    assert citation["repository-code"] == project["urls"]["Homepage"]
    assert citation["license"] == project["license"]
