"""Settings of aft train: files, overrides and refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from helpers.paths import ROOT
from helpers.training_runs import settings_of
from lm_eval_aft.core.errors import ConfigError
from lm_eval_aft.core.settings import markdown_table
from trainers.settings import TrainConfig, load_config, make_config


def test_settings_come_from_yaml_toml_and_set(tmp_path: Path):
    (tmp_path / "a.yaml").write_text("model: m\ndata: d\noutput: o\nlearning_rate: 1e-4\nk: [1, 3]\n")
    (tmp_path / "a.toml").write_text('model = "m"\ndata = "d"\noutput = "o"\nlearning_rate = 1e-4\nk = [1, 3]\n')
    for name in ("a.yaml", "a.toml"):
        config = load_config(str(tmp_path / name), ["k=[1,3,5]", "bf16=true", "lora_rank=0"])
        assert (config.k, config.bf16, config.lora_rank, config.learning_rate) == ((1, 3, 5), True, 0, 1e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lora_rnk": 4}, "did you mean lora_rank?"),
        ({"k": [1, 0]}, "k=0 is not allowed: k must be a whole number of at least 1"),
        ({"schedule": "step"}, "schedule must be one of cosine, linear, constant"),
        ({"data": None}, "data is missing in here: add data: ..."),
        ({"patience": 2}, "patience needs a validation file"),
    ],
)
def test_a_wrong_setting_is_one_sentence(settings, message):
    with pytest.raises(ConfigError, match=message.replace("?", r"\?")):
        make_config({"model": "m", "data": "d", "output": "o", **settings}, "here")


def test_a_settings_file_that_is_none_is_refused(tmp_path: Path):
    (tmp_path / "a.yaml").write_text("- 1\n- 2\n")
    with pytest.raises(ConfigError, match="are not a list of key: value lines"):
        load_config(str(tmp_path / "a.yaml"))
    (tmp_path / "b.yaml").write_text("k: 1\n")
    with pytest.raises(ConfigError, match=r"--set k is not allowed: write --set key=value"):
        load_config(str(tmp_path / "b.yaml"), ["k"])


def test_the_table_of_settings_in_the_docs_is_the_config():
    docs = ROOT / "docs" / "training.md"
    assert markdown_table(TrainConfig, "setting") in docs.read_text(encoding="utf-8")


def test_a_home_in_the_settings_is_expanded(config, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "c.yaml").write_text(json.dumps({**settings_of(config), "output": "~/run", "data": "~/rows.jsonl"}))
    loaded = load_config(str(tmp_path / "c.yaml"), ["template=~/short.j2"])
    assert (loaded.output, loaded.data, loaded.template) == (config.output, config.data, config.template)
    with pytest.raises(ConfigError, match="names the home of an unknown user"):
        load_config(str(tmp_path / "c.yaml"), ["output=~no-such-user/run"])


def test_help_needs_no_torch():
    import subprocess
    import sys

    code = "import sys; from trainers.train import train; sys.exit('torch' in sys.modules or 'lm_eval' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
