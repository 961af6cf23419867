"""The draft store: its keys, its safety, and the files that it refuses."""

from __future__ import annotations

import gc
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.full_disk import files_of_at_most, small_disk
from helpers.paths import ROOT
from lm_eval_aft.core.errors import StoreError
from lm_eval_aft.core.records import Chat, Completion, Confidence, Message, Prompt, Request, Sampling
from lm_eval_aft.storage.draft_store import DRAFT_STORE, SQLiteStore, count_store, generation_key
from lm_eval_aft.storage.sqlite import SQLiteFile

CHAT = Chat((Message("user", "a"),))
REQUEST = Request(Prompt(CHAT, (1, 2), 2, "digest"), Sampling(0.7, 0.95, 0, 64), 7)
TEXT = Completion("text ünï\n", (1, 2, 3), "stop", 2, 2, 3)
CONFIDENT = replace(TEXT, confidence=Confidence(-1.5, -0.5, -0.25, -0.75))
FIXTURES = ROOT / "tests" / "fixtures" / "version_0_1_0"


def key(number: int) -> str:
    return f"{number:064x}"


class TestKey:
    def test_what_changes_the_text_changes_the_key(self):
        keys = {generation_key("engine", REQUEST), generation_key("other", REQUEST)}
        keys.add(generation_key("engine", replace(REQUEST, seed=8)))
        keys.add(generation_key("engine", replace(REQUEST, prompt=replace(REQUEST.prompt, digest="x"))))
        changes = [
            {"temperature": 0.8},
            {"top_p": 0.9},
            {"top_k": 5},
            {"max_tokens": 65},
            {"until": ("x",)},
            {"seeded": False},
        ]
        for change in changes:
            keys.add(generation_key("engine", replace(REQUEST, sampling=replace(REQUEST.sampling, **change))))
        assert len(keys) == 4 + len(changes)

    def test_greedy_text_depends_on_neither_seed_nor_nucleus(self):
        greedy = replace(REQUEST, sampling=Sampling(0.0, 0.95, 0, 64))
        other = replace(greedy, seed=8, sampling=Sampling(0.0, 1.0, 5, 64))
        assert generation_key("engine", greedy) == generation_key("engine", other)

    def test_it_is_what_it_was_in_version_0_1(self):
        # The key of a request that must have its confidence is the same: its text is.
        assert generation_key("engine", replace(REQUEST, confidence=True)) == generation_key("engine", REQUEST)
        # A changed key makes every user's store useless. Raise the version in generation_key only on purpose.
        assert generation_key("engine", REQUEST) == "83b7e972e7d99affd04c99b9fe89d356993a51e48638fc72847e16f86185922e"


def test_what_is_put_is_got(tmp_path):
    store = SQLiteStore(tmp_path / "deep" / "s.sqlite")
    store.put(key(1), TEXT)
    assert store.get([key(1), key(2)]) == {key(1): TEXT}
    store.close()
    assert SQLiteStore(tmp_path / "deep" / "s.sqlite").get([key(1)]) == {key(1): TEXT}


@given(st.text(st.characters(codec="utf-8")), st.lists(st.integers(0, 2**32 - 1)))
def test_any_text_and_tokens(text, ids):
    store = SQLiteStore(":memory:")
    completion = Completion(text, tuple(ids), "length", 5, 0, len(ids))
    store.put(key(1), completion)
    store.flush()
    assert store.get([key(1)]) == {key(1): completion}
    store.close()


def test_the_first_text_of_a_key_stays(tmp_path):
    store = SQLiteStore(tmp_path / "s.sqlite")
    store.put(key(1), TEXT)
    store.put(key(1), replace(TEXT, text="other"))
    assert store.get([key(1)])[key(1)].text == TEXT.text


def test_rows_are_committed_within_two_seconds(tmp_path):
    store = SQLiteStore(tmp_path / "s.sqlite")
    store.put(key(1), TEXT)
    deadline = time.monotonic() + 4
    reader = SQLiteStore(tmp_path / "s.sqlite")
    while reader.info().generations == 0 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert reader.info().generations == 1


