"""Parsers of single arguments: each coerces a value of the command line to one type, or refuses it in a sentence.

lm-eval's command line delivers odd types: ``-1`` as a float, ``none`` as a string, ``1_000`` as 1000.0. Each parser
takes the argument's name and its value.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from lm_eval_aft.core.errors import ConfigError
from lm_eval_aft.core.jsonl import check_depth, parse_json
from lm_eval_aft.core.paths import check_path
from lm_eval_aft.core.secrets import HF_VARIABLE, KEY_VARIABLE, public, public_word, secret_places

Parse = Callable[[str, Any], Any]
# Below it, logits that are divided by the temperature leave the range of a float32.
LOWEST_TEMPERATURE = 1e-6


def _refuse(name: str, value: Any, allowed: str) -> ConfigError:
    return ConfigError(f"{name}={public(name, value)} is not allowed: {name} must be {allowed}.")


def refuse_secrets(arguments: Any, place: str) -> None:
    """Refuse arguments that hold a secret, by a name or a value at any depth. The message does not show the value.

    Args:
        arguments: The arguments by name, or any other value.
        place: Where they were given, such as "--metadata".

    Raises:
        ConfigError: On the first secret.
    """
    for name in secret_places(arguments):
        what = f"{name} must not be given in {place}" if name else f"{place} must hold no key"
        raise ConfigError(
            f"{what}, which is written into result files: set the environment variable {KEY_VARIABLE} instead, or "
            f"{HF_VARIABLE} for a token of the hub."
        )


def integer(low: int, high: int | None = None) -> Parse:
    """A whole number from ``low`` to below ``high``. 5.0 counts as 5: the command line may deliver it as a float."""
    allowed = f"a whole number of at least {low}" + (f" and below {high}" if high else "")

    def parse(name: str, value: Any) -> int:
        number = _whole(value)
        if number is None or number < low or (high is not None and number >= high):
            raise _refuse(name, value, allowed)
        return number

    return parse


def real(low: float, high: float = math.inf, *, above: bool = False) -> Parse:
    """A finite number from ``low`` to ``high``; with ``above``, ``low`` itself is excluded."""
    allowed = f"a number {'above' if above else 'of at least'} {low:g}"
    allowed += f" and at most {high:g}" if high < math.inf else ""

    def parse(name: str, value: Any) -> float:
        number = _number(value)
        if number is None or not low <= number <= high or (above and number == low):
            raise _refuse(name, value, allowed)
        return number

    return parse


def refuse_count(count: int, most: int, what: str, advice: str) -> None:
    """Refuse a number of things to make that no run could finish, before anything is counted out.

    Args:
        count: How many there would be.
        most: How many are allowed.
        what: What would make them, such as "k=5 and layers=2", and what they are, with ``{}`` for the number between.
        advice: What to do.

    Raises:
        ConfigError: If there would be more.
    """
    if count > most:
        # Python refuses to print whole numbers of more than 4,300 digits.
        number = f"{count:,}" if count < 10**30 else "more than 10**30"
        raise ConfigError(f"{what.format(number)}, and at most {most:,} are allowed: {advice}.")


def sampling_temperature(name: str, value: Any) -> float:
    """A temperature; one too small to divide by counts as 0, which is greedy."""
    number: float = real(0)(name, value)
    return number if number >= LOWEST_TEMPERATURE else 0.0


def _whole(value: Any) -> int | None:
    """The whole number that a value states, or None. Large integers do not pass through a float, which would round."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str):
        with suppress(ValueError):
            return int(value)
    number = _number(value)
    return int(number) if number is not None and number.is_integer() else None


