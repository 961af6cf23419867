"""``aft judge mt_bench``: ratings of a run's answers, or of any model_answer file of FastChat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from lm_eval_aft.analysis.report.tables import Cell, Column, Form, Row, Table, Unit, render, score_cell
from lm_eval_aft.cli.judge_options import JudgeOptions, judge_options, open_judge, require_run_and_judge
from lm_eval_aft.cli.numbers import Real
from lm_eval_aft.cli.paths import PATH
from lm_eval_aft.core.arguments import mapping, sampling_temperature
from lm_eval_aft.core.errors import ConfigError, JudgeError
from lm_eval_aft.core.jsonl import parse_json
from lm_eval_aft.core.stops import stoppable
from lm_eval_aft.core.terminal import note, show
from lm_eval_aft.judging.mt_bench.data import (
    JUDGMENT_FOLDER,
    QUESTION_FILE,
    find_answers,
    read_question_file,
    read_references,
)
from lm_eval_aft.judging.mt_bench.prompts import prompt_set
from lm_eval_aft.judging.mt_bench.rate import MAX_TOKENS, RatingOptions, judge_answers
from lm_eval_aft.judging.mt_bench.replies import Judgement, read_judgements
from lm_eval_aft.judging.mt_bench.scores import MissingRatings, MTBenchScores, score_judgements

RATING = Unit(1, 3)


@click.command("mt_bench")
@click.argument("run", type=PATH, required=False)
@click.option("--judgments", type=PATH, help="File of finished judgements to score, without a judge.")
@judge_options
@click.option("--judge-prompts", type=PATH, help="FastChat's judge_prompts.jsonl. The default is our own prompts.")
@click.option(
    "--references",
    type=PATH,
    help="FastChat's file of reference answers. The default is the references of the data set.",
)
@click.option(
    "--questions",
    type=PATH,
    help="FastChat's question.jsonl. The default is the file beside RUN, else the one of the hub.",
)
@click.option("--repeats", type=click.IntRange(1), default=1, show_default=True, help="Judgements per turn.")
@click.option(
    "--temperature",
    type=Real(0),
    default=0.0,
    show_default=True,
    help="Temperature of the judge; 0 is greedy.",
)
@click.option(
    "--max-tokens",
    type=click.IntRange(1),
    default=MAX_TOKENS,
    show_default=True,
    help="Maximum number of tokens of a judgement.",
)
@click.option("--extra-body", help="JSON object of further fields of each call; null removes a default field.")
def mt_bench(
    run: Path | None,
    judgments: Path | None,
    judge: JudgeOptions,
    judge_prompts: Path | None,
    references: Path | None,
    questions: Path | None,
    repeats: int,
    temperature: float,
    max_tokens: int,
    extra_body: str | None,
    allow_missing: bool,
    output: Path | None,
    form: Form,
) -> None:
    """Let a judge rate both turns of each MT-Bench answer from 1 to 10.

    RUN is the --output_path of a run of aft_mt_bench with --log_samples, the folder that record= named, or a
    model_answer file of FastChat. Judgements and scores are written to --output. By default that is the folder mt_bench
    in the one that record= named, or else beside RUN. aft report shows the scores that it finds there. Scores with our
    own judge prompts have names of their own. For scores that compare with published ones, give FastChat's prompts with
    --judge-prompts and --references, and use the judge of the published scores.
    """
    if judgments:
        _show_scores(read_judgements(judgments), _categories(judgments, questions), allow_missing, form)
        return
    answer_set = find_answers(require_run_and_judge(run, judge, "--judgments FILE"), questions)
    answer_set = replace(answer_set, folder=output or answer_set.folder)
    prompts = prompt_set(judge_prompts, read_references(references) if references else None, answer_set.questions)
    temperature = sampling_temperature("--temperature", temperature)
    options = RatingOptions(repeats, allow_missing, judge.price_in, judge.price_out, max_tokens, temperature)
    settings = {"prompt_version": prompts.name, "extra_body": _object(extra_body)}
    with closing(open_judge(judge, answer_set.folder, **settings)) as client, stoppable(client.kept):
        scores = [judge_answers(answer_set, prompts, client, options, note)]
    show(render([_table(scores)], form))


def _show_scores(
    models: Sequence[Sequence[Judgement]], categories: Mapping[int, str], allow_missing: bool, form: Form
) -> None:
    """Print the scores of each model.

    Raises:
        JudgeError: If ratings of a model are missing. The scores of the others are printed before.
    """
    scores, refusals = [], []
    for judgements in models:
        try:
            scores.append(score_judgements(judgements, categories, allow_missing))
        except MissingRatings as error:
            refusals.append(str(error))
    if scores:
        show(render([_table(scores)], form))
    if refusals:
        raise JudgeError(" ".join(refusals))


def _table(scores: Sequence[MTBenchScores]) -> Table:
    """A row for each mean rating of each model."""
    columns = (
        Column("model", "model"),
        Column("judge", "judge"),
        Column("prompts", "prompts", title="set of judge prompts"),
        Column("score", "score"),
        Column("rating", "rating", True, "mean rating from 1 to 10", ("stderr",)),
    )
    notes = ("The mean is over all turns, with its standard error over questions.",)
    return Table("MT-Bench", columns, tuple(row for one in scores for row in _rows(one)), notes)


def _rows(scores: MTBenchScores) -> list[Row]:
    def row(name: str, value: float, stderr: float | None = None, notes: Sequence[str] = ()) -> Row:
        texts = (scores.model, scores.judge, scores.prompts, name)
        return Row((*map(Cell, texts), score_cell(value, stderr, RATING)), tuple(notes))

    rows = [row("mean", scores.mean, scores.stderr, [*filter(None, [scores.caveat]), scores.coverage])]
    rows += [row(f"turn {number}", mean) for number, mean in enumerate(scores.turns, 1)]
    rows += [row(name, mean) for name, mean in scores.categories.items()]
    if scores.spread is not None:
        note = f"The standard deviation of the mean over {scores.repeats} repeats."
        rows.append(row("spread", scores.spread, notes=[note]))
    return rows


def _object(text: str | None) -> dict[str, Any]:
    try:
        value = parse_json(text or "{}")
    except ValueError as error:
        raise ConfigError(f"--extra-body is not JSON ({error}): give an object in single quotes.") from error
    return dict(mapping("--extra-body", value))


def _categories(judgments: Path, questions: Path | None) -> dict[int, str]:
    """The category of each question. FastChat and we keep the questions in the folder above the judgements."""
    beside = judgments.parent.parent / QUESTION_FILE
    if questions is None and judgments.parent.name == JUDGMENT_FOLDER and beside.is_file():
        questions = beside
    return {question.question_id: question.category for question in read_question_file(questions)} if questions else {}
