"""Where the drafts and the targets of AFT data come from: one training on the family's base for each answer.

The drafts: the base's own, or those of a program that walks from the numbers to a right end or a wrong one, as they
come (60% right) or matched to the right share of the base's. The targets: chosen by a verifier (a right draft, else
another right way), or written by a teacher that reads the drafts through the prompt of inference: the base itself,
itself with its wrong ones repaired, the SFT checkpoint, the AFT checkpoint. All trainings are one epoch long, a third
of the shipped one, and keep their last weights. Rows are the same at every training seed; intervals over seeds are
those of ``family_seeds``. FAMILY is the folder of ``trainers.family``.

Usage: python benchmarks/family_data.py FAMILY WORK [--seeds 0 1 2] [--limit 1000] [--out DIR]
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from common import write
from family import at, evaluate, row
from family_seeds import over_seeds

from lm_eval_aft.analysis.runs import read_entries
from lm_eval_aft.bundled import arith
from lm_eval_aft.bundled.arith import Problem, Way
from lm_eval_aft.core.jsonl import read_jsonl, write_jsonl
from trainers.family.checkpoints import training_settings
from trainers.family.documents import ANSWER_TOKENS
from trainers.family.rows import rows_of
from trainers.family.settings import FamilyConfig
from trainers.generation.generator import open_writer
from trainers.generation.selection import keep_matched, verify_all
from trainers.generation.targets import write_targets
from trainers.inspection.overlap import overlap_of
from trainers.settings import make_config
from trainers.train import run_training

Rows = list[dict[str, Any]]
WRITTEN, KEPT, RIGHT_SHARE = 12, 6, 0.6  # drafts of the program a query, those that are used, and how many are right
CONFIG = replace(FamilyConfig(), train_epochs=1.0)
PLACES = ((1, 0), (5, 1), (5, 2))
AT_FIVE = "{}-{{}}_k_5_layers_1"


def is_right(text: str, row: dict[str, Any]) -> bool:
    """The verifier."""
    return arith.solves(text, row["query"])


def ways(numbers: Sequence[int]) -> Iterator[Way]:
    """Every way to use all numbers."""
    if len(numbers) == 1:
        yield ()
    for left, right, step in arith.possible_steps(numbers):
        rest = [number for place, number in enumerate(numbers) if place not in (left, right)]
        for way in ways([*rest, step.result]):
            yield (step, *way)


def written_drafts(query: str, rng: random.Random) -> list[str]:
    """Drafts of the program: each is right with the same chance, all steps of the wrong ones are true."""
    problem = Problem.read(query)
    right, wrong = [], []
    for way in ways(problem.numbers):
        (right if way[-1].result == problem.target else wrong).append(way)
    return [arith.write(rng.choice(right if rng.random() < RIGHT_SHARE else wrong)) for _ in range(WRITTEN)]


def off_policy(family: Path, matched: bool) -> Rows:
    """Rows with the program's drafts, drawn into sets as the base's are."""
    rng = random.Random("off-policy")
    own = drafts_by_query(read_jsonl(family / "train.jsonl"))
    rows = [{"query": query, "drafts": written_drafts(query, rng)} for query in own]
    if matched:
        goals = scored([{"query": query, "drafts": drafts} for query, drafts in own.items()])
        rows = keep_matched(scored(rows), goals, KEPT)
    else:
        rows = [row | {"drafts": row["drafts"][:KEPT]} for row in rows]
    solutions = {row["query"]: row["sft_target"] for row in read_jsonl(family / "train.jsonl")}
    return [
        made
        for row in rows
        for made in rows_of(Problem.read(row["query"]), solutions[row["query"]], row["drafts"], CONFIG, rng)
    ]


def drafts_by_query(rows: Rows) -> dict[str, list[str]]:
    """The different drafts of each query that the family's rows show."""
    shown: dict[str, dict[str, None]] = {}
    for each in rows:
        shown.setdefault(each["query"], {}).update(dict.fromkeys(each["drafts"]))
    return {query: list(drafts) for query, drafts in shown.items()}


def scored(rows: Rows) -> Rows:
    """The rows with a score of 1 for a right draft."""
    return [made | {"scores": [float(right) for right in made["right"]]} for made in verify_all(rows, is_right)]


