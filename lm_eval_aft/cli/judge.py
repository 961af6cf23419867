"""``aft judge``: the benchmarks that an LLM judges, a command each."""

from __future__ import annotations

import click

from lm_eval_aft.cli.lazy import Command, LazyGroup

BENCHMARKS = {
    "alpaca_eval": Command(
        "lm_eval_aft.cli.judge_alpaca_eval:alpaca_eval", "Compute win rates against reference answers."
    ),
    "mt_bench": Command("lm_eval_aft.cli.judge_mt_bench:mt_bench", "Rate each turn of a dialogue from 1 to 10."),
}


@click.group(cls=LazyGroup, table=BENCHMARKS)
def judge() -> None:
    """Let an LLM judge the answers of a run.

    Any server with an OpenAI-compatible API can be the judge. If the server needs a key, set the environment variable
    OPENAI_API_KEY. Each judgement is saved as soon as it arrives. If the command stops early, run it again to judge
    what is left.
    """
