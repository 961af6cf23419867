"""The file in which judgements are kept: an SQLite table of texts by key, each committed the moment it is put in.

Safe for several threads and processes. Knows nothing of judges: keys and values are made by ``judge``, its only caller.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

from lm_eval_aft.core.errors import JudgeError
from lm_eval_aft.storage.sqlite import transaction, use_wal

APPLICATION_ID = 0x61667432  # "aft2" in the file header: tells it from a draft store and from any other SQLite file
BUSY_S = 60.0


class JudgeCache:
    """Texts by key; the first one put under a key stays, and one that was changed since is refused."""

    def __init__(self, path: str | Path | None) -> None:
        """Open or make the file; None keeps everything in memory, for this process alone.

        Raises:
            JudgeError: If the file is another program's, or cannot be opened.
        """
        self.path = None if path is None else Path(path)
        self._lock = threading.Lock()
        with self._errors("opened"):
            if self.path:
                self.path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(
                self.path or ":memory:", timeout=BUSY_S, isolation_level=None, check_same_thread=False
            )
            try:
                self._prepare()
            except BaseException:
                self._db.close()
                raise

    def _prepare(self) -> None:
        with transaction(self._db, "BEGIN"):  # one moment: another process may be making the file
            (application,) = self._db.execute("PRAGMA application_id").fetchone()
            (tables,) = self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if tables and application != APPLICATION_ID:
            raise JudgeError(f"{self.path} is not a cache of judgements: give --cache another path.")
        use_wal(self._db, BUSY_S)
        with transaction(self._db):
            self._db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            self._db.execute(
                "CREATE TABLE IF NOT EXISTS judgements (key TEXT PRIMARY KEY, reply TEXT NOT NULL, digest BLOB NOT "
                "NULL)"
            )

    def get(self, keys: Iterable[str]) -> dict[str, str]:
        """Those of the keys that are there."""
        found = {}
        with self._lock, self._errors("read"):
            for key in keys:
                row = self._db.execute("SELECT reply, digest FROM judgements WHERE key = ?", (key,)).fetchone()
                if row:
                    found[key] = self._checked(key, *row)
        return found

    def put(self, key: str, reply: str) -> None:
        """Keep a text, on disk when this returns."""
        with self._lock, self._errors("written"):
            self._db.execute("INSERT OR IGNORE INTO judgements VALUES (?, ?, ?)", (key, reply, _digest(key, reply)))

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    def _checked(self, key: str, reply: Any, digest: bytes) -> str:
        if not isinstance(reply, str) or _digest(key, reply) != digest:
            raise JudgeError(
                f"the cache of judgements {self.path} is damaged at {key[:12]}: give --cache another path."
            )
        return reply

    @contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise JudgeError(
                f"the cache of judgements {self.path} cannot be {what} ({error}); what was kept before is still there: "
                "free the disk, mend the permissions, or give --cache another path."
            ) from error


def _digest(key: str, reply: str) -> bytes:
    """By which a changed byte is noticed."""
    return sha256(f"{key}\n{reply}".encode("utf-8", "surrogatepass")).digest()[:8]
