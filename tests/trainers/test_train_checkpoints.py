"""The checkpoints of aft train: which are kept, what they hold, and failures while one is written."""

from __future__ import annotations

import errno
import json
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from helpers.full_disk import small_disk
from helpers.tiny_models import save_tiny, tiny_tokenizer
from helpers.training_runs import SHORT, contradicted, log_of, same, weights
from lm_eval_aft.core.errors import ConfigError, EngineError
from lm_eval_aft.core.prompts import DEFAULT_TEMPLATE, Template
from lm_eval_aft.inference.checkpoint import FILE, CheckpointConfig
from trainers.fitting import loop
from trainers.fitting.callbacks import RunLog
from trainers.fitting.checkpoint_card import write_checkpoint_card
from trainers.fitting.run import check_checkpoint
from trainers.train import run_training, train


# peft in HFLM uses the deprecated name.
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_aft_from_the_command_line_to_an_evaluation(config, tmp_path, tiny):
    (tmp_path / "c.yaml").write_text(
        json.dumps({k: v for k, v in config.to_dict().items() if v not in (None, ())} | {"validation": config.data})
    )
    result = CliRunner().invoke(train, ["aft", "--config", str(tmp_path / "c.yaml"), "--merge", "--set", "epochs=2"])
    assert result.exit_code == 0, result.output
    assert "8 rows, 10 examples: 8 with drafts, 2 without" in result.output
    assert "position of the draft nearest to the target" in result.output
    run = Path(config.output)
    aft = CheckpointConfig.load(run / FILE)
    assert (aft.template, aft.k, aft.base_model) == (SHORT, None, tiny)
    card = (run / "README.md").read_text()
    assert "seed 0" in card
    assert "| `learning_rate` | 0.001 |" in card
    assert "| step | training loss | validation loss |" in card
    assert not list(run.glob("*.bin"))
    losses = [row["eval_loss"] for row in log_of(config) if "eval_loss" in row]
    assert losses[-1] < losses[0]
    assert f"validation loss {min(losses):.4f}, the lowest" in result.output

    from lm_eval_aft.model import AFTLM

    args = {"dtype": "float32", "k": 2, "layers": 1, "max_gen_toks": 8, "cache": "none"}
    apart = AFTLM(device="cpu", pretrained=tiny, peft=str(run), **args)
    # An adapter comes with the tokenizer of its training.
    assert apart.tokenizer.name_or_path == str(run)
    merged = AFTLM(device="cpu", pretrained=str(run / "merged"), **args)
    assert apart.template.source == merged.template.source == SHORT
    texts = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        logits = [model.engine.model(texts).logits for model in (apart, merged)]
    assert torch.allclose(*logits, atol=1e-4)


def test_the_lowest_validation_loss_is_what_is_kept(config):
    bad = contradicted(config)
    run_training("sft", bad)
    losses = {row["step"]: row["eval_loss"] for row in log_of(bad) if "eval_loss" in row}
    best = min(losses, key=losses.get)
    assert best != max(losses), losses
    assert same(weights(bad.output), weights(f"{bad.output}/checkpoints/checkpoint-{best}"))
    card = Path(bad.output, "README.md").read_text()
    assert f"kept: step {best} of" in card


