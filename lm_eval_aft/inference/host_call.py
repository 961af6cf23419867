"""What lm-eval knows but does not pass to a model: ``--seed``, how it makes prompts, its tasks and its requests.

lm-eval seeds the generators of Python, numpy and torch, and passes no seed to a model. It calls
``apply_chat_template`` without the name that ``--apply_chat_template NAME`` gives. A request names its task but does
not hold it. All of them are variables of its functions, which are still running when they build or call a model. So
this module reads them from the call stack.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from hashlib import sha256
from types import FrameType
from typing import Any

from lm_eval_aft.core.config import SEED_LIMIT

HOST = "lm_eval.evaluator"
# The first three numbers of --seed and lm-eval's defaults. The fourth one draws few-shot examples only.
DEFAULT_SEEDS = {"random_seed": 0, "numpy_random_seed": 1234, "torch_random_seed": 1234}


def host_seed() -> int | None:
    """The seed that the user gave to lm-eval: the first of its first three seeds that is not lm-eval's default.

    ``--seed 7`` sets all of them. None if all are lm-eval's defaults, or if lm-eval does not build this model.
    """
    for frame in _host_frames("simple_evaluate"):
        for name, default in DEFAULT_SEEDS.items():
            seed = frame.f_locals.get(name)
            if isinstance(seed, int) and seed != default:
                return seed % SEED_LIMIT
    return None


def host_template_name() -> str | None:
    """The name that ``--apply_chat_template NAME`` gives; None without a name."""
    for frame in _host_frames("evaluate", "simple_evaluate"):
        name = frame.f_locals.get("apply_chat_template")
        if isinstance(name, str):
            return name
    return None


def host_prompting() -> dict[str, Any]:
    """The options of lm-eval that change prompts, without the chat template's name. Empty for an ordinary run.

    Returns:
        Up to four entries: a digest of ``--system_instruction``, ``num_fewshot`` with ``multiturn``, and ``bare`` if
        no chat template is applied.
    """
    given: dict[str, Any] = {}
    for frame in _host_frames("evaluate", "simple_evaluate"):
        for name in ("system_instruction", "num_fewshot", "fewshot_as_multiturn", "apply_chat_template"):
            if frame.f_locals.get(name) is not None:
                given.setdefault(name, frame.f_locals[name])
    prompting: dict[str, Any] = {}
    if given.get("system_instruction"):
        prompting["system_instruction"] = sha256(str(given["system_instruction"]).encode()).hexdigest()[:16]
    if "num_fewshot" in given:
        prompting |= {"num_fewshot": given["num_fewshot"], "multiturn": bool(given.get("fewshot_as_multiturn"))}
    if "apply_chat_template" in given and not given["apply_chat_template"]:
        prompting["bare"] = True
    return prompting


def host_tasks() -> Mapping[str, Any]:
    """lm-eval's tasks by name, while it evaluates them; empty if lm-eval does not call."""
    from lm_eval.api.task import Task

    for frame in _host_frames("evaluate"):
        for value in frame.f_locals.values():
            if isinstance(value, Mapping) and value and all(isinstance(task, Task) for task in value.values()):
                return value
    return {}


def host_request_kinds() -> frozenset[str]:
    """The kinds of requests that lm-eval sends to the model in this evaluation; empty if lm-eval does not call."""
    from lm_eval.api.instance import Instance

    for frame in _host_frames("evaluate"):
        for value in frame.f_locals.values():
            if isinstance(value, Mapping) and value and all(_are_instances(each, Instance) for each in value.values()):
                return frozenset(map(str, value))
    return frozenset()


def _are_instances(values: Any, kind: type) -> bool:
    return isinstance(values, list) and bool(values) and all(isinstance(value, kind) for value in values)


def host_allows_unsafe_code() -> bool:
    """Whether lm-eval was started with ``--confirm_run_unsafe_code``."""
    return any(frame.f_locals.get("confirm_run_unsafe_code") is True for frame in _host_frames("evaluate"))


def _host_frames(*functions: str) -> Iterator[FrameType]:
    """The running calls of lm-eval's functions, from the inner one."""
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_code.co_name in functions and frame.f_globals.get("__name__") == HOST:
            yield frame
        frame = frame.f_back
