"""Whether batch size, order, --limit and k change a text: token ids and seeds of whole runs, compared.

Runs the same real questions with batches of 1, 4 and 16 prompts, in reversed order, with fewer questions, and with a
smaller k, on CPU in the dtype given, and counts the generations whose token ids or seeds differ from the first run.

Usage: python benchmarks/invariance.py --pretrained FOLDER --questions test.jsonl [--dtype float32 --out FOLDER]
"""

from __future__ import annotations

import argparse
import json

from common import write

from lm_eval_aft.core.config import AFTConfig
from lm_eval_aft.core.engine import HostArgs
from lm_eval_aft.core.prompts import Template
from lm_eval_aft.core.records import Chat, Draft, Message, Question, Sampling
from lm_eval_aft.engines.hf.engine import HFEngine
from lm_eval_aft.inference.schedule import propose_and_aggregate
from lm_eval_aft.storage.draft_store import NoStore

Texts = dict[tuple[int, int, int], Draft]


def run(engine: HFEngine, questions: list[Question], k: int, layers: int) -> Texts:
    """All generations by (document, layer, index)."""
    config = AFTConfig(k=k, layers=layers)
    traces = propose_and_aggregate(questions, engine, Template.load(None), config, NoStore())
    return {(t.question.doc_id, d.layer, d.index): d for t in traces for d in t.drafts}


def differing(first: Texts, other: Texts, layers: tuple[int, ...]) -> dict[str, int]:
    """How many generations that both have differ."""
    both = [place for place in other if place in first and place[1] in layers]
    same = sum(first[p].completion.token_ids == other[p].completion.token_ids for p in both)
    seeds = sum(first[p].seed == other[p].seed for p in both)
    return {"compared": len(both), "other_token_ids": len(both) - same, "other_seeds": len(both) - seeds}


def main() -> None:
    """Run all variants and write one table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--pretrained", required=True)
    parser.add_argument("--questions", required=True, help="GSM8K's test.jsonl")
    parser.add_argument("--count", type=int, default=6)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--max_tokens", type=int, default=64)
    parser.add_argument("--out")
    args = parser.parse_args()
    sampling = Sampling(0.7, 0.95, 0, args.max_tokens)
    with open(args.questions, encoding="utf-8") as lines:
        texts = [json.loads(line)["question"] for _, line in zip(range(args.count), lines, strict=False)]
    asked = [Question(Chat((Message("user", text),)), sampling, sampling, doc_id=i) for i, text in enumerate(texts)]

    def engine(batch_size: int) -> HFEngine:
        return HFEngine.load({"pretrained": args.pretrained, "dtype": args.dtype}, HostArgs(batch_size, None, "cpu"))

    first = run(engine(16), asked, 5, 2)
    whole = (0, 1, 2)
    variants = {
        "batch size 4": differing(first, run(engine(4), asked, 5, 2), whole),
        "batch size 1": differing(first, run(engine(1), asked, 5, 2), whole),
        "reversed order": differing(first, run(engine(16), asked[::-1], 5, 2), whole),
        "half the questions": differing(first, run(engine(16), asked[: args.count // 2], 5, 2), whole),
        "drafts of k=3": differing(first, run(engine(16), asked, 3, 1), (0,)),
    }
    write(
        "invariance",
        {"questions": args.count, "dtype": args.dtype, "max_tokens": args.max_tokens, **variants},
        args.out,
    )


if __name__ == "__main__":
    main()
