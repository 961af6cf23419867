"""``aft judge mt_bench``: ratings of a run's answers, or of any model_answer file of FastChat.

Knows its options; judging is ``mt_bench_judge``'s. Called by ``judge_cli``.
"""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from lm_eval_aft.core.arguments import mapping
from lm_eval_aft.core.errors import ConfigError
from lm_eval_aft.judging.judge import Judge
from lm_eval_aft.judging.local import LocalClient
from lm_eval_aft.judging.mt_bench.data import JUDGMENTS, QUESTIONS, find_material, read_dialogues, read_references
from lm_eval_aft.judging.mt_bench.prompts import prompt_set
from lm_eval_aft.judging.mt_bench.rate import CACHE, MAX_TOKENS, RatingOptions, judge_answers
from lm_eval_aft.judging.mt_bench.scores import read_judgements, score, show

FILE = click.Path(path_type=Path)


@click.command("mt_bench")
@click.argument("run", type=FILE, required=False)
@click.option("--judgments", type=FILE, help="Score these judgements instead; no judge is asked.")
@click.option("--judge-model", help="The server's name of the judge; with --judge-engine hf, a checkpoint.")
@click.option("--judge-base-url", help="Its address, such as http://127.0.0.1:8000/v1; its key is in OPENAI_API_KEY.")
@click.option("--judge-engine", type=click.Choice(["hf"]), help="Judge on this machine, without a server.")
@click.option("--judge-revision", default="", help="Which weights it serves, in your words.")
@click.option("--judge-prompts", type=FILE, help="FastChat's judge_prompts.jsonl [default: our own words].")
@click.option("--references", type=FILE, help="FastChat's reference_answer file [default: the data set's own].")
@click.option("--questions", type=FILE, help="FastChat's question.jsonl [default: beside RUN, else the hub's].")
@click.option("--repeats", type=click.IntRange(1), default=1, show_default=True, help="Judge each turn so often.")
@click.option("--temperature", type=click.FloatRange(0), default=0.0, show_default=True, help="Of the judge.")
@click.option("--max-tokens", type=click.IntRange(1), default=MAX_TOKENS, show_default=True, help="Of a judgement.")
@click.option("--max-judge-calls", type=click.IntRange(0), help="Never make more calls than these.")
@click.option("--concurrency", type=click.IntRange(1), default=8, show_default=True, help="Calls under way at a time.")
@click.option("--timeout", type=click.FloatRange(0, min_open=True), default=300.0, show_default=True, help="Seconds.")
@click.option("--retries", type=click.IntRange(0), default=8, show_default=True, help="Of a call that failed.")
@click.option("--extra-body", help="JSON object of further fields of each call; null takes one of ours away.")
@click.option("--price-in", type=click.FloatRange(0), help="Of a million prompt tokens, for the estimate.")
@click.option("--price-out", type=click.FloatRange(0), help="Of a million generated tokens.")
@click.option("--allow-missing", is_flag=True, help="Score although judgements are missing, and say so.")
@click.option("--cache", type=FILE, help=f"Where judgements are kept [default: OUTPUT/{CACHE}].")
@click.option("--output", type=FILE, help="Folder for judgements and scores [default: mt_bench beside RUN].")
def mt_bench(
    run: Path | None,
    judgments: Path | None,
    judge_model: str | None,
    judge_base_url: str | None,
    judge_engine: str | None,
    judge_revision: str,
    judge_prompts: Path | None,
    references: Path | None,
    questions: Path | None,
    repeats: int,
    temperature: float,
    max_tokens: int,
    max_judge_calls: int | None,
    concurrency: int,
    timeout: float,
    retries: int,
    extra_body: str | None,
    price_in: float | None,
    price_out: float | None,
    allow_missing: bool,
    cache: Path | None,
    output: Path | None,
) -> None:
    """Have both turns of each MT-Bench answer rated from 1 to 10.

    RUN is the --output_path of a run of aft_mt_bench with --log_samples, the folder that record= named, or a
    model_answer file of FastChat. Our own judge prompts give scores with names of their own; to stand beside published
    ones, take FastChat's with --judge-prompts and --references, and the judge that those were made with.
    """
    if judgments:
        for found in read_judgements(judgments):
            click.echo(show(score(found, _categories(judgments, questions), allow_missing)))
        return
    if run is None or judge_model is None or (judge_base_url is None) == (judge_engine is None):
        raise ConfigError(
            "give RUN with --judge-model and either --judge-base-url or --judge-engine, or --judgments FILE alone."
        )
    material = find_material(run, questions)
    material = replace(material, folder=output or material.folder)
    given = read_references(references) if references else None
    prompts = prompt_set(judge_prompts, given, material.dialogues)
    local = LocalClient.load(judge_model) if judge_engine else None
    judge = Judge(
        judge_model.rstrip("/").rpartition("/")[2] if local else judge_model,
        judge_base_url or "",
        client=local,
        cache=cache or material.folder / CACHE,
        revision=local.engine.fingerprint if local else judge_revision,
        prompt_version=prompts.name,
        concurrency=concurrency,
        max_calls=max_judge_calls,
        timeout_s=timeout,
        retries=retries,
        extra_body=_object(extra_body),
    )
    plan = RatingOptions(repeats, allow_missing, price_in, price_out, max_tokens, temperature)
    with closing(judge):
        click.echo(show(judge_answers(material, prompts, judge, plan, lambda text: click.echo(text, err=True))))


def _object(text: str | None) -> dict[str, Any]:
    try:
        value = json.loads(text or "{}")
    except ValueError as error:
        raise ConfigError(f"--extra-body is not JSON ({error}): give an object in single quotes.") from error
    return dict(mapping("--extra-body", value))


def _categories(judgments: Path, questions: Path | None) -> dict[int, str]:
    """Category by question; in FastChat's layout, and in ours, the questions lie above the judgements."""
    beside = judgments.parent.parent / QUESTIONS
    if questions is None and judgments.parent.name == JUDGMENTS and beside.is_file():
        questions = beside
    return {asked.question_id: asked.category for asked in read_dialogues(questions)} if questions else {}
