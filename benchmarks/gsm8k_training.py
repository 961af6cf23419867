"""The four trainings on a real chat model and GSM8K, from questions to the table, with the commands that a user types.

1. The model writes drafts at the temperature of inference.
2. The model is its own teacher: it reads the drafts and writes the target. A verifier lets it repair a wrong target
   once. A row whose target stays wrong, or states a result without reasons, is omitted.
3. LoRA adapters of rank 8 are trained on the same rows in all four ways.
4. Each adapter is evaluated on the first questions of the test split.

Questions have the words of ``aft_gsm8k``, and solutions end in the form that these ask for. A step that has finished is
not repeated. ``--engine vllm`` runs in vLLM's environment and merges each adapter. At full size on a GPU, use
``--queries 7473 --limit 1319 --tokens 512 --engine vllm``.

Usage: python benchmarks/gsm8k_training.py --model FOLDER --train train.jsonl --include_path SUITE --task NAME
           --work DIR [--queries 64 --limit 64 --tokens 192 --shortest 0.5 --answer_tokens N --batch 16
           --engine hf --engine_args ,NAME=VALUE --device cpu --epochs 2 --out DIR]
"""

from __future__ import annotations

import argparse
import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

from common import parser, write
from family import diagnostics, row, vote_rows

from lm_eval_aft import tasks_path
from lm_eval_aft.analysis.runs import read_entries
from lm_eval_aft.core.jsonl import read_jsonl, write_jsonl
from trainers.settings import KINDS

BIN = Path(sys.executable).parent
# Each row of the table: a training, and the model arguments of its evaluation.
SYSTEMS = {
    "SFT, greedy": ("sft", "k=1,layers=0"),
    "SFT + Agg (5, 1)": ("sft", "k=5,layers=1"),
    "SFT, majority of 5": ("sft", "strategy=majority,k=5"),
    "AFT, layers=0": ("aft", "k=1,layers=0"),
    "AFT (5, 1)": ("aft", "k=5,layers=1"),
    "no drafts + Agg (5, 1)": ("aft-no-drafts", "k=5,layers=1"),
    "pseudo + Agg (5, 1)": ("aft-pseudo", "k=5,layers=1"),
}
TASK = runpy.run_path(str(tasks_path() / "aft_gsm8k" / "utils.py"))
CALCULATOR = re.compile(r"<<[^>]*>>")


def command(*words: str) -> None:
    """Run a command of this environment, with one thread unless OMP_NUM_THREADS is set."""
    environment = {"OMP_NUM_THREADS": "1", "LMEVAL_LOG_LEVEL": "ERROR", **os.environ}
    subprocess.run([str(BIN / words[0]), *words[1:]], check=True, env=environment)


def query(doc: dict[str, Any]) -> dict[str, Any]:
    """A row for a training question, with the task's prompt and a solution that ends as the prompt asks."""
    gold = TASK["doc_to_target"](doc)
    solution = CALCULATOR.sub("", doc["answer"]).rpartition("####")[0]
    return {"query": TASK["doc_to_text"](doc), "gold": gold, "sft_target": f"{solution}The answer is {gold}."}


def make_rows(args: argparse.Namespace) -> Path:
    """Write questions, drafts and targets. Returns the file of the training rows."""
    queries, drafts, rows = (args.work / f"{name}.jsonl" for name in ("queries", "drafts", "train"))
    write_jsonl(queries, map(query, read_jsonl(args.train)[: args.queries]))
    model = f"pretrained={args.model},engine={args.engine},max_gen_toks={args.tokens}{args.engine_args}"
    hardware = ["--device", args.device, "--batch_size", str(args.batch)]
    if not drafts.exists():
        sampled = f"{model},temperature=0.7"
        command("aft", "data", "drafts", str(queries), str(drafts), "-n", "5", "--model_args", sampled, *hardware)
    if not rows.exists():
        words = f"--k 5 --verifier exact: --wrong repair --retries 1 --shortest {args.shortest}".split()
        command("aft", "data", "aggregate", str(drafts), str(rows), *words, "--model_args", model, *hardware)
    return rows


