"""Secrets: which arguments hold one, and how a text is shown without those it holds.

A secret is one of three things:

- the value of an environment variable for keys, such as OPENAI_API_KEY or HF_TOKEN, in any usual encoding
- a text in a form that keys have, such as ``hf_...``, or the password of an address
- the value of an argument whose name says so, such as ``api_key`` or ``authorization``
"""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from string import ascii_lowercase, ascii_uppercase
from typing import Any
from urllib.parse import quote, quote_plus

# The environment variable that holds the key of a server or a judge.
KEY_VARIABLE = "OPENAI_API_KEY"
# The environment variable from which the libraries of Hugging Face take their token.
HF_VARIABLE = "HF_TOKEN"
HIDDEN = "***"
# OPENAI_API_KEY, HF_TOKEN, HUGGING_FACE_HUB_TOKEN and their like.
_KEY_VARIABLES = ("_API_KEY", "_TOKEN")
# A shorter value is not a key, or is an ordinary word. One of fewer than _PART characters must have a letter and a
# digit.
_MIN_LENGTH = 4
# Characters of a key that are hidden wherever they stand, and at the place where a server cut the key.
_PART, _CUT_PART = 8, 4
# Letters alone are hidden from this length on: "required" is a word.
_WORD = 12

# Tokens with these names are words of a vocabulary or counts.
_PLAIN_TOKENS = "bos eos pad end unk sep cls mask stop begin start image audio video special per next first last"
_SECRET_NAME = re.compile(
    r"(^|[^a-z])(keys?|auth|pwd|cookies?)([^a-z]|$)|api_?keys?|secret|passw|passphrase|authori[sz]ation|bearer"
    r"|credential|(^|_)(access|api|auth|bearer|hf|hub|id|refresh|session)_?tokens$|"
    + "".join(f"(?<!{name}_)" for name in _PLAIN_TOKENS.split())
    + "token$",
    re.IGNORECASE,
)
# A field of a JSON schema may have one of these names, so what lies below them is not a secret for that reason.
_WEAK_NAME = re.compile(r"keys?|tokens?", re.IGNORECASE)
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")

# Each pattern below starts at the start of a word and has bounded parts, so that a long text takes linear time.
_WORD_START = r"(?<![A-Za-z0-9_-])"
_KEY_FORM = re.compile(
    _WORD_START
    + r"(?:sk-(?=[A-Za-z0-9_-]{0,200}\d)[A-Za-z0-9_-]{16,}"
    + r"|(?:hf|gsk|r8)_[A-Za-z0-9]{16,}|gh[oprsu]_[A-Za-z0-9]{20,}|github_pat_[A-Za-z0-9_]{20,}"
    + r"|(?:glpat|nvapi|pplx|xai|xox[abeprs])-[A-Za-z0-9_-]{16,}|AKIA[0-9A-Z]{16}|AIza[A-Za-z0-9_-]{30,}"
    + r"|eyJ[A-Za-z0-9_-]{8,2000}\.eyJ[A-Za-z0-9_.-]{8,})"
)
# The shortest thing that a message may call a key. An argument is not refused for it.
_LOOSE_FORM = re.compile(_WORD_START + r"(?:sk-[A-Za-z0-9_-]{4,}|hf_[A-Za-z0-9]{8,})")
_BEARER = re.compile(r"\b(?:[Bb]earer|BEARER)\s{1,9}(?=[^\s,;]{0,200}\d)[A-Za-z0-9+/=_.~-]{12,}")
_SCHEME = re.compile(
    r"\b([Bb]earer|BEARER|[Bb]asic|BASIC)(\s{1,9})(?=[^\s,;]{0,200}(?:[\d=]|[a-z][A-Z]))[^\s,;\"']{8,}"
)
_USER = re.compile(r"(?<=://)[^\s/@?#]{1,500}@")
_BARE_USER = re.compile(r"(?<![^\s\"'=(])[^\s/@:\"'=(]{1,100}:[^\s/@]{1,200}@")
_NAMED = re.compile(
    r"(?<![\w.-])(?P<name>[A-Za-z_][\w.-]{0,100})(?P<sign>[\"']?\s{0,3}[=:]\s{0,3})"
    r"(?P<value>\"[^\"]{1,4000}\"?|'[^']{1,4000}'?|[^\s,;&\"'(){}\[\]<>]+)"
)
# Letters and digits without order, of a length that names do not have.
_RANDOM = re.compile(r"(?<![A-Za-z0-9])(?=[A-Za-z]*\d)(?=[a-z0-9]*[A-Z])(?=[A-Z0-9]*[a-z])[A-Za-z0-9]{24,}")
# Levels of nested arguments that a message shows.
_DEPTH = 20
_ADDRESSES = ("base_url", "judge_base_url")
# What a sentence of ours writes after the name of a secret.
_PLAIN_VALUES = ("true", "false", "none", "...", "value")
_LOWER = str.maketrans(ascii_uppercase, ascii_lowercase)