def taught(family: Path, work: Path, teacher: str, repair: bool = False) -> Rows:
    """The family's rows with targets that a teacher wrote; wrong ones stay, or become the verifier's choice."""
    rows = read_jsonl(family / "train.jsonl")
    arguments = f"pretrained={family / teacher},dtype=float32,temperature=0,max_gen_toks={ANSWER_TOKENS}"
    writer = open_writer(f"{arguments},template={family / 'template.j2'}", work / teacher, "cpu", "64")
    works = write_targets(rows, writer, is_right, "keep", 0, lambda row: "")
    return [
        row | {"target": row["target"] if repair and not work.right else work.target or row["target"]}
        for row, work in zip(rows, works, strict=True)
    ]


def variants(family: Path, work: Path) -> dict[str, Callable[[], Rows]]:
    """How the rows of each variant are made."""
    return {
        "on-policy": lambda: read_jsonl(family / "train.jsonl"),
        "off-policy": lambda: off_policy(family, matched=False),
        "off-policy-matched": lambda: off_policy(family, matched=True),
        "itself": lambda: taught(family, work, "base"),
        "itself-repaired": lambda: taught(family, work, "base", repair=True),
        "sft-teacher": lambda: taught(family, work, "sft-0"),
        "aft-teacher": lambda: taught(family, work, "aft-0"),
    }


def train(name: str, seed: int, family: Path, work: Path) -> Path:
    """Make the checkpoint of a variant unless it is there; returns its folder."""
    output = work / f"{name}-{seed}"
    if not (output / "README.md").exists():
        settings = training_settings(CONFIG, family, "aft", seed)
        settings |= {"data": str(work / f"{name}.jsonl"), "output": str(output)}
        run_training("aft", make_config(settings, "family_data"))
    return output


def make_rows(name: str, make: Callable[[], Rows], work: Path) -> dict[str, Any]:
    """Write the rows of a variant unless they are there; returns facts of them."""
    data = work / f"{name}.jsonl"
    if not data.exists():
        write_jsonl(data, make())
    rows = read_jsonl(data)
    drafts = [is_right(draft, each) for each in rows for draft in each["drafts"]]
    targets = [is_right(each["target"], each) for each in rows]
    seen = [right for each, right in zip(rows, targets, strict=True) if any(is_right(d, each) for d in each["drafts"])]
    facts = {"rows": len(rows), "right_drafts": sum(drafts) / len(drafts), "right_targets": sum(targets) / len(targets)}
    facts["right_targets_where_a_draft_is"] = sum(seen) / len(seen)
    return facts | {"copied_targets": overlap_of(rows).copy_rate}


def against_first(runs: Path, seeds: list[int], names: Sequence[str]) -> Rows:
    """Every other variant against the first at (5, 1), over training seeds."""
    first, *others = names
    pairs = {name: (AT_FIVE.format(first), AT_FIVE.format(name)) for name in others}
    return [{"system": f"{name} (5, 1)", **over_seeds(runs, seeds, *pair)} for name, pair in pairs.items()]


def main() -> None:
    """Train and evaluate every variant, and print the table as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("family", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="all but the first at (5, 1)")
    parser.add_argument("--task", default="aft_arith")
    parser.add_argument("--limit", type=int, default=1000, help="problems")
    parser.add_argument("--out")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    runs, makers = args.work / "runs", variants(args.family, args.work)
    facts = {name: make_rows(name, make, args.work) for name, make in makers.items()}
    tables = {}
    for seed in args.seeds:
        places = {"SFT, greedy": evaluate(args.family / f"sft-{seed}", runs, args, at((1, 0)))}
        for name in makers:
            model = train(name, seed, args.family, args.work)
            chosen = PLACES if seed == args.seeds[0] else [(5, 1)]
            places |= {f"{name} {place}": evaluate(model, runs, args, at(place)) for place in chosen}
        named = dict(zip(places, read_entries(list(places.values())), strict=True))
        tables[seed] = {
            "rows": [row(name, named["SFT, greedy"], entry, args.task) for name, entry in named.items()],
            "against on-policy": [
                row(f"{name} (5, 1)", named["on-policy (5, 1)"], named[f"{name} (5, 1)"], args.task) for name in makers
            ],
        }
    figures = {"questions": args.limit, "data": facts, "seeds": tables}
    if len(args.seeds) > 1:
        figures["over seeds, against on-policy"] = against_first(runs, args.seeds, list(makers))
    write("family-data", figures, args.out)


if __name__ == "__main__":
    main()
