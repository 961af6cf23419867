"""Two processes give the answers and the totals of one process, and torchrun ends both if one dies."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.warm import WarmPython
from lm_eval_aft.storage.draft_store import SQLiteStore
from lm_eval_aft.storage.traces import read_traces

SCRIPT = """
import atexit, json, os, signal, sys, time
import lm_eval, lm_eval.evaluator, lm_eval_aft
from lm_eval.tasks import TaskManager
from lm_eval_aft.storage import draft_store as store

if os.environ.get("DIES") == os.environ.get("RANK", "0"):
    store.COMMIT_AFTER_S, put, seen = 0.01, store.SQLiteStore.put, []
    def put_and_die(self, key, completion):
        put(self, key, completion)
        seen.append(key)
        if len(seen) == 3:
            # Long enough for a commit.
            time.sleep(0.5)
            os.kill(os.getpid(), signal.SIGKILL)
    store.SQLiteStore.put = put_and_die

# Registered before the engine's handler, so called after it.
def tell_group():
    import torch.distributed as group
    print("a process group is left:", group.is_initialized(), file=sys.stderr)

atexit.register(tell_group)
# It takes seconds, and this test does not need it.
lm_eval.evaluator.add_env_info = lambda storage: None
lm_eval_aft.register()
tiny, out, shots, kind = sys.argv[1:]
# lm-eval 0.5 refuses shots whose answer is a whole number.
rows = [dict(question=f"{n}+{n}?", answer=f"It is {2 * n}.", choices=[str(2 * n), "no idea"]) for n in range(5)]
with open(out + "/data.jsonl", "w") as file:
    file.writelines(json.dumps(row) + chr(10) for row in rows)
files = dict(data_files=dict(train=out + "/data.jsonl", test=out + "/data.jsonl"))
kinds = dict(
    generate_until=dict(doc_to_target="{{answer}}", generation_kwargs=dict(until=[], max_gen_toks=12),
                        metric_list=[dict(metric="exact_match")]),
    multiple_choice=dict(doc_to_target=0, doc_to_choice="choices", metric_list=[dict(metric="acc")]))
task = dict(task="small", output_type=kind, dataset_path="json", dataset_kwargs=files, test_split="test",
            fewshot_split="train", fewshot_config=dict(sampler="first_n"), doc_to_text="{{question}}",
            **kinds[kind])
results = lm_eval.simple_evaluate(
    model="aft", model_args=dict(pretrained=tiny, dtype="float32", k=2, layers=1, record=out + "/traces",
                                 mcq="drafts", draft_max_tokens=12, **json.loads(os.environ.get("MORE", "{}"))),
    tasks=[task], task_manager=TaskManager(include_defaults=False), bootstrap_iters=0, device="cpu", batch_size=4,
    num_fewshot=int(shots), apply_chat_template=True, fewshot_as_multiturn=True)
if results is not None:
    # Choices have scores. lm-eval 0.5 keeps the text of a padding copy beside that of its question.
    texts = lambda resps: resps[0][:1] if kind == "generate_until" and isinstance(resps[0], list) else resps
    samples = sorted((s["doc_id"], texts(s["filtered_resps"])) for s in results["samples"]["small"])
    with open(out + "/end.json", "w") as file:
        json.dump(dict(samples=samples, aft=results["config"]["aft"]), file)
