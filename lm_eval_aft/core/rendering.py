"""Rendering templates. A template is a program that a file brings along, so it may raise, hang, or fill the memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from lm_eval_aft.core.errors import AFTError
from lm_eval_aft.core.limits import MAX_BYTES, MAX_SECONDS, memory_limit, time_limit

# A prompt of a million tokens has about four million characters.
MAX_CHARACTERS = 100_000_000
Result = TypeVar("Result")


def run_template(action: Callable[[], Result], refuse: Callable[[str], AFTError]) -> Result:
    """Compile or render a template within the limits of time and memory.

    Args:
        action: Compiles or renders.
        refuse: Makes the error to raise, from a reason on one line.

    Raises:
        AFTError: The one that ``refuse`` makes, if the template fails in any way.
    """
    try:
        with memory_limit(MAX_BYTES), time_limit(MAX_SECONDS):
            return action()
    except AFTError:
        raise
    except MemoryError as error:
        raise refuse("it needs too much memory") from error
    except RecursionError as error:
        raise refuse("it is nested too deeply, or calls itself without end") from error
    # What a template may raise has no bounds: its expressions call methods of Python's own types.
    except Exception as error:
        raise refuse(" ".join(str(error).split())[:300] or type(error).__name__) from error


def render(action: Callable[[], str], refuse: Callable[[str], AFTError]) -> str:
    """Render a template; see ``run_template``. A text of more than ``MAX_CHARACTERS`` is refused."""
    text = str(run_template(action, refuse))
    if len(text) > MAX_CHARACTERS:
        raise refuse(f"it makes a text of {len(text):,} characters, and at most {MAX_CHARACTERS:,} are allowed")
    return text
