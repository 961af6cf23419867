"""How much longer does a run take than the engine alone, on the same prompts, seeds and tokens?

One side is the whole run: the schedule with a new draft store, and the traces written. The other side sends the
requests of that run, layer by layer, straight to ``generate`` of the same engine. The sides take turns after a warm-up,
and the script stops if they do not write the same number of tokens. With ``--unseeded`` a third side sends the same
requests without their seeds. No text ends early then, so that all sides write the same number of tokens.

Two ratios are reported. The ratio of the medians varies with other work on the machine. The ratio of a run's whole time
to its time inside the engine does not.

Usage: python benchmarks/bare.py --pretrained FOLDER --questions test.jsonl [--engine hf|vllm --count 8 --k 5
           --layers 2 --turns 3 --unseeded --out benchmarks/results]
"""

from __future__ import annotations

import statistics
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

from common import add_point, add_turns, write
from workload import MeasuredEngine, engine_of, forget_prefixes, never_stop, parser, read_questions, table, take_turns

from lm_eval_aft.core.config import AFTConfig
from lm_eval_aft.core.engine import Engine
from lm_eval_aft.core.prompts import Template
from lm_eval_aft.core.records import Question, Request
from lm_eval_aft.inference.schedule import propose_and_aggregate
from lm_eval_aft.storage.draft_store import SQLiteStore
from lm_eval_aft.storage.traces import write_traces


@dataclass(frozen=True)
class Durations:
    """Seconds of one whole run, and the part of them spent outside the engine."""

    wall_s: float
    outside_wall_s: float
    outside_processor_s: float


class WholeRun:
    """Runs the schedule with store and traces; keeps durations, requests and tokens of its turns."""

    def __init__(self, engine: Engine, questions: list[Question], config: AFTConfig) -> None:
        self.engine, self.questions, self.config = engine, questions, config
        self.durations: list[Durations] = []
        self.layers: list[list[Request]] = []
        self.tokens = 0

    def run(self) -> None:
        """Run one turn."""
        forget_prefixes(self.engine)
        measured = MeasuredEngine(self.engine)
        wall, processor = time.perf_counter(), time.process_time()
        with tempfile.TemporaryDirectory() as folder:
            store = SQLiteStore(Path(folder, "drafts.sqlite"))
            traces = propose_and_aggregate(
                self.questions, measured, Template.load(None), self.config, store, quiet=True
            )
            write_traces(folder, self.config.to_dict(), traces)
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
        self.durations.append(Durations(wall, wall - measured.inside_s, processor - measured.inside_processor_s))
        self.layers = measured.layers
        self.tokens = sum(completion.generated_tokens for completion in measured.completions)


def engine_alone(whole: WholeRun, seeded: bool = True) -> None:
    """Send the requests of the last whole run to the engine, with or without their seeds.

    Raises:
        SystemExit: If the engine writes another number of tokens than in the whole run.
    """
    forget_prefixes(whole.engine)
    layers = whole.layers if seeded else [[without_seed(request) for request in layer] for layer in whole.layers]
    replies = [list(whole.engine.generate(layer)) for layer in layers]
    tokens = sum(completion.generated_tokens for layer in replies for _, completion in layer)
    if tokens != whole.tokens:
        raise SystemExit(f"the engine alone wrote {tokens} tokens, the run {whole.tokens}: not the same work")


def without_seed(request: Request) -> Request:
    """The same request, sampled without its seed."""
    return replace(request, sampling=replace(request.sampling, seeded=False))


def main() -> None:
    """Take turns and write one table."""
    options = parser(__doc__)
    add_point(options, k=5, layers=2)
    add_turns(options)
    options.add_argument("--unseeded", action="store_true", help="Also measure the bare engine without seeds.")
    args = options.parse_args()
    engine = engine_of(args)
    whole = WholeRun(engine, read_questions(args), AFTConfig(k=args.k, layers=args.layers))
    sides = {"ours": whole.run, "bare": partial(engine_alone, whole)}
    if args.unseeded:
        never_stop(engine)
        sides["bare, unseeded"] = partial(engine_alone, whole, False)
    taken = take_turns(sides, args.turns)
    # The first turn warms up.
    durations = whole.durations[1:]
    inside = statistics.median(turn.wall_s / (turn.wall_s - turn.outside_wall_s) for turn in durations)
    figures = {
        "engine": args.engine,
        "device": args.device,
        "dtype": args.dtype,
        "k": args.k,
        "layers": args.layers,
        "questions": args.count,
        "generated_tokens": whole.tokens,
        "sides": table(taken, "bare"),
        **({"over_unseeded": table(taken, "bare, unseeded")["ours"]} if args.unseeded else {}),
        "whole_over_inside_engine": round(inside, 4),
        "outside": [{name: round(value, 3) for name, value in asdict(turn).items()} for turn in durations],
    }
    write(f"bare-{args.engine}", figures, args.out)


if __name__ == "__main__":
    main()
