"""kill -9 at many moments: the same run again loses nothing that was committed, and ends as an undisturbed run."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

# One process imports everything and forks a child per round. Importing takes far longer than running the tiny model.
ROUNDS = """
import json, os, random, signal, sqlite3, sys, time
from contextlib import closing
from pathlib import Path
from lm_eval.api.instance import Instance
from transformers.models.llama import modeling_llama
import lm_eval_aft.engines.hf.engine
from lm_eval_aft.storage import draft_store as store
from lm_eval_aft.model import AFTLM

# Frequent commits leave many moments at which to kill the run.
store.COMMIT_AFTER_S = 0.01
TINY, OUT, MOMENTS = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
ARGS = dict(pretrained=TINY, dtype="float32", device="cpu", batch_size=1, k=3, layers=2, max_gen_toks=24)
TOTAL = 5 * 7

def run(folder):
    questions = [f"Question number {n}?" for n in range(5)]
    requests = [
        # lm-eval 0.5 wants two parts of the metadata by name too.
        Instance("generate_until", {"n": n}, (q, {}), idx=0, metadata=("t", n, 1), task_name="t", doc_id=n)
        for n, q in enumerate(questions)
    ]
    AFTLM(**ARGS, record=str(folder)).generate_until(requests, disable_tqdm=True)

def child(folder):
    pid = os.fork()
    if pid == 0:
        try:
            run(folder)
        finally:
            os._exit(0)
    return pid

def rows(folder):
    try:
        with closing(sqlite3.connect(f"file:{folder}/drafts.sqlite?mode=ro", uri=True, timeout=10)) as db:
            return db.execute("SELECT count(*) FROM generations").fetchone()[0]
    # The file is not there yet.
    except sqlite3.OperationalError:
        return 0

os.waitpid(child(OUT / "whole"), 0)
draw = random.Random(20250121)
report = []
for number in range(MOMENTS):
    folder, wanted = OUT / f"killed{number}", draw.randint(1, TOTAL - 10)
    pid = child(folder)
    while rows(folder) < wanted:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            sys.exit(f"round {number}: the run ended with status {status} and {rows(folder)} rows")
        time.sleep(0.001)
    os.kill(pid, signal.SIGKILL)
    status = os.waitpid(pid, 0)[1]
    kept = rows(folder)
    partial = sorted(path.name for path in folder.glob("*.jsonl"))
    os.waitpid(child(folder), 0)
    report.append({"killed": os.WTERMSIG(status) == signal.SIGKILL, "wanted": wanted, "kept": kept,
                   "traces_at_kill": partial, "rows_at_end": rows(folder)})
print(json.dumps(report))
"""
TOTAL = 5 * 7


def essence(folder: Path) -> list[dict]:
    """The parts of traces that must be equal: all but times, and which generations were new or reused."""
    (file,) = folder.glob("*.jsonl")
    traces = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    for trace in traces:
        del trace["spent"]
        for draft in trace["drafts"]:
            del draft["elapsed_s"], draft["reused"]
            # Which text computed the shared prompt depends on what the kill left missing.
            del draft["completion"]["computed_prompt_tokens"]
    return traces


@pytest.mark.parametrize("moments", [2, pytest.param(20, marks=pytest.mark.long)])
def test_kill_at_many_moments(warm, tiny, tmp_path, moments):
    command = [*warm.command, "-c", ROUNDS, tiny, str(tmp_path), str(moments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    expected = essence(tmp_path / "whole")
    assert len(expected) == 5
    assert len(report) == moments
    for number, moment in enumerate(report):
        assert moment["killed"]
        # The kill came during generation, and left no half file.
        assert moment["wanted"] <= moment["kept"] < TOTAL
        assert moment["traces_at_kill"] == []
        # Nothing was lost or generated twice.
        assert moment["rows_at_end"] == TOTAL
        assert essence(tmp_path / f"killed{number}") == expected
        (file,) = (tmp_path / f"killed{number}").glob("*.jsonl")
        reused = sum(d["reused"] for line in file.read_text().splitlines() for d in json.loads(line)["drafts"])
        # Everything that was committed was reused, and nothing else.
        assert reused == moment["kept"]
    # The moments differ.
    assert len({moment["kept"] for moment in report}) > moments / 4
