"""``aft merge``: join draft stores."""

from __future__ import annotations

from pathlib import Path

import click

from lm_eval_aft.cli.paths import PATH
from lm_eval_aft.core.terminal import message, show
from lm_eval_aft.storage.merging import merge_stores


@click.command()
@click.argument("stores", nargs=-1, required=True, type=PATH)
@click.option("--output", required=True, type=PATH, help="File of the new draft store.")
@click.option(
    "--keep-first",
    is_flag=True,
    help="If two stores have different texts under one key, keep that of the first store. The default is to stop.",
)
def merge(stores: tuple[Path, ...], output: Path, keep_first: bool) -> None:
    """Join the draft stores STORES in a new one.

    Use it when all shards of a run (shard=1/4 and so on) are done. The same command without shard= and with cache= the
    new store then generates nothing and has the score. Each generation is checked. STORES stay as they are.
    """
    merged = merge_stores(stores, output, keep_first=keep_first)
    text = f"{output}: {merged.generations:,} generations of {len(stores)} stores, {merged.repeated:,} in several"
    show(message(f"{text}, {merged.conflicts:,} of them with different texts" if merged.conflicts else text))
