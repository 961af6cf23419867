"""Chats: to and from lm-eval's context string, and from messages to a prompt.

lm-eval gives a model one string per request. ``ChatContext`` is such a string: it holds the messages as JSON, and
``decode`` reads them back. A ``Renderer`` turns messages into a prompt and measures texts in tokens. Engines with a
tokenizer use ``TokenizerRenderer``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence, Set
from contextlib import suppress
from functools import cached_property
from hashlib import sha256
from itertools import groupby
from typing import Any, Protocol

from lm_eval_aft.core.errors import ChatError, ConfigError
from lm_eval_aft.core.jsonl import parse_json
from lm_eval_aft.core.log import log
from lm_eval_aft.core.records import Chat, Message, Prompt
from lm_eval_aft.core.rendering import render
from lm_eval_aft.core.thinking import CHANNEL_TOKENS, is_thought_token, opened_thought, without_blocks, without_thoughts

_MARK = '{"aft_chat": '
# Marks of turns in chat templates: <|user|>, [INST], <<SYS>>, </s>. To some tokenizers they are ordinary text.
MARKS = re.compile(r"<[|\uff5c][^\s<>]{1,40}[|\uff5c]>|\[/?[A-Z_]{2,40}\]|<</?[A-Z]+>>|<\w+_of_turn>|</?s>")
# No chat template writes more characters after the last message.
LONGEST_HEAD = 400

NO_PREFIX = (
    "the prompt of a question is empty, and the tokenizer has neither a BOS nor an EOS token that could stand in its "
    "place: leave the question out, or give another tokenizer."
)


# The function by which a chat template gets today's date. As an argument of the template it is a fixed date.
DATE = "strftime_now"


class ChatContext(str):
    """The messages of a chat as a JSON string, which lm-eval takes for a rendered chat.

    The text itself holds everything, so the messages survive pickling, hashing and the sample logs.
    """

    __slots__ = ()

    @classmethod
    def of(cls, history: Sequence[Mapping[str, str]], add_generation_prompt: bool = True) -> ChatContext:
        """Encode the arguments of ``LM.apply_chat_template``."""
        rows = [{"role": turn["role"], "content": turn["content"]} for turn in history]
        return cls(json.dumps({"aft_chat": rows, "prefill": not add_generation_prompt}, ensure_ascii=False))


def is_chat(context: str) -> bool:
    """Whether a context holds messages, rather than a bare prompt."""
    return context.startswith(_MARK)


def decode(context: str) -> Chat:
    """Read the chat in a context. A bare string becomes one user message.

    Raises:
        ChatError: If a task changed the encoded chat, or the chat ends with a complete assistant message.
    """
    if not is_chat(context):
        return Chat((Message("user", whole_characters(context)),), wrapped=True)
    try:
        payload = parse_json(context)
        messages = tuple(Message(turn["role"], turn["content"]) for turn in payload["aft_chat"])
        if not all(isinstance(part, str) for m in messages for part in (m.role, m.content)):
            raise TypeError("a role or a content is not a text")
        messages = tuple(Message(m.role, whole_characters(m.content)) for m in messages)
        prefill = bool(payload["prefill"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ChatError(
            f"a task changed the chat context after the chat template was applied ({error}); run this task without "
            "--apply_chat_template."
        ) from error
    if not messages or messages[-1].role != "assistant":
        return Chat(messages)
    if not prefill:
        raise ChatError("the chat ends with an assistant message, so there is nothing to answer: end it with the user.")
    return Chat(messages[:-1], prefill=messages[-1].content)


class Renderer(Protocol):
    """Turns chats into prompts and measures text in tokens."""

    @property
    def tokenizer(self) -> Any:
        """The transformers tokenizer, or None if it has none."""

    def encode(self, chat: Chat) -> Prompt:
        """Render a chat, ready for the next assistant turn."""

    def render(self, chat: Chat) -> str:
        """The prompt as text, for logs. If a server renders it unseen, each message follows the name of its role."""

    def trim(self, text: str, tokens: int) -> str:
        """The longest beginning of a text that has at most ``tokens`` tokens."""

    def count(self, text: str) -> int:
        """Length of a text in tokens."""

    def clean(self, text: str) -> str:
        """A text without control tokens and thoughts, for use in another prompt."""


class TokenizerRenderer:
    """Renders with a transformers tokenizer and its chat template.

    If the template has no system role, the system text goes to the head of the first user message. If the tokenizer
    has no template (base models), the prompt is the contents joined by blank lines. A single user message is then the
    bare text that ``--model hf`` would see.

    Attributes:
        tokenizer: The tokenizer.
        template_args: Variables of the chat template, and the template itself if a named one is used.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        add_bos_token: bool | None = None,
        template_args: Mapping[str, Any] | None = None,
    ) -> None:
        """Wrap a tokenizer.

        Args:
            tokenizer: A transformers tokenizer.
            add_bos_token: As in lm-eval's HFLM. None leaves it to the tokenizer.
            template_args: More variables of the chat template, such as ``enable_thinking``.
        """
        self.tokenizer = tokenizer
        self._add_bos_token = add_bos_token
        self.template_args = dict(template_args or {})
        self._date: str | None = self.template_args.pop(DATE, None)
        if self._date is not None:
            self._render_with(self._template)

    def use_template(self, name: str | None) -> None:
        """Render with one of the tokenizer's named chat templates from now on; None is the default one.

        Raises:
            ConfigError: If the tokenizer has several templates and none of this name.
        """
        templates = self.tokenizer.chat_template
        if name is not None and not isinstance(templates, dict):
            log.warning(
                "The tokenizer has one chat template, which has no name: --apply_chat_template %s uses it.", name
            )
            return
        if name is not None and name not in templates:
            raise ConfigError(
                f"--apply_chat_template {name} is not a chat template of this tokenizer: give one of "
                f"{', '.join(sorted(templates))}, or no name."
            )
        self.template_args.pop("chat_template", None)
        if name is not None or self._date is not None:
            self._render_with(self._template if name is None else templates[name])
        for known in ("has_system_role", "turn_end_ids", "_control"):
            self.__dict__.pop(known, None)

    @property
    def prints_date(self) -> bool:
        """Whether the chat template writes today's date into a prompt."""
        if not self.tokenizer.chat_template:
            return False
        mark = "date-probe"
        probe = {**self.template_args, "chat_template": with_date(self._template, mark)}
        for chat in ([Message("user", "x")], [Message("system", "x"), Message("user", "x")]):
            with suppress(ChatError):
                if mark in self._apply(chat, False, template_args=probe):
                    return True
        return False

    @property
    def _template(self) -> str:
        """The chat template in use; "" if there is none."""
        templates = self.template_args.get("chat_template") or self.tokenizer.chat_template or ""
        return str(templates.get("default", "") if isinstance(templates, dict) else templates)

    def _render_with(self, template: str) -> None:
        self.template_args["chat_template"] = template if self._date is None else with_date(template, str(self._date))

    def render(self, chat: Chat) -> str:
        """See ``Renderer.render``."""
        if not self.tokenizer.chat_template:
            return "\n\n".join(message.content for message in chat.with_prefill if message.content)
        messages = chat.with_prefill if self.has_system_role else fold_system(chat.with_prefill)
        return self._apply(messages, bool(chat.prefill))

    def encode(self, chat: Chat) -> Prompt:
        """Render and tokenise as lm-eval's HFLM does: special tokens are added unless the text begins with BOS."""
        text = self.render(chat)
        token_ids = tuple(self._encode_text(text))
        # A model must read something. lm-eval has a prefix token for that.
        if not token_ids:
            token_ids = (self._prefix_token,)
        digest = sha256(",".join(map(str, token_ids)).encode()).hexdigest()
        return Prompt(chat, token_ids, len(token_ids), digest, self._opened_thought(chat, text))

    def trim(self, text: str, tokens: int) -> str:
        """See ``Renderer.trim``. Decoding may merge pieces, so the cut is lowered until the text is short enough."""
        ids = self._plain(text)
        keep = tokens
        while keep > 0:
            head = str(self.tokenizer.decode(ids[:keep], skip_special_tokens=False))
            # The cut may go through a character of several bytes.
            head = head.rstrip("\ufffd")
            if self.count(head) <= tokens:
                return head
            keep -= 1
        return ""

    def count(self, text: str) -> int:
        """See ``Renderer.count``."""
        return len(self._plain(text))

    def clean(self, text: str) -> str:
        """See ``Renderer.clean``."""
        return strip_control(text, self._control)

    @cached_property
    def has_system_role(self) -> bool:
        """Whether the chat template accepts a system message and renders it."""
        mark = "system-role-probe"
        try:
            rendered = mark in self._apply([Message("system", mark), Message("user", "x")], False)
        except ChatError:
            rendered = False
        if not rendered:
            log.warning("This chat template has no system role: system texts go to the head of the first user turn.")
        return rendered

    @cached_property
    def thought_ids(self) -> frozenset[int]:
        """The control tokens that mark thoughts. A text shows them, so that its thought can be told from its answer."""
        added = self.tokenizer.added_tokens_decoder
        special = {number: token.content for number, token in added.items() if token.special}
        channels = CHANNEL_TOKENS if "<|channel|>" in special.values() else ()
        return frozenset(number for number, text in special.items() if text in channels or is_thought_token(text))

    def show_mark(self, text: str, token_ids: Sequence[int], mark: str) -> str:
        """Put a mark that is a control token into a generated text, since decoding leaves control tokens out.

        Args:
            text: The text.
            token_ids: Its tokens.
            mark: The mark. Its last occurrence is shown. Any other string changes nothing.
        """
        added = self.tokenizer.added_tokens_decoder
        ids = {number for number, token in added.items() if token.special and token.content == mark}
        places = [place for place, token_id in enumerate(token_ids) if token_id in ids - self.thought_ids]
        if not places:
            return text
        before = decode_shown(self.tokenizer, token_ids[: places[-1]], self.thought_ids)
        return before + mark + text[len(before) :] if text.startswith(before) else text

    @cached_property
    def turn_end_ids(self) -> frozenset[int]:
        """The control token with which the chat template ends an assistant message, if there is one.

        A channel of gpt-oss ends with the same token as a message, so that token ends no text.
        """
        if not self.tokenizer.chat_template:
            return frozenset()
        mark = "turn-end-probe"
        history = (Message("user", "x"), Message("assistant", mark), Message("user", "x"))
        before, _, after = self._first_accepted((history, history[:2])).partition(mark)
        if "<|channel|>" in before:
            return frozenset()
        first = self._plain(after)[:1]
        return frozenset(first) & frozenset(self.tokenizer.added_tokens_decoder)

    def _opened_thought(self, chat: Chat, text: str) -> str:
        """The mark with which a rendered prompt opens a thought, after the last message or within the prefill."""
        mark = opened_thought(text[-LONGEST_HEAD - len(chat.prefill) :])
        # A user may write about such marks, so only what follows the last message counts.
        if not mark or text.rstrip().endswith(mark):
            return mark
        if not self.tokenizer.chat_template:
            return opened_thought(chat.prefill)
        before = self._first_accepted((chat.messages,))
        return opened_thought(text[len(before) :]) if before and text.startswith(before) else ""

    def _apply(
        self,
        messages: Sequence[Message],
        prefill: bool,
        generation_prompt: bool = True,
        template_args: Mapping[str, Any] | None = None,
    ) -> str:
        rows = [message.to_dict() for message in messages]
        roles = ", ".join(m.role for m in messages)
        return render(
            lambda: self.tokenizer.apply_chat_template(
                rows,
                tokenize=False,
                add_generation_prompt=generation_prompt and not prefill,
                continue_final_message=prefill,
                **(self.template_args if template_args is None else template_args),
            ),
            lambda reason: refused_chat(reason, f"a chat of {roles} turns"),
        )

    def _first_accepted(self, chats: Iterable[Sequence[Message]]) -> str:
        """The first of these chats that the template renders, as text. Empty if it refuses them all.

        Some templates are for one question only, and refuse a second turn.
        """
        for chat in chats:
            messages = chat if self.has_system_role else fold_system(chat)
            with suppress(ChatError):
                return self._apply(messages, False, generation_prompt=False)
        return ""

    def _encode_text(self, text: str) -> list[int]:
        bos = self.tokenizer.bos_token
        special: dict[str, bool] = {}
        if bos and text.startswith(bos):
            special = {"add_special_tokens": False}
        elif self._add_bos_token is not None:
            special = {"add_special_tokens": self._add_bos_token}
        return list(self.tokenizer.encode(whole_characters(text), **special))

    def _plain(self, text: str) -> list[int]:
        """Token ids without BOS, which many tokenizers add."""
        return list(self.tokenizer.encode(whole_characters(text), add_special_tokens=False))

    @property
    def _prefix_token(self) -> int:
        bos, eos = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        first = bos if bos is not None else eos
        if first is None:
            raise ChatError(NO_PREFIX)
        return int(first)

    @cached_property
    def _control(self) -> tuple[str, ...]:
        added = (token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special)
        return tuple(sorted({*added, *self.tokenizer.all_special_tokens, *self._marks()}, key=len, reverse=True))

    def _marks(self) -> set[str]:
        """The marks that the chat template puts around messages, special tokens or not."""
        if not self.tokenizer.chat_template:
            return set()
        turns = (Message("system", "x"), Message("user", "x"), Message("assistant", "x"), Message("user", "x"))
        with suppress(ChatError):
            return set(MARKS.findall(self.render(Chat(turns))))
        return set(MARKS.findall(self._first_accepted((turns[:3], turns[1:3], turns[1:2]))))


