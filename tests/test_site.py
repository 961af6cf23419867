"""The site's navigation and the pages agree. `make docs` also refuses dead links and missing anchors."""

from __future__ import annotations

import fnmatch
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from helpers.paths import ROOT
from helpers.site_links import repository_links

DOCS = ROOT / "docs"
SETTINGS = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
REPOSITORY = "https://github.com/OWNER/lm_eval_aft"


def pages_of(nav: Any) -> Iterator[str]:
    """The files that a navigation names, at any depth."""
    if isinstance(nav, str):
        yield nav
        return
    for entry in nav.values() if isinstance(nav, dict) else nav:
        yield from pages_of(entry)


def test_every_page_is_in_the_navigation_once_and_every_entry_exists():
    left_out = [f"{pattern.strip('/')}/*" for pattern in SETTINGS["not_in_nav"].split()]
    files = {file.relative_to(DOCS).as_posix() for file in DOCS.rglob("*.md")}
    expected = {file for file in files if not any(fnmatch.fnmatch(file, pattern) for pattern in left_out)}
    assert sorted(pages_of(SETTINGS["nav"])) == sorted(expected)


def test_the_build_is_strict_and_loads_no_fonts():
    assert SETTINGS["strict"] is True
    assert SETTINGS["theme"]["font"] is False
    assert set(SETTINGS["validation"]["links"].values()) == {"warn"}


def test_lists_begin_after_a_blank_line():
    """Without it mkdocs shows the items as one paragraph, though GitHub shows a list."""
    item = re.compile(r"(?:[-*]|\d+\.) ")
    for file in sorted(DOCS.rglob("*.md")):
        text = re.sub(r"```.*?```", "", file.read_text(encoding="utf-8"), flags=re.DOTALL)
        lines = text.splitlines()
        for before, line in itertools.pairwise(lines):
            starts = item.match(line) and before.strip() and not item.match(before) and not before.startswith(" ")
            assert not starts, (file.name, line)


@pytest.mark.parametrize(
    ("link", "expected"),
    [
        ("../tasks/aft_gsm8k/README.md", f"{REPOSITORY}/blob/main/tasks/aft_gsm8k/README.md"),
        ("../CHANGELOG.md#unreleased", f"{REPOSITORY}/blob/main/CHANGELOG.md#unreleased"),
        ("../docs/install.md", "../docs/install.md"),
        ("../no/such/file.md", "../no/such/file.md"),
        ("install.md", "install.md"),
    ],
)
def test_links_out_of_the_docs_become_links_to_the_repository(link: str, expected: str):
    page = repository_links(f"See [it]({link}).", DOCS / "tutorial.md", DOCS, REPOSITORY)
    assert page == f"See [it]({expected})."


def test_no_page_loads_a_picture_or_script_from_a_network():
    for file in sorted(Path(DOCS).rglob("*.md")):
        text = file.read_text(encoding="utf-8")
        assert not re.search(r"!\[[^\]]*\]\(https?:|<script|<img[^>]+src=.https?:", text), file.name
