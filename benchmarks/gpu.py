"""Measure what docs/performance.md says of GPUs, in order of worth, until ``--minutes`` are used.

Each job is a benchmark of this folder, or a run of lm-eval, in a process of its own. It writes its figures to ``--out``
as soon as it ends. ``gpu.json`` there names every job and its state, and is written whole after each change of a state.
A stop at any moment therefore keeps all jobs that have ended, and a later call with the same folder starts with the
others.

A job that needs a package or a file that is not at hand, or more time than is left, is not started. It is named. A job
that takes longer than the time left is stopped.

``--device cpu --tiny`` rehearses every job at a tiny size on a bundled checkpoint.

Usage: python benchmarks/gpu.py --pretrained FOLDER --questions test.jsonl --train train.jsonl [--minutes 9
           --only bare barriers --out FOLDER]
       python benchmarks/gpu.py --device cpu --tiny --out FOLDER
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

from common import conditions, parser

from lm_eval_aft.bundled import arith, locate
from lm_eval_aft.core.files import write_text
from lm_eval_aft.core.jsonl import write_jsonl

HERE = Path(__file__).resolve().parent
# How long a stopped job may take to end its own processes.
GRACE_S = 5
# The last characters of the output of a failed job that gpu.json keeps.
TAIL = 2000


@dataclass(frozen=True)
class Job:
    """A command and what it needs.

    Attributes:
        name: Name of the job, of its output file and of its folder.
        estimate_s: Seconds that it is expected to take on an H200. It is not started with less time left.
        command: Its words, without Python.
        needs: A package that it cannot do without, or "".
        environment: Variables of its environment.
    """

    name: str
    estimate_s: float
    command: tuple[str, ...]
    needs: str = ""
    environment: dict[str, str] = field(default_factory=dict)

    def obstacle(self, left_s: float) -> str:
        """Why the job cannot start; "" if it can."""
        if self.needs and find_spec(self.needs) is None:
            return f"{self.needs} is not installed"
        if left_s < self.estimate_s:
            return f"it needs about {self.estimate_s:.0f} s, and {max(left_s, 0):.0f} s are left"
        return ""


@dataclass(frozen=True)
class Inputs:
    """The checkpoint, the files and the folder of all jobs. ``more`` holds further arguments of vLLM."""

    model: str
    questions: Path
    train: Path
    out: Path
    device: str
    tiny: bool
    more: str = ""

    def script(self, name: str, *words: str, full: str, tiny: str) -> tuple[str, ...]:
        """The words of a benchmark with the sizes of a full or of a tiny run."""
        command = [str(HERE / f"{name}.py"), *words, *(tiny if self.tiny else full).split()]
        return (*command, "--out", str(self.out))

    def engine(self, name: str, *words: str, engine: str, full: str, tiny: str) -> tuple[str, ...]:
        """The words of a benchmark that loads an engine."""
        given = ["--pretrained", self.model, "--questions", str(self.questions), "--engine", engine]
        given += ["--device", self.device, *words, *(["--more", self.more] if self.more and engine == "vllm" else [])]
        # The bundled checkpoints have 512 positions.
        tiny = f"{tiny} --dtype float32 --max-length 512"
        return self.script(name, *given, full=f"{full} --max-length 8192", tiny=tiny)


def jobs(given: Inputs) -> list[Job]:
    """All jobs in order of worth."""
    return [
        *(job for engine in (("hf", "vllm") if given.tiny else ("vllm",)) for job in speed_jobs(given, engine)),
        training_job(given),
        gsm8k_job(given),
        *(job for engine in (("hf", "vllm") if given.tiny else ("vllm",)) for job in prefix_jobs(given, engine)),
        decode_job(given),
        look_ahead_job(given),
        invariant_job(given),
    ]


def speed_jobs(given: Inputs, engine: str) -> list[Job]:
    """Ours beside the bare engine, and whole layers beside batches. A rehearsal has them with the hf engine too."""
    full, tiny = "--k 5 --layers 2 --max-tokens 256", "--k 2 --layers 1 --max-tokens 8 --turns 1"
    bare = given.engine(
        "bare", "--unseeded", engine=engine, full=f"{full} --count 128 --turns 2", tiny=f"{tiny} --count 2"
    )
    barriers = given.engine("barriers", engine=engine, full=f"{full} --count 64 --turns 1", tiny=f"{tiny} --count 20")
    return [
        Job(f"bare-{engine}", 110, bare, package(engine)),
        Job(f"barriers-{engine}", 155, barriers, package(engine)),
    ]


def package(engine: str) -> str:
    """The optional package of an engine."""
    return "vllm" if engine == "vllm" else ""


def training_job(given: Inputs) -> Job:
    """Training beside TRL, with and without packing."""
    words = ["--model", given.model, "--data", str(given.out / "rows.jsonl"), "--systems", "ours", "trl", "trl packed"]
    full = "--k 3 --steps 40 --batch 8 --bf16 --turns 1"
    command = given.script("train", *words, full=full, tiny="--k 3 --steps 2 --batch 2 --turns 1")
    if given.tiny and find_spec("trl") is None:
        return Job("train", 90, tuple(word for word in command if word not in ("trl", "trl packed")))
    return Job("train", 90, command, "trl")


def gsm8k_job(given: Inputs) -> Job:
    """All questions of GSM8K at (5, 2)."""
    folder, k = given.out / "gsm8k", "k=2,layers=1,max_gen_toks=8" if given.tiny else "k=5,layers=2,max_length=8192"
    engine = "hf" if given.tiny else "vllm"
    model_args = f"engine={engine},pretrained={given.model},{k},record={folder / 'traces'}"
    model_args += f",{given.more}" * bool(given.more and engine == "vllm")
    command = ["-m", "lm_eval", "--model", "aft", "--model_args", model_args, "--tasks", "gpu_gsm8k", "--include_path"]
    command += [str(given.out / "suite"), "--device", given.device, "--apply_chat_template", "--batch_size", "auto"]
    command += ["--num_fewshot", "0", "--output_path", str(folder), "--log_samples"]
    return Job("gsm8k", 150, tuple(command), package(engine))


def prefix_jobs(given: Inputs, engine: str) -> list[Job]:
    """Prompt tokens that are computed, and the time that a shared prefix saves."""
    full = "--count 32 --max-tokens 256"
    counts = given.engine("counts", engine=engine, full=full, tiny="--count 2 --max-tokens 8 --points 2,1")
    prefill = given.engine(
        "prefill", engine=engine, full="--turns 3", tiny="--count 2 --max-tokens 8 --items 8 --turns 1"
    )
    return [
        Job(f"prefill-{engine}", 60, prefill, package(engine)),
        Job(f"counts-{engine}", 50, counts, package(engine)),
    ]


def decode_job(given: Inputs) -> Job:
    """The decoding step of the hf engine."""
    words = ["--pretrained", given.model, "--questions", str(given.questions), "--device", given.device]
    tiny = "--turns 1 --divide 10"
    return Job("decode", 40, given.script("decode", *words, full="--turns 1 --memory --dtype bfloat16", tiny=tiny))


def look_ahead_job(given: Inputs) -> Job:
    """Forward passes and time of the hf engine with look-ahead and without."""
    words = ["--pretrained", given.model, "--questions", str(given.questions), "--device", given.device]
    tiny = "--problems 4 --count 1 --max-tokens 8 --k 2 --layers 1 --turns 1"
    return Job(
        "look-ahead", 80, given.script("look_ahead", *words, full="--count 16 --max-tokens 256 --turns 1", tiny=tiny)
    )


def invariant_job(given: Inputs) -> Job:
    """Seeded and unseeded drafts in vLLM's batch-invariant mode."""
    full, tiny = "--k 5 --count 128 --max-tokens 256 --turns 2", "--k 2 --count 2 --max-tokens 8 --turns 1"
    command = given.engine("seeds", engine="vllm", full=full, tiny=tiny)
    return Job("batch-invariant", 100, command, "vllm", {"VLLM_BATCH_INVARIANT": "1"})


