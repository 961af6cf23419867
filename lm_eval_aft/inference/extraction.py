"""Extraction: finding the answer in a text.

Tasks that end in a number, the arithmetic tasks and tasks with a regex have an extraction. Votes use it on drafts, and
the task ``aft_gsm8k`` uses it in its filters.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from operator import eq

from lm_eval_aft.bundled import TASKS, arith
from lm_eval_aft.core.errors import ConfigError
from lm_eval_aft.core.regexes import compile_regex, last_match

# Answers of these tasks, and of tasks named NAME_..., end in one number.
NUMERIC = ("aft_gsm8k", "aft_demo", "gsm8k")


@dataclass(frozen=True, slots=True)
class Extraction:
    """How to find an answer in a text, and how to tell whether it is right.

    Attributes:
        name: What tables call the extraction.
        answer: Returns the answer in a text, or None. Equal answers get one spelling.
        gold: Returns the gold answer in lm-eval's target.
        right: Whether an answer is right by the gold answer. Most tasks compare for equality.
    """

    name: str
    answer: Callable[[str], str | None]
    gold: Callable[[str], str | None]
    right: Callable[[str, str], bool] = eq

    def rights(self, answers: Iterable[str | None], gold: str) -> frozenset[str]:
        """The right answers among these."""
        return frozenset(answer for answer in set(answers) if answer is not None and self.right(answer, gold))


def has_extraction(task: str) -> bool:
    """Whether a task's answers can be found without a regex."""
    return task in TASKS or any(task == name or task.startswith(name + "_") for name in NUMERIC)


@lru_cache(maxsize=64)
def choose_extraction(task: str, regex: str | None = None) -> Extraction:
    """The extraction of a task, or one by regex: the first group (or all) of the last match.

    Raises:
        ConfigError: If the task has no extraction and no regex is given, or the regex is not valid.
    """
    if regex is not None:
        return _by_regex(regex)
    if not has_extraction(task):
        raise ConfigError(f"{task} has no extraction of its own here: give --regex, whose last match is the answer.")
    if task in TASKS:
        return Extraction("the way written, in one spelling", arith.spelling, str.strip, arith.solves)
    return Extraction(
        "extract_flexible of aft_gsm8k", extract_flexible, lambda target: normalise(target.rsplit("####", 1)[-1])
    )


def _by_regex(regex: str) -> Extraction:
    pattern = compile_regex(regex, "the regex")

    def answer(text: str) -> str | None:
        match = last_match(pattern, text)
        return (match.group(1 if pattern.groups else 0) or "").strip() or None if match else None

    return Extraction(f"regex {regex}", answer, lambda target: answer(target) or target.strip())


# ------------------------------------------------------------------ numbers, as GSM8K's answers have them

# A number: 1,234.50 or 3/4 or 1 1/2 or -7. A sign counts only if no digit or letter stands before it: 9-2 holds no -2.
# A number is not part of a name such as x_1, but it may stand in italics: _18_.
_NUMBER = (
    r"(?<![^\W_])(?<![.,])(?<![^\W_]_)[-\u2212]?\$?(?:\d+[ ](?=\d+/\d))?"
    r"(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+|(?<=\d))(?:\s?/\s?\d+(?!\d|\.\d))?"
)
NUMBER = re.compile(_NUMBER)
# Mark-up between "answer is" or "=" and the number. It holds no "=". Otherwise the search would run from each "=" of a
# long line of them to its end, and its time would grow with the square of the length.
_MARKUP = r"[\s:$*_`~\u20ac\u00a3({\[]|\\(?:boxed|text|mathbf|\(|\[|\$)"
STATED = re.compile(rf"answer\s+is(?:=|{_MARKUP})*+({_NUMBER})", re.IGNORECASE)
RESULT = re.compile(rf"=(?:{_MARKUP})*+({_NUMBER})")
BOXED = re.compile(r"\\boxed\s*\{([^{}]*)\}")
LATEX_FRACTION = re.compile(r"\\d?frac\s*\{\s*(-?\d+)\s*\}\s*\{\s*(\d+)\s*\}")
# One character for 1/2 and the like.
FRACTION_CHARACTER = re.compile(r"[\u00bc-\u00be\u2150-\u215e]")
MIXED = re.compile(r"(-?)(\d+) (\d+)/(\d+)")
# Follows the first number of a calculation: a text may say "the answer is 6 x 7 = 42".
OPERATION = re.compile(
    r"[\s)}\]]*(?:[-\u2212+/x\u00d7\u00f7]|(?<!\*)\*(?!\*)|\\(?:times|cdot|div)\b|% of\b)[\s$({\[]*\d"
)
SENTENCE_END = re.compile(r"[.!?](?:\s|$)|\n")


