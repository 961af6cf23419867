"""Reads what lm-eval writes, of any model: results files and the samples_*.jsonl beside them.

If --output_path names a folder, lm-eval writes results_<stamp>.json. If it names DIR/FILE.json, lm-eval writes
DIR/FILE_<stamp>.json. So a results file is recognised by its content, and the stamp is the end of its name.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from lm_eval_aft.core.chat import ChatContext
from lm_eval_aft.core.cuts import Cuts, check_cuts
from lm_eval_aft.core.errors import RecordError
from lm_eval_aft.core.files import files_below, read_bytes, reading
from lm_eval_aft.core.jsonl import iterate_jsonl, parse_json
from lm_eval_aft.core.log import warn_once
from lm_eval_aft.core.names import check_models, joined_name, plain_task
from lm_eval_aft.core.paths import MAX_PART, missing_or
from lm_eval_aft.core.usage import MAX_COUNT, TokenCosts, Usage

RESULTS, SAMPLES = "results_", "samples_"
# The time at the end of a results file's name, as lm-eval writes it. Stamps sort by time.
_STAMP = re.compile(r"(?P<before>.*_|)(?P<stamp>\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d(\.\d+)?)", re.DOTALL)
# A dataset or model on the hub.
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
# The end of the year 9999, the last that a date can hold.
MAX_DATE = 253_402_300_799
# The parts of a results file by which it is recognised.
_PARTS = ("results", "config", "n-samples")
# The parts that have a row for each task.
_BY_TASK = ("results", "n-samples", "groups", "configs", "versions", "n-shot", "higher_is_better")
# Fields of documents that hold the question, the first one that a document has.
QUESTION_FIELDS = ("question", "prompt", "instruction", "problem", "query", "input")
SCORED = ("scored_without_aggregation", "scored_after_drafts")
SEEDS = ("random_seed", "numpy_seed", "torch_seed", "fewshot_seed")
# Fields that report results, or that change no text. They are ignored when the settings of two runs are compared.
MEASURED = (
    "usage",
    "spent",
    "engine_info",
    "bare_prompts_wrapped",
    "cut_drafts",
    "equal_drafts",
    "texts_without_answer",
    "grade_drafts",
    "graded_texts",
    "usage_by_model",
    "models",
    "look_ahead",
    "price_in",
    "price_out",
    *SCORED,
)


@dataclass(frozen=True, slots=True)
class Score:
    """One number of one run.

    Attributes:
        task: Name of the task.
        metric: Name of the metric.
        filter: Name of lm-eval's filter, such as flexible-extract.
        value: The number that lm-eval reports.
        stderr: lm-eval's standard error, or None if it reports none.
        n: Number of questions.
        higher_is_better: False if less is better.
        ranked: False if neither is better, as for a length. lm-eval then writes null for ``higher_is_better``.
    """

    task: str
    metric: str
    filter: str
    value: float
    stderr: float | None
    n: int
    higher_is_better: bool = True
    ranked: bool = True

    @property
    def key(self) -> tuple[str, str, str]:
        """Task, metric and filter: equal for the same score of several runs."""
        return self.task, self.metric, self.filter


@dataclass(frozen=True, slots=True)
class Conditions:
    """How a task was run. Two scores of a task can be compared only if these agree.

    Attributes:
        version: Version of the task.
        shots: Number of examples in the prompt.
        questions: Number of questions.
        prompt: "chat", "bare", or "wrapped" if --model aft made a user message of a bare prompt.
        system: SHA-256 of the system instruction, or "".
        multiturn: Whether the examples were messages of their own.
        generation: The task's generation settings, with those of --gen_kwargs.
        judge: The model that judged within the run, or "".
        output_type: lm-eval's kind of request, such as generate_until, or "" if the file does not say.
    """

    version: str
    shots: int | None
    questions: int
    prompt: str
    system: str = ""
    multiturn: bool = False
    generation: Mapping[str, Any] = field(default_factory=dict)
    judge: str = ""
    output_type: str = ""

    @property
    def generates(self) -> bool:
        """Whether the task has texts generated. A file that does not say so is taken to."""
        return self.output_type in ("generate_until", "")


@dataclass(frozen=True, slots=True)
class Dataset:
    """Where the questions of a task come from.

    Attributes:
        path: Name of the dataset on the hub; else a folder, or the kind of a local file, such as "json"; or "".
        name: Configuration of the dataset, or "".
        split: The split that holds the questions, or "".
    """

    path: str = ""
    name: str = ""
    split: str = ""

    @property
    def hub_id(self) -> str:
        """The name on the hub in the form OWNER/NAME, or "" if it has no such form."""
        return self.path if HUB_ID.fullmatch(self.path) else ""


@dataclass(frozen=True, slots=True)
class Group:
    """A group of tasks in one run.

    Attributes:
        name: Name of the group.
        members: Its tasks and groups, in lm-eval's order.
        tasks: All tasks in it, those of its groups too.
        scores: The numbers that lm-eval gives for the group; empty if it gives none.
    """

    name: str
    members: tuple[str, ...]
    tasks: tuple[str, ...]
    scores: tuple[Score, ...] = ()


@dataclass(frozen=True, slots=True)
class EvalRun:
    """One results file.

    Attributes:
        path: The file.
        model: Checkpoint or name of the model; of several models, their names as in "bundled:sft -> bundled:aft".
        settings: ``config.aft``, or None if the run is of another model than ours.
        scores: The scores of the tasks, in the order of the file.
        usage: Logical cost of all tasks together, or None if the run is of another model.
        config: lm-eval's whole ``config``.
        conditions: How each task was run.
        host_version: Version of lm-eval, or "" if the file does not say.
        system_instruction: lm-eval's system instruction, or "".
        groups: The groups with tasks of the run, each before the groups that it is a member of.
        usage_by_model: ``usage`` by the name of the model, if the run has several models; else empty.
        datasets: Where the questions of each task come from.
        date: When the run started, in seconds since 1970; None if the file does not say.
        money: What the run costs in money; None if that is unknown.
        money_by_model: The same by the name of the model, if the run has several models.
        host_names: lm-eval's names of those tasks and groups that it names with their group, by the name without it.
    """

    path: Path
    model: str
    settings: Mapping[str, Any] | None
    scores: tuple[Score, ...]
    usage: Usage | None
    config: Mapping[str, Any] = field(default_factory=dict)
    conditions: Mapping[str, Conditions] = field(default_factory=dict)
    host_version: str = ""
    system_instruction: str = ""
    groups: Mapping[str, Group] = field(default_factory=dict)
    usage_by_model: Mapping[str, Usage] = field(default_factory=dict)
    datasets: Mapping[str, Dataset] = field(default_factory=dict)
    date: float | None = None
    money: float | None = None
    money_by_model: Mapping[str, float | None] = field(default_factory=dict)
    host_names: Mapping[str, str] = field(default_factory=dict)

    @property
    def token_costs(self) -> TokenCosts | None:
        """What the tokens of the run's only model cost; None if that is unknown, or if the run has several models."""
        costs = [(self.settings or {}).get(name) for name in ("price_in", "price_out")]
        if self.usage_by_model or None in costs:
            return None
        return TokenCosts(*map(_money, costs))

    @property
    def stamp(self) -> str:
        """The time in the file's name, as lm-eval writes it; the name itself without one."""
        return _split_name(self.path)[1]

    @property
    def k(self) -> int | None:
        """Texts per layer, or None if the run is of another model."""
        return int(self.settings["k"]) if self.settings else None

    @property
    def shown_k(self) -> str | None:
        """``k`` as it was given: 5, or 32/4. None if the run is of another model."""
        if self.settings is None:
            return None
        return "/".join(map(str, self.settings.get("widths") or (self.settings["k"],)))

    @property
    def layers(self) -> int | None:
        """Aggregation layers, or None if the run is of another model."""
        return int(self.settings["layers"]) if self.settings else None

    @property
    def width(self) -> int | None:
        """Texts per layer as tables show it: 1 for a single answer, whatever k was set; the beams of a beam search."""
        single = self.layers == 0 and (self.settings or {}).get("strategy") != "beam"
        return 1 if single else self.k

    @property
    def answers(self) -> int | None:
        """Number of answers in all tasks, every turn and repeat counted, or None if the run is of another model."""
        if self.settings is None or self.usage is None:
            return None
        # A run that stops early needs fewer generations for some questions.
        counted: int | None = self.settings.get("answers")
        return counted or self.usage.generations // int(self.settings["generations_per_question"])

    @property
    def engine(self) -> str:
        """The engine, or lm-eval's kind of model if the run is of another model."""
        return str(self.settings.get("engine") or "unknown" if self.settings else self.config.get("model", "unknown"))

    @property
    def cuts(self) -> Cuts | None:
        """How often drafts were cut, over all tasks. None if the results do not say."""
        row = self.settings.get("cut_drafts") if self.settings else None
        return None if row is None else Cuts(**row)

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks that the run has scores for."""
        return tuple(dict.fromkeys(score.task for score in self.scores))

    def scores_of(self, name: str) -> tuple[Score, ...]:
        """The scores of a task or a group; empty if the run has none."""
        if name in self.groups:
            return self.groups[name].scores
        return tuple(score for score in self.scores if score.task == name)

    def tasks_of(self, name: str) -> tuple[str, ...]:
        """The tasks of the run that a name stands for: those in a group, or the task itself; empty if it has none."""
        if name in self.groups:
            return self.groups[name].tasks
        return (name,) if name in self.conditions else ()

    def samples_file(self, task: str) -> Path:
        """The file in which --log_samples keeps a task's samples."""
        return samples_beside(self.path, self.host_names.get(task, task))


