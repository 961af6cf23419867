"""aft train, run for real on a tiny model: what it saves, how it goes on after a kill, and how it fails."""

from __future__ import annotations

import errno
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from helpers.paths import ROOT
from helpers.tiny_models import save_tiny, tiny_tokenizer
from lm_eval_aft.core.errors import ConfigError, EngineError
from lm_eval_aft.core.files import file_digest
from lm_eval_aft.core.prompts import DEFAULT_TEMPLATE, Template
from lm_eval_aft.engines.base import HostArgs
from lm_eval_aft.inference.checkpoint import FILE, CheckpointConfig
from trainers.fitting import loop
from trainers.fitting.batching import Collator, LengthGroupedSampler
from trainers.fitting.callbacks import RunLog
from trainers.fitting.card import write_card
from trainers.fitting.examples import MASK, Example
from trainers.fitting.model import load_tokenizer
from trainers.settings import Kind, TrainConfig, load_config, make_config
from trainers.train import run_training, train

SHORT = "{% block draft %}{% endblock %}{% block aggregate %}{{ drafts | join(' / ') }}{% endblock %}"


class Killed(BaseException):
    """A kill in the middle of a run."""


@pytest.fixture
def config(tmp_path: Path, tiny: str) -> TrainConfig:
    """Eight short rows, one step every two examples."""
    rows = [
        {
            "query": f"{n} + 1?",
            "drafts": [f"{n + d}" for d in range(3)],
            "target": f"it is {n + 1}",
            "sft_target": f"{n + 1}",
        }
        for n in range(8)
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "rows.jsonl").write_text(text)
    (tmp_path / "short.j2").write_text(SHORT)
    return TrainConfig(
        model=tiny,
        data=str(tmp_path / "rows.jsonl"),
        output=str(tmp_path / "run"),
        template=str(tmp_path / "short.j2"),
        k=(1, 3),
        lora_rank=2,
        batch_size=2,
        learning_rate=1e-3,
        log_every=1,
        save_every=2,
        device="cpu",
    )


def settings_of(config: TrainConfig) -> dict:
    return {name: value for name, value in config.to_dict().items() if value not in (None, ())}


def weights(folder: str | Path, name: str = "adapter_model.safetensors") -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(Path(folder, name))


def log_of(config: TrainConfig) -> list[dict]:
    return [json.loads(line) for line in Path(config.output, "log.jsonl").read_text().splitlines()]


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# ---------------------------------------------------------------- batches


def test_a_batch_holds_the_labels_from_the_first_target_on():
    examples = [Example((5, 6, 7, 8, 9), 3), Example((5, 6, 7), 2)]
    batch = Collator(0, trims_logits=True)(examples)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 9], [5, 6, 7, 0, 0]]
    assert batch["logits_to_keep"] == 4  # from position 1 on, whose logits predict the first target
    assert batch["labels"].tolist() == [[MASK, MASK, 8, 9], [MASK, 7, MASK, MASK]]
    whole = Collator(0, trims_logits=False)(examples)
    assert whole["labels"].tolist() == [[MASK, MASK, MASK, 8, 9], [MASK, MASK, 7, MASK, MASK]]
    assert "logits_to_keep" not in whole


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


def test_neighbours_have_similar_lengths_but_batches_come_in_any_order():
    lengths = [(7 * n) % 400 for n in range(403)]
    sampler = LengthGroupedSampler(lengths, 4, seed=1)
    order = list(sampler)
    assert sorted(order) == list(range(403))
    batches = [[lengths[i] for i in order[s : s + 4]] for s in range(0, 400, 4)]
    assert max(max(batch) - min(batch) for batch in batches) < 60
    firsts = [batch[0] for batch in batches[:50]]
    assert firsts not in (sorted(firsts), sorted(firsts, reverse=True))
    sampler.set_epoch(1)
    assert list(sampler) != order


# ---------------------------------------------------------------- a whole run


def contradicted(config: TrainConfig) -> TrainConfig:
    """A validation file that soon gets worse: the same questions, other answers."""
    text = Path(config.data).read_text().replace('"sft_target": "', '"sft_target": "no ')
    other = Path(config.data).with_name("other.jsonl")
    other.write_text(text)
    return replace(config, validation=str(other), learning_rate=0.03, schedule="constant", save_every=2, epochs=5)


