"""What AlpacaEval compares: outputs, pairs, annotations, and which 805 instructions in which order make the eval set.

Knows neither files nor judges, and imports nothing but our errors. The other ``alpaca`` modules and the task
aft_alpaca_eval call it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lm_eval_aft.core.errors import RecordError

INSTRUCTIONS = 805
# sha256 over the JSON of the instructions in order, and of [instruction, output] of the AlpacaEval 2 baseline
EVAL_SET = "c5770d532bf3f697768ed9a57a05d8b58b2617321ca65070620f059676e7c99a"
BASELINE = "f5bb4925227aed2d5e67974655eb4da63129806a09eead5b3941919868aff967"


@dataclass(frozen=True, slots=True)
class Output:
    """One answer, with the fields of alpaca_eval's model_outputs.json."""

    instruction: str
    output: str
    generator: str
    dataset: str = ""


class Length(int):
    """Characters of an answer, with the answer: lm-eval gathers metrics from all processes, and nothing else."""

    row: tuple[int, Output]

    @classmethod
    def of(cls, place: int, output: Output) -> Length:
        """The length of one answer.

        Args:
            place: Its row in the eval set.
            output: The answer.
        """
        length = cls(len(output.output))
        length.row = (place, output)
        return length


class Unjudged(str):
    """An answer on its way to the judge; an empty text, since a win rate is no number of one answer alone."""

    row: tuple[int, Output]

    @classmethod
    def of(cls, place: int, output: Output) -> Unjudged:
        """See ``Length.of``."""
        unjudged = cls()
        unjudged.row = (place, output)
        return unjudged


@dataclass(frozen=True, slots=True)
class Annotation:
    """One comparison: output_1 is the reference's, and a preference of 1 is for it, of 2 against it, None unknown."""

    instruction: str
    output_1: str
    output_2: str
    generator_1: str
    generator_2: str
    annotator: str
    preference: float | None
    raw_completion: Any = None


@dataclass(frozen=True, slots=True)
class Pairs:
    """Reference and model, row by row in the reference's order.

    Attributes:
        references: The reference's answers.
        outputs: The model's.
        whole: Whether these are the 805 instructions in eval-set order, to which length control joins by position.
        notes: What was done or could not be, for the user.
    """

    references: tuple[Output, ...]
    outputs: tuple[Output, ...]
    whole: bool
    notes: tuple[str, ...] = ()

    @property
    def baseline(self) -> bool:
        """Whether the reference is AlpacaEval 2's own."""
        return self.whole and _digest([[row.instruction, row.output] for row in self.references]) == BASELINE


def pair(outputs: Sequence[Output], references: Sequence[Output]) -> Pairs:
    """Put the model's answers in the reference's order.

    Raises:
        RecordError: If an answer belongs to no instruction of the reference, or both models have one name.
    """
    refuse_namesakes(outputs[0].generator, references[0].generator)
    by_instruction = {row.instruction: row for row in outputs}
    known = {row.instruction for row in references}
    strange = [instruction for instruction in by_instruction if instruction not in known]
    if strange:
        shown = "; ".join(repr(instruction[:60]) for instruction in strange[:3])
        raise RecordError(
            f"{len(strange)} of {len(outputs)} instructions are not among the reference's {len(references)}, the first "
            f"being {shown}: give answers to the {INSTRUCTIONS} instructions of AlpacaEval, letter for letter."
        )
    kept = tuple(row for row in references if row.instruction in by_instruction)
    ordered = tuple(by_instruction[row.instruction] for row in kept)
    whole, note = eval_set([row.instruction for row in kept])
    notes = [note] if note else []
    if ordered != tuple(outputs):
        notes.append("the answers stood in another order and were put in the reference's.")
    return Pairs(kept, ordered, whole, tuple(notes))


def refuse_namesakes(model: str, reference: str) -> None:
    """Refuse two models of one name: alpaca_eval takes them for one, whose length-controlled win rate is 50.

    Raises:
        RecordError: If the names are equal.
    """
    if model == reference:
        raise RecordError(
            f"the model and the reference are both called {model}: name the model with --name (in a run: --metadata "
            "generator=NAME), since alpaca_eval takes equal names for equal answers."
        )


def eval_set(instructions: Sequence[str]) -> tuple[bool, str]:
    """Whether these are the 805 instructions in order, and if not, what they are."""
    if _digest(list(instructions)) == EVAL_SET:
        return True, ""
    found = f"{len(instructions)} of the {INSTRUCTIONS} instructions"
    if len(instructions) == INSTRUCTIONS:
        found = f"{INSTRUCTIONS} instructions that are not AlpacaEval's, or not in its order"
    return False, f"{found}: no length-controlled win rate, which needs all {INSTRUCTIONS} in eval-set order."


def _digest(rows: Any) -> str:
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()
