"""The four trainings on a real chat model and GSM8K, from questions to the table, by the commands a user would type.

Drafts from the model itself, at the temperature of inference; targets by the model as its own teacher, which reads the
drafts, with a verifier that lets a wrong one be repaired once and then leaves the row out, as targets are that state a
result without reasons; LoRA rank 8, the same rows for all four. Questions are asked in the words of ``aft_gsm8k`` and
solutions end as it asks. Evaluated on the first questions of the test split; ``--tokens`` bounds the texts of the
training rows, ``--answer_tokens`` those of the evaluation, which without it are as long as the task allows. With
``--engine vllm`` (run it in vLLM's environment) each adapter is merged. At full size on a GPU: --queries 7473 --limit
1319 --tokens 512 --engine vllm. What is finished is not made again.

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

from common import write
from family import diagnostics, row, vote_rows

from lm_eval_aft import tasks_path
from lm_eval_aft.analysis.runs import read_entries
from lm_eval_aft.core.jsonl import read_jsonl, write_jsonl
from trainers.settings import KINDS

BIN = Path(sys.executable).parent
PLACES = {
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
    """Run one of the environment's commands, with one thread unless OMP_NUM_THREADS says otherwise."""
    environment = {"OMP_NUM_THREADS": "1", "LMEVAL_LOG_LEVEL": "ERROR", **os.environ}
    subprocess.run([str(BIN / words[0]), *words[1:]], check=True, env=environment)


def query(doc: dict[str, Any]) -> dict[str, Any]:
    """A row of a training question: asked in the task's words, its solution ended in the form that these ask for."""
    gold = TASK["doc_to_target"](doc)
    solution = CALCULATOR.sub("", doc["answer"]).rpartition("####")[0]
    return {"query": TASK["doc_to_text"](doc), "gold": gold, "sft_target": f"{solution}The answer is {gold}."}


def make_rows(args: argparse.Namespace) -> Path:
    """Questions, drafts, targets."""
    queries, drafts, made = (args.work / f"{name}.jsonl" for name in ("queries", "drafts", "train"))
    write_jsonl(queries, map(query, read_jsonl(args.train)[: args.queries]))
    model = f"pretrained={args.model},engine={args.engine},max_gen_toks={args.tokens}{args.engine_args}"
    how = ["--device", args.device, "--batch_size", str(args.batch)]
    if not drafts.exists():
        sampled = f"{model},temperature=0.7"
        command("aft", "data", "drafts", str(queries), str(drafts), "-n", "5", "--model_args", sampled, *how)
    if not made.exists():
        words = (
            "--k",
            "5",
            "--verifier",
            "exact:",
            "--wrong",
            "repair",
            "--retries",
            "1",
            "--shortest",
            str(args.shortest),
        )
        command("aft", "data", "aggregate", str(drafts), str(made), *words, "--model_args", model, *how)
    return made


def train(kind: str, data: Path, args: argparse.Namespace) -> Path:
    """One training."""
    output = args.work / kind
    settings = {"model": args.model, "data": str(data), "output": str(output), "k": [5], "epochs": args.epochs}
    settings |= {"batch_size": 4, "max_length": 2048, "device": "cpu" if args.device == "cpu" else "auto"}
    (args.work / f"{kind}.yaml").write_text(json.dumps(settings))  # JSON is YAML
    merge = ["--merge"] if args.engine == "vllm" else []
    if not (output / "merged" / "README.md" if merge else output / "README.md").exists():  # written last
        command("aft", "train", kind, "--config", str(args.work / f"{kind}.yaml"), *merge)
    return output


def evaluate(adapter: Path, how: str, args: argparse.Namespace) -> Path:
    """One run of lm-eval."""
    folder = args.work / "runs" / f"{adapter.name}_{re.sub(r'[^a-z0-9]+', '_', how)}"
    if not list(folder.rglob("results_*.json")):
        merged = f"pretrained={adapter / 'merged'}"
        weights = merged if args.engine == "vllm" else f"pretrained={args.model},peft={adapter}"
        bounds = ("draft_max_tokens", "final_max_tokens") if args.answer_tokens else ()
        bound = "".join(f",{name}={args.answer_tokens}" for name in bounds)
        model = f"{weights},engine={args.engine},{how}{bound}{args.engine_args},record={folder / 'traces'}"
        store = f"cache={args.work / adapter.name}.sqlite"
        words = ["--model", "aft", "--model_args", f"{model},{store}", "--tasks", args.task, "--device", args.device]
        words += ["--include_path", args.include_path, "--limit", str(args.limit), "--apply_chat_template"]
        command("lm_eval", *words, "--batch_size", str(args.batch), "--output_path", str(folder), "--log_samples")
    return folder


def main() -> None:
    """Make everything and print the table as JSON."""
    parser = argparse.ArgumentParser()
    for name in ("--model", "--train", "--include_path", "--task"):
        parser.add_argument(name, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--queries", type=int, default=64)
    parser.add_argument("--limit", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=192)
    parser.add_argument("--batch", type=int, default=16, help="texts generated at once")
    parser.add_argument("--epochs", type=float, default=2.0)
    parser.add_argument(
        "--shortest", type=float, default=0.5, help="least words of a target, as a share of its drafts'"
    )
    parser.add_argument("--answer_tokens", type=int, help="bound of a text in the evaluation")
    parser.add_argument("--engine", default="hf")
    parser.add_argument("--engine_args", default="", help="further model arguments, as ,dtype=bfloat16")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    data = make_rows(args)
    models = {kind: train(kind, data, args) for kind in KINDS}
    folders = {name: evaluate(models[kind], how, args) for name, (kind, how) in PLACES.items()}
    named = dict(zip(folders, read_entries(list(folders.values())), strict=True))
    task = named["SFT, greedy"].run.tasks[0]
    rows: list[dict[str, Any]] = [row(name, named["SFT, greedy"], entry, task) for name, entry in named.items()]
    figures = {"queries": args.queries, "kept_rows": len(read_jsonl(data)), "questions": args.limit, "rows": rows}
    figures["votes"] = vote_rows("SFT", named["SFT, majority of 5"])
    figures["diagnostics"] = [diagnostics(named[name]) for name in ("SFT + Agg (5, 1)", "AFT (5, 1)")]
    write("gsm8k-training", figures, args.out)


if __name__ == "__main__":
    main()
