"""Shards answer parts of the questions, have no score, and together are the whole run."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from helpers.graded_tasks import graded_task, write_task
from helpers.instances import make_instance
from helpers.lm_eval_runs import run_lm_eval
from lm_eval_aft.core.config import AFTConfig
from lm_eval_aft.core.errors import ConfigError, ShardDone
from lm_eval_aft.core.question_shards import Shard
from lm_eval_aft.model import AFTLM
from lm_eval_aft.storage.merging import merge_stores
from lm_eval_aft.storage.traces import read_traces

pytestmark = pytest.mark.usefixtures("quick_lm_eval")
NUMBERS = [{"question": f"q{number}", "answer": str(number)} for number in range(10)]
SETTINGS: dict[str, Any] = {"k": 2, "layers": 1, "dtype": "float32", "max_gen_toks": 8}


def documents(**_: Any) -> Any:
    from datasets import Dataset, DatasetDict

    return DatasetDict({"test": Dataset.from_list(NUMBERS)})


TASK = graded_task(custom_dataset=documents)
CHOICE = {
    **{name: TASK[name] for name in ("custom_dataset", "test_split", "doc_to_text")},
    "task": "choices",
    "output_type": "multiple_choice",
    "doc_to_choice": ["yes", "no"],
    "doc_to_target": 0,
    "metric_list": [{"metric": "acc"}],
}


def run_shard(folder: Path, number: int, count: int, *tasks: dict[str, Any], **settings: Any) -> str:
    """Run a shard with its store and traces in a folder of its own. Returns what it says at its end."""
    record = folder / f"shard{number}"
    with pytest.raises(ShardDone) as done:
        run_lm_eval(folder / "out", tasks or [TASK], record=str(record), shard=f"{number}/{count}", **settings)
    assert not (folder / "out").exists()
    return str(done.value)


def without_times(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The results and the samples of a run, without times, paths, and how much was generated now."""
    (file,) = folder.rglob("results_*.json")
    results = json.loads(file.read_text(encoding="utf-8"))
    for name in [name for name in results if "time" in name or name == "date"]:
        del results[name]
    del results["config"]["model_args"], results["config"]["aft"]["spent"]
    for task in results["configs"].values():
        del task["metadata"]
    (file,) = folder.rglob("samples_*.jsonl")
    return results, [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_shards_together_are_the_whole_run(tiny, tmp_path):
    settings = {"pretrained": tiny, **SETTINGS}
    run_lm_eval(tmp_path / "whole", [TASK], record=str(tmp_path / "traces"), **settings)
    sentences = [run_shard(tmp_path, number, 3, **settings) for number in (1, 2, 3)]
    parts = [{trace.question.doc_id for trace in read_traces(tmp_path / f"shard{number}")} for number in (1, 2, 3)]
    assert sorted(document for part in parts for document in part) == list(range(10))
    store = tmp_path / "shard2" / "drafts.sqlite"
    assert sentences[1] == (
        f"Shard 2/3 is done and has no score: {len(parts[1])} answers, {3 * len(parts[1])} finished generations are in "
        f"{store}. When all shards are done, join their stores with aft merge, and give the same command without "
        "shard= and with cache= the joined store."
    )
    merged = merge_stores([tmp_path / f"shard{number}" / "drafts.sqlite" for number in (1, 2, 3)], tmp_path / "all.sq")
    assert (merged.generations, merged.repeated, merged.conflicts) == (30, 0, 0)
    joined = run_lm_eval(
        tmp_path / "joined", [TASK], record=str(tmp_path / "r"), cache=str(tmp_path / "all.sq"), **settings
    )
    assert joined["config"]["aft"]["spent"]["generations"] == 0
    assert without_times(tmp_path / "joined") == without_times(tmp_path / "whole")


def test_a_document_stays_in_its_shard_whatever_the_order_and_the_limit(tmp_path):
    def answered(folder: Path, **options: Any) -> set[str]:
        with pytest.raises(ShardDone):
            run_lm_eval(
                folder, [TASK], options=options, engine="scripted", k=1, layers=0, record=str(folder), shard="1/2"
            )
        return {trace.question.doc_hash for trace in read_traces(folder)}

    every, first = answered(tmp_path / "all"), answered(tmp_path / "some", limit=5)
    assert 0 < len(first) < len(every) < 10
    assert first < every
    holds = [Shard(number, 4).holds("3f") for number in (1, 2, 3, 4)]
    # A document that moved to another shard would be generated twice, by shards of two versions.
    assert holds == [False, False, True, False]


def test_shards_that_share_a_store_need_no_merge(tmp_path):
    settings = {"engine": "scripted", "k": 3, "layers": 1, "strategy": "majority", "record": str(tmp_path / "traces")}
    for number in (1, 2):
        with pytest.raises(ShardDone):
            run_lm_eval(tmp_path / "out", [TASK], shard=f"{number}/2", **settings)
    joined = run_lm_eval(tmp_path / "joined", [TASK], **settings)
    assert joined["config"]["aft"]["spent"]["generations"] == 0
    assert joined["config"]["aft"]["usage"]["generations"] == 30


def test_a_shard_ends_after_the_last_kind_of_request(tiny, tmp_path):
    run_shard(tmp_path, 1, 2, CHOICE, TASK, pretrained=tiny, mcq="drafts", draft_max_tokens=8, **SETTINGS)
    tasks = [trace.question.task for trace in read_traces(tmp_path / "shard1")]
    assert set(tasks) == {"choices", "numbers"}
    assert len(tasks) < 20


def test_requests_that_generate_nothing_are_refused_before_a_text_is_generated(tmp_path):
    with pytest.raises(ConfigError, match="shard=1/2 splits what is generated, and the tasks have loglikelihood req"):
        run_lm_eval(tmp_path, [TASK, CHOICE], engine="scripted", record=str(tmp_path / "r"), shard="1/2")
    assert not list((tmp_path / "r").glob("*.jsonl"))


def test_a_shard_without_questions_ends_in_order(tmp_path):
    lm = AFTLM(engine="scripted", k=2, layers=1, cache=str(tmp_path / "s.sqlite"), shard="1/1000000")
    with pytest.raises(ShardDone, match="Shard 1/1000000 is done and has no score: 0 answers, 0 finished generations"):
        lm.generate_until([make_instance("generate_until", {"q": 1}, ("1+1?", {}))], disable_tqdm=True)


@pytest.mark.parametrize(
    "given", ["0/4", "5/4", "1/0", "0/0", "-1/4", "1", "one/four", "1/4/2", "1 / 4", "1.0/4", "", 0.25, 1, True, [1, 4]]
)
def test_what_is_no_shard_is_refused(given, tmp_path):
    with pytest.raises(ConfigError, match=r"^shard=.* is not allowed: give the number of this part, from 1, and the"):
        AFTConfig.split({"shard": given, "record": str(tmp_path)})


@pytest.mark.parametrize("store", [{}, {"cache": "none"}, {"record": "out", "cache": "none"}])
def test_a_shard_needs_a_store(store):
    with pytest.raises(ConfigError, match="shard=1/4 answers a part of the questions for another run: give record=DIR"):
        AFTConfig.split({"shard": "1/4", **store})


@pytest.mark.long
def test_lm_eval_ends_with_exit_code_0_and_no_score(warm, tmp_path):
    write_task(tmp_path / "tasks", documents=NUMBERS)
    words = "lm_eval --model aft --tasks numbers --include_path tasks --output_path out --model_args "
    words += "engine=scripted,k=2,layers=1,record=traces,shard=1/2"
    done = subprocess.run(
        [*warm.command, "-m", *words.split()],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1].startswith("Shard 1/2 is done and has no score: ")
    assert "exact_match" not in done.stdout
    assert not (tmp_path / "out").exists()
