"""``aft train``: from rows to a checkpoint that knows how it was made.

Puts the parts together: settings, rows, samples, examples, the loop. Imports torch only when a run starts.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Collection
from dataclasses import replace
from math import inf

import click

from lm_eval_aft.inference.checkpoint import CheckpointConfig
from trainers.fitting.examples import Encoded, Encoder
from trainers.fitting.resume import open_run
from trainers.fitting.run import TrainingRun
from trainers.inspection.overlap import Overlap, measure, warnings
from trainers.rows.row import Row, load_rows
from trainers.rows.samples import Sample, make_samples, pseudo_samples
from trainers.settings import KINDS, Kind, TrainConfig, load_config

MASK_POLICY = "the target and the token that ends the turn"


@click.command()
@click.argument("kind", type=click.Choice(list(KINDS)))
@click.option("--config", "path", required=True, metavar="FILE", help="Settings in YAML or TOML (docs/training.md).")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="A setting that beats the file's.")
@click.option("--merge", is_flag=True, help="Also write adapter and base as one checkpoint, for vLLM.")
def train(kind: Kind, path: str, overrides: tuple[str, ...], merge: bool) -> None:
    """Train a checkpoint: sft, aft, aft-no-drafts or aft-pseudo.

    The same data file serves all four: rows of query, drafts, target and sft_target. A run that was interrupted goes
    on when the same command is given again. Many GPUs: accelerate launch -m trainers.train KIND --config FILE.
    """
    run_training(kind, load_config(path, overrides), merge=merge)


def run_training(kind: Kind, config: TrainConfig, *, merge: bool = False) -> None:
    """Train one checkpoint into ``config.output``.

    Raises:
        AFTError: One sentence on what is wrong with settings, data, template or model.
    """
    run = open_run(kind, config)
    for note in run.notes:
        say(note)
    if run.finished:
        say(f"the run in {run.folder} is finished: nothing is left to train.")
    if merge or not run.finished:
        _train(run, merge)


def _train(run: TrainingRun, merge: bool) -> None:
    if _first_process():
        run.make_folder()
    config = run.config
    rows = load_rows(config.data)
    held_out = load_rows(config.validation) if config.validation else []
    from trainers.fitting import loop
    from trainers.fitting import model as models

    tokenizer = models.load_tokenizer(config)
    encoder = Encoder(tokenizer, run.template, config.max_length)
    samples = make_samples(rows, run.kind, config)
    shown = {len(sample.drafts) for sample in samples if sample.drafts}
    run = replace(run, most_drafts=max(shown, default=0))
    overlap = measure(samples)
    encoded = encoder.encode_all(samples)
    facts = describe(rows, samples, encoded, overlap)
    validation = Encoded([], 0, 0)
    if held_out:
        validation = encoder.encode_all(make_samples(held_out, run.kind, config), "validation examples")
        facts += [f"validation: {len(held_out)} rows, {len(validation.examples)} examples; {too_long(validation)}"]
    aft = checkpoint_config(run, shown)
    if not run.finished:
        for line in [*facts, *complaints(run.kind, rows, samples, overlap, config), *unseen(encoded)]:
            say(line)
        loop.fit(run, encoder, encoded.examples, validation.examples, aft, facts, say)
        say(f"saved in {run.folder}")
    if merge and _first_process():
        if config.lora_rank:
            say(f"merged in {models.merge(run, encoder.end_id, aft, facts)}")
        else:
            say("lora_rank is 0: the checkpoint is a full one, there is nothing to merge.")


def describe(rows: list[Row], samples: list[Sample], encoded: Encoded, overlap: Overlap) -> list[str]:
    """What is trained on, for the terminal and the card."""
    plain = sum(not sample.drafts for sample in samples)
    lengths = [len(example.token_ids) for example in encoded.examples]
    learnt = sum(lengths) - sum(example.prompt_tokens for example in encoded.examples)
    facts = [
        f"{len(rows)} rows, {len(samples)} examples: {len(samples) - plain} with drafts, {plain} plain",
        f"{sum(lengths):,} tokens, {learnt:,} of them learnt; an example has {sum(lengths) / len(lengths):.0f}, the "
        f"longest {max(lengths)}",
        too_long(encoded),
    ]
    return facts + (overlap.lines() if overlap.samples else [])


def too_long(encoded: Encoded) -> str:
    """What the limit took."""
    return f"over max_length: {encoded.too_long} examples left out, drafts cut in {encoded.cut}"


def complaints(kind: Kind, rows: list[Row], samples: list[Sample], overlap: Overlap, config: TrainConfig) -> list[str]:
    """Warnings about the targets, as sentences."""
    if kind != "aft":
        return []
    same = all(row.sft_target == row.target for row in rows)
    found = warnings(overlap, samples, pseudo_samples(rows, config), same)
    fewer = sum(len(row.drafts) > min(config.k, default=inf) and not row.sources for row in rows)
    if fewer:
        found.append(
            f"k={','.join(map(str, config.k))} does not show all drafts of {fewer} rows, and no sources say which ones "
            "their targets were made from: leave k out, and make sets of each size with aft data aggregate --k."
        )
    return [f"warning: {text}" for text in found]


def unseen(encoded: Encoded) -> list[str]:
    """A warning where the prompt leaves drafts out, as it would at inference."""
    if not encoded.vanished:
        return []
    return [f"warning: {encoded.vanished} drafts are not shown: without control tokens and thoughts they are empty."]


def checkpoint_config(run: TrainingRun, shown: Collection[int]) -> CheckpointConfig:
    """What the checkpoint will say about itself; ``shown``: the numbers of drafts that its examples have."""
    config = run.config
    return CheckpointConfig(
        template=run.template.source,
        template_sha256=run.template.digest,
        k=max(shown) if len(set(shown)) == 1 else None,
        base_model=config.model,
        base_revision=config.revision or "",
        mask_policy=MASK_POLICY,
        data_digest=run.data_digest,
    )


def say(line: str) -> None:
    """Print a line, in the first process only."""
    if _first_process():
        click.echo(line)
        sys.stdout.flush()


def _first_process() -> bool:
    return os.environ.get("RANK", "0") == "0"


if __name__ == "__main__":  # for accelerate launch -m trainers.train
    from lm_eval_aft import _autoload
    from lm_eval_aft.core.errors import AFTError

    try:
        train(prog_name="aft train")
    except AFTError as failure:
        _autoload.print_error(failure)
        sys.exit(failure.exit_code)
