"""The engines by name, and how one is loaded without importing the packages of the others."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from lm_eval_aft.bundled import locate
from lm_eval_aft.core.arguments import refuse_secrets
from lm_eval_aft.core.engine import Engine, HostArgs
from lm_eval_aft.core.errors import ConfigError, EngineError
from lm_eval_aft.core.settings import nearest

if TYPE_CHECKING:
    from lm_eval_aft.engines.api.engine import APIEngine
    from lm_eval_aft.engines.hf.engine import HFEngine
    from lm_eval_aft.engines.scripted import ScriptedEngine
    from lm_eval_aft.engines.vllm.engine import VLLMEngine

    # mypy checks here that each engine implements the protocol.
    _ENGINE_TYPES: tuple[type[Engine], ...] = (HFEngine, VLLMEngine, APIEngine, ScriptedEngine)

ENGINES = {
    "hf": "lm_eval_aft.engines.hf.engine:HFEngine",
    "vllm": "lm_eval_aft.engines.vllm.engine:VLLMEngine",
    "api": "lm_eval_aft.engines.api.engine:APIEngine",
    "scripted": "lm_eval_aft.engines.scripted:ScriptedEngine",
}
# Arguments of engines that may name a folder.
FOLDERS = ("peft", "delta", "tokenizer", "lora_local_path")
# Arguments of our own decode loop.
HF_ONLY = frozenset({"batch_tokens", "look_ahead"})
# These engines distribute the work themselves. Several processes would each run every request.
SINGLE_PROCESS = ("vllm", "api")


def load_engine(name: str, engine_args: Mapping[str, Any], host: HostArgs) -> Engine:
    """Load an engine by name.

    Args:
        name: A key of ``ENGINES``.
        engine_args: The model arguments that are not ours. The engine checks them before it loads anything. A
            ``bundled:`` name is replaced by the folder of that checkpoint.
        host: The arguments that lm-eval passes to every model.

    Raises:
        ConfigError: If the name or an argument is unknown, or an argument holds a secret.
        EngineError: If the engine cannot be loaded.
    """
    if name not in ENGINES:
        hint = nearest(name, ENGINES, f"use one of {', '.join(ENGINES)}.")
        raise ConfigError(f"engine={name} is unknown: {hint}")
    if name in SINGLE_PROCESS and (processes := int(os.environ.get("WORLD_SIZE", "1"))) > 1:
        raise ConfigError(
            f"engine={name} runs in one process, and {processes} were started: start it without a "
            "launcher, and use tensor_parallel_size= (vllm) or concurrency= (api)."
        )
    refuse_secrets(engine_args, "--model_args")
    for argument in HF_ONLY & set(engine_args) if name != "hf" else ():
        raise ConfigError(f"{argument}= works with engine=hf only, not with engine={name}: leave it out.")
    args = dict(engine_args)
    if "pretrained" in args:
        args["pretrained"] = locate(str(args["pretrained"]))
    # The shell expands no ~ after a comma.
    args |= {name: os.path.expanduser(args[name]) for name in FOLDERS if isinstance(args.get(name), str)}
    try:
        engine: Engine = resolve_name(ENGINES[name]).load(args, host)
    except MemoryError as error:
        raise EngineError(
            f"the model does not fit this machine's memory ({error}): use a smaller dtype or another machine."
        ) from error
    return engine
