"""The bundled family trained further by rewards: what drafts in the prompts of ``aft train rl`` add.

Three trainings at each seed: from AFT with drafts, from SFT with drafts, and from SFT on queries alone, which is the
control. Every row of the table is a run of lm-eval, and is compared with the checkpoint that its training started from.

Usage: python benchmarks/rewards.py WORK [--seeds 0 1 2] [--limit 4000] [--against RUN ...] [--out DIR]
The files are written to WORK. A script that was stopped resumes there. It needs TRL: pip install 'lm_eval_aft[rl]'.
"""

from __future__ import annotations

import json
import os
import subprocess
from itertools import islice
from pathlib import Path
from typing import Any

from common import add_device, parser, write
from family import BIN, run_lm_eval
from family_seeds import over_seeds

from lm_eval_aft.bundled import arith
from lm_eval_aft.core.jsonl import write_jsonl

# The reward of a text is 1 if it is right.
REWARD = """from lm_eval_aft.bundled import arith


def right(text, row):
    return arith.is_right(arith.Problem.read(row["query"]), text)
"""
SHARED = {
    "reward": "arith_reward:right",
    "lora_rank": 0,
    "schedule": "linear",
    "batch_size": 128,
    "save_every": 50,
    "log_every": 10,
    "max_new_tokens": 32,
    "max_length": 512,
    "device": "cpu",
}
WITH_DRAFTS = {"k": [3, 5], "mixed": 0.8, "plain_share": 0.2}
# Settings were chosen on aft_arith_validation: 1e-4 over 100 steps did not help AFT, 5e-5 over 150 did.
TRAININGS: dict[str, dict[str, Any]] = {
    "aft-rl": {"model": "bundled:aft", "learning_rate": 5e-5, "max_steps": 150, **WITH_DRAFTS},
    "sft-rl": {"model": "bundled:sft", "learning_rate": 1e-4, "max_steps": 100, **WITH_DRAFTS},
    "sft-rl-no-drafts": {"model": "bundled:sft", "learning_rate": 1e-4, "max_steps": 100, "plain_share": 1},
}
POINTS = {"(1, 0)": "k=1,layers=0", "(5, 1)": "k=5,layers=1"}
QUERIES = 6000


def prepare(work: Path) -> None:
    """Write the reward, the queries, and five drafts of each checkpoint for each query, unless they are there."""
    (work / "arith_reward.py").write_text(REWARD)
    queries = work / "queries.jsonl"
    if not queries.exists():
        problems = islice(arith.problems("train", seed=11), QUERIES)
        rows = ({"query": problem.question, "sft_target": arith.write(way)} for problem, way in problems)
        write_jsonl(queries, rows)
    for model in ("aft", "sft"):
        drafts = work / f"drafts-{model}.jsonl"
        if not drafts.exists():
            model_args = f"pretrained=bundled:{model},max_gen_toks=32,temperature=0.7"
            command = [BIN / "aft", "data", "drafts", queries, drafts, "-n", "5", "--model_args", model_args]
            subprocess.run([*command, "--device", "cpu", "--batch_size", "128"], check=True)


def train(work: Path, name: str, seed: int) -> Path:
    """Run or resume a training, unless it is finished. Returns the folder of the checkpoint."""
    settings, output = SHARED | TRAININGS[name] | {"seed": seed}, work / f"{name}-{seed}"
    data = work / ("queries.jsonl" if settings["plain_share"] == 1 else f"drafts-{start_of(name)}.jsonl")
    if not (output / "config.json").exists():
        config = work / f"{name}-{seed}.yaml"
        # YAML reads JSON.
        config.write_text(json.dumps(settings | {"data": str(data), "output": str(output)}))
        variables = {**os.environ, "PYTHONPATH": str(work), "OMP_NUM_THREADS": "1"}
        subprocess.run([BIN / "aft", "train", "rl", "--config", config], check=True, env=variables)
    return output


def start_of(name: str) -> str:
    """The bundled checkpoint that a training starts from."""
    return str(TRAININGS[name]["model"]).removeprefix("bundled:")


def run_of(name: str, settings: str) -> str:
    """The folder of a run within WORK."""
    return f"runs/{name}_{settings.replace('=', '_').replace(',', '_')}"


def shown(run: str) -> str:
    """A run without its folder and without the place of the seed."""
    return Path(run).name.replace("-{}", "")


def evaluate(model: str, name: str, settings: str, args: Any) -> None:
    """Evaluate a checkpoint, unless it was done before."""
    model_args = f"pretrained={model},{settings},cache={args.work / 'runs' / name}.sqlite"
    run_lm_eval(args.work / run_of(name, settings), model_args, args, OMP_NUM_THREADS="1")


def main() -> None:
    """Train and evaluate, and print the table as JSON."""
    options = parser(__doc__)
    options.add_argument("work", type=Path, help="Folder that all files are written to.")
    options.add_argument("--task", default="aft_arith", help="Task to evaluate on (default aft_arith).")
    options.add_argument("--limit", type=int, default=4000, help="Problems to evaluate on (default 4000).")
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="Training seeds (default 0 1 2).")
    options.add_argument(
        "--against", type=Path, nargs="*", default=[], help="Further runs that aft-rl (5, 1) is compared with."
    )
    add_device(options)
    args = options.parse_args()
    args.work = args.work.resolve()
    args.work.mkdir(parents=True, exist_ok=True)
    prepare(args.work)
    for settings in POINTS.values():
        for kind in ("aft", "sft"):
            evaluate(f"bundled:{kind}", kind, settings, args)
        for name in TRAININGS:
            for seed in args.seeds:
                evaluate(str(train(args.work, name, seed)), f"{name}-{seed}", settings, args)
    pairs = [
        (run_of(start_of(name), settings), run_of(f"{name}-{{}}", settings))
        for name in TRAININGS
        for settings in POINTS.values()
    ]
    learnt, alone = (run_of(f"{name}-{{}}", POINTS["(5, 1)"]) for name in ("sft-rl", "sft-rl-no-drafts"))
    pairs += [(alone, learnt), *((str(run.resolve()), run_of("aft-rl-{}", POINTS["(5, 1)"])) for run in args.against)]
    rows = [
        {"system": shown(run), "against": shown(other), **over_seeds(args.work, args.seeds, other, run)}
        for other, run in pairs
    ]
    write("rewards", {"task": args.task, "training_seeds": args.seeds, "trainings": TRAININGS, "rows": rows}, args.out)


if __name__ == "__main__":
    main()