def test_the_validation_loss_is_of_target_tokens_whatever_the_batch(config, tmp_path):
    rows = [{"query": "1?", "drafts": ["1"], "target": "1" * n, "sft_target": "1" * n} for n in (1, 2, 3, 50, 60)]
    (tmp_path / "held_out.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    seen = []
    for batch in (2, 5):
        output = str(tmp_path / f"batch{batch}")
        held_out = replace(config, validation=str(tmp_path / "held_out.jsonl"), output=output, batch_size=batch)
        run_training("sft", replace(held_out, learning_rate=1e-12, max_steps=1, save_every=1))
        seen += [row["eval_loss"] for row in log_of(held_out) if "eval_loss" in row]
    assert seen == [pytest.approx(seen[0], abs=1e-6)] * 2


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft in HFLM
def test_aft_from_the_command_line_to_an_evaluation(config, tmp_path, tiny):
    (tmp_path / "c.yaml").write_text(
        json.dumps({k: v for k, v in config.to_dict().items() if v not in (None, ())} | {"validation": config.data})
    )
    result = CliRunner().invoke(train, ["aft", "--config", str(tmp_path / "c.yaml"), "--merge", "--set", "epochs=2"])
    assert result.exit_code == 0, result.output
    assert "8 rows, 10 examples: 8 with drafts, 2 plain" in result.output
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
    assert apart.tokenizer.name_or_path == str(run)  # an adapter brings the tokenizer it was trained with
    merged = AFTLM(device="cpu", pretrained=str(run / "merged"), **args)
    assert apart.template.source == merged.template.source == SHORT
    texts = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        logits = [model.engine.scorer.model(texts).logits for model in (apart, merged)]
    assert torch.allclose(*logits, atol=1e-4)


def test_targets_that_ignore_the_drafts_are_warned_of(config, capsys):
    rows = [{"query": f"q{n}", "drafts": [f"alpha {n}", f"beta {n}"], "target": "zebra"} for n in range(4)]
    for more, said in (({}, "than with the drafts of other queries"), ({"sft_target": "zebra"}, "every target is its")):
        Path(config.data).write_text("".join(json.dumps({**row, **more}) + "\n" for row in rows))
        run_training("aft", replace(config, k=(2,), max_steps=1, output=f"{config.output}{len(more)}"))
        assert said in capsys.readouterr().out


def test_the_lowest_validation_loss_is_what_is_kept(config):
    bad = contradicted(config)
    run_training("sft", bad)
    losses = {row["step"]: row["eval_loss"] for row in log_of(bad) if "eval_loss" in row}
    best = min(losses, key=losses.get)
    assert best != max(losses), losses
    assert same(weights(bad.output), weights(f"{bad.output}/checkpoints/checkpoint-{best}"))
    card = Path(bad.output, "README.md").read_text()
    assert f"kept: step {best} of" in card


def test_early_stopping(config):
    bad = replace(contradicted(config), patience=1, epochs=50)
    run_training("sft", bad)
    assert log_of(bad)[-1]["step"] < 100


def test_full_fine_tuning_saves_a_full_checkpoint_in_the_asked_dtype(config):
    run_training("aft", replace(config, lora_rank=0, save_dtype="bfloat16", k=(3,)), merge=True)
    saved = weights(config.output, "model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.bfloat16}
    assert CheckpointConfig.load(Path(config.output, FILE)).k == 3
    assert not Path(config.output, "merged").exists()


def test_bf16_checkpointing_and_accumulation_run(config):
    run_training("aft", replace(config, bf16=True, gradient_checkpointing=True, accumulate=2, max_steps=2))
    assert log_of(config)[-1]["step"] == 2


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


# ---------------------------------------------------------------- going on


def run_until(monkeypatch: pytest.MonkeyPatch, config: TrainConfig, step: int, kind: Kind = "aft") -> None:
    """Train, and die when a step is logged."""
    whole = RunLog.on_log

    def on_log(self, args, state, control, logs=None, **rest):
        whole(self, args, state, control, logs=logs, **rest)
        if state.global_step == step:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(RunLog, "on_log", on_log)
        with pytest.raises(Killed):
            run_training(kind, config)


def test_a_killed_run_goes_on_and_ends_with_the_same_weights(config, tmp_path, monkeypatch, capsys):
    config = replace(config, epochs=2, lora_dropout=0.1)
    run_training("aft", replace(config, output=str(tmp_path / "whole")))
    run_until(monkeypatch, config, 7)
    half = Path(config.output, "checkpoints", "checkpoint-8")  # as if the kill had come while it was written
    half.mkdir()
    capsys.readouterr()
    run_training("aft", config)
    assert "goes on after checkpoint 6" in capsys.readouterr().out
    assert same(weights(config.output), weights(tmp_path / "whole"))
    whole = [(row["step"], row["tokens"]) for row in log_of(replace(config, output=str(tmp_path / "whole")))]
    assert [(row["step"], row["tokens"]) for row in log_of(config)] == whole  # the count of tokens goes on too
    assert [step for step, _ in whole] == list(range(1, 11))
    run_training("aft", config)
    assert "is finished: nothing is left to train" in capsys.readouterr().out


@pytest.mark.parametrize("more", [{}, {"schedule": "constant", "max_steps": 5}, {"patience": 1, "epochs": 20}])
def test_a_run_that_died_before_it_was_saved_is_only_saved(config, tmp_path, monkeypatch, more):
    config = replace(contradicted(config), **more)
    run_training("sft", replace(config, output=str(tmp_path / "whole")))

    def die(*given):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(loop, "_best", die)
        with pytest.raises(Killed):
            run_training("sft", config)
    log = log_of(config)
    (tmp_path / "elsewhere").mkdir()
    Path(config.output).rename(tmp_path / "elsewhere" / "run")  # and the folder has moved
    config = replace(config, output=str(tmp_path / "elsewhere" / "run"))
    run_training("sft", config)
    assert log_of(config) == log
    assert same(weights(config.output), weights(tmp_path / "whole"))


def test_a_home_in_the_settings_is_expanded(config, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "c.yaml").write_text(json.dumps({**settings_of(config), "output": "~/run", "data": "~/rows.jsonl"}))
    found = load_config(str(tmp_path / "c.yaml"), ["template=~/short.j2"])
    assert (found.output, found.data, found.template) == (config.output, config.data, config.template)
    assert load_config(str(tmp_path / "c.yaml"), ["output=~no-such-user/run"]).output == "~no-such-user/run"


def test_going_on_with_other_settings_says_which_win(config, monkeypatch, capsys):
    run_until(monkeypatch, config, 3)
    capsys.readouterr()
    run_training("aft", replace(config, learning_rate=0.5, log_every=5))
    said = capsys.readouterr().out
    assert "learning_rate stays 0.001: the run was started with it, 0.5 does not count." in said
    assert "log_every is now 5 (was 1)." in said
    assert [row["step"] for row in log_of(config)] == [1, 2, 5]
    assert max(row["learning_rate"] for row in log_of(config) if "learning_rate" in row) <= 0.001


def test_a_run_without_k_can_be_opened_again(config, monkeypatch, capsys):
    free = replace(config, k=())
    run_until(monkeypatch, free, 3)
    run_training("aft", free)
    assert "goes on after checkpoint 2" in capsys.readouterr().out
    run_training("aft", free)
    assert "is finished: nothing is left to train" in capsys.readouterr().out
    run_training("aft", free, merge=True)
    assert Path(config.output, "merged", "model.safetensors").is_file()


def test_a_finished_run_does_not_speak_of_settings_without_effect(config, capsys):
    run_training("sft", replace(config, max_steps=1))
    capsys.readouterr()
    run_training("sft", replace(config, max_steps=1, log_every=7))
    assert "is now" not in capsys.readouterr().out


def test_data_that_moved_are_the_same_and_another_template_is_refused(config, monkeypatch, capsys):
    run_until(monkeypatch, config, 3)
    moved = replace(config, data=str(Path(config.data).rename(Path(config.data).with_name("moved.jsonl"))))
    Path(config.template).write_text(SHORT.replace("' / '", "' or '"))
    with pytest.raises(ConfigError, match=r"was started with template \w{12}, now it is \w{12}: give another output"):
        run_training("aft", moved)
    Path(config.template).write_text(SHORT)
    run_training("aft", moved)
    assert f"data is now {moved.data}" in capsys.readouterr().out
    Path(config.template).write_text(SHORT.replace("' / '", "' or '"))
    with pytest.raises(ConfigError, match="was started with template"):
        run_training("aft", moved, merge=True)
    before = Path(config.output, "run.json")
    state = json.loads(before.read_text())
    before.write_text(json.dumps({name: state[name] for name in state if name not in ("template_digest", "processes")}))
    run_training("aft", moved)  # as 0.1.0 wrote it
    assert "is finished" in capsys.readouterr().out


def test_another_validation_file_is_refused_as_the_best_so_far_was_measured_on_the_first(config, tmp_path, monkeypatch):
    held_out = tmp_path / "held_out.jsonl"
    held_out.write_text(Path(config.data).read_text())
    config = replace(config, validation=str(held_out))
    run_until(monkeypatch, config, 3)
    held_out.write_text(Path(config.data).read_text().replace("it is", "it may be"))
    with pytest.raises(ConfigError, match=r"was started with validation \w{12}, now it is \w{12}: give another output"):
        run_training("aft", config)
    run_until(monkeypatch, replace(config, validation=None), 5)
    with pytest.raises(ConfigError, match="was started with validation"):
        run_training("aft", config)
    held_out.write_text(Path(config.data).read_text())
    run_training("aft", config)
    with pytest.raises(ConfigError, match="validation=gone cannot be read"):
        run_training("aft", replace(config, validation="gone"))


def test_without_validation_a_run_that_goes_on_keeps_its_last_weights_and_says_nothing_else(
    config, monkeypatch, capsys
):
    run_until(monkeypatch, contradicted(config), 7, "sft")
    capsys.readouterr()
    run_training("sft", replace(config, validation=None))
    assert "kept: " not in capsys.readouterr().out
    assert "kept: " not in Path(config.output, "README.md").read_text()


def test_the_card_names_the_most_drafts_that_were_shown(config):
    run_training("aft", replace(config, k=(), max_steps=1))
    assert ",k=3,layers=1 " in Path(config.output, "README.md").read_text()
    assert CheckpointConfig.load(Path(config.output, FILE)).k == 3


def test_the_card_names_the_revision_that_was_trained_on(config):
    run_training("aft", replace(config, revision="v1", max_steps=1))
    card = Path(config.output, "README.md").read_text()
    assert f"pretrained={config.model},peft=HERE,tokenizer=HERE,revision=v1,k=3,layers=1 " in card


def test_drafts_that_the_prompt_does_not_show_are_warned_about(config, capsys):
    rows = Path(config.data).read_text()
    Path(config.data).write_text(rows.replace('["0", "1", "2"]', '["<think>0", "1", "<think>2"]'))
    run_training("aft", replace(config, k=(3,), max_steps=1))
    said = capsys.readouterr().out
    assert "warning: 2 drafts are not shown: without control tokens and thoughts they are empty." in said
    assert "does not show all drafts" not in said


def test_draws_of_fewer_drafts_than_a_target_may_be_made_from_are_warned_about(config, capsys):
    run_training("aft", replace(config, max_steps=1))
    line = "warning: k=1,3 does not show all drafts of 8 rows, and no sources say which ones"
    assert line in capsys.readouterr().out
    rows = [json.loads(line) | {"sources": [1]} for line in Path(config.data).read_text().splitlines()]
    Path(config.data).write_text("".join(json.dumps(row) + "\n" for row in rows))
    run_training("aft", replace(config, max_steps=1, output=f"{config.output}2"))
    assert "does not show all drafts" not in capsys.readouterr().out


def test_a_constant_rate_is_reached_by_warmup(config):
    run_training("sft", replace(config, schedule="constant", warmup=0.5, epochs=2))
    rates = [row["learning_rate"] for row in log_of(config) if "learning_rate" in row]
    assert rates[0] < rates[1] < rates[-1] == config.learning_rate


def test_a_full_disk_while_merging_is_one_sentence(config, monkeypatch):
    def full(folder, *rest, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    run_training("sft", replace(config, max_steps=1))
    with monkeypatch.context() as patch:
        patch.setattr("trainers.fitting.model.write_card", full)
        with pytest.raises(EngineError, match="the disk is full"):
            run_training("sft", replace(config, max_steps=1), merge=True)
    run_training("sft", replace(config, max_steps=1), merge=True)


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


def test_a_model_that_moved_is_the_same_and_its_path_may_be_relative(config, tiny, tmp_path, monkeypatch, capsys):
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    home.mkdir()
    elsewhere.mkdir()
    shutil.copytree(tiny, home / "tiny")
    monkeypatch.chdir(home)
    config = replace(config, model="tiny")
    run_until(monkeypatch, config, 3)
    monkeypatch.chdir(elsewhere)
    capsys.readouterr()
    run_until(monkeypatch, replace(config, model="../home/tiny"), 5)
    assert "model " not in capsys.readouterr().out
    run_until(monkeypatch, replace(config, model=tiny), 5)
    assert f"model stays {home / 'tiny'}: the run was started with it" in capsys.readouterr().out
    (home / "tiny").rename(elsewhere / "moved")
    run_training("aft", replace(config, model="moved"), merge=True)
    assert f"model is now {elsewhere / 'moved'} (was {home / 'tiny'})" in capsys.readouterr().out
    merged = Path(config.output, "merged", "README.md").read_text()
    assert "--model_args pretrained=HERE,k=3" in merged  # it needs no base


def test_a_folder_of_a_run_that_was_refused_before_its_first_step_is_free(config, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(loop, "_keeps_shards", lambda trainer: True)
        with pytest.raises(ConfigError, match="stage 3 would keep the weights in shards"):
            run_training("sft", replace(config, lora_rank=0))
    assert list(Path(config.output).iterdir())
    run_training("sft", replace(config, max_steps=1))


def test_a_run_goes_on_in_as_many_processes_as_it_began(config, monkeypatch):
    run_until(monkeypatch, config, 3)
    with monkeypatch.context() as patch:
        patch.setenv("WORLD_SIZE", "2")
        with pytest.raises(ConfigError, match="was started with WORLD_SIZE=1, now it is 2: start as many"):
            run_training("aft", config)
    run_training("aft", config)
    monkeypatch.setenv("WORLD_SIZE", "2")
    run_training("aft", config)  # a finished one is not trained


def test_patience_goes_on_counting_after_a_kill(config, tmp_path, monkeypatch):
    bad = replace(contradicted(config), save_every=1, epochs=20, patience=3)
    run_training("sft", replace(bad, output=str(tmp_path / "whole")))
    last = log_of(replace(bad, output=str(tmp_path / "whole")))[-1]["step"]
    run_until(monkeypatch, bad, last - 1, "sft")
    run_training("sft", bad)
    assert log_of(bad)[-1]["step"] == last
    assert same(weights(bad.output), weights(tmp_path / "whole"))


def test_patience_can_be_asked_for_later(config, monkeypatch):
    bad = contradicted(config)
    run_until(monkeypatch, bad, 3, "sft")
    run_training("sft", replace(bad, patience=1))
    assert log_of(bad)[-1]["step"] < 20


def test_another_kind_other_data_or_a_strange_folder_is_refused(config, tmp_path):
    run_training("sft", replace(config, max_steps=1))
    with pytest.raises(ConfigError, match="was started with kind sft, now it is aft: give another output"):
        run_training("aft", config)
    Path(config.data).write_text(Path(config.data).read_text() * 2)
    with pytest.raises(ConfigError, match="was started with data"):
        run_training("sft", config)
    with pytest.raises(ConfigError, match="exists and is not the folder of a training run"):
        run_training("sft", replace(config, output=str(tmp_path)))


# ---------------------------------------------------------------- failing


def test_a_loss_that_is_no_number_stops_the_run(config):
    hot = replace(config, learning_rate=1e30, schedule="constant", warmup=0, lora_rank=0)
    with pytest.raises(
        EngineError, match=r"became (nan|inf) by step \d+: give another output with a lower learning_rate"
    ):
        run_training("sft", hot)


def test_weights_that_are_no_numbers_are_no_checkpoint(config):
    hot = replace(config, learning_rate=1e30, schedule="constant", warmup=0, lora_rank=0, save_every=1, log_every=100)
    with pytest.raises(EngineError, match="weights became no numbers by step"):
        run_training("sft", hot)
    for path in Path(config.output).glob("checkpoints/*"):
        assert (path / FILE).is_file()  # none was begun that could not be ended
        assert all(tensor.isfinite().all() for tensor in weights(path, "model.safetensors").values())


@pytest.mark.parametrize("how", ["broken weights", "a full disk"])
def test_the_last_whole_checkpoint_is_there_until_the_next_one_is(config, monkeypatch, capsys, how):
    def broken(self, args, state, control, model=None, **rest):
        if state.global_step == 3:
            with torch.no_grad():
                next(w for w in model.parameters() if w.requires_grad)[0, 0] = float("nan")

    def full(folder, *rest):
        if folder.name == "checkpoint-4":
            raise OSError(errno.ENOSPC, "No space left on device")
        write_card(folder, *rest)

    quiet = replace(config, log_every=100, keep=1)
    with monkeypatch.context() as patch:
        if how == "broken weights":
            patch.setattr(RunLog, "on_step_end", broken)
        else:
            patch.setattr("trainers.fitting.callbacks.write_card", full)
        with pytest.raises(EngineError, match="became no numbers by step 4" if "weights" in how else "disk is full"):
            run_training("sft", quiet)
    capsys.readouterr()
    run_training("sft", quiet)
    assert "goes on after checkpoint 2" in capsys.readouterr().out
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

    def save_checkpoints_alone(self, folder, _internal_call=False):  # as some settings do with shards
        return save(self, folder, _internal_call) if _internal_call else None

    with monkeypatch.context() as patch:
        patch.setattr(loop.AFTTrainer, "save_model", save_checkpoints_alone)
        with pytest.raises(EngineError, match=r"no weights were written to .*: let them be gathered"):
            run_training("sft", config)
    assert not json.loads(Path(config.output, "run.json").read_text())["finished"]


def test_of_several_gpus_without_a_launcher_one_is_used(config, monkeypatch, capsys):
    arguments = loop.arguments

    def seeing_two(*given):
        made = arguments(*given)
        made._n_gpu = 2
        return made

    monkeypatch.setattr(loop, "arguments", seeing_two)
    run_training("sft", config)
    assert "2 GPUs are in sight and one is used: accelerate launch" in capsys.readouterr().out
    assert json.loads(Path(config.output, "run.json").read_text())["finished"]


def test_a_run_of_before_templates_were_written_down_keeps_its_template(config, monkeypatch, tmp_path):
    (tmp_path / "other.j2").write_text(SHORT)
    started = replace(config, template=str(tmp_path / "other.j2"))
    run_until(monkeypatch, started, 3)
    file = Path(started.output, "run.json")
    state = json.loads(file.read_text())
    file.write_text(json.dumps({name: state[name] for name in state if name not in ("template_digest", "processes")}))
    run_training("aft", replace(started, template=None))
    assert CheckpointConfig.load(Path(config.output, FILE)).template == SHORT


@pytest.mark.parametrize("lost", ["kind", "finished", "data_digest", "config"])
def test_a_run_that_lost_part_of_its_state_is_refused(config, lost):
    path = Path(config.output, "run.json")
    path.parent.mkdir(parents=True)
    state = {"kind": "aft", "finished": False, "data_digest": file_digest(config.data), "config": config.to_dict()}
    path.write_text(json.dumps({name: state[name] for name in state if name != lost}))
    with pytest.raises(ConfigError, match=rf"run.json cannot be read \(it lacks {lost}\): give another output"):
        run_training("aft", config)


def test_a_full_disk_is_one_sentence_and_the_run_can_go_on(config, monkeypatch):
    def full(*args, **rest):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(loop.AFTTrainer, "_save_optimizer_and_scheduler", full)
        with pytest.raises(EngineError, match="the disk is full: a checkpoint could not be written"):
            run_training("sft", config)
    run_training("sft", config)
    assert json.loads(Path(config.output, "run.json").read_text())["finished"]


def test_a_model_or_targets_that_are_not_there(config):
    with pytest.raises(EngineError, match="model=nowhere/at-all cannot be loaded"):
        run_training("sft", replace(config, model="nowhere/at-all"))
    with pytest.raises(ConfigError, match="lora_targets=nothing does not fit the model"):
        run_training("sft", replace(config, lora_targets=("nothing",)))
    with pytest.raises(ConfigError, match=r"data=absent.jsonl cannot be read"):
        run_training("sft", replace(config, data="absent.jsonl"))


def test_lora_targets_are_all_there_or_refused(config, tmp_path):
    run_training(
        "sft", replace(make_config({**settings_of(config), "lora_targets": "q_proj, v_proj"}, ""), max_steps=1)
    )
    assert {name.split(".")[-3] for name in weights(config.output)} == {"q_proj", "v_proj"}
    other = replace(config, output=str(tmp_path / "other"), lora_targets=("q_proj", "vproj"))
    with pytest.raises(ConfigError, match="lora_targets=vproj does not fit the model: it has no layer of that name"):
        run_training("sft", other)


def test_an_adapter_on_weights_that_are_tied_is_refused(config, tmp_path):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(config.model)
    model.config.tie_word_embeddings = True
    model.tie_weights()
    model.save_pretrained(tmp_path / "tied")
    load_tokenizer(config).save_pretrained(tmp_path / "tied")
    other = replace(config, model=str(tmp_path / "tied"), output=str(tmp_path / "other"))
    for target in ("lm_head", "embed_tokens"):
        with pytest.raises(ConfigError, match=f"lora_targets={target} does not fit the model: .* one tensor"):
            run_training("sft", replace(other, lora_targets=(target,)))
    run_training("sft", replace(other, max_steps=1))  # all-linear leaves the output alone


def test_an_adapter_is_no_model_to_train_further(config, tmp_path):
    run_training("sft", replace(config, max_steps=1))
    again = replace(config, model=config.output, output=str(tmp_path / "again"))
    for rank in (0, 2):
        with pytest.raises(ConfigError, match="run is an adapter: merge it first"):
            run_training("aft", replace(again, lora_rank=rank))


def test_a_run_of_one_step_learns(config):
    run_training("sft", replace(config, batch_size=8))
    assert [row["step"] for row in log_of(config) if "loss" in row] == [1]
    assert max(float(tensor.abs().max()) for name, tensor in weights(config.output).items() if "lora_B" in name) > 0


def test_a_model_with_sampling_settings_that_it_does_not_use_can_be_saved(config, tmp_path):
    folder = Path(save_tiny(tmp_path / "m"))
    told = {"temperature": 0.9, "top_p": 0.6, "do_sample": False}
    (folder / "generation_config.json").write_text(json.dumps(told))
    run_training("sft", replace(config, model=str(folder), lora_rank=0, max_steps=2))
    assert json.loads(Path(config.output, "generation_config.json").read_text())["temperature"] == 0.9


def test_weights_that_are_cut_or_of_another_size_are_one_sentence(config, tmp_path):
    folder = Path(save_tiny(tmp_path / "m"))
    broken = replace(config, model=str(folder))
    told = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**told, "hidden_size": 64, "head_dim": 16}))
    with pytest.raises(EngineError, match=r"model=.* cannot be loaded: config.json does not fit the weights"):
        run_training("sft", broken)
    (folder / "config.json").write_text(json.dumps(told))
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:5000])
    with pytest.raises(EngineError, match=r"model=.* cannot be loaded: .* the weights are cut or damaged"):
        run_training("sft", broken)


