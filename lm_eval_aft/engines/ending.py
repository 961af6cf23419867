"""Where a generated text ends: at a token that ends texts, or at a stop string."""

from __future__ import annotations

from collections.abc import Sequence, Set
from typing import Any

from lm_eval_aft.core.chat import TokenizerRenderer, decode_shown
from lm_eval_aft.core.records import Sampling


def find_stop_ids(configured: int | Sequence[int] | None, renderer: TokenizerRenderer) -> frozenset[int]:
    """The token ids that end a text.

    Args:
        configured: ``eos_token_id`` of the model's generation config.
        renderer: Its tokenizer's end token and the chat template's turn end are added.
    """
    ids = list(configured) if isinstance(configured, Sequence) else [configured]
    ids.append(renderer.tokenizer.eos_token_id)
    return frozenset(int(token) for token in ids if token is not None) | renderer.turn_end_ids


def has_ended(tokenizer: Any, token_ids: Sequence[int], stop_ids: Set[int], sampling: Sampling) -> bool:
    """Whether the newest of the generated tokens ends the text: a stop id, the bound, or a stop string."""
    if token_ids[-1] in stop_ids or len(token_ids) >= sampling.max_tokens:
        return True
    if not sampling.until:
        return False
    # A token holds at least one byte, so these tokens cover the longest stop string.
    longest = max(len(stop.encode()) for stop in sampling.until)
    tail = tokenizer.decode(token_ids[-longest - 4 :])
    return any(stop in tail for stop in sampling.until)


def text_before_stop(
    tokenizer: Any,
    token_ids: Sequence[int],
    stop_ids: Set[int],
    until: Sequence[str],
    shown: Set[int] = frozenset(),
) -> tuple[str, bool]:
    """The text of generated tokens up to the first stop string, and whether a stop id or stop string ended it.

    Args:
        tokenizer: A transformers tokenizer.
        token_ids: The generated tokens.
        stop_ids: Token ids that end a text.
        until: Strings that end a text.
        shown: Control tokens that the text shows; see ``TokenizerRenderer.thought_ids``.
    """
    at_stop_id = bool(token_ids) and token_ids[-1] in stop_ids
    text = decode_shown(tokenizer, token_ids[:-1] if at_stop_id else token_ids, shown)
    cut = min((text.index(stop) for stop in until if stop in text), default=None)
    # A stop string may be a special token, which the text leaves out.
    stopped = at_stop_id or cut is not None or any(stop in tokenizer.decode(list(token_ids)) for stop in until)
    return text[:cut], stopped