def is_secret(name: str) -> bool:
    """Whether an argument of this name holds a secret: api_key, hf_token or Authorization, but not add_bos_token."""
    return _SECRET_NAME.search(_CAMEL.sub("_", name[:200]).replace("-", "_")) is not None


def environment_keys() -> tuple[str, ...]:
    """The values of the environment's variables for keys. Those too short for a key are left out."""
    values = {value.strip() for name, value in os.environ.items() if name.upper().endswith(_KEY_VARIABLES)}
    return tuple(sorted(value for value in values if len(value) >= _PART or _is_short_key(value)))


def _is_short_key(value: str) -> bool:
    letters, digits = sum(map(str.isalpha, value)), sum(map(str.isdigit, value))
    return len(value) >= _MIN_LENGTH and letters > 0 and digits > 0


def holds_secret(text: str) -> bool:
    """Whether a text holds a key of the environment, a text in the form of a key, or a password in an address."""
    return any(next(_parts(text, key), None) for key in environment_keys()) or any(
        pattern.search(text) for pattern in (_KEY_FORM, _BEARER, _USER)
    )


def looks_secret(text: str) -> bool:
    """Whether a text may hold a secret, so that no message should repeat it. Ordinary names may look so too."""
    return holds_secret(text) or any(pattern.search(text) for pattern in (_LOOSE_FORM, _SCHEME, _BARE_USER, _RANDOM))


# ---------------------------------------------------------------- arguments


def secret_places(value: Any, place: str = "") -> Iterator[str]:
    """Walk through nested arguments and yield where a secret stands, such as ``extra_body.headers.authorization``.

    The texts of JSON values are read too. True, False and None are not secrets: ``token=true`` only tells a library to
    use its own. The client of a server checks the server's address itself, with a message of its own.

    Args:
        value: Arguments by name, or any value.
        place: Where the value stands.
    """
    waiting: list[tuple[str, Any, bool]] = [(place, value, False)]
    while waiting:
        place, value, named = waiting.pop()
        if place in _ADDRESSES:
            continue
        if isinstance(value, str | bytes):
            text = value.decode("latin-1") if isinstance(value, bytes) else value
            inner = _parsed(text)
            if (named and text and text.lower() not in ("none", "true", "false")) or holds_secret(text):
                yield place
            elif inner is not None:
                waiting.append((place, inner, named))
        elif isinstance(value, Mapping):
            for key, part in value.items():
                name = str(key)
                if holds_secret(name):
                    yield f"{place}.{name}" if place else name
                weak = _WEAK_NAME.fullmatch(name) and isinstance(part, Mapping | list | tuple)
                where = f"{place}.{name}" if place else name
                waiting.append((where, part, named or (is_secret(name) and not weak)))
        elif isinstance(value, list | tuple | set | frozenset):
            waiting += [(place, part, named) for part in value]
        elif isinstance(value, os.PathLike):
            waiting.append((place, os.fspath(value), named))
        elif named and value is not None and not isinstance(value, bool):
            yield place


