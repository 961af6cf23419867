"""The Engine protocol, and loading an engine by name without importing what it needs.

An engine turns requests into completions; it knows nothing of drafts, layers, tasks or stores. Called by ``model``
(which loads one) and ``schedule`` (which asks it).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from typing import Any, Protocol

from lm_eval_aft.bundled import locate
from lm_eval_aft.core.chat import Renderer
from lm_eval_aft.core.errors import ConfigError, EngineError
from lm_eval_aft.core.records import Completion, Request
from lm_eval_aft.core.usage import ModelShape

ENGINES = {
    "hf": "lm_eval_aft.engines.hf.engine:HFEngine",
    "vllm": "lm_eval_aft.engines.vllm.engine:VLLMEngine",
    "api": "lm_eval_aft.engines.api.engine:APIEngine",
    "scripted": "lm_eval_aft.engines.scripted:ScriptedEngine",
}
ALONE = ("vllm", "api")  # engines that spread the work themselves


@dataclass(frozen=True, slots=True)
class HostArgs:
    """What lm-eval's command line always passes to a model, wanted or not."""

    batch_size: int | str = 1
    max_batch_size: int | None = None
    device: str = "cuda:0"


class Engine(Protocol):
    """Turns requests into completions.

    Attributes:
        renderer: Turns chats into prompts, with this engine's tokenizer.
        max_length: Tokens a prompt and its completion may have together.
        fingerprint: What decides the text besides prompt, sampling and seed: weights, adapter, dtype, engine kind.
        shape: The model's sizes for counting operations, or None where they are unknown.
        prefills_once: Whether the texts that share a prompt cost one pass over it when they are asked for together.
        scorer: An lm-eval model for loglikelihood requests, or None where the engine cannot score.
        info: Facts for the results file: versions, devices, what was loaded.
    """

    renderer: Renderer
    max_length: int
    fingerprint: str
    shape: ModelShape | None
    counts_shared_prefill: bool
    scorer: Any
    info: Mapping[str, Any]

    def generate(self, requests: Sequence[Request]) -> Iterator[tuple[int, Completion]]:
        """Yield the position and the completion of each request, once each, as it ends, in any order.

        A completion depends on its own request only: not on order, batch or neighbours (up to the rounding of the
        device; see the README for what is promised where).

        Raises:
            EngineError: If the engine stops working; what was yielded before stays valid.
        """


def load_engine(name: str, engine_args: Mapping[str, Any], host: HostArgs) -> Engine:
    """Load an engine by name.

    Args:
        name: A key of ``ENGINES``.
        engine_args: Arguments that are not ours; the engine checks them before it loads anything. A ``bundled:`` name
            stands for the folder of that checkpoint.
        host: What lm-eval passed besides.

    Raises:
        ConfigError: If the name or an argument is unknown.
        EngineError: If the engine cannot be loaded.
    """
    if name not in ENGINES:
        near = get_close_matches(name, ENGINES, n=1)
        hint = f"did you mean {near[0]}?" if near else f"use one of {', '.join(ENGINES)}."
        raise ConfigError(f"engine={name} is unknown: {hint}")
    if name in ALONE and (processes := int(os.environ.get("WORLD_SIZE", "1"))) > 1:
        raise ConfigError(
            f"engine={name} runs in one process and {processes} were started, each of which would do everything: leave "
            "the launcher out, and use tensor_parallel_size= (vllm) or concurrency= (api)."
        )
    module, _, attribute = ENGINES[name].partition(":")
    args = dict(engine_args)
    if "pretrained" in args:
        args["pretrained"] = locate(str(args["pretrained"]))
    try:
        engine: Engine = getattr(import_module(module), attribute).load(args, host)
    except MemoryError as error:
        raise EngineError(
            f"the model does not fit this machine's memory ({error}): use a smaller dtype or another machine."
        ) from error
    return engine
