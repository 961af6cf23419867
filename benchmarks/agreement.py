"""Do the hf engine, vLLM and a vLLM server render the same prompts and write the same greedy texts?

Each question gives two prompts: one for a draft, and one for an aggregation over two drafts that the hf engine wrote.
The prompts are compared token by token. The greedy texts are compared for each pair of engines; every text that differs
is reported with the first token that differs.

In float32 the texts should be equal. In bfloat16 the engines round differently, which is enough to change a text where
two tokens are almost equally likely.

Usage: python benchmarks/agreement.py --pretrained FOLDER --questions test.jsonl [--server URL --served NAME]
           [--dtype float32] [--count 8] [--out benchmarks/results]
The server must run the same folder and dtype (docs/engines.md has the command).
"""

from __future__ import annotations

import argparse
from itertools import combinations
from pathlib import Path
from typing import Any

import requests
from common import parser, write
from workload import first_questions, user_turn

from lm_eval_aft.core.engine import Engine, HostArgs
from lm_eval_aft.core.prompts import Template, aggregate_prompt, draft_prompt
from lm_eval_aft.core.records import Chat, Completion, Prompt, Request, Sampling
from lm_eval_aft.engines.hf.engine import HFEngine
from lm_eval_aft.engines.registry import load_engine

# Bound of a prompt in tokens.
PROMPT_TOKENS = 1500


def arguments() -> argparse.Namespace:
    """Read the command line."""
    options = parser(__doc__)
    options.add_argument("--pretrained", required=True, help="Folder of the checkpoint.")
    options.add_argument("--questions", required=True, help="JSON lines file with a field `question`.")
    options.add_argument("--dtype", default="float32", help="Type of the weights (default float32).")
    options.add_argument("--count", type=int, default=8, help="How many questions are used; each gives two prompts.")
    options.add_argument("--max-tokens", type=int, default=32, help="Bound of each text in tokens (default 32).")
    options.add_argument("--server", help="Address of a server, up to and with /v1. Without it, no server is compared.")
    options.add_argument("--served", help="Name under which the server serves the model.")
    return options.parse_args()


def greedy(engine: Engine, prompts: list[Prompt], max_tokens: int) -> list[Completion]:
    """One greedy completion for each prompt, in the order of the prompts."""
    layer = [Request(prompt, Sampling(0.0, 1.0, 0, max_tokens), 0) for prompt in prompts]
    return [completion for _, completion in sorted(engine.generate(layer), key=lambda pair: pair[0])]


def prompts_of(hf: HFEngine, questions: list[str], max_tokens: int) -> list[Prompt]:
    """Draft prompts, then aggregation prompts over two greedy drafts of different lengths."""
    template = Template.load(None)
    chats = [user_turn(question) for question in questions]
    drafts = [draft_prompt(template, hf.renderer, chat, PROMPT_TOKENS).prompt for chat in chats]
    written = zip(greedy(hf, drafts, max_tokens), greedy(hf, drafts, max_tokens // 2), strict=True)
    merged = [
        aggregate_prompt(template, hf.renderer, chat, [long.text, short.text], PROMPT_TOKENS, final=True).prompt
        for chat, (long, short) in zip(chats, written, strict=True)
    ]
    return drafts + merged


def tokens_at_server(server: str, model: str, chat: Chat) -> tuple[int, ...]:
    """The token ids that vLLM's server makes of a chat."""
    rows = [message.to_dict() for message in chat.messages]
    body = {"model": model, "messages": rows, "add_generation_prompt": True}
    reply = requests.post(server.removesuffix("/v1") + "/tokenize", json=body, timeout=60)
    return tuple(reply.json()["tokens"])


def compare(completions: dict[str, list[Completion]]) -> list[dict[str, Any]]:
    """A row for each pair of engines: how many texts and token ids are equal, and the texts that are not.

    Texts and token ids are counted apart, because a server may omit an incomplete character at the end of a cut text.
    """
    rows = []
    for one, other in combinations(completions, 2):
        pairs = list(zip(completions[one], completions[other], strict=True))
        differing = [
            {
                "prompt": number,
                "parts_at_token": _first_difference(a.token_ids, b.token_ids),
                one: a.text,
                other: b.text,
            }
            for number, (a, b) in enumerate(pairs)
            if a.text != b.text
        ]
        equal = {
            "texts": sum(a.text == b.text for a, b in pairs),
            "token_ids": sum(a.token_ids == b.token_ids for a, b in pairs),
        }
        rows.append({"pair": f"{one} and {other}", "of": len(pairs), "equal": equal, "differing": differing})
    return rows


def _first_difference(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    """Position of the first token that differs; the shorter length if there is none."""
    pairs = zip(one, other, strict=False)
    return next((number for number, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def main() -> None:
    """Run all engines and write the table."""
    args = arguments()
    folder = str(Path(args.pretrained).expanduser())
    questions = first_questions(args.questions, args.count)
    settings = {"pretrained": folder, "dtype": args.dtype}
    hf = HFEngine.load({**settings, "max_length": 2048}, HostArgs("auto", None, "cpu"))
    prompts = prompts_of(hf, questions, args.max_tokens)
    vllm = load_engine("vllm", {**settings, "max_model_len": 2048}, HostArgs())
    completions = {name: greedy(engine, prompts, args.max_tokens) for name, engine in (("hf", hf), ("vllm", vllm))}
    same = {"hf and vllm": sum(vllm.renderer.encode(p.chat).token_ids == p.token_ids for p in prompts)}
    if args.server:
        with_ids = {"return_token_ids": True}
        server = {"base_url": args.server, "model": args.served, "tokenizer": folder, "extra_body": with_ids}
        completions["server"] = greedy(load_engine("api", server, HostArgs()), prompts, args.max_tokens)
        rendered = [tokens_at_server(args.server, args.served, p.chat) for p in prompts]
        same["hf and server"] = sum(ids == p.token_ids for ids, p in zip(rendered, prompts, strict=True))
    figures = {
        "dtype": args.dtype,
        "max_tokens": args.max_tokens,
        "engines": {"vllm": dict(vllm.info)},
        "prompts": len(prompts),
        "identical_prompts": same,
        "greedy_texts": compare(completions),
    }
    write(f"agreement-{Path(folder).name}-{args.dtype}", figures, args.out)


if __name__ == "__main__":
    main()
