"""Which drafts and targets should AFT be trained on? One training of the family's base for each kind of data.

Drafts are of three kinds:

- the base's own;
- those of a program that writes right and wrong solutions, 60% of them right;
- the program's, matched to the share of right drafts of the base.

Targets are of five kinds:

- chosen by a verifier: a right draft, or another right solution if no draft is right;
- written by the base itself, which reads the drafts in the prompt of inference;
- the same, with each wrong target replaced by the verifier's choice;
- written by the SFT checkpoint;
- written by the AFT checkpoint.

All trainings take one epoch, a third of the shipped one, and keep their last weights. Every training seed uses the same
rows. Intervals over seeds are those of ``family_seeds``.

Usage: python benchmarks/family_data.py FAMILY WORK [--seeds 0 1 2] [--limit 1000] [--out DIR]
FAMILY is the output folder of ``trainers.family``; rows, checkpoints and runs are written to WORK.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from common import add_device, parser, write
from family import at, evaluate, row
from family_seeds import over_seeds

from lm_eval_aft.analysis.runs import read_entries
from lm_eval_aft.bundled import arith
from lm_eval_aft.bundled.arith import Problem, Way
from lm_eval_aft.core.jsonl import read_jsonl, write_jsonl
from trainers.family.documents import ANSWER_TOKENS
from trainers.family.rows import rows_of
from trainers.family.settings import FamilyConfig, training_settings
from trainers.generation.generator import GeneratorOptions
from trainers.generation.selection import keep_matched, verify_all
from trainers.generation.targets import write_targets
from trainers.inspection.overlap import overlap_of
from trainers.settings import make_config
from trainers.train import run_training

Rows = list[dict[str, Any]]
# For each query the program writes this many drafts, of which at most KEPT are used.
WRITTEN, KEPT = 12, 6
# Chance that a draft of the program is right.
RIGHT_SHARE = 0.6
CONFIG = replace(FamilyConfig(), train_epochs=1.0)
POINTS = ((1, 0), (5, 1), (5, 2))
# Folder of a variant's run at (5, 1), with a place for the training seed.
RUN_AT_FIVE = "{}-{{}}_k_5_layers_1"


def is_right(text: str, row: dict[str, Any]) -> bool:
    """The verifier: whether a text solves the row's problem."""
    return arith.solves(text, row["query"])


def ways(numbers: Sequence[int]) -> Iterator[Way]:
    """Yield every way to use all numbers."""
    if len(numbers) == 1:
        yield ()
    for left, right, operator, result in arith.possible_steps(numbers):
        step = arith.Step(numbers[left], operator, numbers[right], result)
        rest = [number for place, number in enumerate(numbers) if place not in (left, right)]
        for way in ways([*rest, result]):
            yield (step, *way)


def written_drafts(query: str, rng: random.Random) -> list[str]:
    """Drafts of the program. Each is right with chance ``RIGHT_SHARE``; in a wrong one every step is correct."""
    problem = Problem.read(query)
    right, wrong = [], []
    for way in ways(problem.numbers):
        (right if way[-1].result == problem.target else wrong).append(way)
    return [arith.write(rng.choice(right if rng.random() < RIGHT_SHARE else wrong)) for _ in range(WRITTEN)]


def off_policy(family: Path, matched: bool) -> Rows:
    """Rows with the program's drafts, drawn into sets in the same way as the base's."""
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
        drawn
        for row in rows
        for drawn in rows_of(Problem.read(row["query"]), solutions[row["query"]], row["drafts"], CONFIG, rng)
    ]


def drafts_by_query(rows: Rows) -> dict[str, list[str]]:
    """The distinct drafts of each query, in the order of the rows."""
    distinct: dict[str, dict[str, None]] = {}
    for each in rows:
        distinct.setdefault(each["query"], {}).update(dict.fromkeys(each["drafts"]))
    return {query: list(drafts) for query, drafts in distinct.items()}


def scored(rows: Rows) -> Rows:
    """The rows with scores: 1 for a right draft, 0 for a wrong one."""
    return [row | {"scores": [float(right) for right in row["right"]]} for row in verify_all(rows, is_right)]