@dataclass(frozen=True, slots=True)
class SampleKey:
    """Identifies a question under a filter in any run. The prompt's hash is not used: it depends on the model."""

    task: str
    doc_id: int
    doc_hash: str
    filter: str


@dataclass(frozen=True, slots=True)
class Sample:
    """One question under one filter.

    Attributes:
        key: Identifies the question and the filter.
        target: The gold answer as lm-eval logs it; for a multiple choice, the text of the choice.
        resps: The model's responses, before the filter.
        filtered: The responses after the filter.
        metrics: The value of each metric for this question.
        category: The document's category, or "".
        prompt: The context that the task gave, examples included.
        rendered: The prompt as the model got it, if it was logged beside its messages; else "".
        question: The document's own question without the rest of the prompt, or "" if no known field holds it.
        file: The file that the sample comes from.
        later_turns: What the user says after each answer, if the request is a dialogue; else empty.
    """

    key: SampleKey
    target: str
    resps: tuple[Any, ...]
    filtered: tuple[Any, ...]
    metrics: Mapping[str, Any]
    category: str = ""
    prompt: str = ""
    rendered: str = ""
    question: str = ""
    file: Path | None = None
    later_turns: tuple[str, ...] = ()

    def score(self, metric: str) -> float:
        """The value of a metric for this question, as a number.

        Raises:
            RecordError: If there is no such metric, or its value is not a number.
        """
        value = self.metrics.get(metric)
        if not isinstance(value, int | float):
            have = ", ".join(self.metrics) or "none"
            where = f" in {self.file}" if self.file else ""
            raise RecordError(
                f"{metric} of {self.key.task} is not one number per question{where}: its metrics are {have}."
            )
        return float(value)


