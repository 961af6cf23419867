"""Thoughts are told from answers whatever marks them, and a text that ends inside its thought holds no answer."""

from __future__ import annotations

import time

import pytest

from helpers.tiny_models import CHATML, tiny_tokenizer
from lm_eval_aft.core.chat import TokenizerRenderer
from lm_eval_aft.core.records import Chat, Completion, Draft, Message
from lm_eval_aft.core.thinking import (
    closing_mark,
    has_marks,
    is_thought_token,
    opened_thought,
    unopened_thought,
    without_thoughts,
)

GPT_OSS = "<|channel|>analysis<|message|>3?<|end|><|start|>assistant<|channel|>final<|message|>4"
# By the mark that opens a thought, a text of a thought "3?" and the answer "4".
FORMS = {
    "<think>": "<think>3?</think>\n\n4",
    "<THINK>": "<THINK>3?</THINK>4",
    "<think mode='long'>": "<think mode='long'>3?</think>4",
    "<thinking>": "<thinking>3?</thinking>\n4",
    "<thought>": "<thought>3?</thought>4",
    "<reasoning>": "<reasoning>3?</reasoning>4",
    "<seed:think>": "<seed:think>3?</seed:think>4",
    "<mm:think>": "<mm:think>3?</mm:think>4",
    "<ifm|think>": "<ifm|think>3?</ifm|think>4",
    "[THINK]": "[THINK]3?[/THINK]4",
    "<|begin_of_thought|>": "<|begin_of_thought|>3?<|end_of_thought|>\n\n<|begin_of_solution|>4<|end_of_solution|>",
    "<|START_THINKING|>": "<|START_THINKING|>3?<|END_THINKING|><|START_RESPONSE|>4<|END_RESPONSE|>",
    "<|inner_prefix|>": "<|inner_prefix|>3?<|inner_suffix|>4",
    "<|think:start|>": "<|think:start|>3?<|think:end|>4",
    "<|channel>": "<|channel>thought\n3?<channel|>4",
    "\u25c1think\u25b7": "\u25c1think\u25b73?\u25c1/think\u25b74",
    "<|channel|>analysis<|message|>": GPT_OSS,
}


@pytest.mark.parametrize("opened", FORMS)
class TestForms:
    def test_a_closed_thought_is_no_part_of_the_answer(self, opened):
        assert without_thoughts(FORMS[opened]) == "4"

    def test_the_prompt_may_hold_the_opening_mark(self, opened):
        assert without_thoughts(FORMS[opened].removeprefix(opened), opened) == "4"

    def test_a_text_cut_inside_its_thought_holds_no_answer(self, opened):
        head, _, _ = FORMS[opened].partition("3?")
        assert without_thoughts(head + "3? or is it") == ""
        assert without_thoughts("3? or is it", opened) == ""

    def test_the_closing_mark_alone_ends_a_thought(self, opened):
        assert without_thoughts("3?" + FORMS[opened].partition("3?")[2]) == "4"

    def test_a_prompt_that_opens_a_thought_is_recognised(self, opened):
        assert opened_thought(f"{opened}\n") == opened
        assert opened_thought(f"{opened}\n\n{closing_mark(opened)}\n\n") == ""

    def test_the_closing_mark_belongs_to_the_opening_one(self, opened):
        assert without_thoughts(f"{opened}3?{closing_mark(opened)}4") == "4"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("4", "4"),
        (" 4 \n", " 4 \n"),
        ("first <think>hm</think> then", "first then"),
        ("4 <think>open", "4 "),
        ("<think></think>4", "4"),
        ("</think>4", "4"),
        # A thought may hold another one, or mention a mark.
        ("<think>a<think>b</think>c</think>4", "4"),
        ("<think>I could write <think> here</think>4", "4"),
        ("3? The mark </think> ends this, but not yet</think>4", "4"),
        ("<think>[/THINK] is no mark of mine, so on", ""),
        # The text after the last mark is empty, so the mark before it ended the thought.
        ("3?</think>4</think>\n", "4</think>\n"),
        # A mark in backticks is a word.
        ("write `<think>` first", "write `<think>` first"),
        ("use a [think] tank and <think/>", "use a [think] tank and <think/>"),
        ("a rethink, a <thinker> and <|begin_of_text|>", "a rethink, a <thinker> and <|begin_of_text|>"),
        # gpt-oss without its control tokens, and its other channels.
        ("analysisWe add 2 and 2.assistantfinal4", "4"),
        ("analysisWe add 2 and", ""),
        ("analysis of the sum: 4", "analysis of the sum: 4"),
        ("<|channel|>anal", ""),
        # Granite's marks are sentences.
        ("Here is my thought process: 3?\n\nHere is my response: 4", "4"),
        ("Here's my thought process: 3?", ""),
        ("Well. Here is my response: 4", "Well. Here is my response: 4"),
        ("<|channel|>commentary<|message|>I look<|end|><|start|>assistant<|channel|>final<|message|>4<|return|>", "4"),
    ],
)
def test_the_answer_in_a_text(text, answer):
    assert without_thoughts(text) == answer


