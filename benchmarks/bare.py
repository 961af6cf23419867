"""Our time over the bare engine's, on the same prompts, seeds and token counts.

Ours: the whole schedule with a new draft store and the traces written. Bare: the same engine object's ``generate``
on the requests that a first run noted, layer by layer, and nothing else. They take turns after a full warm-up of each;
both must write the same number of tokens. Two ratios are given: of the medians, which other work on the machine blurs,
and of one run with itself (whole over inside the engine), which it does not.

Usage: python benchmarks/bare.py --pretrained FOLDER --questions test.jsonl [--engine hf|vllm --count 8 --k 5
           --layers 2 --turns 3 --out benchmarks/results]
"""

from __future__ import annotations

import statistics
import tempfile
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from common import write
from workload import Watched, engine_of, forget_prefixes, parser, read_questions, table, take_turns

from lm_eval_aft.core.config import AFTConfig
from lm_eval_aft.core.engine import Engine
from lm_eval_aft.core.prompts import Template
from lm_eval_aft.core.records import Question, Request
from lm_eval_aft.inference.schedule import propose_and_aggregate
from lm_eval_aft.storage.draft_store import SQLiteStore
from lm_eval_aft.storage.traces import write_traces


@dataclass(frozen=True)
class Share:
    """Of one whole run, what was spent outside the engine."""

    wall_s: float
    outside_wall_s: float
    outside_processor_s: float


class Ours:
    """The whole schedule as a run has it; keeps what each turn took and asked."""

    def __init__(self, engine: Engine, questions: list[Question], config: AFTConfig) -> None:
        self.engine, self.questions, self.config = engine, questions, config
        self.shares: list[Share] = []
        self.layers: list[list[Request]] = []
        self.tokens = 0

    def run(self) -> None:
        """One turn."""
        forget_prefixes(self.engine)
        watched = Watched(self.engine)
        wall, processor = time.perf_counter(), time.process_time()
        with tempfile.TemporaryDirectory() as folder:
            store = SQLiteStore(Path(folder, "drafts.sqlite"))
            traces = propose_and_aggregate(self.questions, watched, Template.load(None), self.config, store, quiet=True)
            write_traces(folder, self.config.to_dict(), traces)
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
        self.shares.append(Share(wall, wall - watched.inside_s, processor - watched.inside_processor_s))
        self.layers = watched.layers
        self.tokens = sum(completion.generated_tokens for completion in watched.completions)


def bare(ours: Ours) -> None:
    """The engine alone, on the layers that ours has asked."""
    forget_prefixes(ours.engine)
    answered = [list(ours.engine.generate(layer)) for layer in ours.layers]
    tokens = sum(completion.generated_tokens for layer in answered for _, completion in layer)
    if tokens != ours.tokens:
        raise SystemExit(f"the engine alone wrote {tokens} tokens, we {ours.tokens}: not the same work")


def main() -> None:
    """Take turns and write one table."""
    options = parser(__doc__)
    options.add_argument("--k", type=int, default=5)
    options.add_argument("--layers", type=int, default=2)
    options.add_argument("--turns", type=int, default=3)
    args = options.parse_args()
    ours = Ours(engine_of(args), read_questions(args), AFTConfig(k=args.k, layers=args.layers))
    taken = table(take_turns({"ours": ours.run, "bare": partial(bare, ours)}, args.turns), "bare")
    shares = ours.shares[1:]
    inside = statistics.median(share.wall_s / (share.wall_s - share.outside_wall_s) for share in shares)
    figures = {
        "engine": args.engine,
        "dtype": args.dtype,
        "k": args.k,
        "layers": args.layers,
        "questions": args.count,
        "generated_tokens": ours.tokens,
        "sides": taken,
        "whole_over_inside_engine": round(inside, 4),
        "outside": [{name: round(value, 3) for name, value in asdict(share).items()} for share in shares],
    }
    write(f"bare-{args.engine}", figures, args.out)


if __name__ == "__main__":
    main()
