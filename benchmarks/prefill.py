"""How much faster is a prefill that the texts of a prompt share?

With the hf engine the other side is transformers' generate(num_return_sequences=k). With vLLM it is the same engine,
whose prompts differ in their first tokens, so that no text shares a prefix.

There are two cases: one prompt of at least 1,000 tokens, measured over several turns, and an aggregation layer over
GSM8K questions whose drafts the model has just written, measured once. Neither side stops at end tokens, so both write
the same number of tokens. The sides take turns after a warm-up, and the figure is the ratio of the medians.

Usage: python benchmarks/prefill.py --pretrained FOLDER --questions test.jsonl [--engine hf|vllm --device cuda
           --out benchmarks/results]
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from common import add_turns, write
from workload import engine_of, first_questions, forget_prefixes, never_stop, parser, user_turn

from lm_eval_aft.core.engine import Engine
from lm_eval_aft.core.prompts import Template, aggregate_prompt
from lm_eval_aft.core.records import Prompt, Request, Sampling
from lm_eval_aft.engines.hf.engine import HFEngine

K, NEW_TOKENS = 5, 48
# Tokens with which a prompt may begin instead of its own.
FIRST_TOKENS = 64
# Prompts of a call of generate, so 20 rows: with all 80 rows of a layer it is slower still on two cores.
GENERATE_PROMPTS = 4
SAMPLING = Sampling(temperature=0.7, top_p=0.95, top_k=0, max_tokens=NEW_TOKENS)


@dataclass(frozen=True)
class Timing:
    """Seconds of each turn of both sides."""

    ours_s: list[float]
    other_s: list[float]

    @property
    def ratio(self) -> float:
        """The median time of the other side divided by ours."""
        return statistics.median(self.other_s) / statistics.median(self.ours_s)


def ours(engine: Engine, prompts: list[Prompt]) -> int:
    """Generate k texts a prompt with the engine. Returns the number of generated tokens."""
    return written(engine, [Request(p, SAMPLING, 10 * i + j) for i, p in enumerate(prompts) for j in range(K)])


def unshared(engine: Engine, prompts: list[Prompt]) -> int:
    """The same requests, each with a prompt that begins with other tokens. Returns the number of generated tokens."""
    rows = [prompt for prompt in prompts for _ in range(K)]
    return written(engine, [Request(apart(prompt, row), SAMPLING, row) for row, prompt in enumerate(rows)])


def apart(prompt: Prompt, row: int) -> Prompt:
    """A prompt of the same length whose first two tokens stand for the number of a row."""
    first = (10 + row // FIRST_TOKENS, 10 + row % FIRST_TOKENS)
    return replace(prompt, token_ids=(*first, *(prompt.token_ids or ())[2:]), digest=f"{prompt.digest}-{row}")


def written(engine: Engine, requests: list[Request]) -> int:
    """Send requests, with an empty prefix cache. Returns the number of generated tokens."""
    forget_prefixes(engine)
    return sum(completion.generated_tokens for _, completion in engine.generate(requests))


def generate(engine: HFEngine, prompts: list[Prompt]) -> int:
    """Generate k texts a prompt with transformers, in padded batches sorted by length. Returns the generated tokens."""
    order = sorted(prompts, key=lambda prompt: prompt.prompt_tokens)
    starts = range(0, len(order), GENERATE_PROMPTS)
    return sum(generate_batch(engine, order[start : start + GENERATE_PROMPTS]) for start in starts)


def generate_batch(engine: HFEngine, prompts: list[Prompt], k: int = K, new_tokens: int = NEW_TOKENS) -> int:
    """Call generate once, for k texts a prompt. Returns the number of generated tokens."""
    longest = max(p.prompt_tokens for p in prompts)
    device = engine.model.device
    ids = torch.tensor([[0] * (longest - p.prompt_tokens) + list(p.token_ids or ()) for p in prompts])  # (batch, seq)
    mask = torch.tensor([[0] * (longest - p.prompt_tokens) + [1] * p.prompt_tokens for p in prompts])  # (batch, seq)
    output = engine.model.generate(
        ids.to(device),
        attention_mask=mask.to(device),
        do_sample=True,
        temperature=SAMPLING.temperature,
        top_p=SAMPLING.top_p,
        top_k=0,
        num_return_sequences=k,
        max_new_tokens=new_tokens,
        min_new_tokens=new_tokens,
        pad_token_id=0,
    )
    return int(output.shape[0] * (output.shape[1] - longest))


def compare(engine: Engine, prompts: list[Prompt], turns: int) -> Timing:
    """Measure both sides in turns. If there is more than one turn, the first warms up and is not counted."""
    sides: list[Callable[..., int]] = [ours, generate if isinstance(engine, HFEngine) else unshared]
    times: list[list[float]] = [[], []]
    for turn in range(turns):
        for side in (0, 1) if turn % 2 else (1, 0):
            started = time.perf_counter()
            tokens = sides[side](engine, prompts)
            if tokens != len(prompts) * K * NEW_TOKENS:
                raise SystemExit(f"{sides[side].__name__} wrote {tokens} tokens: the two sides do not do the same work")
            if turn or turns == 1:
                times[side].append(time.perf_counter() - started)
    return Timing(*times)


def layer_prompts(engine: Engine, path: str, count: int, max_tokens: int) -> list[Prompt]:
    """Aggregation prompts for the file's first questions, over drafts that the model writes."""
    chats = [user_turn(question) for question in first_questions(path, count)]
    sampling, budget = Sampling(0.7, 0.95, 0, max_tokens), engine.max_length - NEW_TOKENS
    prompts = [engine.renderer.encode(chat) for chat in chats]
    requests = [Request(p, sampling, 10 * i + j) for i, p in enumerate(prompts) for j in range(K)]
    texts = {position: completion.text for position, completion in engine.generate(requests)}
    template = Template.load(None)
    drafts = [[texts[i * K + j] for j in range(K)] for i in range(len(chats))]
    return [
        aggregate_prompt(template, engine.renderer, chat, texts_of, budget).prompt
        for chat, texts_of in zip(chats, drafts, strict=True)
    ]


