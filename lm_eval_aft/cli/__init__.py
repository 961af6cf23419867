"""The command ``aft``: everything around checkpoints, runs and results that lm-eval does not do.

Other packages, such as our own ``trainers``, add commands through the entry-point group ``lm_eval_aft.commands``.
"""

from __future__ import annotations

from collections.abc import Sequence

import click

from lm_eval_aft.cli.lazy import Command, LazyGroup
from lm_eval_aft.cli.runner import run

COMMAND_GROUP = "lm_eval_aft.commands"

COMMANDS: dict[str, Command] = {
    "cache": Command("lm_eval_aft.cli.cache:cache", "Inspect a draft store."),
    "compare": Command("lm_eval_aft.cli.compare:compare", "Compare runs with a baseline: tests, intervals, cost."),
    "completion": Command("lm_eval_aft.cli.completion:completion", "Print what completes aft in your shell."),
    "diagnose": Command(
        "lm_eval_aft.cli.diagnose:diagnose", "Report what aggregation selected, fixed, broke and copied."
    ),
    "export": Command("lm_eval_aft.cli.export:export", "Write runs as Parquet, CSV, JSON lines or Every Eval Ever."),
    "grade": Command("lm_eval_aft.cli.grade:grade", "Grade the drafts of stored runs by their task."),
    "judge": Command("lm_eval_aft.cli.judge:judge", "Let an LLM judge answers: MT-Bench, AlpacaEval."),
    "merge": Command("lm_eval_aft.cli.merge:merge", "Join the draft stores of the shards of a run."),
    "plan": Command("lm_eval_aft.cli.plan:plan", "Show what a run would generate, before it starts."),
    "plot": Command("lm_eval_aft.cli.plot:plot", "Draw scores at equal cost, or against k and layers."),
    "report": Command(
        "lm_eval_aft.cli.report:report",
        "Show scores and cost of runs: a table, a page, a model card.",
    ),
    "sweep": Command("lm_eval_aft.cli.sweep:sweep", "Evaluate a grid of k and layers, and generate nothing twice."),
    "template": Command("lm_eval_aft.cli.template:template", "Inspect a prompt template."),
    "votes": Command("lm_eval_aft.cli.votes:votes", "Score the drafts alone: mean, majority vote, oracle."),
    "watch": Command("lm_eval_aft.cli.watch:watch", "Watch a run that is under way or was killed."),
}


@click.group(
    cls=LazyGroup,
    table=COMMANDS,
    entry_point_group=COMMAND_GROUP,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(None, "-V", "--version", package_name="lm_eval_aft", prog_name="lm_eval_aft")
def aft() -> None:
    """Evaluate, compare and train models that aggregate drafts.

    To evaluate one model, run lm_eval --model aft. The commands below work with such runs.
    """


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ``aft``."""
    run(aft, "aft", arguments)
