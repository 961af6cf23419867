"""Over two hundred runs ended by real signals and real limits: nothing finished is lost, and each says how to go on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.faults
INJECT = Path(__file__).with_name("inject.py")
TOTAL = 35  # generations of a run
SHARE = float(os.environ.get("FAULT_SHARE", "1"))  # of the rounds: CI injects a part of them
EXIT_CODES = {"kill -9": {-9}, "SIGTERM": {143}, "SIGINT": {130}, "two runs, one folder": {0}}  # all others: 2
EXIT_CODES["out of memory"] = {0, 2}  # batches are halved, or one sequence does not fit
MID_RUN = ("kill -9", "SIGTERM", "SIGINT", "disk full", "locked store", "server gone")


@pytest.fixture(scope="module")
def outcomes(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    if os.geteuid():
        pytest.skip("read-only output is made by giving up root's rights, so this needs root")
    work = tmp_path_factory.mktemp("faults")
    command = [sys.executable, str(INJECT), tiny, str(work / "runs"), "--json", str(work / "outcomes.json")]
    command += ["--share", str(SHARE)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=3000, env=environment)
    assert (work / "outcomes.json").is_file(), done.stderr[-2000:]
    print(done.stdout)  # the table of docs/reliability.md: pytest -m faults -rP shows it
    return json.loads((work / "outcomes.json").read_text())


def test_there_are_enough(outcomes: list[dict]):
    assert len(outcomes) >= 200 * SHARE


def test_nothing_finished_is_lost(outcomes: list[dict]):
    for each in outcomes:
        assert each["whole"], each
        assert each["kept"] + each["new"] == TOTAL, each


def test_the_fault_fell_while_the_run_was_under_way(outcomes: list[dict]):
    for each in outcomes:
        if each["fault"] in MID_RUN:
            assert 0 < each["kept"] < TOTAL, each


def test_every_exit_code_is_the_one_expected(outcomes: list[dict]):
    for each in outcomes:
        assert each["exit_code"] in EXIT_CODES.get(each["fault"], {2}), each


def test_every_run_that_could_speak_says_one_sentence(outcomes: list[dict]):
    for each in outcomes:
        if each["exit_code"] > 0 and each["exit_code"] != 98:
            assert each["said"].startswith("error: "), each
            assert "\n" not in each["said"], each
