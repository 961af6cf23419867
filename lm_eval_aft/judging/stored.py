"""The scores that ``aft judge`` left beside a run, under the names that a judge within the run gives them.

A file of scores counts only if the judge read the answers that the run gave.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lm_eval_aft.core.errors import RecordError
from lm_eval_aft.core.files import read_bytes, reading
from lm_eval_aft.core.jsonl import parse_json
from lm_eval_aft.core.log import warn_once
from lm_eval_aft.judging.alpaca_eval.data import JUDGED_METRICS
from lm_eval_aft.judging.alpaca_eval.files import (
    ALPACA_FOLDER,
    ALPACA_TASK,
    ANNOTATIONS_FILE,
    OUTPUT_FILE,
    SCORES_FILE,
    read_annotations,
    read_outputs,
)
from lm_eval_aft.judging.mt_bench.data import (
    JUDGMENT_FOLDER,
    MT_BENCH_FOLDER,
    MT_BENCH_TASK,
    AnswerSet,
    answers_of,
)
from lm_eval_aft.judging.mt_bench.replies import Judgement, read_judgements
from lm_eval_aft.storage.location import run_folders
from lm_eval_aft.storage.results import EvalRun, Score

# The name under which a run counts judgements without a score.
JUDGE_MISSING = "judge_missing"


@dataclass(frozen=True, slots=True)
class StoredScores:
    """What one judge said of one task of a run.

    Attributes:
        file: The file of scores.
        judgements: The file of judgements.
        task: Name of the task in the run.
        judge: Name of the judge.
        scores: The scores, under the names that a judge within the run gives them.
        paired: The metric whose parts are the judgements, question by question.
    """

    file: Path
    judgements: Path
    task: str
    judge: str
    scores: tuple[Score, ...]
    paired: str


def stored_scores(run: EvalRun) -> dict[str, StoredScores]:
    """The newest scores of each judged task of a run. A warning names other scores of the same answers.

    Files that cannot be read are named in a warning too, since the run is of use without them.
    """
    newest: dict[str, StoredScores] = {}
    for task in run.conditions:
        found = [scores for scores in _found(run, task) if scores is not None]
        found.sort(key=lambda each: (each.file.stat().st_mtime, str(each.file)))
        if found:
            newest[task] = found[-1]
        for older in found[:-1]:
            warn_once(f"{older.file} is left out: {found[-1].file} is newer.")
    return newest


def with_stored_scores(run: EvalRun, stored: Mapping[str, StoredScores]) -> EvalRun:
    """The run with the scores of tasks that no judge within the run has scored."""
    for task, found in stored.items():
        known = {score.metric for score in run.scores_of(task)}
        if found.paired in known:
            continue
        kept = [score for score in run.scores if score.task != task or score.metric != JUDGE_MISSING]
        place = max((number for number, score in enumerate(kept, 1) if score.task == task), default=len(kept))
        scores = (*kept[:place], *found.scores, *kept[place:])
        conditions = {**run.conditions, task: replace(run.conditions[task], judge=found.judge)}
        run = replace(run, scores=scores, conditions=conditions)
    return run


def _found(run: EvalRun, task: str) -> Iterator[StoredScores | None]:
    """The scores that were made of this run's answers, from every folder where they can lie."""
    name = task.rpartition("::")[2]
    if name == MT_BENCH_TASK:
        yield from _each(run, f"{MT_BENCH_FOLDER}/scores_*.json", lambda file: _ratings(run, task, file))
    elif name == ALPACA_TASK:
        yield from _each(run, f"{ALPACA_FOLDER}/{SCORES_FILE}", lambda file: _win_rates(run, task, file))


def _each(run: EvalRun, pattern: str, read: Callable[[Path], StoredScores | None]) -> Iterator[StoredScores | None]:
    files = {file.resolve(): file for folder in run_folders(run) for file in sorted(folder.glob(pattern))}
    for file in files.values():
        try:
            with reading(file, "a file of scores of aft judge"):
                yield read(file)
        except RecordError as error:
            warn_once(f"{file} is left out: {error}")


def _other_answers(run: EvalRun, file: Path) -> None:
    warn_once(f"{file} is left out: it scores other answers than those of {run.path}; judge these.")


def _ratings(run: EvalRun, task: str, file: Path) -> StoredScores | None:
    """The scores in a file of ``aft judge mt_bench``; None if they are of another model or of other answers."""
    answers, facts = answers_of(run, task, file.parent), parse_json(read_bytes(file))
    scores, judge = facts["scores"], str(facts["judge"]["model"])
    if answers is None or scores["model"] != answers.model:
        return None
    judgements = file.parent / JUDGMENT_FOLDER / Path(str(facts["judgements"])).name
    groups = {(group[0].model, group[0].judge): group for group in read_judgements(judgements)}
    if not _judges(groups.get((answers.model, judge), []), answers):
        _other_answers(run, file)
        return None
    values = {"score": scores["mean"], **{f"turn_{number}": mean for number, mean in enumerate(scores["turns"], 1)}}
    values |= scores["categories"]
    if scores["spread"] is not None:
        values["spread"] = scores["spread"]
    prefix = f"{scores['prompts']}_"
    found = [_score(run, task, prefix + name, value) for name, value in values.items()]
    found[0] = replace(found[0], stderr=scores["stderr"])
    missing = replace(_score(run, task, JUDGE_MISSING, scores["missing"]), higher_is_better=False)
    return StoredScores(file, judgements, task, judge, (*found, missing), prefix + "score")


def _judges(judgements: Sequence[Judgement], answers: AnswerSet) -> bool:
    """Whether a judge read these answers. The prompt of a judgement holds the answer that it is of."""
    turns = {answer.question_id: answer.turns for answer in answers.answers}
    return {each.question_id for each in judgements} == turns.keys() and all(
        turns[each.question_id][each.turn - 1] in each.prompt for each in judgements
    )


def _win_rates(run: EvalRun, task: str, file: Path) -> StoredScores | None:
    """The scores in a file of ``aft judge alpaca_eval``; None if they are of other answers."""
    samples, outputs = run.samples_file(task), file.parent.parent / OUTPUT_FILE
    source = samples if samples.is_file() else outputs
    if not source.is_file():
        return None
    facts, annotations = parse_json(read_bytes(file)), file.parent / ANNOTATIONS_FILE
    answers = {row.instruction: row.output for row in read_outputs(source)}
    if {row.instruction: row.output_2 for row in read_annotations(annotations)} != answers:
        _other_answers(run, file)
        return None
    metrics: dict[str, Any] = facts["metrics"]
    # The names of another method begin with it.
    (win_rate,) = (name for name in metrics if name.endswith("win_rate") and not name.endswith("discrete_win_rate"))
    prefix = win_rate.removesuffix("win_rate")
    errors = {win_rate: "standard_error", f"{prefix}length_controlled_winrate": "lc_standard_error"}
    names = [prefix + name for name in JUDGED_METRICS if prefix + name in metrics]
    found = [
        replace(_score(run, task, name, metrics[name]), stderr=metrics.get(prefix + errors.get(name, "")))
        for name in names
    ]
    found.append(replace(_score(run, task, JUDGE_MISSING, metrics["missing"]), ranked=False))
    judge = str(facts.get("judge") or facts["annotator"])
    return StoredScores(file, annotations, task, judge, tuple(found), win_rate)


def _score(run: EvalRun, task: str, metric: str, value: Any) -> Score:
    """A score as a judge within the run would report it."""
    ranked = not metric.endswith(("spread", "standard_error"))
    return Score(task, metric, "none", float(value), None, run.conditions[task].questions, ranked=ranked)
