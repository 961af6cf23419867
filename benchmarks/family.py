"""The paper's table for the bundled family on ``aft_arith``: every row with an interval, its cost and a paired test.

Each row is an ordinary run of ``lm_eval``, made by the command, and its results folder is read back. Rows of one model
share its draft store. A finished run is not repeated. To choose settings, use ``--task aft_arith_validation``.

Usage: python benchmarks/family.py FAMILY WORK [--seed 0] [--task aft_arith] [--limit 4000] [--out DIR]
FAMILY is the output folder of ``trainers.family``; the runs are written to WORK.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from common import add_device, parser, write

from lm_eval_aft.analysis.comparison import compare_entries
from lm_eval_aft.analysis.diagnosis import diagnose_traces
from lm_eval_aft.analysis.runs import RunEntry, read_entries
from lm_eval_aft.analysis.stats import proportion_interval
from lm_eval_aft.analysis.votes import count_votes

BIN = Path(sys.executable).parent
AGGREGATED = {"sft": [(5, 1), (5, 2)], "aft": [(1, 1), (3, 1), (5, 1), (5, 2), (5, 3)]}
ABLATIONS = ("aft-no-drafts", "aft-pseudo")
# A vote of this many drafts costs as many generations as (5, 2).
VOTERS = 11


def evaluate(model: Path, work: Path, args: argparse.Namespace, settings: str) -> Path:
    """Evaluate a model with the given model arguments, unless it was done before. Returns the run's folder."""
    folder = work / f"{model.name}_{re.sub(r'[^A-Za-z0-9.]+', '_', settings)[:80]}"
    model_args = f"pretrained={model},{settings},cache={work / model.name}.sqlite"
    run_lm_eval(folder, model_args, args, OMP_NUM_THREADS="1")
    return folder


def run_lm_eval(folder: Path, model_args: str, args: argparse.Namespace, **environment: str) -> None:
    """Run lm-eval and write its results and traces to a folder, unless it was done before."""
    if not list(folder.rglob("results_*.json")):
        model_args += f",record={folder / 'traces'}" + f",{args.more}" * bool(args.more)
        command = [str(BIN / "lm_eval"), "--model", "aft", "--model_args", model_args, "--tasks", args.task]
        command += ["--limit", str(args.limit), "--apply_chat_template", "--batch_size", "auto"]
        command += ["--device", args.device, "--output_path", str(folder), "--log_samples"]
        variables = {**os.environ, "HF_HUB_OFFLINE": "1", "LMEVAL_LOG_LEVEL": "ERROR", **environment}
        subprocess.run(command, check=True, env=variables, stdout=subprocess.DEVNULL)


def at(point: tuple[int, int]) -> str:
    """(k, layers) as model arguments."""
    return f"k={point[0]},layers={point[1]}"


def row(name: str, base: RunEntry, entry: RunEntry, task: str) -> dict[str, Any]:
    """Accuracy with its interval, cost a question, and the paired difference from the baseline."""
    cost = entry.costs[task]
    (comparison,) = compare_entries(base, [entry]).comparisons
    interval = proportion_interval(round(comparison.other_mean * comparison.n), comparison.n)
    return {
        "system": name,
        "accuracy": comparison.other_mean,
        "low": interval.low,
        "high": interval.high,
        "texts": cost.generations,
        "generated_tokens": cost.generated_tokens,
        "difference": comparison.difference.estimate,
        "difference_low": comparison.difference.low,
        "difference_high": comparison.difference.high,
        "p": comparison.p_value,
    }


def vote_rows(name: str, entry: RunEntry) -> list[dict[str, Any]]:
    """Rows for the mean draft, and for the majority and the oracle of 5 drafts and of all."""
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
    """What one run did with its drafts: disputed questions, questions fixed and broken, copies by position."""
    (diagnosis,) = diagnose_traces(entry.traces(), [entry])
    last, change = diagnosis.diagnostics.readings[-1], diagnosis.diagnostics.changes[0]
    intervals = {name: getattr(last, name) for name in ("selected", "random", "majority")}
    return {
        "run": entry.label,
        "disputed_questions": last.disputed,
        **{name: interval.estimate if interval else None for name, interval in intervals.items()},
        "copy_rate": last.copy_rate,
        "copies_by_position": last.copies_by_position,
        "fixed_from_vote": change.fixed,
        "broken_from_vote": change.broken,
    }


