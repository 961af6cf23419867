"""The package's logger. It is a child of lm-eval's own logger, so lm-eval shows what it logs."""

from __future__ import annotations

import logging
from functools import cache

from lm_eval_aft.core.terminal import message

log = logging.getLogger("lm_eval.aft")


def _as_message(record: logging.LogRecord) -> bool:
    """Turn what is logged into a message that may be shown: see ``message``."""
    record.msg, record.args = message(record.getMessage()), ()
    return True


log.addFilter(_as_message)


@cache
def warn_once(message: str) -> None:
    """Log a warning, once in a process. ``warn_once.cache_clear()`` forgets what was logged."""
    log.warning(message)
