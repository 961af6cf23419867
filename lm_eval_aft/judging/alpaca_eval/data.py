"""What AlpacaEval compares: model outputs, pairs of them and annotations, and which instructions are the eval set."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lm_eval_aft.core.errors import RecordError

# What a run that names a judge reports, its main score first.
JUDGED_METRICS = (
    "length_controlled_winrate",
    "win_rate",
    "discrete_win_rate",
    "lc_standard_error",
    "standard_error",
)
INSTRUCTIONS = 805
# ``json_digest`` of the instructions in order
EVAL_SET = "c5770d532bf3f697768ed9a57a05d8b58b2617321ca65070620f059676e7c99a"
# ``json_digest`` of the [instruction, output] pairs of the AlpacaEval 2 baseline
BASELINE = "f5bb4925227aed2d5e67974655eb4da63129806a09eead5b3941919868aff967"


@dataclass(frozen=True, slots=True)
class ModelOutput:
    """One answer, with the fields of alpaca_eval's model_outputs.json.

    Attributes:
        instruction: What the model answered.
        output: The answer.
        generator: Name of the model.
        dataset: Part of the data set, or "".
    """

    instruction: str
    output: str
    generator: str
    dataset: str = ""


class AnswerLength(int):
    """An answer's length in characters that also carries the answer.

    Metric values are all that lm-eval gathers across processes.
    """

    row: tuple[int, ModelOutput]

    @classmethod
    def of(cls, place: int, output: ModelOutput) -> AnswerLength:
        """The length of one answer.

        Args:
            place: The answer's row in the eval set, from 0.
            output: The answer.
        """
        length = cls(len(output.output))
        length.row = (place, output)
        return length


class PendingWinRate(str):
    """An answer on its way to the judge, as an empty text: a single answer has no win rate."""

    row: tuple[int, ModelOutput]

    @classmethod
    def of(cls, place: int, output: ModelOutput) -> PendingWinRate:
        """See ``AnswerLength.of``."""
        pending = cls()
        pending.row = (place, output)
        return pending


@dataclass(frozen=True, slots=True)
class Annotation:
    """One comparison of the reference's answer, ``output_1``, with the model's answer, ``output_2``.

    Attributes:
        instruction: What both answer.
        output_1: The reference's answer.
        output_2: The model's answer.
        generator_1: Name of the reference.
        generator_2: Name of the model.
        annotator: Name of the annotator.
        preference: From 1, for the reference, to 2, for the model; None if unknown.
        raw_completion: The judge's reply, as alpaca_eval keeps it.
    """

    instruction: str
    output_1: str
    output_2: str
    generator_1: str
    generator_2: str
    annotator: str
    preference: float | None
    raw_completion: Any = None


@dataclass(frozen=True, slots=True)
class OutputPairs:
    """The answers of the reference and of the model, row by row in the reference's order.

    Attributes:
        references: The reference's answers.
        outputs: The model's answers.
        whole: Whether these are the 805 instructions in eval-set order. Length control joins difficulty by position.
        notes: Sentences for the user.
    """

    references: tuple[ModelOutput, ...]
    outputs: tuple[ModelOutput, ...]
    whole: bool
    notes: tuple[str, ...] = ()


def pair_outputs(outputs: Sequence[ModelOutput], references: Sequence[ModelOutput]) -> OutputPairs:
    """Put the model's answers in the reference's order.

    Raises:
        RecordError: If an instruction is not among the reference's, or both models have one name.
    """
    refuse_equal_names(outputs[0].generator, references[0].generator)
    by_instruction = {row.instruction: row for row in outputs}
    known = {row.instruction for row in references}
    unknown = [instruction for instruction in by_instruction if instruction not in known]
    if unknown:
        examples = "; ".join(repr(instruction[:60]) for instruction in unknown[:3])
        raise RecordError(
            f"{len(unknown)} of {len(outputs)} instructions are not among the reference's {len(references)}, the first "
            f"being {examples}: give answers to the {INSTRUCTIONS} instructions of AlpacaEval, letter for letter."
        )
    kept = tuple(row for row in references if row.instruction in by_instruction)
    ordered = tuple(by_instruction[row.instruction] for row in kept)
    instructions = [row.instruction for row in kept]
    notes = part_notes(instructions)
    if ordered != tuple(outputs):
        notes += ("the answers were in another order and were put in the reference's order.",)
    return OutputPairs(kept, ordered, is_eval_set(instructions), notes)


def refuse_equal_names(model: str, reference: str) -> None:
    """Refuse two models of one name: alpaca_eval takes them for one model, whose length-controlled win rate is 50.

    Raises:
        RecordError: If the names are equal.
    """
    if model == reference:
        raise RecordError(
            f"the model and the reference are both called {model}: name the model with --name (in a run: --metadata "
            "generator=NAME), since alpaca_eval takes equal names for equal answers."
        )


def is_eval_set(instructions: Sequence[str]) -> bool:
    """Whether these are the 805 instructions of AlpacaEval in order."""
    return json_digest(list(instructions)) == EVAL_SET


def is_baseline(references: Sequence[ModelOutput]) -> bool:
    """Whether these are the answers of AlpacaEval 2's own reference, whatever its name."""
    return json_digest([[row.instruction, row.output] for row in references]) == BASELINE


def part_notes(instructions: Sequence[str]) -> tuple[str, ...]:
    """What is missing if these are not the eval set, as one sentence; empty if nothing is."""
    if is_eval_set(instructions):
        return ()
    what = f"{len(instructions)} of the {INSTRUCTIONS} instructions"
    if len(instructions) == INSTRUCTIONS:
        what = f"{INSTRUCTIONS} instructions that are not AlpacaEval's, or not in its order"
    return (f"{what}: no length-controlled win rate, which needs all {INSTRUCTIONS} in eval-set order.",)


def json_digest(value: Any) -> str:
    """SHA-256 of the JSON text of a value, in hexadecimal."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
