"""SQLite files that several processes may make and write at once.

The draft store and the cache of judgements are such files. Each failure becomes one sentence that names the file.
"""

from __future__ import annotations

import sqlite3
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from lm_eval_aft.core.errors import AFTError
from lm_eval_aft.core.files import refuse_without_locks

# How long a statement waits for the lock of another process.
BUSY_S = 60.0
RETRY_AFTER_S = 0.02
# The shortest file that SQLite recognises.
HEADER_BYTES = 512


@dataclass(frozen=True, slots=True)
class FileKind:
    """What a file holds, and how messages speak of it.

    Attributes:
        name: What messages call the file, such as "draft store".
        option: The option that names the file, such as "cache=".
        error: The error to raise.
        application_id: Number in the file's header that tells this kind from every other SQLite file.
        version: Newest layout of the table that this package reads, and that of new files.
        table: The statement that makes the table in a new file.
        page_bytes: Size of the pages of a new file.
    """

    name: str
    option: str
    error: type[AFTError]
    application_id: int
    version: int
    table: str
    page_bytes: int = 4096


class SQLiteFile:
    """An open file.

    Threads may share it if the caller holds a lock around each use.

    Attributes:
        path: The file, or None if everything is kept in memory.
        copied_alone: Whether the file was there without FILE-wal, as after a clean end or an incomplete copy.
        version: Layout of its table. A file of an older version stays as it is.
        db: The connection. It opens no transaction by itself.
    """

    def __init__(
        self, path: str | Path | None, kind: FileKind, *, create: bool = True, untouched: bool = False
    ) -> None:
        """Open a file.

        Args:
            path: The file. Its folder is made if it is missing. None keeps everything in memory.
            kind: What the file holds.
            create: False opens an existing file for reading only.
            untouched: With ``create=False``, also leave the files of SQLite beside it as they are, and wait for no
                lock. Such a file should be open for moments only.

        Raises:
            AFTError: ``kind.error`` if the file is of another kind, newer than this package, damaged, or cannot be
                opened.
        """
        self.path = None if path is None else Path(path)
        self._kind = kind
        self.copied_alone = self.path is not None and _is_alone(self.path)
        with self.errors("opened"):
            self.db = self._connect(create, untouched)
            try:
                self._recognise(create)
                if create:
                    self._prepare()
                (self.version,) = self.db.execute("PRAGMA user_version").fetchone()
            except BaseException:
                self.db.close()
                raise
        # Python 3.13 warns of a connection that is dropped while it is open.
        weakref.finalize(self, self.db.close).atexit = False

    def _connect(self, create: bool, untouched: bool) -> sqlite3.Connection:
        address: str | Path = self.path or ":memory:"
        if self.path and self.path.exists() and not self._may_be_ours(self.path):
            raise self._foreign()
        if self.path and create:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            refuse_without_locks(self.path, self._kind.option, self._kind.error)
        elif self.path:
            address = f"{self.path.resolve().as_uri()}?{_untouched_mode(self.path) if untouched else 'mode=ro'}"
        return sqlite3.connect(address, uri=not create, timeout=BUSY_S, isolation_level=None, check_same_thread=False)

    def _recognise(self, may_be_new: bool) -> None:
        kind = self._kind
        # One transaction reads one moment: another process may be making the file.
        with self.transaction("BEGIN"):
            (application,) = self.db.execute("PRAGMA application_id").fetchone()
            (version,) = self.db.execute("PRAGMA user_version").fetchone()
            (tables,) = self.db.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if not (may_be_new or application or version or tables):
            raise kind.error(
                f"{self.path} is not a {kind.name} but an empty file: if it is a copy, copy {self.path}-wal too, which "
                "holds what was written last."
            )
        if application != kind.application_id and (application or version or tables):
            raise self._foreign()
        if version > kind.version:
            raise kind.error(
                f"{self.path} was written by a newer lm_eval_aft ({kind.name} version {version}, this one reads "
                f"{kind.version}): upgrade the package or give {kind.option} another path."
            )

    @staticmethod
    def _may_be_ours(path: Path) -> bool:
        """Whether a path is a file that SQLite would not take for a new one and write over."""
        return path.is_file() and not 0 < path.stat().st_size < HEADER_BYTES

    def _foreign(self) -> AFTError:
        kind = self._kind
        if self.path and self.path.is_dir():
            return kind.error(f"{self.path} is a folder, not a {kind.name}: give {kind.option} the path of a file.")
        return kind.error(
            f"{self.path} is not a {kind.name} but a file of another program: give {kind.option} another path."
        )

    def _prepare(self) -> None:
        # SQLite ignores this for a file that has pages already.
        self.db.execute(f"PRAGMA page_size = {self._kind.page_bytes}")
        self._use_wal()
        with self.transaction():
            (tables,) = self.db.execute("SELECT count(*) FROM sqlite_master").fetchone()
            if not tables:
                self.db.execute(f"PRAGMA application_id = {self._kind.application_id}")
                self.db.execute(f"PRAGMA user_version = {self._kind.version}")
                self.db.execute(self._kind.table)
        # From now on the file itself says what it is, whatever is left in the file FILE-wal beside it.
        self.db.execute("PRAGMA wal_checkpoint(PASSIVE)")

    def _use_wal(self) -> None:
        """Switch to WAL, so that a killed process leaves a sound file.

        If two processes switch at once, SQLite refuses one of them without waiting, whatever its timeout.
        """
        deadline = time.monotonic() + BUSY_S
        while True:
            try:
                self.db.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                if not is_busy(error) or time.monotonic() > deadline:
                    raise
                time.sleep(RETRY_AFTER_S)

    @contextmanager
    def transaction(self, begin: str = "BEGIN IMMEDIATE") -> Iterator[None]:
        """Run a block as one transaction. With ``begin="BEGIN"``, all reads in it see the file at one moment."""
        self.db.execute(begin)
        try:
            yield
            self.db.execute("COMMIT")
        except BaseException:
            # SQLite may have rolled back by itself, for example if the disk is full.
            if self.db.in_transaction:
                self.db.execute("ROLLBACK")
            raise

    @contextmanager
    def errors(self, action: str) -> Iterator[None]:
        """Turn a failure into one sentence; ``action`` is what was tried, such as "opened" or "read"."""
        try:
            yield
        except (sqlite3.Error, OSError, UnicodeError, OverflowError) as error:
            raise self._kind.error(
                f"the {self._kind.name} {self.path} cannot be {action} ({error}); the file is left as it is and what "
                "was committed before is kept: free the disk, correct the permissions, or give "
                f"{self._kind.option} another path."
            ) from error


def _is_alone(path: Path) -> bool:
    try:
        return path.stat().st_size > 0 and not Path(f"{path}-wal").exists()
    except OSError:
        return False


def is_busy(error: BaseException | None) -> bool:
    """Whether SQLite failed because another process holds a lock."""
    code: int = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_OK)
    return code & 0xFF == sqlite3.SQLITE_BUSY


def _untouched_mode(path: Path) -> str:
    """The parameters with which SQLite reads a file in WAL mode and neither makes nor changes a file beside it.

    Without a write-ahead log the file is complete. With a log, SQLite reads the index of the log from shared memory,
    or makes an index in its own memory if no process has the file open (https://www.sqlite.org/walformat.html).
    """
    log = path.with_name(f"{path.name}-wal")
    return "mode=ro&readonly_shm=1" if log.exists() else "immutable=1"


def digest(content: str | bytes) -> bytes:
    """The first 8 bytes of the SHA-256 of a text or of bytes, stored beside them so that a changed byte is noticed."""
    return sha256(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass")).digest()[:8]
