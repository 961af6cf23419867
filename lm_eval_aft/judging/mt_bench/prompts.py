"""The judge prompts of MT-Bench: our own, or FastChat's file.

A set has four templates: for the first and the second turn, with and without references. The set's name is part of
every score's name, since other prompts give other scores.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from string import Formatter
from typing import Any

from lm_eval_aft.core.errors import ConfigError, RecordError
from lm_eval_aft.core.files import file_name
from lm_eval_aft.core.jsonl import read_jsonl
from lm_eval_aft.core.records import Message
from lm_eval_aft.judging.mt_bench.data import CATEGORIES_WITH_REFERENCE, MTBenchAnswer, MTBenchQuestion

OWN_PROMPTS, FASTCHAT_PROMPTS = "aft-v1", "fastchat"
# FastChat's names, by turn and whether references are shown
TEMPLATE_NAMES = {
    (1, False): "single-v1",
    (1, True): "single-math-v1",
    (2, False): "single-v1-multi-turn",
    (2, True): "single-math-v1-multi-turn",
}
NO_REFERENCE = "(none was written for this turn)"
# First digits of the SHA-256 that ``prompt_set`` computes of FastChat's own files
_FASTCHAT_TEMPLATES_DIGEST = "718aecef36f21f2c"
_FASTCHAT_REFERENCES_DIGEST = "ad016b4ca7413d5c"
_FIELDS = {
    "question",
    "answer",
    *(f"{name}_{turn}" for name in ("question", "answer", "ref_answer") for turn in (1, 2)),
}

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
        name: Part of every score's name; "fastchat" only if templates and references are FastChat's own.
        templates: By turn, and whether references are shown.
        references: Reference answer to each turn, by question; an empty text for a turn without one.
        digest: SHA-256 of templates and references.
    """

    name: str
    templates: Mapping[tuple[int, bool], JudgePrompt]
    references: Mapping[int, tuple[str, ...]]
    digest: str

    @property
    def comparable(self) -> bool:
        """Whether scores are comparable with published ones, if the judge is the same."""
        return self.name == FASTCHAT_PROMPTS

    def prompt(self, question: MTBenchQuestion, answer: MTBenchAnswer, turn: int) -> tuple[str, tuple[Message, ...]]:
        """The name of the template and the messages that have one turn judged; ``turn`` counts from 1."""
        references = self.references.get(question.question_id, ())
        has_reference = len(references) >= turn and bool(references[turn - 1].strip())
        template = self.templates[turn, question.category in CATEGORIES_WITH_REFERENCE and has_reference]
        fields = {"question": question.turns[turn - 1], "answer": answer.turns[turn - 1]}
        for number in range(turn):
            reference = references[number] if number < len(references) else ""
            fields[f"question_{number + 1}"] = question.turns[number]
            fields[f"answer_{number + 1}"] = answer.turns[number]
            fields[f"ref_answer_{number + 1}"] = reference if reference.strip() else NO_REFERENCE
        return template.name, (Message("system", template.system), Message("user", template.text.format(**fields)))


def prompt_set(
    file: Path | None, references: Mapping[int, tuple[str, ...]] | None, questions: Sequence[MTBenchQuestion]
) -> PromptSet:
    """The set to judge with.

    Args:
        file: FastChat's judge_prompts.jsonl; None takes our own prompts.
        references: FastChat's reference answers; None takes the data set's own short ones, which only our own prompts
            accept.
        questions: The questions.

    Raises:
        ConfigError: If the file is of another kind, or its prompts need references that are missing.
    """
    templates = own_templates() if file is None else dict(_read_templates(file))
    if file is not None:
        _refuse_without_references(references or {}, questions)
    shown = {q.question_id: q.reference for q in questions if q.reference} if references is None else references
    rows = [[*key, t.name, t.system, t.text] for key, t in sorted(templates.items())]
    template_digest = sha256(json.dumps(rows).encode()).hexdigest()
    reference_digest = sha256(json.dumps(sorted(shown.items())).encode()).hexdigest()
    # The data set's references belong to the data set: only a file of references is part of the name.
    name = _name(file, template_digest, "" if references is None else reference_digest)
    return PromptSet(name, templates, shown, sha256((template_digest + reference_digest).encode()).hexdigest())


def own_templates() -> dict[tuple[int, bool], JudgePrompt]:
    """Our own prompts. The instruction comes last, where it outweighs instructions that an answer may contain."""
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


def _read_templates(file: Path) -> Iterator[tuple[tuple[int, bool], JudgePrompt]]:
    try:
        rows = {row["name"]: row for row in read_jsonl(file)}
    except (RecordError, KeyError, TypeError) as error:
        raise ConfigError(f"--judge-prompts {file} is not FastChat's judge_prompts.jsonl ({error})") from error
    for key, name in TEMPLATE_NAMES.items():
        row: dict[str, Any] = rows.get(name, {})
        system, text = row.get("system_prompt"), row.get("prompt_template")
        if not isinstance(system, str) or not isinstance(text, str):
            raise ConfigError(f"--judge-prompts {file} has no whole template {name}: give FastChat's file.")
        _refuse_fields(file, name, text)
        yield key, JudgePrompt(name, system, text)


def _refuse_fields(file: Path, name: str, text: str) -> None:
    """Refuse unknown fields, and fields with an attribute, an index, a conversion or a format."""
    try:
        parts = [(field, spec, how) for _, field, spec, how in Formatter().parse(text) if field is not None]
    except ValueError as error:
        raise ConfigError(f"--judge-prompts {file}: template {name} has a stray brace ({error}).") from error
    fields = {field + f"!{how}" * bool(how) + f":{spec}" * bool(spec) for field, spec, how in parts}
    if unknown := fields - _FIELDS:
        raise ConfigError(
            f"--judge-prompts {file}: template {name} has fields {sorted(unknown)}; allowed are "
            f"{', '.join(sorted(_FIELDS))}."
        )


def _refuse_without_references(references: Mapping[int, tuple[str, ...]], questions: Sequence[MTBenchQuestion]) -> None:
    needing = [q.question_id for q in questions if q.category in CATEGORIES_WITH_REFERENCE]
    missing = [number for number in needing if number not in references]
    if missing:
        raise ConfigError(
            f"these judge prompts need a reference for each question of {', '.join(CATEGORIES_WITH_REFERENCE)}, and "
            f"{len(missing)} have none ({missing[:3]}): give FastChat's reference_answer/gpt-4.jsonl with "
            "--references FILE."
        )


def _name(file: Path | None, templates: str, references: str) -> str:
    """The set's name from both digests. All but FastChat's own files have a digest in their name."""
    if templates[:16] == _FASTCHAT_TEMPLATES_DIGEST and references[:16] == _FASTCHAT_REFERENCES_DIGEST:
        return FASTCHAT_PROMPTS
    name = OWN_PROMPTS if file is None else f"{file_name(file.stem)}-{templates[:8]}"
    return f"{name}-ref-{references[:8]}" if references else name
