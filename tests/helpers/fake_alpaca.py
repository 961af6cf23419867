"""A made-up eval set of any size: instructions with answers, annotations and difficulties."""

from __future__ import annotations

import csv
import json
import math
import random
import re
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest

from helpers.fake_judge import chat_completion
from lm_eval_aft.judging.alpaca_eval import data as alpaca_data
from lm_eval_aft.judging.alpaca_eval import package as alpaca_package
from lm_eval_aft.judging.alpaca_eval.data import Annotation, ModelOutput

# Each row is a call to the judge, so most tests use few.
WHOLE, FEW = 805, 40
PAIR = re.compile(r'"instruction": """Task (\d+).*?"output": """(.*?)"""\n.*?"output": """(.*?)"""\n', re.DOTALL)


@dataclass(frozen=True)
class EvalSet:
    """The files of an eval set."""

    folder: Path
    outputs: Path
    reference: Path
    difficulty: Path


def outputs(generator: str, rows: int = FEW, longest: int = 90) -> list[ModelOutput]:
    draw = random.Random(generator)
    return [
        ModelOutput(f"Task {row}", f"{generator} says {'so ' * draw.randrange(longest)}{row}", generator, "made up")
        for row in range(rows)
    ]


def annotations(rows: int = FEW) -> list[Annotation]:
    draw = random.Random(1)
    pairs = zip(outputs("base", rows), outputs("ours", rows), strict=True)
    return [
        Annotation(one.instruction, one.output, two.output, "base", "ours", "weighted_m", 1 + 0.6 * draw.random())
        for one, two in pairs
    ]


def write(file: Path, rows: list) -> Path:
    file.write_text(json.dumps([asdict(row) for row in rows]), encoding="utf-8")
    return file


def write_difficulty(folder: Path, count: int) -> Path:
    draw, hard = random.Random(2), [random.Random(row).gauss(0, 1) for row in range(count)]
    folder.mkdir()
    head = ["model", "index", "preference", "std_delta_len", "instruction_difficulty", "not_gamed_baseline"]
    rows = [
        [model, row, draw.random(), draw.gauss(0, 1), hard[row], False] for model in ("a", "b") for row in range(count)
    ]
    with (folder / "df_gamed.csv").open("w", newline="") as out:
        csv.writer(out).writerows([head, *rows])
    return folder


def make_eval_set(folder: Path, patch: pytest.MonkeyPatch, rows: int) -> EvalSet:
    """Make a set and put it in place of AlpacaEval's."""
    references = outputs("base", rows)
    patch.setattr(alpaca_data, "EVAL_SET", alpaca_data.json_digest([row.instruction for row in references]))
    patch.setattr(alpaca_package, "INSTRUCTIONS", rows)
    patch.setattr(alpaca_data, "BASELINE", alpaca_data.json_digest([[r.instruction, r.output] for r in references]))
    return EvalSet(
        folder,
        write(folder / "model_outputs.json", outputs("ours", rows)),
        write(folder / "reference.json", references),
        write_difficulty(folder / "difficulty", rows),
    )


def model_logprob(body: dict) -> tuple[float, bool]:
    """The fake judge's log-probability for the model "ours", and whether its answer comes first in the prompt."""
    row, first, _ = PAIR.search(body["messages"][-1]["content"]).groups()
    return -0.05 - 3 * random.Random(int(row)).random(), first.startswith("ours")


def weighted_reply(body: dict) -> tuple[int, dict, dict]:
    """A reply with the log-probabilities of m and M."""
    ours, first = model_logprob(body)
    theirs = math.log(1 - math.exp(ours))
    top = {"m": ours, "M": theirs} if first else {"M": ours, "m": theirs}
    return 200, chat_completion(max(top, key=top.get), "length", {**top, "The": -9.0}), {}


def expected_win_rate(rows: int) -> float:
    return 100 * sum(math.exp(-0.05 - 3 * random.Random(row).random()) for row in range(rows)) / rows
