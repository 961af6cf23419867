"""Prepares lm-eval's command line for a run of ours."""

from __future__ import annotations

import gc
import sys
from pathlib import Path

from lm_eval_aft.core.hangup import STDERR, STDOUT, outlive_readers
from lm_eval_aft.core.stops import take_signals


def prepare_program() -> None:
    """If lm-eval's command line is the program, end it in order on a signal, and let it outlive its terminal.

    It also starts faster then. Any other program that calls lm-eval keeps its own signal handlers and its collector.
    """
    program = Path(sys.argv[0])
    name = program.parent.name if program.name == "__main__.py" else program.stem
    if name not in ("lm_eval", "lm-eval"):
        return
    collect_rarely()
    if take_signals():
        outlive_readers(STDOUT, STDERR)


def collect_rarely() -> None:
    """Let Python search for unused cycles of objects less often.

    The imports of torch and lm-eval make many objects that stay. By default Python searches after 700 new objects, and
    that delays the start.
    """
    thresholds = (50_000, 20, 50)
    gc.set_threshold(*map(max, thresholds, gc.get_threshold()))