def _parsed(text: str) -> Any:
    """The list or mapping that a text is the JSON of, or None."""
    if text.lstrip()[:1] not in ("{", "["):
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def public(name: str, value: Any, depth: int = 0) -> Any:
    """An argument as a message or a card may show it: what is secret in it, at any depth, is replaced."""
    if value is None or isinstance(value, bool):
        return value
    if depth > _DEPTH or (is_secret(name) and not (_WEAK_NAME.fullmatch(name) and isinstance(value, Mapping))):
        return HIDDEN
    if isinstance(value, Mapping):
        return {str(key): public(str(key), part, depth + 1) for key, part in value.items()}
    if isinstance(value, list | tuple):
        parts = [public("", part, depth + 1) for part in value]
        return parts if isinstance(value, list) else tuple(parts)
    return HIDDEN if looks_secret(str(value)) else value


def public_word(argument: str) -> str:
    """An argument that is not in the form NAME=VALUE, as a message may show it: only the name if it names a secret."""
    name = next((word for word in re.findall(r"[\w-]+", argument) if is_secret(word)), None)
    return argument if name is None else f"{name} {HIDDEN}"


# ---------------------------------------------------------------- texts


def hide(text: str, keys: Iterable[str] | None = None) -> str:
    """The text with keys replaced, as they are or in an encoding, whole or in parts of at least eight characters.

    Args:
        text: What a file or the terminal will show.
        keys: The keys to hide. By default those of the environment, texts in the form of a key, and the users and
            passwords of addresses.
    """
    for key in environment_keys() if keys is None else keys:
        text = _replace(text, _parts(text, key))
    if keys is None:
        text = _USER.sub(f"{HIDDEN}@", _KEY_FORM.sub(HIDDEN, text))
    return text


def hide_in_message(text: str) -> str:
    """As ``hide``, and also what only a sentence can be searched for.

    These are values that stand after the name of a secret, credentials after "Bearer" or "Basic", and the rest of a
    key that a server has cut.
    """
    text = hide(text)
    for key in environment_keys():
        text = _replace(text, _cut_parts(text, key))
    text = _SCHEME.sub(rf"\1\2{HIDDEN}", _LOOSE_FORM.sub(HIDDEN, text))
    return _NAMED.sub(_without_value, _BARE_USER.sub(f"{HIDDEN}@", text))


def _without_value(match: re.Match[str]) -> str:
    name, sign, value = match["name"], match["sign"], match["value"]
    # "KeyError: 'layers'" names no key, and after "wants a key:" an instruction follows.
    weak = _WEAK_NAME.fullmatch(name) and sign.strip() == ":" and value.isalpha()
    secret = is_secret(name) and not weak and not name.endswith("Error")
    return f"{name}{sign}{HIDDEN}" if secret and value.rstrip(".").lower() not in _PLAIN_VALUES else match[0]


def _replace(text: str, spans: Iterable[tuple[int, int]]) -> str:
    """The text with spans replaced. Spans that touch each other become one."""
    shown, end = "", 0
    for start, stop in sorted(spans):
        if start > end or not end:
            shown += text[end:start] + HIDDEN
        end = max(end, stop)
    return shown + text[end:]


