"""``make demo``: compare the bundled AFT checkpoint with its SFT baseline.

The demonstration runs lm-eval twice on the task ``aft_arith`` and prints one question with its drafts, layers and
answer. ``aft compare`` then prints scores, cost and a paired test. Nothing is downloaded, and all files are in
``out/demo``. Each command is printed as a user types it. All of them run in this process, since starting lm-eval takes
longer than most of them.
"""

from __future__ import annotations

import os
import shutil
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lm_eval_aft import register, tasks_path
from lm_eval_aft.bundled.arith import Problem, is_right
from lm_eval_aft.cli import aft
from lm_eval_aft.cli.evaluation import evaluate
from lm_eval_aft.cli.runner import run_program
from lm_eval_aft.core.arguments import key_values
from lm_eval_aft.core.program import collect_rarely
from lm_eval_aft.core.records import Trace
from lm_eval_aft.core.terminal import output_guard, show
from lm_eval_aft.storage.traces import read_traces

_OUT = Path("out", "demo")
TASK = "aft_arith"
# Settings of both runs, as ``simple_evaluate`` takes them.
SETTINGS: dict[str, Any] = {"limit": 400, "apply_chat_template": True, "batch_size": "auto", "device": "cpu"}
INTRODUCTION = """\
Problems: make the target out of four numbers, each used once. A tiny model that was trained to answer (SFT)
against the same model trained to aggregate drafts (AFT), on problems neither has seen.
"""
RUNS = {"sft": "pretrained=bundled:sft,layers=0", "aft": "pretrained=bundled:aft,k=5,layers=2"}


def main() -> int:
    """Run the demonstration. Returns 0; a command that fails ends it earlier."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    # The models are so small that a second thread mostly waits, which uses a core too. torch reads this when it loads.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("LMEVAL_LOG_LEVEL", "ERROR")
    # lm-eval's command line does the same when it loads this package.
    collect_rarely()
    show(INTRODUCTION)
    for name, model_args in RUNS.items():
        # The run of an older version would be compared as another run.
        shutil.rmtree(_OUT / name, ignore_errors=True)
        run_lm_eval(f"{model_args},record={_OUT / name / 'traces'}", _OUT / name)
    show_question(choose(list(read_traces(_OUT / "aft" / "traces"))))
    show("")
    run_aft("compare", _OUT / "sft", _OUT / "aft")
    run_aft("report", _OUT / "sft", _OUT / "aft", "--html", _OUT / "report.html")
    return 0


def run_lm_eval(model_args: str, out: Path) -> None:
    """Print a command of lm-eval, do what it does, and print its table of scores."""
    options = " ".join(f"--{name}" if value is True else f"--{name} {value}" for name, value in SETTINGS.items())
    show(f"$ lm_eval --model aft --model_args {model_args} --tasks {TASK} {options} --log_samples --output_path {out}")
    # They import torch.
    from lm_eval.tasks import TaskManager
    from lm_eval.utils import make_table, setup_logging

    setup_logging()
    register()
    arguments = key_values("--model_args", model_args)
    # The index of lm-eval's own fourteen thousand task files takes seconds.
    manager = TaskManager(include_path=str(tasks_path()), include_defaults=False, metadata=arguments)
    # To describe the machine, lm-eval runs other programs for about a second. Nothing here shows the description.
    machine = {"lm_eval_version": version("lm_eval"), "pretty_env_info": "the demonstration leaves this out"}
    results = evaluate(out, machine, model="aft", model_args=arguments, tasks=[TASK], task_manager=manager, **SETTINGS)
    show(make_table(results))


def run_aft(*words: object) -> None:
    """Print an ``aft`` command and run it. If it fails, the demonstration ends with its exit code."""
    command = [*map(str, words)]
    show(f"$ aft {' '.join(command)}")
    code = aft.main(command, prog_name="aft", standalone_mode=False)
    if code:
        sys.exit(code)


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
