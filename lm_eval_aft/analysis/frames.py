"""Runs as pandas frames: scores and cost, logged samples, generations, and judgements.

pandas is imported when ``frames`` is called.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from statistics import fmean
from typing import TYPE_CHECKING, Any

from lm_eval_aft.analysis.api import AnyPath, read_runs
from lm_eval_aft.analysis.diagnosis import mark_traces
from lm_eval_aft.analysis.grading import GradedTrace, grade
from lm_eval_aft.analysis.judgements import stored_model
from lm_eval_aft.analysis.marking import extraction_of
from lm_eval_aft.analysis.runs import RunEntry, by_question
from lm_eval_aft.analysis.stats import Interval
from lm_eval_aft.analysis.votes import votes_of_run
from lm_eval_aft.core.config import CONFIDENCES
from lm_eval_aft.core.errors import ConfigError, RecordError
from lm_eval_aft.core.records import Confidence, Trace
from lm_eval_aft.core.usage import Usage, total
from lm_eval_aft.inference.dialogue import is_empty
from lm_eval_aft.storage.results import Sample, Score

if TYPE_CHECKING:
    import pandas as pd

Cells = dict[str, Any]
# A text stays a Python object: pandas' own strings refuse half a surrogate pair, which a model can write.
TEXT, WHOLE, REAL, FLAG = "object", "Int64", "float64", "boolean"


@dataclass(frozen=True, slots=True)
class FrameColumn:
    """One column of a frame.

    Attributes:
        dtype: Its pandas dtype. Unknown values are missing values.
        meaning: What it holds, with its unit.
    """

    dtype: str
    meaning: str


RUN_COLUMNS = {
    "run": FrameColumn(TEXT, "Label of the run, different for each run."),
    "file": FrameColumn(TEXT, "Path of the results file."),
    "model": FrameColumn(TEXT, "Checkpoint, or name of the model."),
    "engine": FrameColumn(TEXT, "Engine, or lm-eval's kind of model if it is not aft."),
    "strategy": FrameColumn(TEXT, "Strategy; missing for other models than aft, like the next four columns."),
    "k": FrameColumn(WHOLE, "Drafts a question; 1 for a single answer."),
    "layers": FrameColumn(WHOLE, "Aggregation layers after the drafts."),
    "seed": FrameColumn(WHOLE, "Seed of the generations."),
    "temperature": FrameColumn(REAL, "Temperature of drafts and hidden layers."),
    "task": FrameColumn(TEXT, "Task or group."),
    "group": FrameColumn(FLAG, "Whether it is a group of tasks."),
    "metric": FrameColumn(TEXT, "Metric."),
    "filter": FrameColumn(TEXT, "lm-eval's filter."),
    "score": FrameColumn(REAL, "The score that lm-eval or a judge reports, in the metric's unit; not in percent."),
    "stderr": FrameColumn(REAL, "Its standard error, in the same unit."),
    "n": FrameColumn(WHOLE, "Number of questions."),
    "higher_is_better": FrameColumn(FLAG, "Whether more is better; missing if neither is, as for a length."),
    "judge": FrameColumn(TEXT, "Model that judged the answers; missing without a judge."),
    "generations": FrameColumn(REAL, "Generations a question."),
    "generated_tokens": FrameColumn(REAL, "Generated tokens a question."),
    "prompt_tokens": FrameColumn(REAL, "Prompt tokens a question; each generation counts with its whole prompt."),
    "flops": FrameColumn(REAL, "Floating-point operations a question."),
    "cost": FrameColumn(REAL, "Cost of a question in money; missing if the run does not state what tokens cost."),
    "cut": FrameColumn(REAL, "Share of the generations that ended at the token limit, from 0 to 1."),
}
SAMPLE_COLUMNS = {
    "run": FrameColumn(TEXT, "Label of the run."),
    "task": FrameColumn(TEXT, "Task."),
    "filter": FrameColumn(TEXT, "lm-eval's filter. A question has a row for each filter."),
    "doc_id": FrameColumn(WHOLE, "Row of the document in its split, from 0."),
    "doc_hash": FrameColumn(TEXT, "lm-eval's hash of the document."),
    "question": FrameColumn(TEXT, "The document's own question; missing if no known field holds it."),
    "target": FrameColumn(TEXT, "The gold answer as lm-eval logs it."),
    "response": FrameColumn(TEXT, "What the model answered; the first response of several."),
    "answer": FrameColumn(TEXT, "The same after the filter."),
    "metric": FrameColumn(TEXT, "The metric of `score`: the first one that can be better or worse."),
    "score": FrameColumn(REAL, "Its value; the mean if a question has several values."),
    "metrics": FrameColumn(TEXT, "All metrics of the question, as a dictionary."),
    "generations": FrameColumn(WHOLE, "Generations in the question's traces; missing without traces, like the next."),
    "generated_tokens": FrameColumn(WHOLE, "Generated tokens, over all generations."),
    "prompt_tokens": FrameColumn(WHOLE, "Prompt tokens; each generation counts with its whole prompt."),
    "computed_prompt_tokens": FrameColumn(WHOLE, "Prompt tokens that ran through the model; the others were shared."),
    "flops": FrameColumn(REAL, "Floating-point operations; missing if the model's shape is unknown."),
}
DRAFT_COLUMNS = {
    "run": FrameColumn(TEXT, "Label of the run."),
    "task": FrameColumn(TEXT, "Task."),
    "doc_id": FrameColumn(WHOLE, "Row of the document in its split, from 0."),
    "doc_hash": FrameColumn(TEXT, "lm-eval's hash of the document."),
    "repeat": FrameColumn(WHOLE, "Which of the task's repeats, from 0."),
    "turn": FrameColumn(WHOLE, "Which turn of a dialogue, from 0."),
    "layer": FrameColumn(WHOLE, "0 for a draft, then 1 to `layers`; the last layer is the answer."),
    "index": FrameColumn(WHOLE, "Position in the layer, from 0."),
    "text": FrameColumn(TEXT, "The generated text."),
    "answer": FrameColumn(TEXT, "The answer extracted from it; missing if none was found."),
    "right": FrameColumn(FLAG, "Whether this answer is right; missing if neither grades nor a gold answer say it."),
    "grades": FrameColumn(TEXT, "The task's metrics by filter, as a dictionary; missing if the text is not graded."),
    "finish_reason": FrameColumn(TEXT, "`stop`, or `length` if the token limit ended the text."),
    "empty": FrameColumn(FLAG, "Whether the text holds no answer: only white space, or only a thought."),
    "seed": FrameColumn(WHOLE, "Seed of the generation."),
    "prompt_tokens": FrameColumn(WHOLE, "Tokens of its prompt."),
    "computed_prompt_tokens": FrameColumn(WHOLE, "Prompt tokens that ran through the model for this text."),
    "generated_tokens": FrameColumn(WHOLE, "Generated tokens, the end token included."),
    "confidence_sum": FrameColumn(REAL, "Sum of its tokens' log-probabilities; missing if the engine gave none."),
    "confidence_mean": FrameColumn(REAL, "Their mean."),
    "confidence_tail": FrameColumn(REAL, "The mean of the last 32 tokens."),
    "confidence_window": FrameColumn(REAL, "The lowest mean of 32 consecutive tokens."),
    "reused": FrameColumn(FLAG, "Whether the text came from the draft store, or from an equal request of the run."),
    "elapsed_s": FrameColumn(REAL, "Seconds from the start of its layer to its end."),
}
VOTE_COLUMNS = {
    "run": FrameColumn(TEXT, "Label of the run."),
    "task": FrameColumn(TEXT, "Task."),
    "of": FrameColumn(TEXT, "`drafts`, or `answers`: the answers of the task's repeats."),
    "n": FrameColumn(WHOLE, "Number of drafts or answers, from 1 to k."),
    "questions": FrameColumn(WHOLE, "Number of questions."),
    **{
        f"{name}_at_n{end}": FrameColumn(REAL, meaning if not end else f"The {end[1:]} end of its interval.")
        for name, meaning in (
            ("avg", "avg@n: mean accuracy of one of them."),
            ("maj", "maj@n: accuracy of the majority vote, ties drawn by lot; missing without answers to vote on."),
            ("pass", "pass@n, also oracle@n: share of questions with a right one; Chen et al. 2021."),
        )
        for end in ("", "_low", "_high")
    },
    "generated_tokens": FrameColumn(REAL, "Generated tokens a question, for n of them."),
    "gap_closed": FrameColumn(REAL, "(answer - vote) / (oracle - vote) of all drafts; on the row of all drafts alone."),
    "gap_closed_low": FrameColumn(REAL, "The low end of its interval."),
    "gap_closed_high": FrameColumn(REAL, "The high end of its interval."),
}
JUDGEMENT_COLUMNS = {
    "run": FrameColumn(TEXT, "Label of the run."),
    "task": FrameColumn(TEXT, "Task."),
    "setting": FrameColumn(TEXT, "Judge, with its prompts or the reference."),
    "question": FrameColumn(TEXT, "Number of the question (MT-Bench), or its instruction (AlpacaEval)."),
    "turn": FrameColumn(WHOLE, "Turn of the dialogue, from 1."),
    "metric": FrameColumn(TEXT, "`rating` (1 to 10), or `preference` (0 to 1) for the model over the reference."),
    "score": FrameColumn(REAL, "The mean over repeated judgements of this turn."),
}


class Frames:
    """Runs as pandas frames. A frame is made when it is first used.

    Attributes:
        entries: The runs.
    """

    def __init__(self, entries: Sequence[RunEntry], regex: str | None = None) -> None:
        """Keep the runs.

        Args:
            entries: The runs.
            regex: Finds the answers in the texts of ``drafts`` instead of the tasks' own filters.
        """
        self.entries = tuple(entries)
        self._regex = regex

    @cached_property
    def runs(self) -> pd.DataFrame:
        """One row for each run, task or group, and metric: see ``RUN_COLUMNS``."""
        return _frame(RUN_COLUMNS, (row for entry in self.entries for row in _run_rows(entry)))

    @cached_property
    def samples(self) -> pd.DataFrame:
        """One row for each logged question and filter: see ``SAMPLE_COLUMNS``."""
        return _frame(SAMPLE_COLUMNS, (row for entry in self.entries for row in _sample_rows(entry)))

    @cached_property
    def drafts(self) -> pd.DataFrame:
        """One row for each generation, drafts and later layers alike: see ``DRAFT_COLUMNS``."""
        return _frame(DRAFT_COLUMNS, (row for entry in self.entries for row in self._draft_rows(entry)))

    @cached_property
    def votes(self) -> pd.DataFrame:
        """One row for each run, task and number of drafts or repeated answers: see ``VOTE_COLUMNS``."""
        rows = (row for entry in self.entries for row in _vote_rows(entry, self.entries, self._regex))
        return _frame(VOTE_COLUMNS, rows)

    @cached_property
    def judgements(self) -> pd.DataFrame:
        """One row for each judged turn: see ``JUDGEMENT_COLUMNS``."""
        return _frame(JUDGEMENT_COLUMNS, (row for entry in self.entries for row in _judgement_rows(entry)))

    def _draft_rows(self, entry: RunEntry) -> Iterator[Cells]:
        traces = list(by_question(entry.traces(), lambda trace: trace).values())
        graded: dict[str, list[GradedTrace]] = {}
        for trace in traces:
            graded.setdefault(trace.question.task, []).append(grade(trace, extraction_of(trace, self._regex)))
        marked = {
            task: iter(mark_traces(task, group, [entry, *self.entries], self._regex)[1])
            for task, group in graded.items()
        }
        for trace in traces:
            yield from _trace_rows(entry.label, trace, next(marked[trace.question.task]))


def frames(*out: AnyPath, traces: AnyPath | None = None, regex: str | None = None) -> Frames:
    """Read runs as pandas frames.

    Args:
        *out: Folders that ``--output_path`` named, or results files.
        traces: Folder that ``record=`` named, if it is not below ``out``.
        regex: Finds the answers in generated texts instead of the tasks' own filters.

    Raises:
        ConfigError: pandas is not installed, or a path is wrong.
        RecordError: A folder holds no run, or a file cannot be read.
    """
    _pandas()
    return Frames(read_runs(*out, traces=traces, keep=True), regex)


def _pandas() -> Any:
    try:
        import pandas
    except ImportError as error:
        raise ConfigError(
            f"frames need pandas, which cannot be imported ({error}): pip install 'lm_eval_aft[report]'."
        ) from error
    return pandas


def _frame(columns: Mapping[str, FrameColumn], rows: Iterable[Cells]) -> pd.DataFrame:
    """A frame of these columns, whatever the rows hold.

    Raises:
        RecordError: A value does not fit its column, so a file is damaged.
    """
    frame = _pandas().DataFrame(list(rows), columns=list(columns), dtype=object)
    for name, column in columns.items():
        try:
            frame[name] = frame[name].astype(column.dtype)
        except (OverflowError, TypeError, ValueError) as error:
            raise RecordError(
                f"a value of {name} is no {column.dtype} ({error}): a trace or results file is damaged; run lm_eval "
                "again, which writes it from the draft store."
            ) from error
    return frame


def _run_rows(entry: RunEntry) -> Iterator[Cells]:
    run, settings = entry.run, entry.run.settings or {}
    cells = {
        "run": entry.label,
        "file": str(run.path),
        "model": run.model,
        "engine": run.engine,
        "strategy": settings.get("strategy", "aggregate" if settings else None),
        "k": run.width,
        "layers": run.layers,
        "seed": settings.get("seed"),
        "temperature": settings.get("temperature"),
    }
    for score in (*run.scores, *(score for group in run.groups.values() for score in group.scores)):
        yield {**cells, **_score_cells(entry, score), **_cost_cells(entry, score.task)}


def _score_cells(entry: RunEntry, score: Score) -> Cells:
    conditions = entry.run.conditions.get(score.task)
    return {
        "task": score.task,
        "group": score.task in entry.run.groups,
        "metric": score.metric,
        "filter": score.filter,
        "score": score.value,
        "stderr": score.stderr,
        "n": score.n,
        "higher_is_better": score.higher_is_better if score.ranked else None,
        "judge": (conditions.judge or None) if conditions else None,
    }


def _cost_cells(entry: RunEntry, task: str) -> Cells:
    cost = entry.cost_of(task) or entry.costs.get(task)
    if cost is None:
        return {}
    return {
        "generations": cost.generations,
        "generated_tokens": cost.generated_tokens,
        "prompt_tokens": cost.prompt_tokens,
        "flops": cost.flops,
        "cost": cost.money,
        "cut": cost.cut / cost.texts if cost.texts else None,
    }


def _sample_rows(entry: RunEntry) -> Iterator[Cells]:
    return (cells for _, cells in logged_samples(entry))


def logged_samples(entry: RunEntry, only: str | None = None) -> Iterator[tuple[Sample, Cells]]:
    """Each logged question and filter of a run, with its cells in the frame ``samples``.

    Args:
        entry: The run.
        only: A task; all tasks by default.

    Raises:
        RecordError: If a file cannot be read.
    """
    usages: dict[tuple[str, int, str], list[Usage]] = {}
    for trace in by_question(entry.traces(), lambda trace: trace).values():
        question = trace.question
        usages.setdefault((question.task, question.doc_id, question.doc_hash), []).append(trace.usage)
    for task in entry.run.tasks if only is None else (only,):
        for sample in entry.samples(task) if entry.logged(task) else ():
            key = sample.key
            usage = usages.get((key.task, key.doc_id, key.doc_hash))
            yield sample, {**_logged_cells(entry, sample), **(_usage_cells(total(usage)) if usage else {})}


def _logged_cells(entry: RunEntry, sample: Sample) -> Cells:
    metric = _metric(entry, sample)
    return {
        "run": entry.label,
        "task": sample.key.task,
        "filter": sample.key.filter,
        "doc_id": sample.key.doc_id,
        "doc_hash": sample.key.doc_hash,
        "question": sample.question or None,
        "target": sample.target,
        "response": _first_text(sample.resps),
        "answer": _first_text(sample.filtered),
        "metric": metric,
        "score": mean_value(sample.metrics.get(metric)) if metric else None,
        "metrics": dict(sample.metrics),
    }


def _vote_rows(entry: RunEntry, entries: Sequence[RunEntry], regex: str | None) -> Iterator[Cells]:
    for votes in votes_of_run(entry, entries, regex):
        for of, points in (("drafts", votes.points), ("answers", votes.answer_points)):
            for point in points:
                cells = {"run": entry.label, "task": votes.task, "of": of, "n": point.n, "questions": votes.questions}
                cells |= {"generated_tokens": point.generated_tokens}
                for name, score in (("avg", point.mean), ("maj", point.majority), ("pass", point.oracle)):
                    cells |= _interval_cells(f"{name}_at_n", score)
                whole = of == "drafts" and point is points[-1] and votes.gap
                yield {**cells, **_interval_cells("gap_closed", whole.closed if whole else None)}


def _interval_cells(name: str, interval: Interval | None) -> Cells:
    if interval is None:
        return {}
    return {name: interval.estimate, f"{name}_low": interval.low, f"{name}_high": interval.high}


def _metric(entry: RunEntry, sample: Sample) -> str | None:
    """The first metric of the sample that can be better or worse, else its first metric; None if it has none."""
    scores = [each for each in entry.run.scores_of(sample.key.task) if each.filter == sample.key.filter]
    ranked = [score.metric for score in scores if score.ranked and score.metric in sample.metrics]
    return next(iter([*ranked, *sample.metrics]), None)


def _first_text(values: Sequence[Any]) -> str | None:
    """The first of several responses; None if it is no text, such as the log-likelihood of a choice."""
    return values[0] if values and isinstance(values[0], str) else None


def mean_value(value: Any) -> float | None:
    """The value of a metric for one question, the mean of several; None if it is no number."""
    values = value if isinstance(value, list) else [value]
    return fmean(values) if values and all(isinstance(each, int | float) for each in values) else None


def _usage_cells(usage: Usage) -> Cells:
    return {
        "generations": usage.generations,
        "generated_tokens": usage.generated_tokens,
        "prompt_tokens": usage.prompt_tokens,
        "computed_prompt_tokens": usage.computed_prompt_tokens,
        "flops": usage.flops or None,
    }


def _trace_rows(label: str, trace: Trace, graded: GradedTrace) -> Iterator[Cells]:
    question = trace.question
    grades = trace.grades or ((),) * len(trace.drafts)
    for draft, text, text_grades in zip(trace.drafts, graded.texts, grades, strict=True):
        completion = draft.completion
        yield {
            "run": label,
            "task": question.task,
            "doc_id": question.doc_id,
            "doc_hash": question.doc_hash,
            "repeat": question.repeat,
            "turn": question.turn,
            "layer": draft.layer,
            "index": draft.index,
            "text": completion.text,
            "answer": text.answer,
            "right": text.right,
            "grades": {grade.filter: dict(grade.metrics) for grade in text_grades} or None,
            "finish_reason": completion.finish_reason,
            "empty": is_empty(question, draft),
            "seed": draft.seed,
            "prompt_tokens": completion.prompt_tokens,
            "computed_prompt_tokens": completion.computed_prompt_tokens,
            "generated_tokens": completion.generated_tokens,
            **_confidence_cells(completion.confidence),
            "reused": draft.reused,
            "elapsed_s": draft.elapsed_s,
        }


def _confidence_cells(confidence: Confidence | None) -> Cells:
    numbers = asdict(confidence) if confidence else {}
    return {f"confidence_{name}": numbers.get(name) for name in CONFIDENCES}


def _judgement_rows(entry: RunEntry) -> Iterator[Cells]:
    for task in entry.judged:
        model = stored_model(entry, task)
        for (question, turn), score in model.scores.items():
            yield {
                "run": entry.label,
                "task": task,
                "setting": model.setting,
                "question": question,
                "turn": turn,
                "metric": model.metric,
                "score": score,
            }
