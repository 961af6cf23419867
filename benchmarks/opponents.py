"""Baselines and probes on the bundled family: every row is a run of lm-eval, paired by question with AFT.

- Baselines that generate as many tokens as AFT (5, 2): majority vote, best of n, beam search and refinement. The reward
  model of best of n is trained here on right and wrong drafts.
- Probes of AFT (5, 1), which change the drafts in its prompt.
- Diversity and quality of the drafts: several temperatures, and the SFT model's drafts instead of its own.

Usage: python benchmarks/opponents.py FAMILY WORK [--seed 0] [--task aft_arith] [--limit 1000] [--out DIR]
FAMILY is the output folder of ``trainers.family``; the runs are written to WORK.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import add_device, parser, write
from family import evaluate, row

from lm_eval_aft.analysis.runs import read_entries
from lm_eval_aft.bundled import arith

# Baselines of AFT (5, 2), which generates 11 texts: a model, and the model arguments of its run.
BASELINES = {
    "SFT, greedy": ("sft", "k=1,layers=0"),
    "SFT, majority of 11": ("sft", "strategy=majority,k=11"),
    "SFT, best of 10 by the reward model": ("sft", "strategy=best_of_n,k=10,reward_model={reward}"),
    "SFT, beam of 11": ("sft", "strategy=beam,k=11"),
    "SFT, refined 10 times": ("sft", "strategy=refine,layers=10"),
    "AFT, majority of 11": ("aft", "strategy=majority,k=11"),
    "AFT, best of 10 by the reward model": ("aft", "strategy=best_of_n,k=10,reward_model={reward}"),
    "AFT, beam of 11": ("aft", "strategy=beam,k=11"),
    "AFT, refined 10 times": ("aft", "strategy=refine,layers=10"),
    "AFT (5, 1), then a vote of 5": ("aft", "strategy=majority,k=5,layers=2"),
}
PROBES = {f"AFT (5, 1), {probe}": f"k=5,layers=1,probe={probe}" for probe in ("shuffle", "wrong", "empty", "repeat")}
TEMPERATURES = (0.3, 0.5, 1.0, 1.4)


def arith_drafts(drafts: Path) -> list[tuple[str, str, bool]]:
    """Query, draft and grade of each draft of a JSON lines file that has the form of an answer."""
    rows = [json.loads(line) for line in drafts.read_text(encoding="utf-8").splitlines()]
    pool = [(row["query"], draft) for row in rows for draft in row["drafts"] if arith.parse(draft)]
    return [(query, draft, arith.solves(draft, query)) for query, draft in pool]


def train_reward(
    model: Path,
    graded: Sequence[tuple[str, str, bool]],
    out: Path,
    steps: int,
    seed: int,
    size: int = 256,
    rate: float = 6e-4,
) -> None:
    """Train a reward model with one output on the weights of a checkpoint, to tell right drafts from wrong ones.

    Args:
        model: Folder of the checkpoint.
        graded: Query, draft, and whether it is right.
        out: Folder that the reward model is written to.
        steps: Training steps.
        seed: Seed of the output layer and of the batches.
        size: Drafts of a step.
        rate: Learning rate.
    """
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(seed)
    rng = random.Random(seed)
    tokenizer: Any = AutoTokenizer.from_pretrained(model)
    scorer: Any = AutoModelForSequenceClassification.from_pretrained(model, num_labels=1, dtype=torch.float32)
    optimizer = torch.optim.AdamW(scorer.parameters(), lr=rate)
    for step in range(1, steps + 1):
        chosen = rng.sample(graded, size)
        chats = [[{"role": "user", "content": q}, {"role": "assistant", "content": d}] for q, d, _ in chosen]
        texts = [tokenizer.apply_chat_template(chat, tokenize=False) for chat in chats]
        batch = tokenizer(texts, return_tensors="pt", padding=True, return_token_type_ids=False)
        right = torch.tensor([float(is_right) for *_, is_right in chosen])
        logits = scorer(**batch).logits[:, 0]  # (batch,)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, right)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 100 == 0:
            accuracy = ((logits > 0) == (right > 0)).float().mean()
            print(f"reward model, step {step}: loss {loss:.3f}, accuracy {accuracy:.3f}", flush=True)
    scorer.save_pretrained(out)
    tokenizer.save_pretrained(out)


def main() -> None:
    """Run every row and print the tables as JSON."""
    options = parser(__doc__)
    options.add_argument("family", type=Path, help="Output folder of `python -m trainers.family`.")
    options.add_argument("work", type=Path, help="Folder that the reward model and the runs are written to.")
    options.add_argument("--seed", type=int, default=0, help="Training seed of the checkpoints (default 0).")
    options.add_argument("--task", default="aft_arith", help="Task to evaluate on (default aft_arith).")
    options.add_argument("--limit", type=int, default=1000, help="Problems to evaluate on (default 1000).")
    options.add_argument(
        "--reward-steps", type=int, default=600, help="Training steps of the reward model (default 600)."
    )
    add_device(options)
    args = options.parse_args()
    reward = args.work / "reward"
    if not reward.is_dir():
        train_reward(
            args.family / f"sft-{args.seed}",
            arith_drafts(args.family / "train.jsonl"),
            reward,
            args.reward_steps,
            args.seed,
        )

    def run(kind: str, settings: str) -> Path:
        return evaluate(args.family / f"{kind}-{args.seed}", args.work, args, settings.format(reward=reward))

    runs = {"AFT (5, 2)": run("aft", "k=5,layers=2"), "AFT (5, 1)": run("aft", "k=5,layers=1")}
    runs |= {name: run(kind, settings) for name, (kind, settings) in BASELINES.items()}
    runs |= {name: run("aft", settings) for name, settings in PROBES.items()}
    for temperature in TEMPERATURES:
        settings = f"k=5,layers=1,temperature={temperature},final_temperature=0"
        runs[f"AFT (5, 1), drafts at temperature {temperature}"] = run("aft", settings)
    swapped = f"k=5,layers=1,drafts_from={runs['SFT, majority of 11'] / 'traces'}"
    runs["AFT (5, 1), the drafts of SFT"] = run("aft", swapped)
    entries = dict(zip(runs, read_entries(list(runs.values())), strict=True))

    def rows(baseline: str, names: list[str]) -> list[dict[str, Any]]:
        return [row(name, entries[baseline], entries[name], args.task) for name in names]

    variants = [name for name in runs if name.startswith("AFT (5, 1), ") and name not in BASELINES]
    figures = {"task": args.task, "questions": args.limit, "training_seed": args.seed}
    figures["opponents of AFT (5, 2)"] = rows("AFT (5, 2)", ["AFT (5, 2)", *BASELINES])
    figures["against AFT (5, 1)"] = rows("AFT (5, 1)", ["AFT (5, 1)", *variants])
    write(f"opponents-{args.task}-seed{args.seed}", figures, args.out)


if __name__ == "__main__":
    main()
