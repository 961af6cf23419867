"""The checkpoints in the package: the default, their names, and what they can do."""

from __future__ import annotations

import logging
from itertools import islice

import pytest

from helpers.instances import make_instance
from lm_eval_aft import bundled
from lm_eval_aft.bundled import arith, choose_checkpoint, locate
from lm_eval_aft.core.engine import HostArgs
from lm_eval_aft.core.errors import ConfigError
from lm_eval_aft.core.jsonl import write_jsonl
from lm_eval_aft.core.prompts import DEFAULT_TEMPLATE
from lm_eval_aft.engines.registry import load_engine
from lm_eval_aft.inference.checkpoint import FILE, CheckpointConfig
from lm_eval_aft.model import AFTLM
from trainers.settings import make_config
from trainers.train import run_training


def test_without_pretrained_it_is_the_bundled_one_with_a_warning(caplog):
    with caplog.at_level(logging.WARNING, "lm_eval.aft"):
        args, name = choose_checkpoint("hf", {"dtype": "float32"})
    assert name == "bundled:aft"
    assert args == {"dtype": "float32", "pretrained": "bundled:aft"}
    assert "knows only the task aft_arith" in caplog.text


def test_a_name_of_ours_or_any_other():
    assert choose_checkpoint("hf", {"pretrained": "bundled:sft"}) == ({"pretrained": "bundled:sft"}, "bundled:sft")
    assert choose_checkpoint("hf", {"pretrained": "gpt2"}) == ({"pretrained": "gpt2"}, "gpt2")
    assert (locate("bundled:sft"), locate("gpt2")) == (str(bundled.FOLDER / "sft"), "gpt2")
    assert choose_checkpoint("api", {"model": "m"}) == ({"model": "m"}, "m")
    assert choose_checkpoint("scripted", {}) == ({}, "scripted")
    with pytest.raises(ConfigError, match="bundled:aft or bundled:base or bundled:sft"):
        load_engine("hf", {"pretrained": "bundled:dpo"}, HostArgs(device="cpu"))


def test_they_are_small_and_safe():
    files = [path for path in bundled.FOLDER.rglob("*") if path.is_file()]
    assert {path.parent.name for path in files} == set(bundled.NAMES)
    assert sum(path.stat().st_size for path in files) < 12_000_000
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".jinja", ".md"}


def ask(model: AFTLM, task: str, problems: list[arith.Problem]) -> list[str]:
    args = {"until": [], "max_gen_toks": 24, "do_sample": False}
    requests = [
        make_instance(
            "generate_until",
            {"question": problem.question},
            (model.apply_chat_template([{"role": "user", "content": problem.question}]), args),
            0,
            (task, number, 1),
        )
        for number, problem in enumerate(problems)
    ]
    return model.generate_until(requests, disable_tqdm=True)


@pytest.fixture(scope="module")
def problems() -> list[arith.Problem]:
    return [problem for problem, _ in islice(arith.problems("validation", 5), 120)]


def right(model: AFTLM, problems: list[arith.Problem]) -> int:
    return sum(arith.is_right(p, text) for p, text in zip(problems, ask(model, "aft_arith", problems), strict=True))


def test_the_base_can_be_trained_further_with_its_own_template(tmp_path):
    rows = [{"query": p.question, "sft_target": arith.write(way)} for p, way in islice(arith.problems("train", 5), 8)]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    settings = {"model": "bundled:base", "data": str(tmp_path / "rows.jsonl"), "output": str(tmp_path / "sft")}
    run_training("sft", make_config({**settings, "lora_rank": 0, "max_steps": 1, "device": "cpu"}, "here"))
    config = CheckpointConfig.load(tmp_path / "sft" / FILE)
    assert config.base_model == "bundled:base"
    assert config.template == CheckpointConfig.load(bundled.FOLDER / "base" / FILE).template != DEFAULT_TEMPLATE


@pytest.mark.long
def test_both_answer_far_above_chance(problems):
    plain = AFTLM(64, None, "cpu", pretrained="bundled:sft", layers=0)
    aggregated = AFTLM(64, None, "cpu", k=5, layers=2)
    # Of 120. A random way is right once in hundreds.
    assert right(plain, problems) > 45
    assert right(aggregated, problems) > 60
    assert aggregated.get_model_info()["aft"]["model"] == "bundled:aft"
    assert aggregated.template.source != ""


def test_another_task_is_warned_of(problems, caplog):
    model = AFTLM(64, None, "cpu", layers=0)
    with caplog.at_level(logging.WARNING, "lm_eval.aft"):
        ask(model, "gsm8k", problems[:1])
    assert "bundled:aft knows only aft_arith: its scores on gsm8k mean nothing" in caplog.text
