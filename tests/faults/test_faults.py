"""Over two hundred runs with an injected fault: no finished generation is lost, and outcome error is one sentence."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.faults
INJECT = Path(__file__).with_name("inject.py")
# Generations of a run.
TOTAL = 35
# Share of the rounds that are run; CI runs a part of them.
SHARE = float(os.environ.get("FAULT_SHARE", "1"))
# Exit codes of outcome fault; of the others it is 2.
EXIT_CODES = {"kill -9": {-9}, "SIGTERM": {143}, "SIGINT": {130}, "two runs, one folder": {0}}
# The engine halves its batches, which may suffice or not.
EXIT_CODES["out of memory"] = {0, 2}
MID_RUN = ("kill -9", "SIGTERM", "SIGINT", "disk full", "locked store", "server gone")


@pytest.fixture(scope="module")
def outcomes(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    if os.geteuid():
        pytest.skip("the read-only fault needs root, because it changes the user")
    work = tmp_path_factory.mktemp("faults")
    command = [sys.executable, str(INJECT), tiny, str(work / "runs"), "--json", str(work / "outcomes.json")]
    command += ["--share", str(SHARE)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.run(command, capture_output=True, text=True, timeout=3000, env=environment)
    assert (work / "outcomes.json").is_file(), process.stderr[-2000:]
    # The table of docs/reliability.md, which `pytest -m faults -rP` shows.
    print(process.stdout)
    return json.loads((work / "outcomes.json").read_text())


def test_there_are_enough(outcomes: list[dict]):
    assert len(outcomes) >= 200 * SHARE


def test_no_finished_generation_is_lost(outcomes: list[dict]):
    for outcome in outcomes:
        assert outcome["whole"], outcome
        assert outcome["kept"] + outcome["new"] == TOTAL, outcome


def test_faults_happen_while_the_run_generates(outcomes: list[dict]):
    for outcome in outcomes:
        if outcome["fault"] in MID_RUN:
            assert 0 < outcome["kept"] < TOTAL, outcome


def test_every_exit_code_is_the_one_expected(outcomes: list[dict]):
    for outcome in outcomes:
        assert outcome["exit_code"] in EXIT_CODES.get(outcome["fault"], {2}), outcome


def test_every_run_that_can_print_an_error_prints_one_sentence(outcomes: list[dict]):
    for outcome in outcomes:
        if outcome["exit_code"] > 0 and outcome["exit_code"] != 98:
            assert outcome["message"].startswith("error: "), outcome
            assert "\n" not in outcome["message"], outcome