@lru_cache(maxsize=64)
def _forms(key: str) -> tuple[tuple[str, bool], ...]:
    """A key as it is and in the encodings in which a server may repeat it, in lower case.

    Each comes with whether it is Base64. There the ends depend on what stands beside the key.
    """
    raw = key.encode("utf-8", "surrogateescape")
    plain = {key, quote(raw, safe=""), quote(raw), quote_plus(raw), repr(key)[1:-1], raw.hex()}
    quoted = json.dumps(key)[1:-1]
    # A redirect may quote what was quoted already.
    plain |= {
        quote(quote(raw, safe=""), safe=""),
        quoted,
        quoted.replace("/", "\\/"),
        key.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;"),
    }
    coded = set()
    for offset in range(3):
        whole = base64.b64encode(b"\0" * offset + raw)
        inner = whole[-(-offset * 4 // 3) : (offset + len(raw)) * 4 // 3].decode()
        coded |= {inner, inner.translate(str.maketrans("+/", "-_"))}
    lowered = {form.translate(_LOWER): False for form in plain} | {form.translate(_LOWER): True for form in coded}
    return tuple(lowered.items())


def _parts(text: str, key: str) -> Iterator[tuple[int, int]]:
    """Where parts of a key stand in a text, as (start, end): those of at least ``_PART`` characters."""
    lowered = text.translate(_LOWER)
    for form, coded in _forms(key):
        if len(form) < _PART:
            yield from ((i, i + len(form)) for i in _places(lowered, form) if _is_word(lowered, i, i + len(form)))
            continue
        # Every part of this length holds one of these blocks. Most texts hold none, and this search is fast.
        if not any(form[i : i + 4] in lowered for i in range(0, len(form) - 3, 4)):
            continue
        pieces = {form[i : i + _PART] for i in range(len(form) - _PART + 1)}
        starts = [i for i in range(len(lowered) - _PART + 1) if lowered[i : i + _PART] in pieces]
        for start, end in _runs(starts):
            if coded:
                yield _widen(text, start, end)
            elif end - start >= min(_WORD, len(form)) or not lowered[start:end].isalpha():
                yield start, end


def _runs(starts: Iterable[int]) -> Iterator[tuple[int, int]]:
    """The stretches that are covered by pieces of ``_PART`` characters which start at these places."""
    first = last = -1
    for start in starts:
        if last >= 0 and start > last + _PART:
            yield first, last + _PART
            first = start
        first, last = (start if first < 0 else first), start
    if last >= 0:
        yield first, last + _PART


_BASE64 = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=_-")


def _widen(text: str, start: int, end: int) -> tuple[int, int]:
    """The whole Base64 word around a part."""
    while start and text[start - 1] in _BASE64:
        start -= 1
    while end < len(text) and text[end] in _BASE64:
        end += 1
    return start, end


def _cut_parts(text: str, key: str) -> Iterator[tuple[int, int]]:
    """Where the first or the last few characters of a key stand in a text, as (start, end).

    The first ones count if a word consists of them, the last ones if they follow a mark for what was left out.
    """
    lowered = text.translate(_LOWER)
    for form, coded in _forms(key):
        if coded or len(form) <= _CUT_PART:
            continue
        for start in _places(lowered, form[:_CUT_PART]):
            end = start + _CUT_PART
            while end < len(lowered) and lowered[end : end + 1] == form[end - start : end - start + 1]:
                end += 1
            word = lowered[start:end].isalpha() and end - start < _CUT_PART + 2
            if not word and _is_word(lowered, start, end):
                yield start, end
        for start in _places(lowered, form[-_CUT_PART:]):
            begin, end = start, start + _CUT_PART
            while begin and lowered[begin - 1] == form[len(form) - (end - begin) - 1 : len(form) - (end - begin)]:
                begin -= 1
            if lowered[max(0, begin - 2) : begin] in ("**", "..", "xx", "••") or lowered[begin - 1 : begin] == "…":
                yield begin, end


def _places(text: str, part: str) -> Iterator[int]:
    place = text.find(part)
    while place >= 0:
        yield place
        place = text.find(part, place + 1)


def _is_word(text: str, start: int, end: int) -> bool:
    """Whether neither a letter nor a digit stands right before or after a part of the text."""
    return not (text[max(0, start - 1) : start].isalnum() or text[end : end + 1].isalnum())
