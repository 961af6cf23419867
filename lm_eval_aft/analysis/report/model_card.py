"""A checkpoint's model card: the scores as ``model-index``, and a Markdown block with table, settings and commands.

A path on one machine's disk is of no use in a card, so the block names the last part of a folder only.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lm_eval_aft.analysis.comparison import ComparedRuns, compare_all
from lm_eval_aft.analysis.report.comparison_tables import comparison_sentences
from lm_eval_aft.analysis.report.hub_results import front_matter
from lm_eval_aft.analysis.report.tables import Table, as_markdown, escaped
from lm_eval_aft.analysis.runs import RunEntry, sampling_of
from lm_eval_aft.core.records import Sampling
from lm_eval_aft.core.secrets import public
from lm_eval_aft.core.strategies import SELECTIONS
from lm_eval_aft.core.terminal import visible
from lm_eval_aft.storage.results import EvalRun

DRAFT_SETTINGS = ("temperature", "top_p", "top_k", "draft_max_tokens")
PATHS = ("record", "cache", "template", "tokenizer", "lora_local_path", "peft")


def model_card(
    entries: Sequence[RunEntry], table: Table, baseline: Path | None = None, further: Sequence[Table] = ()
) -> str:
    """The card: ``model-index``, how the model was evaluated, the table, and one command for each run.

    Args:
        entries: The runs.
        table: The leaderboard.
        baseline: The run with which the others are compared; None compares none.
        further: Tables below the leaderboard.

    Raises:
        ConfigError: ``baseline`` is none of the runs.
        RecordError: A run cannot be paired with ``baseline``.
    """
    compared = compare_all(entries, baseline) if baseline else ComparedRuns(())
    sentences = (*comparison_sentences(compared.comparisons), *compared.left_out)
    lines = [
        front_matter(entries),
        "",
        "## Evaluation",
        "",
        "Evaluated with [lm-evaluation-harness](https://github.com/EleutherAI/lm-evaluation-harness) and lm_eval_aft: "
        "k drafts, then `layers` aggregation layers, k·layers + 1 generations a question.",
        "",
        as_markdown(table),
        "",
        *(line for each in further for line in (as_markdown(each), "")),
        *(["### Comparison", "", *(f"- {escaped(line)}" for line in sentences), ""] if sentences else []),
        "### Settings",
        "",
        *(f"- {escaped(line)}" for line in dict.fromkeys(settings_line(entry) for entry in entries)),
        "",
        "### Commands",
        "",
        "```bash",
        *(command(entry.run) for entry in entries),
        "```",
    ]
    return "\n".join(lines)


def settings_line(entry: RunEntry) -> str:
    """The versions, the engine, the sampling, the seed and the template of a run, in one line."""
    run = entry.run
    host = f"lm_eval {run.host_version}" if run.host_version else "lm_eval"
    if not run.settings:
        return f"{entry.label}: {host}, --model {run.config.get('model', '?')}"
    settings = run.settings
    template = settings.get("template") or {}
    values = [*_sampling(run), *([] if settings.get("seed") is None else [f"seed {settings['seed']}"])]
    values.append(f"template {Path(str(template.get('name'))).name} (sha256 {str(template.get('sha256'))[:12]})")
    return f"{entry.label}: lm_eval_aft {settings.get('version')}, {host}, engine {run.engine}, {', '.join(values)}"


def _sampling(run: EvalRun) -> Iterator[str]:
    """How drafts and answers were sampled. Each task, and --gen_kwargs, may say something else of the answer."""
    settings = run.settings or {}
    if run.layers:
        names = DRAFT_SETTINGS if settings.get("temperature") else ("temperature", "draft_max_tokens")
        values = [f"{name} {settings[name]}" for name in names if settings.get(name) is not None]
        yield f"drafts with {' '.join(values)}"
    if settings.get("strategy") in SELECTIONS:
        return
    answers: dict[str, list[str]] = {}
    for task, conditions in run.conditions.items():
        if conditions.generates and conditions.generation:
            _, final = sampling_of(run, conditions.generation)
            answers.setdefault(_described(final), []).append(task)
    for sampling, tasks in answers.items():
        yield f"{'answers' if len(answers) == 1 else 'answers of ' + ' '.join(tasks)} with {sampling}"


def _described(sampling: Sampling) -> str:
    """A sampling in the names of the model arguments. A greedy text depends on neither top_p nor top_k."""
    values = [f"temperature {sampling.temperature:g}"]
    if sampling.temperature:
        values += [f"top_p {sampling.top_p:g}"] + ([f"top_k {sampling.top_k}"] if sampling.top_k else [])
    return " ".join([*values, f"max_tokens {sampling.max_tokens}"])


def command(run: EvalRun) -> str:
    """The command that made a run, as far as its results file states it."""
    words = ["lm_eval", "--model", str(run.config.get("model", "aft")), "--model_args", _model_args(run)]
    words += ["--tasks", ",".join(_requested(run))]
    words += [word for option in _options(run) for word in option]
    return visible(shlex.join(words))


def _requested(run: EvalRun) -> list[str]:
    """The groups that are in no other group, and the tasks that are in none."""
    inner = {member for group in run.groups.values() for member in group.members}
    return [name for name in (*run.groups, *run.tasks) if name not in inner]


def _model_args(run: EvalRun) -> str:
    model_args = run.config.get("model_args")
    if not isinstance(model_args, Mapping):
        pairs = (part.partition("=") for part in str(model_args or "").split(","))
        return ",".join(f"{name}{sign}{_public(name, value)}" for name, sign, value in pairs)
    values = {name: _public(name, value) for name, value in model_args.items() if name not in ("record", "cache")}
    # lm-eval accepts a mapping or a list inside --model_args only if the whole is one JSON object.
    if any(isinstance(value, Mapping | list) for value in values.values()):
        return json.dumps(values)
    return ",".join(f"{name}={value}" for name, value in values.items())


def _public(name: str, value: Any) -> Any:
    """An argument without secrets, and without the folders above a file."""
    value = public(name, value)
    if isinstance(value, Mapping):
        return {key: _public(key, part) for key, part in value.items()}
    if isinstance(value, list):
        return [_public(name, part) for part in value]
    absolute = isinstance(value, str) and Path(value).is_absolute()
    return Path(value).name if absolute or name in PATHS else value


def _options(run: EvalRun) -> Iterator[tuple[str, ...]]:
    conditions = run.conditions.values()
    shots = {each.shots for each in conditions}
    # Zero shots are named too, because the task's own file may set another number.
    if len(shots) == 1 and (count := shots.pop()) is not None:
        yield "--num_fewshot", str(count)
    if (number := run.config.get("limit")) is not None:
        yield "--limit", f"{number:g}" if isinstance(number, int | float) else str(number)
    if gen_kwargs := run.config.get("gen_kwargs"):
        yield "--gen_kwargs", _pairs(gen_kwargs)
    if run.config.get("batch_size"):
        yield "--batch_size", str(run.config["batch_size"])
    if run.system_instruction:
        yield "--system_instruction", run.system_instruction
    if any(each.prompt == "chat" for each in conditions):
        yield ("--apply_chat_template",)
        if any(each.shots for each in conditions):
            yield "--fewshot_as_multiturn", str(any(each.multiturn for each in conditions)).lower()


def _pairs(value: Any) -> str:
    return ",".join(f"{name}={each}" for name, each in value.items()) if isinstance(value, Mapping) else str(value)
