"""``aft plan``: what a run would generate."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from lm_eval_aft.cli import aft, main


def plan(*words: str):
    return CliRunner().invoke(aft, ["plan", *words])


@pytest.mark.parametrize(
    ("model_args", "layers", "sentence"),
    [
        ("", [("drafts", 5, 0), ("layer 1", 5, 5), ("answer", 1, 5)], "11 generations a question."),
        ("layers=0", [("answer", 1, 0)], "1 generation a question."),
        ("strategy=majority,k=11", [("drafts", 11, 0), ("answer", 0, 11)], "11 generations a question."),
        (
            "k=32/4,subset=3,layers=3",
            [("drafts", 32, 0), ("layer 1", 4, 3), ("layer 2", 4, 3), ("answer", 1, 3)],
            "41 generations a question.",
        ),
        (
            "k=8,stop_when=window:2,vote_regex=x",
            [("drafts", 8, 0), ("layer 1", 8, 8), ("answer", 1, 8)],
            "At most 17 generations a question.",
        ),
        ("mcq=drafts,k=3", [("drafts", 3, 0), ("layer 1", 3, 3), ("answer", 0, 3)], "6 generations a question."),
    ],
)
def test_each_layer_has_a_row(model_args, layers, sentence):
    result = plan(model_args, "--format", "json")
    assert result.exit_code == 0, result.output
    (table,) = json.loads(result.output)
    assert [(row["layer"]["text"], row["texts"]["value"], row["reads"]["value"]) for row in table["rows"]] == layers
    assert sentence in table["notes"]


def test_what_rsa_costs_is_said_before_it_starts():
    assert "160 generations a question" in " ".join(plan("--help").output.split())
    output = plan("strategy=rsa", "--questions", "1319").output
    assert "At most 161 generations a question." in output
    assert "At most 212,359 generations of 1,319 questions." in output


def test_bad_arguments_are_one_sentence(capfd):
    with pytest.raises(SystemExit) as stopped:
        main(["plan", "k=3,subset=4"])
    assert stopped.value.code == 2
    assert "subset=4 is more than the 3 texts that a layer reads" in capfd.readouterr().err
