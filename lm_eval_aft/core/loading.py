"""Loading checkpoints with other packages: whatever they raise about a folder becomes one sentence."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lm_eval_aft.core.errors import AFTError

MAX_REASON = 300  # characters


@contextmanager
def loading(refuse: Callable[[Exception], AFTError]) -> Iterator[None]:
    """Turn an error of a block that loads a checkpoint into one of ours.

    A damaged or foreign checkpoint makes loaders raise nearly anything, since its numbers are used before they are
    checked. MemoryError is left to the caller.

    Args:
        refuse: Makes our error from the loader's.
    """
    try:
        yield
    except (AFTError, MemoryError):
        raise
    except Exception as error:
        raise refuse(error) from error


def reason_of(error: BaseException) -> str:
    """What an error says, on one line: its first line, and the next one if the first ends with a colon."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = lines[0] if lines else type(error).__name__
    for line in lines[1:]:
        if not reason.endswith(":"):
            break
        reason = f"{reason} {line}"
    if isinstance(error, KeyError | ArithmeticError) and lines:
        # "0" or "'q'" alone says nothing.
        reason = f"{type(error).__name__}: {reason}"
    return reason[:MAX_REASON]
