"""Thoughts: telling the part of a text that a model thinks from the part that it answers.

Every reader of answers uses ``without_thoughts``: prompts, votes, extraction, reward models, judges and trainers. A
thought stands between two marks, such as ``<think>`` and ``</think>``. Three things hide its beginning or its end:

- The chat template may write the opening mark, so that the text begins inside the thought. ``opened_thought`` finds the
  mark in the prompt, and the record of a text keeps it.
- The text may end inside the thought, at its token limit. Such a text holds no answer.
- gpt-oss writes no blocks but channels. The channel ``final`` is the answer, and every other channel is a thought.

A mark in backticks is a word of the text and no mark.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

_WORD = r"(?:think(?:ing)?|thoughts?(?:_process)?|reasoning|chain_of_thought|scratchpad|inner_monologue|\u601d\u8003)"
# Some models give the tag a name space or a suffix: <seed:think>, <ifm|think>, <think:2>.
_TAG = rf"(?:\w{{1,20}}[:|])?{_WORD}(?::[^\s<>]{{1,40}})?(?:\s[^<>]{{0,100}})?(?<!/)>"
# Marks around an answer that follows a thought.
_ANSWER_BEGIN = r"<\|(?:begin_of_(?:solution|answer)|start_(?:response|text)|content_text)\|>"
_ANSWER_END = r"<\|(?:end_of_(?:solution|answer)|end_(?:response|text))\|>"
_AROUND_ANSWER = re.compile(rf"\A\s*{_ANSWER_BEGIN}|{_ANSWER_END}\s*\Z", re.IGNORECASE)
# By kind, the mark that opens a thought and the mark that ends it. A thought ends at a mark of its own kind.
_KINDS = {
    "tag": (rf"<{_TAG}", rf"</\s?{_TAG}"),
    # [THINK] is a token of Mistral's tokenizers. [think] may be a word of a text.
    "bracket": (r"(?-i:\[(?:THINK|THINKING|THOUGHT|REASONING)\])", r"(?-i:\[/(?:THINK|THINKING|THOUGHT|REASONING)\])"),
    "token": (
        rf"<\|(?:(?:begin|start)_(?:of_)?{_WORD}|{_WORD}(?::start)?|inner_prefix|content_thinking)\|>",
        rf"<\|(?:end_(?:of_)?{_WORD}|/{_WORD}|{_WORD}:end|inner_suffix)\|>|{_ANSWER_BEGIN}",
    ),
    "channel": (r"<\|channel>", r"<channel\|>"),
    "triangle": (r"\u25c1think\u25b7", r"\u25c1/think\u25b7"),
}
# A mark that opens a thought of each kind, for texts that hold only the mark that ends it.
_OPENING = {"tag": "<think>", "bracket": "[THINK]", "token": "<|begin_of_thought|>", "channel": "<|channel>"} | {
    "triangle": "\u25c1think\u25b7"
}
# The mark that ends a thought of these kinds. For the other kinds it follows from the mark that opens the thought.
_FIXED_ENDS = {"channel": "<channel|>", "triangle": "\u25c1/think\u25b7"}
# Words of tokens that open a thought, and those of the tokens that end it.
_TOKEN_WORDS = {"begin": "end", "BEGIN": "END", "start": "end", "START": "END", "prefix": "suffix"} | {
    "content_thinking": "content_text"
}
_EITHER = "|".join(f"(?P<open_{kind}>{opens})|(?P<end_{kind}>{ends})" for kind, (opens, ends) in _KINDS.items())
# The characters with which marks begin.
_FIRST = ("<", "[", "\u25c1")
# The look-ahead at the first character makes the search nine times as fast.
_MARK = re.compile(rf"(?=[<\[\u25c1])(?:{_EITHER})", re.IGNORECASE)
# The tokens of gpt-oss's channels.
CHANNEL_TOKENS = ("<|start|>", "<|channel|>", "<|constrain|>", "<|message|>", "<|end|>", "<|return|>", "<|call|>")
_CHANNEL_HEAD = r"<\|channel\|>\s*(\w+)[^<]*(?:<\|constrain\|>[^<]*)?<\|message\|>"
_CHANNEL = re.compile(_CHANNEL_HEAD + r"(.*?)(?=<\|(?:start|channel|end|return|call)\|>|\Z)", re.DOTALL)
_OPEN_CHANNEL = re.compile(_CHANNEL_HEAD + r"(?!.*<\|(?:channel|end|return|call)\|>)", re.DOTALL)
# The channels of gpt-oss without their control tokens, as most servers and decoders write them.
_BARE_CHANNELS = re.compile(r"\Aanalysis(?=[A-Z]).*?(?:assistantfinal|\Z)", re.DOTALL)
# Granite's thought is marked by two sentences. Neither is a mark without the other one before it.
_SENTENCES = re.compile(r"\A\s*Here(?:'s| is) my thought process:.*?(?:Here(?:'s| is) my response:\s*|\Z)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class _Mark:
    """A mark in a text: its place, its kind, and whether it opens a thought or ends one."""

    start: int
    end: int
    kind: str
    opens: bool


def without_thoughts(text: str, opened: str = "", *, end: str = "", cut: bool = False) -> str:
    """The answer in a text. It is empty if the text ends inside its thought.

    A text without thoughts is returned as it is.

    Args:
        text: What a model wrote.
        opened: The mark with which the prompt opened a thought; "" if it opened none.
        end: The mark that ends thinking, if the user names one. The answer follows the last of them.
        cut: Whether the text ended at its token limit. Without ``end`` in it, it is then a thought.
    """
    if end and end in text:
        return without_thoughts(text.rpartition(end)[2].lstrip())
    if end and cut:
        return ""
    text = _answer_of_named_parts(opened + text)
    marks = list(_marks(text))
    if not marks:
        return text
    start = 0 if marks[0].opens else _end_of_unopened(text, marks)
    answer = _without_blocks(text, start, [mark for mark in marks if mark.start >= start])
    return _AROUND_ANSWER.sub("", answer)


def without_blocks(text: str) -> str:
    """The text without the thoughts that it opens itself."""
    return _without_blocks(text, 0, list(_marks(text)))


def opened_thought(text: str) -> str:
    """The mark of a thought that a text opens and does not end; "" if there is none."""
    channel = _OPEN_CHANNEL.search(text)
    if channel:
        return "" if channel[1] == "final" else channel[0]
    marks = list(_marks(text))
    number = 0
    while number < len(marks):
        if marks[number].opens:
            closing = _closing(marks, number)
            if closing is None:
                return text[marks[number].start : marks[number].end]
            number = closing
        number += 1
    return ""


def unopened_thought(texts: Iterable[str]) -> str:
    """The mark with which a prompt must have opened a thought, because one of the texts ends a thought only.

    Returns:
        The opening mark; "" if no text does.
    """
    for text in texts:
        first = next(_marks(text), None)
        if first is not None and not first.opens:
            return _OPENING[first.kind]
    return ""


def closing_mark(opened: str) -> str:
    """The mark that ends the thought which a mark opens."""
    if opened.startswith("<|channel|>"):
        return "<|end|><|start|>assistant<|channel|>final<|message|>"
    kind = next(_marks(opened)).kind
    if kind in _FIXED_ENDS:
        return _FIXED_ENDS[kind]
    for word, ending in _TOKEN_WORDS.items() if kind == "token" else ():
        if word in opened:
            return opened.replace(word, ending)
    head = "[" if kind == "bracket" else "<|" if kind == "token" else "<"
    # A tag may have attributes.
    return re.sub(r"\s[^<>]*", "", opened).replace(head, head + "/", 1)


def has_marks(text: str) -> bool:
    """Whether a text holds a mark of a thought, or a channel."""
    return next(_marks(text), None) is not None or _CHANNEL.search(text) is not None


def is_thought_token(token: str) -> bool:
    """Whether a token of a tokenizer is a mark of thoughts or of the answer after them."""
    return any(pattern.fullmatch(token) for pattern in (_MARK, _AROUND_ANSWER))


def _marks(text: str) -> Iterator[_Mark]:
    """The marks in a text, in their order."""
    # Most texts hold none of the characters with which marks begin, and this search is a hundred times as fast.
    if not any(first in text for first in _FIRST):
        return
    for match in _MARK.finditer(text):
        start, end = match.span()
        action, _, kind = str(match.lastgroup).partition("_")
        in_backticks = text[start - 1 : start] == "`" == text[end : end + 1]
        if not in_backticks:
            yield _Mark(start, end, kind, action == "open")


def _closing(marks: Sequence[_Mark], number: int) -> int | None:
    """The number of the mark that ends the thought which a mark opens. A thought may hold thoughts, or name a mark."""
    depth, last = 1, None
    for other in range(number + 1, len(marks)):
        if marks[other].kind == marks[number].kind:
            depth += 1 if marks[other].opens else -1
            last = last if marks[other].opens else other
        if not depth:
            break
    return last


def _without_blocks(text: str, start: int, marks: Sequence[_Mark]) -> str:
    """The text from ``start`` on without the thoughts between these marks."""
    kept, number = [], 0
    while number < len(marks):
        if marks[number].opens:
            kept.append(text[start : marks[number].start])
            closing = _closing(marks, number)
            if closing is None:
                return "".join(kept)
            number, start = closing, _after_blanks(text, marks[closing].end)
        number += 1
    return "".join([*kept, text[start:]])


def _end_of_unopened(text: str, marks: Sequence[_Mark]) -> int:
    """Where the answer begins in a text whose thought was opened before it.

    A thought may mention the mark that ends it, so the answer follows the last of these marks that text follows.
    """
    ends = [marks[0]]
    for mark in marks[1:]:
        if mark.opens:
            break
        if mark.kind == marks[0].kind:
            ends.append(mark)
    text_end = len(text.rstrip())
    followed = [mark for mark in ends if mark.end < text_end]
    return _after_blanks(text, (followed or ends)[-1].end)


def _after_blanks(text: str, start: int) -> int:
    """The place of the first character from ``start`` on that is not white space."""
    return next((place for place in range(start, len(text)) if not text[place].isspace()), len(text))


def _answer_of_named_parts(text: str) -> str:
    """The answer in a text of gpt-oss's channels or of Granite's sentences. Any other text is returned as it is."""
    if _CHANNEL.search(text) or text.lstrip().startswith("<|channel|>"):
        return "\n".join(match[2] for match in _CHANNEL.finditer(text) if match[1] == "final")
    return _SENTENCES.sub("", _BARE_CHANNELS.sub("", text, count=1), count=1)
