"""What each task of a run cost, and how many of its texts were cut or empty: from its traces, else from its totals.

Knows results and traces; nothing of scores. Called by ``report``, ``compare`` and ``sweep``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lm_eval_aft.core.config import AFTConfig, samplings
from lm_eval_aft.core.files import reading
from lm_eval_aft.core.records import Question, Trace
from lm_eval_aft.core.usage import Usage
from lm_eval_aft.storage.results import EvalRun, read_samples
from lm_eval_aft.storage.traces import read_traces, trace_files

Cost = Literal["tokens", "flops"]
DRAFTED = ("temperature", "top_p", "top_k", "draft_max_tokens", "draft_until", "max_gen_toks", "seed")
SAMPLED = (*DRAFTED, "final_temperature", "final_top_p", "final_max_tokens")  # what a run's sampling follows from


@dataclass(frozen=True, slots=True)
class TaskCost:
    """The cost of one task of one run.

    Attributes:
        task: Name of the task.
        questions: The cost is divided by; repeats and turns of a question belong to it.
        usage: Logical cost of all of them.
        own: False where it is the mean over all tasks of the run, for want of traces.
        texts: Generated texts counted in the traces; 0 without them.
        cut: Of those, how many ended at the token limit.
        empty: Of those, how many hold nothing but white space.
    """

    task: str
    questions: int
    usage: Usage
    own: bool = True
    texts: int = 0
    cut: int = 0
    empty: int = 0

    @property
    def generations(self) -> float:
        """A question."""
        return self.usage.generations / self.questions

    @property
    def generated_tokens(self) -> float:
        """A question."""
        return self.usage.generated_tokens / self.questions

    @property
    def prompt_tokens(self) -> float:
        """A question, as asked for."""
        return self.usage.prompt_tokens / self.questions

    @property
    def flops(self) -> float | None:
        """A question; None where the model's shape is unknown."""
        return self.usage.flops / self.questions if self.usage.flops else None


def task_costs(run: EvalRun, traces: Path | None = None) -> dict[str, TaskCost]:
    """The cost of each task; empty where another model than ours was run.

    Args:
        run: Whose.
        traces: Folder of its traces; those of other runs in it are left out.
    """
    if run.settings is None or run.usage is None or not run.usage.prompt_tokens:
        return {}
    found = _from_traces(run, traces) if traces else {}
    asked = {task: run.conditions[task].questions for task in run.tasks}
    if len(asked) == 1 and not found:
        ((task, questions),) = asked.items()
        return {task: TaskCost(task, questions, run.usage)}
    mean = {task: TaskCost(task, sum(asked.values()), run.usage, own=False) for task in asked}
    return {**mean, **found}


def _from_traces(run: EvalRun, folder: Path) -> dict[str, TaskCost]:
    """By task, of the questions that this run scored, each once."""
    questions: dict[str, set[tuple[int, str]]] = {}
    kept: dict[tuple[str, int, int, int], tuple[str, Usage, int, int, int]] = {}
    for trace in traces_of(run, folder):
        asked = trace.question
        made = trace.drafts
        row = (asked.task, trace.usage, len(made), sum(text.cut for text in made), sum(text.empty for text in made))
        kept[asked.task, asked.doc_id, asked.repeat, asked.turn] = row
        questions.setdefault(asked.task, set()).add((asked.doc_id, asked.doc_hash))
    found: dict[str, TaskCost] = {}
    for task, usage, texts, cut, empty in kept.values():
        so_far = found.get(task, TaskCost(task, len(questions[task]), Usage()))
        found[task] = TaskCost(
            task,
            so_far.questions,
            so_far.usage + usage,
            texts=so_far.texts + texts,
            cut=so_far.cut + cut,
            empty=so_far.empty + empty,
        )
    return found


def traces_of(run: EvalRun, folder: Path) -> Iterator[Trace]:
    """The traces that belong to a run: of its settings and its sampling, and of questions it has scored.

    A killed attempt may have left traces of more questions, and other runs those of other settings, in one folder.
    Where no trace of a task has the sampling that its results state, these do not state what was asked (tasks in
    Python may ask otherwise), and all count.
    """
    scored = _scored(run)
    settings = run.settings or {}
    others: dict[str, list[Trace]] = {}
    certain: set[str] = set()
    for trace in read_traces(folder):
        asked = trace.question
        if asked.task not in run.tasks or any(settings.get(name) != value for name, value in trace.settings.items()):
            continue
        if asked.task in scored and (asked.doc_id, asked.doc_hash) not in scored[asked.task]:
            continue
        if _drawn_alike(run, asked):
            certain.add(asked.task)
            yield trace
        elif asked.task not in certain:
            others.setdefault(asked.task, []).append(trace)
    for task, traces in others.items():
        yield from traces if task not in certain else ()


def _drawn_alike(run: EvalRun, asked: Question) -> bool:
    """Whether a question's texts were drawn as this run draws them: --gen_kwargs is no part of a run's settings."""
    generation = run.conditions[asked.task].generation
    if not generation:
        return True  # the results file does not say
    if not {"temperature", "do_sample"} & set(generation):  # then a task may choose it by question, as MT-Bench does
        generation = {**generation, "temperature": asked.final.temperature}
    known = {name: value for name, value in (run.settings or {}).items() if name in SAMPLED}
    with reading(run.path, "a results file of lm-eval"):
        config = AFTConfig(**{**known, "draft_until": tuple(known.get("draft_until", ()))})
        return (asked.drafts, asked.final) == samplings(config, generation)


def _scored(run: EvalRun) -> dict[str, set[tuple[int, str]]]:
    """By task, the documents in its samples; tasks whose samples were not logged are left out."""
    logged = [task for task in run.tasks if run.samples_file(task).is_file()]
    return {task: {(s.key.doc_id, s.key.doc_hash) for s in read_samples(run, task)} for task in logged}


def find_traces(run: EvalRun, given: Path | None, roots: Sequence[Path] = ()) -> Path | None:
    """The folder in which a run's traces lie: the one given, what record= named, or one near its results file.

    Returns:
        The first of these that holds a trace file, then the first of the roots that does; None where none does.
    """
    model_args = run.config.get("model_args")
    named = model_args.get("record") if isinstance(model_args, dict) else None
    near = [run.path.parent, *(folder / "traces" for folder in run.path.parents[1:2])]  # where aft sweep puts them
    candidates = [given, Path(str(named)) if named else None, *near, *roots]
    return next((folder for folder in candidates if folder is not None and trace_files(folder)), None)
