"""``aft report --model-card``: a Markdown block for a checkpoint's card with table, settings and commands.

Reads what the results files say; a path on somebody's disk is no part of a card, so folders become their last name.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lm_eval_aft.analysis.report.leaderboard import RunEntry
from lm_eval_aft.analysis.report.page.data import Table
from lm_eval_aft.analysis.report.tables import as_markdown, escaped, visible
from lm_eval_aft.core.secrets import is_secret
from lm_eval_aft.storage.results import EvalRun

SHOWN = ("temperature", "top_p", "top_k", "draft_max_tokens", "final_temperature", "final_max_tokens", "seed")
PATHS = ("record", "cache", "template", "tokenizer", "lora_local_path", "peft")


def model_card(entries: Sequence[RunEntry], table: Table) -> str:
    """The block: how it was evaluated, the table, and one command a run."""
    lines = [
        "## Evaluation",
        "",
        "Evaluated with [lm-evaluation-harness](https://github.com/EleutherAI/lm-evaluation-harness) and lm_eval_aft; "
        "k texts a layer, the drafts first, then `layers` aggregation passes: k·layers + 1 texts a question.",
        "",
        as_markdown(table),
        "",
        "### Settings",
        "",
        *(f"- {escaped(line)}" for line in dict.fromkeys(_settings(entry) for entry in entries)),
        "",
        "### Commands",
        "",
        "```bash",
        *(_command(entry.run) for entry in entries),
        "```",
    ]
    return "\n".join(lines)


def _settings(entry: RunEntry) -> str:
    run = entry.run
    host = f"lm_eval {run.host_version}" if run.host_version else "lm_eval"
    if not run.settings:
        return f"{entry.label}: {host}, --model {run.config.get('model', '?')}"
    settings = run.settings
    said = [f"{name} {settings[name]}" for name in SHOWN if settings.get(name) is not None]
    template = settings.get("template") or {}
    said.append(f"template {Path(str(template.get('name'))).name} (sha256 {str(template.get('sha256'))[:12]})")
    return f"{entry.label}: lm_eval_aft {settings.get('version')}, {host}, engine {run.engine}, {', '.join(said)}"


def _command(run: EvalRun) -> str:
    """The command that made a run, as far as its results file knows it."""
    words = ["lm_eval", "--model", str(run.config.get("model", "aft")), "--model_args", _model_args(run)]
    words += ["--tasks", ",".join(run.tasks)]
    words += [word for option in _options(run) for word in option]
    return visible(shlex.join(words))


def _model_args(run: EvalRun) -> str:
    given = run.config.get("model_args")
    if not isinstance(given, Mapping):
        pairs = (part.partition("=") for part in str(given or "").split(","))
        return ",".join(f"{name}{sign}{_shown(name, value)}" for name, sign, value in pairs)
    shown = {name: _shown(name, value) for name, value in given.items() if name not in ("record", "cache")}
    if any(isinstance(value, Mapping) for value in shown.values()):  # lm-eval takes it as one JSON object only
        return json.dumps(shown)
    return ",".join(f"{name}={value}" for name, value in shown.items())


def _shown(name: str, value: Any) -> Any:
    if is_secret(name):
        return "..."
    if isinstance(value, Mapping):
        return {str(key): _shown(str(key), part) for key, part in value.items()}
    looks_local = isinstance(value, str) and Path(value).is_absolute()
    return Path(value).name if looks_local or name in PATHS else value


def _options(run: EvalRun) -> Iterator[tuple[str, ...]]:
    put = run.conditions.values()
    shots = {conditions.shots for conditions in put}
    if len(shots) == 1 and (count := shots.pop()) is not None:  # 0 too: a task's own file may say 5
        yield "--num_fewshot", str(count)
    if run.config.get("limit") is not None:
        yield "--limit", f"{run.config['limit']:g}"
    if gen_kwargs := run.config.get("gen_kwargs"):
        yield "--gen_kwargs", _pairs(gen_kwargs)
    if run.config.get("batch_size"):
        yield "--batch_size", str(run.config["batch_size"])
    if run.system_instruction:
        yield "--system_instruction", run.system_instruction
    if any(conditions.prompt == "chat" for conditions in put):
        yield ("--apply_chat_template",)
        if any(conditions.shots for conditions in put):
            yield "--fewshot_as_multiturn", str(any(conditions.multiturn for conditions in put)).lower()


def _pairs(value: Any) -> str:
    return ",".join(f"{name}={each}" for name, each in value.items()) if isinstance(value, Mapping) else str(value)
