"""aft data stats and ppl, and the overlap of targets with their drafts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from helpers.data_rows import SCRIPTED, aft_data, drafted, queries, write
from helpers.tiny_models import save_tiny, tiny_tokenizer
from helpers.training_rows import ask
from lm_eval_aft.core.errors import ConfigError
from trainers.data import data
from trainers.inspection.describe import describe
from trainers.inspection.overlap import measure, nearest, warnings, with_foreign_drafts
from trainers.inspection.perplexity import target_perplexity
from trainers.rows.samples import Sample


def test_stats(tmp_path):
    rows = [
        {**row, "drafts": [row["drafts"][0], row["drafts"][0], "", "I get 5."], "target": "It is 0.", "sft_target": "0"}
        for row in drafted(2)
    ]
    source = write(tmp_path / "d.jsonl", [*rows, rows[0]])
    against = write(tmp_path / "test.jsonl", [{"question": "Hm. What is 1 + 1? Hm."}])
    output = aft_data("stats", source, "--verifier", "exact:", "--against", against, "--words", 5)
    for line in (
        "rows                  3, 1 with a query that came before",
        "drafts                12: 4.0 (median 4, 4 to 4) a row",
        "empty drafts          3",
        "equal drafts          3 repeat another of their row (25.0%)",
        "right drafts          50.0%; rows with one 100.0%, of mixed correctness 100.0%",
        "targets               3: 3.0 (median 3, 3 to 3) words",
        "contamination         1 of 3 queries (first: row 2) and 0 targets share 5 words in a row with one of 1",
        "sha256                ",
    ):
        assert line in output, output
    short = write(tmp_path / "short.jsonl", [{"question": "what  is 1 + 1 ?"}])
    output = aft_data("stats", source, "--against", short)
    assert "contamination         1 of 3 queries (first: row 2) and 0 targets" in output
    with pytest.raises(
        ConfigError, match="has rows without the key 'prompt': name the key of the questions with --field"
    ):
        aft_data("stats", source, "--against", against, "--field", "prompt")
    assert "drafts                0" in aft_data("stats", write(tmp_path / "q.jsonl", queries()))
    ignoring = [{"query": f"q{n}", "drafts": [f"alpha {n}"], "target": "zebra", "sft_target": "zebra"} for n in "ab"]
    output = aft_data("stats", write(tmp_path / "i.jsonl", ignoring))
    assert (
        "warning: the targets overlap with their drafts no more (0.00) than with the drafts of other queries" in output
    )
    assert "warning: every target is its row's sft_target" in output


def test_contamination_looks_at_every_turn_and_at_both_targets(tmp_path):
    question = "Anna has seven red apples and gives two of them to her brother. How many are left?"
    turns = [("user", question), ("assistant", "5"), ("user", "And now?")]
    chat = [{"role": role, "content": text} for role, text in turns]
    source = write(tmp_path / "d.jsonl", [{"query": chat}, {"query": "q", "sft_target": f"{question} 5"}])
    output = aft_data("stats", source, "--against", write(tmp_path / "e.jsonl", [{"question": question}]))
    assert "contamination         1 of 2 queries (first: row 1) and 1 targets share" in output


def test_targets_are_compared_with_other_targets_of_the_same_rows(tmp_path):
    near = {"query": "p", "drafts": ["one two three four"], "target": "one two three four", "sft_target": "two six"}
    far = [{"query": f"q{n}", "drafts": ["five six"], "target": "seven eight nine", "sft_target": ""} for n in range(9)]
    output = aft_data("stats", write(tmp_path / "d.jsonl", [near, *far]))
    # One row has both targets, and there the target is nearer to the draft.
    assert "seem to ignore" not in output


def test_empty_drafts_are_no_sign_of_diversity(tmp_path):
    rows = [{"query": "q", "drafts": ["", "", "a b", "a b"]}, {"query": "p", "drafts": ["", ""]}]
    assert "diversity             0.80" in aft_data("stats", write(tmp_path / "d.jsonl", rows))


def test_perplexity_compares_the_same_rows(tmp_path, tiny):
    short = {"query": "1 + 1?", "drafts": ["2", "3"], "target": "So it is 2, then.", "sft_target": "2"}
    rows = [short, {**short, "target": "1" * 5000}, {**short, "sft_target": "1" * 5000}]
    args = ("--json", "--device", "cpu", "--model_args", f"pretrained={tiny},dtype=float32")
    result = CliRunner().invoke(data, ["ppl", write(tmp_path / "d.jsonl", rows), *args])
    settings = json.loads(result.stdout.splitlines()[-1])
    assert {setting["examples"] for setting in settings.values()} == {1}
    assert "tokens: 2 rows left out, drafts cut in 0" in result.stderr
    with pytest.raises(ConfigError, match=r"none of the 1 rows fits the model's \d+ tokens"):
        aft_data("ppl", write(tmp_path / "long.jsonl", rows[1:2]), *args)


def test_perplexity_is_that_of_the_model(tmp_path):
    import torch
    from transformers import AutoModelForCausalLM

    folder = save_tiny(tmp_path / "m")
    drafts = ["So it is 2.", "No, 3."]
    rows = [{"query": "1 + 1?", "drafts": drafts, "target": "So it is 2, then.", "sft_target": "2"}]
    source = write(tmp_path / "d.jsonl", rows * 2)
    args = ("--model_args", f"pretrained={folder},dtype=float32", "--device", "cpu")
    settings = json.loads(aft_data("ppl", source, "--json", *args).splitlines()[-1])
    assert list(settings) == [
        "target | query",
        "target | query, drafts",
        "target | query, drafts but the nearest",
        "sft_target | query",
    ]
    tokenizer = tiny_tokenizer()
    prompt = tokenizer.encode("<|im_start|>user\n1 + 1?<|im_end|>\n<|im_start|>assistant\n")
    ids = torch.tensor([[*prompt, *tokenizer.encode("2<|im_end|>")]])
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(ids).logits[0, len(prompt) - 1 : -1]
    loss = torch.nn.functional.cross_entropy(logits, ids[0, len(prompt) :])
    assert settings["sft_target | query"]["ppl"] == pytest.approx(float(loss.exp()), rel=1e-4)
    assert settings["sft_target | query"]["tokens"] == 4
    table = aft_data("ppl", source, "--limit", 1, "--k", 1, *args)
    assert "target | query, drafts " in table
    # A row with one draft has no draft to leave out.
    assert "nearest" not in table.split("perplexity per token")[1]
    with pytest.raises(ConfigError, match="engine=scripted gives no losses"):
        aft_data("ppl", source, "--model_args", SCRIPTED)


def test_the_nearest_draft_and_ties():
    assert nearest("so 3 + 4 = 7", ["3 + 4 = 8", "so 3 + 4 = 7 it is", "no"])[1] == (1,)
    assert nearest("x", ["a", "b"]) == (0.0, (0, 1))
    samples = [Sample(ask("q"), ("a b c", "a b c"), "a b c", ""), Sample(ask("q"), ("a b", "z"), "a b", "")]
    overlap = measure(samples)
    # If all drafts are equally near, the sample is not counted.
    assert overlap.positions == {2: (1.0, 0.0)}
    assert (overlap.samples, overlap.copies, overlap.copy_rate) == (2, 2, 1.0)


def test_copies_and_targets_that_ignore_the_drafts_are_warned_about():
    drafts = ("the sum is four because two and two make four", "it is five")
    copied, ignored, used = (
        [Sample(ask("q"), drafts, target, "")]
        for target in (drafts[1], "forty-two, obviously", "two and two make four, so four")
    )
    assert "100% of the targets are a draft word for word" in warnings(measure(copied), copied, [], False)[0]
    assert "seem to ignore the drafts" in warnings(measure(ignored), ignored, used, False)[0]
    assert warnings(measure(used), used, ignored, False) == []
    assert "every target is its row's sft_target" in warnings(measure(used), used, [], True)[0]


def test_without_sft_targets_those_that_share_no_more_than_chance_are_warned_about():
    drafts = [(f"the sum of {n} and one is {n + 1}", f"it is {n}") for n in range(6)]
    # Each query has two draws. The drafts of its other draw must not count as overlap by chance.
    queries = [n // 2 for n in range(12)]
    ignoring = [Sample(ask(f"q{n}"), drafts[n], "zebra violin", "") for n in queries]
    reading = [Sample(ask(f"q{n}"), drafts[n], f"so {n + 1} is the sum of {n} and one", "") for n in queries]
    messages = warnings(measure(ignoring), ignoring, [], False)
    assert "no more (0.00) than with the drafts of other queries (0.00): they seem to ignore" in messages[0]
    assert warnings(measure(reading), reading, [], False) == []
    assert with_foreign_drafts(reading[:2]) == []
    foreign = with_foreign_drafts(reading)
    assert [sample.target for sample in foreign] == [sample.target for sample in reading]
    assert all(new.drafts not in (old.drafts, ()) for new, old in zip(foreign, reading, strict=True))


def test_stats_and_ppl_can_be_called_from_python(tmp_path, tiny):
    rows = [{"query": "1 + 1?", "drafts": ["2", "3"], "target": "So it is 2, then.", "sft_target": "2"}]
    source = Path(write(tmp_path / "d.jsonl", rows))
    assert "\n".join(describe(source)) + "\n" == aft_data("stats", source)
    result = target_perplexity(source, f"pretrained={tiny},dtype=float32", device="cpu")
    assert (result.left_out, result.cut, len(result.settings)) == (0, 0, 4)
    assert all(perplexity.value > 1 for perplexity in result.settings)
