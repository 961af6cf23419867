"""The options that all ``aft judge`` commands share, and the judge that they describe."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import click

from lm_eval_aft.cli.numbers import Real
from lm_eval_aft.cli.options import format_option
from lm_eval_aft.cli.paths import PATH
from lm_eval_aft.core.errors import ConfigError
from lm_eval_aft.core.names import display_name
from lm_eval_aft.core.usage import TokenCosts
from lm_eval_aft.inference.budget import Budget
from lm_eval_aft.judging.cache import CACHE_FILE
from lm_eval_aft.judging.judge import CONCURRENCY, RETRIES, TIMEOUT_S, Judge
from lm_eval_aft.judging.local import LocalClient


@dataclass(frozen=True, slots=True)
class JudgeOptions:
    """The options that describe the judge and the calls to it.

    Attributes:
        model: The server's name of the judge, or a checkpoint if ``engine`` is set.
        base_url: The server's address; None if ``engine`` is set.
        engine: The engine that runs the judge on this machine; None if a server does.
        revision: The weights that the server runs, in the user's words.
        cache: The file that keeps the judgements; None for the default.
        max_calls: Upper bound of the number of calls; None for no bound.
        price_in: Cost of a million prompt tokens; None if unknown.
        price_out: Cost of a million generated tokens; None if unknown.
        max_cost: Most that the judgements may cost; None for no bound.
        max_generated_tokens: Most tokens that the judge may generate; None for no bound.
        concurrency: Number of calls at a time.
        timeout_s: Seconds to wait for a reply.
        retries: How often a failed call is made again.
    """

    model: str | None
    base_url: str | None
    engine: str | None
    revision: str
    cache: Path | None
    max_calls: int | None
    price_in: float | None
    price_out: float | None
    max_cost: float | None
    max_generated_tokens: int | None
    concurrency: int
    timeout_s: float
    retries: int


_OPTIONS = (
    click.option(
        "--judge-model", "model", help="Name of the judge on the server; with --judge-engine, its checkpoint."
    ),
    click.option(
        "--judge-base-url",
        "base_url",
        help="Address of the judge's server, such as http://127.0.0.1:8000/v1. The key comes from OPENAI_API_KEY.",
    ),
    click.option(
        "--judge-engine",
        "engine",
        type=click.Choice(["hf"]),
        help="Engine that runs the judge on this machine, without a server.",
    ),
    click.option(
        "--judge-revision",
        "revision",
        default="",
        help="Revision of the judge that the server runs, in your words. It is part of every key in the cache.",
    ),
    click.option("--cache", type=PATH, help=f"File that keeps the judgements. The default is OUTPUT/{CACHE_FILE}."),
    click.option("--max-judge-calls", "max_calls", type=click.IntRange(0), help="Maximum number of judge calls."),
    click.option(
        "--price-in",
        type=Real(0),
        help="Cost of a million prompt tokens, for the estimate of the cost and for --max-cost.",
    ),
    click.option("--price-out", type=Real(0), help="Cost of a million generated tokens, for the same."),
    click.option(
        "--max-cost",
        type=Real(0, min_open=True),
        help="Most that the judgements cost. A command that reaches it stops in order; with a higher one it resumes.",
    ),
    click.option(
        "--max-generated-tokens",
        type=click.IntRange(1),
        help="Most tokens that the judge generates. A command that reaches it stops in the same way.",
    ),
    click.option(
        "--concurrency",
        type=click.IntRange(1),
        default=CONCURRENCY,
        show_default=True,
        help="Number of judge calls at a time.",
    ),
    click.option(
        "--timeout",
        "timeout_s",
        type=Real(0, min_open=True),
        default=TIMEOUT_S,
        show_default=True,
        help="Seconds to wait for a reply of the judge.",
    ),
    click.option(
        "--retries",
        type=click.IntRange(0),
        default=RETRIES,
        show_default=True,
        help="Maximum number of retries of a failed call.",
    ),
    click.option(
        "--allow-missing",
        is_flag=True,
        help="Score the answers even if judgements are missing, and report their number.",
    ),
    click.option(
        "--output", type=PATH, help="Folder for the results. The default is a folder in that of record=, or beside RUN."
    ),
    format_option(),
)


def judge_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the shared options to a command.

    The command receives those that describe the judge as one argument ``judge``, a ``JudgeOptions``. It receives
    ``allow_missing``, ``output`` and ``form`` as they are.
    """

    @functools.wraps(command)
    def with_judge(**parameters: Any) -> None:
        judge = JudgeOptions(**{field.name: parameters.pop(field.name) for field in fields(JudgeOptions)})
        command(judge=judge, **parameters)

    decorated: Callable[..., None] = with_judge
    for option in reversed(_OPTIONS):
        decorated = option(decorated)
    return decorated


def require_run_and_judge(run: Path | None, judge: JudgeOptions, otherwise: str) -> Path:
    """Return RUN, or refuse a command that names no answers or not exactly one judge.

    Args:
        run: The argument RUN.
        judge: The judge.
        otherwise: What can be given instead of both, such as "--annotations FILE".

    Raises:
        ConfigError: If anything is missing.
    """
    if run is None or judge.model is None or (judge.base_url is None) == (judge.engine is None):
        raise ConfigError(
            f"give RUN with --judge-model and either --judge-base-url or --judge-engine, or {otherwise} alone."
        )
    return run


def open_judge(options: JudgeOptions, folder: Path, **settings: Any) -> Judge:
    """The judge at an address, or a checkpoint on this machine.

    Args:
        options: The judge; see ``require_run_and_judge``.
        folder: Where the judgements are kept, unless ``--cache`` names a file.
        **settings: Further settings of ``Judge``.

    Raises:
        AFTError: If the address is wrong, the cache cannot be opened, or the checkpoint cannot be loaded.
    """
    costs = None
    if options.price_in is not None and options.price_out is not None:
        costs = TokenCosts(options.price_in, options.price_out)
    if options.max_cost is not None and costs is None:
        raise ConfigError(
            f"--max-cost {options.max_cost:g} needs the cost of tokens: give --price-in and --price-out, for a million "
            "tokens."
        )
    model, revision, client = str(options.model), options.revision, None
    if options.base_url is None:
        client = LocalClient.load(model)
        model, revision = display_name(model), client.engine.fingerprint
    return Judge(
        model,
        options.base_url or "",
        client=client,
        cache=options.cache or folder / CACHE_FILE,
        revision=revision,
        concurrency=options.concurrency,
        max_calls=options.max_calls,
        budget=Budget(options.max_generated_tokens, options.max_cost),
        costs=costs,
        timeout_s=options.timeout_s,
        retries=options.retries,
        **settings,
    )
