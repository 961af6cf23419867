"""Rows and samples: what a row must be, and what the four kinds of training make of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from helpers.training_rows import CONFIG, row
from lm_eval_aft.core.errors import ConfigError, RecordError
from lm_eval_aft.core.jsonl import read_jsonl
from trainers.inspection.overlap import measure
from trainers.rows.row import TrainingRow, read_training_rows
from trainers.rows.samples import make_samples, pseudo_samples
from trainers.settings import TrainConfig


def test_rows_say_which_line_is_wrong(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"query": "x", "drafts": ["a"], "target": "b"}\n\n{"query": \n')
    with pytest.raises(RecordError, match=r"rows.jsonl line 3 is not JSON"):
        read_jsonl(path)
    path.write_text("\n")
    with pytest.raises(RecordError, match="has no rows"):
        read_training_rows(path)
    with pytest.raises(RecordError, match="cannot be read"):
        read_training_rows(tmp_path / "absent.jsonl")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"query": " "}, "query of d row 0 must be a text, or a list of messages"),
        ({"query": [{"role": "assistant", "content": "a"}]}, "that ends with the user"),
        ({"drafts": "a"}, "drafts of d row 0 must be a list of texts"),
        ({"drafts": ["a", 1]}, "drafts of d row 0 must be a list of texts"),
        ({"target": 5}, "target of d row 0 is 5: it must be a text"),
        ({"query": [{"role": "user", "content": None}]}, "role and content, both texts"),
        ({"query": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]}, "role and content, both texts"),
        ({"query": [{"role": 1, "content": "a"}, {"role": "user", "content": "b"}]}, "role and content, both texts"),
        ({"sources": [1, 1]}, r"sources of d row 0 are \[1, 1\]: name each position once"),
        ({"sources": [7]}, "sources of d row 0 must be a list of positions in drafts, from 0 to 4"),
    ],
)
def test_a_wrong_row_is_one_sentence(changes, message):
    with pytest.raises(ConfigError, match=message):
        row(**changes)


def test_drafts_without_text_are_left_out_and_sources_follow():
    checked = row(drafts=["", "a", "  ", "b"], sources=[3])
    assert checked.drafts == ("a", "b")
    assert checked.sources == (1,)


def test_the_rows_of_a_file_keep_their_order(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"query": str(n), "drafts": ["a"], "target": "b"}) + "\n" for n in range(3)))
    assert [(r.chat.messages[0].content, r.where) for r in read_training_rows(path)] == [
        (str(n), f"{path} row {n + 1}") for n in range(3)
    ]


def test_the_four_kinds():
    rows = [row(number) for number in range(8)]
    config = replace(CONFIG, k=(5,), plain_share=0.5)
    sft, aft, bare, pseudo = (
        make_samples(rows, kind, config) for kind in ("sft", "aft", "aft-no-drafts", "aft-pseudo")
    )
    assert [(s.drafts, s.target) for s in sft] == [((), r.sft_target) for r in rows]
    assert [(s.drafts, s.target) for s in bare] == [((), r.target) for r in rows]
    assert [s.target for s in aft if s.drafts] == [r.target for r in rows]
    assert [s.target for s in pseudo if s.drafts] == [r.sft_target for r in rows]
    # The draws are the same, and only the targets differ.
    assert [s.drafts for s in aft] == [s.drafts for s in pseudo]
    plain = [s for s in aft if not s.drafts]
    # Half of all samples have no drafts, and each row has one of them.
    assert sorted(s.target for s in plain) == sorted(r.sft_target for r in rows)


def test_draws_do_not_depend_on_the_other_rows_and_every_k_comes():
    rows = [row(number) for number in range(40)]
    config = replace(CONFIG, k=(1, 3, 5), sets_per_query=3, plain_share=0.0)
    drawn = make_samples(rows, "aft", config)
    assert make_samples(rows[7:9], "aft", config) == drawn[21:27]
    counts = {k: sum(len(s.drafts) == k for s in drawn) for k in (1, 3, 5)}
    assert min(counts.values()) > 20, counts
    assert all(len(set(s.drafts)) == len(s.drafts) for s in drawn)
    assert make_samples(rows, "aft", replace(config, seed=1)) != drawn


def test_the_order_of_drafts_is_free_and_the_sources_are_always_drawn():
    rows = [row(number, sources=[4], target=f"draft {number} e, corrected") for number in range(600)]
    samples = make_samples(rows, "aft", replace(CONFIG, k=(3,), plain_share=0.0))
    assert all(any(draft.endswith(" e") for draft in sample.drafts) for sample in samples)
    table = measure(samples).positions[3]
    assert sum(table) == 600
    # 200 are expected at each position; four standard deviations are 46.
    assert all(150 < count < 250 for count in table), table


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("aft", {"target": ""}, "d row 1 has no target: aft train aft learns it"),
        ("aft-no-drafts", {"target": None}, "d row 1 has no target"),
        ("aft-pseudo", {"sft_target": ""}, "d row 1 has no sft_target"),
        ("sft", {"target": "", "sft_target": ""}, "d row 1 has no sft_target nor target"),
        ("aft", {"drafts": []}, r"1 of 2 rows have fewer drafts with text than k=5 \(d row 1 has 0\)"),
        ("aft", {"drafts": ["only one"]}, r"\(d row 1 has 1\): lower k, or leave such rows out"),
        ("aft", {"drafts": ["a", "", " ", "b", "c"]}, r"\(d row 1 has 3\)"),
    ],
)
def test_rows_that_a_kind_cannot_use_are_refused(kind, changes, message):
    with pytest.raises(ConfigError, match=message):
        make_samples([row(0), row(1, **changes)], kind, replace(CONFIG, k=(1, 5)))


def test_a_lone_number_as_sft_target_is_no_level_to_beat():
    rows = [
        TrainingRow.of(
            {
                "query": f"{n} + 1?",
                "drafts": [f"{n} + 1 = {n + 1}"],
                "target": f"{n} + 1 = {n + 1}, so {n + 1}.",
                "sft_target": sft.format(n + 1),
            },
            "row",
        )
        for n in range(4)
        for sft in ("{}", "therefore the whole of it is {}")
    ]
    assert {sample.target.split()[0] for sample in pseudo_samples(rows, TrainConfig())} == {"therefore"}
