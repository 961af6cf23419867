"""Single-answer grading of MT-Bench, turn by turn, as FastChat does it.

A judgement without a rating is requested once more. If the second has none either, it is left out and counted.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from lm_eval_aft.core.arguments import refuse_count
from lm_eval_aft.core.files import file_name, write_text
from lm_eval_aft.core.jsonl import write_jsonl
from lm_eval_aft.core.thinking import has_marks, unopened_thought
from lm_eval_aft.judging.judge import Judge, JudgeCall, JudgeReply
from lm_eval_aft.judging.mt_bench.data import JUDGMENT_FOLDER, AnswerSet
from lm_eval_aft.judging.mt_bench.prompts import PromptSet
from lm_eval_aft.judging.mt_bench.replies import Judgement, parse_rating
from lm_eval_aft.judging.mt_bench.scores import MTBenchScores, score_judgements

# FastChat's, as is the temperature of 0
MAX_TOKENS = 2048
# MT-Bench has 160 turns.
MAX_JUDGEMENTS = 1_000_000
# Most servers repeat a reply at temperature 0, so the second call would change nothing.
SECOND_TEMPERATURE = 0.7


@dataclass(frozen=True, slots=True)
class RatingOptions:
    """How to judge.

    Attributes:
        repeats: How often each turn is judged.
        allow_missing: Whether to score even if ratings are missing.
        price_in: Cost of a million prompt tokens, for the estimate; None if unknown.
        price_out: Cost of a million generated tokens; None if unknown.
        max_tokens: Upper bound of the tokens of a reply.
        temperature: Temperature of the judge.
    """

    repeats: int = 1
    allow_missing: bool = False
    price_in: float | None = None
    price_out: float | None = None
    max_tokens: int = MAX_TOKENS
    temperature: float = 0.0


def judge_answers(
    answer_set: AnswerSet, prompts: PromptSet, judge: Judge, options: RatingOptions, notify: Callable[[str], None]
) -> MTBenchScores:
    """Have every turn judged, and write judgements and scores into the folder of the answers.

    Args:
        answer_set: What is judged.
        prompts: The judge prompts.
        judge: Who judges.
        options: How.
        notify: Receives the estimate before the first call, and the names of the files that were written.

    Raises:
        ConfigError: If there would be more than ``MAX_JUDGEMENTS``.
        JudgeError: If the judge fails or ratings are missing. The judgements that were made are kept.
        RecordError: If a file cannot be written.
    """
    refuse_count(
        sum(len(question.turns) for question in answer_set.questions) * options.repeats,
        MAX_JUDGEMENTS,
        f"--repeats {options.repeats:,} would be {{}} generations of the judge",
        "lower it",
    )
    judged = _judge(_calls(answer_set, prompts, judge.model, options), judge, options, notify)
    judgements = [judgement for judgement, _ in judged]
    name = file_name(f"{judge.model}_{prompts.name}.{answer_set.model}")
    now = time.time()
    file = answer_set.folder / JUDGMENT_FOLDER / f"{name}.jsonl"
    write_jsonl(file, (judgement.row(now) for judgement in judgements), errors="replace")
    notify(f"judgements are in {file}")
    categories = {question.question_id: question.category for question in answer_set.questions}
    scores = score_judgements(judgements, categories, options.allow_missing)
    facts = {
        "scores": scores.to_dict(),
        "judge": {"model": judge.model, "revision": judge.revision, "base_url": judge.client.base_url},
        "judge_settings": {"temperature": options.temperature, "max_tokens": options.max_tokens, **judge.extra_body},
        "judge_tokens": {
            "prompt": sum(reply.prompt_tokens for _, reply in judged),
            "generated": sum(reply.generated_tokens for _, reply in judged),
        },
        "prompts": {"name": prompts.name, "sha256": prompts.digest, "comparable": prompts.comparable},
        "judgements": str(file),
    }
    text = json.dumps(facts, indent=2, ensure_ascii=False) + "\n"
    notify(f"scores are in {write_text(answer_set.folder / f'scores_{name}.json', text)}")
    return scores


@dataclass(frozen=True, slots=True)
class _PendingJudgement:
    """A judgement without the judge's reply, and the call that requests it."""

    judgement: Judgement
    call: JudgeCall


def _calls(answer_set: AnswerSet, prompts: PromptSet, judge: str, options: RatingOptions) -> list[_PendingJudgement]:
    pending = []
    for question, answer in zip(answer_set.questions, answer_set.answers, strict=True):
        for turn in range(1, len(question.turns) + 1):
            template, messages = prompts.prompt(question, answer, turn)
            call = JudgeCall(messages, options.temperature, options.max_tokens)
            for repeat in range(options.repeats):
                place = (question.question_id, answer_set.model, judge, prompts.name, template, turn, repeat)
                empty = Judgement(*place, prompt=messages[-1].content, text="", score=None)
                # each repeat has two attempts: the first call, and the one after a reply without a rating
                pending.append(_PendingJudgement(empty, replace(call, attempt=2 * repeat)))
    return pending


def _judge(
    pending: Sequence[_PendingJudgement], judge: Judge, options: RatingOptions, notify: Callable[[str], None]
) -> list[tuple[Judgement, JudgeReply]]:
    """Make all calls, and once more those whose replies hold no rating."""
    calls = [one.call for one in pending]
    notify(judge.estimate(calls).sentence(options.price_in, options.price_out))
    replies = dict(judge.ask(calls))
    opened = unopened_thought(reply.text for reply in replies.values())
    unrated = [n for n, reply in replies.items() if not reply.refused and _rating(reply, opened) is None]
    if unrated:
        notify(f"{len(unrated)} judgements hold no rating: they are requested once more")
        temperature = options.temperature or SECOND_TEMPERATURE
        second = [replace(calls[n], temperature=temperature, attempt=calls[n].attempt + 1) for n in unrated]
        replies |= {unrated[n]: reply for n, reply in judge.ask(second)}
    opened = unopened_thought(reply.text for reply in replies.values())
    return [(_completed(one.judgement, replies[n], opened), replies[n]) for n, one in enumerate(pending)]


def _completed(judgement: Judgement, reply: JudgeReply, opened: str) -> Judgement:
    if reply.refused:
        return replace(judgement, text=f"(refused: {reply.refused})")
    return replace(judgement, text=reply.text, score=_rating(reply, opened))


def _rating(reply: JudgeReply, opened: str) -> float | None:
    """The rating in a reply.

    Args:
        reply: The reply.
        opened: The mark with which the judge's chat template opens a thought, as other replies show; "" if it opens
            none. A reply that was cut before the thought ended has no mark of its own.
    """
    return parse_rating(reply.text, opened if reply.cut and not has_marks(reply.text) else "")