def results_files(path: str | Path) -> list[Path]:
    """The results files at a path, by folder, name and time; empty if there are none.

    Args:
        path: A folder, which is searched with its subfolders; a results file; or the DIR/FILE.json that --output_path
            named, beside which lm-eval wrote FILE_<stamp>.json.
    """
    path = Path(path)
    if path.is_file():
        return [path]
    if path.is_dir():
        files = [file for file in files_below(path, "*.json") if is_results_file(file)]
    elif path.suffix == ".json" and path.parent.is_dir():
        files = [file for file in path.parent.glob("*.json") if _split_name(file)[0] == f"{path.stem}_"]
    else:
        files = []
    return sorted(files, key=lambda file: (file.parent.parts, _split_name(file)))


def is_results_file(path: Path) -> bool:
    """Whether a file is a results file of lm-eval.

    A file that is named as one counts even if it is damaged, so that its reader names it.
    """
    if not path.is_file() or path.suffix != ".json":
        return False
    if path.name.startswith(RESULTS):
        return True
    try:
        # Most JSON files in a folder of runs are others, and some are large. lm-eval writes the results first.
        with path.open("rb") as file:
            beginning = file.read(64)
        if beginning.strip() and not re.match(rb'\s*{\s*"(results|config)"', beginning):
            return False
        data = parse_json(read_bytes(path))
    except (OSError, ValueError):
        return _STAMP.fullmatch(path.stem) is not None
    return isinstance(data, dict) and all(isinstance(data.get(part), dict) for part in _PARTS)


