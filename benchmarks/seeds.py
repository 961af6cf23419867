"""How much slower is vLLM if every generation has a seed of its own, or in its batch-invariant mode?

Each mode generates one layer of drafts for the same questions. Every text has the same number of tokens, so all modes
do the same work. The batch-invariant mode is a setting of the whole process (VLLM_BATCH_INVARIANT=1) and exists on GPUs
only. To measure it, run the script once with it and once without it, and compare the seeded rows.

Usage: python benchmarks/seeds.py --pretrained FOLDER --questions test.jsonl [--count 24 --k 3 --max-tokens 48
           --turns 3 --device cuda --out benchmarks/results]
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from common import add_turns, write
from workload import engine_of, forget_prefixes, never_stop, parser, read_questions, table, take_turns

from lm_eval_aft.core.config import AFTConfig
from lm_eval_aft.core.engine import Engine
from lm_eval_aft.core.prompts import Template, draft_prompt
from lm_eval_aft.core.records import Question, Request
from lm_eval_aft.inference.schedule import generation_seed

INVARIANT = os.environ.get("VLLM_BATCH_INVARIANT", "0") == "1"


@dataclass
class DraftLayer:
    """Generates the drafts of all questions."""

    engine: Engine
    questions: list[Question]
    config: AFTConfig

    def run(self, seeded: bool) -> None:
        """Generate all drafts once.

        Raises:
            SystemExit: If a text has fewer tokens than its bound.
        """
        forget_prefixes(self.engine)
        requests = [request for question in self.questions for request in self.requests(question, seeded)]
        written = sum(completion.generated_tokens for _, completion in self.engine.generate(requests))
        if written != sum(request.sampling.max_tokens for request in requests):
            raise SystemExit("a text ended early: the modes do not do the same work")

    def requests(self, question: Question, seeded: bool) -> list[Request]:
        """The k draft requests of a question."""
        sampling = replace(question.drafts, seeded=seeded)
        budget = self.engine.max_length - sampling.max_tokens
        prompt = draft_prompt(Template.load(None), self.engine.renderer, question.chat, budget).prompt
        return [
            Request(prompt, sampling, generation_seed(self.config, question, 0, index))
            for index in range(self.config.k)
        ]


def main() -> None:
    """Take turns and write one table."""
    options = parser(__doc__, engine="vllm", count=24)
    options.add_argument("--k", type=int, default=3, help="Number of drafts (default 3).")
    add_turns(options)
    args = options.parse_args()
    engine = engine_of(args)
    if args.engine != "scripted":
        never_stop(engine)
    layer = DraftLayer(engine, read_questions(args), AFTConfig(k=args.k))
    sides: dict[str, Callable[[], None]] = {
        "unseeded": partial(layer.run, False),
        "seeded": partial(layer.run, True),
    }
    figures = {
        "engine": args.engine,
        "device": args.device,
        "dtype": args.dtype,
        "batch_invariant": INVARIANT,
        "k": args.k,
        "questions": args.count,
        "max_tokens": args.max_tokens,
        "modes": table(take_turns(sides, args.turns), "unseeded"),
    }
    write("seeds-invariant" if INVARIANT else "seeds", figures, args.out)


if __name__ == "__main__":
    main()
