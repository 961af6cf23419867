"""Runs with what belongs to each: a label, its logged samples, its traces, and what each task cost.

lm-eval's results say what was run and what it scored. Traces lie in a folder that several runs may share, so each run
takes only the traces of its own settings, its own sampling and the questions that it scored.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from json import dumps
from pathlib import Path
from typing import Any, TypeVar

from lm_eval_aft.analysis.conditions import labels
from lm_eval_aft.analysis.cost import Cost, QuestionKey, TaskCost, cost_of_tasks, costs_by_task, task_costs, trace_cost
from lm_eval_aft.core.config import AFTConfig, samplings
from lm_eval_aft.core.cuts import Cuts
from lm_eval_aft.core.errors import AFTError, ConfigError, RecordError
from lm_eval_aft.core.files import reading
from lm_eval_aft.core.records import Question, Sampling, Trace
from lm_eval_aft.core.usage import TokenCosts
from lm_eval_aft.judging.stored import StoredScores, stored_scores, with_stored_scores
from lm_eval_aft.storage.location import run_folders
from lm_eval_aft.storage.results import EvalRun, Sample, read_runs, read_samples, results_files
from lm_eval_aft.storage.traces import no_traces, read_traces, trace_files

# The settings from which a run's sampling follows.
SAMPLING_SETTINGS = (
    "temperature",
    "top_p",
    "top_k",
    "draft_max_tokens",
    "draft_until",
    "max_gen_toks",
    "seed",
    "final_temperature",
    "final_top_p",
    "final_max_tokens",
)
# What changed the texts of a run, besides its other settings. An ordinary run has none of it.
PROMPT_SETTINGS = ("engine_args", "prompting", "aggregator", "proposers")
# The name of the costs among what a run has counted.
COSTS = "costs"
RunKey = tuple[str, str, Hashable]
Kept = TypeVar("Kept")


@dataclass(frozen=True)
class RunEntry:
    """One run among others, with its samples, traces and cost.

    The texts of many runs may not fit into memory. So ``samples`` and ``traces`` read files at each call. What is
    counted from them stays in memory: ``scored``, ``costs`` and ``once``. With ``keep`` each file is read once, and
    everything but the token ids stays.

    Attributes:
        run: What lm-eval wrote.
        label: A name that no other entry has.
        trace_folder: The folder of its traces; None if there are none.
        keep: Whether samples and traces stay in memory.
        judged: The scores by task that ``aft judge`` left beside the run.
    """

    run: EvalRun
    label: str
    trace_folder: Path | None
    keep: bool = False
    judged: Mapping[str, StoredScores] = field(default_factory=dict)
    _samples: dict[str, tuple[Sample, ...]] = field(default_factory=dict, init=False, repr=False, compare=False)
    _counted: dict[Hashable, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def logged(self, task: str) -> bool:
        """Whether the samples of a task were logged."""
        return self.run.samples_file(task).is_file()

    def samples(self, task: str) -> tuple[Sample, ...]:
        """The logged samples of a task, in the order of the file.

        Raises:
            RecordError: If they were not logged, or the file is damaged.
        """
        return self.scored(task) if self.keep else read_samples(self.run, task)

    def scored(self, task: str) -> tuple[Sample, ...]:
        """The same without prompts and responses, which stay in memory. With ``keep`` they are there too.

        Raises:
            RecordError: See ``samples``.
        """
        if task not in self._samples:
            self._samples[task] = read_samples(self.run, task, texts=self.keep)
        return self._samples[task]

    def traces(self) -> Iterable[Trace]:
        """The traces of this run; none if it has no folder of traces.

        Raises:
            RecordError: If a file cannot be read, while the traces are iterated.
        """
        return self._kept_traces if self.keep else self._read_traces()

    def once(self, name: Hashable, count: Callable[[Iterable[Trace]], Kept]) -> Kept:
        """What a function makes of the traces. It is called once, and its result stays in memory.

        Args:
            name: Tells what is counted.
            count: Makes the result of all traces. It must keep no trace.

        Raises:
            RecordError: See ``traces``.
        """
        if name not in self._counted:
            self._counted[name] = count(self.traces())
        result: Kept = self._counted[name]
        return result

    @cached_property
    def costs(self) -> Mapping[str, TaskCost]:
        """The cost of each task; empty for other models than ours.

        Raises:
            RecordError: If the traces cannot be read.
        """
        return task_costs(self.run, self._traced_costs)

    def cost_of(self, name: str) -> TaskCost | None:
        """The cost of a task, or of all tasks in a group; None if it is not known.

        Raises:
            RecordError: If the traces cannot be read.
        """
        cost, rates = cost_of_tasks(self.run, name, self._traced_costs), self.run.token_costs
        if cost is None or rates is None:
            return cost
        return replace(cost, total_money=rates.of(cost.usage.prompt_tokens, cost.usage.generated_tokens))

    @property
    def _traced_costs(self) -> Mapping[str, TaskCost]:
        if COSTS not in self._counted:
            # Whoever reads all traces counts their costs.
            deque(self.traces(), maxlen=0)
        costs: Mapping[str, TaskCost] = self._counted[COSTS]
        return costs

    @property
    def cost(self) -> TaskCost | None:
        """The cost of all tasks together, from the run's own totals; None for other models than ours."""
        if self.run.usage is None or not self.run.usage.prompt_tokens:
            return None
        questions = sum(each.questions for each in self.run.conditions.values())
        texts, cut, empty = (sum(getattr(c, name) for c in self.costs.values()) for name in ("texts", "cut", "empty"))
        return TaskCost("", questions, self.run.usage, texts=texts, cut=cut, empty=empty, total_money=self.run.money)

    def cuts(self, name: str | None = None) -> Cuts:
        """How often drafts were cut to fit the context: in a task or group with traces, else in the whole run."""
        cost = self.cost_of(name) if name else None
        if cost is not None and cost.texts:
            return cost.cuts
        return self.run.cuts or sum((cost.cuts for cost in self.costs.values()), Cuts())

    def cost_per_answer(self, task: str, kind: Cost) -> float | None:
        """The cost of one answer of a task or a group, counted as the cost of a vote is.

        Each repeat and each turn is an answer.

        Returns:
            Generated tokens or FLOPs; None if the run does not know them.
        """
        cost, settings = self.cost_of(task) or self.costs.get(task), self.run.settings
        if cost is None or settings is None:
            return None
        counted = cost.answers or cost.usage.generations // int(settings["generations_per_question"])
        answers = max(cost.questions, counted)
        total = cost.usage.generated_tokens if kind == "tokens" else cost.usage.flops
        return total / answers or None

    @cached_property
    def _kept_traces(self) -> tuple[Trace, ...]:
        return tuple(map(_without_token_ids, self._read_traces()))

    def _read_traces(self) -> Iterator[Trace]:
        """The traces of this run's settings and sampling, of questions that it scored.

        A killed attempt may have left traces of more questions in the folder, and other runs traces of other settings.
        Tasks in Python may choose a sampling that the results do not state. So if no trace of a task has the stated
        sampling, all traces of the task count.
        """
        own = _OwnTraces(self)
        uncertain: dict[str, list[Trace]] = {}
        for trace in read_traces(self.trace_folder) if self.trace_folder else ():
            certain = own.take(trace)
            if certain:
                yield trace
            elif certain is False and trace.question.task not in own.certain:
                uncertain.setdefault(trace.question.task, []).append(trace)
        for task, traces in uncertain.items():
            yield from traces if task not in own.certain else ()
        self._counted.setdefault(COSTS, own.costs())


