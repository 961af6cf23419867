"""Every strategy on the same questions, from one pool of drafts: score, cost, gap closed and paired tests.

Each row is a run of lm-eval. All runs share one draft store, so drafts are generated once. ``aft compare --strategies``
makes the table.

Usage: python benchmarks/strategies.py WORK [--model bundled:aft] [--task aft_arith] [--limit 4000] [--out DIR]
The runs are written to WORK. A script that was stopped resumes there.
"""

from __future__ import annotations

import json
import subprocess
from itertools import islice
from pathlib import Path
from typing import Any

from common import add_device, parser, write
from family import BIN, run_lm_eval
from opponents import arith_drafts, train_reward

from lm_eval_aft.bundled import arith, locate

POOL = "strategy=weighted,k=16"
# What reads drafts gets at most five of them: the bundled checkpoint was trained with five.
RUNS = {
    "pool": POOL,
    "single answer": "layers=0",
    "aggregate (5, 1)": "k=5,layers=1",
    "aggregate (5, 2)": "k=5,layers=2",
    "aggregate (5, 3)": "k=5,layers=3",
    "aggregate (8, 2), subsets of 5": "k=8,layers=2,subset=5",
    "aggregate (10/5, 2), subsets of 5": "k=10/5,layers=2,subset=5",
    "aggregate (10, 1), no subsets": "k=10,layers=1",
    "conclusions only (5, 2)": "k=5,layers=2,carry=answer",
    "refined 10 times": "strategy=refine,layers=10",
    "select of 5": "strategy=select,k=5",
    "weighted vote of 11, mean": "strategy=weighted,k=11",
    "weighted vote of 11, window": "strategy=weighted,k=11,confidence=window",
    "vote of 11": "strategy=majority,k=11",
    "aggregate (5, 1), then a vote": "strategy=majority,k=5,layers=2",
    "stopped vote of 16, agree:0.9": "strategy=majority,k=16,stop_when=agree:0.9",
    "stopped vote of 16, window:3": "strategy=majority,k=16,stop_when=window:3",
    "stopped (5, 2), window:2": "k=5,layers=2,stop_when=window:2,stop_layers=0",
    "stopped (5, 2), agree:0.8": "k=5,layers=2,stop_when=agree:0.8,stop_layers=0",
}
RSA = {
    "rsa (6, 3), subsets of 4": "strategy=rsa,k=6,subset=4,layers=3",
    "rsa (16, 10), subsets of 4": "strategy=rsa",
}


def reward_model(work: Path, queries: int, seed: int) -> Path:
    """Train a reward model on drafts of training problems, unless it was trained before."""
    folder = work / "reward"
    if not folder.is_dir():
        questions, drafts = work / "queries.jsonl", work / "drafts.jsonl"
        problems = islice(arith.problems("train", seed=seed), queries)
        questions.write_text("".join(json.dumps({"query": problem.question}) + "\n" for problem, _ in problems))
        model_args = "pretrained=bundled:sft,max_gen_toks=40"
        command = [BIN / "aft", "data", "drafts", questions, drafts, "-n", "8", "--model_args", model_args]
        subprocess.run([*command, "--device", "cpu", "--batch_size", "64"], check=True)
        train_reward(Path(locate("bundled:sft")), arith_drafts(drafts), folder, 600, seed)
    return folder


def evaluate(args: Any, name: str, settings: str) -> Path:
    """Evaluate with the given model arguments, unless it was done before. Returns the run's folder."""
    folder = args.work / "".join(letter if letter.isalnum() else "_" for letter in name)
    run_lm_eval(folder, f"pretrained={args.model},{settings},cache={args.work / 'drafts.sqlite'}", args)
    return folder


def main() -> None:
    """Run every row, and print the table as JSON."""
    options = parser(__doc__)
    options.add_argument("work", type=Path, help="Folder that the runs are written to.")
    options.add_argument("--model", default="bundled:aft", help="Checkpoint to evaluate (default bundled:aft).")
    options.add_argument("--task", default="aft_arith", help="Task to evaluate on (default aft_arith).")
    options.add_argument("--limit", type=int, default=4000, help="Questions to evaluate on (default 4000).")
    add_device(options)
    options.add_argument("--only", default="", help="Names of rows to run, separated by semicolons (default all).")
    options.add_argument("--rsa", action="store_true", help="Also run RSA, which takes up to 160 texts a question.")
    options.add_argument("--reward-queries", type=int, default=0, help="Train a reward model on this many queries.")
    options.add_argument("--name", default="strategies", help="Name of the JSON file (default strategies).")
    args = options.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    rows = {**RUNS, **(RSA if args.rsa else {})}
    if args.reward_queries:
        reward = reward_model(args.work, args.reward_queries, seed=0)
        rows["best of 10 by a reward model"] = f"strategy=best_of_n,k=10,reward_model={reward}"
    if args.only:
        rows = {name: rows[name] for name in ["pool", *args.only.split(";")]}
    folders = {name: evaluate(args, name, settings) for name, settings in rows.items()}
    pool, *others = folders.values()
    command = [str(BIN / "aft"), "compare", "--strategies", str(pool), *map(str, others), "--format", "json"]
    table = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    shown = {name: settings.replace(str(args.work), "WORK") for name, settings in rows.items()}
    figures = {"task": args.task, "model": args.model, "questions": args.limit, "runs": shown, "table": table}
    write(args.name, figures, args.out)


if __name__ == "__main__":
    main()
