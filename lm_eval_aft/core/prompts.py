"""The prompts of drafts and aggregation layers: templates, and fitting drafts into the context.

Inference and training data get their prompts here. A template has two blocks, ``draft`` and ``aggregate``. Each renders
to a text that extends the system message.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from jinja2 import StrictUndefined
from jinja2 import Template as JinjaTemplate
from jinja2.sandbox import ImmutableSandboxedEnvironment

from lm_eval_aft.core.chat import Renderer, TokenizerRenderer
from lm_eval_aft.core.errors import PromptTooLong, TemplateError
from lm_eval_aft.core.files import refuse_stream
from lm_eval_aft.core.paths import check_path
from lm_eval_aft.core.records import Chat, Message, Prompt
from lm_eval_aft.core.rendering import render, run_template

# ``tag`` is "draft", lengthened until no draft contains it in brackets, so that no draft can end itself.
# This text is part of the identity of the default template: do not change it.
DEFAULT_TEMPLATE = """\
{% block draft %}{% endblock %}
{% block aggregate -%}
Below are {{ drafts | length }} drafts that answer the user's last message. They were written independently, and any \
of them may be wrong, incomplete or unclear.

Work out the answer again with their help: where drafts differ, find out which one holds; keep what is right, mend \
what is not, and add what is missing. Then write one complete answer, better than every draft. Speak to the user \
directly, follow every instruction about form and length in the user's message, and say nothing about drafts.
{% for draft in drafts %}
[{{ tag }} {{ loop.index }}]
{{ draft }}
[/{{ tag }} {{ loop.index }}]
{% endfor %}
{%- endblock %}
"""
DEFAULT_NAME = "default"

# The prompt of ``strategy=select``, for templates without a block ``select``. GenSelect (arXiv 2507.17797) and
# Universal Self-Consistency (arXiv 2311.17311) ask for the number of the best text in such a way.
SELECT_TEMPLATE = """\
{% block select -%}
Below are {{ drafts | length }} drafts that answer the user's last message. They were written independently, and any \
of them may be wrong.

