"""How long does an engine take if the same work reaches it in whole layers, streamed, or in mini-batches of 8 and 16?

    whole layers    all requests of a layer at once; the next layer when all have ended (what the schedule does)
    streaming       the next layer of a question as soon as its last text has ended, independent of other questions
    batches of n    n questions through all their layers, then the next n (what the paper's released code does)
    AsyncLLM        streaming by vLLM's AsyncLLM, with a coroutine for each question (only with --async-llm)
    second engine   whole layers on a further engine, to show what another engine alone changes (only with --async-llm)

All send the same requests with the same seeds. End tokens count, so lengths differ as they do in real runs. Whole
layers and mini-batches are runs of the schedule; streaming is a loop in this script around vLLM's step. The ways take
turns in rotated order after a warm-up, and the prefix cache is emptied before every turn.

The table shows the tokens that each way wrote, because rounding can end a text elsewhere if the size of a batch changes
it. It also shows the engine's steps, which no other work on the machine changes: on a GPU a step of many rows takes
about as long as a step of few. AsyncLLM loads the model again, and does not show its steps.

The hf engine cannot stream, because its batches take in no new rows.

Usage: python benchmarks/barriers.py --pretrained FOLDER --questions test.jsonl --engine vllm [--count 24 --k 3
           --layers 1 --max-tokens 48 --turns 3 --device cuda --async-llm --out benchmarks/results]
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from common import add_point, add_turns, write
from workload import MeasuredEngine, engine_of, forget_prefixes, parser, read_questions, table, take_turns

from lm_eval_aft.core.config import AFTConfig
from lm_eval_aft.core.engine import Engine
from lm_eval_aft.core.prompts import Template, aggregate_prompt, draft_prompt
from lm_eval_aft.core.records import Question, Request
from lm_eval_aft.engines.vllm.engine import VLLMEngine
from lm_eval_aft.inference.schedule import generation_seed, propose_and_aggregate
from lm_eval_aft.storage.draft_store import NoStore

BATCHES = (8, 16)
TEMPLATE = Template.load(None)


@dataclass
class Runner:
    """Runs the questions in each way; keeps the tokens and the engine steps of each way's last turn."""

    engine: Engine
    questions: list[Question]
    config: AFTConfig
    tokens: dict[str, int] = field(default_factory=dict)
    steps: dict[str, int | None] = field(default_factory=dict)
    _steps_now: int = 0

    def __post_init__(self) -> None:
        """Count what a GPU does one after another: vLLM's steps, or forward passes of the hf engine."""
        if isinstance(self.engine, VLLMEngine):
            core = self.engine.llm.llm_engine
            core.step = self._counted(core.step)
        else:
            self.engine.model.forward = self._counted(self.engine.model.forward)

    def _counted(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, with its calls counted in ``_steps_now``."""

        def counted(*values: Any, **named: Any) -> Any:
            self._steps_now += 1
            return function(*values, **named)

        return counted

    def start(self) -> None:
        """Begin a turn with an empty prefix cache and no steps."""
        forget_prefixes(self.engine)
        self._steps_now = 0

    def batches(self, name: str, size: int) -> None:
        """Run the schedule on ``size`` questions at a time."""
        self.start()
        measured = MeasuredEngine(self.engine)
        for start in range(0, len(self.questions), size):
            batch = self.questions[start : start + size]
            propose_and_aggregate(batch, measured, TEMPLATE, self.config, NoStore(), quiet=True)
        self.tokens[name] = sum(completion.generated_tokens for completion in measured.completions)
        self.steps[name] = self._steps_now

    def streaming(self) -> None:
        """Run every question independent of the others."""
        self.start()
        self.tokens["streaming"] = StreamingRun(self.engine, self.questions, self.config).run()
        self.steps["streaming"] = self._steps_now


def layer_requests(
    engine: Engine, question: Question, config: AFTConfig, layer: int, drafts: list[str]
) -> list[Request]:
    """The requests of one layer of a question, as the schedule makes them."""
    last, renderer = layer == config.layers, engine.renderer
    sampling = question.final if last else question.drafts
    budget = engine.max_length - sampling.max_tokens
    fitted = (
        aggregate_prompt(TEMPLATE, renderer, question.chat, drafts, budget, final=last)
        if layer
        else draft_prompt(TEMPLATE, renderer, question.chat, budget, final=last)
    )
    seeds = [generation_seed(config, question, layer, index) for index in range(1 if last else config.k)]
    return [Request(fitted.prompt, sampling, seed) for seed in seeds]


def vllm_prompt(request: Request) -> dict[str, Any]:
    """The prompt as vLLM takes it."""
    return {"type": "token", "prompt_token_ids": list(request.prompt.token_ids or ())}


class StreamingRun:
    """Calls vLLM's step and adds the next layer of a question as soon as its last one has ended."""

    def __init__(self, engine: VLLMEngine, questions: list[Question], config: AFTConfig) -> None:
        self.engine, self.questions, self.config = engine, questions, config
        # By request name: question, layer, index and request.
        self.running: dict[str, tuple[int, int, int, Request]] = {}
        # By question and layer: the finished texts by their index.
        self.texts: dict[tuple[int, int], dict[int, str]] = {}
        self.tokens = 0

    def run(self) -> int:
        """Run all questions to their answers. Returns the number of generated tokens."""
        core = self.engine.llm.llm_engine
        for number in range(len(self.questions)):
            self.send(number, 0, [])
        while self.running:
            for output in core.step():
                if output.finished:
                    self.take(output)
        return self.tokens

    def send(self, number: int, layer: int, drafts: list[str]) -> None:
        """Add the requests of one layer of a question."""
        requests = layer_requests(self.engine, self.questions[number], self.config, layer, drafts)
        for index, request in enumerate(requests):
            name = f"stream-{number}-{layer}-{index}"
            self.engine.llm.llm_engine.add_request(name, vllm_prompt(request), self.engine.sampling_params(request))
            self.running[name] = (number, layer, index, request)

    def take(self, output: Any) -> None:
        """Keep a finished text. If its layer is complete, send the next one."""
        number, layer, index, request = self.running.pop(output.request_id)
        completion = self.engine.completion(request, output)
        self.tokens += completion.generated_tokens
        texts = self.texts.setdefault((number, layer), {})
        texts[index] = completion.text
        if layer < self.config.layers and len(texts) == self.config.k:
            self.send(number, layer + 1, [texts[place] for place in sorted(texts)])


class AsyncRun:
    """Runs each question as a coroutine on an AsyncLLM with the arguments of a loaded engine."""

    def __init__(self, engine: VLLMEngine, questions: list[Question], config: AFTConfig) -> None:
        """Load the AsyncLLM."""
        from vllm import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        self.engine, self.questions, self.config = engine, questions, config
        self.tokens = 0
        self._loop = asyncio.new_event_loop()

        async def load() -> Any:
            return AsyncLLM.from_engine_args(AsyncEngineArgs(**engine.args.for_llm()))

        # AsyncLLM needs a running loop.
        self.llm = self._loop.run_until_complete(load())

    def run(self) -> int:
        """Run all questions to their answers. Returns the number of generated tokens."""
        self.tokens = 0
        self._loop.run_until_complete(self._all())
        return self.tokens

    async def _all(self) -> None:
        await self.llm.reset_prefix_cache()
        await asyncio.gather(*map(self._question, range(len(self.questions))))

    async def _question(self, number: int) -> None:
        drafts: list[str] = []
        for layer in range(self.config.layers + 1):
            requests = layer_requests(self.engine, self.questions[number], self.config, layer, drafts)
            names = [f"async-{number}-{layer}-{index}" for index in range(len(requests))]
            drafts = await asyncio.gather(*map(self._text, names, requests))

    async def _text(self, name: str, request: Request) -> str:
        outputs = self.llm.generate(vllm_prompt(request), self.engine.sampling_params(request), name)
        (completion,) = [self.engine.completion(request, output) async for output in outputs if output.finished]
        self.tokens += completion.generated_tokens
        return completion.text


def ways(runner: Runner) -> dict[str, Callable[[], None]]:
    """The ways that the engine can run, by name."""
    sides: dict[str, Callable[[], None]] = {
        "whole layers": partial(runner.batches, "whole layers", len(runner.questions)),
    }
    if isinstance(runner.engine, VLLMEngine):
        sides["streaming"] = runner.streaming
    return sides | {f"batches of {n}": partial(runner.batches, f"batches of {n}", n) for n in BATCHES}


def run_async(runner: Runner, run: AsyncRun) -> None:
    """Take a turn with an AsyncLLM. It does not show its steps."""
    runner.tokens["AsyncLLM"], runner.steps["AsyncLLM"] = run.run(), None


def main() -> None:
    """Take turns and write one table, with ratios to whole layers."""
    options = parser(__doc__, engine="vllm", count=24)
    add_point(options, k=3, layers=1)
    add_turns(options)
    options.add_argument(
        "--async-llm", action="store_true", help="Measure AsyncLLM and a second engine too (vLLM only)."
    )
    args = options.parse_args()
    runner = Runner(engine_of(args), read_questions(args), AFTConfig(k=args.k, layers=args.layers))
    sides = ways(runner)
    if args.async_llm:
        async_run = AsyncRun(runner.engine, runner.questions, runner.config)
        sides["AsyncLLM"] = partial(run_async, runner, async_run)
        second = Runner(engine_of(args), runner.questions, runner.config, runner.tokens, runner.steps)
        sides["second engine"] = partial(second.batches, "second engine", len(second.questions))
    rows = table(take_turns(sides, args.turns), "whole layers")
    if args.async_llm:
        async_run.llm.shutdown()
    figures = {
        "engine": args.engine,
        "device": args.device,
        "dtype": args.dtype,
        "k": args.k,
        "layers": args.layers,
        "questions": len(runner.questions),
        "max_tokens": args.max_tokens,
        "ways": {
            name: {"generated_tokens": runner.tokens[name], "steps": runner.steps[name], **row}
            for name, row in rows.items()
        },
    }
    write(f"barriers-{args.engine}-{Path(args.pretrained).name}", figures, args.out)


if __name__ == "__main__":
    main()