def _number(value: Any) -> float | None:
    """The finite number that a value states, or None; booleans are not numbers."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def widths(name: str, value: Any) -> int | tuple[int, ...]:
    """A number of texts, or several such as 32/4 or [32, 4], one for each layer: a tuple."""
    parts = value.split("/") if isinstance(value, str) else value if isinstance(value, (list, tuple)) else [value]
    numbers = tuple(number for part in parts if (number := _whole(part)) and number > 0)
    if len(numbers) < max(len(parts), 1 + isinstance(value, (list, tuple))):
        raise _refuse(name, value, "a whole number of at least 1, or several such as 32/4")
    return numbers if len(numbers) > 1 else numbers[0]


def text(name: str, value: Any) -> str:
    """A string that is not empty. The word ``none`` is refused, since it is nearly always a mistake."""
    if not isinstance(value, str) or not value.strip() or value.lower() == "none":
        raise _refuse(name, value, "a text (leave the argument out for its default)")
    return value


def flag(name: str, value: Any) -> bool:
    """True or false."""
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if not isinstance(value, bool):
        raise _refuse(name, value, "true or false")
    return value


def strings(name: str, value: Any) -> tuple[str, ...]:
    """One string, or a list of them."""
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, (list, tuple)) or not all(isinstance(item, str) and item for item in items):
        raise _refuse(name, value, "a text or a list of texts")
    return tuple(items)


def choice(*allowed: str) -> Parse:
    """One of some words."""

    def parse(name: str, value: Any) -> str:
        if not isinstance(value, str) or value not in allowed:
            raise _refuse(name, value, f"one of {', '.join(allowed)}")
        return value

    return parse


def mapping(name: str, value: Any) -> dict[str, Any]:
    """A dictionary, or the JSON text of one."""
    if isinstance(value, str):
        with suppress(ValueError):
            value = parse_json(value)
    if not isinstance(value, dict):
        raise _refuse(name, value, 'a dictionary such as {"name":"value"}')
    try:
        check_depth(value)
    except ValueError as error:
        raise ConfigError(f"{name} is not allowed: {error}.") from error
    return value


def mappings(name: str, value: Any) -> list[Any]:
    """A list with at least one dictionary, or the JSON text of one. The dictionaries themselves are not checked."""
    if isinstance(value, str):
        with suppress(ValueError):
            value = parse_json(value)
    if not isinstance(value, (list, tuple)) or not value:
        raise _refuse(name, value, 'a list of dictionaries such as [{"name":"value"}]')
    return list(value)


def path(name: str, value: Any) -> str:
    """A path that a file can have; see ``check_path``."""
    return check_path(f"{name}=", text(name, value))


def path_or_none(name: str, value: Any) -> str:
    """A path, or the word ``none``, which switches the setting off and stays as it is."""
    return "none" if isinstance(value, str) and value.lower() == "none" else path(name, value)


def or_none(parse: Parse) -> Parse:
    """Also allow the word ``none``, which switches the setting off."""

    def parse_or_none(name: str, value: Any) -> Any:
        return None if isinstance(value, str) and value.lower() == "none" else parse(name, value)

    return parse_or_none


def key_values(option: str, given: str | None) -> dict[str, Any]:
    """Read ``key=value,key=value`` or one JSON object, with the types that lm-eval's command line gives.

    A comma inside brackets, braces or quotes does not end a value.

    Raises:
        ConfigError: If the text is neither; the message names ``option``.
    """
    given = (given or "").strip()
    try:
        if given.startswith("{"):
            pairs: dict[str, Any] = parse_json(given)
        else:
            parts = [part.partition("=") for part in _split(given)]
            if bare := [name for name, sign, _ in parts if not sign]:
                raise ValueError(f"{public_word(bare[0])!r} has no =")
            pairs = {name: _typed(value) for name, _, value in parts}
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{option} cannot be read ({error}): give key=value,key=value.") from error
    return pairs


def _split(given: str) -> list[str]:
    """The parts between top-level commas; empty parts are left out."""
    parts, depth, quote = [""], 0, ""
    for character in given:
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        elif character in "[({":
            depth += 1
        elif character in "])}":
            depth = max(depth - 1, 0)
        elif character == "," and not depth:
            parts.append("")
            continue
        parts[-1] += character
    return [part for part in parts if part]


def _typed(value: str) -> Any:
    """A value as lm-eval types it: a boolean, a number, a Python literal, else the text itself."""
    if value.lower() in ("true", "false"):
        return value.lower() == "true"
    for read in (int if value.isnumeric() else float, ast.literal_eval):
        with suppress(ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            return read(value)
    return value
