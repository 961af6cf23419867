"""Files of the aft data commands: inputs that every command refuses, and cards."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from helpers.data_rows import SCRIPTED, aft_data, drafted, queries, write
from lm_eval_aft.core.errors import AFTError, ConfigError, RecordError
from lm_eval_aft.core.files import file_digest
from lm_eval_aft.core.jsonl import read_jsonl


def test_a_stream_is_refused_as_it_would_be_read_twice(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for command in (("import",), ("select", "--k", 2)):
        with pytest.raises(RecordError, match="pipe is a stream, not a file: write it to a file first"):
            aft_data(command[0], tmp_path / "pipe", tmp_path / "out.jsonl", *command[1:])


def test_a_card_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "out.jsonl.card.json").mkdir()
    with pytest.raises(AFTError, match=r"out\.jsonl\.card\.json cannot be written"):
        aft_data("import", write(tmp_path / "in.jsonl", queries()), tmp_path / "out.jsonl")


def test_the_card_names_inputs_by_path_and_digests_them_as_they_were(tmp_path):
    (tmp_path / "a").mkdir()
    mine, other = write(tmp_path / "d.jsonl", drafted(2)), write(tmp_path / "a" / "d.jsonl", drafted(2))
    before = {path: file_digest(path) for path in (mine, other)}
    for source in before:
        write(Path(source), [{**row, "scores": [1.0, 2.0, 3.0, 4.0]} for row in drafted(2)])
    scored = {path: file_digest(path) for path in before}
    aft_data("select", mine, mine, "--match", other, "--k", 1)
    assert json.loads(Path(f"{mine}.card.json").read_text())["inputs"] == scored
    assert file_digest(mine) != scored[mine]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"drafts": ["a", None]}, "drafts of .* row 1 must be a list of texts"),
        ({"drafts": "abcdef"}, "drafts of .* row 1 must be a list of texts"),
        ({"target": 5}, "target of .* row 1 is 5: it must be a text"),
        ({"scores": ["x", 1.0]}, "scores of .* row 1 must be a list with one finite number or null for each of its 2"),
        ({"scores": [float("nan"), 1.0]}, "scores of .* row 1 must be a list with one finite number"),
        ({"scores": [1.0]}, "scores of .* row 1 must be a list"),
        ({"models": "gpt-4"}, "models of .* row 1 must be a list"),
        ({"right": ["yes", "no"]}, "right of .* row 1 must be a list with one true or false"),
        ({"query": None}, "query of .* row 1 must be a text"),
        ({"query": "\ud83d"}, "line 1 cannot be written as UTF-8"),
    ],
)
def test_every_command_refuses_a_wrong_row_in_one_sentence(tmp_path, changes, message):
    source = write(tmp_path / "d.jsonl", [{"query": "q", "gold": "1", "drafts": ["1", "2"], **changes}])
    out = tmp_path / "out.jsonl"
    for command in (
        ("stats", source),
        ("drafts", source, out, "--model_args", SCRIPTED),
        ("select", source, out, "--k", 1, "--verifier", "exact:"),
        ("aggregate", source, out, "--k", 2, "--verifier", "exact:", "--model_args", SCRIPTED),
    ):
        with pytest.raises(AFTError, match=message):
            aft_data(*command)


def test_empty_columns_are_no_lists_about_drafts(tmp_path):
    empty = {"scores": [], "right": None, "ends": None, "models": None}
    source = write(tmp_path / "d.jsonl", [{"query": "q", "gold": "1", "drafts": ["2", "1", "0"], **empty}])
    out = tmp_path / "out.jsonl"
    aft_data("stats", source)
    aft_data("select", source, out, "--k", 2, "--verifier", "exact:")
    (row,) = read_jsonl(out)
    assert (row["drafts"], row["right"], row["scores"]) == (["2", "1"], [False, True], [])
    aft_data("aggregate", source, out, "--k", 2, "--model_args", SCRIPTED)


def test_sources_follow_their_drafts(tmp_path):
    rows = [{"query": "q", "drafts": ["bad", "good", "best"], "scores": [0, 1, 2], "sources": [0, 2], "target": "t"}]
    source, out = write(tmp_path / "d.jsonl", rows), tmp_path / "s.jsonl"
    aft_data("select", source, out, "--k", 2)
    (row,) = read_jsonl(out)
    assert (row["drafts"], row["sources"]) == (["good", "best"], [1])
    for command in (("drafts", source, out, "-n", 1), ("aggregate", source, out, "--k", 2)):
        # These commands write other drafts or another target.
        aft_data(*command, "--model_args", f"{SCRIPTED},cache=none")
        assert "sources" not in read_jsonl(out)[0]


@pytest.mark.parametrize(
    "argument",
    [
        "final_temperature=0",
        "strategy=majority",
        "probe=shuffle",
        "drafts_from=x",
        "think_end_token=x",
        "max_generations=5",
        "shard=1/2",
        "stop_when=window:2",
        "subset=2",
        "aggregator={'pretrained': 'x'}",
    ],
)
def test_arguments_without_meaning_for_data_are_refused(tmp_path, argument):
    source = write(tmp_path / "d.jsonl", drafted(1))
    for command in (("drafts",), ("aggregate", "--k", 2)):
        with pytest.raises(ConfigError, match=f"--model_args {argument} has no meaning here: leave it out"):
            aft_data(*command, source, tmp_path / "o.jsonl", "--model_args", f"{SCRIPTED},{argument}")