"""


def write(tiny: str, out: Path, shots: int, kind: str) -> list[str]:
    """Write the script. Returns the words that run it."""
    out.mkdir(exist_ok=True)
    (out / "script.py").write_text(SCRIPT)
    return [str(out / "script.py"), tiny, str(out), str(shots), kind]


def run(warm: WarmPython, words: list[str], processes: int) -> tuple[dict, str]:
    """Run the script to its end. Returns its results, and what it wrote to stderr."""
    if processes > 1:
        done = warm.ranks(words, count=processes)
    else:
        done = subprocess.run([*warm.command, *words], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(Path(words[2], "end.json").read_text()), done.stderr


def test_two_processes_equal_one(warm, tiny, tmp_path):
    one, _ = run(warm, write(tiny, tmp_path / "one", 2, "generate_until"), 1)
    two, log = run(warm, write(tiny, tmp_path / "two", 2, "generate_until"), 2)
    assert two["samples"] == one["samples"]
    assert len(one["samples"]) == 5
    # For 5 questions on 2 processes, lm-eval pads the second with a copy, which is neither counted nor recorded.
    for count in ("generations", "prompt_tokens", "generated_tokens"):
        assert two["aft"]["usage"][count] == one["aft"]["usage"][count]
    assert one["aft"]["usage"]["generations"] == 15
    traces = list(read_traces(tmp_path / "two" / "traces"))
    assert sorted(trace.question.doc_id for trace in traces) == [0, 1, 2, 3, 4]
    assert len(list((tmp_path / "two" / "traces").glob("*_rank*of2.jsonl"))) == 2
    assert "draws its shots at random" in log
    # A process group that outlives the interpreter may abort a finished process.
    assert log.count("a process group is left: False") == 2


@pytest.mark.long
def test_two_processes_answer_a_shard(warm, tiny, tmp_path, monkeypatch):
    answered = []
    for shard in ("1/2", "2/2"):
        monkeypatch.setenv("MORE", json.dumps({"shard": shard}))
        done = warm.ranks(write(tiny, tmp_path / "out", 2, "generate_until"), count=2)
        assert done.returncode == 0, done.stderr[-3000:]
        (sentence,) = (line for line in done.stderr.splitlines() if "is done and has no score" in line)
        answered.append(int(sentence.partition("no score: ")[2].split()[0]))
    assert sum(answered) == 5
    assert not (tmp_path / "out" / "end.json").exists()
    monkeypatch.delenv("MORE")
    together, _ = run(warm, write(tiny, tmp_path / "out", 2, "generate_until"), 2)
    assert (together["aft"]["usage"]["generations"], together["aft"]["spent"]["generations"]) == (15, 0)


@pytest.mark.long
def test_two_processes_score_choices_after_drafts_as_one_does(warm, tiny, tmp_path):
    one, _ = run(warm, write(tiny, tmp_path / "one", 0, "multiple_choice"), 1)
    two, _ = run(warm, write(tiny, tmp_path / "two", 0, "multiple_choice"), 2)
    for (doc, alone), (same, shared) in zip(one["samples"], two["samples"], strict=True):
        assert doc == same
        assert [float(value) for value, _ in alone] == pytest.approx([float(value) for value, _ in shared], abs=1e-3)
    for count in ("generations", "prompt_tokens", "generated_tokens"):
        assert two["aft"]["usage"][count] == one["aft"]["usage"][count]
    assert (one["aft"]["usage"]["generations"], one["aft"]["scored_after_drafts"]) == (10, 5)
    assert two["aft"]["scored_after_drafts"] == 5
    assert sorted(trace.question.doc_id for trace in read_traces(tmp_path / "two" / "traces")) == [0, 1, 2, 3, 4]


@pytest.mark.long
def test_a_killed_worker_ends_the_others_and_the_same_command_resumes(warm, tiny, tmp_path):
    whole, _ = run(warm, write(tiny, tmp_path / "whole", 0, "generate_until"), 2)
    words = write(tiny, tmp_path / "killed", 0, "generate_until")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = os.environ | {"DIES": "1"}
    killed = subprocess.run([*torchrun, *words], capture_output=True, text=True, timeout=300, env=environment)
    assert killed.returncode == 1
    # torchrun names the worker and ends the other.
    assert "Signal 9 (SIGKILL)" in killed.stderr
    assert not (tmp_path / "killed" / "end.json").exists()
    kept = SQLiteStore(tmp_path / "killed" / "traces" / "drafts.sqlite", create=False).info().generations
    assert 3 <= kept < 15
    again, _ = run(warm, words, 2)
    assert again["samples"] == whole["samples"]
    assert again["aft"]["usage"]["generations"] == whole["aft"]["usage"]["generations"] == 15
    assert again["aft"]["spent"]["generations"] == 15 - kept