def _split_name(path: Path) -> tuple[str, str]:
    """A results file's name as what stands before its stamp, and the stamp."""
    match = _STAMP.fullmatch(path.stem)
    if match is None:
        name = path.stem.removeprefix(RESULTS)
        return path.stem.removesuffix(name), name
    return match["before"], match["stamp"]


def _found_files(path: str | Path) -> list[Path]:
    files = results_files(path)
    if not files:
        problem = missing_or(path, f"there is no {RESULTS}*.json in {path}")
        raise RecordError(f"{problem}: give the folder that --output_path named.")
    return files


def read_runs(path: str | Path) -> tuple[EvalRun, ...]:
    """The runs at a path, in the order of ``results_files``. A results file is one run.

    If a folder holds several files of equal settings, tasks and conditions, the same command was run again. Then the
    newest file counts, and a warning names each file that is left out. A judge within a run changes no answer, so a run
    that was judged stands for the same run without a judge.

    Args:
        path: See ``results_files``.

    Raises:
        RecordError: If there is no run, or a file cannot be read.
    """
    newest: dict[tuple[str, str], EvalRun] = {}
    for run in map(_read_run, _found_files(path)):
        key = _identity(run), _judges(run)
        older = newest.get(key)
        if older is not None:
            # A command may read a folder more than once.
            warn_once(f"{older.path} is left out: {run.path.name} beside it is a later run of the same command.")
        newest[key] = run
    judged = {identity: run for (identity, judges), run in newest.items() if judges}
    runs = []
    for (identity, judges), run in newest.items():
        if not judges and identity in judged:
            warn_once(f"{run.path} is left out: {judged[identity].path.name} beside it is the same run with a judge.")
        else:
            runs.append(run)
    return tuple(runs)


def read_run(path: str | Path) -> EvalRun:
    """The newest run at a path.

    Args:
        path: See ``results_files``.

    Raises:
        RecordError: If there is no run, or it cannot be read.
    """
    return _read_run(max(_found_files(path), key=lambda file: (_split_name(file)[1], file.name)))


def run_of_samples(samples: Path, task: str) -> EvalRun | None:
    """The run whose samples of a task a file holds; None if its results file is not beside it.

    Raises:
        RecordError: If the results file cannot be read.
    """
    beside = results_files(samples.parent)
    runs = (_read_run(file) for file in beside if _split_name(file)[1] in samples.name)
    return next((run for run in runs if run.samples_file(task) == samples), None)


def samples_beside(results: Path, task: str) -> Path:
    """The file in which --log_samples keeps a task's samples, beside the results file."""
    _, stamp = _split_name(results)
    # lm-eval cannot write the samples of a task whose name holds a slash.
    name = task.replace("/", "_").replace("\0", "_")
    # A longer name than file systems allow is cut: such a file does not exist.
    room = MAX_PART - len(f"{SAMPLES}_{stamp}.jsonl".encode(errors="replace"))
    name = name.encode(errors="replace")[: max(1, room)].decode(errors="ignore")
    return results.with_name(f"{SAMPLES}{name}_{stamp}.jsonl")


_WITHOUT_TEXTS: dict[str, Any] = {
    **{"resps": (), "filtered": (), "later_turns": ()},
    **{"prompt": "", "rendered": "", "question": ""},
}