def transcript(chat: Chat) -> str:
    """A chat as text that no chat template renders."""
    return "\n\n".join(f"{message.role}: {message.content}" for message in chat.with_prefill)


def whole_characters(text: str) -> str:
    """The text with a replacement character for each half of a surrogate pair, which no file or tokenizer takes."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def with_date(template: str, date: str) -> str:
    """A chat template that writes ``date`` instead of today's date."""
    # The macro hides the function of this name that transformers gives to templates.
    return f"{{% macro {DATE}(format) %}}{{{{ {json.dumps(date)} }}}}{{% endmacro +%}}{template}"


def refused_chat(reason: str, chat: str = "a chat") -> ChatError:
    """The error to raise if a tokenizer's chat template cannot render a chat."""
    return ChatError(f"the tokenizer's chat template refuses {chat}: {reason}")


def fold_system(messages: Sequence[Message]) -> tuple[Message, ...]:
    """Move the system text to the head of the first user message, for templates without a system role."""
    system = "\n\n".join(m.content for m in messages if m.role == "system" and m.content.strip())
    rest = [m for m in messages if m.role != "system"]
    first = next((i for i, m in enumerate(rest) if m.role == "user"), None)
    if not system:
        return tuple(rest)
    if first is None:
        return (Message("user", system), *rest)
    rest[first] = Message("user", f"{system}\n\n{rest[first].content}")
    return tuple(rest)


def decode_shown(tokenizer: Any, token_ids: Sequence[int], shown: Set[int]) -> str:
    """The text of tokens without control tokens, except those that are ``shown``."""
    if shown.isdisjoint(token_ids):
        return str(tokenizer.decode(list(token_ids), skip_special_tokens=True))
    runs = groupby(token_ids, key=shown.__contains__)
    return "".join(str(tokenizer.decode(list(run), skip_special_tokens=not kept)) for kept, run in runs)


def strip_control(text: str, control: Sequence[str]) -> str:
    """Remove thoughts and control tokens.

    A thought without an end reaches to the end of the text. If the prompt opened the thought, it begins with the text.
    Removing one token can form another one, so removal is repeated until nothing changes.
    """
    # Some marks of thoughts are control tokens.
    others = [token for token in control if not is_thought_token(token) and token not in CHANNEL_TOKENS]
    text = without_thoughts(_without(text, others))
    before = None
    while before != text:
        before = text
        text = without_blocks(_without(text, control))
    return text


def _without(text: str, tokens: Sequence[str]) -> str:
    """The text without these tokens, and without those that form when others go."""
    before = None
    while before != text:
        before = text
        for token in tokens:
            text = text.replace(token, "")
    return text
