"""``aft data``: the commands that turn queries into rows for ``aft train``, and describe them.

The usual order is import, drafts, select, aggregate. stats and ppl describe any file of rows, and export writes it for
other programs. Each command reads its options, calls one function and prints the result. A heavy package is imported
when a command needs it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from lm_eval_aft.cli.numbers import Real
from lm_eval_aft.cli.paths import PATH
from lm_eval_aft.core.errors import ConfigError
from lm_eval_aft.core.jsonl import write_jsonl
from lm_eval_aft.core.terminal import note, show
from trainers.rows.result import DataResult
from trainers.rows.row import DataRow
from trainers.settings import EXPORT_FORMATS, KINDS, Kind, override

SOURCE, OUT = click.argument("source", type=PATH), click.argument("out", type=PATH)
POSITIVE, RATIO, SHARE = click.IntRange(1), Real(0), Real(0, 1, min_open=True)
WRONG = click.Choice(["keep", "drop", "retry", "repair"])


def model_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options of commands that load an engine."""
    command = click.option("--batch_size", default="auto", help="Batch size of the engine, as in lm_eval.")(command)
    command = click.option(
        "--device", default="cuda:0", help="Device of the engine. It is the CPU if there is no GPU."
    )(command)
    meaning = "Model arguments of lm_eval --model aft, without those for layers, answers and scoring."
    return click.option("--model_args", required=True, help=meaning)(command)


