"""Four ways to send the same work to vLLM: whole layers, each question on its own way, mini-batches of 8 and of 16.

    whole layers    all requests of a layer at once, the next layer when all have ended (what the schedule does)
    streaming       a question's next layer is added the moment its last text ends; nobody waits for another question
    batches of n    n questions run through all their layers, then the next n (what the paper's released code does)

All four send equal requests with equal seeds, and end tokens count, so lengths differ as they do in real runs. Whole
layers and mini-batches are the schedule itself; streaming is a loop of this script around vLLM's own step. They take
turns in rotated order after a full warm-up of each, with the prefix cache emptied before every turn. Tokens written
are shown for each, as rounding may end a text elsewhere where dtype or device let batches differ; so are the steps of
the engine, which no other work on the machine changes: a GPU takes about as long for a step of many rows as of few.

With --engine hf streaming is left out: its batches cannot take in new rows.

Usage: python benchmarks/barriers.py --pretrained FOLDER --questions test.jsonl --engine vllm [--count 24 --k 3
           --layers 1 --max-tokens 48 --turns 3 --device cuda --out benchmarks/results]
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from common import write
from workload import Watched, engine_of, forget_prefixes, parser, read_questions, table, take_turns

from lm_eval_aft.core.config import AFTConfig
from lm_eval_aft.core.engine import Engine
from lm_eval_aft.core.prompts import Template, aggregate_prompt, draft_prompt
from lm_eval_aft.core.records import Question, Request
from lm_eval_aft.engines.vllm.engine import VLLMEngine
from lm_eval_aft.inference.schedule import generation_seed, propose_and_aggregate
from lm_eval_aft.storage.draft_store import NoStore

BATCHES = (8, 16)


@dataclass
class Work:
    """The questions, and the tokens that each way last wrote for them."""

    engine: Engine
    questions: list[Question]
    config: AFTConfig
    tokens: dict[str, int] = field(default_factory=dict)
    steps: dict[str, int] = field(default_factory=dict)
    _steps_now: int = 0

    def __post_init__(self) -> None:
        """Count what a GPU does one after another: vLLM's steps, or the hf engine's forward passes."""
        vllm = isinstance(self.engine, VLLMEngine)
        owner, name = (self.engine.llm.llm_engine, "step") if vllm else (self.engine.model, "forward")
        original = getattr(owner, name)

        def counted(*values: Any, **named: Any) -> Any:
            self._steps_now += 1
            return original(*values, **named)

        setattr(owner, name, counted)

    def start(self) -> None:
        """Begin a turn with nothing cached and nothing counted."""
        forget_prefixes(self.engine)
        self._steps_now = 0

    def batches(self, name: str, size: int) -> None:
        """The schedule on ``size`` questions at a time."""
        self.start()
        watched = Watched(self.engine)
        for start in range(0, len(self.questions), size):
            some = self.questions[start : start + size]
            propose_and_aggregate(some, watched, Template.load(None), self.config, NoStore(), quiet=True)
        self.tokens[name] = sum(completion.generated_tokens for completion in watched.completions)
        self.steps[name] = self._steps_now

    def streaming(self) -> None:
        """Every question at its own pace."""
        self.start()
        self.tokens["streaming"] = Stream(self.engine, self.questions, self.config).run()
        self.steps["streaming"] = self._steps_now


class Stream:
    """vLLM's step, fed with a question's next layer as soon as its last one has ended."""

    def __init__(self, engine: VLLMEngine, questions: list[Question], config: AFTConfig) -> None:
        self.engine, self.questions, self.config = engine, questions, config
        self.template = Template.load(None)
        self.running: dict[str, tuple[int, int, int, Request]] = {}  # by name: question, layer, index, request
        self.texts: dict[tuple[int, int], dict[int, str]] = {}  # by question and layer
        self.tokens = 0

    def run(self) -> int:
        """All questions to their answers; returns the tokens written."""
        core = self.engine.llm.llm_engine
        for number in range(len(self.questions)):
            self.send(number, 0, [])
        while self.running:
            for output in core.step():
                if output.finished:
                    self.take(output)
        return self.tokens

    def send(self, number: int, layer: int, drafts: list[str]) -> None:
        """Add a question's layer."""
        question, last = self.questions[number], layer == self.config.layers
        sampling = question.final if last else question.drafts
        budget, renderer = self.engine.max_length - sampling.max_tokens, self.engine.renderer
        fitted = (
            aggregate_prompt(self.template, renderer, question.chat, drafts, budget, final=last)
            if layer
            else draft_prompt(self.template, renderer, question.chat, budget, final=last)
        )
        for index in range(1 if last else self.config.k):
            request = Request(fitted.prompt, sampling, generation_seed(self.config, question, layer, index))
            name = f"stream-{number}-{layer}-{index}"
            prompt = {"type": "token", "prompt_token_ids": list(fitted.prompt.token_ids or ())}
            self.engine.llm.llm_engine.add_request(name, prompt, self.engine.sampling_params(request))
            self.running[name] = (number, layer, index, request)

    def take(self, output: object) -> None:
        """Keep a text; when its layer is whole, send the next."""
        number, layer, index, request = self.running.pop(output.request_id)
        completion = self.engine.completion(request, output)
        self.tokens += completion.generated_tokens
        texts = self.texts.setdefault((number, layer), {})
        texts[index] = completion.text
        if layer < self.config.layers and len(texts) == self.config.k:
            self.send(number, layer + 1, [texts[place] for place in sorted(texts)])


def ways(work: Work) -> dict[str, Callable[[], None]]:
    """The sides of the comparison, by name."""
    sides: dict[str, Callable[[], None]] = {
        "whole layers": partial(work.batches, "whole layers", len(work.questions)),
    }
    if isinstance(work.engine, VLLMEngine):
        sides["streaming"] = work.streaming
    return sides | {f"batches of {n}": partial(work.batches, f"batches of {n}", n) for n in BATCHES}


def main() -> None:
    """Take turns and write one table of ratios to whole layers."""
    options = parser(__doc__, engine="vllm", count=24)
    options.add_argument("--k", type=int, default=3)
    options.add_argument("--layers", type=int, default=1)
    options.add_argument("--turns", type=int, default=3)
    args = options.parse_args()
    work = Work(engine_of(args), read_questions(args), AFTConfig(k=args.k, layers=args.layers))
    rows = table(take_turns(ways(work), args.turns), "whole layers")
    figures = {
        "engine": args.engine,
        "device": args.device,
        "dtype": args.dtype,
        "k": args.k,
        "layers": args.layers,
        "questions": len(work.questions),
        "max_tokens": args.max_tokens,
        "ways": {
            name: {"generated_tokens": work.tokens[name], "steps": work.steps[name], **row}
            for name, row in rows.items()
        },
    }
    write(f"barriers-{args.engine}-{Path(args.pretrained).name}", figures, args.out)


if __name__ == "__main__":
    main()
