"""``aft cache``: its output, its exit codes, and the files that it refuses."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from lm_eval_aft.cli import aft
from lm_eval_aft.core.errors import StoreError
from lm_eval_aft.core.records import Completion
from lm_eval_aft.storage.draft_store import SQLiteStore


def cache(*arguments: object) -> Result:
    return CliRunner().invoke(aft, ["cache", *map(str, arguments)])


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Three generations of 2 tokens each."""
    path = tmp_path / "drafts.sqlite"
    opened = SQLiteStore(path)
    for number in range(3):
        opened.put(f"{number:064x}", Completion(f"text {number}", (), "stop", 5, 5, 2))
    opened.close()
    return path


def damage(path: Path, number: int) -> str:
    key = f"{number:064x}"
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("UPDATE generations SET text = 'x' WHERE key = ?", (bytes.fromhex(key),))
    return key


def test_info_counts(store: Path):
    result = cache("info", store)
    assert result.exit_code == 0
    assert result.output.startswith(f"{store}: 3 generations, 6 generated tokens\n")


def test_a_sound_store_is_verified_with_exit_code_0(store: Path):
    result = cache("verify", store)
    assert (result.exit_code, result.output) == (0, f"{store}: 3 generations read, 0 damaged\n")


def test_damaged_rows_are_listed_with_exit_code_1(store: Path):
    keys = [damage(store, 0), damage(store, 2)]
    result = cache("verify", store)
    assert result.exit_code == 1
    assert result.output.splitlines() == [
        *(f"damaged: {key}" for key in keys),
        f"{store}: 3 generations read, 2 damaged",
    ]
    # Counting does not read the texts.
    assert cache("info", store).exit_code == 0


def test_looking_removes_and_repairs_nothing(store: Path):
    def rows() -> list[tuple[object, ...]]:
        with closing(sqlite3.connect(store)) as db, db:
            rows = db.execute("SELECT * FROM generations").fetchall()
        return rows

    damage(store, 1)
    before = rows()
    cache("info", store)
    cache("verify", store)
    assert rows() == before


@pytest.mark.parametrize("command", ["info", "verify"])
def test_what_is_no_store_is_refused_and_left_alone(tmp_path: Path, command: str):
    notes, other = tmp_path / "notes.txt", tmp_path / "photos.db"
    notes.write_text("my notes, to be kept\n" * 100)
    with closing(sqlite3.connect(other)) as db, db:
        db.execute("CREATE TABLE photos (name TEXT)")
    for path in (notes, other):
        before = path.read_bytes()
        refused = cache(command, path)
        assert isinstance(refused.exception, StoreError)
        assert str(path) in str(refused.exception)
        assert path.read_bytes() == before
    missing = tmp_path / "nowhere" / "drafts.sqlite"
    with pytest.raises(StoreError, match="there is no draft store at"):
        raise cache(command, missing).exception or AssertionError
    assert not missing.parent.exists()


def test_looking_changes_nothing(tmp_path):
    from lm_eval_aft.core.errors import StoreError
    from lm_eval_aft.storage.draft_store import SQLiteStore

    empty = tmp_path / "empty.sqlite"
    empty.touch()
    with pytest.raises(StoreError, match="not a draft store"):
        SQLiteStore(empty, create=False)
    assert empty.read_bytes() == b""
    SQLiteStore(tmp_path / "s.sqlite").close()
    before = (tmp_path / "s.sqlite").read_bytes()
    assert SQLiteStore(tmp_path / "s.sqlite", create=False).verify().generations == 0
    assert (tmp_path / "s.sqlite").read_bytes() == before
