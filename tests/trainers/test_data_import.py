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


CHAT = [{"role": "user", "content": "q1"}, {"role": "assistant", "content": "a1"}, {"role": "user", "content": "q2"}]
LAYOUTS = {
    "Alpaca": (
        {"instruction": "Translate.", "input": "un chat", "output": "a cat"},
        {"query": "Translate.\n\nun chat", "sft_target": "a cat"},
    ),
    "Alpaca without input": (
        {"instruction": "Say hi.", "input": "", "output": "hi"},
        {"query": "Say hi.", "sft_target": "hi"},
    ),
    "Alpaca without output": ({"instruction": "Add.", "input": "1 and 2"}, {"query": "Add.\n\n1 and 2"}),
    "Dolly": (
        {"instruction": "Who?", "context": "Ann came.", "response": "Ann", "category": "qa"},
        {"query": "Who?\n\nAnn came.", "sft_target": "Ann", "category": "qa"},
    ),
    "ShareGPT": (
        {"conversations": [{"from": "human", "value": "q1"}, {"from": "gpt", "value": "a1"}], "id": "x"},
        {"query": [{"role": "user", "content": "q1"}], "sft_target": "a1", "id": "x"},
    ),
    "ShareGPT of two turns": (
        {
            "system": "Be brief.",
            "conversations": [
                {"from": "human", "value": "q1"},
                {"from": "gpt", "value": "a1"},
                {"from": "human", "value": "q2"},
                {"from": "gpt", "value": "a2"},
            ],
        },
        {"query": [{"role": "system", "content": "Be brief."}, *CHAT], "sft_target": "a2"},
    ),
    "ShareGPT that ends with a question": (
        {"conversations": [{"from": "system", "value": "s"}, {"from": "human", "value": "q"}]},
        {"query": [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]},
    ),
    "chat with an answer": (
        {"prompt": "q1", "messages": [*CHAT, {"role": "assistant", "content": "a2"}]},
        {"query": CHAT, "sft_target": "a2", "prompt": "q1"},
    ),
    "chat with a question": ({"messages": CHAT}, {"query": CHAT}),
    "chat with drafts": (
        {"messages": [*CHAT, {"role": "assistant", "content": "a2"}], "responses": ["b", "c"]},
        {"query": CHAT, "sft_target": "a2", "drafts": ["b", "c"]},
    ),
    "chat with a target of its own": (
        {"messages": [*CHAT, {"role": "assistant", "content": "a2"}], "sft_target": "better"},
        {"query": CHAT, "sft_target": "better"},
    ),
    "prompt and completion": ({"prompt": "q", "completion": " a"}, {"query": "q", "sft_target": " a"}),
    "prompt and completion as messages": (
        {"prompt": CHAT, "completion": [{"role": "assistant", "content": "a2"}]},
        {"query": CHAT, "sft_target": "a2"},
    ),
    "OpenOrca": (
        {"id": 1, "system_prompt": "Be kind.", "question": "q", "response": "a"},
        {
            "query": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "q"}],
            "sft_target": "a",
            "id": 1,
        },
    ),
    "OpenOrca without a system prompt": (
        {"system_prompt": "", "question": "q", "response": "a"},
        {"query": "q", "sft_target": "a"},
    ),
    "an output that is no text": ({"question": "q", "output": {"n": 1}}, {"query": "q", "output": {"n": 1}}),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_usual_layouts(tmp_path, name):
    row, expected = LAYOUTS[name]
    source = Path(write(tmp_path / "in.jsonl", [row]))
    assert import_rows(source).rows == [expected]
    assert TrainingRow.of(expected, "x").sft_target == expected.get("sft_target", "").strip()


PATHS = {
    "drafts=a.b[].solution": {"a": {"b": [{"solution": "x"}, {"solution": "y"}]}},
    "drafts=a[].b[].s": {"a": [{"b": [{"s": "x"}]}, {"b": [{"s": "y"}]}]},
    "drafts=a[0].b": {"a": [{"b": ["x", "y"]}, {}]},
    "drafts=a[][1]": {"a": [["", "x"], ["", "y"]]},
    "drafts=a.b[]": {"a": {"b": ["x", "y"]}},
    "drafts=choices[].message.content": {"choices": [{"message": {"content": "x"}}, {"message": {"content": "y"}}]},
    # A key that holds such signs is found as it is.
    "drafts=a.b": {"a.b": ["x", "y"]},
    "drafts=a[]": {"a[]": ["x", "y"]},
}