def taught(family: Path, work: Path, teacher: str, repair: bool = False) -> Rows:
    """The family's rows with the targets of a teacher. With ``repair`` the verifier's choice replaces a wrong one."""
    rows = read_jsonl(family / "train.jsonl")
    arguments = f"pretrained={family / teacher},dtype=float32,temperature=0,max_gen_toks={ANSWER_TOKENS}"
    arguments += f",template={family / 'template.j2'}"
    options = GeneratorOptions(arguments, work / f"{teacher}.sqlite", "cpu", "64")
    jobs = write_targets(rows, options.open(), is_right, "keep", 0, lambda row: "")
    return [
        row | {"target": row["target"] if repair and not job.right else job.target or row["target"]}
        for row, job in zip(rows, jobs, strict=True)
    ]


def variants(family: Path, work: Path) -> dict[str, Callable[[], Rows]]:
    """For each variant, the function that makes its rows."""
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
    """Train a variant, unless its checkpoint exists. Returns the checkpoint's folder."""
    output = work / f"{name}-{seed}"
    if not (output / "README.md").exists():
        settings = training_settings(CONFIG, family, "aft", seed)
        settings |= {"data": str(work / f"{name}.jsonl"), "output": str(output)}
        run_training("aft", make_config(settings, "family_data"))
    return output


def make_rows(name: str, make: Callable[[], Rows], work: Path) -> dict[str, Any]:
    """Write the rows of a variant, unless they exist. Returns counts and shares that describe them."""
    data = work / f"{name}.jsonl"
    if not data.exists():
        write_jsonl(data, make())
    rows = read_jsonl(data)
    drafts = [is_right(draft, each) for each in rows for draft in each["drafts"]]
    targets = [is_right(each["target"], each) for each in rows]
    solvable = [
        right for each, right in zip(rows, targets, strict=True) if any(is_right(d, each) for d in each["drafts"])
    ]
    facts = {"rows": len(rows), "right_drafts": sum(drafts) / len(drafts), "right_targets": sum(targets) / len(targets)}
    facts["right_targets_where_a_draft_is"] = sum(solvable) / len(solvable)
    return facts | {"copied_targets": overlap_of(rows).copy_rate}


def against_first(runs: Path, seeds: list[int], names: Sequence[str]) -> Rows:
    """Compare every other variant with the first at (5, 1), over training seeds."""
    first, *others = names
    pairs = {name: (RUN_AT_FIVE.format(first), RUN_AT_FIVE.format(name)) for name in others}
    return [{"system": f"{name} (5, 1)", **over_seeds(runs, seeds, *pair)} for name, pair in pairs.items()]


def main() -> None:
    """Train and evaluate every variant, and print the table as JSON."""
    options = parser(__doc__)
    options.add_argument("family", type=Path, help="Output folder of `python -m trainers.family`.")
    options.add_argument("work", type=Path, help="Folder that rows, checkpoints and runs are written to.")
    options.add_argument(
        "--seeds",
        type=int,
        nargs="+",
        default=[0],
        help="Training seeds. The first is evaluated at every (k, layers), the others at (5, 1) only.",
    )
    options.add_argument("--task", default="aft_arith", help="Task to evaluate on (default aft_arith).")
    options.add_argument("--limit", type=int, default=1000, help="Problems to evaluate on (default 1000).")
    add_device(options)
    args = options.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    runs, makers = args.work / "runs", variants(args.family, args.work)
    facts = {name: make_rows(name, make, args.work) for name, make in makers.items()}
    tables = {}
    for seed in args.seeds:
        folders = {"SFT, greedy": evaluate(args.family / f"sft-{seed}", runs, args, at((1, 0)))}
        for name in makers:
            model = train(name, seed, args.family, args.work)
            points = POINTS if seed == args.seeds[0] else [(5, 1)]
            folders |= {f"{name} {point}": evaluate(model, runs, args, at(point)) for point in points}
        entries = dict(zip(folders, read_entries(list(folders.values())), strict=True))
        tables[seed] = {
            "rows": [row(name, entries["SFT, greedy"], entry, args.task) for name, entry in entries.items()],
            "against on-policy": [
                row(f"{name} (5, 1)", entries["on-policy (5, 1)"], entries[f"{name} (5, 1)"], args.task)
                for name in makers
            ],
        }
    figures = {"questions": args.limit, "data": facts, "seeds": tables}
    if len(args.seeds) > 1:
        figures["over seeds, against on-policy"] = against_first(runs, args.seeds, list(makers))
    write("family-data", figures, args.out)


if __name__ == "__main__":
    main()
