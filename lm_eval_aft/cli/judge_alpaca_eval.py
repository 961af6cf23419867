"""``aft judge alpaca_eval``: win rates of a run's answers against reference answers."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path

import click

from lm_eval_aft.analysis.report.tables import Cell, Column, Form, Row, Table, Unit, count_cell, render, score_cell
from lm_eval_aft.cli.judge_options import JudgeOptions, judge_options, open_judge, require_run_and_judge
from lm_eval_aft.cli.paths import PATH
from lm_eval_aft.core.errors import ConfigError
from lm_eval_aft.core.stops import stoppable
from lm_eval_aft.core.terminal import note, show
from lm_eval_aft.judging.alpaca_eval.annotate import PUBLIC_TOP_LOGPROBS
from lm_eval_aft.judging.alpaca_eval.files import find_outputs, judged_folder, read_outputs
from lm_eval_aft.judging.alpaca_eval.run import judge_outputs, read_reference, score_annotations
from lm_eval_aft.judging.alpaca_eval.scores import AlpacaSummary, ScoringOptions, write_summary
from lm_eval_aft.judging.cache import CACHE_FILE
from lm_eval_aft.judging.judge import Estimate

# the values are percentages already
PERCENTAGE = Unit(1, 2)


@click.command("alpaca_eval")
@click.argument("run", type=PATH, required=False)
@click.option(
    "--reference", type=PATH, help="File of reference outputs to compare with. The default is the one of the hub."
)
@click.option("--annotations", type=PATH, help="File of finished comparisons to score, without a judge.")
@judge_options
@click.option(
    "--regex",
    is_flag=True,
    help="Read the letter that the judge writes instead of log-probabilities. --judge-engine needs it.",
)
@click.option(
    "--top-logprobs",
    type=click.IntRange(1, 20),
    default=PUBLIC_TOP_LOGPROBS,
    show_default=True,
    help="Number of likely tokens whose log-probabilities are requested.",
)
@click.option(
    "--difficulty",
    type=PATH,
    help="Folder with df_gamed.csv, the difficulty of each instruction. The default is the one of the hub.",
)
@click.option("--no-lc", is_flag=True, help="Leave out the length-controlled win rate.")
@click.option("--name", help="Name of the model in the results. The default is the name in the outputs.")
def alpaca_eval(
    run: Path | None,
    reference: Path | None,
    annotations: Path | None,
    judge: JudgeOptions,
    regex: bool,
    top_logprobs: int,
    difficulty: Path | None,
    no_lc: bool,
    name: str | None,
    allow_missing: bool,
    output: Path | None,
    form: Form,
) -> None:
    """Let a judge compare answers with reference answers, and compute win rates.

    RUN is a model_outputs.json, the folder that record= named, or the --output_path of a run of aft_alpaca_eval with
    --log_samples. The package alpaca_eval makes the comparisons with the judge that you name. With --annotations, the
    command scores comparisons of an earlier run instead. It writes annotations, scores and the leaderboard row to
    --output. By default that is the folder alpaca_eval in the one that record= named, or else beside RUN. With
    --annotations it writes only if --output is given. aft report shows the scores that it finds there.
    """
    options = ScoringOptions(not no_lc, difficulty, allow_missing, regex, top_logprobs)
    if annotations:
        summary = score_annotations(annotations, options)
        if output:
            write_summary(output, summary)
        show(render([_table(summary)], form))
        return
    run = require_run_and_judge(run, judge, "--annotations FILE")
    if judge.engine and not regex:
        raise ConfigError(
            "--judge-engine gives no log-probabilities: add --regex, or serve the judge and name its URL."
        )
    outputs = find_outputs(run)
    folder = output or judged_folder(outputs, CACHE_FILE)
    note(f"answers: {outputs}")
    answers, references = read_outputs(outputs, name), read_reference(reference)

    def show_estimate(estimate: Estimate) -> None:
        note(estimate.sentence(judge.price_in, judge.price_out))

    with closing(open_judge(judge, folder)) as client, stoppable(client.kept):
        summary = judge_outputs(answers, references, client, options, folder, show_estimate)
    show(render([_table(summary)], form))


def _table(summary: AlpacaSummary) -> Table:
    """A row for each score."""
    scores = summary.scores
    counts = {
        "n_wins": scores.n_wins,
        "n_wins_base": scores.n_wins_base,
        "n_draws": scores.n_draws,
        "n_total": scores.n_total,
        "missing": scores.missing,
        "avg_length": scores.avg_length,
    }
    cells = {
        summary.metric_name(name): score_cell(rate, error, PERCENTAGE) for name, (rate, error) in scores.rates().items()
    }
    cells |= {name: count_cell(count) for name, count in counts.items()}
    names = (summary.name, summary.reference, summary.annotator)
    rows = [Row((*map(Cell, (*names, metric)), cell)) for metric, cell in cells.items()]
    rows[0] = replace(rows[0], notes=summary.remarks)
    columns = (
        Column("model", "model"),
        Column("reference", "reference"),
        Column("judge", "judge", title="alpaca_eval's name of judge and method"),
        Column("metric", "metric"),
        Column("value", "value", True, "percent for rates, characters for avg_length", ("stderr",)),
    )
    notes = (
        "Rates are in percent, with their standard error; avg_length is in characters.",
        "n_wins counts the comparisons that the model won, n_wins_base those that the reference won.",
    )
    return Table(summary.title, columns, tuple(rows), notes)
