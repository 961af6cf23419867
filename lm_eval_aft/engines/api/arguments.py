"""The model arguments of ``engine=api``: checked by name and type, then with the server itself.

Called by the api engine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lm_eval_aft.core.arguments import flag, integer, mapping, real, text
from lm_eval_aft.core.chat import Renderer
from lm_eval_aft.core.config import refuse_unknown
from lm_eval_aft.core.errors import ConfigError, EngineError
from lm_eval_aft.core.log import log
from lm_eval_aft.core.secrets import refuse_secrets
from lm_eval_aft.engines.api.client import ChatClient, Refused, Unreachable
from lm_eval_aft.engines.api.renderers import CountingRenderer, EstimateRenderer, FoldingRenderer
from lm_eval_aft.engines.api.responses import refusal

DEFAULT_LENGTH = 8192
OWN_ARGS = {
    *("base_url", "model", "pretrained", "revision", "concurrency", "max_retries", "timeout_s", "tokenizer"),
    *("max_length", "extra_body", "system_role", "check"),
}
OUR_FIELDS = {"model", "messages", "temperature", "top_p", "top_k", "max_tokens", "stop", "seed", "n", "stream"}
# vllm serve fills what a call leaves open from the checkpoint's generation config: Qwen's says top_k 20 and more.
VLLM_NEUTRAL = {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
LENGTH_FIELDS = ("max_model_len", "max_context_length", "context_length", "context_window")  # vLLM's, and others'


@dataclass(frozen=True, slots=True)
class APIArgs:
    """Arguments that have passed every check.

    Attributes:
        client: Asks the server.
        model: The server's name of the model.
        renderer: Measures prompts.
        max_length: Tokens a prompt and its completion may have together.
        revision: Which weights the server runs, in the user's words: part of every store key.
        concurrency: Calls under way at a time.
        extra_body: Further fields of every call.
        served: Names that the server lists, for messages.
        neutral: Fields that undo a server's own sampling defaults.
    """

    client: ChatClient
    model: str
    renderer: Renderer
    max_length: int
    revision: str
    concurrency: int
    extra_body: dict[str, Any]
    served: tuple[str, ...] = ()
    neutral: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, engine_args: Mapping[str, Any]) -> APIArgs:
        """Check model arguments, then ask the server whether it has the model.

        Raises:
            ConfigError: If an argument is unknown, missing or wrong.
            EngineError: If the server cannot be reached, refuses the key, or does not have the model.
        """
        refuse_secrets(set(engine_args) - OWN_ARGS, "--model_args")
        refuse_unknown(engine_args, OWN_ARGS, "api")
        args = {name: value for name, value in engine_args.items() if value is not None}
        model = _model(args)
        if "base_url" not in args:
            raise ConfigError("base_url is missing: give the server's address, such as http://127.0.0.1:8000/v1.")
        client = ChatClient(
            text("base_url", args["base_url"]),
            timeout_s=real(0, above=True)("timeout_s", args.get("timeout_s", 600)),
            max_retries=integer(0)("max_retries", args.get("max_retries", 5)),
        )
        extra_body = mapping("extra_body", args.get("extra_body", {}))
        if clash := OUR_FIELDS & set(extra_body):
            raise ConfigError(f"extra_body must not hold {', '.join(sorted(clash))}: there are model arguments for it.")
        concurrency = integer(1)("concurrency", args.get("concurrency", 32))
        revision = str(args.get("revision", ""))
        renderer = _renderer(args)
        listed = _listed(client, model) if flag("check", args.get("check", True)) else {}
        row = listed.get(model, {})
        neutral = VLLM_NEUTRAL if row.get("owned_by") == "vllm" else {}
        length = _max_length(args, row)
        return cls(client, model, renderer, length, revision, concurrency, extra_body, tuple(listed), neutral)


def _model(args: Mapping[str, Any]) -> str:
    names = {str(args[name]) for name in ("model", "pretrained") if name in args}
    if not names:
        raise ConfigError("model is missing: give the name by which the server knows it.")
    if len(names) > 1:
        raise ConfigError(f"model={args['model']} and pretrained={args['pretrained']} differ: give only one of them.")
    return str(text("model", names.pop()))


def _renderer(args: Mapping[str, Any]) -> Renderer:
    """Counts with ``tokenizer=``, estimates without; folds system messages where told to, or where it must."""
    renderer: Renderer = EstimateRenderer()
    takes_system = True
    if "tokenizer" in args:
        from transformers import AutoTokenizer

        name = text("tokenizer", args["tokenizer"])
        try:
            renderer = counting = CountingRenderer(AutoTokenizer.from_pretrained(name))
        except (OSError, ValueError, ImportError) as error:
            reason = str(error).strip().split("\n")[0]
            raise EngineError(f"tokenizer={name} cannot be loaded: {reason}") from error
        takes_system = counting.has_system_role
    return renderer if flag("system_role", args.get("system_role", takes_system)) else FoldingRenderer(renderer)


def _listed(client: ChatClient, model: str) -> dict[str, dict[str, Any]]:
    """The rows of the server's list of models, by name.

    Raises:
        EngineError: If it cannot be asked, or does not list the model.
    """
    skip = "check=false skips this question"
    try:
        rows = client.get("/models").get("data")
    except Unreachable as error:
        raise EngineError(
            f"base_url={client.base_url} cannot be reached ({error}): correct it, or start the server."
        ) from error
    except Refused as error:
        if error.status in (401, 403):
            raise refusal(error, client, model, ()) from error
        raise EngineError(
            f"base_url={client.base_url} has no list of models (HTTP {error.status}: {error.message}): most addresses "
            f"end in /v1; {skip}."
        ) from error
    listed = {str(row["id"]): row for row in rows or [] if isinstance(row, dict) and "id" in row}
    if model not in listed:
        names = ", ".join(list(listed)[:10]) or "none"
        raise EngineError(f"the server at {client.base_url} has no model={model}: it lists {names}; {skip}.")
    return listed


def _max_length(args: Mapping[str, Any], row: Mapping[str, Any]) -> int:
    """Context length: the user's word, else the server's, else a guess that is logged."""
    stated = next((row[name] for name in LENGTH_FIELDS if isinstance(row.get(name), int)), None)
    if "max_length" not in args and stated is None:
        log.warning("The server states no context length: max_length=%d is assumed.", DEFAULT_LENGTH)
    return int(integer(1)("max_length", args.get("max_length", stated or DEFAULT_LENGTH)))