WRITER = """
import sys
from lm_eval_aft.core.records import Completion
from lm_eval_aft.storage.draft_store import SQLiteStore
store = SQLiteStore(sys.argv[1])
for number in range(int(sys.argv[2]), int(sys.argv[2]) + 3000):
    store.put(f"{number:064x}", Completion(f"text {number}", (number,), "stop", 2, 2, 1))
    if number % 100 == 0:
        store.flush()
store.close()
"""


def test_two_processes_write_one_store(tmp_path):
    path = tmp_path / "s.sqlite"
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(path), start]) for start in ("0", "1500")]
    assert [writer.wait(timeout=120) for writer in writers] == [0, 0]
    store = SQLiteStore(path)
    assert store.verify().generations == 4500
    assert store.get([key(1600)])[key(1600)].text == "text 1600"


OPENER = """
import sys, time
from lm_eval_aft.storage.draft_store import SQLiteStore
while time.time() < float(sys.argv[2]):
    pass
for number in range(40):
    SQLiteStore(f"{sys.argv[1]}{number}").close()
    time.sleep(max(0, float(sys.argv[2]) + 0.03 * (number + 1) - time.time()))
"""


def test_processes_that_open_a_new_store_at_the_same_moment(tmp_path):
    start = str(time.time() + 1.5)
    opener = [sys.executable, "-c", OPENER, str(tmp_path / "s"), start]
    openers = [subprocess.Popen(opener, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    assert [process.communicate(timeout=120)[1] for process in openers] == ["", "", ""]
    assert [process.returncode for process in openers] == [0, 0, 0]


class TestRefusals:
    def refused(self, path: Path, message: str) -> None:
        before = path.read_bytes()
        with pytest.raises(StoreError, match=message):
            SQLiteStore(path)
        # The file is neither changed nor deleted.
        assert path.read_bytes() == before

    def test_a_file_that_is_no_database(self, tmp_path):
        path = tmp_path / "notes.txt"
        path.write_text("these are my notes, please keep them\n" * 100)
        self.refused(path, "cannot be opened")

    def test_a_database_of_another_program(self, tmp_path):
        path = tmp_path / "other.db"
        with closing(sqlite3.connect(path)) as other, other:
            other.execute("CREATE TABLE photos (name TEXT)")
        self.refused(path, "another program")

    def test_a_store_of_a_newer_version(self, tmp_path):
        path = tmp_path / "s.sqlite"
        SQLiteStore(path).close()
        newer = sqlite3.connect(path)
        newer.execute("PRAGMA user_version = 99")
        newer.close()
        self.refused(path, "newer lm_eval_aft")

    def test_a_truncated_store(self, tmp_path):
        path = tmp_path / "s.sqlite"
        store = SQLiteStore(path)
        for number in range(500):
            store.put(key(number), replace(TEXT, text="x" * 200))
        store.close()
        os.truncate(path, path.stat().st_size // 2)
        with pytest.raises(StoreError, match="the file is left as it is"):
            SQLiteStore(path).get([key(number) for number in range(500)])

    def test_a_missing_store_where_one_is_needed(self, tmp_path):
        with pytest.raises(StoreError, match="there is no draft store"):
            SQLiteStore(tmp_path / "none.sqlite", create=False)
        assert not (tmp_path / "none.sqlite").exists()

    def test_a_folder_that_cannot_be_made(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(StoreError, match="cannot be opened"):
            SQLiteStore(tmp_path / "file" / "s.sqlite")

    def test_an_altered_row(self, tmp_path):
        path = tmp_path / "s.sqlite"
        store = SQLiteStore(path)
        store.put(key(1), TEXT)
        store.put(key(2), TEXT)
        store.flush()
        with closing(sqlite3.connect(path)) as other, other:
            other.execute("UPDATE generations SET text = 'forged' WHERE key = ?", (bytes.fromhex(key(2)),))
        assert store.verify().damaged == (key(2),)
        assert store.get([key(1)])[key(1)] == TEXT
        with pytest.raises(StoreError, match="is damaged at generation"):
            store.get([key(2)])


def fill(store: SQLiteStore, numbers: range) -> None:
    for number in numbers:
        store.put(key(number), replace(TEXT, text="x" * 1000))
        store.flush()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounting a small tmpfs needs root")
class TestFullDisk:
    @pytest.fixture
    def small(self, tmp_path):
        with small_disk(tmp_path / "small", "400k") as disk:
            yield disk

    def test_what_was_committed_is_kept(self, small):
        store = SQLiteStore(small / "s.sqlite")
        with pytest.raises(StoreError, match="free the disk"):
            fill(store, range(10_000))
        kept = store.info().generations
        assert 0 < kept < 10_000
        assert len(store.get([key(number) for number in range(kept)])) == kept

    def test_a_failed_commit_in_the_background_is_reported(self, small):
        store = SQLiteStore(small / "s.sqlite")
        store.put(key(0), replace(TEXT, text="x" * 1_000_000))
        time.sleep(2.5)
        with pytest.raises(StoreError, match="free the disk"):
            store.put(key(1), TEXT)

    def test_a_read_only_folder_is_an_error(self, small):
        SQLiteStore(small / "s.sqlite").close()
        subprocess.run(["mount", "-o", "remount,ro", small], check=True)
        with pytest.raises(StoreError, match="correct the permissions"):
            SQLiteStore(small / "s.sqlite")
        with pytest.raises(StoreError, match="cannot be opened"):
            SQLiteStore(small / "new.sqlite")


def test_a_store_that_another_process_keeps_locked(tmp_path, monkeypatch):
    monkeypatch.setattr("lm_eval_aft.storage.sqlite.BUSY_S", 0.1)
    store = SQLiteStore(tmp_path / "s.sqlite")
    other = sqlite3.connect(tmp_path / "s.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    store.put(key(1), TEXT)
    with pytest.raises(StoreError, match="locked"):
        store.flush()
    other.execute("ROLLBACK")
    # Nothing was dropped meanwhile.
    store.flush()
    assert store.info().generations == 1
    other.close()


def test_a_file_that_is_dropped_open_is_closed(tmp_path):
    """Python 3.13 warns of a connection that is not closed."""
    file = SQLiteFile(tmp_path / "s.sqlite", DRAFT_STORE)
    db = file.db
    del file
    gc.collect()
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        db.execute("SELECT 1")


@pytest.mark.slow
def test_a_hundred_thousand_generations(tmp_path):
    store = SQLiteStore(tmp_path / "s.sqlite")
    keys = [key(number * 7919 % (1 << 200)) for number in range(100_000)]
    started = time.monotonic()
    for name in keys:
        store.put(name, replace(TEXT, text="word " * 150, token_ids=tuple(range(150))))
    store.flush()
    written = time.monotonic()
    assert len(store.get(keys)) == 100_000
    assert written - started < 60
    assert time.monotonic() - written < 10


def test_on_a_full_disk_those_are_kept_that_fit(tmp_path):
    store = SQLiteStore(tmp_path / "s.sqlite")
    texts = {key(number): replace(TEXT, text=f"short {number}") for number in range(5)}
    # Commits follow the order of these keys.
    texts[key(2)] = replace(TEXT, text="long" * 500_000)
    with files_of_at_most(200_000):
        for name, text in texts.items():
            store.put(name, text)
        with pytest.raises(StoreError, match="cannot be written"):
            store.flush()
        with closing(SQLiteStore(tmp_path / "s.sqlite", create=False)) as written:
            assert set(written.get(texts)) == set(texts) - {key(2)}
    # With room on the disk the long text follows.
    store.flush()
    with closing(SQLiteStore(tmp_path / "s.sqlite", create=False)) as written:
        assert written.get(texts) == texts
    store.close()


def layout(path: Path) -> tuple[int, int, str]:
    """The version of a store, the size of its pages, and its table."""
    with closing(sqlite3.connect(path)) as db:
        (version,) = db.execute("PRAGMA user_version").fetchone()
        (page_bytes,) = db.execute("PRAGMA page_size").fetchone()
        (table,) = db.execute("SELECT sql FROM sqlite_master WHERE name = 'generations'").fetchone()
    return version, page_bytes, table


class TestConfidence:
    @pytest.mark.parametrize("reopened", [False, True])
    def test_it_is_kept_exactly(self, tmp_path, reopened):
        store = SQLiteStore(tmp_path / "s.sqlite")
        third = replace(TEXT, confidence=Confidence(-1 / 3, -0.0, 0, -1e-300))
        store.put(key(1), CONFIDENT)
        store.put(key(2), third)
        if reopened:
            store.close()
            store = SQLiteStore(tmp_path / "s.sqlite")
        assert store.get([key(1), key(2)]) == {key(1): CONFIDENT, key(2): third}
        assert store.verify().damaged == ()

    @pytest.mark.parametrize("committed", [False, True])
    def test_an_equal_text_fills_it_in(self, tmp_path, committed):
        with closing(SQLiteStore(tmp_path / "s.sqlite")) as store:
            store.put(key(1), TEXT)
            if committed:
                store.flush()
            store.put(key(1), CONFIDENT)
            store.flush()
            assert store.get([key(1)]) == {key(1): CONFIDENT}
            # Numbers that are there stay, and so does the text.
            store.put(key(1), replace(TEXT, confidence=Confidence(-9, -9, -9, -9)))
            store.put(key(1), TEXT)
            store.flush()
            assert store.get([key(1)]) == {key(1): CONFIDENT}
            assert store.verify() == replace(store.info(), damaged=())
            assert store.info().generations == 1

    def test_another_text_does_not_fill_it_in(self, tmp_path):
        with closing(SQLiteStore(tmp_path / "s.sqlite")) as store:
            store.put(key(1), TEXT)
            store.put(key(1), replace(CONFIDENT, token_ids=(1, 2, 4)))
            store.flush()
            store.put(key(1), replace(CONFIDENT, text="other"))
            store.flush()
            assert store.get([key(1)]) == {key(1): TEXT}

    @pytest.mark.parametrize("column", ["confidence_sum", "confidence_mean", "confidence_tail", "confidence_window"])
    @pytest.mark.parametrize("value", ["-0.125", "NULL"])
    def test_a_damaged_number_is_found(self, tmp_path, column, value):
        with closing(SQLiteStore(tmp_path / "s.sqlite")) as store:
            store.put(key(1), CONFIDENT)
            store.put(key(2), TEXT)
            store.flush()
            with closing(sqlite3.connect(tmp_path / "s.sqlite")) as other, other:
                other.execute(f"UPDATE generations SET {column} = {value} WHERE key = ?", (bytes.fromhex(key(1)),))
            assert store.verify().damaged == (key(1),)
            with pytest.raises(StoreError, match="is damaged at generation"):
                store.get([key(1)])


@pytest.mark.parametrize("column", ["key", "text", "token_ids", "finish_reason", "generated_tokens", "digest"])
@pytest.mark.parametrize("value", ["'x'", "5", "x'00'"])
def test_any_damaged_column_is_found(tmp_path, column, value):
    with closing(SQLiteStore(tmp_path / "s.sqlite")) as store:
        store.put(key(1), CONFIDENT)
        store.flush()
        with closing(sqlite3.connect(tmp_path / "s.sqlite")) as other, other:
            other.execute(f"UPDATE generations SET {column} = {value}")
        assert len(store.verify().damaged) == 1


class TestVersions:
    def test_a_new_file_has_version_2(self, tmp_path):
        SQLiteStore(tmp_path / "s.sqlite").close()
        version, page_bytes, table = layout(tmp_path / "s.sqlite")
        assert (version, page_bytes) == (2, 8192)
        assert "WITHOUT ROWID" not in table

    def test_a_file_of_version_1_stays_one(self, tmp_path):
        path = tmp_path / "drafts.sqlite"
        shutil.copy(FIXTURES / "aft" / "traces" / "drafts.sqlite", path)
        before, count = layout(path), count_store(path).generations
        for _ in range(2):
            with closing(SQLiteStore(path)) as store:
                store.put(key(1), CONFIDENT)
                store.put(key(1), replace(TEXT, text="other"))
                store.flush()
                # It has no place for the confidence.
                assert store.get([key(1)]) == {key(1): TEXT}
                assert store.verify() == replace(store.info(), damaged=())
                assert store.info().generations == count + 1
        assert layout(path) == before
        assert before[0] == 1

    @pytest.mark.parametrize("version", [0, -1])
    def test_a_version_that_does_not_exist(self, tmp_path, version):
        path = tmp_path / "s.sqlite"
        SQLiteStore(path).close()
        with closing(sqlite3.connect(path)) as db:
            db.execute(f"PRAGMA user_version = {version}")
        for create in (True, False):
            with pytest.raises(StoreError, match=f"it says that it has version {version} of a draft store"):
                SQLiteStore(path, create=create)