def test_examples_beyond_the_positions_of_the_model_are_warned_of(config, tmp_path, capsys):
    told = Path(save_tiny(tmp_path / "m"), "config.json")
    told.write_text(json.dumps(json.loads(told.read_text()) | {"max_position_embeddings": 27}))
    run_training("sft", replace(config, model=str(told.parent), max_steps=1))
    assert "longer than" not in capsys.readouterr().out  # all have 27 tokens
    told.write_text(json.dumps(json.loads(told.read_text()) | {"max_position_embeddings": 26}))
    run_training("sft", replace(config, model=str(told.parent), max_steps=1, output=f"{config.output}2"))
    assert "warning: 8 examples are longer than the 26 positions that the model knows: lower max_length to 26." in (
        capsys.readouterr().out
    )


@pytest.mark.parametrize("output", ["/proc/nothing/run", "rows.jsonl/run"])
def test_a_place_that_cannot_be_written_is_found_before_the_model_is(config, tmp_path, output):
    with pytest.raises(ConfigError, match=r"output=.* cannot be written \(.*\): give another folder"):
        run_training("sft", replace(config, output=str(tmp_path / output), model="nowhere/at-all"))


def test_the_inference_template_is_the_default_where_none_is_given(config):
    run_training("sft", replace(config, template=None, max_steps=1))
    aft = CheckpointConfig.load(Path(config.output, FILE))
    assert aft.template == DEFAULT_TEMPLATE
    assert aft.template_sha256 == Template.load(None).digest


