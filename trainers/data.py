"""``aft data``: from queries to rows that ``aft train`` reads, a JSONL file in and a JSONL file out.

import -> drafts -> select -> aggregate, with stats and ppl at any point. Each output has a card beside it
(OUT.card.json: digests, settings, counts). Imports torch and lm_eval only where a model is used. Called by the command
line. Over 200 lines because each option is a line.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from math import inf
from pathlib import Path
from statistics import fmean
from typing import Any

import click

from lm_eval_aft import __version__
from lm_eval_aft.core.errors import ConfigError
from lm_eval_aft.core.files import atomic_write, file_digest
from lm_eval_aft.core.jsonl import read_jsonl, write_jsonl
from trainers.rows.row import read_rows

Decorate = Callable[[Callable[..., None]], Callable[..., None]]
FILE = click.Path(path_type=Path)


@click.group()
def data() -> None:
    """Build training data: drafts, selection, targets; and look at it."""


def model_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options of commands that load an engine."""
    for option in (
        click.option("--batch_size", default="auto", show_default=True, help="As for lm_eval."),
        click.option(
            "--device", default="cuda:0", show_default=True, help="As for lm_eval; CPU where there is no GPU."
        ),
        click.option("--model_args", required=True, help="As for lm_eval --model aft, without k, layers and final_..."),
    ):
        command = option(command)
    return command


