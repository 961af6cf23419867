"""The package's logger. It is a child of lm-eval's own logger, so lm-eval shows what it logs."""

from __future__ import annotations

import logging
from functools import cache

log = logging.getLogger("lm_eval.aft")


@cache
def warn_once(message: str) -> None:
    """Log a warning, once in a process. ``warn_once.cache_clear()`` forgets what was logged."""
    log.warning(message)
