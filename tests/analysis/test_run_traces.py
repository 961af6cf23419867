"""A run finds its own traces in a folder that several runs share: by everything that changed their prompts."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.graded_tasks import graded_task
from helpers.lm_eval_runs import run_lm_eval
from lm_eval_aft.analysis.runs import read_entries, stored_traces
from lm_eval_aft.analysis.votes import count_votes
from lm_eval_aft.storage.traces import trace_files

pytestmark = pytest.mark.usefixtures("quick_lm_eval")
TASK = graded_task(fewshot_split="test", fewshot_config={"sampler": "first_n", "doc_to_target": "is {{answer}}"})
# name: options of lm-eval, and model arguments
RUNS = {
    "plain": ({}, {}),
    "system": ({"system_instruction": "Be brief."}, {}),
    "other": ({"system_instruction": "Be long."}, {}),
    "shots": ({"num_fewshot": 1, "fewshot_as_multiturn": False}, {}),
    "turns": ({"num_fewshot": 1, "fewshot_as_multiturn": True}, {}),
    "length": ({}, {"max_length": 512}),
    "bare": ({"apply_chat_template": False}, {}),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs")
    for name, (options, more) in RUNS.items():
        arguments = {"engine": "scripted", "k": 2, "layers": 1, "record": str(out / "traces"), **more}
        run_lm_eval(out / name, [TASK], options=options, **arguments)
    return out


def chats(folder: Path, name: str) -> set[tuple[tuple[str, str], ...]]:
    (entry,) = read_entries([folder / name])
    traces = list(entry.traces())
    assert len(traces) == 3
    return {tuple((message.role, message.content) for message in each.question.chat.messages) for each in traces}


def test_each_run_writes_files_of_its_own(folder: Path):
    assert len(trace_files(folder / "traces")) == len(RUNS)


def test_each_run_reads_its_own_traces(folder: Path):
    assert (("user", "q0"),) in chats(folder, "plain")
    assert (("user", "q0"),) in chats(folder, "length")
    assert (("system", "Be brief."), ("user", "q0")) in chats(folder, "system")
    assert (("system", "Be long."), ("user", "q0")) in chats(folder, "other")
    assert all(len(chat) == 1 and len(chat[0][1]) > 2 for chat in chats(folder, "shots"))
    assert all(len(chat) == 3 for chat in chats(folder, "turns"))


def test_votes_of_the_folder_keep_the_runs_apart(folder: Path):
    traces = list(stored_traces(folder / "traces", []))
    assert len(count_votes(traces, [])) == len(RUNS)


def test_an_ordinary_run_has_no_further_settings(folder: Path):
    plain, length = read_entries([folder / "plain", folder / "length"])
    assert not {"prompting", "engine_args"} & set(plain.run.settings)
    assert length.run.settings["engine_args"] == {"max_length": 512}
    assert length.label == "scripted (2, 1) max_length=512"
