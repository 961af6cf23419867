"""Do batch size, order, the number of questions or k change a generation of the hf engine?

The script runs the same questions on the CPU with batches of 1, 4 and 16 prompts, in reversed order, with half of the
questions, and with a smaller k. It counts the generations whose token ids or seeds differ from those of the first run.

Usage: python benchmarks/invariance.py --pretrained FOLDER --questions test.jsonl [--dtype float32 --out FOLDER]
"""

from __future__ import annotations

from common import parser, write
from workload import first_questions, user_turn

from lm_eval_aft.core.config import AFTConfig
from lm_eval_aft.core.engine import HostArgs
from lm_eval_aft.core.prompts import Template
from lm_eval_aft.core.records import Draft, Question, Sampling
from lm_eval_aft.engines.hf.engine import HFEngine
from lm_eval_aft.inference.schedule import propose_and_aggregate
from lm_eval_aft.storage.draft_store import NoStore

# By document, layer and index.
Generations = dict[tuple[int, int, int], Draft]
# Layers of the runs at (5, 2).
ALL_LAYERS = (0, 1, 2)


def run(engine: HFEngine, questions: list[Question], k: int, layers: int) -> Generations:
    """Run the schedule without a store. Returns all generations."""
    config = AFTConfig(k=k, layers=layers)
    traces = propose_and_aggregate(questions, engine, Template.load(None), config, NoStore())
    return {(t.question.doc_id, d.layer, d.index): d for t in traces for d in t.drafts}


def differing(first: Generations, other: Generations, layers: tuple[int, ...] = ALL_LAYERS) -> dict[str, int]:
    """Count the generations of these layers that both runs have, and those that differ."""
    both = [place for place in other if place in first and place[1] in layers]
    same = sum(first[p].completion.token_ids == other[p].completion.token_ids for p in both)
    seeds = sum(first[p].seed == other[p].seed for p in both)
    return {"compared": len(both), "other_token_ids": len(both) - same, "other_seeds": len(both) - seeds}


def main() -> None:
    """Run all variants and write one table."""
    options = parser(__doc__)
    options.add_argument("--pretrained", required=True, help="Folder of the checkpoint.")
    options.add_argument(
        "--questions", required=True, help="JSON lines file with a field `question`, such as GSM8K's test.jsonl."
    )
    options.add_argument("--count", type=int, default=6, help="How many questions are used (default 6).")
    options.add_argument("--dtype", default="float32", help="Type of the weights (default float32).")
    options.add_argument("--max_tokens", type=int, default=64, help="Bound of each generation in tokens (default 64).")
    args = options.parse_args()
    sampling = Sampling(0.7, 0.95, 0, args.max_tokens)
    texts = first_questions(args.questions, args.count)
    questions = [Question(user_turn(text), sampling, sampling, doc_id=number) for number, text in enumerate(texts)]

    def engine(batch_size: int) -> HFEngine:
        return HFEngine.load({"pretrained": args.pretrained, "dtype": args.dtype}, HostArgs(batch_size, None, "cpu"))

    first = run(engine(16), questions, 5, 2)
    variants = {
        "batch size 4": differing(first, run(engine(4), questions, 5, 2)),
        "batch size 1": differing(first, run(engine(1), questions, 5, 2)),
        "reversed order": differing(first, run(engine(16), questions[::-1], 5, 2)),
        "half the questions": differing(first, run(engine(16), questions[: args.count // 2], 5, 2)),
        "drafts of k=3": differing(first, run(engine(16), questions, 3, 1), (0,)),
    }
    write(
        "invariance",
        {"questions": args.count, "dtype": args.dtype, "max_tokens": args.max_tokens, **variants},
        args.out,
    )


if __name__ == "__main__":
    main()
