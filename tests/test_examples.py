"""The example files of docs/fleet.md run, as far as a machine without a GPU, a cluster and a network allows."""

from __future__ import annotations

import importlib.util
import os
import subprocess
from pathlib import Path

import pytest
import yaml

from helpers.graded_tasks import write_task
from helpers.paths import ROOT
from lm_eval_aft.storage.results import read_run

EXAMPLES = ROOT / "docs" / "examples"
NUMBERS = [{"question": f"q{number}", "answer": str(number)} for number in range(8)]


@pytest.mark.long
def test_slurm_shards_and_their_join_are_one_run(warm, tmp_path):
    """Slurm itself is replaced by the variable that it sets."""
    programs = warm.programs(tmp_path, "aft", "lm_eval")
    write_task(tmp_path / "tasks", documents=NUMBERS)
    variables = {
        **os.environ,
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "MODEL_ARGS": "engine=scripted,k=2,layers=1",
        "TASKS": "numbers",
        "MORE": "--include_path tasks",
        "SHARDS": "2",
    }

    def run(script: str, **more: str) -> str:
        done = subprocess.run(
            ["bash", EXAMPLES / script],
            env={**variables, **more},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    for shard in ("1", "2"):
        assert f"Shard {shard}/2 is done and has no score" in run("slurm_shards.sh", SLURM_ARRAY_TASK_ID=shard)
    assert "24 generations of 2 stores" in run("slurm_join.sh")
    settings = read_run(tmp_path / "out" / "joined").settings
    assert (settings["answers"], settings["spent"]["generations"]) == (8, 0)


def vllm_words(folder: Path, role: str) -> list[str]:
    """The words that vllm_fleet.sh starts vllm with."""
    program = folder / "vllm"
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    program.chmod(0o755)
    done = subprocess.run(
        ["bash", EXAMPLES / "vllm_fleet.sh", role, "MODEL", "10.0.0.1"],
        env={**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_the_vllm_fleet_starts_one_server_of_four_replicas(tmp_path):
    first, second = vllm_words(tmp_path, "first"), vllm_words(tmp_path, "second")
    assert first[:2] == second[:2] == ["serve", "MODEL"]
    assert "--headless" in second
    assert "--headless" not in first
    with pytest.raises(AssertionError, match="give first or second, not third"):
        vllm_words(tmp_path, "third")


@pytest.mark.vllm
@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed here")
def test_vllms_own_parser_takes_the_arguments_of_the_fleet(tmp_path):
    from vllm.engine.arg_utils import EngineArgs
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = make_arg_parser(FlexibleArgumentParser())
    first, second = (parser.parse_args(vllm_words(tmp_path, role)[1:]) for role in ("first", "second"))
    assert (first.model_tag, first.data_parallel_size, first.tensor_parallel_size) == ("MODEL", 4, 2)
    assert (second.headless, second.data_parallel_start_rank) == (True, 2)
    # Without a network vLLM takes a folder only.
    assert EngineArgs(**llm_config()["engine_kwargs"], model=str(tmp_path)).tensor_parallel_size == 2


def llm_config() -> dict:
    (application,) = yaml.safe_load((EXAMPLES / "ray_serve.yaml").read_text())["applications"]
    (config,) = application["args"]["llm_configs"]
    return config


def test_the_ray_file_is_read_by_ray_itself():
    pytest.importorskip("ray", reason="Ray is not installed here")
    from ray.serve.config import AutoscalingConfig
    from ray.serve.schema import ServeDeploySchema

    schema = ServeDeploySchema(**yaml.safe_load((EXAMPLES / "ray_serve.yaml").read_text()))
    assert schema.applications[0].import_path == "ray.serve.llm:build_openai_app"
    scaling = AutoscalingConfig(**llm_config()["deployment_config"]["autoscaling_config"])
    assert (scaling.min_replicas, scaling.max_replicas) == (1, 8)


def test_the_model_of_the_ray_file_is_read_by_rays_llm_package():
    llm = pytest.importorskip("ray.serve.llm", reason="Ray's LLM package is not installed here", exc_type=ImportError)
    config = llm.LLMConfig(**llm_config())
    assert (config.model_id, config.engine_kwargs["tensor_parallel_size"]) == ("NAME", 2)