def verifier_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options of commands that judge texts."""
    for option in (
        click.option("--gold", default="gold", show_default=True, help="Key of a row with the right answer."),
        click.option("--verifier", help="exact:REGEX (last match; exact: is the last number), or module:function."),
    ):
        command = option(command)
    return command


@data.command("import")
@click.argument("source", type=FILE)
@click.argument("out", type=FILE)
@click.option("--layout", default="auto", show_default=True, help="auto, generic, ultrafeedback or qa_feedback.")
@click.option("--field", "fields", multiple=True, metavar="OURS=THEIRS", help="What the file calls a key of ours.")
def import_rows(source: Path, out: Path, layout: str, fields: tuple[str, ...]) -> None:
    """Turn a set with queries, and perhaps several responses each, into rows."""
    from trainers.rows.importers import LAYOUTS, convert, read_objects

    if layout != "auto" and layout not in LAYOUTS:
        raise ConfigError(f"--layout {layout} is unknown: use auto, {', '.join(LAYOUTS)}.")
    if any("=" not in field for field in fields):
        raise ConfigError("--field is written OURS=THEIRS, such as --field gold=answer.")
    names = dict(field.split("=", 1) for field in fields)
    rows = convert(read_objects(source), layout, names, source)
    drafts = sum(len(row.get("drafts", [])) for row in rows)
    finish(out, rows, [source], {"layout": layout, "fields": names}, [f"{len(rows)} rows with {drafts} drafts"])


@data.command()
@click.argument("source", type=FILE)
@click.argument("out", type=FILE)
@click.option("-n", "count", default=8, show_default=True, type=click.IntRange(1), help="Drafts a query.")
@click.option("--demonstrations", type=FILE, help="JSONL of query and target: solved examples before each query.")
@click.option("--ask", help='How a query is put, such as "Question: {query} Answer:" for a base model.')
@click.option("--whole", is_flag=True, help="Leave out empty drafts and those cut at the token limit.")
@model_options
def drafts(
    source: Path,
    out: Path,
    count: int,
    demonstrations: Path | None,
    ask: str | None,
    whole: bool,
    model_args: str,
    device: str,
    batch_size: str,
) -> None:
    """Sample drafts: temperature 1.0, top-k 50, top-p 0.95 unless --model_args says otherwise.

    For base models give draft_until in --model_args, and --demonstrations.
    """
    from trainers.generation import drafts as work
    from trainers.generation.generator import DRAFTS, open_writer

    rows, shots = (
        read_rows(source),
        work.demonstrations(read_jsonl(demonstrations, strict=True) if demonstrations else [], ask),
    )
    if ask and "{query}" not in ask:
        raise ConfigError(f"--ask {ask!r} must hold {{query}}.")
    writer = open_writer(model_args, out, device, batch_size, DRAFTS)
    made = work.sample_drafts(rows, writer, count, shots, ask)
    cut = sum(end == "length" for row in made for end in row["ends"])
    empty = sum(not draft for row in made for draft in row["drafts"])
    too_long = sum(not row["drafts"] for row in made)
    made = work.whole_only(made) if whole else made
    facts = [
        f"{count} drafts for each of {len(rows) - too_long} queries; cut at the token limit {cut}, empty {empty}, "
        f"queries that did not fit {too_long}"
    ]
    if without := sum(not row["drafts"] for row in made) - too_long:
        facts.append(f"warning: {without} of {len(made)} queries have no whole draft: raise max_gen_toks")
    finish(
        out,
        made,
        [source, demonstrations],
        {"n": count, "ask": ask, "whole": whole, "writer": writer.facts()},
        facts,
    )


@data.command()
@click.argument("source", type=FILE)
@click.argument("out", type=FILE)
@click.option("--k", type=click.IntRange(1), help="Drafts kept a row; rows with fewer are left out.")
@click.option("--at-least", type=click.IntRange(1), help="Leave out rows with fewer drafts; others keep all of theirs.")
@click.option("--reward_model", help="A sequence-classification checkpoint with one output.")
@click.option("--match", type=FILE, help="Scored file whose mean score each row is matched to (on- and off-policy).")
@click.option("--device", default="cuda:0", show_default=True, help="Of the reward model.")
@click.option("--batch_size", default=8, show_default=True, type=click.IntRange(1), help="Of the reward model.")
@verifier_options
def select(
    source: Path,
    out: Path,
    k: int | None,
    at_least: int | None,
    reward_model: str | None,
    match: Path | None,
    device: str,
    batch_size: int,
    verifier: str | None,
    gold: str,
) -> None:
    """Score drafts, and keep the k best of each row; without --k only score them."""
    from trainers.generation import selection
    from trainers.generation.verifiers import load_verifier

    rows: Sequence[Mapping[str, Any]] = _with_drafts(source)
    before = len(rows)
    rows = selection.keep_long(rows, at_least) if at_least else rows
    if reward_model:
        from lm_eval_aft.inference.reward_model import RewardModel
        from lm_eval_aft.storage.draft_store import SQLiteStore

        model = RewardModel(reward_model, SQLiteStore(f"{out}.sqlite"), device, batch_size)
        rows = selection.reward_all(rows, model)
    if verifier:
        rows = selection.verify_all(rows, load_verifier(verifier, gold))
    if match and not k:
        raise ConfigError("--match needs --k: how many drafts are kept a row.")
    other = _with_drafts(match) if match else []
    unjudged = sum(not (row.get("scores") or row.get("right")) for row in rows if len(row["drafts"]) > (k or inf))
    if k:
        by_right = bool(verifier) and not reward_model  # scores that came with the file are not what was asked for
        rows = selection.keep_matched(rows, other, k) if match else selection.keep_best(rows, k, right_first=by_right)
    if not rows:
        raise ConfigError(f"no row of {source} has {max(k or 0, at_least or 0)} drafts with text: ask for fewer.")
    settings = {"k": k, "at_least": at_least, "reward_model": reward_model, "verifier": verifier, "gold": gold}
    facts = [
        f"{len(rows)} of {before} rows kept",
        *_means(rows, "the file"),
        *_means(selection.shared(other, rows), "--match"),
    ]
    if unjudged:
        facts.append(f"warning: {unjudged} rows have neither scores nor right: their first {k} drafts were kept")
    finish(out, rows, [source, match], settings, facts)


def _means(rows: Sequence[Mapping[str, Any]], name: str) -> list[str]:
    facts = []
    for key, what in (("scores", "score"), ("right", "share of right drafts")):
        means = [fmean(map(float, row[key])) for row in rows if row.get(key)]  # a query counts once, as in --match
        if means:
            facts.append(f"mean {what} in {name}: {fmean(means):.3f}")
    return facts


@data.command()
@click.argument("source", type=FILE)
@click.argument("out", type=FILE)
@click.option("--k", "ks", multiple=True, default=(5,), show_default=True, type=click.IntRange(1), help="Drafts a set.")
@click.option("--sets", default=1, show_default=True, type=click.IntRange(1), help="Draft sets a query and k.")
@click.option(
    "--mixed", type=click.FloatRange(0, 1, min_open=True), help="Least share of sets with right and wrong drafts."
)
@click.option("--wrong", default="drop", show_default=True, type=click.Choice(["keep", "drop", "retry", "repair"]))
@click.option("--retries", default=2, show_default=True, type=click.IntRange(1), help="Of retry and repair.")
@click.option(
    "--shortest",
    default=0.0,
    show_default=True,
    type=click.FloatRange(0),
    help="Leave out targets with fewer words than this share of their drafts' mean.",
)
@click.option("--seed", default=0, show_default=True, help="Of the draft sets.")
@verifier_options
@model_options
def aggregate(
    source: Path,
    out: Path,
    ks: tuple[int, ...],
    sets: int,
    mixed: float | None,
    wrong: str,
    retries: int,
    shortest: float,
    seed: int,
    verifier: str | None,
    gold: str,
    model_args: str,
    device: str,
    batch_size: str,
) -> None:
    """Let a teacher write targets from query and drafts, through the prompt of inference.

    Give --k once for each number of drafts that will be evaluated: a target depends on the drafts it was made from.
    """
    from trainers.generation import targets as work
    from trainers.generation.generator import open_writer
    from trainers.generation.selection import keep_long, verify_all
    from trainers.generation.verifiers import load_verifier, right_answer

    if verifier is None and (mixed or wrong in ("retry", "repair")):
        raise ConfigError("--mixed, --wrong retry and --wrong repair need --verifier: nothing else says what is right.")
    judge = load_verifier(verifier, gold) if verifier else None
    read = _with_drafts(source)
    drawn = [row for k in ks for row in work.draft_sets(read, k, sets, seed)]
    if not drawn:
        raise ConfigError(f"no row of {source} has {min(ks)} drafts with text: lower --k.")
    rows = verify_all(drawn, judge) if judge else drawn
    rows = work.balance_mixed(rows, mixed, seed) if mixed else rows
    writer = open_writer(model_args, out, device, batch_size)
    works = work.write_targets(rows, writer, judge, wrong, retries, lambda row: right_answer(verifier, row, gold))
    fates = Counter(work.outcome(each, wrong, shortest) for each in works)
    made = work.finished_rows(works, wrong, shortest)
    usable = len(made)
    if not (any(map(work.is_mixed, made)) if mixed else made):
        raise _nothing_usable(fates, mixed)
    made = work.balance_mixed(made, mixed, seed) if mixed else made  # again: a wrong target took its set along
    options = {
        "k": list(ks),
        "sets": sets,
        "mixed": mixed,
        "wrong": wrong,
        "retries": retries,
        "shortest": shortest,
        "seed": seed,
        "verifier": verifier,
    }
    enough = len(keep_long(read, max(ks)))
    facts = [f"{len(read)} rows, {len(read) - enough} with fewer than {max(ks)} drafts; {len(drawn)} draft sets"]
    facts += [f"left out for --mixed: {len(drawn) - len(rows)} sets, {usable - len(made)} targets"] if mixed else []
    finish(out, made, [source], {**options, "writer": writer.facts()}, [*facts, *_target_facts(fates, made)])


def _nothing_usable(fates: Mapping[str, int], mixed: float | None) -> ConfigError:
    of = "set of mixed correctness has a target that" if mixed else "target"
    return ConfigError(
        f"no {of} could be used ({_lost(fates)}): allow more tokens (max_gen_toks), take another teacher or verifier, "
        "retry or keep wrong ones (--wrong), or lower --shortest."
    )


def _lost(fates: Mapping[str, int]) -> str:
    from trainers.generation.targets import REJECTION_REASONS

    return ", ".join(f"{name} {fates.get(name, 0)}" for name in REJECTION_REASONS)


def _target_facts(fates: Mapping[str, int], made: Sequence[Mapping[str, Any]]) -> list[str]:
    from trainers.generation.targets import is_mixed
    from trainers.inspection.overlap import overlap_of

    repaired = sum(bool(row.get("repaired")) for row in made)
    wrong = sum(row.get("target_right") is False for row in made)
    facts = [
        f"{sum(fates.values())} targets asked for, {fates['kept']} kept; {_lost(fates)}; of those written repaired "
        f"{repaired}, wrong {wrong}"
    ]
    if all(row.get("right") for row in made):
        facts.append(f"right and wrong drafts in {sum(map(is_mixed, made)) / len(made):.1%} of the kept sets")
    return [*facts, *overlap_of(made).lines()]


@data.command()
@click.argument("source", type=FILE)
@click.option("--against", type=FILE, help="Evaluation set (JSONL) to look for in queries and targets.")
@click.option("--field", default="question", show_default=True, help="Key of its questions.")
@click.option(
    "--words", default=13, show_default=True, type=click.IntRange(1), help="Words in a row that count as overlap."
)
@verifier_options
def stats(source: Path, against: Path | None, field: str, words: int, verifier: str | None, gold: str) -> None:
    """Print what a file holds: lengths, duplicates, diversity, quality, overlap, contamination."""
    from trainers.generation.selection import verify_all
    from trainers.generation.verifiers import load_verifier
    from trainers.inspection.describe import contamination, describe_rows

    rows: list[dict[str, Any]] = read_rows(source)
    if verifier:
        rows = verify_all([{**row, "drafts": row.get("drafts") or []} for row in rows], load_verifier(verifier, gold))
    lines = describe_rows(rows)
    if against:
        others = read_jsonl(against, strict=True)
        if any(not isinstance(row.get(field), str) for row in others):
            raise ConfigError(f"{against} has rows without a text {field!r}: name the key with --field.")
        lines += contamination(rows, [row[field] for row in others], words)
    for line in [*lines, f"sha256                {file_digest(source)}"]:
        click.echo(line)


@data.command()
@click.argument("source", type=FILE)
@click.option("--k", "ks", multiple=True, type=click.IntRange(1), help="Drafts drawn a row; default: all of a row's.")
@click.option("--limit", type=click.IntRange(1), help="Rows.")
@click.option("--seed", default=0, show_default=True, help="Of the draws.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a table.")
@model_options
def ppl(
    source: Path,
    ks: tuple[int, ...],
    limit: int | None,
    seed: int,
    as_json: bool,
    model_args: str,
    device: str,
    batch_size: str,
) -> None:
    """Perplexity of the targets: given the query, with the drafts, and without the nearest draft."""
    from trainers.inspection.perplexity import perplexity, settings_of, that_fit

    samples, sft_targets = _ppl_samples(source, ks, limit, seed)
    engine, encoder = _scoring_engine(model_args, device, batch_size)
    read = len(samples)
    samples, sft_targets, cut = that_fit(samples, sft_targets, encoder)
    if cut or len(samples) < read:
        lost = f"over the model's {engine.max_length} tokens: {read - len(samples)} rows left out, drafts cut in {cut}"
        click.echo(lost, err=True)
    size = int(batch_size) if batch_size.isdigit() else 4
    found = [
        perplexity(name, made, engine.model, encoder, size) for name, made in settings_of(samples, sft_targets).items()
    ]
    if as_json:
        click.echo(json.dumps({p.setting: {"ppl": p.value, "tokens": p.tokens, "examples": p.examples} for p in found}))
        return
    click.echo(f"{'perplexity per token':40} {'ppl':>8} {'tokens':>9} {'examples':>9}")
    for p in found:
        click.echo(f"{p.setting:40} {p.value:8.3f} {p.tokens:9,} {p.examples:9,}")


def _ppl_samples(source: Path, ks: tuple[int, ...], limit: int | None, seed: int) -> tuple[list[Any], list[str]]:
    from trainers.rows.row import load_rows
    from trainers.rows.samples import make_samples
    from trainers.settings import TrainConfig

    rows = load_rows(source)[:limit]
    samples = make_samples(rows, "aft", TrainConfig(k=ks, plain_share=0.0, seed=seed))
    return samples, [row.sft_target for row in rows]


def _scoring_engine(model_args: str, device: str, batch_size: str) -> tuple[Any, Any]:
    """The hf engine, and an encoder with its tokenizer and the checkpoint's template."""
    from lm_eval_aft.core.arguments import key_values
    from lm_eval_aft.core.config import AFTConfig
    from lm_eval_aft.core.engine import HostArgs
    from lm_eval_aft.engines.registry import load_engine
    from lm_eval_aft.inference.checkpoint import choose_template
    from trainers.fitting.examples import Encoder

    config, engine_args = AFTConfig.split(key_values("--model_args", model_args))
    if config.engine != "hf":
        raise ConfigError(f"engine={config.engine} gives no losses: aft data ppl needs engine=hf.")
    template = choose_template(config, engine_args)
    engine: Any = load_engine("hf", engine_args, HostArgs(batch_size, None, device))
    return engine, Encoder(engine.renderer.tokenizer, template, engine.max_length)


