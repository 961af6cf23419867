"""Do the engines agree? Rendered prompts token for token, and greedy texts, of hf, vLLM and a vLLM server.

Every question gives two prompts: a draft's, and an aggregation's over drafts that the hf engine has just written.
Prompts must be identical; texts are compared pair by pair, and those that differ are counted and shown with the token
at which they part. In fp32 they should agree; in bf16 engines round differently, and a near tie is enough to part.

Usage: python benchmarks/agreement.py --pretrained FOLDER --questions test.jsonl [--server URL --served NAME]
           [--dtype float32] [--count 8] [--out benchmarks/results]
The server must run the same folder and dtype (docs/engines.md has the command).
"""

from __future__ import annotations

import argparse
import json
from itertools import combinations
from pathlib import Path
from typing import Any

import requests
from common import write

from lm_eval_aft.core.engine import Engine, HostArgs
from lm_eval_aft.core.prompts import Template, aggregate_prompt, draft_prompt
from lm_eval_aft.core.records import Chat, Completion, Message, Prompt, Request, Sampling
from lm_eval_aft.engines.hf.engine import HFEngine
from lm_eval_aft.engines.registry import load_engine

BUDGET = 1500


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pretrained", required=True)
    parser.add_argument("--questions", required=True, help="JSON lines with a field question")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--count", type=int, default=8, help="questions; twice as many prompts")
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument("--server", help="address of a server, up to and with /v1")
    parser.add_argument("--served", help="the server's name of the model")
    parser.add_argument("--out")
    return parser.parse_args()


def greedy(engine: Engine, prompts: list[Prompt], max_tokens: int) -> list[Completion]:
    """One greedy text a prompt, in the order of the prompts."""
    asked = [Request(prompt, Sampling(0.0, 1.0, 0, max_tokens), 0) for prompt in prompts]
    return [completion for _, completion in sorted(engine.generate(asked), key=lambda pair: pair[0])]


def prompts_of(hf: HFEngine, questions: list[str], max_tokens: int) -> list[Prompt]:
    """Draft prompts, then aggregation prompts over two greedy drafts of different lengths."""
    template = Template.load(None)
    chats = [Chat((Message("user", question),)) for question in questions]
    drafts = [draft_prompt(template, hf.renderer, chat, BUDGET).prompt for chat in chats]
    written = zip(greedy(hf, drafts, max_tokens), greedy(hf, drafts, max_tokens // 2), strict=True)
    merged = [
        aggregate_prompt(template, hf.renderer, chat, [long.text, short.text], BUDGET, final=True).prompt
        for chat, (long, short) in zip(chats, written, strict=True)
    ]
    return drafts + merged


def tokens_at_server(server: str, model: str, chat: Chat) -> tuple[int, ...]:
    """The prompt as vLLM's server renders it."""
    rows = [message.to_dict() for message in chat.messages]
    body = {"model": model, "messages": rows, "add_generation_prompt": True}
    reply = requests.post(server.removesuffix("/v1") + "/tokenize", json=body, timeout=60)
    return tuple(reply.json()["tokens"])


def compare(texts: dict[str, list[Completion]]) -> list[dict[str, Any]]:
    """A row for every pair of engines: how many texts and token ids are equal, and the texts that are not.

    Both are counted, since a server may keep back the half of a character at a cut text's end.
    """
    rows = []
    for one, other in combinations(texts, 2):
        differing = [
            {"prompt": number, "parts_at_token": _parting(a.token_ids, b.token_ids), one: a.text, other: b.text}
            for number, (a, b) in enumerate(zip(texts[one], texts[other], strict=True))
            if a.text != b.text
        ]
        pairs = list(zip(texts[one], texts[other], strict=True))
        equal = {
            "texts": sum(a.text == b.text for a, b in pairs),
            "token_ids": sum(a.token_ids == b.token_ids for a, b in pairs),
        }
        rows.append({"pair": f"{one} and {other}", "of": len(pairs), "equal": equal, "differing": differing})
    return rows


def _parting(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    pairs = zip(one, other, strict=False)
    return next((number for number, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def main() -> None:
    """Run all engines and write the table."""
    args = options()
    folder = str(Path(args.pretrained).expanduser())
    lines = Path(args.questions).read_text(encoding="utf-8").splitlines()[: args.count]
    questions = [json.loads(line)["question"] for line in lines]
    settings = {"pretrained": folder, "dtype": args.dtype}
    hf = HFEngine.load({**settings, "max_length": 2048}, HostArgs("auto", None, "cpu"))
    prompts = prompts_of(hf, questions, args.max_tokens)
    vllm = load_engine("vllm", {**settings, "max_model_len": 2048}, HostArgs())
    texts = {name: greedy(engine, prompts, args.max_tokens) for name, engine in (("hf", hf), ("vllm", vllm))}
    same = {"hf and vllm": sum(vllm.renderer.encode(p.chat).token_ids == p.token_ids for p in prompts)}
    if args.server:
        shown = {"return_token_ids": True}
        server = {"base_url": args.server, "model": args.served, "tokenizer": folder, "extra_body": shown}
        texts["server"] = greedy(load_engine("api", server, HostArgs()), prompts, args.max_tokens)
        rendered = [tokens_at_server(args.server, args.served, p.chat) for p in prompts]
        same["hf and server"] = sum(ids == p.token_ids for ids, p in zip(rendered, prompts, strict=True))
    figures = {
        "dtype": args.dtype,
        "max_tokens": args.max_tokens,
        "engines": {"vllm": dict(vllm.info)},
        "prompts": len(prompts),
        "identical_prompts": same,
        "greedy_texts": compare(texts),
    }
    write(f"agreement-{Path(folder).name}-{args.dtype}", figures, args.out)


if __name__ == "__main__":
    main()
