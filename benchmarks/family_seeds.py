"""The family's table over several training seeds: the accuracy at each seed, their mean, and an interval.

The script reads the runs that ``benchmarks/family.py FAMILY WORK --seed N`` wrote to WORK. If a seed has not run a row,
the script omits the row and prints its name. The interval is a bootstrap that draws training seeds and problems with
replacement. With three seeds it is rough, and wider than an interval over problems alone.

Usage: python benchmarks/family_seeds.py WORK [--seeds 0 1 2] [--out DIR] [--markdown]
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from common import parser, write

from lm_eval_aft.analysis.conditions import primary_score
from lm_eval_aft.analysis.pairing import pair_scores
from lm_eval_aft.analysis.runs import RunEntry, read_entries
from lm_eval_aft.analysis.stats import mcnemar_exact

RESAMPLES = 10_000
GREEDY, VOTE = "sft-{}_k_1_layers_0", "sft-{}_strategy_majority_k_11"
COMPARED = {
    "SFT + Agg (5, 1)": (GREEDY, "sft-{}_k_5_layers_1"),
    "SFT + Agg (5, 2)": (GREEDY, "sft-{}_k_5_layers_2"),
    "AFT, layers=0": (GREEDY, "aft-{}_k_1_layers_0"),
    "AFT (1, 1)": (GREEDY, "aft-{}_k_1_layers_1"),
    "AFT (3, 1)": (GREEDY, "aft-{}_k_3_layers_1"),
    "AFT (5, 1)": (GREEDY, "aft-{}_k_5_layers_1"),
    "AFT (5, 2)": (GREEDY, "aft-{}_k_5_layers_2"),
    "AFT (5, 3)": (GREEDY, "aft-{}_k_5_layers_3"),
    "SFT, majority of 5": (GREEDY, "sft-{}_strategy_majority_k_5"),
    "SFT, majority of 11": (GREEDY, VOTE),
    "AFT, majority of 5": (GREEDY, "aft-{}_strategy_majority_k_5"),
    "AFT, majority of 11": (GREEDY, "aft-{}_strategy_majority_k_11"),
    "AFT (5, 2) against the SFT majority of 11": (VOTE, "aft-{}_k_5_layers_2"),
    "AFT (5, 2) against SFT + Agg (5, 2)": ("sft-{}_k_5_layers_2", "aft-{}_k_5_layers_2"),
    "AFT (5, 2) against (5, 1)": ("aft-{}_k_5_layers_1", "aft-{}_k_5_layers_2"),
}
WITHOUT, PSEUDO = (f"ablations/aft-{kind}-{{}}" for kind in ("no-drafts", "pseudo"))
AFT = "ablations/aft-{}_k_5_layers_1"
# These are evaluated on the problems of the ablations, which may be fewer.
COMPARED |= {
    "AFT (5, 1), ablations' problems": (f"ablations/{GREEDY}", AFT),
    "aft-no-drafts, layers=0": (f"ablations/{GREEDY}", f"{WITHOUT}_k_1_layers_0"),
    "aft-no-drafts + Agg (5, 1)": (f"ablations/{GREEDY}", f"{WITHOUT}_k_5_layers_1"),
    "aft-pseudo, layers=0": (f"ablations/{GREEDY}", f"{PSEUDO}_k_1_layers_0"),
    "aft-pseudo + Agg (5, 1)": (f"ablations/{GREEDY}", f"{PSEUDO}_k_5_layers_1"),
    "AFT (5, 1) against aft-no-drafts + Agg (5, 1)": (f"{WITHOUT}_k_5_layers_1", AFT),
    "AFT (5, 1) against aft-pseudo + Agg (5, 1)": (f"{PSEUDO}_k_5_layers_1", AFT),
}


@dataclass(frozen=True)
class Paired:
    """A system compared with a baseline at each training seed.

    Attributes:
        values: Difference of each problem, shape (seeds, problems).
        accuracies: Accuracy of the system at each seed.
        p_values: Exact McNemar test at each seed.
        tokens: Tokens that the system generates a question, at each seed.
    """

    values: Any
    accuracies: list[float]
    p_values: list[float]
    tokens: list[float]


def differences(work: Path, seeds: list[int], baseline: str, other: str) -> Paired:
    """Pair two systems at each seed, with the problems in the same order."""
    rows, accuracies, p_values, tokens = [], [], [], []
    for seed in seeds:
        one, two = entries(work, (baseline.format(seed), other.format(seed)))
        score = primary_score(two.run, two.run.tasks[0])
        pairs = pair_scores(one, two, score.task, score.metric, score.filter)
        by_question = sorted(zip(pairs.documents, pairs.baseline, pairs.other, strict=True), key=lambda row: row[0])
        rows.append([after - before for _, before, after in by_question])
        accuracies.append(float(np.mean(pairs.other)))
        p_values.append(mcnemar_exact(pairs.baseline, pairs.other).p_value)
        tokens.append(two.costs[score.task].generated_tokens)
    return Paired(np.array(rows), accuracies, p_values, tokens)


def over_seeds(work: Path, seeds: list[int], baseline: str, other: str) -> dict[str, Any]:
    """A row: the accuracies of each seed, their mean, and the difference with its interval."""
    paired = differences(work, seeds, baseline, other)
    low, high = interval(paired.values, np.random.default_rng(0))
    return {
        "questions": paired.values.shape[1],
        "each_seed": paired.accuracies,
        "mean": float(np.mean(paired.accuracies)),
        "difference_each_seed": paired.values.mean(1).tolist(),
        "difference": float(paired.values.mean()),
        "difference_low": low,
        "difference_high": high,
        "p_each_seed": paired.p_values,
        "generated_tokens": float(np.mean(paired.tokens)),
    }


def entries(work: Path, names: tuple[str, ...]) -> tuple[RunEntry, ...]:
    """The runs in the folders with these names."""
    return read_entries([work / name for name in names])


def interval(values: Any, rng: np.random.Generator, level: float = 0.95) -> tuple[float, float]:
    """Bootstrap interval of the mean over seeds and problems.

    Args:
        values: Differences, shape (seeds, problems).
        rng: Source of the draws.
        level: Coverage of the interval.
    """
    seeds, problems = values.shape
    means = np.zeros(RESAMPLES)
    for number in range(RESAMPLES):
        # How often each problem is drawn.
        weights = np.bincount(rng.integers(0, problems, problems), minlength=problems)
        means[number] = (values @ weights)[rng.integers(0, seeds, seeds)].mean() / problems
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def markdown(rows: list[dict[str, Any]], seeds: list[int]) -> str:
    """The rows as a Markdown table, with differences in points and the largest p-value of all seeds."""
    names = " / ".join(map(str, seeds))
    lines = [f"| system | accuracy at seeds {names} | mean | mean difference | largest p | generated tokens |"]
    lines.append("|---|---|---|---|---|---|")
    for row in rows:
        each = " / ".join(f"{100 * value:.1f}" for value in row["each_seed"])
        cells = [row["system"], each, f"{100 * row['mean']:.1f}", "", "", f"{row['generated_tokens']:.0f}"]
        if "difference" in row:
            mean, low, high = (100 * row[f"difference{end}"] for end in ("", "_low", "_high"))
            cells[3:5] = f"{mean:+.1f} ({low:+.1f} to {high:+.1f})", f"{max(row['p_each_seed']):.2g}"
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Print every row as JSON or as a Markdown table."""
    options = parser(__doc__)
    options.add_argument("work", type=Path, help="Folder that benchmarks/family.py wrote the runs to.")
    options.add_argument(
        "--seeds", type=int, nargs="+", default=[0, 1, 2], help="Training seeds to read (default 0 1 2)."
    )
    options.add_argument("--markdown", action="store_true", help="Print a Markdown table instead of JSON.")
    args = options.parse_args()
    greedy = [entries(args.work, (GREEDY.format(seed),))[0] for seed in args.seeds]
    accuracy = [primary_score(entry.run, entry.run.tasks[0]).value for entry in greedy]
    tokens = float(np.mean([entry.costs[entry.run.tasks[0]].generated_tokens for entry in greedy]))
    first = {"system": "SFT, greedy", "each_seed": accuracy, "mean": float(np.mean(accuracy))}
    rows: list[dict[str, Any]] = [first | {"generated_tokens": tokens}]
    for name, (baseline, other) in COMPARED.items():
        runs = [run.format(seed) for run in (baseline, other) for seed in args.seeds]
        missing = [run for run in runs if not list((args.work / run).rglob("results_*.json"))]
        if missing:
            print(f"omitted: {name}, because {', '.join(missing)} has not been run", file=sys.stderr)
            continue
        rows.append({"system": name, **over_seeds(args.work, args.seeds, baseline, other)})
    if args.markdown:
        print(markdown(rows, args.seeds))
    else:
        write("family-seeds", {"training_seeds": args.seeds, "rows": rows}, args.out)


if __name__ == "__main__":
    main()
