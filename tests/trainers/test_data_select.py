"""aft data select: verifiers, reward models, matched means, and rows with too few drafts."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from helpers.data_rows import aft_data, drafted, queries, write
from helpers.tiny_models import tiny_tokenizer
from lm_eval_aft.bundled import arith
from lm_eval_aft.core.errors import AFTError, ChatError, ConfigError
from lm_eval_aft.core.jsonl import read_jsonl
from lm_eval_aft.storage.draft_store import NoStore
from trainers.data import data
from trainers.generation.selection import keep_matched, select_drafts, verify_all
from trainers.generation.verifiers import load_verifier, right_answer
from trainers.rows.grades import grade_of


def test_verifiers(tmp_path, monkeypatch):
    number = load_verifier("exact:")
    assert number("It is 1,200.", {"gold": "x = 3 #### 1200"})
    assert not number("It is 1200, or 3", {"gold": "1200"})
    assert not number("no idea", {"gold": "1200"})
    word = load_verifier(r"exact:answer is (\w+)", "label")
    assert word("the answer is yes. No, the answer is no", {"label": "no"})
    (tmp_path / "mine.py").write_text("def check(text, row):\n    return row['gold'] in text\n")
    (tmp_path / "broken.py").write_text("def check(:\n")
    (tmp_path / "script.py").write_text("import sys\nsys.exit(0)\n")
    monkeypatch.chdir(tmp_path)
    assert load_verifier("mine:check")("xyz", {"gold": "y"})
    assert right_answer("exact:", {"gold": "1 + 1 = 2 #### 2"}, "gold") == "2"
    assert right_answer("exact:", {"gold": 0}, "gold") == "0"
    with pytest.raises(ConfigError, match="a row has no 'gold' to compare with: name its key with --gold"):
        right_answer("module:function", {"query": "q"}, "gold")
    either = load_verifier(r"exact:so (\w+)|thus (\w+)|never")
    assert either("thus yes", {"gold": "so yes"})
    assert not either("thus yes", {"gold": "None"})
    assert either("never", {"gold": "never"})
    grade = load_verifier("task:aft_arith_validation")
    problem, way = next(arith.problems("train", seed=0))
    assert grade(arith.write(way), {"query": "?", "doc": {"question": problem.question}}) == 1.0
    assert grade("1 + 1 = 2", {"question": problem.question}) == 0.0
    for spec, message in (
        ("mine", "give exact:REGEX, task:NAME or module:function"),
        ("mine:absent", "cannot be loaded"),
        (":check", "cannot be loaded"),
        ("broken:check", r"cannot be loaded \(SyntaxError"),
        ("script:check", r"cannot be loaded \(SystemExit: 0\)"),
        ("os:name", "is not a function"),
        ("exact:(", "is not a valid regular expression"),
    ):
        with pytest.raises(AFTError, match=message):
            load_verifier(spec)
    with pytest.raises(ConfigError, match="a row has no 'gold' to compare with"):
        number("1", {"query": "q"})
    with pytest.raises(ConfigError, match="name its key with gold: KEY"):
        load_verifier("exact:", option="reward=")("1", {"query": "q"})


def test_a_verifier_that_exits_gives_no_grade():
    assert grade_of(lambda text, row: sys.exit(3), "1", {"query": "q"}) == (0.0, "SystemExit: 3")


def test_a_verifier_that_fails_for_some_drafts_is_named_and_the_rest_is_graded(caplog):
    def verify(text, row):
        return sys.exit(3) if text == "2" else text == "1"

    rows = [{"query": "q", "drafts": ["1", "3"]}, {"query": "r", "drafts": ["2", "1"]}]
    assert [row["right"] for row in verify_all(rows, verify)] == [[True, False], [False, True]]
    assert "The verifier failed for 1 of 4 drafts, the first in row 2 (SystemExit: 3)." in caplog.text
    with pytest.raises(ConfigError, match=r"the verifier failed for all of 4 drafts \(KeyError: 'label'\)"):
        verify_all(rows, lambda text, row: row["label"])


def test_select_by_verifier_keeps_the_right_ones_and_says_how_many(tmp_path):
    source = write(tmp_path / "d.jsonl", [*drafted(3), {"query": "short?", "drafts": ["1", " "], "gold": "1"}])
    output = aft_data("select", source, tmp_path / "s.jsonl", "--verifier", "exact:", "--k", 2)
    rows = read_jsonl(tmp_path / "s.jsonl")
    assert [row["drafts"] for row in rows] == [[f"I get {2 * n}.", f"I get {2 * n + 1}."] for n in range(3)]
    assert all(row["right"] == [True, False] for row in rows)
    assert "3 of 4 rows kept" in output
    assert "mean share of right drafts in the file: 0.500" in output
    with pytest.raises(ConfigError, match=r"no row of .* has 9 drafts with text: lower --k or --at-least"):
        aft_data("select", source, tmp_path / "t.jsonl", "--k", 9)
    with pytest.raises(ConfigError, match=r"row 1 of .* has no list of drafts"):
        aft_data("select", write(tmp_path / "q.jsonl", queries()), tmp_path / "t.jsonl")


def test_select_by_verifier_puts_right_before_scores_that_came_with_the_file(tmp_path):
    rows = [{"query": "q", "gold": "2", "drafts": ["it is 2", "it is 3", "2"], "scores": [0.0, 9.0, 1.0]}]
    source, out = write(tmp_path / "d.jsonl", rows), tmp_path / "s.jsonl"
    for k, kept in ((1, ["2"]), (2, ["it is 2", "2"])):
        aft_data("select", source, out, "--verifier", "exact:", "--k", k)
        assert read_jsonl(out)[0]["drafts"] == kept
    aft_data("select", source, out, "--k", 1)
    assert read_jsonl(out)[0]["drafts"] == ["it is 3"]


def test_a_reward_model_scores_once_whatever_the_batch(tmp_path, reward, monkeypatch):
    from transformers import LlamaForSequenceClassification

    source = write(tmp_path / "d.jsonl", drafted(3))
    options = ("--reward_model", reward, "--device", "cpu")
    for size in (0, -1):
        refused = CliRunner().invoke(data, ["select", source, str(tmp_path / "s"), *options, "--batch_size", str(size)])
        assert refused.exit_code == 2
        assert "not in the range x>=1" in refused.output
    aft_data("select", source, tmp_path / "one.jsonl", *options, "--batch_size", 1)
    aft_data("select", source, tmp_path / "s.jsonl", *options, "--k", 2)
    scored, kept = read_jsonl(tmp_path / "one.jsonl"), read_jsonl(tmp_path / "s.jsonl")
    for all_of, best in zip(scored, kept, strict=True):
        assert sorted(best["scores"]) == pytest.approx(sorted(all_of["scores"])[-2:], abs=1e-5)
    monkeypatch.setattr(LlamaForSequenceClassification, "forward", lambda *args, **kwargs: pytest.fail("scored again"))
    # The scores come from s.jsonl.sqlite.
    aft_data("select", source, tmp_path / "s.jsonl", *options, "--k", 3)
    assert [len(row["drafts"]) for row in read_jsonl(tmp_path / "s.jsonl")] == [3, 3, 3]


@pytest.mark.parametrize("pads", [(None, None), (None, "<|im_end|>"), (0, None), (2, "<pad>"), (3, "<|im_end|>")])
def test_a_reward_is_the_model_s_own_of_one_text_whatever_pads(tmp_path, reward, pads):
    import torch
    from transformers import AutoModelForSequenceClassification

    from lm_eval_aft.core.records import Message
    from lm_eval_aft.inference.reward_model import RewardModel

    model = AutoModelForSequenceClassification.from_pretrained(reward)
    tokenizer = tiny_tokenizer()
    model.config.pad_token_id, tokenizer.pad_token = pads
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>{% endfor %}"
    )
    model.save_pretrained(tmp_path / "rm")
    tokenizer.save_pretrained(tmp_path / "rm")
    chats = [
        (Message("user", "1 + 1?"), Message("assistant", text)) for text in ("2", "It is two.", "I do not know it.")
    ]
    wanted = []
    for chat in chats:
        text = "".join(f"<|im_start|>{message.role}\n{message.content}<|im_end|>" for message in chat)
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            # A batch of one text needs no pad.
            wanted.append(float(model(ids).logits))
    for batch in (1, 8):
        scores = RewardModel(str(tmp_path / "rm"), NoStore(), "cpu", batch).score([chats])
        assert scores == [pytest.approx(wanted, abs=1e-5)]


def test_a_reward_model_must_score(tmp_path, tiny, reward):
    source = write(tmp_path / "d.jsonl", drafted(1))
    with pytest.raises(AFTError, match="reward_model nowhere/at-all cannot be loaded"):
        aft_data("select", source, tmp_path / "s.jsonl", "--reward_model", "nowhere/at-all")
    with pytest.raises(ConfigError, match="has 2 outputs: give a model with a single one"):
        aft_data("select", source, tmp_path / "s.jsonl", "--reward_model", tiny)


def test_a_chat_that_the_reward_model_refuses_is_quoted(tmp_path, reward):
    picky = tmp_path / "picky"
    shutil.copytree(reward, picky)
    template = "{% if 'odd' in messages[-2].content %}{{ raise_exception('no odd ones') }}{% endif %}x"
    (picky / "chat_template.jinja").write_text(template)
    system = {"role": "system", "content": "be brief"}
    chats = [[system, {"role": "user", "content": query}] for query in ("an even one", "an odd one")]
    rows = [{"query": chat, "drafts": ["a", "b"]} for chat in chats]
    source = write(tmp_path / "d.jsonl", rows)
    with pytest.raises(
        ChatError, match=r"that asks 'an odd one' is refused by .* reward_model .*picky \(no odd ones\)"
    ):
        aft_data("select", source, tmp_path / "s.jsonl", "--reward_model", picky)


def test_matched_selection_meets_the_other_mean(tmp_path):
    mine = [
        {"query": "q", "drafts": list("abcd"), "scores": [0.0, 1.0, 2.0, 9.0]},
        {"query": "only here", "drafts": []},
    ]
    other = [{"query": "q", "drafts": ["x", "y"], "scores": [1.0, 2.0]}]
    assert keep_matched(mine, other, 2) == [{"query": "q", "drafts": ["b", "c"], "scores": [1.0, 2.0]}]
    with pytest.raises(ConfigError, match="row 1 of the other file has no scores: run aft data select --reward_model"):
        keep_matched(mine, [{"query": "q", "drafts": ["x"]}], 2)
    with pytest.raises(ConfigError, match="the two files share no query"):
        keep_matched(mine, [{"query": "z", "drafts": ["x"], "scores": [1.0]}], 2)
    many = [{"query": "q", "drafts": [f"d{n}" for n in range(40)], "scores": [100.0] + [50.0] * 4 + [1.0] * 35}]
    assert keep_matched(many, [{"query": "q", "drafts": ["x"], "scores": [1.0]}], 5)[0]["scores"] == [1.0] * 5
    assert keep_matched(many, other, 5) == keep_matched(many, other, 5)
    twice = [{"query": "q", "drafts": ["x"], "scores": [score]} for score in (0.0, 2.0)]
    assert keep_matched(mine, twice, 1) == keep_matched(mine, twice[::-1], 1)
    assert keep_matched(mine, twice, 1)[0]["scores"] == [1.0]
    output = aft_data(
        *("select", write(tmp_path / "a.jsonl", mine), tmp_path / "s.jsonl", "--k", 2),
        *("--match", write(tmp_path / "b.jsonl", other)),
    )
    assert "mean score in the file: 1.500" in output
    assert "mean score in --match: 1.500" in output


def test_only_the_rows_that_were_matched_count_in_the_means(tmp_path):
    mine = write(tmp_path / "a.jsonl", [{"query": "q", "drafts": ["a", "b"], "scores": [1.0, 2.0]}])
    scored = {"query": "q", "drafts": ["x", "y"], "scores": [1.0, 2.0]}
    others = [
        {"query": "no drafts", "drafts": [], "scores": []},
        {**scored, "query": "z", "scores": [90.0] * 2},
        scored,
    ]
    other = write(tmp_path / "b.jsonl", others)
    output = aft_data("select", mine, tmp_path / "s.jsonl", "--k", 2, "--match", other)
    assert "mean score in --match: 1.500" in output


def test_a_query_counts_once_in_the_means_however_many_drafts_it_has(tmp_path):
    mine = [{"query": query, "drafts": ["a", "b"], "scores": [score] * 2} for query, score in (("p", 0.0), ("q", 1.0))]
    other = [{**row, "drafts": ["x"] * n, "scores": row["scores"][:1] * n} for row, n in zip(mine, (2, 8), strict=True)]
    files = write(tmp_path / "a.jsonl", mine), tmp_path / "s.jsonl", "--match", write(tmp_path / "b.jsonl", other)
    output = aft_data("select", *files, "--k", 2)
    assert "mean score in the file: 0.500" in output
    assert "mean score in --match: 0.500" in output


def test_rows_with_few_drafts_can_be_left_out_and_nothing_else(tmp_path):
    eight, two = drafted(2, k=8), {"query": "q", "drafts": ["a", "b", " "]}
    source = write(tmp_path / "d.jsonl", [{**eight[0], "sources": [6]}, two, eight[1]])
    output = aft_data("select", source, tmp_path / "s.jsonl", "--at-least", 3)
    assert read_jsonl(tmp_path / "s.jsonl") == [{**eight[0], "sources": [6]}, eight[1]]
    assert "2 of 3 rows kept" in output
    assert "warning" not in output
    output = aft_data("select", source, tmp_path / "s.jsonl", "--k", 2)
    assert "warning: 3 rows have neither scores nor right: their first 2 drafts were kept" in output
    with pytest.raises(ConfigError, match=r"no row of .* has 9 drafts with text: lower --k or --at-least"):
        aft_data("select", source, tmp_path / "s.jsonl", "--at-least", 9)


def test_select_can_be_called_from_python(tmp_path):
    source = Path(write(tmp_path / "d.jsonl", drafted(2)))
    result = select_drafts(source, k=1, verifier="exact:")
    assert [row["drafts"] for row in result.rows] == [["I get 0."], ["I get 2."]]
    assert result.facts == ["2 of 2 rows kept", "mean share of right drafts in the file: 1.000"]
    assert (result.settings["k"], result.sources) == (1, [source])
