"""Rows for the tests of ``aft data``, and a way to run its commands."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner

from lm_eval_aft.core.errors import AFTError
from trainers.data import data

SCRIPTED = "engine=scripted,pretrained=x,max_gen_toks=64"


def write(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def aft_data(*arguments: object) -> str:
    """The output of a command that must not fail."""
    result = CliRunner().invoke(data, [str(argument) for argument in arguments])
    if isinstance(result.exception, AFTError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def queries(count: int = 4) -> list[dict]:
    return [{"query": f"What is {n} + {n}?", "gold": f"so #### {2 * n}"} for n in range(count)]


def drafted(count: int = 4, k: int = 4) -> list[dict]:
    """Rows with drafts. Draft i of query n says n + n + i, so the first is right."""
    return [{**row, "drafts": [f"I get {2 * n + i}." for i in range(k)]} for n, row in enumerate(queries(count))]