def test_help_needs_no_torch():
    import subprocess
    import sys

    code = "import sys; from trainers.train import train; sys.exit('torch' in sys.modules or 'lm_eval' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_engine_asks_what_was_trained(config, tmp_path):
    """The ids that the hf engine would send for a saved checkpoint are the ids of the training example."""
    from lm_eval_aft.core.prompts import aggregate_prompt
    from lm_eval_aft.core.records import Chat, Message
    from lm_eval_aft.engines.hf.engine import HFEngine
    from trainers.fitting.examples import Encoder
    from trainers.rows.samples import Sample

    run_training("aft", replace(config, lora_rank=0, max_steps=1))
    engine = HFEngine.load({"pretrained": config.output, "dtype": "float32"}, HostArgs("auto", None, "cpu"))
    chat, drafts = Chat((Message("user", "3 + 1?"),)), ("3", "4")
    asked = aggregate_prompt(Template(SHORT, ""), engine.renderer, chat, drafts, 500, final=True)
    encoder = Encoder(load_tokenizer(config), Template(SHORT, ""), 500)
    example, _ = encoder.encode(Sample(chat, drafts, "4", ""))
    assert example.token_ids[: example.prompt_tokens] == asked.prompt.token_ids


TOLD = """
import atexit, runpy, sys

def tell_group():  # registered before the trainer's handler, so called after it
    import torch.distributed as group
    print("a process group is left:", group.is_initialized(), file=sys.stderr)

atexit.register(tell_group)
runpy.run_module("trainers.train", run_name="__main__")
"""


