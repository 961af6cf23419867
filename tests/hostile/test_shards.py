"""An index may name no pickle and no file outside its folder, and what it names is in the fingerprint."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from lm_eval_aft.core.engine import HostArgs
from lm_eval_aft.core.errors import EngineError
from lm_eval_aft.core.shards import refused_shard
from lm_eval_aft.engines.registry import load_engine
from lm_eval_aft.inference.reward_model import RewardModel
from lm_eval_aft.storage.draft_store import NoStore
from lm_eval_aft.storage.fingerprint import checkpoint_fingerprint
from trainers.fitting.model import load_model
from trainers.settings import TrainConfig

HOST = HostArgs(1, None, "cpu")
OUTSIDE = ["../other/model.safetensors", "/etc/model.safetensors", "C:\\\\m.safetensors", "..\\\\m.safetensors"]
PICKLES = ["pytorch_model-00001.bin", "model.pt", "model", "model.safetensors.bin"]


def sharded(source: str, folder: Path, name: str = "part/weights-1.safetensors", index: str = "model") -> str:
    """A copy of a checkpoint whose index names one file, which lies there if it can."""
    shutil.copytree(source, folder)
    weights = folder / "model.safetensors"
    target = folder / name
    if ".." not in name and not Path(name).is_absolute():
        target.parent.mkdir(exist_ok=True)
        shutil.move(weights, target)
    else:
        weights.unlink()
    ending = "safetensors.index.json" if index != "pytorch_model" else "bin.index.json"
    tensors = {"model.norm.weight": name}
    (folder / f"{index}.{ending}").write_text(json.dumps({"metadata": {}, "weight_map": tensors}))
    return str(folder)


def evaluate(folder: str, **args) -> None:
    load_engine("hf", {"pretrained": folder, "dtype": "float32", **args}, HOST)


def train(folder: str) -> None:
    load_model(TrainConfig(model=folder, data="rows.jsonl", output="run"))


def reward(folder: str) -> None:
    RewardModel(folder, NoStore(), "cpu", 1)


USES = [evaluate, train, reward]


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("name", [*OUTSIDE, *PICKLES])
def test_every_use_of_a_checkpoint_refuses_them(tiny, tmp_path, use, name):
    folder = sharded(tiny, tmp_path / "m", name)
    reason = "is outside the folder" if name in OUTSIDE else "is not a safetensors file: weights in pickle files"
    with pytest.raises(
        EngineError, match=rf"cannot be loaded: model\.safetensors\.index\.json names .*, which {reason}"
    ):
        use(folder)


def test_an_adapter(tiny, tmp_path):
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.safetensors").write_bytes(b"")
    weight_map = {"weight_map": {"a": "../x.safetensors"}}
    (folder / "adapter_model.safetensors.index.json").write_text(json.dumps(weight_map))
    with pytest.raises(EngineError, match=r"peft=.* cannot be loaded: adapter_model.* names .* outside the folder"):
        evaluate(tiny, peft=str(folder))


def test_a_subfolder(tiny, tmp_path):
    sharded(tiny, tmp_path / "m" / "inner", "weights.bin")
    with pytest.raises(EngineError, match=r"names 'weights\.bin', which is not a safetensors file"):
        evaluate(str(tmp_path / "m"), subfolder="inner")


def test_who_trusts_pickles_may_have_them_but_not_outside_the_folder(tiny, tmp_path):
    inside = sharded(tiny, tmp_path / "inside", "weights.bin", "pytorch_model")
    outside = sharded(tiny, tmp_path / "outside", "../weights.bin", "pytorch_model")
    assert refused_shard(inside) == refused_shard(inside, pickles=True) == ""
    assert refused_shard(sharded(tiny, tmp_path / "odd", "weights.bin"), pickles=True) == ""
    with pytest.raises(
        EngineError, match=r"pytorch_model\.bin\.index\.json names '\.\./weights\.bin', which is outside"
    ):
        evaluate(outside, model_kwargs={"use_safetensors": False})


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b'{"weight_map": 5}', b'{"weight_map": {"a": {"b": 1}}}', b"[" * 10_000, b"\xff"]
)
def test_an_index_of_another_shape_is_left_to_the_loader(tmp_path, content):
    (tmp_path / "model.bin.index.json").write_bytes(content)
    assert refused_shard(str(tmp_path)) == ""
    assert checkpoint_fingerprint(str(tmp_path), None, None).startswith("folder:")


@pytest.mark.parametrize("name", ["deep/weights-1.safetensors", "weights.dat"])
def test_what_an_index_names_is_in_the_fingerprint(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"a": name, "b": "gone.bin"}}))
    fingerprints = set()
    for content in (b"one", b"two"):
        (tmp_path / name).write_bytes(content)
        fingerprints.add(checkpoint_fingerprint(str(tmp_path), None, None))
    assert len(fingerprints) == 2


def test_an_ordinary_sharded_checkpoint_loads(tiny, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tiny)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    AutoTokenizer.from_pretrained(tiny).save_pretrained(tmp_path)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    loaded = load_engine("hf", {"pretrained": str(tmp_path), "dtype": "float32"}, HOST).model
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)
