"""``aft diagnose``: what aggregation did to each question."""

from __future__ import annotations

from pathlib import Path

import click

from lm_eval_aft.analysis import api
from lm_eval_aft.analysis.report.diagnosis_tables import diagnostics_panel, panel_markdown, panel_text
from lm_eval_aft.analysis.report.tables import to_json
from lm_eval_aft.cli.paths import PATH
from lm_eval_aft.core.terminal import show


@click.command()
@click.argument("out", type=PATH)
@click.option("--traces", type=PATH, help="Folder that record= named, if it is not below OUT.")
@click.option("--task", help="Diagnose this task or group alone.")
@click.option("--regex", help="Find answers by this regex: its last match, or that match's first group.")
@click.option("--level", type=float, default=0.95, show_default=True, help="Confidence of the intervals.")
@click.option("--format", "form", type=click.Choice(["text", "markdown", "json"]), default="text", show_default=True)
def diagnose(out: Path, traces: Path | None, task: str | None, regex: str | None, level: float, form: str) -> None:
    """Say what aggregation did: what it selected, fixed, broke or copied, and how it changed diversity and length.

    OUT is the --output_path of runs with record= and --log_samples. Tasks whose answers cannot be found have no
    accuracies; --regex finds the answers.
    """
    diagnosed = [each.diagnostics for each in api.diagnose(out, task, regex, level, traces)]
    if form == "json":
        show(to_json(diagnosed))
    else:
        write = panel_text if form == "text" else panel_markdown
        show("\n\n".join(write(diagnostics_panel(each)) for each in diagnosed))