Choose the best draft. Compare the drafts where they differ, and check which one is right and follows every \
instruction in the user's message. Do not write an answer of your own. End with one line that names your choice, such \
as "Best draft: 1".
{% for draft in drafts %}
[{{ tag }} {{ loop.index }}]
{{ draft }}
[/{{ tag }} {{ loop.index }}]
{% endfor %}
{%- endblock %}
"""


@dataclass(frozen=True, slots=True)
class Fitted:
    """A prompt that fits its budget.

    Attributes:
        prompt: The prompt.
        cut_tokens: Tokens cut from each draft.
        draft_tokens: Tokens of all drafts before the cut; 0 if none was cut.
    """

    prompt: Prompt
    cut_tokens: tuple[int, ...] = ()
    draft_tokens: int = 0


class Template:
    """A draft block and an aggregate block, and possibly a select block, rendered in jinja2's sandbox.

    All blocks have the variable ``question`` (the last user message). ``aggregate`` and ``select`` also have ``drafts``
    (a list of texts) and ``tag`` (a word that no draft contains in brackets).
    """

    def __init__(self, source: str, name: str) -> None:
        """Compile a template.

        Args:
            source: jinja2 text with the two blocks. White space inside a block counts.
            name: What messages call it: a path, or "default".

        Raises:
            TemplateError: If the text does not compile or lacks a block.
        """
        self.source, self.name = source, name
        self._compiled = _compile(source, name)
        self._selecting = self._compiled if "select" in self._compiled.blocks else _compile(SELECT_TEMPLATE, "select")
        for block in ("draft", "aggregate"):
            if block not in self._compiled.blocks:
                raise TemplateError(f"the template {name} has no block {block}: add {{% block {block} %}}.")

    @classmethod
    def load(cls, path: str | None) -> Template:
        """Read a template file. None gives the default template.

        Raises:
            TemplateError: If the file cannot be read, or is not a template.
        """
        if path is None:
            return cls(DEFAULT_TEMPLATE, DEFAULT_NAME)
        path = check_path("template=", path, TemplateError)
        refuse_stream(path)
        try:
            return cls(Path(path).read_text(encoding="utf-8-sig"), path)
        # ValueError: the file is not UTF-8.
        except (OSError, ValueError) as error:
            raise TemplateError(
                f"the template {path} cannot be read ({error}): give the path of a text file."
            ) from error

    @property
    def digest(self) -> str:
        """SHA-256 of the source, which a checkpoint carries."""
        return sha256(self.source.encode()).hexdigest()

    def draft_chat(self, chat: Chat) -> Chat:
        """The chat for a draft."""
        return _with_system(chat, self._render("draft", chat))

    def select_chat(self, chat: Chat, drafts: Sequence[str]) -> Chat:
        """The chat for a text that names the best of several drafts. They are numbered from 1."""
        return _with_system(chat, self._render("select", chat, drafts=list(drafts), tag=_tag(drafts)))

    def aggregate_chat(self, chat: Chat, drafts: Sequence[str]) -> Chat:
        """The chat for a text that reads drafts."""
        return _with_system(chat, self._render("aggregate", chat, drafts=list(drafts), tag=_tag(drafts)))

    def _render(self, block: str, chat: Chat, **variables: Any) -> str:
        question = next((m.content for m in reversed(chat.messages) if m.role == "user"), "")

        compiled = self._selecting if block == "select" else self._compiled

        def write() -> str:
            context = compiled.new_context({"question": question, **variables})
            return "".join(compiled.blocks[block](context))

        def refuse(reason: str) -> TemplateError:
            return TemplateError(f"block {block} of the template {self.name} cannot be rendered: {reason}.")

        return render(write, refuse)


def _compile(source: str, name: str) -> JinjaTemplate:
    environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)

    def refuse(reason: str) -> TemplateError:
        return TemplateError(f"the template {name} does not compile: {reason}.")

    return run_template(lambda: environment.from_string(source), refuse)


def _tag(drafts: Sequence[str]) -> str:
    """A delimiter word that no draft contains: "draft" for nearly all drafts."""
    folded = [_folded(draft) for draft in drafts]
    tag = "draft"
    while any(re.search(rf"\[/?{tag}\d*\]", text) for text in folded):
        tag += "-x"
    return tag


def _folded(text: str) -> str:
    """The text as a reader sees it: look-alike letters are one letter, and white space and invisible ones are gone."""
    if text.isascii():
        # All ASCII letters are their own normal form. Most texts are ASCII, and this takes a sixth of the time.
        return re.sub(r"[\x00-\x20\x7f]+", "", text).casefold()
    visible = (c for c in unicodedata.normalize("NFKC", text).casefold() if unicodedata.category(c)[0] not in "CZ")
    return "".join(visible)


def _with_system(chat: Chat, addition: str) -> Chat:
    """Extend the system message, or add one. The user's messages stay as they are."""
    if not addition:
        return chat
    messages = list(chat.messages)
    if messages and messages[0].role == "system":
        messages[0] = Message("system", f"{messages[0].content}\n\n{addition}")
    else:
        messages.insert(0, Message("system", addition))
    return Chat(tuple(messages), chat.prefill, chat.wrapped)


def check_templates(template: Template, renderer: TokenizerRenderer | None, *, drafts: bool = True) -> None:
    """Refuse templates that drop the question or the drafts, as some chat templates do with contents that are texts.

    Args:
        template: The prompts.
        renderer: Renders chats with the tokenizer's chat template. None if a server does so, or nothing does.
        drafts: Whether prompts must show drafts, besides the question.

    Raises:
        TemplateError: If they are not shown.
    """
    chat, probes = Chat((Message("user", "question-probe"),)), ["first-probe", "second-probe"] if drafts else []
    shown = template.aggregate_chat(chat, probes) if drafts else template.draft_chat(chat)
    prompt = renderer.render(shown) if renderer else "\n".join(message.content for message in shown.messages)
    missing = [probe for probe in ("question-probe", *probes) if probe not in prompt]
    if missing:
        makers = f"the template {template.name}" + " and the tokenizer's chat template" * bool(renderer)
        what = "user message" if missing[0] == "question-probe" else "drafts"
        raise TemplateError(f"the prompt made with {makers} does not show the {what}: correct the template.")


