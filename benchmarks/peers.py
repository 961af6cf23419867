"""How fast is ours beside what a user would run instead?

    generate    transformers' generate(num_return_sequences=k) on the prompts of the drafts
    lm-eval     lm-eval's own ``hf`` model with ``repeats: k``, which sends each request k times
    schedules   whole layers (ours) beside three schedules, restated here on the same engine:
                batches of 8 questions with a barrier a layer, as in the code of the AFT paper;
                one question at a time through its layers, as one client of Mixture-of-Agents does;
                whole layers whose texts share no prompt, as in the loops of Recursive Self-Aggregation
    optillm     optillm's moa, bon and self_consistency in front of a server, beside engine=api on that server

The first three use one hf engine, and all sides of a group write the same number of tokens, or the script stops. With
optillm the methods write other numbers of texts, so the table has seconds only. The sides take turns, and each group is
written to the file as soon as it ends.

Usage: python benchmarks/peers.py --pretrained FOLDER --questions test.jsonl --dtype float32 [--groups generate lm-eval
           schedules --k 5 --layers 1 --count 8 --max-tokens 48 --turns 3 --out benchmarks/results]
       python benchmarks/peers.py --questions test.jsonl --groups optillm --server http://127.0.0.1:8000/v1
           --optillm http://127.0.0.1:8001/v1 --model NAME
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import requests
from common import add_point, add_turns, write
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from prefill import apart, generate_batch, written
from workload import MeasuredEngine, engine_of, never_stop, parser, read_questions, table, take_turns

from lm_eval_aft.core.config import AFTConfig
from lm_eval_aft.core.engine import Engine, HostArgs
from lm_eval_aft.core.prompts import Template
from lm_eval_aft.core.records import Question, Request
from lm_eval_aft.engines.hf.engine import HFEngine
from lm_eval_aft.engines.registry import load_engine
from lm_eval_aft.inference.schedule import propose_and_aggregate
from lm_eval_aft.storage.draft_store import NoStore

GROUPS = ("generate", "lm-eval", "schedules", "optillm")
PAPER_BATCH = 8
# optillm's methods, and the point of ours that writes about as many texts: k, layers.
OPTILLM = {"moa": (3, 1), "bon": (3, 0), "self_consistency": (5, 0)}
ANSWER_S = 600

Sides = dict[str, Callable[[], int]]


class CountingHFLM(HFLM):
    """lm-eval's hf model, with its generated tokens counted."""

    generated_tokens = 0

    def _model_generate(self, context: Any, max_length: int, stop: list[str], **settings: Any) -> Any:
        output = super()._model_generate(context, max_length, stop, **settings)
        self.generated_tokens += output.shape[0] * (output.shape[1] - context.shape[1])
        return output


class Local:
    """The sides that run on one hf engine. Each returns the number of tokens that it generated."""

    def __init__(self, engine: HFEngine, questions: list[Question], k: int, layers: int) -> None:
        self.engine, self.questions, self.k, self.layers = engine, questions, k, layers
        self.tokens = questions[0].drafts.max_tokens
        self.prompts = [engine.renderer.encode(question.chat) for question in questions]

    def drafts(self) -> int:
        """The drafts by our engine."""
        sampling = self.questions[0].drafts
        return written(
            self.engine,
            [Request(p, sampling, 100 * i + j) for i, p in enumerate(self.prompts) for j in range(self.k)],
        )

    def generate(self) -> int:
        """The drafts by one call of generate."""
        return generate_batch(self.engine, self.prompts, self.k, self.tokens)

    def lm_eval(self) -> int:
        """The drafts by lm-eval's hf model, with batches of k."""
        settings = {"until": [], "max_gen_toks": self.tokens, "min_new_tokens": self.tokens}
        settings |= {"do_sample": True, "temperature": 0.7, "top_p": 0.95, "top_k": 0}
        lm = CountingHFLM(
            pretrained=self.engine.model,
            tokenizer=self.engine.tokenizer,
            batch_size=self.k,
            max_length=self.engine.max_length,
        )
        rendered = [self.engine.tokenizer.decode(list(prompt.token_ids or ())) for prompt in self.prompts]
        repeated = [Instance("generate_until", {}, (text, dict(settings)), 0) for text in rendered]
        lm.generate_until([instance for instance in repeated for _ in range(self.k)], disable_tqdm=True)
        return lm.generated_tokens

    def schedule(self, size: int, *, shared: bool = True) -> int:
        """The whole schedule, on ``size`` questions at a time."""
        engine = MeasuredEngine(self.engine if shared else Unshared(self.engine))
        config = AFTConfig(k=self.k, layers=self.layers)
        for start in range(0, len(self.questions), size):
            batch = self.questions[start : start + size]
            propose_and_aggregate(batch, engine, Template.load(None), config, NoStore(), quiet=True)
        return sum(completion.generated_tokens for completion in engine.completions)

    def groups(self) -> dict[str, Sides]:
        """The groups of sides by name. The first side of each is ours."""
        every = len(self.questions)
        return {
            "generate": {"ours": self.drafts, "generate(num_return_sequences=k)": self.generate},
            "lm-eval": {"ours": self.drafts, "lm-eval hf, repeats: k": self.lm_eval},
            "schedules": {
                "ours, whole layers": partial(self.schedule, every),
                "batches of 8 (AFT paper)": partial(self.schedule, PAPER_BATCH),
                "one question at a time (MoA)": partial(self.schedule, 1),
                "whole layers, no prompt shared (RSA)": partial(self.schedule, every, shared=False),
            },
        }


