"""``aft diagnose``: what aggregation did to each question."""

from __future__ import annotations

from pathlib import Path

import click

from lm_eval_aft.analysis import api
from lm_eval_aft.analysis.report.diagnosis_tables import diagnostics_panel, panel_markdown, panel_text
from lm_eval_aft.analysis.report.tables import to_json
from lm_eval_aft.cli.options import LEVEL, REGEX, format_option, traces_option
from lm_eval_aft.cli.paths import PATH
from lm_eval_aft.core.terminal import show


@click.command()
@click.argument("out", type=PATH)
@traces_option("OUT")
@click.option("--task", help="Task or group to diagnose. The default is all.")
@REGEX
@LEVEL
@format_option(["text", "markdown", "json"])
def diagnose(out: Path, traces: Path | None, task: str | None, regex: str | None, level: float, form: str) -> None:
    """Report what aggregation did: what it selected, fixed, broke and copied, and how diversity and length changed.

    OUT is the --output_path of runs with record= and --log_samples. Accuracies need an answer in each text. If a task
    has no extraction, give --regex.
    """
    diagnosed = [each.diagnostics for each in api.diagnose(out, task, regex, level, traces)]
    if form == "json":
        show(to_json(diagnosed))
    else:
        write = panel_text if form == "text" else panel_markdown
        show("\n\n".join(write(diagnostics_panel(each)) for each in diagnosed))