def run_all(
    planned: list[Job], out: Path, seconds: float, clock: Callable[[], float] = time.monotonic
) -> dict[str, Any]:
    """Run jobs one after another. Returns the state of each, which ``gpu.json`` holds too.

    Args:
        planned: The jobs, the most valuable first.
        out: Folder of their output, and of ``gpu.json``.
        seconds: Time for all of them.
        clock: Gives the present time in seconds.
    """
    states = earlier(out)
    end = clock() + seconds
    for job in planned:
        if states.get(job.name, {}).get("state") == "done":
            continue
        if reason := job.obstacle(end - clock()):
            states[job.name] = {"state": "not run", "reason": reason}
        else:
            states[job.name] = {"state": "started"}
            save(states, out)
            states[job.name] = run(job, out, end - clock())
        print(f"{job.name}: {states[job.name]['state']} {states[job.name].get('reason', '')}".rstrip(), flush=True)
        save(states, out)
    return states


def earlier(out: Path) -> dict[str, Any]:
    """The jobs that an earlier call finished in this folder."""
    path = out / "gpu.json"
    states = json.loads(path.read_text(encoding="utf-8"))["jobs"] if path.is_file() else {}
    return {name: state for name, state in states.items() if state["state"] == "done"}


def save(states: dict[str, Any], out: Path) -> None:
    """Write ``gpu.json``, whole or not at all."""
    write_text(out / "gpu.json", json.dumps({**conditions(), "jobs": states}, indent=2) + "\n")


