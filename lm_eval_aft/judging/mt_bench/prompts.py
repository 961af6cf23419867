"""The judge prompts of MT-Bench: our own words, or FastChat's file.

A set has four templates: for the first turn and the second, with and without references. Its name is part of every
score's name, since another wording gives other scores. Knows nothing of servers or scores. Called by
``mt_bench_judge``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from string import Formatter
from typing import Any

from lm_eval_aft.core.errors import ConfigError
from lm_eval_aft.core.files import file_name
from lm_eval_aft.core.records import Message
from lm_eval_aft.judging.mt_bench.data import WITH_REFERENCE, Answer, Dialogue

OWN, FASTCHAT = "aft-v1", "fastchat"
NAMES = {  # FastChat's, by turn and whether references are shown
    (1, False): "single-v1",
    (1, True): "single-math-v1",
    (2, False): "single-v1-multi-turn",
    (2, True): "single-math-v1-multi-turn",
}
# first digits of the SHA-256 that ``prompt_set`` makes of FastChat's own files
FASTCHAT_PROMPTS = "718aecef36f21f2c"
FASTCHAT_REFERENCES = "ad016b4ca7413d5c"
FIELDS = {"question", "answer", *(f"{name}_{turn}" for name in ("question", "answer", "ref_answer") for turn in (1, 2))}
NO_REFERENCE = "(none was written for this turn)"

_SYSTEM = (
    "You grade the work of an AI assistant. You are strict, fair, and not impressed by length or by a tone of voice."
)
_SCALE = (
    "First say in a few sentences what is good and what is wrong. Then end with one whole number from 1 (useless or "
    "wrong) to 10 (could not be better), in exactly this form, with the number in the place of N: Rating: [[N]]"
)
_GENERAL = (
    "Consider whether the reply does all that was asked, whether it is right, whether it is clear, and whether it is "
    "as deep and as creative as the request deserves."
)
_AGAINST = (
    "Consider above all whether the reply is right. A reference is given: check the reply against it step by step. "
    "A reply may be right in other words or by another way."
)


@dataclass(frozen=True, slots=True)
class JudgePrompt:
    """One template: a system text, and a user text with fields in braces."""

    name: str
    system: str
    text: str


@dataclass(frozen=True, slots=True)
class PromptSet:
    """Four templates and the references they show.

    Attributes:
        name: Part of every score's name; "fastchat" only where templates and references are FastChat's own.
        templates: By turn, and whether references are shown.
        references: By question; empty texts where a turn has none.
        digest: SHA-256 of templates and references.
    """

    name: str
    templates: Mapping[tuple[int, bool], JudgePrompt]
    references: Mapping[int, tuple[str, ...]]
    digest: str

    @property
    def comparable(self) -> bool:
        """Whether scores may stand beside published ones, if the judge is the same."""
        return self.name == FASTCHAT

    def prompt(self, asked: Dialogue, answer: Answer, turn: int) -> tuple[str, tuple[Message, ...]]:
        """The name of the template and the messages that have one turn judged; turns count from 1."""
        references = self.references.get(asked.question_id, ())
        shown = asked.category in WITH_REFERENCE and len(references) >= turn and bool(references[turn - 1].strip())
        template = self.templates[turn, shown]
        fields = {"question": asked.turns[turn - 1], "answer": answer.turns[turn - 1]}
        for number in range(turn):
            reference = references[number] if number < len(references) else ""
            fields[f"question_{number + 1}"] = asked.turns[number]
            fields[f"answer_{number + 1}"] = answer.turns[number]
            fields[f"ref_answer_{number + 1}"] = reference if reference.strip() else NO_REFERENCE
        return template.name, (Message("system", template.system), Message("user", template.text.format(**fields)))


def prompt_set(
    file: Path | None, references: Mapping[int, tuple[str, ...]] | None, dialogues: Sequence[Dialogue]
) -> PromptSet:
    """The set to judge with.

    Args:
        file: FastChat's judge_prompts.jsonl; None takes our own words.
        references: FastChat's reference answers; None takes the data set's own short ones, which only our words allow.
        dialogues: The questions.

    Raises:
        ConfigError: If the file is none, or its prompts need references that are not given.
    """
    templates = own_templates() if file is None else dict(_read(file))
    given = references if references is not None else {d.question_id: d.reference for d in dialogues if d.reference}
    if file is not None:
        _refuse_without_references(given if references is not None else {}, dialogues)
    rows = [[*key, t.name, t.system, t.text] for key, t in sorted(templates.items())]
    words = sha256(json.dumps(rows).encode()).hexdigest()
    # the data set's references change with it, not by the user's choice: only a file of them is part of the name
    shown = sha256(json.dumps(sorted(given.items())).encode()).hexdigest()
    name = _name(file, words, shown if references is not None else "")
    return PromptSet(name, templates, given, sha256((words + shown).encode()).hexdigest())


def own_templates() -> dict[tuple[int, bool], JudgePrompt]:
    """Our own words; what to do comes last, where a judge heeds it more than what the answer may tell it to do."""
    reply = "<request>\n{question}\n</request>\n\n<reply>\n{answer}\n</reply>"
    talk = (
        "<request turn=1>\n{question_1}\n</request>\n\n<reply turn=1>\n{answer_1}\n</reply>\n\n"
        "<request turn=2>\n{question_2}\n</request>\n\n<reply turn=2>\n{answer_2}\n</reply>"
    )
    one = "<reference>\n{ref_answer_1}\n</reference>"
    two = "<reference turn=1>\n{ref_answer_1}\n</reference>\n\n<reference turn=2>\n{ref_answer_2}\n</reference>"
    second = "Grade the reply of turn 2 only; turn 1 is shown because turn 2 may depend on it."
    first = "Grade the reply."
    return {
        (1, False): JudgePrompt("aft-v1", _SYSTEM, f"{reply}\n\n{first} {_GENERAL} {_SCALE}"),
        (1, True): JudgePrompt("aft-v1-reference", _SYSTEM, f"{one}\n\n{reply}\n\n{first} {_AGAINST} {_SCALE}"),
        (2, False): JudgePrompt("aft-v1-turn-2", _SYSTEM, f"{talk}\n\n{second} {_GENERAL} {_SCALE}"),
        (2, True): JudgePrompt("aft-v1-reference-turn-2", _SYSTEM, f"{two}\n\n{talk}\n\n{second} {_AGAINST} {_SCALE}"),
    }


def _read(file: Path) -> Iterator[tuple[tuple[int, bool], JudgePrompt]]:
    try:
        lines = [line for line in file.read_text(encoding="utf-8").split("\n") if line.strip()]
        rows = {row["name"]: row for row in map(json.loads, lines)}
    except OSError as error:
        raise ConfigError(f"--judge-prompts {file} cannot be read ({error.strerror}).") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"--judge-prompts {file} is not FastChat's judge_prompts.jsonl ({error}).") from error
    for key, name in NAMES.items():
        row: dict[str, Any] = rows.get(name, {})
        system, text = row.get("system_prompt"), row.get("prompt_template")
        if not isinstance(system, str) or not isinstance(text, str):
            raise ConfigError(f"--judge-prompts {file} has no whole template {name}: give FastChat's file.")
        _refuse_fields(file, name, text)
        yield key, JudgePrompt(name, system, text)


def _refuse_fields(file: Path, name: str, text: str) -> None:
    """Fields that nothing can be filled into; also those that reach into a value, or say how it is to be written."""
    try:
        parts = [(field, spec, how) for _, field, spec, how in Formatter().parse(text) if field is not None]
    except ValueError as error:
        raise ConfigError(f"--judge-prompts {file}: template {name} has a stray brace ({error}).") from error
    fields = {field + f"!{how}" * bool(how) + f":{spec}" * bool(spec) for field, spec, how in parts}
    if unknown := fields - FIELDS:
        raise ConfigError(
            f"--judge-prompts {file}: template {name} has fields {sorted(unknown)}; allowed are "
            f"{', '.join(sorted(FIELDS))}."
        )


def _refuse_without_references(given: Mapping[int, tuple[str, ...]], dialogues: Sequence[Dialogue]) -> None:
    missing = [d.question_id for d in dialogues if d.category in WITH_REFERENCE and d.question_id not in given]
    if missing:
        raise ConfigError(
            f"these judge prompts need a reference for each question of {', '.join(WITH_REFERENCE)}, and "
            f"{len(missing)} have none ({missing[:3]}): give FastChat's reference_answer/gpt-4.jsonl with "
            "--references FILE."
        )


def _name(file: Path | None, words: str, references: str) -> str:
    """The set's name; anything but FastChat's own files is told apart by its digest."""
    if words[:16] == FASTCHAT_PROMPTS and references[:16] == FASTCHAT_REFERENCES:
        return FASTCHAT
    name = OWN if file is None else f"{file_name(file.stem)}-{words[:8]}"
    return f"{name}-ref-{references[:8]}" if references else name
