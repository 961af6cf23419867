"""The draft store: a SQLite file that holds every finished generation.

The key of a generation is a hash of everything that decides its text: engine fingerprint, prompt, sampling and seed.
k, layers, batch size, order and --limit are not in the key, so a run with other settings finds its drafts here.

Several processes may write one file, and a killed process leaves a sound file. A completion of a server is committed
at once, and every other one within two seconds.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import weakref
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

from lm_eval_aft.core.errors import StoreError
from lm_eval_aft.core.log import log
from lm_eval_aft.core.records import Completion, Confidence, Request
from lm_eval_aft.storage.sqlite import FileKind, SQLiteFile, digest, is_busy

COMMIT_AFTER_S = 2.0
COMMIT_AFTER_ROWS = 2000
# SQLite's oldest limit of variables in a statement is 999.
KEYS_PER_QUERY = 500

DRAFT_STORE = FileKind(
    name="draft store",
    option="cache=",
    error=StoreError,
    application_id=int.from_bytes(b"aft1"),
    version=2,
    # A table WITHOUT ROWID, as in version 1, keeps each row above 1 kB on a page of its own. Texts spill over fewer
    # pages of 8 kB than of 4 kB.
    table="CREATE TABLE generations (key BLOB NOT NULL PRIMARY KEY, text TEXT NOT NULL, token_ids BLOB NOT NULL, "
    "finish_reason TEXT NOT NULL, prompt_tokens INT NOT NULL, computed_prompt_tokens INT NOT NULL, generated_tokens "
    "INT NOT NULL, confidence_sum REAL, confidence_mean REAL, confidence_tail REAL, confidence_window REAL, "
    "digest BLOB NOT NULL)",
    page_bytes=8192,
)
# The fields of ``Sampling`` that every key has, in this order.
KEY_FIELDS = ("temperature", "top_p", "top_k", "max_tokens", "until", "seeded")
# What a generation is. Its digest, the last column, covers all columns before it.
_TEXT = ("key", "text", "token_ids", "finish_reason", "prompt_tokens", "computed_prompt_tokens", "generated_tokens")
_CONFIDENCE = ("confidence_sum", "confidence_mean", "confidence_tail", "confidence_window")
# The columns of a file, by the version of the file.
_COLUMNS = {1: (*_TEXT, "digest"), 2: (*_TEXT, *_CONFIDENCE, "digest")}
# An equal text may bring the confidence that the first one lacks.
_FILL_IN = (
    f" ON CONFLICT (key) DO UPDATE SET {', '.join(f'{name} = excluded.{name}' for name in (*_CONFIDENCE, 'digest'))} "
    "WHERE generations.confidence_sum IS NULL AND excluded.confidence_sum IS NOT NULL AND "
    + " AND ".join(f"generations.{name} = excluded.{name}" for name in _TEXT[1:])
)


def generation_key(fingerprint: str, request: Request) -> str:
    """The store key of a request, as hexadecimal SHA-256.

    A greedy text depends on neither the seed nor the nucleus, so its key leaves them out.
    """
    sampling, seed = request.sampling, request.seed
    if not sampling.temperature:
        sampling, seed = replace(sampling, top_p=1.0, top_k=0, min_p=0.0, seeded=True), 0
    values: list[Any] = [getattr(sampling, name) for name in KEY_FIELDS]
    # Keys that were made before these settings existed must stay as they are.
    values += [sampling.beams] if sampling.beams != 1 else []
    values += [dict(sorted(sampling.extras.items()))] if sampling.extras else []
    parts = ["v1", fingerprint, request.prompt.digest, values, seed]
    return sha256(json.dumps(parts, ensure_ascii=False).encode()).hexdigest()


class Store(Protocol):
    """Keeps finished generations."""

    def key(self, fingerprint: str, request: Request) -> str:
        """The key of a request; equal keys mean equal text."""

    def get(self, keys: Iterable[str]) -> dict[str, Completion]:
        """The completions of those keys that the store holds."""

    def put(self, key: str, completion: Completion) -> None:
        """Keep a completion. If the key is taken, the first completion stays.

        An equal completion may add the confidence that the first one lacks.
        """

    def flush(self) -> None:
        """Commit what is not committed yet."""


class NoStore:
    """Keeps nothing (``cache=none``). Equal requests of one layer are still generated once."""

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
    """What a store holds.

    Attributes:
        path: The file.
        generations: Number of generations.
        generated_tokens: Tokens of all generations.
        file_bytes: Size of the file in bytes.
        damaged: Keys of damaged generations, and SQLite's message if the file itself is damaged.
    """

    path: str
    generations: int
    generated_tokens: int
    file_bytes: int
    damaged: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class StoreCounts:
    """What a store holds at one moment.

    Attributes:
        generations: Number of generations.
        generated_tokens: Their tokens.
        cut: How many of them ended at their token limit.
        blank: How many of the texts are empty, or white space only.
        file_bytes: Size of the store in bytes, its write-ahead log included.
        changed: When the newest generation was written, in seconds since 1970.
    """

    generations: int
    generated_tokens: int
    cut: int
    blank: int
    file_bytes: int
    changed: float


def count_store(path: Path) -> StoreCounts:
    """Count what a store holds, and change nothing on disk. A run may be writing the store.

    Raises:
        StoreError: If the file is not a draft store, is damaged, or cannot be opened.
    """
    if not path.is_file():
        raise StoreError(f"there is no draft store at {path}: give the file that cache= named.")
    query = (
        "SELECT count(*), coalesce(sum(generated_tokens), 0), coalesce(sum(finish_reason = 'length'), 0), "
        "coalesce(sum(trim(text, char(9, 10, 13, 32)) = ''), 0) FROM generations"
    )
    file = SQLiteFile(path, DRAFT_STORE, create=False, untouched=True)
    try:
        with file.errors("read"):
            generations, tokens, cut, blank = file.db.execute(query).fetchone()
            wal = path.with_name(f"{path.name}-wal")
            states = [each.stat() for each in (path, wal) if each.exists()]
    finally:
        file.db.close()
    file_bytes, changed = sum(state.st_size for state in states), max(state.st_mtime for state in states)
    return StoreCounts(generations, tokens, cut, blank, file_bytes, changed)


class SQLiteStore:
    """A draft store on disk, safe for threads and for several processes."""

    def __init__(self, path: str | Path, *, create: bool = True) -> None:
        """Open a store.

        Args:
            path: The file. Its folder is made if it is missing.
            create: False opens an existing file for reading only.

        Raises:
            StoreError: If the file is not a draft store, newer than this package, damaged, or cannot be opened.
        """
        self.path = Path(path)
        self._lock = threading.RLock()
        self._uncommitted: dict[bytes, tuple[Any, ...]] = {}
        self._failure: StoreError | None = None
        self._closed = threading.Event()
        if not create and not self.path.is_file():
            raise StoreError(f"there is no draft store at {self.path}: give the file that cache= named.")
        self._file = SQLiteFile(self.path, DRAFT_STORE, create=create)
        if self._file.version not in _COLUMNS:
            self._file.db.close()
            raise StoreError(
                f"{self.path} is damaged: it says that it has version {self._file.version} of a draft store, and there "
                f"are {' and '.join(map(str, _COLUMNS))}; give cache= another path."
            )
        self._columns = _COLUMNS[self._file.version]
        with self._file.errors("opened"):
            # With WAL the file stays sound after a kill; only a power cut can lose committed rows.
            self._file.db.execute("PRAGMA synchronous = NORMAL")
            (held,) = self._file.db.execute("SELECT EXISTS (SELECT * FROM generations)").fetchone()
        if self._file.copied_alone and not held:
            log.info("The draft store %s is empty: if it is a copy, copy %s-wal too.", self.path, self.path)
        self._commits_late = create and _commit_in_background(self, self._closed)

    def __enter__(self) -> SQLiteStore:
        """The store itself. The end of the block closes it."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close the store."""
        self.close()

    def key(self, fingerprint: str, request: Request) -> str:
        """See ``Store.key``."""
        return generation_key(fingerprint, request)

    def get(self, keys: Iterable[str]) -> dict[str, Completion]:
        """See ``Store.get``.

        Raises:
            StoreError: If the file cannot be read, or a generation is damaged.
        """
        wanted = [bytes.fromhex(key) for key in keys]
        with self._lock, self._file.errors("read"):
            uncommitted = self._uncommitted
            completions = {key.hex(): self._completion(uncommitted[key]) for key in wanted if key in uncommitted}
            for start in range(0, len(wanted), KEYS_PER_QUERY):
                part = wanted[start : start + KEYS_PER_QUERY]
                marks = ",".join("?" * len(part))
                query = f"SELECT {', '.join(self._columns)} FROM generations WHERE key IN ({marks})"
                # The file wins over what is not committed yet: another process may have been first.
                completions |= {row[0].hex(): self._completion(row) for row in self._file.db.execute(query, part)}
        return completions

    def parts(self, size: int) -> Iterator[dict[str, Completion]]:
        """All committed generations by their keys, ``size`` at a time, as the file holds them at one moment.

        Raises:
            StoreError: If the file cannot be read, or a generation is damaged.
        """
        with self._lock, self._file.errors("read"):
            cursor = self._file.db.execute(f"SELECT {', '.join(self._columns)} FROM generations")
        while True:
            with self._lock, self._file.errors("read"):
                rows = cursor.fetchmany(size)
            if not rows:
                return
            completions = [self._completion(row) for row in rows]
            yield {row[0].hex(): completion for row, completion in zip(rows, completions, strict=True)}

    def put(self, key: str, completion: Completion) -> None:
        """See ``Store.put``. The next ``flush`` tries to commit it, whatever this raises.

        Raises:
            StoreError: If an earlier completion could not be written, for example because the disk is full.
        """
        row = self._row(bytes.fromhex(key), completion)
        with self._lock:
            held = self._uncommitted.setdefault(row[0], row)
            if held[: len(_TEXT)] == row[: len(_TEXT)] and None in held:
                self._uncommitted[row[0]] = row
            if self._failure:
                raise self._failure
            if len(self._uncommitted) >= COMMIT_AFTER_ROWS or not self._commits_late:
                self.flush()

    def flush(self) -> None:
        """See ``Store.flush``. If the disk cannot hold all of them, those that fit are committed.

        Raises:
            StoreError: If the file cannot be written. What is not committed stays in memory for the next try.
        """
        with self._lock:
            try:
                self._commit(list(self._uncommitted))
            except StoreError as error:
                if not is_busy(error.__cause__):
                    self._commit_one_by_one()
                raise
            self._failure = None

    def flush_late(self) -> None:
        """Commit from the background thread. The next ``put`` raises the error of a commit that failed."""
        try:
            self.flush()
        except StoreError as error:
            self._failure = error

    def _commit(self, keys: Sequence[bytes]) -> None:
        if not keys:
            return
        rows = [self._uncommitted[key] for key in keys]
        end = _FILL_IN if _CONFIDENCE[0] in self._columns else " ON CONFLICT (key) DO NOTHING"
        marks = ",".join("?" * len(self._columns))
        with self._file.errors("written"), self._file.transaction():
            self._file.db.executemany(f"INSERT INTO generations VALUES ({marks}){end}", rows)
        for key in keys:
            del self._uncommitted[key]

    def _commit_one_by_one(self) -> None:
        """Commit what fits, the shortest texts first.

        What the write-ahead log holds goes into the file first, which frees the log's room on a full disk.
        """
        with suppress(sqlite3.Error):
            self._file.db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        shortest_first = sorted(self._uncommitted, key=lambda key: len(self._uncommitted[key][1]))
        with suppress(StoreError):
            for key in shortest_first:
                self._commit([key])

    def empty_log(self) -> None:
        """Move what the write-ahead log holds into the file, which then holds everything that is committed.

        Raises:
            StoreError: If the file cannot be written, for example because the disk is full.
        """
        with self._lock, self._file.errors("written"):
            self._file.db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def close(self) -> None:
        """Commit what is not committed yet and close the file."""
        with self._lock:
            self._closed.set()
            self.flush()
            self._file.db.close()

    def info(self) -> StoreInfo:
        """Count what the store holds."""
        query = "SELECT count(*), coalesce(sum(generated_tokens), 0) FROM generations"
        with self._lock, self._file.errors("read"):
            generations, tokens = self._file.db.execute(query).fetchone()
        return StoreInfo(str(self.path), generations, tokens, self.path.stat().st_size)

    def verify(self) -> StoreInfo:
        """Read everything and compare each generation with its digest."""
        with self._lock, self._file.errors("read"):
            (state,) = self._file.db.execute("PRAGMA integrity_check(1)").fetchone()
            rows = self._file.db.execute(f"SELECT {', '.join(self._columns)} FROM generations")
            damaged = tuple(_shown_key(row[0]) for row in rows if not self._is_whole(row))
        return replace(self.info(), damaged=damaged if state == "ok" else (*damaged, str(state)))

    def _completion(self, row: tuple[Any, ...]) -> Completion:
        if not self._is_whole(row):
            raise StoreError(
                f"{self.path} is damaged at generation {_shown_key(row[0])[:12]}: run aft cache verify {self.path}, "
                "then give cache= another path."
            )
        try:
            token_ids = tuple(array("I", row[2]))
        # The bytes do not divide into whole tokens.
        except (TypeError, ValueError) as error:
            raise StoreError(f"{self.path} is damaged at generation {row[0].hex()[:12]} ({error}).") from error
        numbers = row[len(_TEXT) : -1]
        confidence = Confidence(*numbers) if numbers and None not in numbers else None
        return Completion(row[1], token_ids, row[3], row[4], row[5], row[6], confidence)

    def _is_whole(self, row: tuple[Any, ...]) -> bool:
        """Whether a row is as it was written. Another program may have put in a row whose key is a text."""
        return isinstance(row[0], bytes) and isinstance(row[2], bytes) and self._digest(row[:-1]) == row[-1]

    def _digest(self, values: tuple[Any, ...]) -> bytes:
        """The digest of all columns before it."""
        if self._file.version == 1:
            return digest(repr(values))
        key, text, token_ids, *others = values
        # repr() of bytes takes half of the time of a write.
        return digest(b"".join((key, token_ids, repr((text, *others)).encode("utf-8", "surrogatepass"))))

    def _row(self, key: bytes, completion: Completion) -> tuple[Any, ...]:
        """The values of the file's columns. A file of version 1 has none for the confidence."""
        values: tuple[Any, ...] = (
            key,
            completion.text,
            array("I", completion.token_ids).tobytes(),
            completion.finish_reason,
            completion.prompt_tokens,
            completion.computed_prompt_tokens,
            completion.generated_tokens,
        )
        if _CONFIDENCE[0] in self._columns:
            values += _numbers(completion.confidence)
        return (*values, self._digest(values))


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