class _OwnTraces:
    """Tells the traces of one run from others while they are read, and counts their costs.

    Attributes:
        certain: The cost of each question of the run's settings and sampling, by task.
        uncertain: The same for questions of the run's settings and another sampling.
    """

    def __init__(self, entry: RunEntry) -> None:
        self.certain: dict[str, dict[QuestionKey, TaskCost]] = {}
        self.uncertain: dict[str, dict[QuestionKey, TaskCost]] = {}
        self._run = entry.run
        self._documents = {
            task: {(sample.key.doc_id, sample.key.doc_hash) for sample in entry.scored(task)}
            for task in entry.run.tasks
            if entry.logged(task)
        }

    def take(self, trace: Trace) -> bool | None:
        """Whether the trace has the run's sampling; None if it has other settings, or the run did not score it."""
        question = trace.question
        scored = self._documents.get(question.task)
        if not _has_settings(self._run, trace):
            return None
        if scored is not None and (question.doc_id, question.doc_hash) not in scored:
            return None
        certain = _has_sampling(self._run, question)
        costs = self.certain if certain else self.uncertain
        costs.setdefault(question.task, {})[_question_key(question)] = trace_cost(trace)
        return certain

    def costs(self) -> dict[str, TaskCost]:
        """The cost of each task. An uncertain trace counts if its task has no certain one."""
        by_task = {**self.uncertain, **self.certain}
        return costs_by_task({key: cost for costs in by_task.values() for key, cost in costs.items()})