def read_samples(run: EvalRun, task: str, texts: bool = True) -> tuple[Sample, ...]:
    """The samples of one task: one for each question and filter, in the order of the file.

    Args:
        run: The run.
        task: One of its tasks.
        texts: Whether samples keep prompts and responses. Without these, samples of any length take little memory.

    Raises:
        RecordError: If the samples were not logged, a line is damaged, or a question occurs twice.
    """
    file = run.samples_file(task)
    if not file.is_file():
        raise RecordError(f"the samples of {task} are not beside {run.path}: run lm_eval with --log_samples.")
    samples = []
    for where, row in iterate_jsonl(file):
        with reading(where, "a sample of lm-eval"):
            sample = _sample(task, row, file)
        samples.append(sample if texts else replace(sample, **_WITHOUT_TEXTS))
    if len({sample.key for sample in samples}) < len(samples):
        raise RecordError(f"{file} holds a question twice under one filter: it was joined from several runs.")
    return tuple(samples)


def filtered_answer(row: Mapping[str, Any]) -> Any:
    """What a filter makes of the first response in a line of samples. lm-eval 0.5 logs a list for each response."""
    first = row["filtered_resps"][0]
    return first[0] if isinstance(first, list) else first


def _identity(run: EvalRun) -> str:
    """Equal for runs of one command: one place, one model, equal settings, tasks and conditions but for the judge."""
    settings = {name: value for name, value in (run.settings or {}).items() if name not in MEASURED}
    # A development version has the commit. Those before one release count as one version.
    settings["version"] = str(settings.get("version")).partition(".dev")[0]
    config = [run.config.get(name) for name in ("model", "gen_kwargs", *SEEDS)]
    config += [None if run.settings else run.config.get("model_args")]
    conditions = {task: asdict(replace(each, judge="")) for task, each in run.conditions.items()}
    # Two names in one folder are two commands, as two folders are.
    place = str(run.path.parent / _split_name(run.path)[0])
    parts = [place, run.model, settings, config, run.tasks, conditions]
    return json.dumps(parts, sort_keys=True, default=str)


def _judges(run: EvalRun) -> str:
    """The judges within a run; empty if there is none."""
    judges = {task: each.judge for task, each in run.conditions.items() if each.judge}
    return json.dumps(judges, sort_keys=True) if judges else ""


def _read_run(file: Path) -> EvalRun:
    with reading(file, "a results file of lm-eval"):
        data, host_names = _with_plain_tasks(parse_json(read_bytes(file)))
        config = data["config"]
        settings = config.get("aft")
        usage = _usage(settings["usage"]) if settings else None
        model = data.get("model_name") or config["model"]
        if settings:
            _check_settings(settings)
            for name in ("price_in", "price_out"):
                _money(settings.get(name, 0.0))
            model = joined_name(str(settings["model"]), settings)
        by_model = (settings or {}).get("usage_by_model") or {}
        return EvalRun(
            file,
            str(model),
            settings,
            tuple(_scores(data)),
            usage,
            config,
            _conditions(data),
            str(data.get("lm_eval_version") or ""),
            str(data.get("system_instruction") or ""),
            _groups(data),
            {str(name): _usage(row) for name, row in by_model.items()},
            {task: _dataset(_task(data, task)) for task in data["n-samples"]},
            _date(data.get("date")),
            _cost(settings["usage"]) if settings else None,
            {str(name): _cost(row) for name, row in by_model.items()},
            host_names,
        )


