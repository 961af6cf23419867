"""Training examples: the token ids of a prompt, its target and the end of the turn.

Prompts come from ``lm_eval_aft.core.prompts`` and the renderer of the engines, so training and inference have the same
token ids.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from lm_eval_aft.core.chat import TokenizerRenderer
from lm_eval_aft.core.errors import ChatError, ConfigError, PromptTooLong
from lm_eval_aft.core.prompts import Fitted, Template, aggregate_prompt, check_templates, draft_prompt
from lm_eval_aft.core.records import Chat, Message
from lm_eval_aft.core.thinking import closing_mark, without_thoughts
from trainers.rows.row import template_errors_name
from trainers.rows.samples import Sample

# The label that the loss of every transformers model leaves out.
MASK = -100
# For tokenizers without a chat template; each answer ends with the tokenizer's end token.
PLAIN_CHAT_TEMPLATE = (
    "{% for m in messages %}{% if m['role'] != 'system' %}{{ '### ' + m['role'] | capitalize + '\\n' }}{% endif %}"
    "{{ m['content'] }}"
    "{% if not (loop.last and continue_final_message is defined and continue_final_message) %}"
    "{{ (eos_token if m['role'] == 'assistant' else '') + '\\n\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Assistant\\n' }}{% endif %}"
)


@dataclass(frozen=True, slots=True)
class Example:
    """Token ids of prompt and target. Only the target is learnt."""

    token_ids: tuple[int, ...]
    prompt_tokens: int

    @property
    def labels(self) -> list[int]:
        """``MASK`` for each token of the prompt, and the ids of the target."""
        return [MASK] * self.prompt_tokens + list(self.token_ids[self.prompt_tokens :])


@dataclass(frozen=True, slots=True)
class Encoded:
    """The examples of a data file.

    Attributes:
        examples: Examples that fit.
        too_long: Number of samples that did not fit.
        cut: Number of examples whose drafts were cut.
        hidden: Number of drafts that consist of control tokens and thoughts, so that prompts do not show them.
        unknown: Number of examples whose target has words that the tokenizer does not know.
    """

    examples: list[Example]
    too_long: int
    cut: int
    hidden: int = 0
    unknown: int = 0


class Encoder:
    """Turns samples into examples with one tokenizer and one prompt template."""

    def __init__(self, tokenizer: Any, template: Template, max_length: int) -> None:
        """Wrap a tokenizer. One without a chat template gets ``PLAIN_CHAT_TEMPLATE``.

        Raises:
            ConfigError: If no token ends an answer.
            TemplateError: If a template does not show the question and the drafts.
        """
        if not tokenizer.chat_template:
            tokenizer.chat_template = PLAIN_CHAT_TEMPLATE
        self.renderer = TokenizerRenderer(tokenizer)
        self.template, self.max_length = template, max_length
        ends = sorted(self.renderer.turn_end_ids) or [tokenizer.eos_token_id]
        if ends[0] is None:
            raise ConfigError(f"the tokenizer {tokenizer.name_or_path} has no end token: set its eos_token.")
        self.end_id = int(ends[0])
        self._special = frozenset(tokenizer.all_special_ids)
        check_templates(template, self.renderer)
        self._lead = self._find_lead()

    def encode(self, sample: Sample) -> tuple[Example, bool]:
        """The example of a sample, and whether its drafts were cut.

        Raises:
            PromptTooLong: If it does not fit ``max_length`` with drafts of one token each.
            ConfigError: If the target has no tokens, or holds control tokens.
            ChatError: If the chat template refuses the query.
        """
        target = self.target_ids(sample)
        fitted = self.fit_prompt(sample, len(target))
        prompt = fitted.prompt.token_ids or ()
        return Example((*prompt, *target), len(prompt)), any(fitted.cut_tokens)

    def fit_prompt(self, sample: Sample, reserved: int) -> Fitted:
        """The prompt of a sample, with its drafts cut so that ``reserved`` tokens fit beside it.

        Raises:
            PromptTooLong: If it does not fit ``max_length`` with drafts of one token each.
            ChatError: If the chat template refuses the query.
        """
        budget = self.max_length - reserved
        with template_errors_name(sample.where):
            if sample.drafts:
                return aggregate_prompt(self.template, self.renderer, sample.chat, sample.drafts, budget, final=True)
            return draft_prompt(self.template, self.renderer, sample.chat, budget, final=True)

    def target_text(self, sample: Sample) -> str:
        """The text that a model should write after the prompt, without the end of the turn."""
        return self._lead + sample.target.strip()

    def target_ids(self, sample: Sample) -> tuple[int, ...]:
        """The token ids of the target and of the end of the turn."""
        ids = self.renderer.tokenizer.encode(self.target_text(sample), add_special_tokens=False)
        if not ids:
            raise ConfigError(f"the target of {sample.where} has no tokens: every token would be masked.")
        if not self._special.isdisjoint(ids) and self.renderer.clean(sample.target) != sample.target:
            raise ConfigError(f"the target of {sample.where} holds a control token of the tokenizer: remove it.")
        return (*ids, self.end_id)

    def encode_all(self, samples: Iterable[Sample], name: str = "examples") -> Encoded:
        """The examples of all samples that fit, and counts of the others.

        Args:
            samples: The samples.
            name: Word for them in a message.

        Raises:
            ConfigError: If none fits.
        """
        examples, too_long, cut, hidden, unknown = [], 0, 0, 0, 0
        for sample in samples:
            try:
                example, was_cut = self.encode(sample)
            except PromptTooLong:
                too_long += 1
                continue
            examples.append(example)
            cut += was_cut
            hidden += sum(not self.renderer.clean(draft).strip() for draft in sample.drafts)
            unknown += self.renderer.tokenizer.unk_token_id in example.token_ids[example.prompt_tokens : -1]
        if not examples:
            raise ConfigError(f"none of the {too_long} {name} fits max_length={self.max_length}: raise max_length.")
        return Encoded(examples, too_long, cut, hidden, unknown)

    def _find_lead(self) -> str:
        """What the chat template writes before an answer: white space, as in "[/INST] answer", or the end of a thought.

        If the prompt opens a thought, the target ends it first. Otherwise the answer would be learnt as a thought.
        """
        chat, mark = Chat((Message("user", "x"),)), "turn-lead-probe"
        try:
            whole = self.renderer.render(Chat(chat.messages, prefill=mark))
        except ChatError:
            # Templates that take content as parts, or one turn only, cannot show it.
            return ""
        before = self.renderer.render(chat)
        lead = whole[len(before) : whole.rfind(mark)] if whole.startswith(before) else ""
        if opened := self.renderer.encode(chat).opened_thought:
            return lead if without_thoughts(f"{lead}x", opened) == "x" else f"\n{closing_mark(opened)}\n\n"
        if lead.strip() or not lead:
            return ""
        encode = self.renderer.tokenizer.encode
        prompt, joint = (list(self.renderer.encode(c).token_ids or ()) for c in (chat, Chat(chat.messages, mark)))
        # Some tokenizers add the space to the text by themselves.
        adds_space = joint == prompt + list(encode(mark, add_special_tokens=False))
        return "" if adds_space else lead
