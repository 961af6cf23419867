"""aft data import: the layouts that it reads and the files that it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from helpers.data_rows import aft_data, write
from lm_eval_aft.core.errors import AFTError
from lm_eval_aft.core.files import file_digest
from lm_eval_aft.core.jsonl import read_jsonl
from trainers.rows.importers import import_rows
from trainers.rows.row import TrainingRow


def test_import_finds_the_usual_names_and_takes_others(tmp_path):
    source = write(tmp_path / "in.jsonl", [{"question": "q", "responses": ["a", "b"], "id": 7}])
    aft_data("import", source, tmp_path / "out.jsonl")
    assert read_jsonl(tmp_path / "out.jsonl") == [{"query": "q", "drafts": ["a", "b"], "id": 7}]
    source = write(tmp_path / "in2.jsonl", [{"ask": "q", "answer": "a"}])
    aft_data("import", source, tmp_path / "out2.jsonl", "--field", "query=ask", "--field", "gold=answer")
    assert read_jsonl(tmp_path / "out2.jsonl") == [{"query": "q", "gold": "a"}]
    card = json.loads((tmp_path / "out2.jsonl.card.json").read_text())
    assert (card["rows"], list(card["inputs"])) == (1, [source])


def test_import_reads_the_layout_of_ultrafeedback(tmp_path):
    completions = [{"model": m, "response": f"by {m}", "overall_score": s} for m, s in (("x", 7.5), ("y", 3))]
    source = write(tmp_path / "in.jsonl", [{"instruction": "do", "completions": completions, "source": "s"}])
    aft_data("import", source, tmp_path / "out.jsonl")
    (row,) = read_jsonl(tmp_path / "out.jsonl")
    assert (row["query"], row["drafts"], row["scores"]) == ("do", ["by x", "by y"], [7.5, 3.0])


def test_import_reads_a_real_set_with_several_responses(tmp_path, shared):
    source = shared / "data" / "multi_response" / "qa_feedback_dev_feedback.json"
    aft_data("import", source, tmp_path / "out.jsonl")
    rows = read_jsonl(tmp_path / "out.jsonl")
    original = json.loads(source.read_text())
    assert len(rows) == 500
    assert rows[0]["drafts"][2] == original[0]["prediction 3"]
    assert rows[0]["query"].endswith("Answer from the passages above: When does bloom by troye sivan come out?")
    # It means 1=2, 1>3, 1<4, 2>3, 2=4, 3<4.
    assert original[0]["preference"] == [0, 1, 2, 1, 0, 2]
    assert rows[0]["scores"] == [1.5, 2.0, 0.0, 2.5]
    assert all(TrainingRow.of(row, "x").drafts for row in rows)


@pytest.mark.parametrize(
    ("row", "options", "message"),
    [
        ({"text": "q"}, [], "row 1 of .* does not have the layout generic"),
        ({"question": "q", "responses": [{"a": 1}]}, [], "drafts of row 1 of .* must be a list of texts"),
        ({"question": "q", "responses": "one"}, [], "drafts of row 1 of .* must be a list of texts"),
        (
            {"question": "q", "responses": ["a"], "models": "gpt"},
            [],
            "models of row 1 of .* one entry for each of its 1",
        ),
        ({"messages": [{"role": "user", "content": None}]}, [], "query of row 1 of .*role and content, both texts"),
        ({"messages": [{"role": "user", "content": [{"text": "hi"}]}]}, [], "role and content, both texts"),
        ({"question": "q", "responses": ["a \ud83d"]}, [], "line 1 cannot be written as UTF-8"),
        (
            {"instruction": "do", "completions": [{"response": "a", "overall_score": "N/A"}]},
            [],
            "row 1 of .* does not have the layout ultrafeedback .*could not convert string to float",
        ),
        (
            {"instruction": "do", "completions": [{"response": "a"}, "b"]},
            [],
            "row 1 of .* does not have the layout ultrafeedback",
        ),
        (
            {"prediction 1": "x", "question": "q", "passages": [["t", "p"]], "gold": "g", "preference": [0, 1]},
            [],
            "row 1 of .* does not have the layout qa_feedback",
        ),
        ({"question": ""}, [], "query of row 1 of .* must be a text"),
        ({"question": "q"}, ["--layout", "sharegpt"], "--layout sharegpt is unknown: use auto, generic"),
        ({"question": "q"}, ["--field", "gold"], "--field is written OURS=THEIRS"),
        ({"question": "q"}, ["--layout", "ultrafeedback"], "does not have the layout ultrafeedback"),
    ],
)
def test_import_says_what_it_cannot_read(tmp_path, row, options, message):
    source = write(tmp_path / "in.jsonl", [row])
    with pytest.raises(AFTError, match=message):
        aft_data("import", source, tmp_path / "out.jsonl", *options)
    assert not (tmp_path / "out.jsonl").exists()


def test_import_of_a_list_names_the_row_or_says_that_it_is_empty(tmp_path):
    source = tmp_path / "in.json"
    for text, message in (
        ("[]", "is an empty list"),
        ('[{"query": "a"}, {"query": "\\ud83d"}]', "row 2 of .* as UTF-8"),
    ):
        source.write_text(text)
        with pytest.raises(AFTError, match=message):
            aft_data("import", source, tmp_path / "out.jsonl")


@pytest.mark.parametrize("listed", [False, True])
def test_a_byte_order_mark_is_no_part_of_the_file(tmp_path, listed):
    text = json.dumps({"query": "q"})
    (tmp_path / "in.jsonl").write_text(f"[{text}]" if listed else text, encoding="utf-8-sig")
    aft_data("import", tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    assert read_jsonl(tmp_path / "out.jsonl") == [{"query": "q"}]


def test_import_can_be_called_from_python(tmp_path):
    source = Path(write(tmp_path / "in.jsonl", [{"ask": "q", "responses": ["a", "b"]}]))
    result = import_rows(source, names={"query": "ask"})
    assert result.rows == [{"query": "q", "drafts": ["a", "b"]}]
    assert result.facts == ["1 rows with 2 drafts"]
    assert result.settings == {"layout": "auto", "fields": {"query": "ask"}}
    digest = result.write(tmp_path / "out.jsonl")
    assert (read_jsonl(tmp_path / "out.jsonl"), digest) == (result.rows, file_digest(tmp_path / "out.jsonl"))
