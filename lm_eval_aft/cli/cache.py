"""``aft cache``: look into a draft store.

Called by ``cli``; everything it knows of the file is in ``store``.
"""

from __future__ import annotations

import sys

import click

from lm_eval_aft.storage.draft_store import SQLiteStore


@click.group()
def cache() -> None:
    """Look into a draft store (the file that cache= names; by default drafts.sqlite inside record=)."""


@cache.command()
@click.argument("file", type=click.Path())
def info(file: str) -> None:
    """Print how many generations and tokens FILE holds."""
    found = SQLiteStore(file, create=False).info()
    click.echo(f"{found.path}: {found.generations:,} generations, {found.generated_tokens:,} generated tokens")
    click.echo(f"{found.file_bytes / 1e6:,.1f} MB")


@cache.command()
@click.argument("file", type=click.Path())
def verify(file: str) -> None:
    """Read all of FILE and compare every generation with its digest; exit code 1 if one is damaged."""
    found = SQLiteStore(file, create=False).verify()
    for damaged in found.damaged:
        click.echo(f"damaged: {damaged}")
    click.echo(f"{found.path}: {found.generations:,} generations read, {len(found.damaged)} damaged")
    sys.exit(1 if found.damaged else 0)
