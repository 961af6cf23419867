"""Has a model's answers to MT-Bench judged, turn by turn, and keeps what the judge said.

Single-answer grading as FastChat does it: a judgement without a rating is asked for once more, then left out and
counted. Knows nothing of command lines or lm-eval. Called by ``mt_bench_cli`` and the task aft_mt_bench.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from lm_eval_aft.core.files import file_name, write_text
from lm_eval_aft.judging.judge import Judge, JudgeCall, JudgeReply
from lm_eval_aft.judging.mt_bench.data import JUDGMENTS, Material, write_rows
from lm_eval_aft.judging.mt_bench.prompts import PromptSet
from lm_eval_aft.judging.mt_bench.scores import Judgement, Scores, rating, score

MAX_TOKENS = 2048  # FastChat's, as is the temperature of 0
SECOND_TEMPERATURE = 0.7  # most servers repeat themselves at 0, so asking once more would change nothing
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class RatingOptions:
    """How to judge.

    Attributes:
        repeats: How often each turn is judged.
        allow_missing: Score although judgements are missing.
        price_in: Of a million prompt tokens, for the estimate.
        price_out: Of a million generated tokens.
        max_tokens: That a judgement may have.
        temperature: Of the judge.
    """

    repeats: int = 1
    allow_missing: bool = False
    price_in: float | None = None
    price_out: float | None = None
    max_tokens: int = MAX_TOKENS
    temperature: float = 0.0


def judge_answers(material: Material, prompts: PromptSet, judge: Judge, plan: RatingOptions, say: Say) -> Scores:
    """Have every turn judged, write the judgements and the scores into the material's folder, and return the scores.

    Args:
        material: What is judged.
        prompts: With which words.
        judge: Who judges.
        plan: How.
        say: Gets the estimate before anything is sent, and where things were written.

    Raises:
        JudgeError: If the judge fails, or judgements are missing; those made are kept.
        RecordError: If they cannot be written.
    """
    judgements = _judge(_blank(material, prompts, judge.model, plan), judge, plan, say)
    name = file_name(f"{judge.model}_{prompts.name}.{material.model}")
    now = time.time()
    file = write_rows(material.folder / JUDGMENTS / f"{name}.jsonl", (done.row(now) for done, _ in judgements))
    say(f"judgements are in {file}")
    categories = {asked.question_id: asked.category for asked in material.dialogues}
    scores = score([done for done, _ in judgements], categories, plan.allow_missing)
    facts = {
        "scores": scores.to_dict(),
        "judge": {"model": judge.model, "revision": judge.revision, "base_url": judge.client.base_url},
        "judge_settings": {"temperature": plan.temperature, "max_tokens": plan.max_tokens, **judge.extra_body},
        "judge_tokens": {
            "prompt": sum(reply.prompt_tokens for _, reply in judgements),
            "generated": sum(reply.generated_tokens for _, reply in judgements),
        },
        "prompts": {"name": prompts.name, "sha256": prompts.digest, "comparable": prompts.comparable},
        "judgements": str(file),
    }
    place = write_text(material.folder / f"scores_{name}.json", json.dumps(facts, indent=2, ensure_ascii=False) + "\n")
    say(f"scores are in {place}")
    return scores


@dataclass(frozen=True, slots=True)
class _Ask:
    """A judgement to be made: all but the judge's words."""

    judgement: Judgement
    call: JudgeCall


def _blank(material: Material, prompts: PromptSet, judge: str, plan: RatingOptions) -> list[_Ask]:
    asks = []
    for asked, answer in zip(material.dialogues, material.answers, strict=True):
        for turn in range(1, len(asked.turns) + 1):
            template, messages = prompts.prompt(asked, answer, turn)
            call = JudgeCall(messages, plan.temperature, plan.max_tokens)
            for repeat in range(plan.repeats):
                place = (asked.question_id, material.model, judge, prompts.name, template, turn, repeat)
                empty = Judgement(*place, prompt=messages[-1].content, text="", score=None)
                asks.append(_Ask(empty, replace(call, attempt=2 * repeat)))
    return asks


def _judge(asks: Sequence[_Ask], judge: Judge, plan: RatingOptions, say: Say) -> list[tuple[Judgement, JudgeReply]]:
    """Ask, and ask once more where there is no rating."""
    calls = [ask.call for ask in asks]
    say(judge.estimate(calls).sentence(plan.price_in, plan.price_out))
    replies = dict(judge.ask(calls))
    again = [n for n, reply in replies.items() if not reply.refused and rating(reply.text) is None]
    if again:
        say(f"{len(again)} judgements hold no rating: they are asked for once more")
        heat = plan.temperature or SECOND_TEMPERATURE
        second = [replace(calls[n], temperature=heat, attempt=calls[n].attempt + 1) for n in again]
        replies |= {again[n]: reply for n, reply in judge.ask(second)}
    return [(_filled(ask.judgement, replies[n]), replies[n]) for n, ask in enumerate(asks)]


def _filled(judgement: Judgement, reply: JudgeReply) -> Judgement:
    if reply.refused:
        return replace(judgement, text=f"(refused: {reply.refused})")
    return replace(judgement, text=reply.text, score=rating(reply.text))
