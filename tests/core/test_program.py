"""What lm-eval's command line gets at its start, and no other program that calls lm-eval."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("program", "before", "after"),
    [
        ("/bin/lm_eval", "700, 10, 10", "50000"),
        ("/bin/lm_eval", "90_000, 10, 10", "90000"),
        ("/home/me/study.py", "700, 10, 10", "700"),
    ],
)
def test_the_program_of_lm_eval_searches_for_unused_objects_less_often(program: str, before: str, after: str) -> None:
    code = f"""
import gc, sys
sys.argv = [{program!r}]
gc.set_threshold({before})
from lm_eval_aft.core.program import prepare_program
prepare_program()
print(gc.get_threshold()[0])
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert ended.stdout.strip() == after
