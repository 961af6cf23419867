"""What share of ``engine=hf``'s decoding does the confidence of its texts take?

The script generates texts with the engine and adds up the processor time of ``token_logprobs``, which computes the
log-probability of each generated token. One warm-up precedes the turns.

Usage: python benchmarks/confidence.py [--pretrained MODEL] [--rows 5 40] [--tokens 32] [--out benchmarks/results]
"""

from __future__ import annotations

import time
from typing import Any
from unittest.mock import patch

import common

from lm_eval_aft.bundled import locate
from lm_eval_aft.core.engine import HostArgs
from lm_eval_aft.core.records import Chat, Message, Request, Sampling
from lm_eval_aft.engines.hf import decoding
from lm_eval_aft.engines.hf.engine import HFEngine
from lm_eval_aft.engines.hf.logprobs import token_logprobs


def requests_of(engine: HFEngine, rows: int, tokens: int) -> list[Request]:
    """Requests that make one batch of so many rows: five drafts of each question."""
    prompts = [engine.renderer.encode(Chat((Message("user", f"What is {n} + {n}?"),))) for n in range(rows // 5)]
    return [Request(prompt, Sampling(0.7, 0.95, 0, tokens), seed) for prompt in prompts for seed in range(5)]


def measure(engine: HFEngine, requests: list[Request]) -> tuple[float, float]:
    """Processor seconds of generating all requests, and those of the log-probabilities among them."""
    inside = 0.0

    def timed(*args: Any) -> Any:
        nonlocal inside
        started = time.process_time()
        logprobs = token_logprobs(*args)
        inside += time.process_time() - started
        return logprobs

    with patch.object(decoding, "token_logprobs", timed):
        started = time.process_time()
        texts = dict(engine.generate(requests))
        whole = time.process_time() - started
    if any(completion.confidence is None for completion in texts.values()):
        raise SystemExit("a text has no confidence")
    return whole, inside


def main() -> None:
    """Measure and write the figures."""
    options = common.parser(__doc__)
    common.add_turns(options)
    options.add_argument("--pretrained", default="bundled:aft", help="Checkpoint (default bundled:aft).")
    options.add_argument("--rows", type=int, nargs="+", default=[5, 40], help="Rows of a batch (default 5 and 40).")
    options.add_argument("--tokens", type=int, default=32, help="Most tokens of a text (default 32).")
    args = options.parse_args()
    engine = HFEngine.load({"pretrained": locate(args.pretrained), "dtype": "float32"}, HostArgs(1000, None, "cpu"))
    cases = {}
    for rows in args.rows:
        requests = requests_of(engine, rows, args.tokens)
        measure(engine, requests[:5])
        turns = [measure(engine, requests) for _ in range(args.turns)]
        cases[f"{rows} rows"] = {
            "generate_cpu_s": [round(whole, 3) for whole, _ in turns],
            "logprobs_cpu_s": [round(inside, 4) for _, inside in turns],
            "share_percent": [round(100 * inside / whole, 2) for whole, inside in turns],
        }
    vocabulary = engine.model.config.get_text_config().vocab_size
    figures = {"tokens": args.tokens, "vocabulary": vocabulary, "turns": args.turns, "cases": cases}
    name = "confidence-" + args.pretrained.rstrip("/").rpartition("/")[2].replace(":", "-").lower()
    common.write(name, figures, args.out)


if __name__ == "__main__":
    main()
