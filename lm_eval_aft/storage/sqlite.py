"""What the draft store and the cache of judgements share: an SQLite file that several processes make and write at once.

Knows nothing of what is kept. Called by ``store`` and ``judge_cache``.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager

RETRY_AFTER_S = 0.02


def use_wal(db: sqlite3.Connection, patience_s: float) -> None:
    """Switch to WAL; where two processes do so at once SQLite refuses one without waiting, whatever its timeout."""
    deadline = time.monotonic() + patience_s
    while True:
        try:
            db.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(RETRY_AFTER_S)


@contextmanager
def transaction(db: sqlite3.Connection, begin: str = "BEGIN IMMEDIATE") -> Iterator[None]:
    """All of what is done inside, or nothing; with ``begin="BEGIN"`` what is read inside is of one moment."""
    db.execute(begin)
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:  # after a full disk SQLite may have rolled back by itself
            db.execute("ROLLBACK")
        raise
