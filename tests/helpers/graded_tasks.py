"""Small tasks of every kind of filter, and a model whose texts are given."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from helpers.lm_eval_version import IS_0_5
from lm_eval_aft.core.config import AFTConfig
from lm_eval_aft.core.engine import HostArgs
from lm_eval_aft.core.prompts import Template
from lm_eval_aft.core.records import Request
from lm_eval_aft.engines.scripted import ScriptedEngine
from lm_eval_aft.inference.selection import load_selector
from lm_eval_aft.model import AFTLM
from lm_eval_aft.storage.draft_store import NoStore

DOCUMENTS = [{"question": f"q{number}", "answer": str(number)} for number in range(3)]
TAKE_FIRST = {"function": "take_first"}
STRICT = {"function": "regex", "regex_pattern": "#### ([0-9]+)"}
FLEXIBLE = {"function": "regex", "regex_pattern": "([0-9]+)", "group_select": -1}
REGEX = [
    {"name": "strict-match", "filter": [STRICT, TAKE_FIRST]},
    {"name": "flexible-extract", "filter": [FLEXIBLE, TAKE_FIRST]},
]


def dataset(**_: Any) -> Any:
    """Three documents."""
    from datasets import Dataset, DatasetDict

    return DatasetDict({"test": Dataset.from_list(DOCUMENTS)})


def equals_answer(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """What the metric exact_match of lm-eval 0.4 gives."""
    return {"exact_match": float(results[0] == doc["answer"])}


def graded_task(name: str = "numbers", **changes: Any) -> dict[str, Any]:
    """The configuration of a task of three questions, whose answers two regexes find."""
    return {
        "task": name,
        "custom_dataset": dataset,
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "question",
        "doc_to_target": "answer",
        "generation_kwargs": {"until": [], "max_gen_toks": 8},
        "filter_list": REGEX,
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        **({"process_results": equals_answer} if IS_0_5 else {}),
        **changes,
    }


def write_task(
    folder: Path, name: str = "numbers", documents: list[dict[str, str]] = DOCUMENTS, **changes: Any
) -> Path:
    """Write the task of ``graded_task`` as YAML, with its data and its functions beside it. Returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(document) + "\n" for document in documents))
    config = graded_task(name, dataset_path="json", dataset_kwargs={"data_files": {"test": str(data)}}, **changes)
    del config["custom_dataset"]
    functions = {key: value for key, value in config.items() if callable(value)}
    # JSON is YAML too.
    text = json.dumps({key: f"!function {name}.{key}" if key in functions else value for key, value in config.items()})
    for key, function in functions.items():
        text = text.replace(f'"!function {name}.{key}"', f"!function {name}.{key}")
        (folder / f"{name}.py").write_text(f"from {function.__module__} import {function.__name__} as {key}\n")
    (folder / f"{name}.yaml").write_text(text)
    return folder


def texts(*written: str) -> Callable[[Request], str]:
    """A script that gives these texts in turn for each prompt."""
    counts: dict[str, int] = {}

    def script(request: Request) -> str:
        number = counts[request.prompt.digest] = counts.get(request.prompt.digest, -1) + 1
        return written[number % len(written)]

    return script


def scripted_model(script: Callable[[Request], str], **settings: Any) -> AFTLM:
    """A model whose texts a function writes."""
    config, store = AFTConfig(**settings), NoStore()
    selector = load_selector(config, store, HostArgs(1, None, "cpu"))
    return AFTLM.around(ScriptedEngine(script, 8192), config, Template.load(None), store, "scripted", selector)
