"""Extraction: finding the answer in a text.

A task's own filters extract answers, and its grades keep them. This module has what is left:

- a regex of the user
- the extraction of tasks that end in a number and of the arithmetic tasks, for traces without grades and for runs in
  which lm-eval's task object is not found
- the filters of the task ``aft_gsm8k``
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
from lm_eval_aft.core.records import Grade
from lm_eval_aft.core.regexes import compile_regex, last_match

# Answers of these tasks, and of tasks named NAME_..., end in one number. Traces of version 0.1.0 have no grades.
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


def voting_grade(grades: Iterable[Grade]) -> Grade | None:
    """The grade whose answer votes: the first one under a flexible filter, else the first one that extracts answers.

    A strict filter also measures the form of an answer. None if no filter of the task extracts answers.
    """
    extracting = [grade for grade in grades if grade.extracts]
    flexible = (grade for grade in extracting if grade.filter.startswith("flexible"))
    return next(flexible, extracting[0] if extracting else None)


def vote_spelling(answer: str | None) -> str | None:
    """One spelling for answers that vote together, such as 18, 18.00 and $18. No answer (None) stays None."""
    return None if answer is None else normalise(answer) or answer


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
        raise ConfigError(f"the answers of {task} cannot be extracted: give --regex, whose last match is the answer.")
    if task in TASKS:
        return Extraction("normalised expressions", arith.spelling, str.strip, arith.solves)
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

# A number: 1,234.50 or 3/4 or 1 1/2 or 1e3 or -7. A sign counts only if no digit or letter precedes it: 9-2 has none.
# A number is not part of a name such as x_1, but it may stand in italics: _18_.
_NUMBER = (
    r"(?<![^\W_])(?<![.,])(?<![^\W_]_)[-\u2212]?\$?(?:\d+[ ](?=\d+/\d))?"
    r"(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+|(?<=\d))(?:[eE][-+]?\d{1,2}(?!\w))?(?:\s?/\s?\d+(?!\d|\.\d))?"
)
NUMBER = re.compile(_NUMBER)
# Mark-up between "answer is" or "=" and the number. It holds no "=". Otherwise the search would run from each "=" of a
# long line of them to its end, and its time would grow with the square of the length.
_MARKUP = r"[\s:$*_`~\u20ac\u00a3({\[]|\\(?:boxed|text|mathbf|\(|\[|\$)"
STATED = re.compile(rf"answer\s+is(?:=|{_MARKUP})*+({_NUMBER})", re.IGNORECASE)
RESULT = re.compile(rf"=(?:{_MARKUP})*+({_NUMBER})")
BOXED = re.compile(r"\\boxed\s*\{([^{}]*)\}")
# \frac{3}{4}, \tfrac34 and \frac{3}4: a part of one digit needs no braces.
LATEX_FRACTION = re.compile(r"\\(?:[cdt]?frac|nicefrac|sfrac)\s*(?:\{\s*(-?\d+)\s*\}|(\d))\s*(?:\{\s*(\d+)\s*\}|(\d))")
# Dashes that a text may have for a minus sign, unless a number stands before it: 10-18 is a range.
DASH = re.compile(r"(?<![\d)%\]])(?<![\d)%\]][ \u00a0])[\u2010-\u2013\u2212\ufe63\uff0d](?=[ \u00a0]?\$?\.?\d)")
# The beginning of a result: "is", "=", a colon or an open bracket, with mark-up after it.
_BEGIN = r"((?:\bis|[=:({\[$])[ \t*_$`~\\({\[]{0,8}"
# A sign with a space after it. At the beginning of a line it is the mark of a list.
SPACED_SIGN = re.compile(_BEGIN + r")-[ \t\u00a0]{1,3}(?=[$.\d])")
WHOLE_SIGN = re.compile(r"(\A\s*)-[ \t\u00a0]{1,3}(?=[$.\d][^\n]*\Z)")
# Thousands that are parted by spaces. Ordinary spaces may also part two numbers, as in "3 100-gram bags".
_SPACE = r"(?:[\u00a0\u2002-\u200a\u202f\u205f\u3000~]|\\[ ;:])"
THIN_THOUSANDS = re.compile(rf"(?<![\d.,])\d{{1,3}}(?:{_SPACE}\d{{3}})+(?!\d|\s?/)")
SPACED_THOUSANDS = re.compile(_BEGIN + r"-?)(\d{1,3}(?: \d{3})+)(?!\d|\s?/|-\w)")
WHOLE_THOUSANDS = re.compile(r"(\A\s*-?)(\d{1,3}(?: \d{3})+)(?=(?:\.\d+)?\.?\s*\Z)")
# 10^3, 10**3, 10^{3} and 2.5 x 10^3. The factor counts before a power of ten only.
POWER = re.compile(
    r"(?<![\w.,^])(?:(?P<factor>\d+(?:\.\d+)?)\s{0,2}(?:[x*\u00d7\u00b7]|\\times|\\cdot)\s{0,2}(?=10\s?\^|10\*\*))?"
    r"(?P<base>\d{1,9}(?:\.\d{1,9})?)(?:\s?\^\s?[{(]?\s?|\*\*[{(]?)(?P<exponent>[-+]?\d{1,2})(?!\d)\s?[)}]?(?![\w^])"
)
SUPERSCRIPT = re.compile(r"(?<=\d)[\u207a\u207b]?[\u00b2\u00b3\u00b9\u2070\u2074-\u2079]+")
# One character for 1/2 and the like.
FRACTION_CHARACTER = re.compile(r"[\u00bc-\u00be\u2150-\u215e]")
LONG_EXPONENT = re.compile(r"[eE][-+]?\d{3}")
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
    # A number of a billion digits does not fit the memory.
    if LONG_EXPONENT.search(text):
        return None
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
    """Fractions, powers, dashes, spaced signs and marks of thousands in the form in which ``NUMBER`` finds them."""
    text = FRACTION_CHARACTER.sub(
        lambda match: " " + unicodedata.normalize("NFKC", match[0]).replace("\u2044", "/"), text
    )
    text = LATEX_FRACTION.sub(_with_slash, text).replace("{,}", ",").replace("\\,", "").replace("\\!", "")
    text = DASH.sub("-", text.replace("\\$", "$"))
    text = WHOLE_SIGN.sub(r"\1-", SPACED_SIGN.sub(r"\1-", text))
    text = THIN_THOUSANDS.sub(lambda match: re.sub(_SPACE, "", match[0]), text)
    for pattern in (SPACED_THOUSANDS, WHOLE_THOUSANDS):
        text = pattern.sub(lambda match: match[1] + match[2].replace(" ", ""), text)
    text = SUPERSCRIPT.sub(lambda match: "^" + unicodedata.normalize("NFKC", match[0]).replace("\u2212", "-"), text)
    text = POWER.sub(_power, text)
    return re.sub(_SPACE, " ", text)


def _with_slash(match: re.Match[str]) -> str:
    """A LaTeX fraction as 1/2. A space keeps it apart from a whole number before it: 1 1/2 is not 11/2."""
    before = match.string[match.start() - 1 : match.start()]
    return f"{' ' if before.isdigit() else ''}{match[1] or match[2]}/{match[3] or match[4]}"


def _power(match: re.Match[str]) -> str:
    """A power as a number: 10^3 is 1000, 10^-2 is 1/100."""
    exponent = int(match["exponent"])
    if not match["base"].strip("0.") and exponent < 0:
        return match[0]
    return str(Fraction(match["factor"] or 1) * Fraction(match["base"]) ** exponent)


def _last_number(numbers: Sequence[str]) -> str | None:
    values = [value for number in numbers if (value := normalise(number)) is not None]
    return values[-1] if values else None