def draft_prompt(template: Template, renderer: Renderer, chat: Chat, budget: int, *, final: bool = False) -> Fitted:
    """The prompt of a draft, or of the single answer if ``layers=0``. It is never cut.

    Args:
        template: Its draft block is used.
        renderer: The engine's renderer.
        chat: The chat to answer.
        budget: Maximum tokens of the prompt.
        final: True for the answer, which continues the chat's prefill. A draft does not.

    Raises:
        PromptTooLong: If the prompt has more tokens than the budget.
    """
    return _checked(Fitted(renderer.encode(chat_of_draft(template, chat, final=final))), budget)


def chat_of_draft(template: Template, chat: Chat, *, final: bool) -> Chat:
    """The chat that ``draft_prompt`` renders."""
    drafted = template.draft_chat(chat)
    return drafted if final else replace(drafted, prefill="")


def aggregate_prompt(
    template: Template,
    renderer: Renderer,
    chat: Chat,
    drafts: Sequence[str],
    budget: int,
    *,
    final: bool = False,
    select: bool = False,
) -> Fitted:
    """The prompt of a text that reads drafts. If its drafts do not all fit, they are cut evenly.

    Every draft keeps at most the same number of tokens, the largest number that fits. The question is never cut.

    Args:
        template: Its aggregate block is used.
        renderer: The engine's renderer.
        chat: The chat to answer.
        drafts: Texts of the layer before. Empty ones are left out of the prompt. If all are empty, the prompt is that
            of a draft.
        budget: Maximum tokens of the prompt.
        final: True in the last layer, which continues the chat's prefill.
        select: Use the template's select block instead of its aggregate block.

    Raises:
        PromptTooLong: If the prompt does not fit even with one token per draft.
    """
    without_drafts = chat if final else replace(chat, prefill="")
    texts = [renderer.clean(draft).strip() for draft in drafts]
    if not any(texts):
        return draft_prompt(template, renderer, chat, budget, final=final)

    extend = template.select_chat if select else template.aggregate_chat

    def encode(kept: Sequence[str]) -> Prompt:
        return renderer.encode(extend(without_drafts, [text for text in kept if text]))

    whole = encode(texts)
    if whole.prompt_tokens <= budget:
        return Fitted(whole, (0,) * len(texts))
    lengths = [renderer.count(text) for text in texts]

    def cut_to(tokens: int) -> Prompt:
        pairs = zip(texts, lengths, strict=True)
        return encode([text if length <= tokens else renderer.trim(text, tokens) for text, length in pairs])

    # cut_to(high) is too long. Find the largest number that fits.
    low, high = 1, max(lengths, default=1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if cut_to(middle).prompt_tokens <= budget else (low, middle)
    cut_tokens = tuple(max(0, length - low) for length in lengths)
    return _checked(Fitted(cut_to(low), cut_tokens, sum(lengths)), budget)


def _checked(fitted: Fitted, budget: int) -> Fitted:
    prompt = fitted.prompt
    if prompt.prompt_tokens <= budget:
        return fitted
    question = next((m.content for m in reversed(prompt.chat.messages) if m.role == "user"), "")
    raise PromptTooLong(
        f"the question {question[:60]!r}... needs {prompt.prompt_tokens} prompt tokens, and the context "
        f"has room for {max(budget, 0)}: lower max_gen_toks or draft_max_tokens, or use a model with a "
        "longer context."
    )
