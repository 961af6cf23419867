"""From samples to token ids: the prompt as inference makes it, then the target and the end of the turn.

Prompts come from ``lm_eval_aft.core.prompts`` with the renderer that the engines use, so training and inference see the
same token ids.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from lm_eval_aft.core.chat import TokenizerRenderer
from lm_eval_aft.core.errors import ConfigError, PromptTooLong, TemplateError
from lm_eval_aft.core.prompts import Template, aggregate_prompt, draft_prompt
from lm_eval_aft.core.records import Chat, Message
from trainers.rows.row import naming
from trainers.rows.samples import Sample

MASK = -100  # what the loss of every transformers model leaves out
# For tokenizers without a chat template; each turn ends with the tokenizer's end token.
PLAIN_CHAT_TEMPLATE = (
    "{% for m in messages %}{% if m['role'] != 'system' %}{{ '### ' + m['role'] | capitalize + '\\n' }}{% endif %}"
    "{{ m['content'] }}"
    "{% if not (loop.last and continue_final_message is defined and continue_final_message) %}"
    "{{ (eos_token if m['role'] == 'assistant' else '') + '\\n\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Assistant\\n' }}{% endif %}"
)


@dataclass(frozen=True, slots=True)
class Example:
    """Token ids of prompt and target; only the target is learnt."""

    token_ids: tuple[int, ...]
    prompt_tokens: int

    @property
    def labels(self) -> list[int]:
        """The ids to be learnt, and ``MASK`` for the prompt."""
        return [MASK] * self.prompt_tokens + list(self.token_ids[self.prompt_tokens :])


@dataclass(frozen=True, slots=True)
class Encoded:
    """The examples of a data file, and what had to be left out of it.

    Attributes:
        examples: Those that fit.
        too_long: How many did not.
        cut: Examples whose drafts were cut.
        vanished: Drafts of which nothing is left without control tokens and thoughts; prompts do not show them.
    """

    examples: list[Example]
    too_long: int
    cut: int
    vanished: int = 0


class Encoder:
    """Turns samples into examples with one tokenizer and one prompt template."""

    def __init__(self, tokenizer: Any, template: Template, max_length: int) -> None:
        """Wrap a tokenizer; one without a chat template gets ours.

        Raises:
            ConfigError: If no token ends an answer.
            TemplateError: If a template does not show what it is given.
        """
        if not tokenizer.chat_template:
            tokenizer.chat_template = PLAIN_CHAT_TEMPLATE
        self.renderer = TokenizerRenderer(tokenizer)
        self.template, self.max_length = template, max_length
        ends = sorted(self.renderer.turn_end_ids) or [tokenizer.eos_token_id]
        if ends[0] is None:
            raise ConfigError(
                f"the tokenizer {tokenizer.name_or_path} has no end token: set its eos_token, or an answer never ends."
            )
        self.end_id = int(ends[0])
        self._special = frozenset(tokenizer.all_special_ids)
        self._check_templates()
        self._lead = self._find_lead()

    def encode(self, sample: Sample) -> tuple[Example, bool]:
        """The example of a sample, and whether drafts had to be cut for it.

        Raises:
            PromptTooLong: If it does not fit ``max_length`` although its drafts are cut to a token each.
            ConfigError: If the target has no tokens, or holds control tokens.
            ChatError: If the chat template refuses the query.
        """
        with naming(sample.where):
            return self._encode(sample)

    def _encode(self, sample: Sample) -> tuple[Example, bool]:
        target = self.target_ids(sample)
        budget = self.max_length - len(target)
        if sample.drafts:
            fitted = aggregate_prompt(self.template, self.renderer, sample.chat, sample.drafts, budget, final=True)
        else:
            fitted = draft_prompt(self.template, self.renderer, sample.chat, budget, final=True)
        prompt = fitted.prompt.token_ids or ()
        return Example((*prompt, *target), len(prompt)), any(fitted.cut_tokens)

    def target_ids(self, sample: Sample) -> tuple[int, ...]:
        """The target in tokens, the end of the turn included."""
        ids = self.renderer.tokenizer.encode(self._lead + sample.target.strip(), add_special_tokens=False)
        if not ids:
            raise ConfigError(f"the target of {sample.where} has no tokens: every token would be masked.")
        if not self._special.isdisjoint(ids) and self.renderer.clean(sample.target) != sample.target:
            raise ConfigError(f"the target of {sample.where} holds a control token of the tokenizer: remove it.")
        return (*ids, self.end_id)

    def encode_all(self, samples: Iterable[Sample], name: str = "examples") -> Encoded:
        """The examples of all samples; those that do not fit are counted.

        Args:
            samples: What is to be learnt, or judged.
            name: What a message calls them.

        Raises:
            ConfigError: If none fits.
        """
        examples, too_long, cut, vanished = [], 0, 0, 0
        for sample in samples:
            try:
                example, was_cut = self.encode(sample)
            except PromptTooLong:
                too_long += 1
                continue
            examples.append(example)
            cut += was_cut
            vanished += sum(not self.renderer.clean(draft).strip() for draft in sample.drafts)
        if not examples:
            raise ConfigError(
                f"none of the {too_long} {name} fits max_length={self.max_length}: raise max_length or shorten the "
                "data."
            )
        return Encoded(examples, too_long, cut, vanished)

    def _check_templates(self) -> None:
        """A template that drops the question or the drafts would train something else without a word."""
        chat, drafts = Chat((Message("user", "question-probe"),)), ["first-probe", "second-probe"]
        shown = self.renderer.render(self.template.aggregate_chat(chat, drafts))
        missing = [probe for probe in ("question-probe", *drafts) if probe not in shown]
        if missing:
            raise TemplateError(
                f"the prompt made with the template {self.template.name} and the tokenizer's chat template does not "
                f"show the {'user message' if missing[0] == 'question-probe' else 'drafts'}: mend the template."
            )

    def _find_lead(self) -> str:
        """The white space that the chat template puts before an answer, as in "[/INST] answer"."""
        chat, mark = Chat((Message("user", "x"),)), "turn-lead-probe"
        whole = self.renderer.render(Chat(chat.messages, prefill=mark))
        before = self.renderer.render(chat)
        lead = whole[len(before) : whole.rfind(mark)] if whole.startswith(before) else ""
        if lead.strip() or not lead:
            return ""
        encode = self.renderer.tokenizer.encode
        prompt, joint = (list(self.renderer.encode(c).token_ids or ()) for c in (chat, Chat(chat.messages, mark)))
        doubled = joint == prompt + list(encode(mark, add_special_tokens=False))  # it adds the space by itself
        return "" if doubled else lead