def verifier_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options of commands that grade texts."""
    command = click.option("--gold", default="gold", help="Key of a row that holds the right answer.")(command)
    meaning = (
        "What grades texts. exact: compares the last number, exact:REGEX compares the last match of a regular "
        "expression, and module:function calls your function."
    )
    return click.option("--verifier", help=meaning)(command)


@click.group(context_settings={"show_default": True})
def data() -> None:
    """Make training data from queries, and describe it.

    The usual order is import, drafts, select, aggregate.
    """


@data.command("import", short_help="Turn a data set into rows.")
@SOURCE
@OUT
@click.option("--layout", default="auto", help="Layout of the data set: auto, generic, ultrafeedback or qa_feedback.")
@click.option(
    "--field",
    "fields",
    multiple=True,
    metavar="OURS=THEIRS",
    help="Key in the file for one of our keys, such as gold=answer. A key within others is written a.b[].c. "
    "Repeat the option for several.",
)
def import_command(source: Path, out: Path, layout: str, fields: tuple[str, ...]) -> None:
    """Turn a data set into rows.

    SOURCE holds queries, and may hold several responses to each.
    """
    from trainers.rows.importers import import_rows

    if any("=" not in field for field in fields):
        raise ConfigError("--field is written OURS=THEIRS, such as --field gold=answer or drafts=a.b[].text.")
    _finish(out, import_rows(source, layout, dict(field.split("=", 1) for field in fields)))


@data.command(short_help="Sample drafts of each query.")
@SOURCE
@OUT
@click.option("-n", "count", default=8, type=POSITIVE, help="Number of drafts per query.")
@click.option(
    "--demonstrations", type=PATH, help="JSONL file of query and target. The solved examples stand before each query."
)
@click.option(
    "--ask",
    help='Text of the user turn, such as "Question: {query} Answer:" for a base model. The default is the query.',
)
@click.option("--whole", is_flag=True, help="Leave out drafts that are empty or ended at the token limit.")
@model_options
def drafts(source: Path, out: Path, **options: Any) -> None:
    """Sample drafts of each query in SOURCE.

    The defaults are temperature 1.0, top-k 50 and top-p 0.95; --model_args replaces them. For base models give
    --demonstrations, and draft_until in --model_args.
    """
    from trainers.generation.drafts import sample_drafts

    _finish(out, sample_drafts(source, _model(out, options), **options))


@data.command(short_help="Score drafts, and keep the best of each row.")
@SOURCE
@OUT
@click.option(
    "--k",
    type=POSITIVE,
    help="Number of drafts to keep per row. Rows with fewer are left out. The default keeps all drafts.",
)
@click.option("--at-least", type=POSITIVE, help="Least number of drafts of a row. Rows with fewer are left out.")
@click.option(
    "--reward_model", help="Reward model that scores the drafts: a sequence-classification checkpoint with one output."
)
@click.option(
    "--match",
    type=PATH,
    help="Scored file. Drafts are chosen so that the mean score of each row is near that of its row there.",
)
@click.option("--device", default="cuda:0", help="Device of the reward model.")
@click.option("--batch_size", default=8, type=POSITIVE, help="Batch size of the reward model.")
@verifier_options
def select(source: Path, out: Path, **options: Any) -> None:
    """Score the drafts in SOURCE, and keep the k best of each row.

    Without --k the command only scores them.
    """
    from trainers.generation.selection import select_drafts

    _finish(out, select_drafts(source, store=Path(f"{out}.sqlite"), **options))


@data.command(short_help="Write targets from queries and drafts.")
@SOURCE
@OUT
@click.option(
    "--k",
    "ks",
    multiple=True,
    default=(5,),
    type=POSITIVE,
    help="Number of drafts in a set. Repeat the option for several.",
)
@click.option("--sets", default=1, type=POSITIVE, help="Number of draft sets per query and k.")
@click.option("--mixed", type=SHARE, help="Least share of sets that hold right and wrong drafts.")
@click.option("--wrong", default="drop", type=WRONG, help="What to do with wrong targets.")
@click.option("--retries", default=2, type=POSITIVE, help="Maximum number of attempts of --wrong retry and repair.")
@click.option(
    "--shortest", default=0.0, type=RATIO, help="Least length of a target in words, divided by the mean of its drafts."
)
@click.option("--seed", default=0, help="Seed of the draws of draft sets.")
@verifier_options
@model_options
def aggregate(source: Path, out: Path, **options: Any) -> None:
    """Let a teacher write targets from queries and drafts, with the prompt of inference.

    A target depends on its drafts. So give --k once for each number of drafts that you will evaluate.
    """
    from trainers.generation.targets import aggregate as write_targets
    from trainers.inspection.overlap import overlap_of

    result = write_targets(source, _model(out, options), **options)
    _finish(out, replace(result, facts=[*result.facts, *overlap_of(result.rows).lines()]))


@data.command(short_help="Write rows for other training programs.")
@SOURCE
@OUT
@click.option("--to", "form", required=True, type=click.Choice(EXPORT_FORMATS), help="Layout of the output.")
@click.option("--model", required=True, help="Folder or hub name of the model to train. Its tokenizer is used.")
@click.option("--kind", default="aft", type=click.Choice(list(KINDS)), help="Which examples, as in aft train.")
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Setting of aft train that examples depend on, such as k=[3,5], plain_share=0, max_length or template. "
    "Repeat the option for several.",
)
@click.option("--gold", default="gold", help="Key of a row that holds the right answer, for verl.")
def export(source: Path, out: Path, form: str, model: str, kind: Kind, overrides: tuple[str, ...], gold: str) -> None:
    """Write the examples of aft train for other training programs.

    The prompts are those of training and inference. OUT is JSONL, or Parquet if its name ends in .parquet.
    """
    from trainers.fitting.export import export_rows, write_rows

    config = override({"model": model, "data": str(source), "output": str(out)}, overrides, "aft data export")
    result = export_rows(source, form, config, kind, gold)
    _finish(out, result, write_rows)


@data.command(short_help="Describe a file of rows.")
@SOURCE
@click.option(
    "--against", type=PATH, help="Evaluation set, a JSONL file. Its questions are searched for in queries and targets."
)
@click.option("--field", default="question", help="Key of the questions in the file of --against.")
@click.option("--words", default=13, type=POSITIVE, help="Number of consecutive words that count as overlap.")
@verifier_options
def stats(source: Path, **options: Any) -> None:
    """Print lengths, duplicates, diversity, correctness, overlap and contamination of the rows in SOURCE."""
    from trainers.inspection.describe import describe

    show("\n".join(describe(source, **options)))


@data.command(short_help="Measure the perplexity of the targets.")
@SOURCE
@click.option(
    "--k", "ks", multiple=True, type=POSITIVE, help="Number of drafts that are drawn per row. The default is all."
)
@click.option("--limit", type=POSITIVE, help="Maximum number of rows to read. The default is all.")
@click.option("--seed", default=0, help="Seed of the draws.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
@model_options
def ppl(source: Path, as_json: bool, **options: Any) -> None:
    """Measure the perplexity of the targets in SOURCE: given the query, with drafts, and without the nearest draft."""
    from trainers.inspection.perplexity import target_perplexity

    result = target_perplexity(source, **options)
    if result.cut or result.left_out:
        limits = f"{result.left_out} rows left out, drafts cut in {result.cut}"
        note(f"over the model's {result.max_length} tokens: {limits}")
    if as_json:
        figures = {p.setting: {"ppl": p.value, "tokens": p.tokens, "examples": p.examples} for p in result.settings}
        show(json.dumps(figures))
        return
    show(f"{'perplexity per token':40} {'ppl':>8} {'tokens':>9} {'examples':>9}")
    for p in result.settings:
        show(f"{p.setting:40} {p.value:8.3f} {p.tokens:9,} {p.examples:9,}")


def _model(out: Path, options: dict[str, Any]) -> Any:
    """Take those of ``model_options`` out of the options, as ``GeneratorOptions`` with a store beside the output."""
    from trainers.generation.generator import GeneratorOptions

    model_args, device, batch_size = (options.pop(name) for name in ("model_args", "device", "batch_size"))
    return GeneratorOptions(model_args, Path(f"{out}.sqlite"), device, batch_size)


def _finish(
    out: Path, result: DataResult, write_rows: Callable[[Path, Sequence[DataRow]], object] = write_jsonl
) -> None:
    """Write the rows and their card, and print what was done."""
    digest = result.write(out, write_rows)
    for fact in result.facts:
        note(fact, err=False)
    note(f"wrote {len(result.rows)} rows to {out} (sha256 {digest[:12]})", err=False)
