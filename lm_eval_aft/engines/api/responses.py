"""Reading what a chat server says: completions with their counts, or a sentence on why there are none.

Knows nothing of HTTP or threads. Called by the api engine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any

from lm_eval_aft.core.chat import Renderer
from lm_eval_aft.core.errors import AFTError, EngineError, PromptTooLong
from lm_eval_aft.core.log import log
from lm_eval_aft.core.records import Completion, FinishReason, Prompt
from lm_eval_aft.core.secrets import KEY_VARIABLE
from lm_eval_aft.engines.api.client import ChatClient, Refused

LENGTH_WORDS = ("context length", "context_length", "context window", "maximum context", "max_model_len")
CUT = ("length", "model_length")  # the second is Mistral's, at the end of the context
ENDED = ("stop", "eos", "eos_token", "stop_sequence", "content_filter", "tool_calls", "function_call")


def completions(reply: Mapping[str, Any], prompt: Prompt, count: int, renderer: Renderer) -> tuple[Completion, ...]:
    """The completions in a reply.

    Args:
        reply: The server's answer, parsed.
        prompt: What was asked.
        count: How many texts were asked for.
        renderer: Counts tokens where the reply does not.

    Raises:
        EngineError: If the reply is no chat completion, lacks texts or counts, or holds a text that was broken off.
    """
    choices = reply.get("choices")
    if not isinstance(choices, list) or not all(map(_is_choice, choices)):
        raise EngineError("the server's reply holds no chat completion: does base_url name a chat server?")
    if len(choices) != count:
        cure = "give seed= a whole number, so that each text is asked for by itself." if count > 1 else ""
        cure = cure or "see the server's log, and start the same command again to go on."
        raise EngineError(f"the server answered n={count} with {len(choices)} choices: {cure}")
    texts = [_text(choice["message"].get("content")) for choice in choices]
    ends = [_finish_reason(choice.get("finish_reason")) for choice in choices]
    ids = [_token_ids(choice) for choice in choices]
    usage = reply.get("usage")
    if isinstance(usage, dict) and "prompt_tokens" in usage and "completion_tokens" in usage:
        details = usage.get("prompt_tokens_details")
        prompt_tokens, total = _count(usage["prompt_tokens"]), _count(usage["completion_tokens"])
        cached = min(prompt_tokens, _count(details.get("cached_tokens") or 0) if isinstance(details, dict) else 0)
        written = [len(row) for row in ids] if all(ids) else [total]
        if len(written) < count:
            written = split_total(total, _lengths(texts, ends, renderer))
    elif renderer.tokenizer is not None:
        prompt_tokens, cached, written = prompt.prompt_tokens, 0, _lengths(texts, ends, renderer)
    else:
        raise EngineError(
            "the server's reply states no usage, so its tokens cannot be counted: give tokenizer=FOLDER_OR_HUB_NAME "
            "to count them here."
        )
    computed = [prompt_tokens - cached, *[0] * (count - 1)]  # the texts of one call share its prompt
    return tuple(Completion(texts[i], ids[i], ends[i], prompt_tokens, computed[i], written[i]) for i in range(count))


def refusal(error: Refused, client: ChatClient, model: str, served: Sequence[str]) -> AFTError:
    """One sentence for an answer that says no."""
    said = error.message.lower()
    if error.status in (400, 413, 422) and (
        error.code == "context_length_exceeded" or any(words in said for words in LENGTH_WORDS)
    ):
        return PromptTooLong(
            f"a prompt does not fit the context of model={model} ({error.message}): give tokenizer= or max_length= so "
            "that drafts are cut in time, lower max_gen_toks or draft_max_tokens, or use a model with a longer context."
        )
    if error.status in (401, 403):
        state = f"refuses the key in {KEY_VARIABLE}" if client.has_key else f"wants a key: set {KEY_VARIABLE}"
        return EngineError(f"the server at {client.base_url} {state} (HTTP {error.status}: {error.message}).")
    if error.status == 404:
        names = f"; it has {', '.join(served)}" if served else ""
        return EngineError(
            f"the server at {client.base_url} has no model={model} or no chat completions ({error.message}){names}: "
            "correct model= or base_url=."
        )
    hint = "; if its chat template takes no system message, give system_role=false" if "system" in said else ""
    return EngineError(f"the server at {client.base_url} says HTTP {error.status}: {error.message}{hint}.")


def _is_choice(choice: Any) -> bool:
    return isinstance(choice, dict) and isinstance(choice.get("message"), dict)


def _text(content: Any) -> str:
    """What the model wrote: a text, or parts of which those of thinking are left out.

    Half of a surrogate pair, which no file can hold, becomes a replacement character.

    Raises:
        EngineError: If it is neither.
    """
    if isinstance(content, list):
        parts = [part for part in content if isinstance(part, dict) and part.get("type") == "text"]
        content = "".join(str(part.get("text") or "") for part in parts)
    if not isinstance(content, str | None):
        raise EngineError(f"the server sent {content!r:.60} for a text: does base_url name a chat server?")
    return (content or "").encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _token_ids(choice: Mapping[str, Any]) -> tuple[int, ...]:
    """What vLLM states under extra_body={"return_token_ids":true}; nothing where it is no list of ids."""
    stated = choice.get("token_ids")
    known = isinstance(stated, list) and all(isinstance(i, int) and 0 <= i < 2**32 for i in stated)
    return tuple(stated) if known and stated else ()


def _count(stated: Any) -> int:
    """A number of tokens.

    Raises:
        EngineError: If it is none.
    """
    if not isinstance(stated, int) or not 0 <= stated < 2**31:
        raise EngineError(f"the server's usage counts {stated!r} tokens, which is no count: ask its makers.")
    return stated


def _finish_reason(stated: Any) -> FinishReason:
    """Ours for the server's.

    Raises:
        EngineError: If the text was broken off, so that it must not be kept.
    """
    if stated in CUT:
        return "length"
    if stated not in ENDED:
        raise EngineError(
            f"the server ended a text with finish_reason={stated!r}, so it is not whole: see the server's log, and "
            "start the same command again to go on."
        )
    if stated not in ENDED[:4]:
        log.warning("The server ended a text with finish_reason=%s; it is taken as it is.", stated)
    return "stop"


def _lengths(texts: Sequence[str], ends: Sequence[str], renderer: Renderer) -> list[int]:
    """Tokens of each text, its end token included."""
    return [renderer.count(text) + (end == "stop") for text, end in zip(texts, ends, strict=True)]


def split_total(total: int, weights: Sequence[int]) -> list[int]:
    """Split the one sum that a server states for all texts of a call, by their lengths, to the token."""
    sums = list(accumulate(weights, initial=0))
    if not sums[-1]:
        sums = list(range(len(weights) + 1))
    return [end - start for start, end in pairwise(total * part // sums[-1] for part in sums)]