def extract_strict(text: str) -> str | None:
    """The number of the last "answer is N". Bold, LaTeX, currency and a full stop around it do not matter.

    If N begins a calculation ("answer is 6 x 7 = 42"), the answer is its result, or None if no result follows.
    """
    plain = _plain(text)
    matches = [match for match in STATED.finditer(plain) if normalise(match[1]) is not None]
    if not matches:
        return None
    rest = plain[matches[-1].end() :]
    if not OPERATION.match(rest):
        return normalise(matches[-1][1])
    return _last_number(RESULT.findall(SENTENCE_END.split(rest, maxsplit=1)[0]))


def extract_flexible(text: str) -> str | None:
    """The stated answer, or the next best number in the text.

    The next best numbers are, in this order: the last boxed one, the last result of the last line, the last one.
    """
    stated = extract_strict(text)
    if stated is not None:
        return stated
    plain = _plain(text)
    boxed = [number for box in BOXED.findall(plain) for number in NUMBER.findall(box)[-1:]]
    lines = [line for line in plain.splitlines() if line.strip()]
    results = RESULT.findall(lines[-1]) if lines else []
    return _last_number(boxed) or _last_number(results) or _last_number(NUMBER.findall(plain))


def normalise(number: str) -> str | None:
    """One spelling for equal numbers: 1,234 and 1234.0 are "1234", 1/2 and .50 are "1/2".

    Returns:
        A whole number or a fraction in lowest terms; None if the text is not a number.
    """
    text = number.strip().strip("*_`").replace("\u2212", "-").replace(",", "").replace("$", "").removesuffix(".")
    try:
        return str(_mixed_number(text) or Fraction(text.replace(" ", "").removesuffix("%")))
    except (ValueError, ZeroDivisionError):
        return None


def _mixed_number(text: str) -> Fraction | None:
    """1 1/2 as 3/2. Nobody writes 5 4/2 for 7, so there the 5 is another number and is left out."""
    match = MIXED.fullmatch(text)
    if match is None:
        return None
    sign, whole, part, parts = match[1], *map(int, match.groups()[1:])
    return Fraction(f"{sign}{whole * parts + part if part < parts else part}/{parts}")


def _plain(text: str) -> str:
    """LaTeX fractions, thin spaces and thousands marks as ordinary text."""
    text = FRACTION_CHARACTER.sub(
        lambda match: " " + unicodedata.normalize("NFKC", match[0]).replace("\u2044", "/"), text
    )
    text = LATEX_FRACTION.sub(_with_slash, text).replace("{,}", ",").replace("\\,", "").replace("\\!", "")
    return text.replace("\\$", "$").replace("\u00a0", " ").replace("\u202f", " ")


def _with_slash(match: re.Match[str]) -> str:
    """A LaTeX fraction as 1/2. A space keeps it apart from a whole number before it: 1 1/2 is not 11/2."""
    before = match.string[match.start() - 1 : match.start()]
    return f"{' ' if before.isdigit() else ''}{match[1]}/{match[2]}"


def _last_number(numbers: Sequence[str]) -> str | None:
    values = [value for number in numbers if (value := normalise(number)) is not None]
    return values[-1] if values else None
