"""Over two hundred runs and trainings with an injected fault: nothing kept is lost, and errors are one sentence."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from faults.bench import CRASH, HUNG

pytestmark = pytest.mark.faults
INJECT = Path(__file__).with_name("inject.py")
# Share of the rounds that are run; CI runs a part of them.
SHARE = float(os.environ.get("FAULT_SHARE", "1"))
MID_RUN = ("kill -9", "SIGTERM", "SIGINT", "SIGHUP", "SIGXCPU", "SIGUSR1", "disk full", "locked store", "server gone")
# Faults after which nothing could be committed any more.
UNCOMMITTED = ("kill -9", "disk full", "locked store")


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
    # The tables of docs/reliability.md, which `pytest -m faults -rP` shows.
    print(process.stdout)
    return json.loads((work / "outcomes.json").read_text())


def test_there_are_enough(outcomes: list[dict]):
    assert len(outcomes) >= 200 * SHARE


def test_the_same_command_has_the_result_of_an_undisturbed_one(outcomes: list[dict]):
    assert [outcome for outcome in outcomes if not outcome["whole"]] == []


def test_nothing_that_was_kept_is_made_again(outcomes: list[dict]):
    assert [outcome for outcome in outcomes if outcome["again"]] == []


def test_a_stop_commits_all_that_was_finished(outcomes: list[dict]):
    stops = [outcome for outcome in outcomes if outcome["fault"] not in UNCOMMITTED]
    assert [outcome for outcome in stops if outcome["uncommitted"]] == []


def test_faults_happen_while_the_run_generates(outcomes: list[dict]):
    for outcome in outcomes:
        if outcome["fault"] in MID_RUN:
            assert 0 < outcome["kept"] < outcome["total"], outcome


def test_every_exit_code_is_the_one_expected(outcomes: list[dict]):
    assert [outcome for outcome in outcomes if outcome["exit_code"] not in outcome["codes"]] == []


def test_every_run_that_can_print_an_error_prints_one_sentence(outcomes: list[dict]):
    for outcome in outcomes:
        if outcome["exit_code"] > 0:
            assert outcome["message"].startswith("error: "), outcome
            assert "\n" not in outcome["message"], outcome


def test_there_are_no_tracebacks_hangs_and_keys(outcomes: list[dict]):
    bad = [outcome for outcome in outcomes if outcome["tracebacks"] or outcome["key_characters"]]
    assert bad == []
    assert [outcome for outcome in outcomes if outcome["exit_code"] in (HUNG, CRASH)] == []