def kept_in(store: Store, resume: str = ": the same command resumes there.") -> str:
    """Commit what a store holds, and say what it keeps. The words end a message about a stop.

    Args:
        store: The store.
        resume: Follows the path of the store, and says how to resume.
    """
    if not isinstance(store, SQLiteStore):
        return "nothing is kept without a draft store: give record=DIR or cache=FILE next time."
    try:
        store.flush()
        kept = store.info().generations
    except StoreError as error:
        return str(error)
    return f"{kept:,} finished generations are in {store.path}{resume}"


def _commit_in_background(store: SQLiteStore, closed: threading.Event) -> bool:
    """Commit every two seconds until the store is closed or deleted. Returns whether a thread could be started.

    The thread starts with the store. If it started later, when memory has run out, the start could wait for ever.
    """
    reference = weakref.ref(store)

    def commit() -> None:
        while not closed.wait(COMMIT_AFTER_S) and (store := reference()) is not None:
            store.flush_late()
            del store

    try:
        threading.Thread(target=commit, name="draft store", daemon=True).start()
    except RuntimeError:
        return False
    return True


def _shown_key(key: Any) -> str:
    """A key as messages show it. Another program may have put in a row whose key is a text."""
    return key.hex() if isinstance(key, bytes) else repr(key)[:80]


def _numbers(confidence: Confidence | None) -> tuple[float | None, ...]:
    """The four numbers as SQLite gives them back: floats, and no -0.0."""
    if confidence is None:
        return (None,) * len(_CONFIDENCE)
    numbers = confidence.sum, confidence.mean, confidence.tail, confidence.window
    return tuple(float(number) + 0.0 for number in numbers)