def train(kind: str, data: Path, args: argparse.Namespace) -> Path:
    """Train an adapter, unless it exists. Returns its folder."""
    output = args.work / kind
    settings = {"model": args.model, "data": str(data), "output": str(output), "k": [5], "epochs": args.epochs}
    settings |= {"batch_size": 4, "max_length": 2048, "device": "cpu" if args.device == "cpu" else "auto"}
    # YAML reads JSON.
    (args.work / f"{kind}.yaml").write_text(json.dumps(settings))
    merge = ["--merge"] if args.engine == "vllm" else []
    # A training writes the README last.
    if not (output / "merged" / "README.md" if merge else output / "README.md").exists():
        command("aft", "train", kind, "--config", str(args.work / f"{kind}.yaml"), *merge)
    return output


def evaluate(adapter: Path, settings: str, args: argparse.Namespace) -> Path:
    """Evaluate an adapter with the given model arguments, unless it was done before. Returns the run's folder."""
    folder = args.work / "runs" / f"{adapter.name}_{re.sub(r'[^a-z0-9]+', '_', settings)}"
    if not list(folder.rglob("results_*.json")):
        merged = f"pretrained={adapter / 'merged'}"
        weights = merged if args.engine == "vllm" else f"pretrained={args.model},peft={adapter}"
        bounds = ("draft_max_tokens", "final_max_tokens") if args.answer_tokens else ()
        bound = "".join(f",{name}={args.answer_tokens}" for name in bounds)
        model = f"{weights},engine={args.engine},{settings}{bound}{args.engine_args},record={folder / 'traces'}"
        store = f"cache={args.work / adapter.name}.sqlite"
        words = ["--model", "aft", "--model_args", f"{model},{store}", "--tasks", args.task, "--device", args.device]
        words += ["--include_path", args.include_path, "--limit", str(args.limit), "--apply_chat_template"]
        command("lm_eval", *words, "--batch_size", str(args.batch), "--output_path", str(folder), "--log_samples")
    return folder


def arguments() -> argparse.Namespace:
    """Read the command line."""
    options = parser(__doc__)
    options.add_argument("--model", required=True, help="Folder of the chat model.")
    options.add_argument("--train", required=True, help="GSM8K's train.jsonl.")
    options.add_argument("--include_path", required=True, help="Folder with the YAML file of the task.")
    options.add_argument("--task", required=True, help="Name of the task to evaluate on.")
    options.add_argument("--work", type=Path, required=True, help="Folder for rows, adapters and runs.")
    options.add_argument("--queries", type=int, default=64, help="How many training questions are used (default 64).")
    options.add_argument("--limit", type=int, default=64, help="How many test questions are used (default 64).")
    options.add_argument(
        "--tokens", type=int, default=192, help="Bound of each generation for the training rows (default 192)."
    )
    options.add_argument("--batch", type=int, default=16, help="How many texts are generated at once (default 16).")
    options.add_argument("--epochs", type=float, default=2.0, help="Epochs of each training (default 2).")
    options.add_argument(
        "--shortest",
        type=float,
        default=0.5,
        help="Fewest words of a target, as a share of the words of its drafts (default 0.5).",
    )
    options.add_argument(
        "--answer_tokens",
        type=int,
        help="Bound of each generation in the evaluation. The task sets the default.",
    )
    options.add_argument("--engine", default="hf", help="Engine that generates, hf or vllm (default hf).")
    options.add_argument(
        "--engine_args", default="", help="More model arguments, with a comma before each, such as ,dtype=bfloat16."
    )
    options.add_argument("--device", default="cpu", help="Device, such as cpu or cuda (default cpu).")
    return options.parse_args()


def main() -> None:
    """Train and evaluate everything and print the table as JSON."""
    args = arguments()
    args.work.mkdir(parents=True, exist_ok=True)
    data = make_rows(args)
    models = {kind: train(kind, data, args) for kind in KINDS}
    folders = {name: evaluate(models[kind], settings, args) for name, (kind, settings) in SYSTEMS.items()}
    entries = dict(zip(folders, read_entries(list(folders.values())), strict=True))
    greedy = entries["SFT, greedy"]
    task = greedy.run.tasks[0]
    rows: list[dict[str, Any]] = [row(name, greedy, entry, task) for name, entry in entries.items()]
    figures = {"queries": args.queries, "kept_rows": len(read_jsonl(data)), "questions": args.limit, "rows": rows}
    figures["votes"] = vote_rows("SFT", entries["SFT, majority of 5"])
    figures["diagnostics"] = [diagnostics(entries[name]) for name in ("SFT + Agg (5, 1)", "AFT (5, 1)")]
    write("gsm8k-training", figures, args.out)


if __name__ == "__main__":
    main()