def _with_drafts(source: Path) -> list[dict[str, Any]]:
    """Rows that all have a list of drafts.

    Raises:
        ConfigError: If one has none.
    """
    rows = read_rows(source)
    for number, row in enumerate(rows, 1):
        if row.get("drafts") is None:
            raise ConfigError(f"row {number} of {source} has no list of drafts: run aft data drafts or import first.")
    return rows


def finish(
    out: Path,
    rows: Sequence[Mapping[str, Any]],
    sources: Sequence[Path | None],
    settings: Mapping[str, Any],
    facts: Sequence[str],
) -> None:
    """Write the rows and their card, and say what was done."""
    inputs = {str(source): file_digest(source) for source in sources if source}  # before OUT, which may be one of them
    write_jsonl(out, rows)
    card = {
        "version": __version__,
        "inputs": inputs,
        "settings": {name: value for name, value in settings.items() if value not in (None, "")},
        "rows": len(rows),
        "facts": list(facts),
        "sha256": file_digest(out),
    }
    try:
        with atomic_write(Path(f"{out}.card.json")) as partial:
            partial.write_text(json.dumps(card, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"{out} is written, its card {out}.card.json cannot be ({error}): make room for it."
        ) from error
    for fact in facts:
        click.echo(fact)
    click.echo(f"wrote {len(rows)} rows to {out} (sha256 {str(card['sha256'])[:12]})")
