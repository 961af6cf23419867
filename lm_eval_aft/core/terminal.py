"""The way of every text to the terminal: without secrets, with control characters shown as text, and of bounded length.

Names, replies, file names and reasons come from servers, models, files and arguments. A terminal would obey the escape
sequences in them.
"""

from __future__ import annotations

import errno
import io
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from lm_eval_aft.core.secrets import hide, hide_in_message

# Characters of one message.
MAX_MESSAGE = 2000
# Marks that change the direction or the line, and other invisible ones.
_MARKS = (
    "\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
# Many scripts and emoji need the two joiners. Between other characters they only hide something.
_JOINERS = r"(?<![^\x00-\x7f])[\u200c\u200d]|[\u200c\u200d](?![^\x00-\x7f])"
# C0 and C1 controls, the marks, and halves of surrogate pairs.
_CLASS = "\x00-\x1f\x7f-\x9f\ud800-\udfff" + _MARKS
_CONTROL = re.compile(f"[{_CLASS}]|{_JOINERS}")
# A JSON text of several lines keeps its line breaks; JSON itself has escaped the other C0 controls.
_CONTROL_IN_JSON = re.compile(f"(?!\n)[{_CLASS}]|{_JOINERS}")
_CONTROL_IN_LINES = re.compile(f"(?![\n\t])[{_CLASS}]|{_JOINERS}")
_FORMULA = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")
# What stands for signs of our tables if the terminal's encoding lacks them.
_PLAIN_SIGNS = {"━": "-", "─": "-", "±": "+/-", "·": "*", "\u00d7": "x", "…": "..."}
# The reasons for which a stream takes no more text. The last three are those of a full disk.
_LOST = (errno.EPIPE, errno.EBADF, errno.EIO, errno.ENXIO, errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# The shell's exit code for SIGPIPE, which ends other programs whose reader has gone.
PIPE_CLOSED = 141
OUTPUT_LOST = 2


def visible(text: str) -> str:
    """The text on one line, with code points for control characters and for marks that change the direction."""
    return _CONTROL.sub(lambda match: " " if match[0] in "\n\t\r" else _code_point(match), text)


def _code_point(match: re.Match[str]) -> str:
    return f"<U+{ord(match[0]):04X}>"


def message(text: str) -> str:
    """A sentence as it may be shown: on one line, without secrets, and of at most ``MAX_MESSAGE`` characters."""
    return shortened(visible(hide_in_message(text)), MAX_MESSAGE)


def shortened(text: str, most: int) -> str:
    """A text of at most ``most`` characters. If some are left out, the text says how many in their place."""
    if len(text) <= most:
        return text
    left_out = f" [{len(text) - most:,} characters and more are left out here] " if most >= 200 else "..."
    head = 7 * (most - len(left_out)) // 10
    return text[:head] + left_out + text[len(text) - (most - len(left_out) - head) :]


def visible_in_json(text: str) -> str:
    """A JSON text with the control characters that JSON does not escape as escapes of JSON."""
    return _CONTROL_IN_JSON.sub(lambda match: _json_escape(match[0]), text)


def _json_escape(character: str) -> str:
    """The escape of a character that JSON and most readers know: two of them for a character above U+FFFF."""
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2))


def spreadsheet_text(text: str) -> str:
    """A text for a field of a CSV file: on one line, and never taken for a formula."""
    shown = visible(text)
    return "'" + shown if shown.lstrip().startswith(_FORMULA) and shown != "-" else shown


# ---------------------------------------------------------------- streams


def show(text: object, *, err: bool = False, end: str = "\n") -> None:
    """Print what a command was started for, such as a table. Line breaks and tabs in it are kept.

    Raises:
        OSError: If the stream takes no more text; see ``output_guard``.
    """
    stream = sys.stderr if err else sys.stdout
    if stream is None:
        raise OSError(errno.EBADF, "the stream is closed")
    lines = _CONTROL_IN_LINES.sub(_code_point, hide(str(text)))
    print(_encodable(lines, stream), file=stream, end=end, flush=True)


def note(text: object, *, err: bool = True) -> None:
    """Print a line about the work of a command, which continues even if nobody can read the line."""
    try:
        show(message(str(text)), err=err)
    except (OSError, ValueError) as error:
        _discard(sys.stderr if err else sys.stdout)
        if not err:
            sys.stdout = _LostStream(error if isinstance(error, OSError) else OSError(errno.EBADF, str(error)))


class _LostStream(io.StringIO):
    """Stands in for a stdout that took no more text, until ``output_guard`` says why."""

    def __init__(self, error: OSError) -> None:
        super().__init__()
        self.error = error

    def write(self, text: str) -> int:
        return len(text)


def _encodable(text: str, stream: TextIO) -> str:
    """The text with other signs, or else escapes, for the characters that the stream's encoding lacks."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        lacking = {sign for sign in set(text) if sign.encode(encoding, "ignore") == b""}
        return text.translate({ord(sign): _PLAIN_SIGNS.get(sign) or _json_escape(sign) for sign in lacking})
    return text


@contextmanager
def output_guard() -> Iterator[None]:
    """Run a command whose output may be lost: to a full disk, a closed pipe, or an encoding without our characters.

    Raises:
        SystemExit: If stdout or stderr took no more text. If the reader of a pipe has gone, nothing is said. Otherwise
            stderr gets a sentence.
    """
    for stream in (sys.stdout, sys.stderr):
        if getattr(stream, "errors", None) == "strict":
            # click writes the help itself, so the stream must take all characters.
            with suppress(AttributeError, ValueError):
                stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        yield
        if isinstance(sys.stdout, _LostStream):
            raise sys.stdout.error
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        # A file that cannot be written has a name.
        if error.errno not in _LOST or error.filename is not None:
            raise
        _discard(sys.stdout)
        if error.errno != errno.EPIPE:
            note(f"error: the output cannot be written ({error.strerror}): write it to another place.")
        raise SystemExit(PIPE_CLOSED if error.errno == errno.EPIPE else OUTPUT_LOST) from None


def _discard(stream: Any) -> None:
    """Send the rest of a stream nowhere. Python writes it once more when it ends, and would complain."""
    with suppress(OSError, ValueError, AttributeError):
        null = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(null, stream.fileno())
        finally:
            os.close(null)
        stream.flush()
