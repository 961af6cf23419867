"""Wrong names of checkpoints and arguments: the message says what to give instead."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from lm_eval_aft.cli import aft
from lm_eval_aft.core.config import refuse_unknown
from lm_eval_aft.core.engine import HostArgs
from lm_eval_aft.core.errors import AFTError, ConfigError, EngineError
from lm_eval_aft.core.loading import refuse_adapter
from lm_eval_aft.engines.registry import load_engine
from lm_eval_aft.inference.reward_model import RewardModel
from lm_eval_aft.storage.draft_store import open_store

CPU = HostArgs(1, None, "cpu")
HF = {"pretrained", "peft", "max_length", "dtype", "tokenizer"}
VLLM = {"pretrained", "lora_local_path", "max_length", "tensor_parallel_size"}
MEANT = [
    ("K", HF, "k"),
    ("L", HF, "layers"),
    ("N", HF, "k"),
    ("n", HF, "k"),
    ("Layers", HF, "layers"),
    ("LAYER", HF, "layers"),
    ("num-drafts", HF, "k"),
    ("Temp", HF, "temperature"),
    ("TOP-P", HF, "top_p"),
    ("Pretrained", HF, "pretrained"),
    ("model_path", HF, "pretrained"),
    ("lora", HF, "peft"),
    ("Adapter", HF, "peft"),
    ("lora_path", HF, "peft"),
    ("lora_local_path", HF, "peft"),
    ("lora", VLLM, "lora_local_path"),
    ("peft", VLLM, "lora_local_path"),
    ("tp", VLLM, "tensor_parallel_size"),
    ("max_model_len", HF, "max_length"),
    ("max_new_tokens", HF, "max_gen_toks"),
    ("rm", HF, "reward_model"),
    ("traces", HF, "record"),
    ("store", HF, "cache"),
]


@pytest.mark.parametrize(("name", "allowed", "meant"), MEANT)
def test_an_argument_of_another_name(name: str, allowed: set[str], meant: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{name}=5 is not an argument .*: did you mean {meant}\?$"):
        refuse_unknown({name: 5}, allowed, "hf")


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "org/base", "r": 8}))
    return tmp_path


def test_an_adapter_as_the_model_names_base_and_argument(adapter: Path) -> None:
    with pytest.raises(ConfigError) as error:
        load_engine("hf", {"pretrained": str(adapter)}, CPU)
    assert str(error.value) == (
        f"pretrained={adapter} holds adapter_config.json, so it is an adapter: give pretrained=org/base,peft={adapter}."
    )
    with pytest.raises(ConfigError, match=rf"give pretrained=org/base,lora_local_path={adapter}\.$"):
        refuse_adapter(str(adapter), "lora_local_path")


@pytest.mark.parametrize(
    "content", ["{}", "[]", "{", '{"base_model_name_or_path": 5}', '{"base_model_name_or_path": ""}']
)
def test_an_adapter_that_names_no_base(adapter: Path, content: str) -> None:
    (adapter / "adapter_config.json").write_text(content)
    with pytest.raises(ConfigError, match=r"give pretrained=BASE,peft="):
        load_engine("hf", {"pretrained": str(adapter)}, CPU)


@pytest.mark.parametrize("argument", ["pretrained", "peft", "tokenizer"])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("MODEL", r"=MODEL is the placeholder of an example, and there is no folder MODEL"),
        ("FOLDER_OR_HUB_NAME", "is the placeholder of an example"),
        ("/nope", r"=/nope does not exist: give the folder of a checkpoint or its name on the hub\.$"),
        ("./nope", "does not exist"),
        ("out/checkpoints/nope", "does not exist"),
        ("nope/", "does not exist"),
        ("a model", "does not exist"),
    ],
)
def test_a_checkpoint_that_does_not_exist(argument: str, name: str, message: str, tiny: str) -> None:
    with pytest.raises(ConfigError, match=f"{argument}.*{message}"):
        load_engine("hf", {"pretrained": tiny, argument: name}, CPU)


def test_a_name_that_may_be_on_the_hub_says_first_that_there_is_no_folder(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"^pretrained=no-such cannot be loaded: there is no folder no-such, and"):
        load_engine("hf", {"pretrained": "no-such"}, CPU)
    store = open_store("none", None)
    with pytest.raises(EngineError, match=r"^reward_model rm cannot be loaded: there is no folder rm, and the hub"):
        RewardModel("rm", store, "cpu", 1)
    with pytest.raises(ConfigError, match=r"^reward_model=RM is the placeholder"):
        RewardModel("RM", store, "cpu", 1)


NOWHERE = [
    *("report PATH", "votes PATH", "diagnose PATH", "plot PATH", "plot PATH --training", "compare PATH PATH"),
    *("data stats PATH", "data import PATH out", "template check PATH", "train sft --config PATH"),
    *("judge mt_bench --judgments PATH", "judge alpaca_eval --annotations PATH", "cache info PATH", "watch PATH"),
    *("judge mt_bench PATH --judge-model m --judge-base-url http://127.0.0.1:9/v1",),
    *("judge alpaca_eval PATH --judge-model m --judge-base-url http://127.0.0.1:9/v1",),
]


@pytest.mark.parametrize("command", NOWHERE)
def test_a_path_that_does_not_exist(command: str, tmp_path: Path) -> None:
    missing = tmp_path / "nope"
    done = CliRunner().invoke(aft, command.replace("PATH", str(missing)).split())
    assert isinstance(done.exception, AFTError), done.output
    message = str(done.exception)
    assert str(missing) in message
    words = ("does not exist", "No such file", f"there is no {missing}", "no draft store at")
    assert any(each in message for each in words), message