def run(job: Job, out: Path, left_s: float) -> dict[str, Any]:
    """Run a job and stop it if the time is over. Returns its state; its output is in ``NAME.log``."""
    started = time.monotonic()
    with open(out / f"{job.name}.log", "w", encoding="utf-8") as log:
        # vLLM computes in processes of its own. They end with the session.
        process = subprocess.Popen(
            [sys.executable, *job.command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "HF_HUB_OFFLINE": "1", **job.environment},
            start_new_session=True,
        )
        try:
            code = process.wait(timeout=left_s)
        except subprocess.TimeoutExpired:
            return {"state": "stopped", "reason": f"the time was over after {left_s:.0f} s"}
        finally:
            end_session(process)
    seconds = round(time.monotonic() - started, 1)
    if code:
        tail = (out / f"{job.name}.log").read_text(encoding="utf-8", errors="replace")[-TAIL:]
        return {"state": "failed", "seconds": seconds, "reason": f"exit code {code}", "output": tail}
    return {"state": "done", "seconds": seconds}


def end_session(process: subprocess.Popen[bytes]) -> None:
    """End a job with everything that it started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(timeout=GRACE_S)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


def prepare(args: argparse.Namespace) -> Inputs:
    """Write the files that jobs read, and check the arguments.

    Raises:
        SystemExit: If a full run lacks its checkpoint or a file.
    """
    out = Path(args.out).resolve()
    out.mkdir(parents=True, exist_ok=True)
    if args.tiny:
        args.pretrained, args.questions, args.train = locate("bundled:aft"), out / "tiny.jsonl", out / "tiny.jsonl"
        problems = islice(arith.problems("train", seed=0), 32)
        rows = [{"question": p.question, "answer": f"{arith.write(steps)} #### {p.target}"} for p, steps in problems]
        write_jsonl(out / "tiny.jsonl", rows)
    if missing := [name for name in ("pretrained", "questions", "train") if not getattr(args, name)]:
        sys.exit(f"--{missing[0]} is missing: give the checkpoint, --questions and --train, or --device cpu --tiny.")
    questions, train = Path(args.questions).resolve(), Path(args.train).resolve()
    write_jsonl(out / "rows.jsonl", training_rows(train, 64 if args.tiny else 400))
    write_suite(out / "suite", questions, train)
    return Inputs(str(args.pretrained), questions, train, out, args.device, args.tiny, args.more)


def training_rows(train: Path, count: int) -> list[dict[str, Any]]:
    """Rows whose drafts are the solutions of other questions, as only the speed is measured."""
    with open(train, encoding="utf-8") as lines:
        solved = [json.loads(line) for line in islice(lines, count)]
    rows = []
    for i, row in enumerate(solved):
        drafts = [solved[(i + shift) % len(solved)]["answer"] for shift in (1, 2, 3)]
        rows.append({"query": row["question"], "drafts": drafts, "target": row["answer"], "sft_target": row["answer"]})
    return rows


def write_suite(folder: Path, questions: Path, train: Path) -> None:
    """Write a group that reads lm-eval's ``gsm8k`` from local files."""
    files = {"train": str(train), "test": str(questions)}
    task = {"task": "gsm8k", "dataset_path": "json", "dataset_name": None, "dataset_kwargs": {"data_files": files}}
    folder.mkdir(exist_ok=True)
    # Every JSON text is YAML too.
    write_text(folder / "gpu_gsm8k.yaml", json.dumps({"group": "gpu_gsm8k", "task": [task]}, indent=2) + "\n")


def main() -> None:
    """Run the jobs. The exit code is 1 if a job failed."""
    options = parser(__doc__)
    options.set_defaults(out="gpu")
    options.add_argument("--pretrained", help="Folder of the checkpoint.")
    options.add_argument("--questions", help="GSM8K's test.jsonl.")
    options.add_argument("--train", help="GSM8K's train.jsonl, from which training rows are made.")
    options.add_argument("--device", default="cuda", help="Device of all jobs (default cuda).")
    options.add_argument("--more", default="", help="Further arguments of vLLM, such as gpu_memory_utilization=0.5.")
    options.add_argument("--minutes", type=float, default=9, help="Time for all jobs in minutes (default 9).")
    options.add_argument("--only", nargs="+", default=(), help="Names of the jobs to run (default all).")
    options.add_argument("--tiny", action="store_true", help="Rehearse every job at a tiny size.")
    args = options.parse_args()
    started = time.monotonic()
    # A stop ends the running job too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    given = prepare(args)
    planned = jobs(given)
    if unknown := sorted(set(args.only) - {job.name for job in planned}):
        sys.exit(f"--only {unknown[0]}: there is no such job. The jobs are {', '.join(job.name for job in planned)}.")
    planned = [job for job in planned if not args.only or job.name in args.only]
    states = run_all(planned, given.out, 60 * args.minutes - (time.monotonic() - started))
    for name, state in states.items():
        if state["state"] != "done":
            print(f"NOT MEASURED {name}: {state['state']}, {state['reason']}")
    if any(state["state"] == "failed" for state in states.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
