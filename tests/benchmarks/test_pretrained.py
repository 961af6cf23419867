"""The stages of the comparison on a pretrained model, with the commands recorded, and its problems."""

from __future__ import annotations

import json
import sys
from itertools import islice

import pytest

from lm_eval_aft.bundled.arith import Problem
from lm_eval_aft.core.errors import ConfigError
from lm_eval_aft.core.jsonl import read_jsonl, write_jsonl


@pytest.fixture
def stages(script, monkeypatch, tmp_path):
    """A function that runs stages, and returns their commands instead of running them."""
    pretrained, commands = script("pretrained"), []
    monkeypatch.setattr(pretrained.Comparison, "command", lambda self, *words: commands.append(list(map(str, words))))

    def run(*words: str) -> list[list[str]]:
        commands.clear()
        monkeypatch.setattr(sys, "argv", ["pretrained.py", "some/model", str(tmp_path), "--size", "tiny", *words])
        pretrained.main()
        return list(commands)

    return run


def test_problems_of_arith_are_in_words_solved_by_their_solution_and_disjoint(script):
    problems = script("pretrained_problems")
    rows = {split: list(islice(problems.rows("arith", split, 3, "", 0), 50)) for split in ("train", "validation")}
    for split, drawn in rows.items():
        assert all(problems.solves(row["sft_target"], row) for row in drawn)
        assert not any(problems.solves(row["sft_target"] + " ; 1 + 1 = 2", row) for row in drawn)
        assert {Problem.read(row["question"]).split for row in drawn} == {split}
    first = rows["train"][0]
    assert first["question"] == "11 13 17 make 7"
    assert first["query"] == "Use each of the numbers 11, 13 and 17 once, with +, - and *, to make 7."
    assert first["sft_target"] == "11 + 13 = 24 ; 24 - 17 = 7"


def test_few_problems_end(script):
    """Two numbers give fewer problems than one may want."""
    assert 400 < len(list(script("pretrained_problems").rows("arith", "train", 2, "", 0))) < 1000


def test_constraints_are_checked_by_the_checkers_of_lm_eval(script, punkt_tables):
    problems = script("pretrained_problems")
    rows = list(islice(problems.rows("ifeval", "train", 3, "", 0), 200))
    assert len({row["query"] for row in rows}) == 200
    (row, *_) = (row for row in rows if row["doc"]["instruction_id_list"] == ["punctuation:no_comma"])
    assert "commas" in row["query"]
    assert problems.follows("No comma here.", row)
    assert not problems.follows("Well, one here.", row)


def test_what_grades_constraints_is_looked_for_before_drafts(stages, monkeypatch, tmp_path):
    nltk = pytest.importorskip("nltk", reason="needs the extra ifeval")
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    monkeypatch.setattr(nltk, "download", lambda name, quiet: None)
    with pytest.raises(ConfigError, match="without NLTK's punkt_tab"):
        stages("--problems", "ifeval", "--stage", "queries")


def test_rows_of_gsm8k_ask_as_the_task_does(script, tmp_path):
    doc = {"question": "2 + 3?", "answer": "It is 2 + 3 = <<2+3=5>>5.\n#### 5"}
    write_jsonl(tmp_path / "train.jsonl", [doc])
    (row,) = script("pretrained_problems").rows("gsm8k", "train", 3, str(tmp_path / "train.jsonl"), 0)
    assert row["query"].startswith("2 + 3?\n")
    assert (row["gold"], row["sft_target"]) == ("5", "It is 2 + 3 = 5.\nThe answer is 5.")


def test_each_stage_starts_from_the_files_of_the_one_before(stages, tmp_path):
    assert stages("--stage", "queries") == []
    assert [len(read_jsonl(tmp_path / f"{name}.jsonl")) for name in ("warm", "queries", "validation")] == [4, 4, 2]
    task = json.loads((tmp_path / "tasks" / "pretrained_arith.yaml").read_text())
    assert task["dataset_kwargs"]["data_files"]["test"] == str(tmp_path / "validation.jsonl")

    (base,) = stages("--stage", "base")
    assert base == ["aft", "train", "sft", "--config", str(tmp_path / "base.yaml"), "--merge"]
    settings = json.loads((tmp_path / "base.yaml").read_text())
    assert (settings["model"], settings["data"]) == ("some/model", str(tmp_path / "warm.jsonl"))

    (drafts,) = stages("--stage", "drafts", "--set", "drafts=3", "--bf16")
    source, out = (str(tmp_path / f"{name}.jsonl") for name in ("queries", "drafts"))
    assert drafts[:7] == ["aft", "data", "drafts", source, out, "-n", "3"]
    assert f"pretrained={tmp_path}/base/merged,max_gen_toks=40,temperature=0.7,seed=0,dtype=bfloat16" in drafts


