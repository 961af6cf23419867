"""The whole comparison on a pretrained chat model, by the commands that a user types.

The stages are below. Each one starts from the files of those before it in WORK, and is not repeated once it is done.

1. ``queries`` writes the queries, and the questions to evaluate on if these are made here.
2. ``base`` teaches the form of an answer of arith, by SFT on queries of their own. Otherwise the model is the base.
3. ``drafts`` samples drafts of the base for the other queries.
4. ``targets`` chooses a right draft as the target, else the solution. Rows with neither are left out. With
   ``--set hidden=1`` the drafts that equal the target are left out of the row, so that AFT cannot learn to copy them.
5. ``reward`` trains a reward model on right and wrong drafts, unless ``reward_steps=0``.
6. ``sft`` and ``aft`` train the base on the same queries, and ``rl`` trains AFT further by rewards.
7. ``evaluate`` runs every system, and ``table`` prints the table as JSON.

The problems are those of ``pretrained_problems``. arith is evaluated on validation problems of its own, ifeval and
gsm8k on ``--questions``, a local copy of their test set, or else on the hub's. ``--set limit=100`` changes a number of
the size. The size gpu needs a GPU; tiny is a rehearsal on any checkpoint.

Usage: python benchmarks/pretrained.py MODEL WORK --problems arith|ifeval|gsm8k [--size cpu|gpu|tiny] [--stage NAME ...]
           [--set NAME=VALUE ...] [--train FILE] [--questions FILE] [--seed 0] [--bf16] [--device cpu] [--out DIR]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import pretrained_problems as problems
from common import add_device, parser, write
from family import BIN, diagnostics, row
from opponents import train_reward

from lm_eval_aft import tasks_path
from lm_eval_aft.analysis.runs import read_entries
from lm_eval_aft.core.jsonl import read_jsonl, write_jsonl
from trainers.generation.selection import verify_all
from trainers.generation.verifiers import load_verifier
from trainers.rows.row import keep_drafts

# Share of the draft sets of rewards, at least, that hold right and wrong drafts.
MIXED = 0.7


@dataclass(frozen=True)
class Size:
    """The numbers of a run.

    Attributes:
        warm, queries: Queries of the stage ``base``, and of the trainings after it.
        drafts: Drafts of each query.
        hidden: 1 if AFT's prompts never hold the draft that is the target. It needs more than k drafts of each query.
        k: Drafts in a prompt. Votes are over 2k + 1 drafts, which cost as many texts as (k, 2).
        numbers: Numbers of a problem of arith.
        epochs, rank, rate, batch: The trainings: epochs, LoRA rank, highest learning rate, examples of a step.
        rl_steps, rl_texts: Steps by rewards, and texts of each.
        reward_steps: Steps of the reward model, with ``batch`` drafts each.
        limit: Questions to evaluate on.
        generated: Texts that are generated at once.
    """

    warm: int = 800
    queries: int = 800
    drafts: int = 4
    hidden: int = 0
    k: int = 3
    numbers: int = 3
    epochs: int = 2
    rank: int = 16
    rate: float = 1e-3
    batch: int = 8
    rl_steps: int = 20
    rl_texts: int = 32
    reward_steps: int = 100
    limit: int = 541
    generated: int = 64


SIZES = {
    "cpu": Size(),
    "gpu": Size(
        **{"warm": 4000, "queries": 8000, "drafts": 10, "k": 5, "numbers": 4, "rank": 32, "rate": 5e-4, "batch": 32},
        **{"rl_steps": 300, "rl_texts": 256, "reward_steps": 500, "limit": 1319, "generated": 512},
    ),
    "tiny": Size(
        **{"warm": 4, "queries": 4, "drafts": 2, "k": 2, "epochs": 1, "rank": 2, "batch": 4},
        **{"rl_steps": 1, "rl_texts": 4, "reward_steps": 1, "limit": 2, "generated": 8},
    ),
}


class Comparison:
    """The stages of one comparison, and where their files are."""

    def __init__(self, args: argparse.Namespace, size: Size) -> None:
        """Take the options and the size."""
        # Only arith has a form of its own.
        size = size if args.problems == "arith" else replace(size, warm=0)
        self.args, self.size, self.work = args, size, args.work
        self.kind = problems.KINDS[args.problems]
        self.tokens = self.kind.tokens[args.size == "gpu"]
        self.task = f"pretrained_{args.problems}" if args.problems == "arith" or args.questions else self.kind.task
        self.more = ",dtype=bfloat16" * args.bf16 + f",{args.more}" * bool(args.more)
        self.hardware = ["--device", args.device, "--batch_size", str(size.generated)]

    def file(self, name: str) -> Path:
        """A file of rows."""
        return Path(self.work, f"{name}.jsonl")

    def model(self, name: str) -> str:
        """A checkpoint: the base, or the merged one of a training."""
        if name == "base" and not self.size.warm:
            return str(self.args.model)
        return str(self.work / name / "merged")

    def command(self, *words: object) -> None:
        """Print and run a command of this environment. Its verifiers are those of ``pretrained_problems``."""
        print("$", *words, flush=True)
        paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
        environment = {"LMEVAL_LOG_LEVEL": "ERROR", **os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
        subprocess.run([str(BIN / str(words[0])), *map(str, words[1:])], check=True, env=environment)

    def queries(self) -> None:
        """Write the queries, and the task. Contamination is printed if the questions are a local file."""
        args, size = self.args, self.size
        if not self.file("queries").exists():
            if args.problems == "gsm8k" and not args.train:
                sys.exit("--problems gsm8k needs --train, GSM8K's train.jsonl.")
            drawn = problems.rows(args.problems, "train", size.numbers, args.train, args.seed)
            write_jsonl(self.file("warm"), islice(drawn, size.warm))
            write_jsonl(self.file("queries"), islice(drawn, size.queries))
        questions = args.questions
        if args.problems == "arith":
            held_out = problems.rows("arith", "validation", size.numbers, "", 0)
            write_jsonl(self.file("validation"), islice(held_out, size.limit))
            questions = str(self.file("validation").resolve())
        if questions:
            self._write_task(questions)
        # All queries of arith have the same words, and its splits are disjoint.
        if args.questions:
            field = {"ifeval": "prompt", "gsm8k": "question"}[args.problems]
            # The checkers describe constraints in the words of IFEval. The requests before them are counted alone too.
            requests = [{"query": row["request"]} for row in read_jsonl(self.file("queries")) if "request" in row]
            write_jsonl(self.file("requests"), requests)
            for name in ("queries", "requests") if requests else ("queries",):
                self.command("aft", "data", "stats", self.file(name), "--against", questions, "--field", field)

    def _write_task(self, questions: str) -> None:
        """A copy of the shipped task that reads a local file."""
        config = {
            "include": str(tasks_path() / self.kind.task / f"{self.kind.task}.yaml"),
            "task": self.task,
            **{"dataset_path": "json", "dataset_name": None, "custom_dataset": None, "test_split": "test"},
            "dataset_kwargs": {"data_files": {"test": questions}},
        }
        if self.args.problems == "arith":
            config["doc_to_text"] = "query"
        folder = self.work / "tasks"
        folder.mkdir(exist_ok=True)
        # YAML reads JSON.
        (folder / f"{self.task}.yaml").write_text(json.dumps(config))

    def base(self) -> None:
        """Teach the form of an answer."""
        if self.size.warm:
            self._train("base", "sft", self.args.model, self.file("warm"))

    def drafts(self) -> None:
        """Sample drafts at the temperature of inference."""
        source, out = self.file("queries"), self.file("drafts")
        if not out.exists():
            model = f"pretrained={self.model('base')},max_gen_toks={self.tokens},temperature=0.7,seed={self.args.seed}"
            count = ["-n", self.size.drafts, "--model_args", model + self.more]
            self.command("aft", "data", "drafts", source, out, *count, *self.hardware)

    def targets(self) -> None:
        """Choose a target for each row of drafts."""
        rng, rows = random.Random(self.args.seed), []
        for drawn in verify_all(read_jsonl(self.file("drafts")), load_verifier(self.kind.verifier)):
            right = [draft for draft, is_right in zip(drawn["drafts"], drawn["right"], strict=True) if is_right]
            target = rng.choice(right) if right else drawn.get("sft_target")
            if target:
                rows.append(drawn | {"target": target})
        if self.size.hidden:
            found, rows = len(rows), without_target(rows, self.size.k)
            print(f"left out: {found - len(rows)} rows with fewer than {self.size.k} drafts that are not the target")
        good = sum(sum(drawn["right"]) for drawn in rows)
        print(f"{len(rows)} rows with a target; {good} of {sum(len(drawn['drafts']) for drawn in rows)} drafts right")
        write_jsonl(self.file("targets"), rows)

    def reward(self) -> None:
        """Train the reward model of best of n."""
        folder, steps = self.work / "reward", self.size.reward_steps
        if steps and not folder.is_dir():
            graded = [
                (drawn["query"], draft, bool(is_right))
                for drawn in verify_all(read_jsonl(self.file("drafts")), load_verifier(self.kind.verifier))
                for draft, is_right in zip(drawn["drafts"], drawn["right"], strict=True)
            ]
            batch = min(self.size.batch, len(graded))
            train_reward(Path(self.model("base")), graded, folder, steps, self.args.seed, batch, 2e-5)

    def sft(self) -> None:
        """Train on solutions."""
        self._train("sft", "sft", self.model("base"), self.file("targets"))

    def aft(self) -> None:
        """Train on drafts and targets."""
        self._train("aft", "aft", self.model("base"), self.file("targets"), k=[self.size.k], sets_per_query=1)

    def rl(self) -> None:
        """Train AFT further by rewards, on the drafts of the base."""
        size = self.size
        if not size.rl_steps:
            return
        batch = min(size.batch, size.rl_texts)
        more = {"batch_size": batch, "accumulate": size.rl_texts // batch, "generations": min(8, size.rl_texts)}
        more |= {"reward": self.kind.verifier, "k": [size.k], "mixed": MIXED, "max_new_tokens": self.tokens}
        more |= {"learning_rate": size.rate / 20, "schedule": "constant", "max_steps": size.rl_steps}
        self._train("rl", "rl", self.model("aft"), self.file("drafts"), **more)

    def _train(self, name: str, kind: str, model: object, data: Path, **more: Any) -> None:
        """Train an adapter and merge it. ``aft train`` itself leaves a finished run as it is."""
        size, args = self.size, self.args
        settings = {"model": str(model), "data": str(data), "output": str(self.work / name), "seed": args.seed}
        settings |= {"lora_rank": size.rank, "lora_alpha": 2 * size.rank, "learning_rate": size.rate}
        settings |= {
            "epochs": size.epochs,
            "batch_size": size.batch,
            "device": "cpu" if args.device == "cpu" else "auto",
        }
        settings |= {"bf16": args.bf16, "log_every": 5, "max_length": (size.k + 1) * self.tokens + 768} | more
        (self.work / f"{name}.yaml").write_text(json.dumps(settings))
        self.command("aft", "train", kind, "--config", self.work / f"{name}.yaml", "--merge")

    def systems(self) -> dict[str, tuple[str, str]]:
        """Each row of the table: a checkpoint, and the model arguments of its run."""
        k, reward = self.size.k, self.work / "reward"
        pool = f"strategy={'majority' if self.kind.has_votes else 'mbr'},k={2 * k + 1}"
        rsa = f"k={k + 1},subset={k - 1},layers=2" + ",strategy=rsa" * self.kind.has_votes
        found = {}
        for name, shown in {"base": "base", "sft": "SFT", "aft": "AFT", "rl": "RL"}.items():
            found |= {
                f"{shown}, greedy": (name, "k=1,layers=0"),
                f"{shown}, pool of {2 * k + 1}": (name, pool),
                f"{shown} ({k}, 1)": (name, f"k={k},layers=1"),
                f"{shown} ({k}, 2)": (name, f"k={k},layers=2"),
            }
        found[f"base, RSA ({k + 1}, 2), subsets of {k - 1}"] = ("base", rsa)
        if reward.is_dir():
            found[f"SFT, best of {2 * k}"] = ("sft", f"strategy=best_of_n,k={2 * k},reward_model={reward}")
        trained = {name for name in ("base", "sft", "aft", "rl") if Path(self.model(name)).is_dir()}
        trained |= set() if self.size.warm else {"base"}
        return {name: system for name, system in found.items() if system[0] in trained}

    def evaluate(self) -> None:
        """Run every system that is trained. The runs of one checkpoint share a draft store."""
        for name, (model, settings) in self.systems().items():
            folder = self._folder(name)
            if list(folder.rglob("results_*.json")):
                continue
            bounds = f"draft_max_tokens={self.tokens},final_max_tokens={self.tokens}"
            files = f"cache={self.work / model}.sqlite,record={folder / 'traces'}"
            words = f"pretrained={self.model(model)},{settings},{bounds},{files}{self.more}"
            options = ["--tasks", self.task, "--limit", self.size.limit, "--output_path", folder, *self.hardware]
            if self.task.startswith("pretrained"):
                options += ["--include_path", self.work / "tasks"]
            self.command(
                "lm_eval", "--model", "aft", "--model_args", words, *options, "--apply_chat_template", "--log_samples"
            )

    def _folder(self, name: str) -> Path:
        return Path(self.work, "runs", "".join(letter if letter.isalnum() else "_" for letter in name))

    def table(self) -> None:
        """Print every row: interval, cost, and the paired difference from a single answer of SFT, or else the base."""
        folders = {name: self._folder(name) for name in self.systems()}
        finished = {name: folder for name, folder in folders.items() if list(folder.rglob("results_*.json"))}
        entries = dict(zip(finished, read_entries(list(finished.values())), strict=True))
        greedy = entries.get("SFT, greedy") or entries["base, greedy"]
        task = greedy.run.tasks[0]
        figures: dict[str, Any] = {"problems": self.args.problems, "seed": self.args.seed, "size": asdict(self.size)}
        figures["rows"] = [row(name, greedy, entry, task) for name, entry in entries.items()]
        if self.kind.has_votes:
            figures["at equal tokens"] = self._at_equal_tokens(finished)
        figures["diagnostics"] = {name: diagnostics(entry) for name, entry in entries.items() if ", 1)" in name}
        write(f"pretrained-{self.args.problems}-seed{self.args.seed}", figures, self.args.out)

    def _at_equal_tokens(self, folders: dict[str, Path]) -> dict[str, Any]:
        """The runs of each checkpoint and the votes over its drafts, each beside the vote at equal tokens."""
        tables = {}
        for pool in (name for name in folders if "pool" in name):
            shown = pool.partition(",")[0]
            others = [folder for name, folder in folders.items() if name.startswith(shown) and name != pool]
            command = [BIN / "aft", "compare", "--strategies", folders[pool], *others, "--format", "json"]
            done = subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True)
            tables[shown] = json.loads(done.stdout)
        return tables


STAGES = {
    "queries": Comparison.queries,
    "base": Comparison.base,
    "drafts": Comparison.drafts,
    "targets": Comparison.targets,
    "reward": Comparison.reward,
    "sft": Comparison.sft,
    "aft": Comparison.aft,
    "rl": Comparison.rl,
    "evaluate": Comparison.evaluate,
    "table": Comparison.table,
}


def without_target(rows: list[dict[str, Any]], k: int) -> list[dict[str, Any]]:
    """The rows without the drafts that equal the target, white space aside. Rows with too few others are left out."""
    kept = []
    for drawn in rows:
        words = drawn["target"].split()
        others = [place for place, draft in enumerate(drawn["drafts"]) if draft.split() != words]
        if len(others) >= k:
            kept.append(keep_drafts(drawn, others))
    return kept


def sized(size: Size, changes: list[str]) -> Size:
    """The size with some numbers replaced by ``NAME=VALUE``."""
    for change in changes:
        name, _, value = change.partition("=")
        numbers = asdict(size)
        if name not in numbers:
            sys.exit(f"--set {change} is not allowed: the numbers are {', '.join(numbers)}.")
        size = replace(size, **{name: type(numbers[name])(value)})
    return size


def main() -> None:
    """Run the stages."""
    options = parser(__doc__)
    options.add_argument("model", help="Folder or hub name of the chat model.")
    options.add_argument("work", type=Path, help="Folder that everything is written to.")
    options.add_argument("--problems", choices=problems.KINDS, default="arith", help="Problems (default arith).")
    options.add_argument("--size", choices=SIZES, default="cpu", help="Numbers of the run (default cpu).")
    options.add_argument("--stage", choices=STAGES, nargs="+", default=STAGES, help="Stages to run (default all).")
    options.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="A number of the size.")
    options.add_argument("--train", default="", help="GSM8K's train.jsonl.")
    options.add_argument("--questions", help="Local JSONL file of the test set of ifeval or gsm8k.")
    options.add_argument("--seed", type=int, default=0, help="Seed of queries, trainings and drafts (default 0).")
    options.add_argument("--bf16", action="store_true", help="Train and generate in bfloat16.")
    add_device(options)
    args = options.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    comparison = Comparison(args, sized(SIZES[args.size], args.set))
    for name, stage in STAGES.items():
        if name in args.stage:
            stage(comparison)


if __name__ == "__main__":
    main()