def read_entries(folders: Sequence[Path], traces: Path | None = None, keep: bool = False) -> tuple[RunEntry, ...]:
    """Every run below the folders, each once, under different labels.

    Args:
        folders: Folders that ``--output_path`` named, or results files.
        traces: Folder of traces that are not below the folders.
        keep: Whether each run keeps its samples and traces in memory, for a caller that needs them more than once.

    Raises:
        RecordError: A folder holds no run, ``traces`` holds no traces, or a file cannot be read; the message names it.
    """
    if traces is not None and not trace_files(traces):
        raise no_traces(traces)
    roots: dict[Path, tuple[EvalRun, Path]] = {}
    for folder in folders:
        for run in read_runs(folder):
            roots.setdefault(run.path.resolve(), (run, folder))
    names = labels([run for run, _ in roots.values()])
    return tuple(
        _entry(run, label, find_traces(run, traces, [root]) if run.settings else None, keep)
        for (run, root), label in zip(roots.values(), names, strict=True)
    )


def with_token_costs(entries: Sequence[RunEntry], costs: TokenCosts | None) -> tuple[RunEntry, ...]:
    """The runs, with what their tokens cost where the runs do not state it. Runs of several models stay as they are."""
    return tuple(_with_token_costs(entry, costs) if costs else entry for entry in entries)


def _with_token_costs(entry: RunEntry, costs: TokenCosts) -> RunEntry:
    run = entry.run
    if run.usage is None or run.usage_by_model or run.token_costs:
        return entry
    settings = {**(run.settings or {}), "price_in": costs.prompt, "price_out": costs.generated}
    money = costs.of(run.usage.prompt_tokens, run.usage.generated_tokens)
    return replace(entry, run=replace(run, settings=settings, money=money))


def entries_at(path: Path) -> tuple[RunEntry, ...]:
    """The runs at a path; none if it holds traces alone.

    Raises:
        RecordError: The path holds neither a run nor traces, or a file cannot be read; the message names it.
    """
    traced = path.suffix == ".jsonl" or (path.is_dir() and not results_files(path) and trace_files(path))
    return () if traced else read_entries([path])


def _entry(run: EvalRun, label: str, trace_folder: Path | None, keep: bool) -> RunEntry:
    judged = stored_scores(run)
    return RunEntry(with_stored_scores(run, judged), label, trace_folder, keep, judged)


def find_traces(run: EvalRun, folder: Path | None, roots: Sequence[Path] = ()) -> Path | None:
    """The folder of a run's traces.

    Args:
        run: The run.
        folder: Looked into first.
        roots: Looked into last.

    Returns:
        The first folder that holds a trace file: ``folder``, the one that record= named, one near the results file,
        one of the roots. None if no folder does.
    """
    candidates = (folder, *run_folders(run), *roots)
    return next((each for each in candidates if each is not None and trace_files(each)), None)


def stored_traces(path: Path, entries: Sequence[RunEntry], folder: Path | None = None) -> Iterator[Trace]:
    """The traces that belong to a path which a command was given.

    Args:
        path: A folder or file of traces, which are all read; or a results file, or the DIR/FILE.json that --output_path
            named, of which each run's own traces are read.
        entries: The runs at the path.
        folder: A folder of traces to read instead.

    Raises:
        RecordError: If there are no traces, or a file cannot be read.
    """
    if folder or path.is_dir() or path.suffix == ".jsonl":
        return read_traces(folder or path)
    if not any(entry.trace_folder for entry in entries):
        raise RecordError(f"there are no traces of {path}: give the folder that record= named.")
    return chain.from_iterable(entry.traces() for entry in entries)


