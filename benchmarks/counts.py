"""Prompt tokens computed over distinct prompt tokens, beside the paper's (2KL + 1)F: counts, so no noise.

Every distinct prompt of a layer has to be read once; what is read beyond that is waste. The hf engine promises none;
vLLM shares whole blocks only, so it may read up to one block more for each of the other k - 1 texts of a prompt.
F is one generation: the mean text of the run. The paper counts k * layers + 1 texts written, and k drafts read
once a layer; ours counts also what else stands in a prompt (question, instruction, delimiters).

Usage: python benchmarks/counts.py --pretrained FOLDER --questions test.jsonl [--engine hf|vllm --count 8
           --points 3,1 5,1 5,2 5,3 --out benchmarks/results]
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from common import write
from workload import Watched, engine_of, forget_prefixes, parser, read_questions

from lm_eval_aft.core.config import AFTConfig
from lm_eval_aft.core.engine import Engine
from lm_eval_aft.core.prompts import Template
from lm_eval_aft.core.records import Question
from lm_eval_aft.engines.vllm.engine import VLLMEngine
from lm_eval_aft.inference.schedule import propose_and_aggregate
from lm_eval_aft.storage.draft_store import NoStore

POINTS = ("3,1", "5,1", "5,2", "5,3")


def block_tokens(engine: Engine) -> int:
    """Tokens in a block of vLLM's prefix cache; 0 for an engine that shares whole prompts."""
    if not isinstance(engine, VLLMEngine):
        return 0
    return int(engine.llm.llm_engine.vllm_config.cache_config.block_size)


def count(engine: Engine, questions: list[Question], k: int, layers: int) -> dict[str, Any]:
    """Run one point from nothing and count."""
    forget_prefixes(engine)
    watched = Watched(engine)
    traces = propose_and_aggregate(
        questions, watched, Template.load(None), AFTConfig(k=k, layers=layers), NoStore(), quiet=True
    )
    texts = [draft.completion for trace in traces for draft in trace.drafts]
    computed = sum(text.computed_prompt_tokens for text in watched.completions)
    asked, written = sum(t.prompt_tokens for t in texts), sum(t.generated_tokens for t in texts)
    distinct = spare = 0
    for layer in watched.layers:
        lengths = {request.prompt.digest: request.prompt.prompt_tokens for request in layer}
        samples = Counter(request.prompt.digest for request in layer)
        distinct += sum(lengths.values())
        spare += block_tokens(engine) * sum(number - 1 for number in samples.values())
    f = written / len(texts)
    return {
        "k": k,
        "layers": layers,
        "asked_prompt_tokens": asked,
        "distinct_prompt_tokens": distinct,
        "computed_prompt_tokens": computed,
        "computed_over_distinct": round(computed / distinct, 4),
        "allowed_over_distinct": round((distinct + spare) / distinct, 4),
        "asked_over_distinct": round(asked / distinct, 2),
        "generated_tokens": written,
        "paper_f": 2 * k * layers + 1,
        "processed_f": round((computed + written) / f / len(questions), 1),
        "processed_f_without_sharing": round((asked + written) / f / len(questions), 1),
    }


def main() -> None:
    """Count every point and write one table."""
    options = parser(__doc__)
    options.add_argument("--points", nargs="+", default=POINTS, help="k,layers")
    args = options.parse_args()
    engine, questions = engine_of(args), read_questions(args)
    pairs = [tuple(map(int, point.split(","))) for point in args.points]
    figures = {
        "engine": args.engine,
        "questions": len(questions),
        "max_tokens": args.max_tokens,
        "block_tokens": block_tokens(engine),
        "points": [count(engine, questions, k, layers) for k, layers in pairs],
    }
    write(f"counts-{args.engine}", figures, args.out)


if __name__ == "__main__":
    main()
