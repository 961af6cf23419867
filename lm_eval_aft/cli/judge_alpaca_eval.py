"""``aft judge alpaca_eval``: a run's answers against reference answers, and the win rates that come of it.

Puts the steps in order: what can be refused without a judge is refused first, and what was judged is written before it
is scored. Called by ``aft judge`` and, for a run that names its judge, by ``alpaca_run``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import click

from lm_eval_aft.core.errors import ConfigError
from lm_eval_aft.judging.alpaca_eval.annotate import annotate, ask_with
from lm_eval_aft.judging.alpaca_eval.data import Output, eval_set, pair, refuse_namesakes
from lm_eval_aft.judging.alpaca_eval.files import find_outputs, read_annotations, read_outputs, write_rows
from lm_eval_aft.judging.alpaca_eval.methods import annotator_name
from lm_eval_aft.judging.alpaca_eval.package import find_difficulty, from_hub
from lm_eval_aft.judging.alpaca_eval.summary import AlpacaSummary, ScoringOptions, assess, show, write_verdict
from lm_eval_aft.judging.judge import Estimate, Judge
from lm_eval_aft.judging.local import LocalClient

BASELINE_FILE = "alpaca_eval_gpt4_baseline.json"
CACHE = "judgements.sqlite"
Say = Callable[[Estimate], None]


def read_reference(file: Path | None) -> tuple[Output, ...]:
    """The reference answers: a file, else AlpacaEval 2's own from the hub.

    Raises:
        JudgeError: If the hub's cannot be had.
        RecordError: If the file is none of model outputs.
    """
    return read_outputs(file or from_hub(BASELINE_FILE, "give a file of model outputs with --reference FILE"))


def judge_outputs(
    outputs: Sequence[Output],
    references: Sequence[Output],
    judge: Judge,
    plan: ScoringOptions,
    folder: Path | None,
    say: Say,
) -> AlpacaSummary:
    """Have answers judged, write the annotations, and score them.

    Args:
        outputs: The model's.
        references: What they are compared with.
        judge: Who compares.
        plan: How.
        folder: Where annotations, scores and the leaderboard's row go; None writes nothing.
        say: Gets the estimate before anything is sent.

    Raises:
        AFTError: If inputs do not fit, the judge fails, or judgements are missing.
    """
    pairs = pair(outputs, references)
    difficulty = find_difficulty(plan.difficulty) if plan.length_control and pairs.whole else None
    method = plan.method
    name = annotator_name(method, judge.model)
    annotations = annotate(pairs, method, name, ask_with(judge, method, say))
    if folder:
        write_rows(folder / "annotations.json", annotations)
    verdict = assess(annotations, difficulty, plan, method.prefix, pairs)
    if folder:
        write_verdict(folder, verdict)
    return verdict


def score_annotations(file: Path, plan: ScoringOptions) -> AlpacaSummary:
    """Score comparisons that were made before, by any judge.

    Raises:
        AFTError: If the file is none of annotations, or judgements are missing.
    """
    annotations = read_annotations(file)
    if any(row.output_1 != row.output_2 for row in annotations):
        refuse_namesakes(annotations[0].generator_2, annotations[0].generator_1)
    whole, _ = eval_set([row.instruction for row in annotations])
    difficulty = find_difficulty(plan.difficulty) if plan.length_control and whole else None
    return assess(annotations, difficulty, plan)


@click.command("alpaca_eval")
@click.argument("run", type=click.Path(), required=False)
@click.option(
    "--reference", type=click.Path(path_type=Path), help="Model outputs to compare with [default: the hub's]."
)
@click.option("--annotations", type=click.Path(path_type=Path), help="Score these comparisons; no judge is asked.")
@click.option("--judge-model", help="The server's name of the judge; with --judge-engine hf, a checkpoint.")
@click.option("--judge-base-url", help="Its address, such as http://127.0.0.1:8000/v1; its key is in OPENAI_API_KEY.")
@click.option(
    "--judge-engine", type=click.Choice(["hf"]), help="Judge on this machine, without a server; needs --regex."
)
@click.option("--judge-revision", default="", help="Which weights it serves, in your words.")
@click.option("--cache", type=click.Path(path_type=Path), help=f"Where judgements are kept [default: OUTPUT/{CACHE}].")
@click.option("--max-judge-calls", type=click.IntRange(0), help="Never make more calls than these.")
@click.option("--price-in", type=click.FloatRange(0), help="Of a million prompt tokens, for the estimate.")
@click.option("--price-out", type=click.FloatRange(0), help="Of a million generated tokens.")
@click.option("--concurrency", type=click.IntRange(1), default=8, show_default=True, help="Calls under way at a time.")
@click.option("--timeout", type=click.FloatRange(0, min_open=True), default=300.0, show_default=True, help="Seconds.")
@click.option("--retries", type=click.IntRange(0), default=8, show_default=True, help="Of a call that failed.")
@click.option("--regex", is_flag=True, help="Read the letter the judge writes; scores get names of their own.")
@click.option(
    "--top-logprobs", type=click.IntRange(1, 20), default=5, show_default=True, help="Likely tokens asked for."
)
@click.option("--difficulty", type=click.Path(path_type=Path), help="Folder with df_gamed.csv [default: the hub's].")
@click.option("--no-lc", is_flag=True, help="No length-controlled win rate.")
@click.option("--allow-missing", is_flag=True, help="Score although judgements are missing, and say so.")
@click.option("--name", help="What to call the model.")
@click.option(
    "--output", type=click.Path(path_type=Path), help="Folder for the results [default: alpaca_eval beside RUN]."
)
def alpaca_eval(
    run: str | None,
    reference: Path | None,
    annotations: Path | None,
    judge_model: str | None,
    judge_base_url: str | None,
    judge_engine: str | None,
    judge_revision: str,
    cache: Path | None,
    max_judge_calls: int | None,
    price_in: float | None,
    price_out: float | None,
    concurrency: int,
    timeout: float,
    retries: int,
    regex: bool,
    top_logprobs: int,
    difficulty: Path | None,
    no_lc: bool,
    allow_missing: bool,
    name: str | None,
    output: Path | None,
) -> None:
    """Win rates of a run's answers, compared with reference answers by a judge.

    RUN is a model_outputs.json, the folder that record= named, or the --output_path of a run of aft_alpaca_eval with
    --log_samples. Comparisons are made by the package alpaca_eval with the judge named; instead, --annotations scores
    those of an earlier run. Annotations, scores and the leaderboard's row are written to --output (for --annotations,
    only where it is given).
    """
    plan = ScoringOptions(not no_lc, difficulty, allow_missing, regex, top_logprobs)
    if annotations:
        return _show_scored(annotations, plan, output)
    run, model = _asked(run, judge_model, judge_base_url, judge_engine, regex)
    outputs = find_outputs(run)
    folder = output or outputs.parent / "alpaca_eval"
    click.echo(f"answers: {outputs}", err=True)
    answers, references = read_outputs(outputs, name), read_reference(reference)
    judge = _open_judge(
        model,
        judge_base_url,
        revision=judge_revision,
        cache=cache or folder / CACHE,
        concurrency=concurrency,
        max_calls=max_judge_calls,
        timeout_s=timeout,
        retries=retries,
    )

    def say(estimate: Estimate) -> None:
        click.echo(estimate.sentence(price_in, price_out), err=True)

    with closing(judge):
        click.echo(show(judge_outputs(answers, references, judge, plan, folder, say)))


def _show_scored(annotations: Path, plan: ScoringOptions, output: Path | None) -> None:
    found = score_annotations(annotations, plan)
    if output:
        write_verdict(output, found)
    click.echo(show(found))


def _asked(
    run: str | None, model: str | None, base_url: str | None, engine: str | None, regex: bool
) -> tuple[str, str]:
    """What is judged and by which model, where both are named and the judge can do what is asked of it."""
    if run is None or model is None or (base_url is None) == (engine is None):
        raise ConfigError(
            "give RUN with --judge-model and either --judge-base-url or --judge-engine, or --annotations FILE alone."
        )
    if engine and not regex:
        raise ConfigError(
            "--judge-engine gives no log-probabilities: add --regex, or serve the judge and name its URL."
        )
    return run, model


def _open_judge(model: str, base_url: str | None, *, revision: str, **settings: Any) -> Judge:
    """The judge at an address, or a checkpoint on this machine where there is none."""
    if base_url is not None:
        return Judge(model, base_url, revision=revision, **settings)
    local = LocalClient.load(model)
    name = model.rstrip("/").rpartition("/")[2]
    return Judge(name, "", client=local, revision=local.engine.fingerprint, **settings)
