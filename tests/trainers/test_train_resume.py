"""aft train resumes: a killed run ends like an undisturbed one, and another run is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from helpers.training_runs import SHORT, Killed, contradicted, log_of, run_until, same, weights
from lm_eval_aft.core.errors import AFTError, ConfigError, EngineError
from lm_eval_aft.core.files import file_digest, locked
from lm_eval_aft.inference.checkpoint import FILE, CheckpointConfig
from trainers.fitting import callbacks, loop
from trainers.fitting.run import check_checkpoint
from trainers.train import run_training

# A checkpoint of a training run.
HALF = Path(__file__).parents[1] / "fixtures/version_0_1_0/half/checkpoints/checkpoint-2"


def test_a_killed_run_resumes_and_ends_with_the_same_weights(config, tmp_path, monkeypatch, capsys):
    config = replace(config, epochs=2, lora_dropout=0.1)
    run_training("aft", replace(config, output=str(tmp_path / "whole")))
    run_until(monkeypatch, config, 7)
    # This stands for a kill while the checkpoint was written.
    half = Path(config.output, "checkpoints", "checkpoint-8")
    half.mkdir()
    capsys.readouterr()
    run_training("aft", config)
    assert "resumes after checkpoint 6" in capsys.readouterr().out
    assert same(weights(config.output), weights(tmp_path / "whole"))
    whole = [(row["step"], row["tokens"]) for row in log_of(replace(config, output=str(tmp_path / "whole")))]
    # The count of tokens continues too.
    assert [(row["step"], row["tokens"]) for row in log_of(config)] == whole
    assert [step for step, _ in whole] == list(range(1, 11))
    run_training("aft", config)
    assert "is finished: nothing is left to train" in capsys.readouterr().out


def test_a_run_of_long_epochs_resumes_within_one(config, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(callbacks, "SAVE_AFTER_S", 0.0)
    config = replace(contradicted(config), save_every=None)
    run_training("sft", replace(config, output=str(tmp_path / "whole")))
    run_until(monkeypatch, config, 3, "sft")
    (kept,) = Path(config.output).glob("checkpoints/checkpoint-*")
    capsys.readouterr()
    run_training("sft", config)
    assert f"resumes after {kept.name.replace('-', ' ')}." in capsys.readouterr().out
    assert same(weights(config.output), weights(tmp_path / "whole"))


@pytest.mark.parametrize("more", [{}, {"schedule": "constant", "max_steps": 5}, {"patience": 1, "epochs": 20}])
def test_a_run_that_died_before_it_was_saved_is_only_saved(config, tmp_path, monkeypatch, more):
    config = replace(contradicted(config), **more)
    run_training("sft", replace(config, output=str(tmp_path / "whole")))

    def die(*given):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(loop, "best_checkpoint", die)
        with pytest.raises(Killed):
            run_training("sft", config)
    log = log_of(config)
    (tmp_path / "elsewhere").mkdir()
    # The folder moves too.
    Path(config.output).rename(tmp_path / "elsewhere" / "run")
    config = replace(config, output=str(tmp_path / "elsewhere" / "run"))
    run_training("sft", config)
    assert log_of(config) == log
    assert same(weights(config.output), weights(tmp_path / "whole"))


def test_resuming_with_other_settings_says_which_are_in_force(config, monkeypatch, capsys):
    run_until(monkeypatch, config, 3)
    capsys.readouterr()
    run_training("aft", replace(config, learning_rate=0.5, log_every=5))
    output = capsys.readouterr().out
    assert "learning_rate stays 0.001: the run was started with it, 0.5 does not count." in output
    assert "log_every is now 5 (was 1)." in output
    assert [row["step"] for row in log_of(config)] == [1, 2, 5]
    assert max(row["learning_rate"] for row in log_of(config) if "learning_rate" in row) <= 0.001


@pytest.mark.long
def test_a_run_without_k_can_be_opened_again(config, monkeypatch, capsys):
    free = replace(config, k=())
    run_until(monkeypatch, free, 3)
    run_training("aft", free)
    assert "resumes after checkpoint 2" in capsys.readouterr().out
    run_training("aft", free)
    assert "is finished: nothing is left to train" in capsys.readouterr().out
    run_training("aft", free, merge=True)
    assert Path(config.output, "merged", "model.safetensors").is_file()


def test_a_finished_run_does_not_report_settings_without_effect(config, capsys):
    run_training("sft", replace(config, max_steps=1))
    capsys.readouterr()
    run_training("sft", replace(config, max_steps=1, log_every=7))
    assert "is now" not in capsys.readouterr().out


@pytest.mark.long
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
    # Version 0.1.0 wrote a state like this.
    run_training("aft", moved)
    assert "is finished" in capsys.readouterr().out


@pytest.mark.long
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


@pytest.mark.long
def test_a_run_that_resumes_without_validation_keeps_its_last_weights(config, monkeypatch, capsys):
    run_until(monkeypatch, contradicted(config), 7, "sft")
    capsys.readouterr()
    run_training("sft", replace(config, validation=None))
    assert "kept: " not in capsys.readouterr().out
    assert "kept: " not in Path(config.output, "README.md").read_text()


@pytest.mark.long
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
    # A merged checkpoint needs no base.
    assert "--model_args pretrained=HERE,k=3" in merged


def test_a_folder_of_a_run_that_was_refused_before_its_first_step_is_free(config, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(loop, "keeps_shards", lambda trainer: True)
        with pytest.raises(ConfigError, match="stage 3 would keep the weights in shards"):
            run_training("sft", replace(config, lora_rank=0))
    assert list(Path(config.output).iterdir())
    run_training("sft", replace(config, max_steps=1))


def test_a_run_without_a_checkpoint_starts_again_with_the_current_settings(config, monkeypatch, capsys):
    run_until(monkeypatch, config, 1)
    assert not list(Path(config.output).glob("checkpoints/*"))
    Path(config.data).write_text("".join(Path(config.data).read_text().splitlines(keepends=True)[:-1]))
    run_training("sft", replace(config, learning_rate=1e-5, max_steps=2))
    assert f"the run in {config.output} starts again: no checkpoint was written." in capsys.readouterr().out
    state = json.loads(Path(config.output, "run.json").read_text())
    assert (state["kind"], state["config"]["learning_rate"]) == ("sft", 1e-5)
    assert [row["step"] for row in log_of(config)] == [1, 2]


def test_a_run_resumes_in_as_many_processes_as_it_started_with(config, monkeypatch):
    run_until(monkeypatch, config, 3)
    with monkeypatch.context() as patch:
        patch.setenv("WORLD_SIZE", "2")
        with pytest.raises(ConfigError, match="was started with WORLD_SIZE=1 and has 2 now: start 1 processes"):
            run_training("aft", config)
    run_training("aft", config)
    monkeypatch.setenv("WORLD_SIZE", "2")
    # A finished run is not trained again.
    run_training("aft", config)


@pytest.mark.long
def test_patience_keeps_its_count_after_a_kill(config, tmp_path, monkeypatch):
    bad = replace(contradicted(config), save_every=1, epochs=20, patience=3)
    run_training("sft", replace(bad, output=str(tmp_path / "whole")))
    last = log_of(replace(bad, output=str(tmp_path / "whole")))[-1]["step"]
    run_until(monkeypatch, bad, last - 1, "sft")
    run_training("sft", bad)
    assert log_of(bad)[-1]["step"] == last
    assert same(weights(bad.output), weights(tmp_path / "whole"))


@pytest.mark.long
def test_patience_can_be_set_later(config, monkeypatch):
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


def test_a_run_of_version_0_1_0_keeps_its_template(config, monkeypatch, tmp_path):
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


@pytest.mark.long
def test_two_trainings_in_one_folder(config, monkeypatch):
    run_until(monkeypatch, config, 3)
    half = Path(config.output, "checkpoints", "checkpoint-3")
    half.mkdir()
    with locked(Path(config.output), "busy"):
        with pytest.raises(
            ConfigError, match=r"another aft train is at work in output=.*: wait until it ends, or give"
        ):
            run_training("aft", config)
        # The second command removed nothing of what the first one writes.
        assert half.is_dir()
    run_training("aft", config)
    assert (Path(config.output) / "adapter_model.safetensors").is_file()


CUT = {
    "cut": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "text": lambda content: b"x" * 99,
}


@pytest.mark.parametrize("change", CUT)
@pytest.mark.parametrize(
    "name",
    [
        *("trainer_state.json", "optimizer.pt", "scheduler.pt", "rng_state.pth", "adapter_model.safetensors"),
        *("adapter_config.json", "aft_config.json"),
    ],
)
def test_a_checkpoint_with_a_damaged_file(name, change, tmp_path):
    checkpoint = tmp_path / "checkpoint-2"
    shutil.copytree(HALF, checkpoint)
    check_checkpoint(checkpoint)
    file = checkpoint / name
    file.write_bytes(CUT[change](file.read_bytes()))
    with pytest.raises(ConfigError, match=rf"checkpoint-2 is damaged \({name}: .*\): remove this folder"):
        check_checkpoint(checkpoint)


@pytest.mark.parametrize("name", ["trainer_state.json", "optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_a_checkpoint_that_lacks_a_file(name, tmp_path):
    checkpoint = tmp_path / "checkpoint-2"
    shutil.copytree(HALF, checkpoint)
    (checkpoint / name).unlink()
    with pytest.raises(
        ConfigError, match=rf"checkpoint-2 is damaged \(it has no {name}, so the training would differ\): remove this"
    ):
        check_checkpoint(checkpoint)


def test_a_checkpoint_whose_index_names_a_pickle(tmp_path):
    checkpoint = tmp_path / "checkpoint-2"
    shutil.copytree(HALF, checkpoint)
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "a.bin"}}))
    with pytest.raises(ConfigError, match=r"checkpoint-2 is damaged \(model\.safetensors\.index\.json names 'a\.bin'"):
        check_checkpoint(checkpoint)


@pytest.mark.parametrize("names", [("optimizer_0", "rng_state_0.pth"), ("global_step2", "rng_state_1.pth")])
def test_the_files_of_sharded_checkpoints_count(names, tmp_path):
    checkpoint = tmp_path / "checkpoint-2"
    shutil.copytree(HALF, checkpoint)
    (checkpoint / "optimizer.pt").unlink()
    (checkpoint / "rng_state.pth").rename(checkpoint / names[1])
    (checkpoint / names[0]).mkdir()
    check_checkpoint(checkpoint)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("trainer_state.json", b"{}"),
        ("trainer_state.json", b'{"global_step": "x"}'),
        ("trainer_state.json", b"[" * 150 + b"]" * 150),
        ("trainer_state.json", b"5"),
        ("adapter_config.json", b"{}"),
        ("adapter_config.json", b'{"peft_type": "LORA", "r": 0}'),
    ],
)
def test_a_checkpoint_of_another_shape_is_named(name, content, config, monkeypatch):
    run_until(monkeypatch, config, 3)
    file = Path(config.output, "checkpoints", "checkpoint-2", name)
    file.write_bytes(content)
    try:
        run_training("aft", config)
        message = ""
    except AFTError as error:
        message = str(error)
    assert not message or "checkpoint-2 is damaged" in message
    assert "\n" not in message


@pytest.mark.long
def test_a_checkpoint_whose_optimizer_is_of_another_model(config, monkeypatch):
    run_until(monkeypatch, config, 3)
    torch.save({"state": {}, "param_groups": []}, Path(config.output, "checkpoints", "checkpoint-2", "optimizer.pt"))
    with pytest.raises(EngineError, match=r"checkpoint-2 is damaged \(.*\): remove this folder"):
        run_training("aft", config)