def main() -> None:
    """Evaluate every row and print the table as JSON."""
    options = parser(__doc__)
    options.add_argument("family", type=Path, help="Output folder of `python -m trainers.family`.")
    options.add_argument("work", type=Path, help="Folder that the runs are written to.")
    options.add_argument("--seed", type=int, default=0, help="Training seed of the checkpoints (default 0).")
    options.add_argument("--task", default="aft_arith", help="Task to evaluate on (default aft_arith).")
    options.add_argument(
        "--limit", type=int, default=4000, help="Problems of the main table (default 4000); 0 omits the table."
    )
    options.add_argument(
        "--ablations", type=int, default=1000, help="Problems of the ablations (default 1000); 0 omits them."
    )
    add_device(options)
    args = options.parse_args()
    model = {kind: args.family / f"{kind}-{args.seed}" for kind in ("sft", "aft", *ABLATIONS)}
    figures: dict[str, Any] = {"task": args.task, "training_seed": args.seed}
    if args.limit:
        figures |= headline(model, args)
    if args.ablations:
        figures["ablation_questions"] = args.limit = args.ablations
        figures["ablations"] = ablations(model, args)
    write(f"family-{args.task}-seed{args.seed}{'' if 'rows' in figures else '-ablations'}", figures, args.out)


def headline(model: dict[str, Path], args: argparse.Namespace) -> dict[str, Any]:
    """The main table: SFT and AFT at every (k, layers), their votes, and what aggregation did."""
    runs = {"SFT, greedy": evaluate(model["sft"], args.work, args, at((1, 0)))}
    runs |= {f"SFT + Agg {p}": evaluate(model["sft"], args.work, args, at(p)) for p in AGGREGATED["sft"]}
    runs["AFT, layers=0"] = evaluate(model["aft"], args.work, args, at((1, 0)))
    runs |= {f"AFT {p}": evaluate(model["aft"], args.work, args, at(p)) for p in AGGREGATED["aft"]}
    for kind in ("sft", "aft"):
        for k in (5, VOTERS):
            settings = f"strategy=majority,k={k}"
            runs[f"{kind.upper()}, majority of {k}"] = evaluate(model[kind], args.work, args, settings)
    entries = dict(zip(runs, read_entries(list(runs.values())), strict=True))
    rows = [row(name, entries["SFT, greedy"], entry, args.task) for name, entry in entries.items()]
    for kind in ("SFT", "AFT"):
        rows += vote_rows(kind, entries[f"{kind}, majority of {VOTERS}"])
    vote, aggregated = entries[f"SFT, majority of {VOTERS}"], entries["AFT (5, 2)"]
    return {
        "questions": args.limit,
        "rows": rows,
        "AFT (5, 2) against the vote at equal tokens": row("AFT (5, 2)", vote, aggregated, args.task),
        "diagnostics": [diagnostics(entries[name]) for name in ("SFT + Agg (5, 1)", "AFT (5, 1)", "AFT (5, 2)")],
    }


def ablations(model: dict[str, Path], args: argparse.Namespace) -> list[dict[str, Any]]:
    """Aggregation with checkpoints trained without drafts, or on targets that no drafts led to."""
    work = args.work / "ablations"
    base = evaluate(model["sft"], work, args, at((1, 0)))
    runs = {"SFT, greedy": base, "AFT (5, 1)": evaluate(model["aft"], work, args, at((5, 1)))}
    for kind in ABLATIONS:
        if model[kind].is_dir():
            runs[f"{kind}, layers=0"] = evaluate(model[kind], work, args, at((1, 0)))
            runs[f"{kind} + Agg (5, 1)"] = evaluate(model[kind], work, args, at((5, 1)))
    entries = dict(zip(runs, read_entries(list(runs.values())), strict=True))
    return [row(name, entries["SFT, greedy"], entry, args.task) for name, entry in entries.items()]


if __name__ == "__main__":
    main()
