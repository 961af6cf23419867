"""The cache of judgements: a SQLite file that keeps a judge's replies by key.

Each reply is on disk when ``put`` returns. Several threads and processes may use one file.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lm_eval_aft.core.errors import JudgeError
from lm_eval_aft.storage.sqlite import FileKind, SQLiteFile, digest

# The cache's name in the folder of the results.
CACHE_FILE = "judgements.sqlite"

JUDGE_CACHE = FileKind(
    name="cache of judgements",
    option="--cache",
    error=JudgeError,
    application_id=int.from_bytes(b"aft2"),
    version=0,
    table="CREATE TABLE IF NOT EXISTS judgements (key TEXT PRIMARY KEY, reply TEXT NOT NULL, digest BLOB NOT NULL)",
)


class JudgeCache:
    """Replies by key. The first reply of a key stays, and a reply that was changed on disk is refused."""

    def __init__(self, path: str | Path | None) -> None:
        """Open a file and make it if it is missing. None keeps everything in memory.

        Raises:
            JudgeError: If the file is another program's, or cannot be opened.
        """
        self.path = None if path is None else Path(path)
        self._lock = threading.Lock()
        self._file = SQLiteFile(self.path, JUDGE_CACHE)

    def get(self, keys: Iterable[str]) -> dict[str, str]:
        """The replies of those keys that the cache holds.

        Raises:
            JudgeError: If the file cannot be read, or a reply is damaged.
        """
        replies = {}
        query = "SELECT reply, digest FROM judgements WHERE key = ?"
        with self._lock, self._file.errors("read"):
            for key in keys:
                row = self._file.db.execute(query, (key,)).fetchone()
                if row:
                    replies[key] = self._checked(key, *row)
        return replies

    def put(self, key: str, reply: str) -> None:
        """Keep a reply. It is on disk when this returns.

        Raises:
            JudgeError: If the file cannot be written.
        """
        row = (key, reply, digest(f"{key}\n{reply}"))
        with self._lock, self._file.errors("written"):
            self._file.db.execute("INSERT OR IGNORE INTO judgements VALUES (?, ?, ?)", row)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._file.db.close()

    def _checked(self, key: str, reply: Any, stored_digest: bytes) -> str:
        if not isinstance(reply, str) or digest(f"{key}\n{reply}") != stored_digest:
            raise JudgeError(
                f"the cache of judgements {self.path} is damaged at {key[:12]}: give --cache another path."
            )
        return reply
