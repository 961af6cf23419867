"""The paper's table, small: the bundled family on ``aft_arith``, every row with interval, cost and a paired test.

Runs lm-eval and ``aft sweep`` as commands, so that each row is an ordinary results folder, and reads them back. Rows
that share a model share its drafts. Give ``--task aft_arith_validation`` while settings are still being chosen.

Usage: python benchmarks/family.py FAMILY_FOLDER WORK [--seed 0] [--task aft_arith] [--limit 4000] [--out DIR]
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from common import write

from lm_eval_aft.analysis.comparison import compare_entries
from lm_eval_aft.analysis.diagnosis import diagnose_traces
from lm_eval_aft.analysis.runs import RunEntry, read_entries
from lm_eval_aft.analysis.stats import proportion_interval
from lm_eval_aft.analysis.votes import count_votes

BIN = Path(sys.executable).parent
AGGREGATED = {"sft": [(5, 1), (5, 2)], "aft": [(1, 1), (3, 1), (5, 1), (5, 2), (5, 3)]}
ABLATIONS = ("aft-no-drafts", "aft-pseudo")
VOTERS = 11  # drafts that generate as many texts as (5, 2)


def evaluate(model: Path, work: Path, args: argparse.Namespace, how: str) -> Path:
    """One lm-eval run with the model's own draft store; a finished one is not made again."""
    folder = work / f"{model.name}_{re.sub(r'[^A-Za-z0-9.]+', '_', how)[:80]}"
    if not list(folder.rglob("results_*.json")):
        model_args = f"pretrained={model},{how},record={folder / 'traces'},cache={work / model.name}.sqlite"
        command = [str(BIN / "lm_eval"), "--model", "aft", "--model_args", model_args, "--tasks", args.task]
        command += ["--limit", str(args.limit), "--apply_chat_template", "--batch_size", "auto", "--device", "cpu"]
        command += ["--output_path", str(folder), "--log_samples"]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "LMEVAL_LOG_LEVEL": "ERROR"}
        subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    return folder


def at(place: tuple[int, int]) -> str:
    """(k, layers) as model arguments."""
    return f"k={place[0]},layers={place[1]}"


def row(name: str, base: RunEntry, entry: RunEntry, task: str) -> dict[str, Any]:
    """Score, cost, and the paired difference from the baseline."""
    cost = entry.costs[task]
    (found,) = compare_entries(base, [entry])
    interval = proportion_interval(round(found.other_mean * found.n), found.n)
    return {
        "system": name,
        "accuracy": found.other_mean,
        "low": interval.low,
        "high": interval.high,
        "texts": cost.generations,
        "generated_tokens": cost.generated_tokens,
        "difference": found.difference.estimate,
        "difference_low": found.difference.low,
        "difference_high": found.difference.high,
        "p": found.p_value,
    }


def vote_rows(name: str, entry: RunEntry) -> list[dict[str, Any]]:
    """Majority and oracle of 5 and of all drafts, and the mean draft."""
    (votes,) = count_votes(entry.traces(), [entry])
    rows = []
    for point in (votes.points[n - 1] for n in sorted({1, 5, len(votes.points)})):
        kinds = (
            {"mean draft": point.mean}
            if point.n == 1
            else {
                f"majority of {point.n}": point.majority,
                f"oracle of {point.n}": point.oracle,
            }
        )
        rows += [
            {
                "system": f"{name}, {kind}",
                "accuracy": interval.estimate,
                "low": interval.low,
                "high": interval.high,
                "texts": point.n,
                "generated_tokens": point.generated_tokens,
            }
            for kind, interval in kinds.items()
        ]
    return rows


def diagnostics(entry: RunEntry) -> dict[str, Any]:
    """Selection skill, rescue and corruption, copies by position of one aggregated run."""
    (found,) = diagnose_traces(entry.traces(), [entry])
    last, change = found.diagnostics.readings[-1], found.diagnostics.changes[0]
    numbers = {name: getattr(last, name) for name in ("selected", "random", "majority")}
    return {
        "run": entry.label,
        "disputed_questions": last.disputed,
        **{name: interval.estimate if interval else None for name, interval in numbers.items()},
        "copy_rate": last.copy_rate,
        "copies_by_position": last.copies_by_position,
        "fixed_from_vote": change.fixed,
        "broken_from_vote": change.broken,
    }


def main() -> None:
    """Evaluate every row and print the table as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("family", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--task", default="aft_arith")
    parser.add_argument("--limit", type=int, default=4000, help="problems of the headline; 0 leaves it out")
    parser.add_argument("--ablations", type=int, default=1000, help="questions for the ablations; 0 leaves them out")
    parser.add_argument("--out")
    args = parser.parse_args()
    model = {kind: args.family / f"{kind}-{args.seed}" for kind in ("sft", "aft", *ABLATIONS)}
    figures: dict[str, Any] = {"task": args.task, "training_seed": args.seed}
    if args.limit:
        figures |= headline(model, args)
    if args.ablations:
        figures["ablation_questions"] = args.limit = args.ablations
        figures["ablations"] = ablations(model, args)
    write(f"family-{args.task}-seed{args.seed}{'' if 'rows' in figures else '-ablations'}", figures, args.out)


def headline(model: dict[str, Path], args: argparse.Namespace) -> dict[str, Any]:
    """SFT and AFT at every place, their votes, and what aggregation did."""
    places = {"SFT, greedy": evaluate(model["sft"], args.work, args, at((1, 0)))}
    places |= {f"SFT + Agg {p}": evaluate(model["sft"], args.work, args, at(p)) for p in AGGREGATED["sft"]}
    places["AFT, layers=0"] = evaluate(model["aft"], args.work, args, at((1, 0)))
    places |= {f"AFT {p}": evaluate(model["aft"], args.work, args, at(p)) for p in AGGREGATED["aft"]}
    for kind in ("sft", "aft"):
        for k in (5, VOTERS):
            how = f"strategy=majority,k={k}"
            places[f"{kind.upper()}, majority of {k}"] = evaluate(model[kind], args.work, args, how)
    named = dict(zip(places, read_entries(list(places.values())), strict=True))
    rows = [row(name, named["SFT, greedy"], named[name], args.task) for name in places]
    for kind in ("SFT", "AFT"):
        rows += vote_rows(kind, named[f"{kind}, majority of {VOTERS}"])
    equal = f"SFT, majority of {VOTERS}"
    return {
        "questions": args.limit,
        "rows": rows,
        "AFT (5, 2) against the vote at equal tokens": row("AFT (5, 2)", named[equal], named["AFT (5, 2)"], args.task),
        "diagnostics": [diagnostics(named[name]) for name in ("SFT + Agg (5, 1)", "AFT (5, 1)", "AFT (5, 2)")],
    }


def ablations(model: dict[str, Path], args: argparse.Namespace) -> list[dict[str, Any]]:
    """The same aggregation with checkpoints that were trained without drafts, or on targets not made from them."""
    work = args.work / "ablations"
    base = evaluate(model["sft"], work, args, at((1, 0)))
    places = {"SFT, greedy": base, "AFT (5, 1)": evaluate(model["aft"], work, args, at((5, 1)))}
    for kind in ABLATIONS:
        if model[kind].is_dir():
            places[f"{kind}, layers=0"] = evaluate(model[kind], work, args, at((1, 0)))
            places[f"{kind} + Agg (5, 1)"] = evaluate(model[kind], work, args, at((5, 1)))
    entries = dict(zip(places, read_entries(list(places.values())), strict=True))
    return [row(name, entries["SFT, greedy"], entry, args.task) for name, entry in entries.items()]


if __name__ == "__main__":
    main()