def traces_below(folder: Path, entries: Sequence[RunEntry]) -> Iterator[Trace]:
    """All traces below a folder. The runs whose traces are all there count their costs at the same time.

    Args:
        folder: A folder of traces.
        entries: Runs whose costs may be needed later.

    Raises:
        RecordError: If there are no traces, or a file cannot be read.
    """
    files = trace_files(folder)
    if not files:
        raise no_traces(folder)
    readers = []
    for entry in entries:
        its_files = set(trace_files(entry.trace_folder)) if entry.trace_folder else set()
        if its_files and its_files.issubset(files) and COSTS not in entry._counted:
            readers.append((entry, its_files, _OwnTraces(entry)))
    for file in files:
        readers_of_file = [own for _, its_files, own in readers if file in its_files]
        for trace in read_traces(file):
            for own in readers_of_file:
                own.take(trace)
            yield trace
    for entry, _, own in readers:
        entry._counted[COSTS] = own.costs()


def stored_trace_files(path: Path, entries: Sequence[RunEntry], folder: Path | None = None) -> list[Path]:
    """The trace files that belong to a path which a command was given.

    Args:
        path: A folder or file of runs or of traces.
        entries: The runs at the path. Their folders of traces count if the path holds no traces.
        folder: A folder of traces to take instead.

    Raises:
        RecordError: If there are no traces.
    """
    if path.suffix == ".jsonl" and path.is_file():
        return [path]
    folders = [folder] if folder else [path] if path.is_dir() and trace_files(path) else []
    folders = folders or [entry.trace_folder for entry in entries if entry.trace_folder]
    files = [file for each in dict.fromkeys(folders) for file in trace_files(each)]
    if not files:
        raise no_traces(folder or path)
    return files


def no_task(path: Path, task: str | None) -> AFTError:
    """The error for a path whose traces are not of a task; without a task, for one that holds no traces."""
    if task is None:
        return no_traces(path)
    return ConfigError(f"{path} holds no traces of --task {task}: give a task that was run with record=.")


def by_question(traces: Iterable[Trace], reduce: Callable[[Trace], Kept]) -> dict[QuestionKey, Kept]:
    """What ``reduce`` keeps of the trace of each question, turn and repeat of one run.

    The later of two traces of one question wins. Two files can hold the same question of the same run if they were
    written with different limits or numbers of processes.

    Args:
        traces: Of one run; read once, one at a time.
        reduce: What is kept of a trace.
    """
    return {_question_key(trace.question): reduce(trace) for trace in traces}


def by_run(traces: Iterable[Trace], reduce: Callable[[Trace], Kept]) -> dict[RunKey, dict[QuestionKey, Kept]]:
    """The same as ``by_question`` for traces of several runs, apart by settings (as JSON), task and sampling."""
    runs: dict[RunKey, dict[QuestionKey, Kept]] = {}
    for trace in traces:
        question = trace.question
        key = dumps(trace.set_settings, sort_keys=True), question.task, question.sampling_key
        runs.setdefault(key, {}).update(by_question([trace], reduce))
    return runs


def _question_key(question: Question) -> QuestionKey:
    return question.task, question.doc_id, question.repeat, question.turn


def _without_token_ids(trace: Trace) -> Trace:
    """The trace without token ids, which no analysis reads and which take more memory than the texts."""
    drafts = (replace(draft, completion=replace(draft.completion, token_ids=())) for draft in trace.drafts)
    return replace(trace, drafts=tuple(drafts))


def _has_settings(run: EvalRun, trace: Trace) -> bool:
    settings = run.settings or {}
    # Settings that a trace lacks are of a later version, except those which ordinary runs lack.
    names = {*trace.settings, *PROMPT_SETTINGS}
    return trace.question.task in run.tasks and all(settings.get(name) == trace.settings.get(name) for name in names)


def sampling_of(run: EvalRun, generation: Mapping[str, Any]) -> tuple[Sampling, Sampling]:
    """How a run samples the drafts and the answer of a task with these generation settings.

    Raises:
        RecordError: If the results file holds a setting that no run can have.
    """
    known = {name: value for name, value in (run.settings or {}).items() if name in SAMPLING_SETTINGS}
    with reading(run.path, "a results file of lm-eval"):
        config = AFTConfig(**{**known, "draft_until": tuple(known.get("draft_until", ()))})
        return samplings(config, generation)


def _has_sampling(run: EvalRun, question: Question) -> bool:
    """Whether a question was sampled as this run samples. The settings of a run do not hold --gen_kwargs."""
    generation = run.conditions[question.task].generation
    if not generation:
        # The results file does not say.
        return True
    if not {"temperature", "do_sample"} & set(generation):
        # A task may then choose the temperature of each question, as MT-Bench does.
        generation = {**generation, "temperature": question.final.temperature}
    return (question.drafts, question.final) == sampling_of(run, generation)
