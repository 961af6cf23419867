"""Measures prompts that a server will render.

The server gets messages, so a prompt's identity is its chat. Its length is counted if the user names a tokenizer
(``tokenizer=``), and estimated otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lm_eval_aft.core.chat import Renderer, TokenizerRenderer, fold_system, strip_control, transcript
from lm_eval_aft.core.records import Chat, Prompt

# English text in UTF-8. Other scripts have more bytes a character, so their characters count for more.
BYTES_PER_TOKEN = 4
# The role and the turn marks of common chat templates.
TOKENS_PER_TURN = 5
# Control tokens of common chat templates. Without a tokenizer those of the server's model are unknown.
CONTROL = (
    *("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"),
    *("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"),
    *("<start_of_turn>", "<end_of_turn>", "<bos>", "<eos>", "<s>", "</s>", "[INST]", "[/INST]", "<<SYS>>", "<</SYS>>"),
    *("[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "<|start|>", "<|channel|>", "<|message|>", "<|im_sep|>", "<|eom_id|>"),
    *("<\uff5cUser\uff5c>", "<\uff5cAssistant\uff5c>", "<\uff5cend\u2581of\u2581sentence\uff5c>"),
)


class EstimateRenderer:
    """Estimates about four characters of English a token."""

    tokenizer: Any = None

    def encode(self, chat: Chat) -> Prompt:
        """See ``Renderer.encode``. The length is an estimate."""
        turns = [*(m.content for m in chat.messages), *([chat.prefill] if chat.prefill else [])]
        tokens = sum(self.count(turn) + TOKENS_PER_TURN for turn in turns) + TOKENS_PER_TURN
        return Prompt(chat, None, tokens, chat.identity)

    def render(self, chat: Chat) -> str:
        """See ``Renderer.render``."""
        return transcript(chat)

    def trim(self, text: str, tokens: int) -> str:
        """See ``Renderer.trim``."""
        return text.encode(errors="replace")[: tokens * BYTES_PER_TOKEN].decode(errors="ignore")

    def count(self, text: str) -> int:
        """See ``Renderer.count``."""
        return -(-len(text.encode(errors="replace")) // BYTES_PER_TOKEN)

    def clean(self, text: str) -> str:
        """See ``Renderer.clean``."""
        return strip_control(text, CONTROL)


class CountingRenderer:
    """Counts with the tokenizer that the server uses. The prompt's identity is still that of its messages."""

    def __init__(self, tokenizer: Any, template_args: Mapping[str, Any] | None = None) -> None:
        """Wrap a transformers tokenizer.

        Args:
            tokenizer: The tokenizer.
            template_args: More variables of the chat template, which the server gets too.
        """
        self.tokenizer = tokenizer
        self._inner = TokenizerRenderer(tokenizer, template_args=template_args)

    @property
    def has_system_role(self) -> bool:
        """Whether the chat template takes a system message."""
        return not self.tokenizer.chat_template or self._inner.has_system_role

    def encode(self, chat: Chat) -> Prompt:
        """See ``Renderer.encode``."""
        prompt = self._inner.encode(chat)
        return Prompt(chat, None, prompt.prompt_tokens, chat.identity, prompt.opened_thought)

    def render(self, chat: Chat) -> str:
        """See ``Renderer.render``. The text is what a server with this tokenizer renders."""
        return self._inner.render(chat)

    def trim(self, text: str, tokens: int) -> str:
        """See ``Renderer.trim``."""
        return self._inner.trim(text, tokens)

    def count(self, text: str) -> int:
        """See ``Renderer.count``."""
        return self._inner.count(text)

    def clean(self, text: str) -> str:
        """See ``Renderer.clean``."""
        return self._inner.clean(text)


class FoldingRenderer:
    """Moves system messages to the beginning of the first user turn, for chat templates that refuse them."""

    def __init__(self, inner: Renderer) -> None:
        """Wrap another renderer."""
        self._inner = inner
        self.tokenizer = inner.tokenizer
        self.trim, self.count, self.clean = inner.trim, inner.count, inner.clean

    def encode(self, chat: Chat) -> Prompt:
        """See ``Renderer.encode``. The prompt's chat is the folded one."""
        return self._inner.encode(replace(chat, messages=fold_system(chat.messages)))

    def render(self, chat: Chat) -> str:
        """See ``Renderer.render``."""
        return self._inner.render(replace(chat, messages=fold_system(chat.messages)))
