"""Reading and writing files: each is written whole or not at all, and each failure is one sentence."""

from __future__ import annotations

import errno
import fnmatch
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path

from lm_eval_aft.core.errors import AFTError, ConfigError, RecordError
from lm_eval_aft.core.log import log

MAX_NAME_LENGTH = 100  # characters; file systems allow 255 bytes, and stamps and suffixes are added
# What a full file system answers, or one whose quota or limit is reached.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# What a file system without locks answers.
NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS)


def files_below(folder: Path, pattern: str) -> list[Path]:
    """The files in a folder and its subfolders whose names match a pattern such as ``*.json``, by path.

    A command at work may remove files and folders meanwhile; those are left out.
    """
    found = (Path(parent, name) for parent, _, names in os.walk(folder) for name in fnmatch.filter(names, pattern))
    return sorted(found)


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary file beside ``path`` that replaces it when the block ends without an error.

    Each process has its own temporary file.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str, error: type[AFTError] = RecordError) -> Path:
    """Write a text file, whole or not at all, and make its folder. Returns ``path``.

    Half a surrogate pair, which JSON can hold and UTF-8 cannot, is written as ``?``.

    Raises:
        AFTError: The one given, if the file cannot be written; the message names it.
    """
    with writing(path, error):
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as partial:
            partial.write_text(text, encoding="utf-8", errors="replace")
    return path


@contextmanager
def writing(path: Path, error: type[AFTError] = RecordError) -> Iterator[None]:
    """Turn an operating-system error while ``path`` is written into one sentence."""
    try:
        yield
    except (OSError, ValueError) as cause:  # ValueError: a NUL in the name
        reason = getattr(cause, "strerror", None) or cause
        raise error(f"{path} cannot be written ({reason}): free the disk or give another path.") from cause


@contextmanager
def reading(path: Path | str, what: str, error: type[AFTError] = RecordError) -> Iterator[None]:
    """Turn every way in which a file can be unreadable or of another kind into one sentence that names it.

    Args:
        path: The file that is read, or a line of it ("FILE line 3").
        what: What it should be, such as "a results file".
        error: The class to raise.
    """
    try:
        yield
    except OSError as cause:
        raise error(f"{path} cannot be read ({cause.strerror}).") from cause
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError, RecursionError) as cause:
        raise error(
            f"{path} is not {what} ({type(cause).__name__}: {cause}): it is damaged, or another program's; remove it "
            "or give another."
        ) from cause


def is_full(folder: Path, size: int, error: BaseException) -> bool:
    """Whether a write into ``folder`` failed because there was no room. The words of the error are not read.

    Some packages report a failed write without its errno. Then this tries to reserve ``size`` bytes on the file system.

    Args:
        folder: Any folder of that file system that can be written.
        size: Bytes that were to be written.
        error: What the write raised.
    """
    causes: list[BaseException | None] = [error]
    while causes[-1] is not None and len(causes) < 10:
        causes.append(causes[-1].__cause__ or causes[-1].__context__)
    if any(isinstance(cause, OSError) and cause.errno in NO_ROOM for cause in causes):
        return True
    return not isinstance(error, AFTError) and not _has_room(folder, size)


def _has_room(folder: Path, size: int) -> bool:
    try:
        if not hasattr(os, "posix_fallocate"):
            return shutil.disk_usage(folder).free >= size
        # Quotas and limits of a process count too.
        with tempfile.TemporaryFile(dir=folder) as probe:
            os.posix_fallocate(probe.fileno(), 0, size)
    except OSError as error:
        return error.errno not in NO_ROOM
    return True


def refuse_stream(path: str | Path) -> None:
    """Refuse a pipe or a device, which can be read only once or never ends.

    Raises:
        RecordError: If the path is neither a file nor a folder.
    """
    if Path(path).exists() and not Path(path).is_file() and not Path(path).is_dir():
        raise RecordError(f"{path} is a stream, not a file: write it to a file first, since it is read more than once.")


def read_bytes(path: Path) -> bytes:
    """The bytes of a file; like ``Path.read_bytes``, but a pipe cannot keep the reader waiting.

    Raises:
        OSError: If the file cannot be read, or is a stream.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        raise OSError(errno.EINVAL, "It is a stream, not a file", str(path))
    return path.read_bytes()


@contextmanager
def locked(folder: Path, message: str, error: type[AFTError] = ConfigError) -> Iterator[None]:
    """Hold a lock on a folder, which the system releases when the process ends, whatever ends it.

    No file is written. Some network file systems have no such lock, and then there is none.

    Args:
        folder: The folder. It exists.
        message: The sentence to raise if another process holds the lock.
        error: The class to raise.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as cause:
            raise error(message) from cause
        except OSError as cause:
            log.warning("%s cannot be locked (%s): do not start a second command in it.", folder, cause.strerror)
        yield
    finally:
        os.close(descriptor)


def refuse_without_locks(file: Path, option: str, error: type[AFTError]) -> None:
    """Refuse a file on a file system without locks, where SQLite would wait for a minute and then call it locked.

    The lock is tried on a file of its own: closing a file releases all locks that this process has on it.

    Args:
        file: A file that several processes will lock. Its folder exists.
        option: The option that names it, such as "cache=".
        error: The class to raise.
    """
    try:
        import fcntl
    except ImportError:
        return
    probe = file.with_name(f".{os.getpid()}.lock-probe")
    try:
        with probe.open("wb") as opened:
            fcntl.lockf(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as cause:
        # Any other error concerns the file itself, and whoever opens it says so.
        if cause.errno in NO_LOCKS:
            raise error(
                f"the file system of {file} has no locks ({cause.strerror}), which several processes need: give "
                f"{option} a path on a local disk."
            ) from cause
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)


def file_name(text: str) -> str:
    """A text as part of a file's name: ASCII letters, digits and ``_.+-``, at most ``MAX_NAME_LENGTH`` characters."""
    name = re.sub(r"[^A-Za-z0-9_.+-]", "_", text) or "model"
    if len(name) <= MAX_NAME_LENGTH:
        return name
    return f"{name[: MAX_NAME_LENGTH - 9]}-{sha256(text.encode(errors='replace')).hexdigest()[:8]}"


def file_digest(path: str | Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal. A stream is refused with RecordError."""
    refuse_stream(path)
    return sha256(Path(path).read_bytes()).hexdigest()
