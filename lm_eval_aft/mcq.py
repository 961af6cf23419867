"""``mcq=drafts``: multiple-choice questions scored after the model has read drafts of its own.

lm-eval asks a multiple-choice task as loglikelihood requests, one a choice, all with the question as their context.
Here each question is drafted once, k texts and ``layers`` - 1 passes over them, exactly as an answer would be; the
last pass, which would write the answer, scores every choice as a continuation of the aggregation prompt instead. The
prompt runs through the model once for all choices where the engine can do so (``score_choices``). With ``mcq_orders``
above 1 log-probabilities are means over as many orders of the texts.

Knows nothing of how texts are generated. Called by ``model``.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from lm_eval.api.instance import Instance

from lm_eval_aft.config import AFTConfig
from lm_eval_aft.engines.base import Engine
from lm_eval_aft.prompts import Template, aggregate_prompt
from lm_eval_aft.records import Question, Trace
from lm_eval_aft.requests import make_question
from lm_eval_aft.usage import ModelShape, Usage, total

Score = tuple[float, bool]  # lm-eval's: log-probability of a continuation, and whether it is the greedy one


@dataclass(frozen=True, slots=True)
class Quiz:
    """One question and the continuations that were asked about it, by their positions among the requests."""

    question: Question
    choices: dict[int, str]


def quizzes(requests: Sequence[Instance], config: AFTConfig) -> list[Quiz]:
    """The requests by question, in the order in which questions come first.

    A request without a context (a choice on its own, for its prior probability) is no question and is left out.
    """
    found: dict[str, Quiz] = {}
    for position, request in enumerate(requests):
        context, choice = request.args
        if context:
            quiz = found.setdefault(context, Quiz(make_question(request, {}, 0, config), {}))
            quiz.choices[position] = choice
    return list(found.values())


def score_quizzes(
    asked: Sequence[Quiz], traces: Sequence[Trace], engine: Engine, template: Template, config: AFTConfig
) -> tuple[dict[int, Score], list[Trace]]:
    """Score every choice after the texts of the last layer.

    Args:
        asked: Questions with their choices.
        traces: What was written about each, its last layer last.
        engine: Renders prompts and scores.
        template: Its aggregate block is used.
        config: ``mcq_orders`` and ``seed`` are read.

    Returns:
        The score of each request by its position, and the traces with the likeliest choice as their answer, a
        log-probability a choice as their scores, and the cost of scoring added.

    Raises:
        PromptTooLong: If a question with its longest choice does not fit.
    """
    prompts, continuations = [], []
    for quiz, trace in zip(asked, traces, strict=True):
        choices = [choice_ids(engine, choice) for choice in quiz.choices.values()]
        room = engine.max_length - max(map(len, choices))
        for texts in orders(trace, config):
            fitted = aggregate_prompt(template, engine.renderer, quiz.question.chat, texts, room, final=True)
            prompts.append(fitted.prompt.token_ids or ())
            continuations.append(choices)
    scored = _score(engine, prompts, continuations)
    scores: dict[int, Score] = {}
    done = []
    for number, (quiz, trace) in enumerate(zip(asked, traces, strict=True)):
        own = slice(number * config.mcq_orders, (number + 1) * config.mcq_orders)
        means = [_mean(column) for column in zip(*scored[own], strict=True)]
        scores |= dict(zip(quiz.choices, means, strict=True))
        cost = _cost(prompts[own], continuations[own], engine.shape, shared=_shares(engine))
        best = max(range(len(means)), key=lambda index: means[index][0])
        done.append(
            replace(
                trace,
                answer=list(quiz.choices.values())[best],
                scores=tuple(log_probability for log_probability, _ in means),
                usage=trace.usage + cost,
                spent=trace.spent + cost,
            )
        )
    return scores, done


def orders(trace: Trace, config: AFTConfig) -> list[list[str]]:
    """The texts of the last layer in ``mcq_orders`` orders: as they were written, then shuffled by the run's seed."""
    last = max(draft.layer for draft in trace.drafts)
    texts = [draft.completion.text for draft in trace.layer(last)]
    rng = random.Random(f"{config.seed}/{trace.question.chat.identity}/orders")
    return [texts, *(rng.sample(texts, len(texts)) for _ in range(config.mcq_orders - 1))]


def choice_ids(engine: Engine, choice: str) -> tuple[int, ...]:
    """The tokens of a choice, as a continuation of a prompt."""
    tokenizer: Any = getattr(engine.renderer, "tokenizer")  # noqa: B009 - a renderer of a server has none
    return tuple(tokenizer.encode(choice, add_special_tokens=False))


def _shares(engine: Engine) -> bool:
    return hasattr(engine, "score_choices")


def _score(
    engine: Any, prompts: Sequence[tuple[int, ...]], continuations: Sequence[Sequence[tuple[int, ...]]]
) -> list[list[Score]]:
    """The scores of each prompt's continuations, in their order."""
    if _shares(engine):
        shared: list[list[Score]] = engine.score_choices(prompts, continuations)
        return shared
    pairs = zip(prompts, continuations, strict=True)
    rows = [(("", ""), list(prompt), list(ids)) for prompt, choices in pairs for ids in choices]
    flat = iter(engine.scorer._loglikelihood_tokens(rows))  # lm-eval's own entrance for token ids
    return [[next(flat) for _ in choices] for choices in continuations]


def _mean(scores: Sequence[Score]) -> Score:
    """The mean log-probability; greedy where every order would have it so."""
    return sum(value for value, _ in scores) / len(scores), all(greedy for _, greedy in scores)


def _cost(
    prompts: Sequence[Sequence[int]],
    continuations: Sequence[Sequence[Sequence[int]]],
    shape: ModelShape | None,
    *,
    shared: bool,
) -> Usage:
    """What scoring read; it writes nothing."""
    usages = []
    for prompt, choices in zip(prompts, continuations, strict=True):
        start, ends = len(prompt), [len(prompt) + len(ids) for ids in choices]
        prefills = 1 if shared else len(choices)
        flops = prefills * shape.flops(0, start) + sum(shape.flops(start, end) for end in ends) if shape else 0
        usages.append(Usage(0, sum(ends), prefills * start + sum(end - start for end in ends), 0, flops))
    return total(usages)
