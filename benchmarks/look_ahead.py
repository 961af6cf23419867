"""Look-ahead of the hf engine: forward passes a token, accepted proposals and time by layer, with it and without.

Each turn answers the same questions with both sides in one process, in alternating order. The models are the bundled
one on problems of aft_arith, a random tiny Mixtral on the same problems, and ``--pretrained`` on questions of a file.
The token ids of both sides are compared.

Usage: python benchmarks/look_ahead.py [--pretrained FOLDER --questions test.jsonl --count 4 --turns 3 --out FOLDER]
"""

from __future__ import annotations

import argparse
import itertools
import os
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from common import add_point, add_turns, parser, write
from transformers import AutoTokenizer, MixtralConfig, MixtralForCausalLM
from workload import MeasuredEngine, first_questions, user_turn

from lm_eval_aft.bundled import arith, locate
from lm_eval_aft.core.config import AFTConfig
from lm_eval_aft.core.engine import HostArgs
from lm_eval_aft.core.records import Completion, Question, Request, Sampling, Trace
from lm_eval_aft.engines.hf.engine import HFEngine
from lm_eval_aft.inference.checkpoint import choose_template
from lm_eval_aft.inference.forward_passes import passes_by_layer
from lm_eval_aft.inference.schedule import propose_and_aggregate
from lm_eval_aft.storage.draft_store import NoStore

BUNDLED = "bundled:aft"


class LayerClock(MeasuredEngine):
    """Takes the wall time and the processor time of each layer."""

    def __init__(self, engine: HFEngine) -> None:
        super().__init__(engine)
        self.seconds: list[tuple[float, float]] = []

    def generate(self, requests: Sequence[Request]) -> Iterator[tuple[int, Completion]]:
        """See ``Engine.generate``."""
        wall_s, processor_s = self.inside_s, self.inside_processor_s
        yield from super().generate(requests)
        self.seconds.append((self.inside_s - wall_s, self.inside_processor_s - processor_s))


def save_mixtral(folder: str) -> str:
    """Write a random tiny Mixtral with the tokenizer of the bundled models. Returns the folder."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(locate(BUNDLED))
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = MixtralConfig(
        **sizes, vocab_size=len(tokenizer), num_key_value_heads=2, num_local_experts=4, sliding_window=None
    )
    config.eos_token_id = config.pad_token_id = tokenizer.eos_token_id
    model = MixtralForCausalLM(config)
    with torch.no_grad():
        for weights in model.parameters():
            weights.mul_(3)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def measure(args: argparse.Namespace, folder: str, texts: Sequence[str], max_tokens: int) -> dict[str, Any]:
    """Run one model with both sides in turns."""
    arguments = {"pretrained": locate(folder), "dtype": "float32", "look_ahead": True}
    engine = HFEngine.load(arguments, HostArgs("auto", None, args.device))
    config = AFTConfig(k=args.k, layers=args.layers)
    template = choose_template(config, arguments)
    sampling = Sampling(0.7, 0.95, 0, max_tokens)
    questions = [Question(user_turn(text), sampling, sampling, doc_id=number) for number, text in enumerate(texts)]
    traces: dict[bool, list[Trace]] = {}
    seconds: dict[bool, list[list[tuple[float, float]]]] = {True: [], False: []}
    load = []
    for turn in range(args.turns):
        for ahead in (True, False) if turn % 2 else (False, True):
            load.append(round(os.getloadavg()[0], 1))
            engine.looks_ahead, clock = ahead, LayerClock(engine)
            traces[ahead] = propose_and_aggregate(questions, clock, template, config, NoStore(), quiet=True)
            seconds[ahead].append(clock.seconds)
    return {"questions": len(texts), "max_tokens": max_tokens, "load": load, **compare(traces, seconds)}


def compare(traces: dict[bool, list[Trace]], seconds: dict[bool, list[list[tuple[float, float]]]]) -> dict[str, Any]:
    """The figures of each layer, and the number of texts that differ."""
    drafts = {ahead: [draft for trace in traces[ahead] for draft in trace.drafts] for ahead in traces}
    pairs = zip(drafts[True], drafts[False], strict=True)
    layers = []
    for number, row in enumerate(passes_by_layer(drafts[True]).rows):
        times = {
            f"{kind}_{name}": [round(turn[number][place], 2) for turn in seconds[ahead]]
            for place, kind in enumerate(("wall_s", "processor_s"))
            for name, ahead in (("with", True), ("without", False))
        }
        passes = row["forward_passes"] / row["generated_tokens"]
        accepted = row["accepted_tokens"] / max(1, row["proposed_tokens"])
        layers.append({**row, "passes_a_token": round(passes, 3), "accepted_share": round(accepted, 3), **times})
    differ = sum(ours.completion.token_ids != plain.completion.token_ids for ours, plain in pairs)
    return {"texts": len(drafts[True]), "texts_that_differ": differ, "layers": layers}


def main() -> None:
    """Measure all models and write one table."""
    options = parser(__doc__)
    options.add_argument("--pretrained", help="Folder of a further checkpoint.")
    options.add_argument("--questions", help="JSON lines file with a field `question`, for this checkpoint.")
    options.add_argument("--count", type=int, default=4, help="How many questions of the file are used (default 4).")
    options.add_argument("--problems", type=int, default=40, help="How many problems of aft_arith are used.")
    options.add_argument("--max-tokens", type=int, default=96, help="Bound of its texts in tokens (default 96).")
    options.add_argument("--device", default="cpu", help="Device of the models (default cpu).")
    add_point(options, 5, 2)
    add_turns(options)
    args = options.parse_args()
    problems = [problem.question for problem, _ in itertools.islice(arith.problems("test", 0), args.problems)]
    with tempfile.TemporaryDirectory() as folder:
        figures = {
            "bundled:aft": measure(args, BUNDLED, problems, 24),
            "random Mixtral": measure(args, save_mixtral(folder), problems[: args.problems // 4], 48),
        }
    if args.pretrained:
        texts = first_questions(args.questions, args.count)
        figures["pretrained"] = measure(args, args.pretrained, texts, args.max_tokens)
    write("look_ahead", {"k": args.k, "layers": args.layers, "device": args.device, "models": figures}, args.out)


if __name__ == "__main__":
    main()
