"""Small tasks in groups: nested and weighted by size, counted alike, and without a score."""

from __future__ import annotations

import json
from pathlib import Path

from lm_eval_aft.core.config import AFTConfig
from lm_eval_aft.core.prompts import Template
from lm_eval_aft.core.records import Request
from lm_eval_aft.engines.scripted import ScriptedEngine
from lm_eval_aft.model import AFTLM
from lm_eval_aft.storage.draft_store import NoStore

SIZES = {"school_maths": 4, "school_physics": 8, "school_art": 2}
GROUPS = {
    # name: members, and whether each question counts once; None is no score
    "school_sciences": (["school_maths", "school_physics"], True),
    "school": (["school_sciences", "school_art"], True),
    "school_alike": (["school_maths", "school_physics", "school_art"], False),
    "school_plain": (["school_maths", "school_art"], None),
}


def write_group_tasks(folder: Path) -> Path:
    """Write tasks and groups as YAML files. Returns their folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for task, size in SIZES.items():
        data = folder / f"{task}.jsonl"
        rows = [{"question": f"{task} {number}", "answer": f"n{number}"} for number in range(size)]
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        config = {
            "task": task,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(data)}},
            "test_split": "test",
            "output_type": "generate_until",
            "doc_to_text": "{{question}}",
            "doc_to_target": "{{answer}}",
            "generation_kwargs": {"until": [], "do_sample": False, "temperature": 0.0, "max_gen_toks": 8},
            "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
            "metadata": {"version": 1.0},
        }
        # JSON is YAML too.
        (folder / f"{task}.yaml").write_text(json.dumps(config))
    for group, (members, by_size) in GROUPS.items():
        scores = [{"metric": "exact_match", "aggregation": "mean", "weight_by_size": by_size}]
        config = {"group": group, "task": members, "metadata": {"version": 1.0}}
        config |= {} if by_size is None else {"aggregate_metric_list": scores}
        (folder / f"{group}.yaml").write_text(json.dumps(config))
    return folder


def pupil(right: int, name: str, record: Path | None = None, **settings: object) -> AFTLM:
    """A model that answers the first questions of each task, as many as ``right``."""

    def answer(request: Request) -> str:
        number = int(request.prompt.chat.messages[-1].content.split()[-1])
        return f"n{number}" if number < right else "I do not know"

    chosen = {"k": 1, "layers": 0, **settings}
    config = AFTConfig(engine="scripted", record=str(record) if record else None, **chosen)
    return AFTLM.around(ScriptedEngine(answer), config, Template.load(None), NoStore(), name)
