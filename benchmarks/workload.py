"""What benchmarks of whole runs share: questions, engines, turns in rotated order, wall time and processor time.

Processor time counts this process and the processes that it started, because vLLM computes in a process of its own.
Unlike wall time, it is comparable even if the machine does other work.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import common
import psutil

from lm_eval_aft.core.arguments import key_values
from lm_eval_aft.core.engine import Engine, HostArgs
from lm_eval_aft.core.records import Chat, Completion, Message, Question, Request, Sampling
from lm_eval_aft.engines.hf.engine import HFEngine
from lm_eval_aft.engines.registry import load_engine
from lm_eval_aft.engines.vllm.engine import VLLMEngine


@dataclass(frozen=True)
class Seconds:
    """Duration of one turn in seconds."""

    wall_s: float
    processor_s: float


def parser(doc: str | None, **defaults: Any) -> argparse.ArgumentParser:
    """A command line with the options for an engine and its questions; ``defaults`` replace their default values."""
    options = common.parser(doc)
    options.add_argument("--pretrained", help="Folder of the checkpoint. The scripted engine needs none.")
    options.add_argument(
        "--questions", required=True, help="JSON lines file with a field `question`, such as GSM8K's test.jsonl."
    )
    options.add_argument(
        "--engine", default="hf", choices=("hf", "vllm", "scripted"), help="Engine that writes the generations."
    )
    options.add_argument("--device", default="cpu", help="Device of the hf engine, such as cpu or cuda.")
    options.add_argument(
        "--more",
        default="",
        help="Further arguments of the engine, such as gpu_memory_utilization=0.5,enforce_eager=true.",
    )
    options.add_argument("--dtype", default="bfloat16", help="Type of the weights, such as float32 or bfloat16.")
    options.add_argument("--count", type=int, default=8, help="How many questions of the file are used.")
    options.add_argument("--max-tokens", type=int, default=48, help="Bound of each generation in tokens.")
    options.add_argument("--max-length", type=int, default=2048, help="Bound of prompt and generation in tokens.")
    options.set_defaults(**defaults)
    return options


def engine_of(args: argparse.Namespace) -> Engine:
    """Load the engine that the options name."""
    settings: dict[str, Any] = {"max_length": args.max_length}
    if args.engine != "scripted":
        settings |= {"pretrained": str(Path(args.pretrained).expanduser()), "dtype": args.dtype}
    settings |= key_values("--more", args.more)
    return load_engine(args.engine, settings, HostArgs("auto" if args.engine == "hf" else 1, None, args.device))


def first_questions(path: str, count: int) -> list[str]:
    """The first ``count`` questions of a JSON lines file."""
    with open(path, encoding="utf-8") as lines:
        return [json.loads(line)["question"] for _, line in zip(range(count), lines, strict=False)]


def user_turn(text: str) -> Chat:
    """A chat of one user message."""
    return Chat((Message("user", text),))


def read_questions(args: argparse.Namespace) -> list[Question]:
    """The file's first questions, sampled at temperature 0.7 and top-p 0.95 with at most ``max_tokens`` tokens."""
    sampling = Sampling(0.7, 0.95, 0, args.max_tokens)
    texts = first_questions(args.questions, args.count)
    return [Question(user_turn(text), sampling, sampling, doc_id=number) for number, text in enumerate(texts)]


def forget_prefixes(engine: Engine) -> None:
    """Empty vLLM's prefix cache, so that no turn profits from the one before it."""
    if isinstance(engine, VLLMEngine):
        engine.llm.reset_prefix_cache()


def never_stop(engine: Engine) -> None:
    """Make an engine ignore end tokens, so that every text has ``max_tokens`` tokens.

    Raises:
        SystemExit: If the engine has no end tokens to ignore.
    """
    if isinstance(engine, VLLMEngine):
        params = engine.sampling_params

        def without_end(request: Request) -> object:
            sampling = params(request)
            sampling.ignore_eos = True
            return sampling

        engine.sampling_params = without_end
    elif not isinstance(engine, HFEngine):
        raise SystemExit("texts of a fixed length need the hf engine or the vllm engine")
    engine.stop_ids = frozenset()


class MeasuredEngine:
    """Wraps an engine and records the requests of each layer, the completions, and the time spent inside.

    ``inside_processor_s`` counts this process only: reading the times of other processes takes too long for each step.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.layers: list[list[Request]] = []
        self.completions: list[Completion] = []
        self.inside_s = self.inside_processor_s = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def generate(self, requests: Sequence[Request]) -> Iterator[tuple[int, Completion]]:
        """See ``Engine.generate``."""
        self.layers.append(list(requests))
        steps = self._engine.generate(requests)
        while True:
            wall, processor = time.perf_counter(), time.process_time()
            step = next(steps, None)
            self.inside_s += time.perf_counter() - wall
            self.inside_processor_s += time.process_time() - processor
            if step is None:
                return
            self.completions.append(step[1])
            yield step


def processor_s() -> float:
    """Processor seconds of this process and of all processes that it started."""
    me = psutil.Process()
    times = [process.cpu_times() for process in (me, *me.children(recursive=True))]
    return float(sum(t.user + t.system + t.children_user + t.children_system for t in times))


def take_turns(
    sides: Mapping[str, Callable[[], object]], turns: int, *, warm_up: bool = True
) -> dict[str, list[Seconds]]:
    """Measure every side ``turns`` times; each turn begins with another side. A full turn may warm up before them."""
    names = list(sides)
    taken: dict[str, list[Seconds]] = {name: [] for name in names}
    for turn in range(0 if warm_up else 1, turns + 1):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            wall, processor = time.perf_counter(), processor_s()
            sides[name]()
            seconds = Seconds(time.perf_counter() - wall, processor_s() - processor)
            if turn:
                taken[name].append(seconds)
    return taken


def table(taken: Mapping[str, list[Seconds]], base: str) -> dict[str, dict[str, Any]]:
    """The seconds of every turn of every side, and the ratio of its median to the median of ``base``."""
    rows = {}
    for name, turns in taken.items():
        row: dict[str, Any] = {}
        for kind in ("wall_s", "processor_s"):
            values = [getattr(seconds, kind) for seconds in turns]
            reference = statistics.median(getattr(seconds, kind) for seconds in taken[base])
            row[kind] = [round(value, 2) for value in values]
            row[kind.replace("_s", "_ratio")] = round(statistics.median(values) / max(reference, 1e-9), 3)
        rows[name] = row
    return rows