@pytest.mark.parametrize("field", PATHS)
def test_a_key_within_others(tmp_path, field):
    source = write(tmp_path / "in.jsonl", [{"question": "q", **PATHS[field]}])
    aft_data("import", source, tmp_path / "out.jsonl", "--field", field)
    (row,) = read_jsonl(tmp_path / "out.jsonl")
    assert row["drafts"] == ["x", "y"]


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("drafts=a.c", r"\(a\.c does not lead to a value: there is no c, but keys b\): give --layout"),
        ("drafts=a.b.c", r"a\.b\.c does not lead to a value: there is no c, but list"),
        ("drafts=a.b[5]", r"there is no \[5\], but list"),
        ("drafts=a[]", r"there is no \[\], but keys b"),
        ("drafts=a..b", r"it has no key 'a\.\.b', and a path is written like a\.b\[\]\.c"),
        ("drafts=a[-1]", "a path is written like"),
        ("drafts=[]", "a path is written like"),
        ("drafts=a.b[].x", "there is no x, but str"),
        ("drafts=", r"--field drafts= is not allowed: write OURS=THEIRS"),
        ("=a", r"--field =a is not allowed: write OURS=THEIRS"),
        ("drafts=e", r"no row of .* has drafts: correct --field drafts=THEIRS"),
    ],
)
def test_a_key_that_is_not_there(tmp_path, field, message):
    source = write(tmp_path / "in.jsonl", [{"question": "q", "a": {"b": ["x"]}, "e": []}])
    with pytest.raises(AFTError, match=message):
        aft_data("import", source, tmp_path / "out.jsonl", "--field", field)


def test_a_field_can_be_named_for_every_layout(tmp_path):
    row = {"instruction": "do", "completions": [{"response": "a", "overall_score": 1}], "meta": {"answer": "7"}}
    source = Path(write(tmp_path / "in.jsonl", [row]))
    (made,) = import_rows(source, names={"gold": "meta.answer"}).rows
    assert (made["drafts"], made["gold"]) == (["a"], "7")


@pytest.mark.parametrize(
    ("scores", "kept"),
    [([7, None, 3], [7.0, None, 3.0]), ([None, 5, None], [None, 5.0, None]), ([None, None, None], None)],
)
def test_a_missing_score_leaves_the_others(tmp_path, scores, kept):
    completions = [{"response": f"d{i}", "overall_score": score} for i, score in enumerate(scores)]
    source = Path(write(tmp_path / "in.jsonl", [{"instruction": "do", "completions": completions}]))
    result = import_rows(source)
    assert result.rows[0].get("scores") == kept
    assert result.facts[-1] == f"{scores.count(None)} drafts have no score" if kept else "scores" not in result.rows[0]


def test_drafts_without_a_score_are_selected_last_and_have_no_part_in_means(tmp_path):
    rows = [{"query": "q", "drafts": ["a", "b", "c"], "scores": [None, 1, 3]}]
    source = write(tmp_path / "in.jsonl", rows)
    out = aft_data("select", source, tmp_path / "two.jsonl", "--k", 2)
    assert read_jsonl(tmp_path / "two.jsonl")[0]["drafts"] == ["b", "c"]
    assert "mean score in the file: 2.000" in out
    aft_data("select", source, tmp_path / "one.jsonl", "--k", 1, "--match", source)
    assert read_jsonl(tmp_path / "one.jsonl")[0]["drafts"] in (["b"], ["c"])
    assert "score of a draft      2.000" in aft_data("stats", source)


def test_files_without_drafts(tmp_path):
    source = write(tmp_path / "in.jsonl", [{"question": "q", "answer": "#### 7"}] * 3)
    out = aft_data("import", source, tmp_path / "out.jsonl")
    assert "3 rows with 0 drafts\naft data drafts samples drafts; --field drafts=THEIRS names" in out
    assert "keys that are kept but shown to no model: answer" in out
    for drafts in ({}, {"drafts": []}):
        empty = write(tmp_path / "empty.jsonl", [{"query": "q", **drafts}] * 3)
        with pytest.raises(AFTError, match=r"has no list of drafts|has a draft"):
            aft_data("select", empty, tmp_path / "out2.jsonl", "--verifier", "exact:")
    lacking = Path(write(tmp_path / "u.jsonl", [{"instruction": "do", "completions": []}]))
    with pytest.raises(AFTError, match=r"no row of .* has drafts"):
        import_rows(lacking, "ultrafeedback")


REAL = {
    "gsm8k/test.jsonl": ({"gold": "answer", "sft_target": "answer"}, 1319, 0, 1319),
    "ifeval/input_data.jsonl": ({}, 541, 0, 0),
    "alpaca_eval/alpaca_eval.json": ({}, 805, 0, 805),
    "alpaca_eval/results/claude-2.1/model_outputs.json": ({}, 805, 0, 805),
    "alpaca_eval/results/claude-2.1/annotations.json": ({"drafts": "output_1"}, 0, 0, 0),
    "mt_bench/question.jsonl": ({"query": "turns[0]"}, 80, 0, 0),
    "mt_bench/model_answer/gpt-4.jsonl": ({"query": "answer_id", "drafts": "choices[].turns[0]"}, 80, 80, 0),
}


@pytest.mark.parametrize("name", REAL)
def test_real_files(shared, name):
    names, rows, drafts, answers = REAL[name]
    if not rows:
        with pytest.raises(AFTError, match=r"drafts of row 1 of .* must be a list of texts"):
            import_rows(shared / "data" / name, names=names)
        return
    result = import_rows(shared / "data" / name, names=names)
    trained = [TrainingRow.of(row, "x") for row in result.rows]
    assert (len(trained), sum(len(row.drafts) for row in trained)) == (rows, drafts)
    assert sum(bool(row.sft_target) for row in trained) == answers
