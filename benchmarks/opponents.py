"""Fair opponents and probes on the bundled family: every row an lm-eval run, paired with its baseline by question.

Opponents at the generated tokens of AFT (5, 2): the SFT model's majority, best of n by a reward model trained here on
right and wrong drafts, beam search, and refining. Probes of AFT (5, 1): what the pass is shown. Diversity against
quality: drafts at several temperatures, and the SFT model's drafts in the place of its own.

Usage: python benchmarks/opponents.py FAMILY_FOLDER WORK [--seed 0] [--task aft_arith] [--limit 1000] [--out DIR]
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

from common import write
from family import evaluate, row

from lm_eval_aft.analysis.runs import read_entries
from lm_eval_aft.bundled import arith

OPPONENTS = {  # of AFT (5, 2), which writes 11 texts
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


def train_reward(model: Path, drafts: Path, out: Path, steps: int, seed: int) -> None:
    """A reward model from a checkpoint's weights: one output, trained to tell right drafts from wrong ones."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(seed)
    rng = random.Random(seed)
    tokenizer: Any = AutoTokenizer.from_pretrained(model)
    scorer: Any = AutoModelForSequenceClassification.from_pretrained(model, num_labels=1, dtype=torch.float32)
    rows = [json.loads(line) for line in drafts.read_text(encoding="utf-8").splitlines()]
    pool = [(row["query"], draft) for row in rows for draft in row["drafts"] if arith.parse(draft)]
    optimizer = torch.optim.AdamW(scorer.parameters(), lr=6e-4)
    for step in range(1, steps + 1):
        chosen = rng.sample(pool, 256)
        turns = [[{"role": "user", "content": q}, {"role": "assistant", "content": d}] for q, d in chosen]
        texts = [tokenizer.apply_chat_template(turn, tokenize=False) for turn in turns]
        batch = tokenizer(texts, return_tensors="pt", padding=True, return_token_type_ids=False)
        right = torch.tensor([float(arith.is_right(arith.Problem.read(q), d)) for q, d in chosen])
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("family", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--task", default="aft_arith")
    parser.add_argument("--limit", type=int, default=1000)
    parser.add_argument("--reward-steps", type=int, default=600)
    parser.add_argument("--out")
    args = parser.parse_args()
    reward = args.work / "reward"
    if not reward.is_dir():
        train_reward(
            args.family / f"sft-{args.seed}", args.family / "train.jsonl", reward, args.reward_steps, args.seed
        )

    def run(kind: str, how: str) -> Path:
        return evaluate(args.family / f"{kind}-{args.seed}", args.work, args, how.format(reward=reward))

    places = {"AFT (5, 2)": run("aft", "k=5,layers=2"), "AFT (5, 1)": run("aft", "k=5,layers=1")}
    places |= {name: run(kind, how) for name, (kind, how) in OPPONENTS.items()}
    places |= {name: run("aft", how) for name, how in PROBES.items()}
    for degrees in TEMPERATURES:
        how = f"k=5,layers=1,temperature={degrees},final_temperature=0"
        places[f"AFT (5, 1), drafts at temperature {degrees}"] = run("aft", how)
    swapped = f"k=5,layers=1,drafts_from={places['SFT, majority of 11'] / 'traces'}"
    places["AFT (5, 1), the drafts of SFT"] = run("aft", swapped)
    entries = dict(zip(places, read_entries(list(places.values())), strict=True))

    def rows(baseline: str, names: list[str]) -> list[dict[str, Any]]:
        return [row(name, entries[baseline], entries[name], args.task) for name in names]

    later = [name for name in places if name.startswith("AFT (5, 1), ") and name not in OPPONENTS]
    figures = {"task": args.task, "questions": args.limit, "training_seed": args.seed}
    figures["opponents of AFT (5, 2)"] = rows("AFT (5, 2)", ["AFT (5, 2)", *OPPONENTS])
    figures["against AFT (5, 1)"] = rows("AFT (5, 1)", ["AFT (5, 1)", *later])
    write(f"opponents-{args.task}-seed{args.seed}", figures, args.out)


if __name__ == "__main__":
    main()