STOPPED = """
import os, runpy
from trainers.fitting.callbacks import RunLog

whole = RunLog.on_log

def on_log(self, args, state, control, **rest):
    whole(self, args, state, control, **rest)
    if state.global_step == int(os.environ["STOP"]):
        os._exit(9)

RunLog.on_log = on_log
runpy.run_module("trainers.train", run_name="__main__")
"""


def in_two_processes(config: TrainConfig, folder: Path, script: str, **environment: str):
    """aft train sft, started twice."""
    import os
    import subprocess
    import sys

    (folder / "c.yaml").write_text(json.dumps(settings_of(config)))
    (folder / "script.py").write_text(script)
    command = ["torch.distributed.run", "--nproc_per_node", "2", str(folder / "script.py"), "sft"]
    command += ["--config", str(folder / "c.yaml")]
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | environment
    return subprocess.run([sys.executable, "-m", *command], env=environment, capture_output=True, text=True)


def test_two_processes_do_what_one_does_with_twice_the_batches(config, tmp_path):
    done = in_two_processes(config, tmp_path, TOLD)
    assert done.returncode == 0, done.stderr
    # one that is left until the interpreter has gone may abort a finished process
    assert done.stderr.count("a process group is left: False") == 2
    assert done.stdout.count("8 rows, 8 examples") == 1
    one = replace(config, output=str(tmp_path / "one"), accumulate=2, log_every=1)
    run_training("sft", one)
    steps = [(row["step"], row["tokens"]) for row in log_of(config)]
    assert steps == [(row["step"], row["tokens"]) for row in log_of(one)]
    assert [step for step, _ in steps] == [1, 2]  # eight examples, two processes, two each
    assert [row["loss"] for row in log_of(config)] == pytest.approx([row["loss"] for row in log_of(one)], rel=1e-3)
    ours, theirs = weights(config.output), weights(one.output)
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-4) for name in theirs)


def test_two_processes_go_on_in_the_second_pass_as_if_they_had_not_stopped(config, tmp_path):
    config = replace(config, batch_size=1, epochs=2, learning_rate=0.01)
    whole = replace(config, output=str(tmp_path / "whole"))
    assert in_two_processes(whole, tmp_path, STOPPED, STOP="0").returncode == 0
    assert in_two_processes(config, tmp_path, STOPPED, STOP="7").returncode != 0
    assert not Path(config.output, "adapter_model.safetensors").exists()
    done = in_two_processes(config, tmp_path, STOPPED, STOP="0")
    assert "goes on after checkpoint 6" in done.stdout  # four steps a pass
    ours, theirs = weights(config.output), weights(whole.output)
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-6) for name in theirs)


def test_weights_in_shards_of_deepspeed_are_looked_at_there():
    log = RunLog(None, None, (), print)
    model = torch.nn.Linear(1, 1, bias=False)
    model.weight.data = torch.empty(0)  # as stage 3 leaves them
    model.weight.ds_tensor = torch.tensor([1.0])
    assert log.is_sound(model)
    model.weight.ds_tensor = torch.tensor([float("nan")])
    assert not log.is_sound(model)