class Unshared:
    """Wraps an engine so that no two texts share a prompt: the first two tokens of each prompt are its number."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def generate(self, layer: list[Request]) -> Any:
        """See ``Engine.generate``."""
        return self._engine.generate(
            [Request(apart(request.prompt, row), request.sampling, request.seed) for row, request in enumerate(layer)]
        )


def measure(sides: Sides, args: argparse.Namespace, *, equal: bool = True) -> dict[str, Any]:
    """Measure a group in turns. Returns its table with ratios to its first side.

    Raises:
        SystemExit: If sides that must do equal work write different numbers of tokens.
    """
    tokens: dict[str, int] = {}

    def counted(name: str) -> None:
        tokens[name] = sides[name]()

    taken = take_turns({name: partial(counted, name) for name in sides}, args.turns, warm_up=args.warm_up)
    if equal and len(set(tokens.values())) > 1:
        raise SystemExit(f"the sides wrote {tokens} tokens: they do not do the same work")
    rows = table(taken, next(iter(sides)))
    return {name: {"generated_tokens": tokens[name], **row} for name, row in rows.items()}


def optillm_groups(args: argparse.Namespace) -> dict[str, Sides]:
    """A group for each of optillm's methods, with ours on the same server."""
    questions = read_questions(args)
    engine = load_engine("api", {"base_url": args.server, "model": args.model}, HostArgs(1, None, "cpu"))
    groups: dict[str, Sides] = {}
    for method, (k, layers) in OPTILLM.items():
        config = AFTConfig(k=k, layers=layers) if layers else AFTConfig(k=k, strategy="majority")
        groups[f"optillm {method}"] = {
            "ours": partial(run_ours, engine, questions, config),
            f"optillm {method}": partial(run_optillm, args, method, questions),
        }
    return groups


def run_ours(engine: Engine, questions: list[Question], config: AFTConfig) -> int:
    """Run the schedule with engine=api. Returns the number of generated tokens."""
    measured = MeasuredEngine(engine)
    propose_and_aggregate(questions, measured, Template.load(None), config, NoStore(), quiet=True)
    return sum(completion.generated_tokens for completion in measured.completions)


def run_optillm(args: argparse.Namespace, method: str, questions: list[Question]) -> int:
    """Send each question to optillm. Returns the number of tokens that it reports."""
    tokens = 0
    for question in questions:
        messages = [{"role": "user", "content": question.chat.messages[-1].content}]
        body = {"model": f"{method}-{args.model}", "messages": messages, "temperature": 0.7, "top_p": 0.95}
        body |= {"max_tokens": args.max_tokens}
        reply = requests.post(f"{args.optillm.rstrip('/')}/chat/completions", json=body, timeout=ANSWER_S)
        reply.raise_for_status()
        tokens += reply.json()["usage"]["completion_tokens"]
    return tokens


def groups_of(args: argparse.Namespace) -> dict[str, Sides]:
    """The groups that the options name.

    Raises:
        SystemExit: If what they need is not given.
    """
    local = [name for name in args.groups if name != "optillm"]
    groups: dict[str, Sides] = {}
    if local:
        if not args.pretrained:
            raise SystemExit(f"--groups {local[0]} needs --pretrained, the folder of a checkpoint.")
        engine = engine_of(args)
        never_stop(engine)
        groups = Local(engine, read_questions(args), args.k, args.layers).groups()
        groups = {name: groups[name] for name in local}
    if "optillm" in args.groups:
        if not (args.server and args.optillm and args.model):
            raise SystemExit("--groups optillm needs --server, --optillm and --model.")
        groups |= optillm_groups(args)
    return groups


def main() -> None:
    """Measure every group and write one table."""
    options = parser(__doc__, dtype="float32")
    add_point(options, k=5, layers=1)
    add_turns(options)
    options.add_argument("--groups", nargs="+", choices=GROUPS, default=GROUPS[:3], help="What is compared.")
    options.add_argument("--no-warm-up", dest="warm_up", action="store_false", help="Measure without a turn before.")
    options.add_argument("--server", help="Address of a server with the chat API, with its version.")
    options.add_argument("--optillm", help="Address of optillm in front of that server, with its version.")
    options.add_argument("--model", help="Name of the model at the server.")
    options.add_argument("--name", default="peers", help="Name of the JSON file (default peers).")
    args = options.parse_args()
    groups = groups_of(args)
    settings = {
        name: getattr(args, name) for name in ("dtype", "device", "k", "layers", "count", "max_tokens", "turns")
    }
    figures: dict[str, Any] = {**settings, "warm_up": args.warm_up, "model": Path(args.pretrained or args.model).name}
    figures["groups"] = {}
    for name, sides in groups.items():
        figures["groups"][name] = measure(sides, args, equal=not name.startswith("optillm"))
        write(args.name, figures, args.out)


if __name__ == "__main__":
    main()
