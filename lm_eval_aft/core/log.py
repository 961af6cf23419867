"""The package's logger. It is a child of lm-eval's own logger, so lm-eval shows what it logs."""

from __future__ import annotations

import logging

log = logging.getLogger("lm_eval.aft")