def test_a_target_is_a_right_draft_or_else_the_solution(stages, tmp_path):
    rows = [
        {"query": "a", "question": "2 3 make 5", "drafts": ["2 * 3 = 6", "3 + 2 = 5"], "sft_target": "2 + 3 = 5"},
        {"query": "b", "question": "2 3 make 6", "drafts": ["2 + 3 = 6", "3 + 2 = 5"], "sft_target": "2 * 3 = 6"},
    ]
    write_jsonl(tmp_path / "drafts.jsonl", rows)
    stages("--stage", "targets")
    assert [row["target"] for row in read_jsonl(tmp_path / "targets.jsonl")] == ["3 + 2 = 5", "2 * 3 = 6"]


def test_hidden_targets_are_no_draft_of_their_row(stages, tmp_path, capsys):
    """A row with too few other drafts is left out, and counted."""
    drafts = ["2 * 3 = 6", "3 + 2 = 5", "2 - 3 = -1"]
    rows = [{"query": "a", "question": "2 3 make 5", "drafts": drafts}]
    rows += [{"query": "b", "question": "2 3 make 6", "drafts": [*drafts[1:], "3 + 2 = 5"], "sft_target": "2 * 3 = 6"}]
    rows += [{"query": "c", "question": "2 3 make 5", "drafts": ["3 + 2 = 5", "3 + 2  = 5", "2 - 3 = -1"]}]
    write_jsonl(tmp_path / "drafts.jsonl", rows)
    stages("--stage", "targets", "--set", "hidden=1", "--set", "k=2")
    first, second = read_jsonl(tmp_path / "targets.jsonl")
    assert (first["target"], first["drafts"], first["right"]) == ("3 + 2 = 5", [drafts[0], drafts[2]], [False, False])
    assert (second["target"], len(second["drafts"])) == ("2 * 3 = 6", 3)
    assert "left out: 1 rows" in capsys.readouterr().out


def test_systems_that_are_not_trained_are_left_out(stages, tmp_path):
    for name in ("base", "sft"):
        (tmp_path / name / "merged").mkdir(parents=True)
    commands = stages("--stage", "evaluate")
    settings = [command[command.index("--model_args") + 1] for command in commands]
    assert len(settings) == 9
    assert f"pretrained={tmp_path}/sft/merged,k=2,layers=2,draft_max_tokens=40,final_max_tokens=40" in settings[-2]
    assert f"pretrained={tmp_path}/base/merged,k=3,subset=1,layers=2,strategy=rsa" in settings[-1]
    assert sum("strategy=majority,k=5" in each for each in settings) == 2
    assert all(["--include_path", str(tmp_path / "tasks")] == command[-4:-2] for command in commands)


def test_only_arith_has_a_form_to_learn_first(stages, tmp_path, punkt_tables):
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "Write a poem."}\n')
    words = ("--problems", "ifeval", "--questions", str(tmp_path / "prompts.jsonl"))
    *overlaps, drafts = stages(*words, "--stage", "queries", "base", "drafts")
    assert [overlap[3] for overlap in overlaps] == [str(tmp_path / f"{name}.jsonl") for name in ("queries", "requests")]
    assert overlaps[0][-3:] == [str(tmp_path / "prompts.jsonl"), "--field", "prompt"]
    assert all(row["query"].startswith("Write ") for row in read_jsonl(tmp_path / "requests.jsonl"))
    assert "pretrained=some/model,max_gen_toks=160,temperature=0.7,seed=0" in drafts
    assert {command[2] for command in stages(*words, "--stage", "evaluate")} == {"aft"}


def test_a_number_that_the_size_does_not_have_is_refused(stages):
    with pytest.raises(SystemExit, match="--set quick=1 is not allowed: the numbers are warm, queries"):
        stages("--set", "quick=1")


def test_gsm8k_needs_its_training_questions(stages):
    with pytest.raises(SystemExit, match="--problems gsm8k needs --train"):
        stages("--problems", "gsm8k", "--stage", "queries")
