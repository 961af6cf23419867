"""``aft merge`` joins draft stores, whole or not at all."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from helpers.full_disk import files_of_at_most
from lm_eval_aft.cli import aft
from lm_eval_aft.core.errors import ConfigError, StoreError
from lm_eval_aft.core.records import Completion, Confidence
from lm_eval_aft.storage.draft_store import DRAFT_STORE, SQLiteStore
from lm_eval_aft.storage.merging import Merged, merge_stores

TEXT = Completion("text ünï\n", (1, 2, 3), "stop", 9, 2, 3)
SCORED = replace(TEXT, confidence=Confidence(-1.5, -0.5, -0.25, -0.75))
OTHER = replace(TEXT, text="another text")
VERSION_1 = (
    "CREATE TABLE generations (key BLOB NOT NULL PRIMARY KEY, text TEXT NOT NULL, token_ids BLOB NOT NULL, "
    "finish_reason TEXT NOT NULL, prompt_tokens INT NOT NULL, computed_prompt_tokens INT NOT NULL, generated_tokens "
    "INT NOT NULL, digest BLOB NOT NULL) WITHOUT ROWID"
)


def key(number: int) -> str:
    return f"{number:064x}"


def make(path: Path, rows: dict[int, Completion], version: int = 2) -> Path:
    if version == 1:
        with closing(sqlite3.connect(path)) as db, db:
            db.execute(f"PRAGMA application_id = {DRAFT_STORE.application_id}")
            db.execute("PRAGMA user_version = 1")
            db.execute(VERSION_1)
    with SQLiteStore(path) as store:
        for number, completion in rows.items():
            store.put(key(number), completion)
    return path


def held(path: Path) -> dict[int, Completion]:
    with SQLiteStore(path, create=False) as store:
        return {int(name, 16): completion for part in store.parts(2) for name, completion in part.items()}


def test_all_generations_of_all_versions_are_joined(tmp_path):
    old = make(tmp_path / "old.sqlite", {n: replace(TEXT, text=f"old {n}") for n in range(5)}, version=1)
    new = make(tmp_path / "new.sqlite", {7: SCORED})
    empty = make(tmp_path / "empty.sqlite", {})
    assert merge_stores([old, new, empty], tmp_path / "deep" / "all.sqlite") == Merged(6, 0, 0)
    assert held(tmp_path / "deep" / "all.sqlite") == {**held(old), 7: SCORED}


def test_equal_texts_are_kept_once_with_the_confidence_of_either(tmp_path):
    # How much of a prompt was computed depends on what else was generated.
    again = replace(SCORED, computed_prompt_tokens=9)
    stores = [make(tmp_path / "a", {1: TEXT, 2: TEXT}), make(tmp_path / "b", {1: again, 3: OTHER})]
    assert merge_stores(stores, tmp_path / "all") == Merged(3, 1, 0)
    assert held(tmp_path / "all") == {1: SCORED, 2: TEXT, 3: OTHER}


def test_different_texts_under_one_key_stop_it_unless_the_first_is_kept(tmp_path):
    stores = [make(tmp_path / "a", {1: TEXT, 2: TEXT}), make(tmp_path / "b", {1: OTHER, 3: TEXT})]
    with pytest.raises(StoreError, match=r"b has another text than a store before it under 1 keys or more, first 0000"):
        merge_stores(stores, tmp_path / "all")
    assert list(tmp_path.glob("all*")) == []
    assert merge_stores(stores, tmp_path / "all", keep_first=True) == Merged(3, 1, 1)
    assert held(tmp_path / "all")[1] == TEXT


def test_a_store_given_twice_is_refused(tmp_path):
    store = make(tmp_path / "a", {1: TEXT})
    (tmp_path / "link").symlink_to(store)
    (tmp_path / "x").mkdir()
    for twice in (store, tmp_path / "link", tmp_path / "x" / ".." / "a"):
        with pytest.raises(ConfigError, match=r"is given twice: give each draft store once"):
            merge_stores([store, twice], tmp_path / "all")


def test_an_output_that_exists_is_left_alone(tmp_path):
    store, there = make(tmp_path / "a", {1: TEXT}), make(tmp_path / "b", {2: TEXT})
    for output in (store, there, tmp_path):
        with pytest.raises(ConfigError, match="exists: give the path of a new file"):
            merge_stores([store], output)
    assert held(there) == {2: TEXT}


def test_a_damaged_generation_stops_it(tmp_path):
    whole, damaged = make(tmp_path / "a", {1: TEXT}), make(tmp_path / "b", {2: TEXT, 3: TEXT})
    for change in ("text = 'x' WHERE key = ?", "key = 'a text' WHERE key = ?"):
        with closing(sqlite3.connect(damaged)) as db, db:
            db.execute(f"UPDATE generations SET {change}", (bytes.fromhex(key(3)),))
        with pytest.raises(StoreError, match=r"b is damaged at generation .*: run aft cache verify"):
            merge_stores([whole, damaged], tmp_path / "all")
        assert list(tmp_path.glob("all*")) == []


@pytest.mark.parametrize("content", [b"my notes\n" * 200, b"", b"short"])
def test_what_is_no_store_stops_it(tmp_path, content):
    (tmp_path / "notes").write_bytes(content)
    with pytest.raises(StoreError, match=r"notes (is not a draft store|cannot be opened)"):
        merge_stores([make(tmp_path / "a", {1: TEXT}), tmp_path / "notes"], tmp_path / "all")
    with pytest.raises(StoreError, match="there is no draft store at"):
        merge_stores([tmp_path / "nowhere"], tmp_path / "all")
    assert not (tmp_path / "all").exists()


def test_a_full_disk_leaves_no_file(tmp_path):
    store = make(tmp_path / "a", {n: replace(TEXT, text="long " * 20_000) for n in range(20)})
    (tmp_path / "out").mkdir()
    with files_of_at_most(500_000), pytest.raises(StoreError, match="cannot be"):
        merge_stores([store], tmp_path / "out" / "all")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_disk_that_is_full_at_the_last_step_leaves_no_file(tmp_path):
    # SQLite's log starts again after 4 MB and stays below the limit. What it holds at the end does not fit the file.
    text, ranges = replace(TEXT, text="long " * 20_000), (range(42), range(42, 84), range(84, 90))
    stores = [make(tmp_path / f"{numbers}", dict.fromkeys(numbers, text)) for numbers in ranges]
    (tmp_path / "out").mkdir()
    with files_of_at_most(8_800_000), pytest.raises(StoreError, match="cannot be written"):
        merge_stores(stores, tmp_path / "out" / "all")
    assert list((tmp_path / "out").iterdir()) == []


def test_the_command_says_what_it_joined(tmp_path):
    stores = [make(tmp_path / "a", {1: TEXT, 2: TEXT}), make(tmp_path / "b", {1: OTHER})]
    words = ["merge", *map(str, stores), "--output", str(tmp_path / "all"), "--keep-first"]
    result = CliRunner().invoke(aft, words, standalone_mode=False, catch_exceptions=False)
    assert result.output == f"{tmp_path}/all: 2 generations of 2 stores, 1 in several, 1 of them with different texts\n"
