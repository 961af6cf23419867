"""Reads replies of a chat server: completions with their counts, or a sentence on why there are none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any

from lm_eval_aft.core.chat import Renderer, whole_characters
from lm_eval_aft.core.errors import AFTError, EngineError, PromptTooLong
from lm_eval_aft.core.log import log
from lm_eval_aft.core.records import Completion, Confidence, FinishReason, Prompt
from lm_eval_aft.core.secrets import KEY_VARIABLE
from lm_eval_aft.core.thinking import has_marks
from lm_eval_aft.engines.api.client import Refused

# Words by which servers say that a prompt is too long.
LENGTH_WORDS = ("context length", "context_length", "context window", "maximum context", "max_model_len")
# Fields of a message in which servers keep a thought apart from the text.
REASONING_FIELDS = ("reasoning_content", "reasoning", "thinking")
# Finish reasons of a text that was cut. Mistral uses the second at the end of the context.
CUT = ("length", "model_length")
# Finish reasons of a text that ended by itself.
ENDED_BY_STOP = ("stop", "eos", "eos_token", "stop_sequence")
# Finish reasons of a whole text that ended for another reason.
ENDED = (*ENDED_BY_STOP, "content_filter", "tool_calls", "function_call")


def completions(reply: Mapping[str, Any], prompt: Prompt, count: int, renderer: Renderer) -> tuple[Completion, ...]:
    """The completions in a reply.

    Args:
        reply: The server's reply, parsed.
        prompt: The prompt of the call.
        count: Number of requested texts.
        renderer: Counts tokens if the reply does not.

    Raises:
        EngineError: If the reply is not a chat completion, lacks texts or counts, or holds a text that is not whole.
    """
    choices = reply.get("choices")
    if not isinstance(choices, list) or not all(map(_is_choice, choices)):
        raise EngineError("the server's reply holds no chat completion: does base_url name a chat server?")
    if len(choices) != count:
        advice = "give seed= a whole number, so that each text is requested by itself." if count > 1 else ""
        advice = advice or "see the server's log, and start the same command again to resume."
        raise EngineError(f"the server answered n={count} with {len(choices)} choices: {advice}")
    texts = [_text(choice["message"].get("content")) for choice in choices]
    ends = [_finish_reason(choice.get("finish_reason")) for choice in choices]
    token_ids = [_token_ids(choice) for choice in choices]
    usage = reply.get("usage")
    if isinstance(usage, dict) and "prompt_tokens" in usage and "completion_tokens" in usage:
        details = usage.get("prompt_tokens_details")
        prompt_tokens, total = _count(usage["prompt_tokens"]), _count(usage["completion_tokens"])
        cached = min(prompt_tokens, _count(details.get("cached_tokens") or 0) if isinstance(details, dict) else 0)
        generated = [len(ids) for ids in token_ids] if all(token_ids) else [total]
        if len(generated) < count:
            generated = split_total(total, _lengths(texts, ends, renderer))
    elif renderer.tokenizer is not None:
        prompt_tokens, cached, generated = prompt.prompt_tokens, 0, _lengths(texts, ends, renderer)
    else:
        raise EngineError(
            "the server's reply states no usage, so its tokens cannot be counted: give tokenizer=FOLDER_OR_HUB_NAME "
            "to count them here."
        )
    # The texts of one call share its prompt.
    computed = [prompt_tokens - cached, *[0] * (count - 1)]
    texts = [_with_opening(*parts, prompt) for parts in zip(choices, texts, ends, strict=True)]
    return tuple(
        Completion(texts[i], token_ids[i], ends[i], prompt_tokens, computed[i], generated[i], _confidence(choices[i]))
        for i in range(count)
    )


def refusal(error: Refused, has_key: bool, model: str, served: Sequence[str]) -> AFTError:
    """The error to raise for a refused call.

    Args:
        error: Which server refused what, and why.
        has_key: Whether the call held a key.
        model: The server's name of the model.
        served: Models that the server lists.
    """
    message = error.message.lower()
    if error.status in (400, 413, 422) and (
        error.code == "context_length_exceeded" or any(words in message for words in LENGTH_WORDS)
    ):
        return PromptTooLong(
            f"a prompt does not fit the context of model={model} ({error.message}): give tokenizer= or max_length= so "
            "that drafts are cut in time, lower max_gen_toks or draft_max_tokens, or use a model with a longer context."
        )
    if error.status in (401, 403):
        state = f"refuses the key in {KEY_VARIABLE}" if has_key else f"wants a key: set {KEY_VARIABLE}"
        return EngineError(f"the server at {error.base_url} {state} (HTTP {error.status}: {error.message}).")
    if error.status == 404:
        names = f"; it has {', '.join(served)}" if served else ""
        return EngineError(
            f"the server at {error.base_url} has no model={model} or no chat completions ({error.message}){names}: "
            "correct model= or base_url=."
        )
    hint = "; if its chat template takes no system message, give system_role=false" if "system" in message else ""
    hint += "; strategy=weighted and confidence= need logprobs" if "logprob" in message else ""
    return EngineError(f"the server at {error.base_url} says HTTP {error.status}: {error.message}{hint}.")


def _is_choice(choice: Any) -> bool:
    return isinstance(choice, dict) and isinstance(choice.get("message"), dict)


def _text(content: Any) -> str:
    """The text of a message. Content may also be a list of parts; its thinking parts are left out.

    Half of a surrogate pair becomes a replacement character, because no file can hold it.

    Raises:
        EngineError: If the content is neither.
    """
    if isinstance(content, list):
        parts = [part for part in content if isinstance(part, dict) and part.get("type") == "text"]
        content = "".join(str(part.get("text") or "") for part in parts)
    if not isinstance(content, str | None):
        raise EngineError(f"the server sent {content!r:.60} for a text: does base_url name a chat server?")
    return whole_characters(content or "")


def _with_opening(choice: Mapping[str, Any], text: str, end: FinishReason, prompt: Prompt) -> str:
    """The text, with the opening mark of a thought that the chat template opened and the token limit cut.

    A server may keep the thought apart from the text, in a field of its own. Then the text holds an answer.
    """
    message = choice["message"]
    content = message.get("content")
    # Content in parts has a part of its own for the thought.
    apart = isinstance(content, list) or any(message.get(name) for name in REASONING_FIELDS)
    return text if apart or end == "stop" or not text or has_marks(text) else prompt.opened_thought + text


def _token_ids(choice: Mapping[str, Any]) -> tuple[int, ...]:
    """The token ids that vLLM states with extra_body={"return_token_ids":true}. Empty if there is no list of ids."""
    ids = choice.get("token_ids")
    valid = isinstance(ids, list) and all(isinstance(i, int) and 0 <= i < 2**32 for i in ids)
    return tuple(ids) if valid and ids else ()


def _confidence(choice: Mapping[str, Any]) -> Confidence | None:
    """The confidence in the log-probabilities of a text; None if there are none, or one is not a number.

    They come in the form of chats, {"content": [{"logprob": -0.5}]}, or of plain completions,
    {"token_logprobs": [-0.5]}.
    """
    logprobs = choice.get("logprobs")
    if not isinstance(logprobs, dict):
        return None
    rows = logprobs.get("content")
    values = logprobs.get("token_logprobs")
    if isinstance(rows, list):
        values = [row.get("logprob") if isinstance(row, dict) else None for row in rows]
    if not isinstance(values, list) or not all(type(value) in (int, float) for value in values):
        return None
    try:
        return Confidence.of([float(value) for value in values])
    except (ValueError, OverflowError):
        return None


def _count(value: Any) -> int:
    """A number of tokens.

    Raises:
        EngineError: If the value is not such a number.
    """
    if not isinstance(value, int) or not 0 <= value < 2**31:
        raise EngineError(
            f"the server's usage counts {value!r} tokens, which is not a count: report this to its makers."
        )
    return value


def _finish_reason(reason: Any) -> FinishReason:
    """Our finish reason for the server's.

    Raises:
        EngineError: If the text is not whole, so that it must not be kept.
    """
    if reason in CUT:
        return "length"
    if reason not in ENDED:
        raise EngineError(
            f"the server ended a text with finish_reason={reason!r}, so it is not whole: see the server's log, and "
            "start the same command again to resume."
        )
    if reason not in ENDED_BY_STOP:
        log.warning("The server ended a text with finish_reason=%s; it is taken as it is.", reason)
    return "stop"


def _lengths(texts: Sequence[str], ends: Sequence[str], renderer: Renderer) -> list[int]:
    """Tokens of each text, its end token included."""
    return [renderer.count(text) + (end == "stop") for text, end in zip(texts, ends, strict=True)]


def split_total(total: int, weights: Sequence[int]) -> list[int]:
    """Split a total into whole parts in proportion to the weights. The parts add up to the total.

    A server states one count of generated tokens for all texts of a call.
    """
    sums = list(accumulate(weights, initial=0))
    if not sums[-1]:
        sums = list(range(len(weights) + 1))
    return [end - start for start, end in pairwise(total * part // sums[-1] for part in sums)]
