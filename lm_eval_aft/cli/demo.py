"""``make demo``: compare the bundled AFT checkpoint with its SFT baseline, by the commands that a user types.

The demonstration runs lm-eval twice on the task ``aft_arith`` and prints one question with its drafts, layers and
answer. ``aft compare`` then prints scores, cost and a paired test. Nothing is downloaded, and all files are in
``out/demo``.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from lm_eval_aft.bundled.arith import Problem, is_right
from lm_eval_aft.cli.runner import run_program
from lm_eval_aft.core.records import Trace
from lm_eval_aft.core.terminal import output_guard, show
from lm_eval_aft.storage.traces import read_traces

_OUT = Path("out", "demo")
_QUESTIONS = 400
_OPTIONS = ("--limit", _QUESTIONS, "--apply_chat_template", "--batch_size", "auto", "--device", "cpu", "--log_samples")
INTRODUCTION = """\
Problems: make the target out of four numbers, each used once. A tiny model that was trained to answer (SFT)
against the same model trained to aggregate drafts (AFT), on problems neither has seen.
"""
RUNS = {"sft": "pretrained=bundled:sft,layers=0", "aft": "pretrained=bundled:aft,k=5,layers=2"}


def main() -> int:
    """Run the demonstration. Returns 0; a command that fails ends it earlier."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("LMEVAL_LOG_LEVEL", "ERROR")
    show(INTRODUCTION)
    for name, model_args in RUNS.items():
        # The run of an older version would be compared as another run.
        shutil.rmtree(_OUT / name, ignore_errors=True)
        arguments = f"{model_args},record={_OUT / name / 'traces'}"
        options = ("--model_args", arguments, "--tasks", "aft_arith", *_OPTIONS, "--output_path", _OUT / name)
        run_command("lm_eval", "--model", "aft", *options)
    show_question(choose(list(read_traces(_OUT / "aft" / "traces"))))
    show("")
    run_command("aft", "compare", _OUT / "sft", _OUT / "aft")
    run_command("aft", "report", _OUT / "sft", _OUT / "aft", "--html", _OUT / "report.html")
    return 0


def run_command(program: str, *words: object) -> None:
    """Print a command and run it. If it fails, the demonstration ends with its exit code."""
    command = [program, *map(str, words)]
    show(f"$ {' '.join(command)}")
    done = subprocess.run([str(Path(sys.executable).with_name(program)), *command[1:]], check=False)
    if done.returncode:
        sys.exit(done.returncode)


def choose(traces: list[Trace]) -> Trace:
    """The trace of a disputed question with a right answer; the first trace if there is none."""
    for trace in traces:
        problem = Problem.read(trace.question.chat.messages[-1].content)
        right = sum(is_right(problem, draft.completion.text) for draft in trace.layer(0))
        if 0 < right < 3 and is_right(problem, trace.answer):
            return trace
    return traces[0]


def show_question(trace: Trace) -> None:
    """Print one question with its drafts, layers and answer."""
    question = trace.question.chat.messages[-1].content
    problem = Problem.read(question)
    show(f"\nOne of the questions: {question}\n")
    for draft in trace.drafts:
        last = draft is trace.drafts[-1]
        name = "answer" if last else f"layer {draft.layer}, text {draft.index + 1}" if draft.layer else "draft"
        number = "" if last or draft.layer else f" {draft.index + 1}"
        grade = "right" if is_right(problem, draft.completion.text) else "wrong"
        show(f"  {name + number:<16} {draft.completion.text:<48} {grade}")


if __name__ == "__main__":
    with output_guard():
        run_program(main)
