"""``aft plan``: what a run would generate, before it starts."""

from __future__ import annotations

import click

from lm_eval_aft.analysis.report.tables import Cell, Column, Form, Row, Table, count_cell, render
from lm_eval_aft.cli.options import format_option
from lm_eval_aft.core.arguments import key_values
from lm_eval_aft.core.config import AFTConfig
from lm_eval_aft.core.strategies import STRATEGIES
from lm_eval_aft.core.terminal import show


@click.command(
    epilog="strategy=rsa alone is 16 texts in each of 10 layers that write: 160 generations a question, of which each "
    "text after the drafts reads 4. The other strategies are "
    + ", ".join(name for name in STRATEGIES if name != "rsa")
    + "."
)
@click.argument("model_args", default="")
@click.option(
    "--questions", type=click.IntRange(1), help="Number of questions, to show the generations of a whole run."
)
@format_option()
def plan(model_args: str, questions: int | None, form: Form) -> None:
    """Show how many texts each layer of a run writes and reads.

    MODEL_ARGS are those of lm_eval --model aft, such as strategy=rsa,k=8,subset=4. They are checked, and nothing is
    loaded.
    """
    config, _ = AFTConfig.split(key_values("MODEL_ARGS", model_args))
    show(render([_table(config, questions)], form))


def _table(config: AFTConfig, questions: int | None) -> Table:
    columns = (
        Column("layer", "layer", False, "layer of the run"),
        Column("texts", "texts", True, "texts of a question in this layer"),
        Column("reads", "each reads", True, "texts of the layer before that each text reads"),
        Column("how", "how", False, "what the layer does"),
    )
    rows = [_row(config, layer) for layer in range(config.layers)]
    last = config.width(config.layers - 1) if config.layers else 0
    reads = min(config.subset or last, last) if not config.kind.selector else last
    written = config.generations - sum(map(config.width, range(config.layers)))
    how = "It scores the choices" if config.mcq == "drafts" else f"It {config.kind.meaning}"
    rows.append(Row((Cell("answer"), count_cell(written), count_cell(reads), Cell(how))))
    most = "at most " * (config.stop_when is not None or config.strategy == "rsa")
    notes = [f"{most}{config.generations:,} generation{'s' * (config.generations != 1)} a question"]
    if questions:
        notes.append(f"{most}{config.generations * questions:,} generations of {questions:,} questions")
    if config.strategy == "rsa":
        notes.append("The last layer writes only if the answers of the task cannot be found")
    return Table(
        f"strategy={config.strategy}", columns, tuple(rows), tuple(f"{note[0].upper()}{note[1:]}." for note in notes)
    )


def _row(config: AFTConfig, layer: int) -> Row:
    width = config.width(layer)
    reads = min(config.subset or config.width(layer - 1), config.width(layer - 1)) if layer else 0
    how = "Each text reads texts of the layer before" if layer else "Each draft reads the question"
    how += f", until {config.stop_when}" if config.stop_when and not layer else ""
    return Row((Cell(f"layer {layer}" if layer else "drafts"), count_cell(width), count_cell(reads), Cell(how)))
