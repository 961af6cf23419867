"""What benchmarks of whole runs share: real questions, turns in rotated order, wall and processor time, engines.

Processor time is that of this process and of those it started (vLLM computes in one of its own), so it says what a
side costs even where the machine does other work; wall time does not. Imported by the scripts beside it.
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

import psutil

from lm_eval_aft.core.engine import Engine, HostArgs
from lm_eval_aft.core.records import Chat, Completion, Message, Question, Request, Sampling
from lm_eval_aft.engines.registry import load_engine
from lm_eval_aft.engines.vllm.engine import VLLMEngine


@dataclass(frozen=True)
class Seconds:
    """What one turn took."""

    wall_s: float
    processor_s: float


def parser(doc: str | None, **defaults: Any) -> argparse.ArgumentParser:
    """The options that every script here has; ``defaults`` replace theirs."""
    options = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--pretrained", help="folder of a checkpoint; none with --engine scripted")
    options.add_argument("--questions", required=True, help="JSON lines with a field question: GSM8K's test.jsonl")
    options.add_argument("--engine", default="hf", choices=("hf", "vllm", "scripted"))
    options.add_argument("--device", default="cpu")
    options.add_argument("--dtype", default="bfloat16")
    options.add_argument("--count", type=int, default=8, help="questions")
    options.add_argument("--max-tokens", type=int, default=48)
    options.add_argument("--max-length", type=int, default=2048)
    options.add_argument("--out", help="folder for the JSON file")
    options.set_defaults(**defaults)
    return options


def engine_of(args: argparse.Namespace) -> Engine:
    """The engine that the options name."""
    settings: dict[str, Any] = {"max_length": args.max_length}
    if args.engine != "scripted":
        settings |= {"pretrained": str(Path(args.pretrained).expanduser()), "dtype": args.dtype}
    return load_engine(args.engine, settings, HostArgs("auto" if args.engine == "hf" else 1, None, args.device))


def read_questions(args: argparse.Namespace) -> list[Question]:
    """The first questions of the file, at temperature 0.7 and top-p 0.95, each text with at most ``max_tokens``."""
    sampling = Sampling(0.7, 0.95, 0, args.max_tokens)
    with open(args.questions, encoding="utf-8") as lines:
        texts = [json.loads(line)["question"] for _, line in zip(range(args.count), lines, strict=False)]
    return [Question(Chat((Message("user", text),)), sampling, sampling, doc_id=i) for i, text in enumerate(texts)]


def forget_prefixes(engine: Engine) -> None:
    """Empty vLLM's prefix cache, so that no turn finds what another one left."""
    if isinstance(engine, VLLMEngine):
        engine.llm.reset_prefix_cache()


class Watched:
    """An engine that notes every layer asked of it, the time spent inside, and what came back.

    ``inside_processor_s`` is of this process alone: the time of processes it started takes too long to read each step.
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
    """Processor seconds of this process and of all it has started."""
    me = psutil.Process()
    times = [process.cpu_times() for process in (me, *me.children(recursive=True))]
    return float(sum(t.user + t.system + t.children_user + t.children_system for t in times))


def take_turns(sides: Mapping[str, Callable[[], object]], turns: int) -> dict[str, list[Seconds]]:
    """Run every side once in full to warm up, then ``turns`` times, beginning with another side each time."""
    names = list(sides)
    taken: dict[str, list[Seconds]] = {name: [] for name in names}
    for turn in range(turns + 1):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            wall, processor = time.perf_counter(), processor_s()
            sides[name]()
            seconds = Seconds(time.perf_counter() - wall, processor_s() - processor)
            if turn:
                taken[name].append(seconds)
    return taken


def table(taken: Mapping[str, list[Seconds]], base: str) -> dict[str, dict[str, Any]]:
    """Every turn of every side, and the ratio of its medians to those of ``base``."""
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
