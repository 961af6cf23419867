"""The draft store: a content-addressed SQLite file that holds every finished generation.

The key of a generation is a hash of what decides its text: engine fingerprint, prompt, sampling and seed. k, layers,
batch size, order and --limit are not in it, so runs with other settings find their drafts here. Knows nothing of
layers or tasks. Called by ``schedule``; opened by ``model`` and the ``aft cache`` commands.

SQLite in WAL mode: several processes may write one file, and a killed process leaves a sound one. Completions are
committed together for at most two seconds.
Over 200 lines because every way a file can be wrong is told apart here.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import weakref
from array import array
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

from lm_eval_aft.core.errors import StoreError
from lm_eval_aft.core.records import Completion, Request
from lm_eval_aft.storage.sqlite import transaction, use_wal

APPLICATION_ID = 0x61667431  # "aft1" in the file header: tells a draft store from any other SQLite file
SCHEMA = 1
COMMIT_AFTER_S = 2.0
COMMIT_AFTER_ROWS = 2000
BUSY_S = 60.0
_COLUMNS = "key, text, token_ids, finish_reason, prompt_tokens, computed_prompt_tokens, generated_tokens, digest"


def generation_key(fingerprint: str, request: Request) -> str:
    """The store key of a request, as hexadecimal SHA-256.

    Greedy text depends on neither seed nor nucleus, so there these are left out.
    """
    sampling, seed = request.sampling, request.seed
    if not sampling.temperature:
        sampling, seed = replace(sampling, top_p=1.0, top_k=0, seeded=True), 0
    drawn = list(astuple(sampling))
    if sampling.beams == 1:  # the last field: keys are older than beams
        drawn.pop()
    parts = ["v1", fingerprint, request.prompt.digest, drawn, seed]
    return sha256(json.dumps(parts, ensure_ascii=False).encode()).hexdigest()


class Store(Protocol):
    """Where finished generations are kept."""

    def key(self, fingerprint: str, request: Request) -> str:
        """The key of a request; equal keys mean equal text."""

    def get(self, keys: Iterable[str]) -> dict[str, Completion]:
        """Those of the keys that are there."""

    def put(self, key: str, completion: Completion) -> None:
        """Keep a completion; an equal key stays as it was."""

    def flush(self) -> None:
        """Commit what is waiting."""


class NoStore:
    """Keeps nothing (``cache=none``); equal requests of one layer are still generated once."""

    def key(self, fingerprint: str, request: Request) -> str:
        """See ``Store.key``."""
        return generation_key(fingerprint, request)

    def get(self, keys: Iterable[str]) -> dict[str, Completion]:
        """See ``Store.get``."""
        return {}

    def put(self, key: str, completion: Completion) -> None:
        """See ``Store.put``."""

    def flush(self) -> None:
        """See ``Store.flush``."""


@dataclass(frozen=True, slots=True)
class StoreInfo:
    """What is in a store."""

    path: str
    generations: int
    generated_tokens: int
    file_bytes: int
    damaged: tuple[str, ...] = ()


class SQLiteStore:
    """A draft store on disk; safe for several processes and for one background commit."""

    def __init__(self, path: str | Path, *, create: bool = True) -> None:
        """Open a store.

        Args:
            path: The file; its folder is made if need be.
            create: False only reads, and refuses a file that is not there.

        Raises:
            StoreError: If the file is not a draft store, is newer than this package, damaged, or cannot be opened.
        """
        self.path = Path(path)
        self._lock = threading.RLock()
        self._waiting: dict[bytes, tuple[Any, ...]] = {}
        self._failure: StoreError | None = None
        self._closed = threading.Event()
        self._commits_late = False
        if not create and not self.path.is_file():
            raise StoreError(f"there is no draft store at {self.path}: give the file that cache= named.")
        with self._errors("opened"):
            if create:
                self.path.parent.mkdir(parents=True, exist_ok=True)
            where = self.path if create else f"{self.path.resolve().as_uri()}?mode=ro"
            options: dict[str, Any] = {"timeout": BUSY_S, "isolation_level": None, "check_same_thread": False}
            self._db = sqlite3.connect(where, uri=not create, **options)
            self._recognise(create)
            if create:
                self._prepare()
                self._commits_late = _commit_in_background(self, self._closed)

    def _recognise(self, may_be_new: bool) -> None:
        with transaction(self._db, "BEGIN"):  # one moment: another process may be making the file
            (application,) = self._db.execute("PRAGMA application_id").fetchone()
            (schema,) = self._db.execute("PRAGMA user_version").fetchone()
            (tables,) = self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if application != APPLICATION_ID and (application or schema or tables or not may_be_new):
            raise StoreError(f"{self.path} is no draft store but a file of another program: give cache= another path.")
        if schema > SCHEMA:
            raise StoreError(
                f"{self.path} was written by a newer lm_eval_aft (store version {schema}, this one reads {SCHEMA}): "
                "upgrade the package or give cache= another path."
            )

    def _prepare(self) -> None:
        use_wal(self._db, BUSY_S)
        self._db.execute("PRAGMA synchronous = NORMAL")  # with WAL: sound after a kill, at most a power cut loses rows
        with transaction(self._db):
            self._db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            self._db.execute(f"PRAGMA user_version = {SCHEMA}")
            self._db.execute(
                "CREATE TABLE IF NOT EXISTS generations (key BLOB PRIMARY KEY, text TEXT NOT NULL, token_ids BLOB "
                "NOT NULL, finish_reason TEXT NOT NULL, prompt_tokens INT NOT NULL, computed_prompt_tokens INT NOT "
                "NULL, generated_tokens INT NOT NULL, digest BLOB NOT NULL) WITHOUT ROWID"
            )

    def key(self, fingerprint: str, request: Request) -> str:
        """See ``Store.key``."""
        return generation_key(fingerprint, request)

    def get(self, keys: Iterable[str]) -> dict[str, Completion]:
        """See ``Store.get``."""
        wanted = [bytes.fromhex(key) for key in keys]
        with self._lock, self._errors("read"):
            found = {key.hex(): self._checked(self._waiting[key]) for key in wanted if key in self._waiting}
            for start in range(0, len(wanted), 500):  # SQLite's oldest limit of variables is 999
                part = wanted[start : start + 500]
                marks = ",".join("?" * len(part))
                for row in self._db.execute(f"SELECT {_COLUMNS} FROM generations WHERE key IN ({marks})", part):
                    found[row[0].hex()] = self._checked(row)  # the file wins: another process may have been first
        return found

    def put(self, key: str, completion: Completion) -> None:
        """See ``Store.put``.

        Raises:
            StoreError: If an earlier completion could not be written (a full disk, say).
        """
        with self._lock:
            if self._failure:
                raise self._failure
            self._waiting.setdefault(bytes.fromhex(key), _row(bytes.fromhex(key), completion))
            if len(self._waiting) >= COMMIT_AFTER_ROWS or not self._commits_late:
                self.flush()

    def flush(self) -> None:
        """See ``Store.flush``."""
        with self._lock:
            if not self._waiting:
                return
            with self._errors("written"), transaction(self._db):
                self._db.executemany(
                    "INSERT OR IGNORE INTO generations VALUES (?,?,?,?,?,?,?,?)", self._waiting.values()
                )
            self._waiting = {}

    def _flush_late(self) -> None:
        try:
            self.flush()
        except StoreError as error:  # the thread has nobody to tell: the next put raises it
            self._failure = error

    def close(self) -> None:
        """Commit what is waiting and close the file."""
        with self._lock:
            self._closed.set()
            self.flush()
            self._db.close()

    def info(self) -> StoreInfo:
        """Counts for ``aft cache info``."""
        with self._lock, self._errors("read"):
            row = self._db.execute("SELECT count(*), coalesce(sum(generated_tokens), 0) FROM generations").fetchone()
        return StoreInfo(str(self.path), row[0], row[1], self.path.stat().st_size)

    def verify(self) -> StoreInfo:
        """Read everything and compare each row with its digest; damaged keys are listed."""
        with self._lock, self._errors("read"):
            (state,) = self._db.execute("PRAGMA integrity_check(1)").fetchone()
            rows = self._db.execute(f"SELECT {_COLUMNS} FROM generations")
            damaged = tuple(row[0].hex() for row in rows if _digest(row[:-1]) != row[-1])
        counts = self.info()
        broken = (*damaged, *(() if state == "ok" else (str(state),)))
        return StoreInfo(counts.path, counts.generations, counts.generated_tokens, counts.file_bytes, broken)

    def _checked(self, row: tuple[Any, ...]) -> Completion:
        if _digest(row[:-1]) != row[-1]:
            raise StoreError(
                f"{self.path} is damaged at generation {row[0].hex()[:12]}: run aft cache verify {self.path}, then "
                "give cache= another path."
            )
        return Completion(row[1], tuple(array("I", row[2])), row[3], row[4], row[5], row[6])

    @contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError, UnicodeError, OverflowError) as error:
            raise StoreError(
                f"the draft store {self.path} cannot be {what} ({error}); the file is left as it is and what was "
                "committed before is kept: free the disk, mend the permissions, or give cache= another path."
            ) from error


def open_store(cache: str | None, default: str | Path | None) -> Store:
    """Open the draft store of a command.

    Args:
        cache: The argument ``cache=``: a file, "none" for no store, or None if it is not given.
        default: The file to use if ``cache`` is not given; None means no store.

    Raises:
        StoreError: If the file cannot be used.
    """
    if cache == "none" or not (cache or default):
        return NoStore()
    return SQLiteStore(cache or str(default))


def _commit_in_background(store: SQLiteStore, closed: threading.Event) -> bool:
    """Commit every two seconds until the store is closed or gone; False where there is no memory for a thread.

    One thread from the start: starting one late, where memory has run out meanwhile, can wait for ever.
    """
    alive = weakref.ref(store)

    def commit() -> None:
        while not closed.wait(COMMIT_AFTER_S) and (store := alive()) is not None:
            store._flush_late()
            del store

    try:
        threading.Thread(target=commit, name="draft store", daemon=True).start()
    except RuntimeError:
        return False
    return True


def _row(key: bytes, completion: Completion) -> tuple[Any, ...]:
    values = (
        key,
        completion.text,
        array("I", completion.token_ids).tobytes(),
        completion.finish_reason,
        completion.prompt_tokens,
        completion.computed_prompt_tokens,
        completion.generated_tokens,
    )
    return (*values, _digest(values))


def _digest(values: tuple[Any, ...]) -> bytes:
    return sha256(repr(values).encode("utf-8", "surrogatepass")).digest()[:8]
