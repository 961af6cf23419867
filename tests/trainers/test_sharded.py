"""Runs whose weights are sharded over two processes end in the checkpoint that one process makes."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from helpers.paths import ROOT
from trainers.settings import make_config
from trainers.train import run_training

FSDP = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
}
SHARDS = FSDP | {"FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT", "FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}
WHOLE = FSDP | {"FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT"}
ZERO2 = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2", "DS_ACCELERATOR": "cpu"}
ZERO3 = ZERO2 | {"ACCELERATE_DEEPSPEED_ZERO_STAGE": "3", "ACCELERATE_DEEPSPEED_ZERO3_INIT": "true"}
GATHERED = ZERO3 | {"ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL": "true"}
needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed: pip install deepspeed"
)
ALL = [
    pytest.param(SHARDS, id="fsdp, sharded checkpoints"),
    pytest.param(WHOLE, id="fsdp, full checkpoints"),
    pytest.param(ZERO2, id="deepspeed, stage 2", marks=needs_deepspeed),
    pytest.param(GATHERED, id="deepspeed, stage 3", marks=needs_deepspeed),
]


@pytest.fixture
def settings(tmp_path: Path, tiny: str) -> dict[str, object]:
    """A training on eight rows in four steps, validated and saved at every second step."""
    rows = [
        {"query": f"{n} + 1?", "drafts": [f"{n}", f"{n + 1}"], "target": f"it is {n + 1}", "sft_target": f"{n + 1}"}
        for n in range(8)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = {"model": tiny, "data": str(tmp_path / "rows.jsonl"), "validation": str(tmp_path / "rows.jsonl")}
    numbers = {
        "k": [2],
        "plain_share": 0,
        "lora_rank": 0,
        "batch_size": 2,
        "epochs": 2,
        "save_every": 2,
        "learning_rate": 1e-3,
    }
    return {**common, **numbers, "device": "cpu", "output": str(tmp_path / "sharded")}


def words(settings: dict[str, object]) -> list[str]:
    """Write the settings. Returns the words that train with them."""
    file = Path(str(settings["output"]) + ".yaml")
    file.write_text(json.dumps(settings))
    return [str(ROOT / "tests" / "helpers" / "sharded.py"), "aft", "--config", str(file)]


def launch(settings: dict[str, object], environment: dict[str, str], *options: str) -> subprocess.CompletedProcess[str]:
    """Train in two processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += [*words(settings), *options]
    one_thread = {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, env=os.environ | one_thread | environment, stdout=pipe, stderr=pipe, text=True
    ) as started:
        try:
            output, errors = started.communicate(timeout=300)
        except subprocess.TimeoutExpired:
            # A kill would leave the processes of torchrun behind.
            started.terminate()
            pytest.fail(f"the processes wait for each other: {started.communicate()[1][-4000:]}")
    return subprocess.CompletedProcess(command, started.returncode, output, errors)


def train(settings: dict[str, object], environment: dict[str, str], *options: str) -> str:
    """Train in two processes to the end. Returns the output of the first one."""
    done = launch(settings, environment, *options)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def weights(folder: object, name: str = "model.safetensors") -> dict[str, torch.Tensor]:
    return load_file(Path(str(folder), name))


def of_one(settings: dict[str, object], tmp_path: Path) -> str:
    """The folder of the same training in one process, with twice the batches."""
    output = str(tmp_path / "one")
    of_both = make_config(settings | {"output": output, "accumulate": 2}, "test")
    run_training("aft", of_both, merge=bool(of_both.lora_rank))
    return output


def assert_close(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor], atol: float = 1e-5) -> None:
    assert ours.keys() == theirs.keys()
    assert {name: w.dtype for name, w in ours.items()} == {name: w.dtype for name, w in theirs.items()}
    assert all(torch.allclose(ours[name], theirs[name], rtol=0, atol=atol) for name in theirs)


def validation_losses(folder: object) -> list[float]:
    rows = map(json.loads, Path(str(folder), "log.jsonl").read_text().splitlines())
    return [row["eval_loss"] for row in rows if "eval_loss" in row]


@pytest.mark.long
def test_shards_are_validated_and_gathered(warm, settings, tmp_path):
    # The fifth row has no partner in the last batch, and no process may count it twice.
    rows = Path(str(settings["data"])).read_text().splitlines()[:5]
    (tmp_path / "held_out.jsonl").write_text("\n".join([*rows[:4], rows[4].replace("it is", "it must be, I guess,")]))
    settings |= {"validation": str(tmp_path / "held_out.jsonl")}
    done, one = warm.ranks(words(settings), SHARDS), of_one(settings, tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]
    assert_close(weights(settings["output"]), weights(one))
    assert len(validation_losses(one)) == 2
    assert validation_losses(settings["output"]) == pytest.approx(validation_losses(one), abs=1e-4)
    # The newest checkpoint is the best. Trainer alone would not see its folder yet, or hang because one process does.
    assert "kept: step 4, validation loss" in done.stdout
    saved = Path(str(settings["output"]), "checkpoints", "checkpoint-4")
    # This shows that the training was sharded.
    assert (saved / "pytorch_model_fsdp_0").is_dir()
    assert not (saved / "model.safetensors").exists()


@pytest.mark.slow
@pytest.mark.parametrize("environment", ALL)
def test_a_killed_run_resumes_and_ends_with_the_best_weights(settings, tmp_path, environment):
    text = Path(str(settings["data"])).read_text()
    (tmp_path / "other.jsonl").write_text(text.replace('"target": "it is', '"target": "by no means'))
    settings |= {"validation": str(tmp_path / "other.jsonl"), "learning_rate": 0.03, "schedule": "constant"}
    assert launch(settings, environment | {"DIES": "2"}).returncode != 0
    assert not Path(str(settings["output"]), "model.safetensors").exists()
    output = train(settings, environment)
    assert "resumes after checkpoint 2" in output
    # Learning these answers raises the loss of the others.
    assert "kept: step 2, validation loss" in output
    one = of_one(settings, tmp_path)
    assert_close(weights(settings["output"]), weights(one))
    assert validation_losses(settings["output"]) == pytest.approx(validation_losses(one), abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("environment", [*ALL[:3], pytest.param(ZERO3, id="deepspeed, stage 3", marks=needs_deepspeed)])
def test_an_adapter_is_gathered_and_merged(settings, tmp_path, environment):
    settings |= {"lora_rank": 2}
    assert "merged in" in train(settings, environment, "--merge")
    one, name = of_one(settings, tmp_path), "adapter_model.safetensors"
    assert_close(weights(settings["output"], name), weights(one, name))
    assert_close(weights(Path(str(settings["output"]), "merged")), weights(Path(one, "merged")))


@pytest.mark.slow
@needs_deepspeed
def test_a_checkpoint_of_another_dtype_is_loaded_whole_where_stage_3_would_shard_it(settings, tmp_path):
    settings |= {"save_dtype": "bfloat16"}
    train(settings, GATHERED)
    assert_close(weights(settings["output"]), weights(of_one(settings, tmp_path)), atol=2e-3)
    assert {w.dtype for w in weights(settings["output"]).values()} == {torch.bfloat16}


@pytest.mark.slow
@needs_deepspeed
def test_where_deepspeed_would_keep_the_weights_to_itself_no_step_is_made(settings):
    done = launch(settings, ZERO3)
    assert done.returncode != 0
    assert "set stage3_gather_16bit_weights_on_model_save" in done.stderr
    assert not Path(str(settings["output"]), "log.jsonl").exists()
