"""Numbers that are not finite, home folders, files that look like a store, and templates without drafts."""

from __future__ import annotations

import logging
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from lm_eval_aft.cli import aft
from lm_eval_aft.core.arguments import real, sampling_temperature
from lm_eval_aft.core.config import AFTConfig
from lm_eval_aft.core.errors import AFTError, ConfigError, JudgeError, StoreError, TemplateError
from lm_eval_aft.core.prompts import Template, check_templates
from lm_eval_aft.core.records import Completion
from lm_eval_aft.judging.cache import JudgeCache
from lm_eval_aft.storage.draft_store import SQLiteStore

NO_NUMBERS = ["nan", "NaN", "inf", "-inf", "1e999", "-1e999", "infinity"]


def float_options() -> list[tuple[tuple[str, ...], str]]:
    """Every option of every command that takes a number with decimals, with the words of its command."""
    found = []

    def search(context: click.Context, command: click.Command, words: tuple[str, ...]) -> None:
        if isinstance(command, click.Group):
            for name in command.list_commands(context):
                below = command.get_command(context, name)
                assert below is not None
                search(click.Context(below, context, name), below, (*words, name))
        for option in command.params:
            if isinstance(option.type, click.types.FloatParamType):
                found.append((words, option.opts[0]))

    search(click.Context(aft, info_name="aft"), aft, ())
    return found


FLOATS = float_options()


def test_the_options_that_are_tried() -> None:
    names = {f"{' '.join(words)} {option}" for words, option in FLOATS}
    assert {"votes --level", "judge mt_bench --temperature", "sweep --limit", "data aggregate --mixed"} <= names
    assert len(FLOATS) >= 10


@pytest.mark.parametrize("number", NO_NUMBERS)
@pytest.mark.parametrize(
    ("words", "option"), FLOATS, ids=lambda value: value if isinstance(value, str) else "_".join(value)
)
def test_an_option_that_is_no_finite_number(words: tuple[str, ...], option: str, number: str) -> None:
    done = CliRunner().invoke(aft, [*words, option, number])
    refused = done.exit_code == 2 or isinstance(done.exception, AFTError)
    assert refused
    assert f"Invalid value for '{option}'" in done.output, done.output


@pytest.mark.parametrize("number", [*map(float, NO_NUMBERS), *NO_NUMBERS, 10**400, -1e-300, True])
def test_an_argument_that_is_no_finite_number(number: Any) -> None:
    for name in ("temperature", "final_temperature", "top_p", "final_top_p"):
        with pytest.raises(ConfigError, match=rf"^{name}=.* is not allowed"):
            AFTConfig.split({name: number})
    with pytest.raises(ConfigError):
        real(0)("timeout_s", number)
    with pytest.raises(ConfigError):
        sampling_temperature("--temperature", number)


def test_a_home_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    config, _ = AFTConfig.split({"record": "~/a", "cache": "~/b.sqlite"})
    assert (config.record, config.cache) == (f"{tmp_path}/a", f"{tmp_path}/b.sqlite")
    # Only a word that begins with the sign is a home.
    assert AFTConfig.split({"record": "./~x/y"})[0].record == "./~x/y"
    assert AFTConfig.split({"record": "a~b"})[0].record == "a~b"
    (tmp_path / "t.j2").write_text("{% block draft %}{% endblock %}{% block aggregate %}{{ drafts }}{% endblock %}")
    assert Template.load("~/t.j2").name == str(tmp_path / "t.j2")


# ---------------------------------------------------------------- files of SQLite


def filled(path: Path, count: int = 3) -> SQLiteStore:
    store = SQLiteStore(path)
    for number in range(count):
        store.put(f"{number:064x}", Completion("text", (), "stop", 1, 1, 1))
    store.flush()
    return store


@pytest.mark.parametrize(
    "content", [b"x", b"\0", b"SQLite format 3\0", b"x" * 511, b"x" * 512, b"PK\3\4" + b"\0" * 5000]
)
def test_a_file_that_is_no_store_is_left_alone(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "s.sqlite"
    file.write_bytes(content)
    for opened in (SQLiteStore, lambda path: SQLiteStore(path, create=False), JudgeCache):
        with pytest.raises((StoreError, JudgeError), match=r"s\.sqlite"):
            opened(file)
        assert file.read_bytes() == content
    assert [each.name for each in tmp_path.iterdir()] == ["s.sqlite"]


def test_an_empty_file_becomes_a_store(tmp_path: Path) -> None:
    (tmp_path / "s.sqlite").write_bytes(b"")
    filled(tmp_path / "s.sqlite").close()
    with closing(SQLiteStore(tmp_path / "s.sqlite", create=False)) as store:
        assert store.info().generations == 3


@pytest.mark.parametrize("path", ["", "/dev/null", "/dev/zero"])
def test_a_path_that_is_no_ordinary_file(tmp_path: Path, path: str) -> None:
    with pytest.raises(StoreError, match=r"is a folder, not a draft store|is not a draft store but"):
        SQLiteStore(Path(path or tmp_path))


@pytest.mark.parametrize("create", [False, True])
def test_a_store_that_was_copied_without_its_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, create: bool
) -> None:
    caplog.set_level(logging.INFO)
    with closing(filled(tmp_path / "s.sqlite")):
        shutil.copy(tmp_path / "s.sqlite", tmp_path / "alone.sqlite")
        for name in ("s.sqlite", "s.sqlite-wal"):
            shutil.copy(tmp_path / name, tmp_path / f"whole-{name}")
    with closing(SQLiteStore(tmp_path / "whole-s.sqlite")) as copy:
        assert copy.info().generations == 3
    assert not caplog.messages
    with closing(SQLiteStore(tmp_path / "alone.sqlite", create=create)) as copy:
        assert copy.info().generations == 0
    assert "alone.sqlite is empty: if it is a copy, copy" in caplog.text


def test_a_store_of_an_older_version_that_was_copied_without_its_log(tmp_path: Path) -> None:
    # Until its first checkpoint such a file held a header only.
    with closing(sqlite3.connect(tmp_path / "s.sqlite", isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode = WAL")
    with pytest.raises(StoreError, match=r"not a draft store but an empty file: if it is a copy, copy .*-wal too"):
        SQLiteStore(tmp_path / "s.sqlite", create=False)


# ---------------------------------------------------------------- templates that show nothing

SHOWS = {
    "{{ drafts | join(' ') }}": "",
    "{% for draft in drafts %}{{ draft }}{% endfor %}": "",
    "Answer again.": "drafts",
    "{{ drafts | length }}": "drafts",
    "{{ drafts[0] }}": "drafts",
    "{{ question }}": "drafts",
    "": "drafts",
}


@pytest.mark.parametrize("block", SHOWS)
def test_a_template_that_shows_no_drafts(block: str, tmp_path: Path) -> None:
    file = tmp_path / "t.j2"
    file.write_text("{% block draft %}{% endblock %}{% block aggregate %}" + block + "{% endblock %}")
    done = CliRunner().invoke(aft, ["template", "check", str(file)])
    if not SHOWS[block]:
        assert done.exit_code == 0
        return
    # Both prompts are shown before the sentence, so that the reason can be seen.
    assert "aggregate prompt" in done.output
    assert isinstance(done.exception, TemplateError)
    assert str(done.exception).endswith("t.j2 does not show the drafts: correct the template.")
    with pytest.raises(TemplateError, match="does not show the drafts"):
        check_templates(Template.load(str(file)), None)
    check_templates(Template.load(str(file)), None, drafts=False)
