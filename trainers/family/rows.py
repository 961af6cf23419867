"""The rows of the family's trainings: drafts of the base, sets of them, and targets chosen by a verifier.

If a row shows a right draft, the target is that draft word for word, which ``aft train`` warns about: the training is
meant to teach which draft to choose. Otherwise the target is a right answer that the row does not show. The supply of
problems has no end, so few questions occur twice.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from lm_eval_aft.bundled import arith
from lm_eval_aft.bundled.arith import Problem
from lm_eval_aft.core.config import AFTConfig
from lm_eval_aft.core.engine import HostArgs
from lm_eval_aft.core.jsonl import write_jsonl
from lm_eval_aft.core.prompts import Template
from lm_eval_aft.core.records import Chat, Message, Question, Sampling
from lm_eval_aft.engines.registry import load_engine
from lm_eval_aft.inference.schedule import propose_and_aggregate
from lm_eval_aft.storage.draft_store import NoStore
from trainers.family.documents import ANSWER_TOKENS, PROMPT_TEMPLATE
from trainers.family.pretrain import device
from trainers.family.settings import FamilyConfig

# Numbers of drafts a row, drawn with equal chance.
TRAINED_K = (1, 3, 3, 5, 5, 5)


def sample_drafts(config: FamilyConfig, out: Path, problems: Sequence[Problem]) -> list[tuple[str, ...]]:
    """The base's drafts of each problem, made by the engine and the schedule of an evaluation."""
    engine = load_engine("hf", {"pretrained": str(out / "base"), "dtype": "float32"}, HostArgs(64, None, str(device())))
    sampling = Sampling(config.temperature, 0.95, 0, ANSWER_TOKENS)
    # layers=0 writes one text a question, so each draft is a repeat of the question. The seeds of the bundled rows
    # depend on it.
    repeats = [
        Question(Chat((Message("user", problem.question),)), sampling, sampling, doc_id=number, repeat=index)
        for number, problem in enumerate(problems)
        for index in range(config.drafts)
    ]
    run = AFTConfig(k=1, layers=0, seed=config.seed)
    traces = propose_and_aggregate(repeats, engine, Template(PROMPT_TEMPLATE, "aft_arith"), run, NoStore())
    texts = [trace.answer for trace in traces]
    return [tuple(texts[i : i + config.drafts]) for i in range(0, len(texts), config.drafts)]


def make_rows(config: FamilyConfig, out: Path) -> dict[str, Any]:
    """Write train.jsonl and validation.jsonl, and the same for SFT, and return figures about them."""
    counts: dict[str, Any] = {}
    for split, size in (("train", config.queries), ("validation", config.queries // 20)):
        solved = list(islice(arith.problems(split, config.seed + 1), size))
        drafts = sample_drafts(config, out, [problem for problem, _ in solved])
        rng = random.Random(f"{config.seed} {split}")
        drafted = [(problem, arith.write(way), texts) for (problem, way), texts in zip(solved, drafts, strict=True)]
        rows = [row for each in drafted for row in rows_of(*each, config, rng)]
        write_jsonl(out / f"{split}.jsonl", rows)
        write_jsonl(out / f"{split}_sft.jsonl", ({"query": p.question, "sft_target": way} for p, way, _ in drafted))
        right = [sum(arith.is_right(problem, text) for text in texts) for problem, _, texts in drafted]
        counts[split] = {"queries": size, "rows": len(rows), "draft_accuracy": sum(right) / size / config.drafts}
        counts[split]["none_right"] = right.count(0) / size
    return counts


def rows_of(
    problem: Problem, solution: str, texts: Sequence[str], config: FamilyConfig, rng: random.Random
) -> Iterator[dict[str, Any]]:
    """Draw sets of drafts; the target is a right draft of the set, else another right answer."""
    right = [text for text in texts if arith.is_right(problem, text)]
    wrong = [text for text in texts if text not in right]
    for _ in range(config.sets):
        k = rng.choice(TRAINED_K)
        row_drafts = rng.sample(list(texts), k)
        # Only drafts that disagree in correctness teach to choose.
        if k > 1 and right and wrong and rng.random() < config.mixed:
            most = min(k - 1, len(right))
            right_count = rng.randint(min(most, max(1, k - len(wrong))), most)
            row_drafts = rng.sample(right, right_count) + rng.sample(wrong, min(k - right_count, len(wrong)))
            rng.shuffle(row_drafts)
        right_in_row = [text for text in row_drafts if text in right]
        target = rng.choice(right_in_row) if right_in_row else rng.choice(right) if right else solution
        yield {"query": problem.question, "drafts": row_drafts, "target": target, "sft_target": solution}
