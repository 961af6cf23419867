"""The model arguments of ``engine=api``: checked by name and type, then against the server."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lm_eval_aft.core.arguments import flag, integer, mapping, real, text
from lm_eval_aft.core.chat import Renderer
from lm_eval_aft.core.config import refuse_unknown
from lm_eval_aft.core.errors import ConfigError, EngineError
from lm_eval_aft.core.loading import load_reason, loading, refuse_no_checkpoint
from lm_eval_aft.core.log import log
from lm_eval_aft.core.secrets import public_word
from lm_eval_aft.core.usage import MAX_COUNT
from lm_eval_aft.engines.api.client import ChatClient, Refused, Unreachable
from lm_eval_aft.engines.api.renderers import CountingRenderer, EstimateRenderer, FoldingRenderer
from lm_eval_aft.engines.api.responses import refusal

DEFAULT_LENGTH = 8192
OWN_ARGS = {
    *("base_url", "model", "pretrained", "revision", "concurrency", "max_retries", "timeout_s", "tokenizer"),
    *("max_length", "extra_body", "system_role", "check", "seed_field"),
}
# The seed parameter of OpenAI's protocol.
SEED_FIELD = "seed"
# Fields of a call that have model arguments of their own.
OUR_FIELDS = {"model", "messages", "temperature", "top_p", "top_k", "max_tokens", "stop", "seed", "n", "stream"}
# If a call leaves a field out, vllm serve takes it from the checkpoint's generation config. Qwen's sets top_k=20 there.
VLLM_NEUTRAL = {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
# Names that vLLM and other servers give to the context length in their list of models.
LENGTH_FIELDS = ("max_model_len", "max_context_length", "context_length", "context_window")


@dataclass(frozen=True, slots=True)
class APIArgs:
    """Arguments that have passed every check.

    Attributes:
        client: Sends calls to the server.
        model: The server's name of the model.
        renderer: Measures prompts.
        max_length: Maximum tokens of a prompt and its completion together.
        revision: The user's name for the weights that the server runs. It is part of every store key.
        concurrency: Maximum calls under way at a time.
        extra_body: Further fields of every call.
        served: Models that the server lists, for messages.
        neutral: Fields that disable a server's own sampling defaults.
        seed_field: The field of a call that holds its seed.
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
    seed_field: str = SEED_FIELD

    @classmethod
    def of(cls, engine_args: Mapping[str, Any]) -> APIArgs:
        """Check model arguments, then check that the server lists the model.

        Raises:
            ConfigError: If an argument is unknown, missing or wrong.
            EngineError: If the server cannot be reached, refuses the key, or does not have the model.
        """
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
        seed_field = _seed_field(args)
        if clash := (OUR_FIELDS | {seed_field}) & set(extra_body):
            raise ConfigError(f"extra_body must not hold {', '.join(sorted(clash))}: there are model arguments for it.")
        concurrency = integer(1)("concurrency", args.get("concurrency", 32))
        revision = str(args.get("revision", ""))
        renderer = _renderer(args, extra_body.get("chat_template_kwargs"))
        listed = _listed_models(client, model) if flag("check", args.get("check", True)) else {}
        row = listed.get(model, {})
        neutral = VLLM_NEUTRAL if row.get("owned_by") == "vllm" else {}
        length = _max_length(args, row)
        return cls(
            client, model, renderer, length, revision, concurrency, extra_body, tuple(listed), neutral, seed_field
        )


def _model(args: Mapping[str, Any]) -> str:
    """The server's name of the model, from ``model=`` or ``pretrained=``."""
    names = {str(args[name]) for name in ("model", "pretrained") if name in args}
    if not names:
        raise ConfigError("model is missing: give the server's name of the model.")
    if len(names) > 1:
        raise ConfigError(f"model={args['model']} and pretrained={args['pretrained']} differ: give only one of them.")
    return str(text("model", names.pop()))


def _seed_field(args: Mapping[str, Any]) -> str:
    """The field of a call that holds its seed."""
    name = str(text("seed_field", args.get("seed_field", SEED_FIELD)))
    if not re.fullmatch(r"[A-Za-z_][\w.-]{0,99}", name) or name in (OUR_FIELDS | set(VLLM_NEUTRAL)) - {SEED_FIELD}:
        raise ConfigError(
            f"seed_field={public_word(name)} is not allowed: give the server's name of the seed of a call; "
            f"the default is {SEED_FIELD}."
        )
    return name


def _renderer(args: Mapping[str, Any], template_args: Any) -> Renderer:
    """The renderer: it counts tokens if ``tokenizer=`` is given and estimates them otherwise.

    It folds system messages with ``system_role=false``, or if the tokenizer's chat template takes none.
    """
    renderer: Renderer = EstimateRenderer()
    takes_system = True
    if "tokenizer" in args:
        from transformers import AutoTokenizer

        name = text("tokenizer", args["tokenizer"])
        refuse_no_checkpoint("tokenizer", name)
        given = template_args if isinstance(template_args, dict) else {}
        with loading(lambda error: EngineError(f"tokenizer={name} cannot be loaded: {load_reason(error, name)}")):
            renderer = counting = CountingRenderer(AutoTokenizer.from_pretrained(name), given)
        takes_system = counting.has_system_role
    return renderer if flag("system_role", args.get("system_role", takes_system)) else FoldingRenderer(renderer)


def _listed_models(client: ChatClient, model: str) -> dict[str, dict[str, Any]]:
    """The server's list of models, by name.

    Raises:
        EngineError: If the server cannot be reached, has no such list, or does not list the model.
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
    rows = rows if isinstance(rows, list) else []
    listed = {str(row["id"]): row for row in rows if isinstance(row, dict) and "id" in row}
    if model not in listed:
        names = ", ".join(list(listed)[:10]) or "none"
        raise EngineError(f"the server at {client.base_url} has no model={model}: it lists {names}; {skip}.")
    return listed


def _is_length(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < MAX_COUNT


def _max_length(args: Mapping[str, Any], row: Mapping[str, Any]) -> int:
    """Context length: the user's, else the server's, else a default with a warning."""
    stated = next((row[name] for name in LENGTH_FIELDS if _is_length(row.get(name))), None)
    if "max_length" not in args and stated is None:
        log.warning("The server states no context length: max_length=%d is assumed.", DEFAULT_LENGTH)
    return int(integer(1)("max_length", args.get("max_length", stated or DEFAULT_LENGTH)))
