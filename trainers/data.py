"""``aft data``: the commands that turn queries into rows for ``aft train``, and describe them.

The usual order is import, drafts, select, aggregate; stats and ppl describe any file of rows. Each command reads its
options, calls one function and prints the result. A heavy package is imported when a command needs it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from lm_eval_aft.cli.paths import PATH
from lm_eval_aft.core.errors import ConfigError
from lm_eval_aft.core.terminal import note, show
from trainers.rows.result import DataResult

SOURCE, OUT = click.argument("source", type=PATH), click.argument("out", type=PATH)
POSITIVE, RATIO, SHARE = click.IntRange(1), click.FloatRange(0), click.FloatRange(0, 1, min_open=True)
WRONG = click.Choice(["keep", "drop", "retry", "repair"])


def model_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options of commands that load an engine."""
    command = click.option("--batch_size", default="auto", help="As for lm_eval.")(command)
    command = click.option("--device", default="cuda:0", help="As for lm_eval; the CPU if there is no GPU.")(command)
    meaning = "As for lm_eval --model aft, without k, layers and final_..."
    return click.option("--model_args", required=True, help=meaning)(command)


def verifier_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options of commands that grade texts."""
    command = click.option("--gold", default="gold", help="Key of a row with the right answer.")(command)
    meaning = "exact:REGEX (last match; exact: is the last number), or module:function."
    return click.option("--verifier", help=meaning)(command)


@click.group(context_settings={"show_default": True})
def data() -> None:
    """Build training data: drafts, selection and targets; and describe it."""


@data.command("import")
@SOURCE
@OUT
@click.option("--layout", default="auto", help="auto, generic, ultrafeedback or qa_feedback.")
@click.option("--field", "fields", multiple=True, metavar="OURS=THEIRS", help="The file's name for one of our keys.")
def import_command(source: Path, out: Path, layout: str, fields: tuple[str, ...]) -> None:
    """Turn a data set with queries, and perhaps several responses each, into rows."""
    from trainers.rows.importers import import_rows

    if any("=" not in field for field in fields):
        raise ConfigError("--field is written OURS=THEIRS, such as --field gold=answer.")
    _finish(out, import_rows(source, layout, dict(field.split("=", 1) for field in fields)))


@data.command()
@SOURCE
@OUT
@click.option("-n", "count", default=8, type=POSITIVE, help="Drafts a query.")
@click.option("--demonstrations", type=PATH, help="JSONL of query and target: solved examples before each query.")
@click.option("--ask", help='Text of the user turn, such as "Question: {query} Answer:" for a base model.')
@click.option("--whole", is_flag=True, help="Leave out drafts that are empty or cut at the token limit.")
@model_options
def drafts(source: Path, out: Path, **options: Any) -> None:
    """Sample drafts: temperature 1.0, top-k 50, top-p 0.95 unless --model_args says otherwise.

    For base models give draft_until in --model_args, and --demonstrations.
    """
    from trainers.generation.drafts import sample_drafts

    _finish(out, sample_drafts(source, _model(out, options), **options))


@data.command()
@SOURCE
@OUT
@click.option("--k", type=POSITIVE, help="Drafts to keep a row; rows with fewer are left out.")
@click.option("--at-least", type=POSITIVE, help="Leave out rows with fewer drafts; others keep all of theirs.")
@click.option("--reward_model", help="A sequence-classification checkpoint with one output.")
@click.option("--match", type=PATH, help="Scored file whose mean score each row is matched to (on- and off-policy).")
@click.option("--device", default="cuda:0", help="Device of the reward model.")
@click.option("--batch_size", default=8, type=POSITIVE, help="Batch size of the reward model.")
@verifier_options
def select(source: Path, out: Path, **options: Any) -> None:
    """Score drafts, and keep the k best of each row; without --k only score them."""
    from trainers.generation.selection import select_drafts

    _finish(out, select_drafts(source, store=Path(f"{out}.sqlite"), **options))


@data.command()
@SOURCE
@OUT
@click.option("--k", "ks", multiple=True, default=(5,), type=POSITIVE, help="Drafts a set.")
@click.option("--sets", default=1, type=POSITIVE, help="Draft sets a query and k.")
@click.option("--mixed", type=SHARE, help="Least share of sets with right and wrong drafts.")
@click.option("--wrong", default="drop", type=WRONG, help="Treatment of wrong targets.")
@click.option("--retries", default=2, type=POSITIVE, help="Most attempts of retry and repair.")
@click.option("--shortest", default=0.0, type=RATIO, help="Least words of a target, as a share of its drafts' mean.")
@click.option("--seed", default=0, help="Seed of the draft sets.")
@verifier_options
@model_options
def aggregate(source: Path, out: Path, **options: Any) -> None:
    """Let a teacher write targets from query and drafts, through the prompt of inference.

    Give --k once for each number of drafts that you will evaluate: a target depends on the drafts it was made from.
    """
    from trainers.generation.targets import aggregate as write_targets
    from trainers.inspection.overlap import overlap_of

    result = write_targets(source, _model(out, options), **options)
    _finish(out, replace(result, facts=[*result.facts, *overlap_of(result.rows).lines()]))


@data.command()
@SOURCE
@click.option("--against", type=PATH, help="Evaluation set (JSONL) to search for in queries and targets.")
@click.option("--field", default="question", help="Key of its questions.")
@click.option("--words", default=13, type=POSITIVE, help="Words in a row that count as overlap.")
@verifier_options
def stats(source: Path, **options: Any) -> None:
    """Print what a file holds: lengths, duplicates, diversity, correctness, overlap and contamination."""
    from trainers.inspection.describe import describe

    show("\n".join(describe(source, **options)))


@data.command()
@SOURCE
@click.option("--k", "ks", multiple=True, type=POSITIVE, help="Drafts drawn a row; default: all of a row's.")
@click.option("--limit", type=POSITIVE, help="Most rows to read.")
@click.option("--seed", default=0, help="Seed of the draws.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
@model_options
def ppl(source: Path, as_json: bool, **options: Any) -> None:
    """Perplexity of the targets: given the query, with the drafts, and without the nearest draft."""
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


def _finish(out: Path, result: DataResult) -> None:
    """Write the rows and their card, and print what was done."""
    digest = result.write(out)
    for fact in result.facts:
        note(fact, err=False)
    note(f"wrote {len(result.rows)} rows to {out} (sha256 {digest[:12]})", err=False)
