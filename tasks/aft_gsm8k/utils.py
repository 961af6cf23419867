"""Answers of GSM8K: finding the number a text ends with, and writing equal numbers alike.

Plain functions on text, without lm-eval or torch, so that votes can use them on drafts too.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from typing import Any

INVALID = "[invalid]"
QUESTION = (
    "{question}\n\nReason step by step. On the last line write your result in this form, with a number alone in the "
    "place of N:\nThe answer is N."
)

# 1,234.50 or 3/4 or 1 1/2 or -7; a sign only where no digit or letter stands before it, so that 9-2 is not -2; no
# part of a name such as x_1, but _18_ in italics
_NUMBER = (
    r"(?<![^\W_])(?<![.,])(?<![^\W_]_)[-\u2212]?\$?(?:\d+[ ](?=\d+/\d))?"
    r"(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+|(?<=\d))(?:\s?/\s?\d+(?!\d|\.\d))?"
)
NUMBER = re.compile(_NUMBER)
_SKIP = r"[\s:$*_`~\u20ac\u00a3({\[]|\\(?:boxed|text|mathbf|\(|\[|\$)"  # mark-up between the words and the number
STATED = re.compile(rf"answer\s+is(?:=|{_SKIP})*+({_NUMBER})", re.IGNORECASE)
BOXED = re.compile(r"\\boxed\s*\{([^{}]*)\}")
FRACTION = re.compile(r"\\d?frac\s*\{\s*(-?\d+)\s*\}\s*\{\s*(\d+)\s*\}")
VULGAR = re.compile(r"[\u00bc-\u00be\u2150-\u215e]")  # one character for 1/2 and its like
MIXED = re.compile(r"(-?)(\d+) (\d+)/(\d+)")
# The mark-up skipped holds no "=": a line of them would be read from each to its end, in time that grows as its square.
RESULT = re.compile(rf"=(?:{_SKIP})*+({_NUMBER})")
# After a number, what makes it the first of a calculation: an answer may be stated as 6 x 7 = 42.
OPERATION = re.compile(
    r"[\s)}\]]*(?:[-\u2212+/x\u00d7\u00f7]|(?<!\*)\*(?!\*)|\\(?:times|cdot|div)\b|% of\b)[\s$({\[]*\d"
)
SENTENCE_END = re.compile(r"[.!?](?:\s|$)|\n")


def doc_to_text(doc: dict[str, Any]) -> str:
    """The user turn: the question and the form of the answer."""
    return QUESTION.format(question=doc["question"].strip())


def doc_to_target(doc: dict[str, Any]) -> str:
    """The gold number, written as ``normalise`` writes it."""
    return normalise(doc["answer"].rsplit("####", 1)[-1]) or INVALID


def normalise(number: str) -> str | None:
    """One spelling for equal numbers: 1,234 and 1234.0 are "1234", 1/2 and .50 are "1/2".

    Returns:
        A whole number or a fraction in lowest terms; None if the text is no number.
    """
    text = number.strip().strip("*_`").replace("\u2212", "-").replace(",", "").replace("$", "").removesuffix(".")
    try:
        return str(_mixed(text) or Fraction(text.replace(" ", "").removesuffix("%")))
    except (ValueError, ZeroDivisionError):
        return None


def _mixed(text: str) -> Fraction | None:
    """1 1/2 as 3/2; in 5 4/2, which nobody writes for 7, the whole number is another one and left out."""
    found = MIXED.fullmatch(text)
    if found is None:
        return None
    sign, whole, part, parts = found[1], *map(int, found.groups()[1:])
    return Fraction(f"{sign}{whole * parts + part if part < parts else part}/{parts}")


def extract_strict(text: str) -> str | None:
    """The number of the last "answer is N"; bold, LaTeX, currency and a full stop around it do not matter.

    Of a calculation ("answer is 6 x 7 = 42") it is the result; None where it states none.
    """
    plain = _plain(text)
    found = [match for match in STATED.finditer(plain) if normalise(match[1]) is not None]
    if not found:
        return None
    rest = plain[found[-1].end() :]
    if not OPERATION.match(rest):
        return normalise(found[-1][1])
    return _last(RESULT.findall(SENTENCE_END.split(rest, maxsplit=1)[0]))


def extract_flexible(text: str) -> str | None:
    """The stated answer, else the last boxed one, else what the last line sets equal, else the last number."""
    stated = extract_strict(text)
    if stated is not None:
        return stated
    plain = _plain(text)
    boxed = [number for box in BOXED.findall(plain) for number in NUMBER.findall(box)[-1:]]
    lines = [line for line in plain.splitlines() if line.strip()]
    results = RESULT.findall(lines[-1]) if lines else []
    return _last(boxed) or _last(results) or _last(NUMBER.findall(plain))


def strict(resps: Iterable[Sequence[str]], docs: Sequence[dict[str, Any]]) -> list[str]:
    """lm-eval filter: ``extract_strict`` of each first response."""
    return _filter(extract_strict, resps)


def flexible(resps: Iterable[Sequence[str]], docs: Sequence[dict[str, Any]]) -> list[str]:
    """lm-eval filter: ``extract_flexible`` of each first response."""
    return _filter(extract_flexible, resps)


def _filter(extract: Callable[[str], str | None], resps: Iterable[Sequence[str]]) -> list[str]:
    return [extract(responses[0]) or INVALID for responses in resps]


def _plain(text: str) -> str:
    """LaTeX fractions, thin spaces and thousands marks as ordinary text."""
    text = VULGAR.sub(lambda found: " " + unicodedata.normalize("NFKC", found[0]).replace("\u2044", "/"), text)
    text = FRACTION.sub(_slashed, text).replace("{,}", ",").replace("\\,", "").replace("\\!", "")
    return text.replace("\\$", "$").replace("\u00a0", " ").replace("\u202f", " ")


def _slashed(found: re.Match[str]) -> str:
    """A LaTeX fraction as 1/2, apart from a whole number before it: 1 1/2 is not 11/2."""
    before = found.string[found.start() - 1 : found.start()]
    return f"{' ' if before.isdigit() else ''}{found[1]}/{found[2]}"


def _last(numbers: Sequence[str]) -> str | None:
    found = [value for number in numbers if (value := normalise(number)) is not None]
    return found[-1] if found else None
