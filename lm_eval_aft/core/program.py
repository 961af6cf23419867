"""Prepares lm-eval's command line for a run of ours."""

from __future__ import annotations

import sys
from pathlib import Path

from lm_eval_aft.core.hangup import STDERR, STDOUT, outlive_readers
from lm_eval_aft.core.stops import take_signals


def prepare_program() -> None:
    """If lm-eval's command line is the program, end it in order on a signal, and let it outlive its terminal.

    Any other program that calls lm-eval keeps its own signal handlers.
    """
    program = Path(sys.argv[0])
    name = program.parent.name if program.name == "__main__.py" else program.stem
    if name in ("lm_eval", "lm-eval") and take_signals():
        outlive_readers(STDOUT, STDERR)