def _with_plain_tasks(data: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Give the tasks of a results file the names of lm-eval 0.4.

    Version 0.5 names a task of a group "group::task". A name that would occur twice stays as it is.

    Returns:
        The content with the new names, and for each new name the name in the file.
    """
    names = dict.fromkeys(str(name) for part in (*_BY_TASK, "group_subtasks") for name in data.get(part) or ())
    counts = Counter(map(plain_task, names))
    plain = {name: plain_task(name) for name in names if "::" in name and counts[plain_task(name)] == 1}
    if not plain:
        return data, {}
    renamed = {part: {plain.get(name, name): row for name, row in (data.get(part) or {}).items()} for part in _BY_TASK}
    members = {
        plain.get(name, name): [plain.get(member, member) for member in row]
        for name, row in (data.get("group_subtasks") or {}).items()
    }
    return {**data, **renamed, "group_subtasks": members}, {short: name for name, short in plain.items()}


def _check_settings(settings: Mapping[str, Any]) -> None:
    """Raise ValueError or TypeError if ``config.aft`` is not as this package writes it."""
    # Results of versions before 0.2 do not count their answers.
    counts = {"answers": 0, **settings}
    for name, least in (("k", 1), ("layers", 0), ("generations_per_question", 1), ("answers", 0)):
        if not isinstance(counts[name], int) or not least <= counts[name] < MAX_COUNT:
            raise ValueError(f"{name} is {counts[name]!r}")
    check_cuts(settings.get("cut_drafts"))
    check_models(settings)
    for name, kind in (("model", str), ("engine", str), ("template", dict), ("model_shape", dict)):
        if not isinstance(settings.get(name) or kind(), kind):
            raise TypeError(f"{name} is {settings[name]!r}")


def _scores(data: dict[str, Any]) -> Iterator[Score]:
    for task, row in data["results"].items():
        if task in data["n-samples"]:
            yield from _row_scores(data, task, row, _questions(data["n-samples"][task]))


def _row_scores(data: dict[str, Any], name: str, row: dict[str, Any], n: int) -> Iterator[Score]:
    """The scores in lm-eval's row of a task or a group. A group counts the questions of each metric."""
    better = data.get("higher_is_better", {}).get(name, {})
    counts = row.get("sample_count") or {}
    for key, value in row.items():
        metric, comma, filter_name = key.partition(",")
        if not comma or metric.endswith("_stderr") or metric == "bypass" or not isinstance(value, int | float):
            continue
        # lm-eval writes "N/A" if it has no standard error.
        stderr = row.get(f"{metric}_stderr,{filter_name}")
        stderr = float(stderr) if isinstance(stderr, int | float) else None
        direction = better.get(metric, True)
        yield Score(
            name,
            metric,
            filter_name,
            float(value),
            stderr,
            _questions({"effective": counts.get(key, n)}),
            direction is not False,
            direction is not None,
        )


def _groups(data: dict[str, Any]) -> dict[str, Group]:
    """The groups with at least one task, members first. Older versions of lm-eval list tasks too, without members."""
    members = {str(name): tuple(map(str, names)) for name, names in data.get("group_subtasks", {}).items()}
    groups: dict[str, Group] = {}

    def add(name: str, above: tuple[str, ...]) -> tuple[str, ...]:
        """Add a group after its members, and return its tasks."""
        if name in data["n-samples"]:
            return (name,)
        if name in groups:
            return groups[name].tasks
        if name not in members or name in above:
            return ()
        found = {member: add(member, (*above, name)) for member in members[name]}
        tasks = tuple(dict.fromkeys(task for each in found.values() for task in each))
        if tasks:
            kept = tuple(member for member, its_tasks in found.items() if its_tasks)
            groups[name] = Group(name, kept, tasks, tuple(_group_scores(data, name, tasks)))
        return tasks

    for name in members:
        add(name, ())
    return groups


def _group_scores(data: dict[str, Any], name: str, tasks: Sequence[str]) -> Iterator[Score]:
    row = data["results"].get(name) or data.get("groups", {}).get(name) or {}
    return _row_scores(data, name, row, sum(_questions(data["n-samples"][task]) for task in tasks))


def _conditions(data: dict[str, Any]) -> dict[str, Conditions]:
    """The conditions of each task. A field that an older or foreign file lacks is left empty."""
    wrapped = (data["config"].get("aft") or {}).get("bare_prompts_wrapped")
    prompt = "wrapped" if wrapped else "chat" if data.get("chat_template") is not None else "bare"
    return {
        task: Conditions(
            version=str(data.get("versions", {}).get(task, "")),
            shots=_whole(data.get("n-shot", {}).get(task)),
            questions=_questions(samples),
            prompt=prompt,
            system=data.get("system_instruction_sha") or "",
            multiturn=bool(data.get("fewshot_as_multiturn")),
            generation=_task(data, task).get("generation_kwargs") or {},
            judge=str((_task(data, task).get("metadata") or {}).get("judge_model") or ""),
            output_type=str(_task(data, task).get("output_type") or ""),
        )
        for task, samples in data["n-samples"].items()
    }


def _dataset(config: Mapping[str, Any]) -> Dataset:
    split = config.get("test_split") or config.get("validation_split") or ""
    return Dataset(str(config.get("dataset_path") or ""), str(config.get("dataset_name") or ""), str(split))


def _date(value: Any) -> float | None:
    """Seconds since 1970. Other programs write other things, which are left out."""
    return float(value) if isinstance(value, int | float) and 0 < value < MAX_DATE else None


def _whole(value: Any) -> int | None:
    """A whole number, or None if it is not stated."""
    if not isinstance(value, int | None):
        raise TypeError(f"{value!r:.100} is not a whole number")
    return value


def _questions(samples: Mapping[str, Any]) -> int:
    """How many questions of a task were answered."""
    count = int(samples["effective"])
    if not 0 < count < MAX_COUNT:
        raise ValueError(f"n-samples says that {count} questions were answered")
    return count


def _task(data: dict[str, Any], task: str) -> dict[str, Any]:
    config: dict[str, Any] = data.get("configs", {}).get(task) or {}
    return config


def _usage(row: dict[str, Any]) -> Usage:
    """The counts of ``config.aft.usage``. FLOPs are 0 if the model's shape is unknown."""
    counts = {f.name: int(row[f.name] or 0) for f in fields(Usage)}
    if not all(0 <= count < MAX_COUNT for count in counts.values()):
        raise ValueError("a count of usage is below zero or too large")
    return Usage(**counts)


def _cost(row: Mapping[str, Any]) -> float | None:
    """The cost in money of ``config.aft.usage``; None if it is unknown."""
    return _money(row["cost"]) if row.get("cost") is not None else None


def _money(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < MAX_COUNT:
        raise ValueError(f"a cost is {value!r:.100}")
    return float(value)


def _target(row: Mapping[str, Any]) -> str:
    """The gold answer. If lm-eval logs the number of a choice, its text from the request."""
    arguments = row.get("arguments")
    request = arguments.get(f"gen_args_{row['target']}") if isinstance(arguments, dict) else None
    choice = request.get("arg_1") if isinstance(request, dict) else None
    return choice.strip() if isinstance(choice, str) else str(row["target"])


def _sample(task: str, row: dict[str, Any], file: Path) -> Sample:
    key = SampleKey(task, int(row["doc_id"]), str(row["doc_hash"]), str(row["filter"]))
    resps = tuple(text for instance in row["resps"] for text in instance)
    metrics = {name: row[name] for name in row["metrics"]}
    for value in metrics.values():
        # A number that is too large for a float is an OverflowError here, where the message names the line.
        isinstance(value, int) and float(value)
    doc = row["doc"] if isinstance(row.get("doc"), dict) else {}
    prompt, rendered = _prompt(row.get("arguments"))
    return Sample(
        key,
        _target(row),
        resps,
        tuple(row["filtered_resps"]),
        metrics,
        category=str(doc.get("category") or ""),
        prompt=prompt,
        rendered=rendered,
        question=next((doc[name] for name in QUESTION_FIELDS if isinstance(doc.get(name), str)), ""),
        file=file,
        later_turns=_later_turns(row.get("arguments")),
    )


def _later_turns(arguments: Any) -> tuple[str, ...]:
    """The list ``turns`` among the first request's generation settings; empty without one, or in another form."""
    first = arguments.get("gen_args_0") if isinstance(arguments, dict) else None
    settings = first.get("arg_1") if isinstance(first, dict) else None
    turns = settings.get("turns") if isinstance(settings, dict) else None
    return tuple(turns) if isinstance(turns, list) and all(isinstance(turn, str) for turn in turns) else ()


def _prompt(arguments: Any) -> tuple[str, str]:
    """The context of the first request and its rendered prompt; "" for what was not logged, or in another form.

    ``--model aft`` logs the rendered prompt, and the messages of the context beside it.
    """
    first = arguments.get("gen_args_0") if isinstance(arguments, dict) else None
    if not isinstance(first, dict):
        return "", ""
    beside = next((value for value in first.values() if isinstance(value, dict) and "messages" in value), {})
    prompt = str(first.get("arg_0", ""))
    try:
        messages = [{"role": str(turn["role"]), "content": str(turn["content"])} for turn in beside["messages"]]
        return ChatContext.of(messages, messages[-1]["role"] != "assistant"), prompt
    except (KeyError, TypeError, IndexError):
        return prompt, ""