def test_the_users_own_mark_ends_a_thought_too():
    assert without_thoughts("hm 3 DONE 4", end="DONE") == "4"
    assert without_thoughts("hm 3", end="DONE", cut=True) == ""
    # Some models think only about hard questions.
    assert without_thoughts("4", end="DONE") == "4"


def test_one_finished_text_shows_that_the_prompt_opened_a_thought():
    assert unopened_thought(["3? or", "3?</think>4"]) == "<think>"
    assert unopened_thought(["3? or", "<think>3?</think>4", "4"]) == ""
    assert [has_marks(text) for text in ("3?", "3?</think>4", GPT_OSS, "`<think>`")] == [False, True, True, False]


def test_tokens_of_thoughts_are_known():
    assert all(map(is_thought_token, ("[THINK]", "[/THINK]", "<|END_THINKING|>", "<|END_RESPONSE|>", "<think>")))
    assert not any(map(is_thought_token, ("</s>", "[INST]", "<|end_of_text|>", "<|im_end|>", "<|begin_of_text|>")))


@pytest.mark.parametrize(
    "text", ["<", "<think ", "</think>", "<think>", "<think></think>", "<|channel|>a", "[THINK]", " "]
)
def test_long_runs_of_marks_are_read_in_linear_time(text):
    started = time.monotonic()
    without_thoughts(text * 10_000)
    opened_thought(text * 1000)
    assert time.monotonic() - started < 5


def test_a_draft_that_is_only_a_thought_is_empty():
    def draft(text: str, end: str = "stop", opened: str = "") -> Draft:
        return Draft(0, 0, 1, Completion(text, (), end, 1, 1, 1), False, 0.0, opened)

    assert [draft("3?", "length", "<think>").empty, draft("3?</think> 4", "stop", "<think>").empty] == [True, False]
    assert draft("hm", "length").answer("DONE") == ""
    assert draft("hm", "length").answer() == "hm"


class TestPrompts:
    def renderer(self, head: str) -> TokenizerRenderer:
        template = CHATML.replace("<|im_start|>assistant\n{% endif %}", f"<|im_start|>assistant\n{head}{{% endif %}}")
        return TokenizerRenderer(tiny_tokenizer(template))

    @pytest.mark.parametrize(
        ("head", "opened"),
        [
            ("", ""),
            ("<think>\\n", "<think>"),
            ("<think>\\nOkay, ", "<think>"),
            ("<think>\\n\\n</think>\\n\\n", ""),
            ("<seed:think>", "<seed:think>"),
            ("<|channel|>analysis<|message|>", "<|channel|>analysis<|message|>"),
            ("<|channel|>final<|message|>", ""),
        ],
    )
    def test_the_chat_template_may_open_a_thought(self, head, opened):
        chat = Chat((Message("system", "Be brief. <think>"), Message("user", "What does <think> mean")))
        assert self.renderer(head).encode(chat).opened_thought == opened

    @pytest.mark.parametrize(
        ("prefill", "opened"), [("The answer is", ""), ("<think>\nLet me", "<think>"), ("<think>a</think>b", "")]
    )
    def test_a_prefill_may_open_a_thought(self, prefill, opened):
        chat = Chat((Message("user", "2+2?"),), prefill)
        assert self.renderer("").encode(chat).opened_thought == opened

    def test_a_base_models_prompt_may_end_in_a_thought(self):
        renderer = TokenizerRenderer(tiny_tokenizer(None))
        assert renderer.encode(Chat((Message("user", "2+2?\n<think>"),))).opened_thought == "<think>"
        assert renderer.encode(Chat((Message("user", "A <think> opens a thought."),))).opened_thought == ""

    def test_channels_of_gpt_oss_do_not_end_a_text(self):
        tokenizer = tiny_tokenizer(
            "{% for m in messages %}<|start|>{{ m['role'] }}<|channel|>final<|message|>{{ m['content'] }}<|end|>"
            "{% endfor %}{% if add_generation_prompt %}<|start|>assistant{% endif %}"
        )
        tokenizer.add_tokens(["<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>"], special_tokens=True)
        renderer = TokenizerRenderer(tokenizer)
        assert renderer.turn_end_ids == frozenset()
        shown = {tokenizer.convert_ids_to_tokens(number) for number in renderer.thought_ids}
        assert shown == {"<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>"}
        assert renderer.clean(GPT_OSS + "<|return|>") == "4"
