"""The losses of aft train, its schedule, and the warnings about its data."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from helpers import zoo_outcome
from helpers.tiny_models import save_tiny
from helpers.training_runs import contradicted, log_of, weights
from lm_eval_aft.core.errors import ConfigError, EngineError
from trainers.fitting.batching import Collator, PackingCollator
from trainers.fitting.examples import Example
from trainers.train import run_training


@pytest.mark.parametrize("kind", ["llama", "sliding", "gemma"])
def test_the_loss_is_that_of_masked_and_untrimmed_batches(kind, tmp_path):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(save_tiny(tmp_path, kind), dtype=torch.float32)
    examples = [Example(tuple(range(10, 50)), 30), Example(tuple(range(60, 75)), 9)]
    losses = []
    for trims in (True, False):
        batch = Collator(0, trims)(examples)
        if not trims:
            batch["attention_mask"] = (batch["input_ids"] != 0).long()
        with torch.no_grad():
            losses.append(model(**batch).loss)
    assert torch.allclose(*losses, atol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "sliding", "gemma"])
@pytest.mark.parametrize("trims", [True, False])
def test_the_loss_of_a_packed_batch_is_that_of_a_padded_one(kind, trims, tmp_path):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(save_tiny(tmp_path, kind), dtype=torch.float32)
    examples = [Example(tuple(range(10, 50)), 30), Example(tuple(range(60, 75)), 9), Example((5, 6, 7), 1)]
    packed = PackingCollator(trims)(examples)
    assert packed["input_ids"].shape == (1, 40 + 15 + 3)
    # The targets, and the token before each.
    assert packed["labels"].shape == (1, 11 + 7 + 3 if trims else 58)
    losses, gradients = [], []
    for batch in (packed, Collator(0, trims)(examples)):
        loss = model(**batch).loss
        losses.append(loss.detach())
        gradients.append(torch.autograd.grad(loss, model.model.layers[0].mlp.up_proj.weight)[0])
    assert torch.allclose(*losses, atol=1e-5)
    assert torch.allclose(*gradients, atol=1e-5)


def test_a_packed_run_has_the_losses_of_an_unpacked_one(config, tmp_path):
    logs = []
    for packing in (False, True):
        own = replace(config, packing=packing, output=str(tmp_path / f"packing-{packing}"), validation=config.data)
        own = replace(own, attention="eager" if packing else "sdpa")
        run_training("aft", replace(own, accumulate=2, max_steps=4))
        keys = ("loss", "eval_loss", "grad_norm", "num_input_tokens_seen")
        logs.append([{key: row[key] for key in keys if key in row} for row in log_of(own)])
    assert any("eval_loss" in row for row in logs[0])
    assert logs[1] == [pytest.approx(row, rel=1e-4) for row in logs[0]]


def test_attention_that_is_not_installed_is_one_sentence(config):
    if find_spec("flash_attn"):
        pytest.skip("FlashAttention is installed")
    with pytest.raises(EngineError, match=r"model=.* cannot be loaded: .*[Ff]lash"):
        run_training("sft", replace(config, attention="flash_attention_2"))


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("kind", ["mamba2", "jamba", "bloom", "qwen3_next"])
def test_packing_is_refused_where_examples_would_depend_on_one_another(kind, config, tmp_path):
    zoo_outcome.save(kind, str(tmp_path / "model"))
    packed = replace(config, model=str(tmp_path / "model"), lora_rank=0, packing=True)
    with pytest.raises(ConfigError, match=r"packing does not fit model=.*: its logits depend on the other examples"):
        run_training("sft", packed)


def test_the_validation_loss_is_of_target_tokens_whatever_the_batch(config, tmp_path):
    rows = [{"query": "1?", "drafts": ["1"], "target": "1" * n, "sft_target": "1" * n} for n in (1, 2, 3, 50, 60)]
    (tmp_path / "held_out.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    losses = []
    for batch in (2, 5):
        output = str(tmp_path / f"batch{batch}")
        held_out = replace(config, validation=str(tmp_path / "held_out.jsonl"), output=output, batch_size=batch)
        run_training("sft", replace(held_out, learning_rate=1e-12, max_steps=1, save_every=1))
        losses += [row["eval_loss"] for row in log_of(held_out) if "eval_loss" in row]
    assert losses == [pytest.approx(losses[0], abs=1e-6)] * 2


def test_early_stopping(config):
    bad = replace(contradicted(config), patience=1, epochs=50)
    lines: list[str] = []
    run = run_training("sft", bad, say=lines.append)
    assert (run.finished, run.folder, run.config) == (True, Path(config.output), bad)
    assert lines[-1] == f"saved in {config.output}"
    assert log_of(bad)[-1]["step"] < 100


def test_bf16_checkpointing_and_accumulation_run(config):
    run_training("aft", replace(config, bf16=True, gradient_checkpointing=True, accumulate=2, max_steps=2))
    assert log_of(config)[-1]["step"] == 2


@pytest.mark.long
def test_a_constant_rate_is_reached_by_warmup(config):
    run_training("sft", replace(config, schedule="constant", warmup=0.5, epochs=2))
    rates = [row["learning_rate"] for row in log_of(config) if "learning_rate" in row]
    assert rates[0] < rates[1] < rates[-1] == config.learning_rate


def test_a_run_of_one_step_learns(config):
    run_training("sft", replace(config, batch_size=8))
    assert [row["step"] for row in log_of(config) if "loss" in row] == [1]
    assert max(float(tensor.abs().max()) for name, tensor in weights(config.output).items() if "lora_B" in name) > 0


def test_a_loss_that_is_no_number_stops_the_run(config):
    hot = replace(config, learning_rate=1e30, schedule="constant", warmup=0, lora_rank=0)
    with pytest.raises(EngineError, match=r"became (nan|inf) by step \d+: train again with a lower learning_rate"):
        run_training("sft", hot)


def test_targets_that_ignore_the_drafts_are_warned_of(config, capsys):
    rows = [{"query": f"q{n}", "drafts": [f"alpha {n}", f"beta {n}"], "target": "zebra"} for n in range(4)]
    for more, message in (
        ({}, "than with the drafts of other queries"),
        ({"sft_target": "zebra"}, "every target is its"),
    ):
        Path(config.data).write_text("".join(json.dumps({**row, **more}) + "\n" for row in rows))
        run_training("aft", replace(config, k=(2,), max_steps=1, output=f"{config.output}{len(more)}"))
        assert message in capsys.readouterr().out


@pytest.mark.long
def test_drafts_that_the_prompt_does_not_show_are_warned_about(config, capsys):
    rows = Path(config.data).read_text()
    Path(config.data).write_text(rows.replace('["0", "1", "2"]', '["<think>0", "1", "<think>2"]'))
    run_training("aft", replace(config, k=(3,), max_steps=1))
    output = capsys.readouterr().out
    assert "warning: 2 drafts are not shown: without control tokens and thoughts they are empty." in output
    assert "does not show all drafts" not in output


@pytest.mark.long
def test_draws_of_fewer_drafts_than_a_target_may_be_made_from_are_warned_about(config, capsys):
    run_training("aft", replace(config, max_steps=1))
    line = "warning: k=1,3 does not show all drafts of 8 rows, and no sources say which ones"
    assert line in capsys.readouterr().out
    rows = [json.loads(line) | {"sources": [1]} for line in Path(config.data).read_text().splitlines()]
    Path(config.data).write_text("".join(json.dumps(row) + "\n" for row in rows))
    run_training("aft", replace(config, max_steps=1, output=f"{config.output}2"))
    assert "does not show all drafts" not in capsys.readouterr().out


@pytest.mark.long
def test_validation_rows_over_the_limit_are_counted(config, tmp_path, capsys):
    held_out = tmp_path / "held_out.jsonl"
    held_out.write_text(Path(config.data).read_text().replace("it is 1", "it is " + "1" * 300, 1))
    run_training("aft", replace(config, validation=str(held_out), max_length=200, max_steps=1))
    line = "validation: 8 rows, 9 examples; over max_length: 1 examples left out, drafts cut in 0"
    assert line in capsys.readouterr().out
    assert line in Path(config.output, "README.md").read_text()


def test_validation_rows_that_are_all_over_the_limit_are_named(config, tmp_path):
    held_out = tmp_path / "held_out.jsonl"
    held_out.write_text(Path(config.data).read_text().splitlines()[0].replace("it is 1", "it is " + "1" * 300))
    with pytest.raises(ConfigError, match="none of the 1 validation examples fits max_length=200: raise max_length"):
        run_training("aft", replace(config, validation=str(held_out), max_length=200, plain_share=0.0))


@pytest.mark.long
def test_examples_beyond_the_positions_of_the_model_are_warned_of(config, tmp_path, capsys):
    model_config = Path(save_tiny(tmp_path / "m"), "config.json")
    model_config.write_text(json.dumps(json.loads(model_config.read_text()) | {"max_position_embeddings": 27}))
    run_training("sft", replace(config, model=str(model_config.parent), max_steps=1))
    # All examples have 27 tokens.
    assert "longer than" not in capsys.readouterr().out
    model_config.write_text(json.dumps(json.loads(model_config.read_text()) | {"max_position_embeddings": 26}))
    run_training("sft", replace(config, model=str(model_config.parent), max_steps=1, output=f"{config.output}2"))
    assert "warning: 8 examples are longer than the 26 positions that the model knows: lower max_length to 26." in (
        capsys.readouterr().out
    )


@pytest.mark.parametrize(
    ("changes", "steps"),
    [
        ({"max_steps": 3}, [3]),
        ({"max_steps": 12, "epochs": 4}, [10, 12]),
        # Early stopping ends at an evaluation.
        ({"patience": 1, "epochs": 20}, None),
    ],
)
def test_the_last_step_is_always_logged(config, changes, steps):
    quiet = replace(contradicted(config) if "patience" in changes else config, log_every=10, **changes)
    run_training("sft", quiet)
    logged = [row["step"] for row in log_of(quiet) if "loss" in row]
    if steps is None:
        state = json.loads(next(Path(quiet.output).glob("checkpoints/*/trainer_state.json")).read_text())
        assert logged[-1] == max(row["step"] for row in log_of(quiet))
        assert logged[-1] < state["max_steps"]
    else:
        assert logged == steps


@pytest.mark.long
def test_target_words_that_the_tokenizer_does_not_know_are_warned_of(config, tmp_path, capsys):
    rows = [{"query": "1 2 3 4 make 10", "sft_target": target} for target in ("1 + 2 = 3", "one + 2 = 3", "1 plus 2")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    small = replace(config, model="bundled:base", template=None, k=(5,), lora_rank=2, max_steps=1, max_length=64)
    run_training("sft", small)
    assert "warning: 2 of 3 targets hold words that the tokenizer does not know" in capsys.readouterr().out
