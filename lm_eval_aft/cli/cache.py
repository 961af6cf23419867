"""``aft cache``: look into a draft store."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from lm_eval_aft.cli.paths import PATH
from lm_eval_aft.core.terminal import message, show
from lm_eval_aft.storage.draft_store import SQLiteStore


@click.group()
def cache() -> None:
    """Inspect a draft store, the file that cache= names.

    The default file is drafts.sqlite in the folder of record=.
    """


@cache.command(short_help="Print how many generations a draft store holds.")
@click.argument("file", type=PATH)
def info(file: Path) -> None:
    """Print how many generations and tokens the draft store FILE holds."""
    store = SQLiteStore(file, create=False).info()
    counts = f"{store.generations:,} generations, {store.generated_tokens:,} generated tokens"
    show(message(f"{store.path}: {counts}"))
    show(f"{store.file_bytes / 1e6:,.1f} MB")


@cache.command(short_help="Check every generation in a draft store.")
@click.argument("file", type=PATH)
def verify(file: Path) -> None:
    """Check every generation in the draft store FILE against its digest.

    The exit code is 1 if a generation is damaged.
    """
    store = SQLiteStore(file, create=False).verify()
    for key in store.damaged:
        show(message(f"damaged: {key}"))
    show(message(f"{store.path}: {store.generations:,} generations read, {len(store.damaged)} damaged"))
    sys.exit(1 if store.damaged else 0)