def main() -> None:
    """Run both cases and write one table."""
    options = parser(__doc__, count=16, max_tokens=160, max_length=8192)
    options.add_argument("--items", type=int, default=70, help="Sentences of the long prompt (default 70).")
    add_turns(options, turns=4)
    args = options.parse_args()
    engine = engine_of(args)
    layer = layer_prompts(engine, args.questions, args.count, args.max_tokens)
    # Without stop tokens every text has NEW_TOKENS tokens.
    never_stop(engine)
    text = " ".join(
        f"Item {number} costs {number * 3} coins and weighs {number + 7} grams." for number in range(args.items)
    )
    long = [engine.renderer.encode(user_turn(text))]
    figures = {}
    # The second case needs one turn only, since the first has warmed up.
    cases = (("one long prompt", long, args.turns), (f"aggregation layer, {args.count} questions", layer, 1))
    for name, prompts, turns in cases:
        timing = compare(engine, prompts, turns)
        figures[name] = {
            "prompt_tokens": sum(p.prompt_tokens for p in prompts),
            "ours_s": [round(t, 2) for t in timing.ours_s],
            "other_s": [round(t, 2) for t in timing.other_s],
            "times_faster": round(timing.ratio, 2),
        }
    settings = {"k": K, "new_tokens": NEW_TOKENS, "engine": args.engine, "dtype": args.dtype, "device": args.device}
    other = "generate" if args.engine == "hf" else "nothing shared"
    name = "prefill" if args.engine == "hf" else f"prefill-{args.engine}"
    write(name, {**settings, "other": other, "cases": figures}, args.out)


if __name__ == "__main__":
    main()
