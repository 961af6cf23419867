"""How many prompt tokens does an engine compute, compared with the distinct prompts and with the paper's (2KL + 1)F?

Every distinct prompt of a layer has to be computed once; more than that is waste. The hf engine computes each once.
vLLM shares whole blocks only, so it may compute up to one block more for each further text of the same prompt. The
figures are counts, so they do not vary from run to run.

F is the length of one generation: the mean over the run. The paper counts k * layers + 1 generations and, once a layer,
k drafts read. The script counts everything in a prompt, so also question, instruction and delimiters.

Usage: python benchmarks/counts.py --pretrained FOLDER --questions test.jsonl [--engine hf|vllm --count 8
           --points 3,1 5,1 5,2 5,3 --out benchmarks/results]
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from common import write
from workload import MeasuredEngine, engine_of, forget_prefixes, parser, read_questions

from lm_eval_aft.core.config import AFTConfig
from lm_eval_aft.core.engine import Engine
from lm_eval_aft.core.prompts import Template
from lm_eval_aft.core.records import Question
from lm_eval_aft.engines.vllm.engine import VLLMEngine
from lm_eval_aft.inference.schedule import propose_and_aggregate
from lm_eval_aft.storage.draft_store import NoStore

POINTS = ("3,1", "5,1", "5,2", "5,3")


def block_size(engine: Engine) -> int:
    """Tokens in a block of vLLM's prefix cache; 0 for an engine that shares whole prompts."""
    if not isinstance(engine, VLLMEngine):
        return 0
    return int(engine.llm.llm_engine.vllm_config.cache_config.block_size)


def count(engine: Engine, questions: list[Question], k: int, layers: int, block_tokens: int = 0) -> dict[str, Any]:
    """Run one point without a store and count its tokens.

    Args:
        engine: Computes the prompts.
        questions: What is run.
        k: Drafts.
        layers: Aggregation layers.
        block_tokens: Tokens that the engine may compute again for each further text of a prompt.
    """
    forget_prefixes(engine)
    measured = MeasuredEngine(engine)
    traces = propose_and_aggregate(
        questions, measured, Template.load(None), AFTConfig(k=k, layers=layers), NoStore(), quiet=True
    )
    completions = [draft.completion for trace in traces for draft in trace.drafts]
    computed = sum(completion.computed_prompt_tokens for completion in measured.completions)
    prompt_tokens = sum(completion.prompt_tokens for completion in completions)
    generated = sum(completion.generated_tokens for completion in completions)
    distinct = allowance = 0
    for layer in measured.layers:
        lengths = {request.prompt.digest: request.prompt.prompt_tokens for request in layer}
        samples = Counter(request.prompt.digest for request in layer)
        distinct += sum(lengths.values())
        allowance += block_tokens * sum(number - 1 for number in samples.values())
    f = generated / len(completions)
    return {
        "k": k,
        "layers": layers,
        "asked_prompt_tokens": prompt_tokens,
        "distinct_prompt_tokens": distinct,
        "computed_prompt_tokens": computed,
        "computed_over_distinct": round(computed / distinct, 4),
        "allowed_over_distinct": round((distinct + allowance) / distinct, 4),
        "asked_over_distinct": round(prompt_tokens / distinct, 2),
        "generated_tokens": generated,
        "paper_f": 2 * k * layers + 1,
        "processed_f": round((computed + generated) / f / len(questions), 1),
        "processed_f_without_sharing": round((prompt_tokens + generated) / f / len(questions), 1),
    }


def main() -> None:
    """Count every point and write one table."""
    options = parser(__doc__)
    options.add_argument("--points", nargs="+", default=POINTS, help="The points to run, each as k,layers.")
    args = options.parse_args()
    engine, questions = engine_of(args), read_questions(args)
    pairs = [tuple(map(int, point.split(","))) for point in args.points]
    block_tokens = block_size(engine)
    figures = {
        "engine": args.engine,
        "questions": len(questions),
        "max_tokens": args.max_tokens,
        "block_tokens": block_tokens,
        "points": [count(engine, questions, k, layers, block_tokens) for k, layers in pairs],
    }
    write(f"counts-{args.engine}", figures, args.out)


if __name__ == "__main__":
    main()
