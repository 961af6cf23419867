"""Progress bars."""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import Any

from tqdm import tqdm

from lm_eval_aft.core.hangup import silence


class Bar(tqdm):
    """A progress bar that switches itself off if it cannot be drawn, for example because the terminal was closed.

    It has no monitor thread, since starting that can wait for ever if memory has run out.
    """

    monitor_interval = 0

    def display(self, *args: Any, **settings: Any) -> Any:
        """Draw the bar; see ``tqdm.display``."""
        try:
            return super().display(*args, **settings)
        except (OSError, ValueError):
            self._switch_off()

    def close(self) -> None:
        """Draw the bar for the last time."""
        try:
            super().close()
        except (OSError, ValueError):
            self._switch_off()

    def _switch_off(self) -> None:
        self.disable = True
        # sys.stderr still holds the text that it could not write, and would try again.
        with suppress(AttributeError, OSError, ValueError):
            silence(sys.stderr.fileno())
