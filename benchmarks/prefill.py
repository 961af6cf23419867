"""Shared prefill against transformers' generate(num_return_sequences=k), on the same prompts and token counts.

Two cases: one prompt of at least 1,000 tokens (several turns), and an aggregation layer over real GSM8K questions
whose drafts the model has just written (one turn). End tokens are ignored on both sides, so both write exactly the
same number of tokens. The two sides take turns, after a warm-up of each; the figure is the ratio of the medians.

Usage: python benchmarks/prefill.py --pretrained FOLDER --questions test.jsonl [--out benchmarks/results]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from common import write

from lm_eval_aft.core.engine import HostArgs
from lm_eval_aft.core.prompts import Template, aggregate_prompt
from lm_eval_aft.core.records import Chat, Message, Prompt, Request, Sampling
from lm_eval_aft.engines.hf.engine import HFEngine

K, NEW_TOKENS = 5, 48
GENERATE_PROMPTS = 4  # 20 rows a call: with all 80 rows of the layer at once generate is slower still on two cores
SAMPLING = Sampling(temperature=0.7, top_p=0.95, top_k=0, max_tokens=NEW_TOKENS)


@dataclass(frozen=True)
class Timing:
    """Seconds of each turn."""

    ours_s: list[float]
    generate_s: list[float]

    @property
    def ratio(self) -> float:
        """How many times faster we are."""
        return statistics.median(self.generate_s) / statistics.median(self.ours_s)


def ours(engine: HFEngine, prompts: list[Prompt]) -> int:
    """Run our decode loop; returns tokens written."""
    requests = [Request(p, SAMPLING, 10 * i + j) for i, p in enumerate(prompts) for j in range(K)]
    return sum(completion.generated_tokens for _, completion in engine.generate(requests))


def generate(engine: HFEngine, prompts: list[Prompt]) -> int:
    """Run transformers' generate in padded batches, sorted by length; returns tokens written."""
    order = sorted(prompts, key=lambda prompt: prompt.prompt_tokens)
    starts = range(0, len(order), GENERATE_PROMPTS)
    return sum(generate_batch(engine, order[start : start + GENERATE_PROMPTS]) for start in starts)


def generate_batch(engine: HFEngine, prompts: list[Prompt]) -> int:
    """One call of generate."""
    longest = max(p.prompt_tokens for p in prompts)
    ids = torch.tensor([[0] * (longest - p.prompt_tokens) + list(p.token_ids or ()) for p in prompts])
    mask = torch.tensor([[0] * (longest - p.prompt_tokens) + [1] * p.prompt_tokens for p in prompts])
    output = engine.model.generate(
        ids,
        attention_mask=mask,
        do_sample=True,
        temperature=SAMPLING.temperature,
        top_p=SAMPLING.top_p,
        top_k=0,
        num_return_sequences=K,
        max_new_tokens=NEW_TOKENS,
        min_new_tokens=NEW_TOKENS,
        pad_token_id=0,
    )
    return int(output.shape[0] * (output.shape[1] - longest))


def compare(engine: HFEngine, prompts: list[Prompt], turns: int) -> Timing:
    """Let both sides take turns; with more than one turn the first warms up and is not counted."""
    sides: list[Callable[[HFEngine, list[Prompt]], int]] = [ours, generate]
    times: list[list[float]] = [[], []]
    for turn in range(turns):
        for side in (0, 1) if turn % 2 else (1, 0):
            started = time.perf_counter()
            written = sides[side](engine, prompts)
            if written != len(prompts) * K * NEW_TOKENS:
                raise SystemExit(
                    f"{sides[side].__name__} wrote {written} tokens: the two sides do not do the same work"
                )
            if turn or turns == 1:
                times[side].append(time.perf_counter() - started)
    return Timing(*times)


def layer_prompts(engine: HFEngine, path: str, count: int) -> list[Prompt]:
    """Aggregation prompts over drafts that the model writes for real questions."""
    with open(path, encoding="utf-8") as lines:
        chats = [
            Chat((Message("user", json.loads(line)["question"]),)) for _, line in zip(range(count), lines, strict=False)
        ]
    sampling = Sampling(0.7, 0.95, 0, 160)
    prompts = [engine.renderer.encode(chat) for chat in chats]
    requests = [Request(p, sampling, 10 * i + j) for i, p in enumerate(prompts) for j in range(K)]
    texts = {position: completion.text for position, completion in engine.generate(requests)}
    template = Template.load(None)
    drafts = [[texts[i * K + j] for j in range(K)] for i in range(len(chats))]
    return [aggregate_prompt(template, engine.renderer, c, d, 8000).prompt for c, d in zip(chats, drafts, strict=True)]


def main() -> None:
    """Run both cases and write one table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--pretrained", required=True)
    parser.add_argument("--questions", required=True, help="GSM8K's test.jsonl")
    parser.add_argument("--count", type=int, default=16)
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--out")
    args = parser.parse_args()
    engine = HFEngine.load({"pretrained": args.pretrained, "dtype": "bfloat16"}, HostArgs("auto", None, "cpu"))
    layer = layer_prompts(engine, args.questions, args.count)
    engine.stop_ids = frozenset()  # write NEW_TOKENS whatever the text
    text = " ".join(f"Item {number} costs {number * 3} coins and weighs {number + 7} grams." for number in range(70))
    long = [engine.renderer.encode(Chat((Message("user", text),)))]
    figures = {}
    cases = (("one long prompt", long, args.turns), (f"aggregation layer, {args.count} questions", layer, 1))
    for name, prompts, turns in cases:  # the first case has warmed up what the second needs
        timing = compare(engine, prompts, turns)
        figures[name] = {
            "prompt_tokens": sum(p.prompt_tokens for p in prompts),
            "ours_s": [round(t, 2) for t in timing.ours_s],
            "generate_s": [round(t, 2) for t in timing.generate_s],
            "times_faster": round(timing.ratio, 2),
        }
    write(
        "prefill", {"k": K, "new_tokens": NEW_TOKENS, "dtype": "bfloat16", "device": "cpu", "cases": figures}, args.out
    )


if __name__ == "__main__":
    main()
