"""aft train rl: texts of the model's own, learnt by their reward."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest

from helpers.training_runs import SHORT, Killed, log_of, run_until, same, weights
from lm_eval_aft.core.errors import AFTError, ConfigError
from lm_eval_aft.core.jsonl import write_jsonl
from lm_eval_aft.inference.checkpoint import FILE, CheckpointConfig
from trainers import train
from trainers.fitting.examples import Encoder
from trainers.fitting.model import load_tokenizer
from trainers.rows.row import read_training_rows
from trainers.rows.samples import make_prompts
from trainers.settings import RLConfig, load_config, make_config
from trainers.train import run_training

REWARDS = """
def short(text, row):
    return len(text) < 6

def ascii_share(text, row):
    return sum(each.isascii() for each in text) / max(1, len(text))

def always(text, row):
    return 1

def broken(text, row):
    raise KeyError("no answer")

def sometimes(text, row):
    if row["query"].startswith("0"):
        return float("nan")
    return len(text) < 6
"""


@pytest.fixture
def config(tmp_path: Path, tiny: str, monkeypatch: pytest.MonkeyPatch) -> RLConfig:
    """A run of four steps, each on two prompts of four texts."""
    rows = [{"query": f"{n} + 1?", "drafts": [f"{n + d}" for d in range(3)], "gold": f"{n + 1}"} for n in range(8)]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    (tmp_path / "short.j2").write_text(SHORT)
    (tmp_path / "aft_test_rewards.py").write_text(REWARDS)
    monkeypatch.syspath_prepend(str(tmp_path))
    return RLConfig(
        model=tiny,
        data=str(tmp_path / "rows.jsonl"),
        output=str(tmp_path / "run"),
        template=str(tmp_path / "short.j2"),
        reward="aft_test_rewards:short",
        plain_share=0.2,
        lora_rank=2,
        batch_size=8,
        generations=4,
        max_steps=4,
        max_new_tokens=8,
        learning_rate=1e-2,
        log_every=1,
        save_every=2,
        device="cpu",
    )


needs_trl = pytest.mark.skipif(find_spec("trl") is None, reason="TRL is not installed: pip install trl")


@needs_trl
def test_a_run_learns_logs_and_leaves_the_files_of_aft_train(config, capsys):
    learning = {"lora_rank": 0, "learning_rate": 1e-2, "schedule": "constant", "max_steps": 12, "save_every": 12}
    run_training("rl", replace(config, reward="aft_test_rewards:ascii_share", batch_size=32, **learning))
    rows = log_of(config)
    assert [row["step"] for row in rows] == list(range(1, 13))
    assert {"reward", "reward_std", "grade", "length", "cut", "equal_groups", "loss", "tokens"} <= rows[0].keys()
    # The share of ASCII characters is rewarded, and the tiny model learns to write more of them.
    first, last = (sum(row["grade"] for row in part) / 4 for part in (rows[:4], rows[-4:]))
    assert last > first + 0.3
    aft = CheckpointConfig.load(Path(config.output, FILE))
    assert (aft.k, aft.mask_policy) == (3, "sampled texts, by their reward")
    card = Path(config.output, "README.md").read_text()
    assert "| step | loss | reward | grade | copy_rate | length |" in card
    assert "k=3,layers=1" in card
    output = capsys.readouterr().out
    assert "8 rows, 10 prompts: 8 with drafts, 2 without" in output
    assert "prompts by right drafts: 3 of 3: 8" in output


@needs_trl
def test_a_run_without_drafts_needs_none_in_its_rows(config, capsys):
    write_jsonl(Path(config.data), [{"query": f"{n} + 1?"} for n in range(8)])
    config = replace(config, plain_share=1.0, max_steps=1)
    with pytest.raises(ConfigError, match=r"mixed=0\.5 needs prompts with drafts: leave it out, or lower plain_share"):
        run_training("rl", replace(config, mixed=0.5))
    run_training("rl", config)
    assert "8 rows, 8 prompts: 0 with drafts, 8 without" in capsys.readouterr().out
    assert "copy_rate" not in log_of(config)[0]


@needs_trl
def test_prompts_are_those_of_inference(config, monkeypatch):
    from trainers.reinforcement import loop

    seen = {}

    def stop(*given):
        raise Killed

    monkeypatch.setattr(loop, "model_to_train", stop)
    monkeypatch.setattr(loop, "_check_batches", lambda *given: None)
    encode = loop._encode
    monkeypatch.setattr(loop, "_encode", lambda *given: seen.setdefault("prompts", encode(*given)))
    with pytest.raises(Killed):
        run_training("rl", config)
    encoder = Encoder(load_tokenizer(config), train.open_run("rl", config).template, config.max_length)
    samples = make_prompts(read_training_rows(config.data), config)
    for number, _, ids in seen["prompts"]:
        assert ids == list(encoder.fit_prompt(samples[number], config.max_new_tokens).prompt.token_ids)


@needs_trl
@pytest.mark.parametrize("algorithm", ["grpo", pytest.param("rloo", marks=pytest.mark.long)])
def test_a_killed_run_resumes_and_ends_with_the_same_weights(config, tmp_path, monkeypatch, algorithm):
    # Five prompts an epoch at most, so that four steps are two epochs.
    config = replace(config, algorithm=algorithm, plain_share=0.0, batch_size=16)
    whole = replace(config, output=str(tmp_path / "whole"))
    run_training("rl", whole)
    run_until(monkeypatch, config, 3, "rl")
    run_training("rl", config)
    assert same(weights(config.output), weights(whole.output))
    figures = [(row["step"], row["tokens"], row["reward"]) for row in log_of(config)]
    assert figures == [(row["step"], row["tokens"], row["reward"]) for row in log_of(whole)]


@needs_trl
def test_a_finished_run_is_merged_and_not_trained_again(config, capsys):
    run_training("rl", replace(config, max_steps=1))
    capsys.readouterr()
    run_training("rl", replace(config, max_steps=1), merge=True)
    output = capsys.readouterr().out
    assert "is finished: nothing is left to train" in output
    merged = Path(config.output, "merged")
    assert CheckpointConfig.load(merged / FILE).k == 3
    assert "pretrained=HERE,k=3,layers=1" in (merged / "README.md").read_text()


@needs_trl
@pytest.mark.long
def test_equal_rewards_are_said(config, capsys):
    run_training("rl", replace(config, reward="aft_test_rewards:always", max_steps=6))
    output = capsys.readouterr().out
    assert "got equal rewards in 5 batches: nothing to learn yet" in output
    assert "always got equal rewards: there was nothing to learn" in output
    assert {row["equal_groups"] for row in log_of(config)} == {1.0}


@needs_trl
@pytest.mark.long
def test_texts_without_a_grade_are_named_and_counted(config, capsys):
    run_training("rl", replace(config, reward="aft_test_rewards:sometimes"))
    output = capsys.readouterr().out
    assert "the reward of " in output
    assert "rows.jsonl row 1 failed (ValueError: it returned nan)" in output
    assert "grades failed and counted 0." in output


@needs_trl
@pytest.mark.long
def test_penalties_lower_the_reward_and_not_the_grade(config):
    run_training("rl", replace(config, reward="exact:", length_penalty=0.5, copy_penalty=0.25, max_steps=1))
    row = log_of(config)[0]
    expected = row["grade"] - 0.5 * row["length"] / 8 - 0.25 * row.get("copy_rate", 0) * 0.8
    assert row["reward"] <= row["grade"] - 0.5 * row["length"] / 8 + 1e-6
    assert row["reward"] == pytest.approx(expected, abs=0.1)


@needs_trl
def test_mixed_leaves_out_sets_that_are_all_right_or_all_wrong(config, tmp_path, capsys):
    rows = [{"query": f"{n}?", "drafts": ["1", "2" if n < 3 else "1"], "gold": "1"} for n in range(10)]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    run_training("rl", replace(config, reward="exact:", mixed=0.5, plain_share=0.0, max_steps=1))
    output = capsys.readouterr().out
    assert "prompts by right drafts: 1 of 2: 3, 2 of 2: 3" in output
    assert "left out for mixed: 4 prompts" in output


@needs_trl
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reward": "no_such_module:f"}, "reward=no_such_module:f cannot be loaded"),
        (
            {"reward": "right"},
            "reward=right is not allowed: give exact:REGEX, task:NAME, module:function or model:REWARD_MODEL",
        ),
        ({"reward": "aft_test_rewards:broken"}, r"reward=aft_test_rewards:broken failed for all of \d+ texts"),
        ({"reward": "exact:", "gold": "answer"}, "a row has no 'answer' to compare with"),
        ({"reward": "task:no_such_task"}, "reward=task:no_such_task cannot be used"),
        (
            {"max_length": 30, "max_new_tokens": 28},
            "none of the 10 prompts fits max_length=30 beside max_new_tokens=28",
        ),
        ({"batch_size": 6}, "is 6: make it a multiple of generations=4"),
        ({"batch_size": 80}, "a step needs 20 prompts and there are 10"),
        ({"vllm": {"no_such": 1}}, "TRL refuses these settings .*vllm_no_such"),
        ({"lora_targets": ("lm_head",)}, "lora_targets=lm_head|TRL refuses"),
        (
            {"plain_share": 0.9999999},
            r"plain_share=0\.9999999 would be 79,999,992 examples without drafts, .*: lower it",
        ),
    ],
)
def test_what_cannot_be_trained_is_one_sentence(config, changes, message):
    with pytest.raises(AFTError, match=message):
        run_training("rl", replace(config, **changes))


@needs_trl
@pytest.mark.parametrize("algorithm", ["grpo", "rloo"])
def test_the_settings_of_vllm_reach_trl(config, monkeypatch, algorithm):
    from trainers.reinforcement import loop

    taken = []

    def take(*given, args, **rest):
        taken.append(args)
        raise Killed

    monkeypatch.setattr(loop, algorithm.upper(), take)
    server = {"mode": "server", "server_base_url": "http://localhost:8000", "server_timeout": 60.0, "group_port": 51217}
    here = {"mode": "colocate", "gpu_memory_utilization": 0.5, "max_model_length": 512, "tensor_parallel_size": 1}
    for vllm in (server, here | {"enable_sleep_mode": True}, None):
        with pytest.raises(Killed):
            run_training("rl", replace(config, algorithm=algorithm, vllm=vllm))
        assert taken[-1].use_vllm == (vllm is not None)
        assert {name: getattr(taken[-1], f"vllm_{name}") for name in vllm or {}} == (vllm or {})


@needs_trl
@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed")
def test_vllm_that_is_missing_is_one_sentence(config):
    with pytest.raises(ConfigError, match=r"TRL refuses these settings .*vLLM"):
        run_training("rl", replace(config, vllm={"mode": "colocate"}))


@needs_trl
def test_another_reward_or_kind_is_refused_on_resume(config, monkeypatch):
    run_until(monkeypatch, config, 3, "rl")
    with pytest.raises(ConfigError, match="was started with reward aft_test_rewards:short, now it is exact:"):
        run_training("rl", replace(config, reward="exact:"))
    with pytest.raises(ConfigError, match="was started with kind rl, now it is aft"):
        run_training("aft", config)


@pytest.mark.parametrize(
    ("installed", "message"),
    [
        (None, r"needs TRL, which is not installed: pip install 'lm_eval_aft\[rl\]'"),
        ("1.9.2", "needs TRL 1.16 or newer"),
    ],
)
def test_trl_that_is_missing_or_old_is_one_sentence(config, monkeypatch, installed, message):
    def version(name):
        if installed is None:
            raise train.PackageNotFoundError(name)
        return installed

    monkeypatch.setattr(train, "version", version)
    with pytest.raises(ConfigError, match=message):
        run_training("rl", config)
    assert not Path(config.output).exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "reward is missing in here: add reward: ..."),
        ({"reward": "exact:", "validation": "v.jsonl"}, "validation has no use in aft train rl"),
        ({"reward": "exact:", "generation": 4}, r"not a setting of aft train rl: did you mean generations\?"),
        ({"reward": "exact:", "generations": 1}, "generations must be a whole number of at least 2"),
    ],
)
def test_wrong_settings_are_one_sentence(settings, message):
    with pytest.raises(ConfigError, match=message):
        make_config({"model": "m", "data": "d", "output": "o", **settings}, "here", "rl")


def test_settings_of_rl_are_read_for_rl_only(tmp_path):
    (tmp_path / "a.yaml").write_text(json.dumps({"model": "m", "data": "d", "output": "o", "reward": "exact:"}))
    loaded = load_config(str(tmp_path / "a.yaml"), ["vllm={mode: colocate}"], "rl")
    assert isinstance(loaded, RLConfig)
    assert (loaded.reward, loaded.vllm, loaded.learning_rate) == ("exact:", {"mode": "colocate"}, 2e-5)
    with pytest.raises(ConfigError, match=r"reward in .* is not a setting of aft train"):
        load_config(str(tmp_path / "a.yaml"), [], "aft")
