"""How much faster is our shared prefill than transformers' generate(num_return_sequences=k)?

There are two cases: one prompt of at least 1,000 tokens, measured over several turns, and an aggregation layer over
GSM8K questions whose drafts the model has just written, measured once. Neither side stops at end tokens, so both write
the same number of tokens. The sides take turns after a warm-up, and the figure is the ratio of the medians.

Usage: python benchmarks/prefill.py --pretrained FOLDER --questions test.jsonl [--out benchmarks/results]
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from common import add_turns, parser, write
from workload import first_questions, user_turn

from lm_eval_aft.core.engine import HostArgs
from lm_eval_aft.core.prompts import Template, aggregate_prompt
from lm_eval_aft.core.records import Prompt, Request, Sampling
from lm_eval_aft.engines.hf.engine import HFEngine

K, NEW_TOKENS = 5, 48
# Prompts of a call of generate, so 20 rows: with all 80 rows of a layer it is slower still on two cores.
GENERATE_PROMPTS = 4
SAMPLING = Sampling(temperature=0.7, top_p=0.95, top_k=0, max_tokens=NEW_TOKENS)


@dataclass(frozen=True)
class Timing:
    """Seconds of each turn of both sides."""

    ours_s: list[float]
    generate_s: list[float]

    @property
    def ratio(self) -> float:
        """The median time of generate divided by ours."""
        return statistics.median(self.generate_s) / statistics.median(self.ours_s)


def ours(engine: HFEngine, prompts: list[Prompt]) -> int:
    """Generate k texts a prompt with the engine. Returns the number of generated tokens."""
    requests = [Request(p, SAMPLING, 10 * i + j) for i, p in enumerate(prompts) for j in range(K)]
    return sum(completion.generated_tokens for _, completion in engine.generate(requests))


def generate(engine: HFEngine, prompts: list[Prompt]) -> int:
    """Generate k texts a prompt with transformers, in padded batches sorted by length. Returns the generated tokens."""
    order = sorted(prompts, key=lambda prompt: prompt.prompt_tokens)
    starts = range(0, len(order), GENERATE_PROMPTS)
    return sum(generate_batch(engine, order[start : start + GENERATE_PROMPTS]) for start in starts)


def generate_batch(engine: HFEngine, prompts: list[Prompt]) -> int:
    """Call generate once. Returns the number of generated tokens."""
    longest = max(p.prompt_tokens for p in prompts)
    ids = torch.tensor([[0] * (longest - p.prompt_tokens) + list(p.token_ids or ()) for p in prompts])  # (batch, seq)
    mask = torch.tensor([[0] * (longest - p.prompt_tokens) + [1] * p.prompt_tokens for p in prompts])  # (batch, seq)
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
    """Measure both sides in turns. If there is more than one turn, the first warms up and is not counted."""
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
    """Aggregation prompts for the file's first questions, over drafts that the model writes."""
    chats = [user_turn(question) for question in first_questions(path, count)]
    sampling = Sampling(0.7, 0.95, 0, 160)
    prompts = [engine.renderer.encode(chat) for chat in chats]
    requests = [Request(p, sampling, 10 * i + j) for i, p in enumerate(prompts) for j in range(K)]
    texts = {position: completion.text for position, completion in engine.generate(requests)}
    template = Template.load(None)
    drafts = [[texts[i * K + j] for j in range(K)] for i in range(len(chats))]
    return [aggregate_prompt(template, engine.renderer, c, d, 8000).prompt for c, d in zip(chats, drafts, strict=True)]


def main() -> None:
    """Run both cases and write one table."""
    options = parser(__doc__)
    options.add_argument("--pretrained", required=True, help="Folder of the checkpoint.")
    options.add_argument(
        "--questions", required=True, help="JSON lines file with a field `question`, such as GSM8K's test.jsonl."
    )
    options.add_argument("--count", type=int, default=16, help="Questions of the aggregation layer (default 16).")
    add_turns(options, turns=4)
    args = options.parse_args()
    engine = HFEngine.load({"pretrained": args.pretrained, "dtype": "bfloat16"}, HostArgs("auto", None, "cpu"))
    layer = layer_prompts(engine, args.questions, args.count)
    # Without stop tokens every text has NEW_TOKENS tokens.
    engine.stop_ids = frozenset()
    text = " ".join(f"Item {number} costs {number * 3} coins and weighs {number + 7} grams." for number in range(70))
    long = [engine.renderer.encode(user_turn(text))]
    figures = {}
    # The second case needs one turn only, since the first has warmed up.
    cases = (("one long prompt", long, args.turns), (f"aggregation layer, {args.count} questions", layer, 1))
    for name, prompts, turns in cases:
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
