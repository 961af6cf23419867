"""``make demo``: the bundled checkpoints, AFT against its SFT baseline, by the commands that a user would type.

Two lm-eval runs on the task ``aft_arith``, one question with its drafts, layers and answer, then ``aft compare``:
scores, cost and a paired test. Needs no download. The commands are printed; everything stays in ``out/demo``.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from lm_eval_aft.bundled.arith import Problem, is_right
from lm_eval_aft.core.records import Trace
from lm_eval_aft.storage.traces import read_traces

OUT = Path("out", "demo")
QUESTIONS = 400
COMMON = ("--limit", QUESTIONS, "--apply_chat_template", "--batch_size", "auto", "--device", "cpu", "--log_samples")
RUNS = {"sft": "pretrained=bundled:sft,layers=0", "aft": "pretrained=bundled:aft,k=5,layers=2"}


def main() -> int:
    """Run the demonstration; 0 when it went through."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("LMEVAL_LOG_LEVEL", "ERROR")
    print(
        "Problems: make the target out of four numbers, each used once. A tiny model that was trained to answer (SFT)"
    )
    print("against the same model trained to aggregate drafts (AFT), on problems neither has seen.\n")
    for name, model_args in RUNS.items():
        shutil.rmtree(OUT / name, ignore_errors=True)  # an older version's demonstration is another run
        arguments = f"{model_args},record={OUT / name / 'traces'}"
        run(
            "lm_eval",
            "--model",
            "aft",
            "--model_args",
            arguments,
            "--tasks",
            "aft_arith",
            *COMMON,
            "--output_path",
            OUT / name,
        )
    show(choose(list(read_traces(OUT / "aft" / "traces"))))
    print()
    run("aft", "compare", OUT / "sft", OUT / "aft")
    run("aft", "report", OUT / "sft", OUT / "aft", "--html", OUT / "report.html")
    return 0


def run(program: str, *words: object) -> None:
    """Print a command and run it; one that fails ends the demonstration with its exit code."""
    command = [program, *map(str, words)]
    print(f"$ {' '.join(command)}", flush=True)
    done = subprocess.run([str(Path(sys.executable).with_name(program)), *command[1:]], check=False)
    if done.returncode:
        sys.exit(done.returncode)


def choose(traces: list[Trace]) -> Trace:
    """A question whose drafts disagree and whose answer is right, if there is one."""
    for trace in traces:
        problem = Problem.read(trace.question.chat.messages[-1].content)
        right = sum(is_right(problem, draft.completion.text) for draft in trace.layer(0))
        if 0 < right < 3 and is_right(problem, trace.answer):
            return trace
    return traces[0]


def show(trace: Trace) -> None:
    """Print what happened to one question."""
    question = trace.question.chat.messages[-1].content
    problem = Problem.read(question)
    print(f"\nOne of the questions: {question}\n")
    for draft in trace.drafts:
        last = draft is trace.drafts[-1]
        name = "answer" if last else f"layer {draft.layer}, text {draft.index + 1}" if draft.layer else "draft"
        number = "" if last or draft.layer else f" {draft.index + 1}"
        verdict = "right" if is_right(problem, draft.completion.text) else "wrong"
        print(f"  {name + number:<16} {draft.completion.text:<48} {verdict}")


if __name__ == "__main__":
    sys.exit(main())