def test_full_fine_tuning_saves_a_full_checkpoint_in_the_requested_dtype(config):
    run_training("aft", replace(config, lora_rank=0, save_dtype="bfloat16", k=(3,)), merge=True)
    saved = weights(config.output, "model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.bfloat16}
    assert CheckpointConfig.load(Path(config.output, FILE)).k == 3
    assert not Path(config.output, "merged").exists()


@pytest.mark.long
def test_a_tokenizer_without_pad_or_chat_template_is_saved_with_one(config, tmp_path):
    from transformers import AutoTokenizer

    folder = tmp_path / "bare"
    save_tiny(folder, chat_template=None)
    tokenizer = tiny_tokenizer(None)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(folder)
    run_training("sft", replace(config, model=str(folder), max_steps=1))
    saved = AutoTokenizer.from_pretrained(config.output)
    assert "### Assistant" in saved.chat_template


@pytest.mark.long
def test_the_inference_template_is_the_default_where_none_is_given(config):
    run_training("sft", replace(config, template=None, max_steps=1))
    aft = CheckpointConfig.load(Path(config.output, FILE))
    assert aft.template == DEFAULT_TEMPLATE
    assert aft.template_sha256 == Template.load(None).digest


def test_the_card_names_the_most_drafts_that_were_shown(config):
    run_training("aft", replace(config, k=(), max_steps=1))
    assert ",k=3,layers=1 " in Path(config.output, "README.md").read_text()
    assert CheckpointConfig.load(Path(config.output, FILE)).k == 3


@pytest.mark.long
def test_the_card_names_the_revision_that_was_trained_on(config):
    run_training("aft", replace(config, revision="v1", max_steps=1))
    card = Path(config.output, "README.md").read_text()
    assert f"pretrained={config.model},peft=HERE,tokenizer=HERE,revision=v1,k=3,layers=1 " in card


@pytest.mark.long
def test_a_full_disk_while_merging_is_one_sentence(config, monkeypatch):
    def full(folder, *rest, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    run_training("sft", replace(config, max_steps=1))
    with monkeypatch.context() as patch:
        patch.setattr("trainers.fitting.model.write_checkpoint_card", full)
        with pytest.raises(EngineError, match="the disk is full"):
            run_training("sft", replace(config, max_steps=1), merge=True)
    run_training("sft", replace(config, max_steps=1), merge=True)


@pytest.mark.long
def test_weights_that_are_no_numbers_are_no_checkpoint(config):
    hot = replace(config, learning_rate=1e30, schedule="constant", warmup=0, lora_rank=0, save_every=1, log_every=100)
    with pytest.raises(EngineError, match="weights became NaN or infinite by step"):
        run_training("sft", hot)
    for path in Path(config.output).glob("checkpoints/*"):
        # No checkpoint of broken weights was begun.
        assert (path / FILE).is_file()
        assert all(tensor.isfinite().all() for tensor in weights(path, "model.safetensors").values())


def test_weights_in_shards_of_deepspeed_are_looked_at_there():
    log = RunLog(None, None, (), print)
    model = torch.nn.Linear(1, 1, bias=False)
    # Stage 3 leaves weights like this.
    model.weight.data = torch.empty(0)
    model.weight.ds_tensor = torch.tensor([1.0])
    assert log.is_sound(model)
    model.weight.ds_tensor = torch.tensor([float("nan")])
    assert not log.is_sound(model)


@pytest.mark.parametrize("how", ["broken weights", "a full disk"])
@pytest.mark.long
def test_the_last_whole_checkpoint_is_there_until_the_next_one_is(config, monkeypatch, capsys, how):
    def broken(self, args, state, control, model=None, **rest):
        if state.global_step == 3:
            with torch.no_grad():
                next(w for w in model.parameters() if w.requires_grad)[0, 0] = float("nan")

    def full(folder, *rest):
        if folder.name == "checkpoint-4":
            raise OSError(errno.ENOSPC, "No space left on device")
        write_checkpoint_card(folder, *rest)

    quiet = replace(config, log_every=100, keep=1)
    with monkeypatch.context() as patch:
        if how == "broken weights":
            patch.setattr(RunLog, "on_step_end", broken)
        else:
            patch.setattr("trainers.fitting.callbacks.write_checkpoint_card", full)
        with pytest.raises(EngineError, match="NaN or infinite by step 4" if "weights" in how else "disk is full"):
            run_training("sft", quiet)
    capsys.readouterr()
    run_training("sft", quiet)
    assert "resumes after checkpoint 2" in capsys.readouterr().out
    assert {path.name for path in Path(config.output, "checkpoints").iterdir()} == {"checkpoint-4"}


def test_newest_checkpoints_are_kept_and_the_best_one_stays(config):
    bad = replace(contradicted(config), keep=2, save_every=2)
    run_training("sft", bad)
    losses = {row["step"]: row["eval_loss"] for row in log_of(bad) if "eval_loss" in row}
    kept = {path.name for path in Path(bad.output, "checkpoints").iterdir()}
    assert len(losses) > 3
    newest = sorted(losses)[-2:]
    assert kept == {f"checkpoint-{step}" for step in {min(losses, key=losses.get), *newest}}
    run_training("sft", replace(bad, keep=1, output=f"{bad.output}-one"))
    kept = {path.name for path in Path(f"{bad.output}-one", "checkpoints").iterdir()}
    assert kept == {f"checkpoint-{min(losses, key=losses.get)}"}


def test_a_run_whose_weights_were_not_written_is_not_finished(config, monkeypatch):
    save = loop.AFTTrainer.save_model

    # Some settings do this with shards.
    def save_checkpoints_alone(self, folder, _internal_call=False):
        return save(self, folder, _internal_call) if _internal_call else None

    with monkeypatch.context() as patch:
        patch.setattr(loop.AFTTrainer, "save_model", save_checkpoints_alone)
        with pytest.raises(EngineError, match=r"no weights were written to .*: configure the launcher"):
            run_training("sft", config)
    assert not json.loads(Path(config.output, "run.json").read_text())["finished"]


@pytest.mark.parametrize(("size", "missing"), [("560k", "model.safetensors"), ("760k", "scheduler.pt")])
@pytest.mark.long
def test_a_full_disk_is_one_sentence_and_the_run_can_resume(config, tmp_path, capsys, size, missing):
    with small_disk(tmp_path / "small", size) as disk:
        whole = replace(config, lora_rank=0, keep=1, output=str(disk / "run"))
        with pytest.raises(EngineError, match="the disk is full: a checkpoint could not be written") as full:
            run_training("sft", whole)
        assert full.value.exit_code == 2
        # The disk had no room for the weights, or for the optimizer, which is before this file.
        checkpoints = Path(whole.output, "checkpoints")
        assert not (checkpoints / "checkpoint-4" / missing).exists()
        check_checkpoint(checkpoints / "checkpoint-2")
        with pytest.raises(EngineError, match="the disk is full"):
            run_training("sft", whole)
        subprocess.run(["mount", "-o", "remount,size=4m", disk], check=True)
        capsys.readouterr()
        run_training("sft", whole)
        assert "resumes after checkpoint 2" in capsys.readouterr().out
        assert json.loads(Path(whole.output, "run.json").read_text())["finished"]


@pytest.mark.parametrize(
    "error", [RuntimeError("No space left on device"), OSError(errno.EIO, "Input/output error")], ids=repr
)
@pytest.mark.long
def test_an_error_of_a_save_on_a_disk_with_room_is_not_called_a_full_disk(config, monkeypatch, error):
    def fail(*args, **rest):
        raise error

    monkeypatch.setattr(loop.AFTTrainer, "_save_optimizer_and_scheduler", fail)
    with pytest.raises(type(error), match=re.escape(str(error))):
        run_training("sft", config)


def test_a_model_with_sampling_settings_that_it_does_not_use_can_be_saved(config, tmp_path):
    folder = Path(save_tiny(tmp_path / "m"))
    generation = {"temperature": 0.9, "top_p": 0.6, "do_sample": False}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    run_training("sft", replace(config, model=str(folder), lora_rank=0, max_steps=2))
    assert json.loads(Path(config.output, "generation_config.json").read_text())["temperature"] == 0.9


@pytest.mark.parametrize("output", ["/proc/nothing/run", "rows.jsonl/run"])
def test_a_place_that_cannot_be_written_is_found_before_the_model_is(config, tmp_path, output):
    with pytest.raises(ConfigError, match=r"output=.* cannot be written \(.*\): give another folder"):
        run_training("sft", replace(config, output=str(tmp_path / output), model="nowhere/at-all"))
