"""The model arguments of ``engine=api``: checked by name and type, then against the server."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from lm_eval_aft.core.arguments import flag, integer, mapping, real, text
from lm_eval_aft.core.chat import Renderer
from lm_eval_aft.core.config import refuse_unknown
from lm_eval_aft.core.errors import ConfigError, EngineError
from lm_eval_aft.core.jsonl import parse_json
from lm_eval_aft.core.loading import load_reason, loading, refuse_no_checkpoint
from lm_eval_aft.core.log import log
from lm_eval_aft.core.secrets import public, public_word
from lm_eval_aft.core.usage import MAX_COUNT
from lm_eval_aft.engines.api.client import ChatClient, Refused, Unreachable
from lm_eval_aft.engines.api.renderers import CountingRenderer, EstimateRenderer, FoldingRenderer
from lm_eval_aft.engines.api.responses import refusal
from lm_eval_aft.engines.api.servers import Servers

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
        servers: Sends calls to the server, or to several.
        has_key: Whether calls hold a key.
        model: The server's name of the model.
        renderer: Measures prompts.
        max_length: Maximum tokens of a prompt and its completion together.
        revision: The user's name for the weights that the server runs. It is part of every store key.
        extra_body: Further fields of every call.
        served: Models that the server lists, for messages.
        neutral: Fields that disable a server's own sampling defaults.
        seed_field: The field of a call that holds its seed.
    """

    servers: Servers
    has_key: bool
    model: str
    renderer: Renderer
    max_length: int
    revision: str
    extra_body: dict[str, Any]
    served: tuple[str, ...] = ()
    neutral: Mapping[str, float] = field(default_factory=dict)
    seed_field: str = SEED_FIELD

    @classmethod
    def of(cls, engine_args: Mapping[str, Any]) -> APIArgs:
        """Check model arguments, then check that each server lists the model.

        Raises:
            ConfigError: If an argument is unknown, missing or wrong, or if the servers differ.
            EngineError: If no server can be reached, or if one refuses the key or does not have the model.
        """
        refuse_unknown(engine_args, OWN_ARGS, "api")
        args = {name: value for name, value in engine_args.items() if value is not None}
        model = _model(args)
        if "base_url" not in args:
            raise ConfigError("base_url is missing: give the server's address, such as http://127.0.0.1:8000/v1.")
        timeout_s = real(0, above=True)("timeout_s", args.get("timeout_s", 600))
        max_retries = integer(0)("max_retries", args.get("max_retries", 5))
        clients = [
            ChatClient(url, timeout_s=timeout_s, max_retries=max_retries) for url in _addresses(args["base_url"])
        ]
        _refuse_equal_addresses([client.base_url for client in clients])
        extra_body = mapping("extra_body", args.get("extra_body", {}))
        seed_field = _seed_field(args)
        if clash := (OUR_FIELDS | {seed_field}) & set(extra_body):
            raise ConfigError(f"extra_body must not hold {', '.join(sorted(clash))}: there are model arguments for it.")
        servers = Servers(clients, integer(1)("concurrency", args.get("concurrency", 32)))
        revision = str(args.get("revision", ""))
        renderer = _renderer(args, extra_body.get("chat_template_kwargs"))
        lists = _lists_of_models(clients, servers, model) if flag("check", args.get("check", True)) else []
        served = tuple(dict.fromkeys(name for listed in lists for name in listed))
        rows = [listed[model] for listed in lists]
        neutral = _neutral(rows)
        length = _max_length(args, rows)
        has_key = clients[0].has_key
        return cls(servers, has_key, model, renderer, length, revision, extra_body, served, neutral, seed_field)


def _addresses(value: Any) -> tuple[str, ...]:
    """One address, or several: a list, the JSON text of one, or addresses with | between them."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        with suppress(ValueError):
            value = parse_json(value)
    parts = value.split("|") if isinstance(value, str) else value
    if not isinstance(parts, (list, tuple)) or not parts:
        raise ConfigError(
            f"base_url={public('base_url', value)} is not allowed: give one address, or several as "
            "http://a:8000/v1|http://b:8000/v1 or as a list."
        )
    return tuple(text("base_url", part) for part in parts)


def _refuse_equal_addresses(urls: Sequence[str]) -> None:
    twice = next((url for url in urls if urls.count(url) > 1), None)
    if twice is not None:
        raise ConfigError(f"base_url names {twice} twice: give each server once.")


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


def _lists_of_models(clients: Sequence[ChatClient], servers: Servers, model: str) -> list[dict[str, dict[str, Any]]]:
    """The list of models of each server that answers. Those that do not answer are left out, if any does.

    Raises:
        EngineError: If none can be reached, or one has no such list or does not list the model.
    """
    lists, failures = [], dict[str, EngineError]()
    for client in clients:
        try:
            lists.append(_listed_models(client, model))
        except EngineError as error:
            if not isinstance(error.__cause__, Unreachable):
                raise
            failures[client.base_url] = error
    if not lists:
        raise next(iter(failures.values()))
    reasons = {url: str(error.__cause__) for url, error in failures.items()}
    for url, reason in reasons.items():
        log.warning("The server at %s cannot be reached (%s) and is left out.", url, reason)
    servers.leave_out(reasons)
    return lists


def _neutral(rows: Sequence[Mapping[str, Any]]) -> Mapping[str, float]:
    """The fields that disable the sampling defaults of the servers, by what they say of the model.

    Raises:
        ConfigError: If some servers have such defaults and others do not. Their texts would differ.
    """
    owners = {row.get("owned_by") == "vllm" for row in rows}
    if len(owners) > 1:
        raise ConfigError(
            "base_url names vLLM servers and others, which sample differently: give servers of one kind, or "
            "check=false with --generation-config vllm on those of vLLM."
        )
    return VLLM_NEUTRAL if True in owners else {}


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
            raise refusal(error, client.has_key, model, ()) from error
        raise EngineError(
            f"base_url={client.base_url} has no list of models (HTTP {error.status}: {error.message}): most addresses "
            f"end in /v1; {skip}."
        ) from error
    rows = rows if isinstance(rows, list) else []
    listed = {str(row["id"]): row for row in rows if isinstance(row, dict) and "id" in row}
    if model not in listed:
        names = ", ".join(list(listed)[:10]) or "none"
        raise EngineError(f"the server at {client.base_url} has no model={model}: it lists {names}; {skip}.")
    # vLLM states no context length of an adapter, which it lists with the model that it belongs to.
    base = listed.get(str(listed[model].get("parent")), {})
    lengths = {name: base[name] for name in LENGTH_FIELDS if _is_length(base.get(name))}
    return {**listed, model: {**lengths, **_stated(listed[model])}}


def _stated(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of a list of models without the fields that are null."""
    return {name: value for name, value in row.items() if value is not None}


def _is_length(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < MAX_COUNT


def _max_length(args: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> int:
    """Context length: the user's, else the least of the servers', else a default with a warning."""
    lengths = (next((row[name] for name in LENGTH_FIELDS if _is_length(row.get(name))), None) for row in rows)
    stated = min((length for length in lengths if length is not None), default=None)
    if "max_length" not in args and stated is None:
        log.warning("The server states no context length: max_length=%d is assumed.", DEFAULT_LENGTH)
    return int(integer(1)("max_length", args.get("max_length", stated or DEFAULT_LENGTH)))
