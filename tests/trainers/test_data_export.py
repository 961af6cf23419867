"""aft data export: rows for other training programs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from helpers.data_rows import aft_data, drafted, write
from helpers.tiny_models import CHATML, save_tiny
from lm_eval_aft.core.errors import AFTError
from lm_eval_aft.core.jsonl import read_jsonl
from trainers.fitting.examples import Encoder, Example
from trainers.fitting.export import export_rows
from trainers.fitting.model import load_tokenizer
from trainers.fitting.resume import template_of
from trainers.rows.row import read_training_rows
from trainers.rows.samples import make_samples
from trainers.settings import TrainConfig


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Four rows with four drafts, a target and a gold answer each."""
    chat = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "2 + 2?"}]
    rows = [{**row, "target": f"It is {2 * n}."} for n, row in enumerate(drafted())]
    return Path(write(tmp_path / "rows.jsonl", [*rows[:3], {**rows[3], "query": chat}]))


def examples(config: TrainConfig) -> list[Example]:
    """The examples that aft train learns."""
    encoder = Encoder(load_tokenizer(config), template_of(config), config.max_length)
    return encoder.encode_all(make_samples(read_training_rows(config.data), "aft", config)).examples


def trl_tokens(rows: list[dict], model: str, folder: Path, eos: str | None) -> list[tuple[list[int], list[int]]]:
    """Token ids and labels of each row, as TRL's SFTTrainer makes them."""
    trl = pytest.importorskip("trl", reason="TRL is not installed: pip install 'lm_eval_aft[rl]'")
    from datasets import Dataset
    from transformers import AutoTokenizer

    args = trl.SFTConfig(output_dir=str(folder), eos_token=eos, report_to="none", use_cpu=True, bf16=False)
    trainer = trl.SFTTrainer(
        model, args, train_dataset=Dataset.from_list(rows), processing_class=AutoTokenizer.from_pretrained(model)
    )
    return [(row["input_ids"], row["labels"]) for row in trainer.train_dataset]


# TRL 1.16 uses names that transformers 5.23 deprecates.
QUIET = pytest.mark.filterwarnings("ignore")
BOS = "{{ bos_token }}" + CHATML


@QUIET
@pytest.mark.parametrize("chat_template", [CHATML, BOS, None])
def test_trl_makes_our_token_ids_and_labels_from_exported_texts(rows, tmp_path, chat_template):
    model = save_tiny(tmp_path / "model", chat_template=chat_template)
    config = TrainConfig(model=model, data=str(rows), output="x", k=(2,), plain_share=0.5)
    result = export_rows(rows, "prompt-completion", config)
    ours = [(list(each.token_ids), each.labels) for each in examples(config)]
    assert trl_tokens([dict(row) for row in result.rows], model, tmp_path / "trl", None) == ours
    assert not [fact for fact in result.facts if fact.startswith("warning")]


def test_messages_and_sharegpt_hold_the_prompt_of_training_and_the_target(rows, tmp_path, tiny):
    aft_data("export", rows, tmp_path / "m.jsonl", "--to", "messages", "--model", tiny, "--set", "plain_share=0")
    aft_data("export", rows, tmp_path / "s.jsonl", "--to", "sharegpt", "--model", tiny, "--set", "plain_share=0")
    messages, sharegpt = (read_jsonl(tmp_path / name) for name in ("m.jsonl", "s.jsonl"))
    last = messages[3]["messages"]
    assert [turn["role"] for turn in last] == ["system", "user", "assistant"]
    assert last[0]["content"].startswith("Be short.\n\nBelow are 4 drafts")
    assert "I get 7." in last[0]["content"]
    assert (last[1]["content"], last[2]["content"]) == ("2 + 2?", "It is 6.")
    names = {"system": "system", "user": "human", "assistant": "gpt"}
    for row, other in zip(messages, sharegpt, strict=True):
        turns = [{"from": names[turn["role"]], "value": turn["content"]} for turn in row["messages"]]
        assert other == {"conversations": turns}
    aft_data("import", tmp_path / "s.jsonl", tmp_path / "again.jsonl")
    assert read_jsonl(tmp_path / "again.jsonl")[3] == {"query": last[:2], "sft_target": "It is 6."}


@pytest.mark.parametrize("name", ["out.jsonl", "out.parquet"])
def test_verl_gets_prompts_with_the_right_answer(rows, tmp_path, tiny, name):
    aft_data(
        "export", rows, tmp_path / name, "--to", "verl", "--model", tiny, "--set", "k=2", "--set", "plain_share=.5"
    )
    if name.endswith("parquet"):
        from pyarrow import parquet

        found = parquet.read_table(tmp_path / name).to_pylist()
    else:
        found = read_jsonl(tmp_path / name)
    assert len(found) == 8
    row = found[1]
    assert list(row) == ["data_source", "prompt", "ability", "reward_model", "extra_info"]
    assert row["reward_model"] == {"style": "rule", "ground_truth": "so #### 2"}
    assert (row["data_source"], row["extra_info"]) == ("rows", {"index": 2, "drafts": 2})
    assert [turn["role"] for turn in row["prompt"]] == ["system", "user"]
    assert sum(each["extra_info"]["drafts"] == 0 for each in found) == 4
    card = json.loads((tmp_path / f"{name}.card.json").read_text())
    assert (card["settings"]["to"], card["settings"]["k"], card["rows"]) == ("verl", [2], 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--to", "verl", "--gold", "answer"], "row 1 has no 'answer': verl needs the right answer"),
        (["--to", "messages", "--set", "max_length=20"], "none of the 5 examples fits max_length=20"),
        (["--to", "messages", "--set", "k=9"], "rows have fewer drafts with text than k=9"),
        (["--to", "messages", "--set", "kk=9"], "kk in aft data export is not a setting of aft train: did you mean k"),
        (["--to", "messages", "--kind", "aft-pseudo"], "row 1 has no sft_target"),
    ],
)
def test_export_says_what_it_cannot_write(rows, tmp_path, tiny, options, message):
    with pytest.raises(AFTError, match=message):
        aft_data("export", rows, tmp_path / "out.jsonl", "--model", tiny, *options)
    assert not (tmp_path / "out.jsonl").exists()


@QUIET
def test_export_says_how_to_end_turns_as_aft_train_does(rows, tmp_path):
    folder = Path(save_tiny(tmp_path / "model"))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "eos_token": "<s>", "bos_token": None}))
    config = TrainConfig(model=str(folder), data=str(rows), output="x", k=(2,), plain_share=0.0)
    result = export_rows(rows, "prompt-completion", config)
    assert "set eos_token to <|im_end|> in TRL: it would add <s> to each completion" in result.facts
    ours = [(list(each.token_ids), each.labels) for each in examples(config)]
    assert trl_tokens([dict(row) for row in result.rows], str(folder), tmp_path / "trl", "<|im_end|>") == ours
