"""``mcq=drafts``: multiple-choice questions, scored after the model has read drafts of its own.

lm-eval asks a multiple-choice task as loglikelihood requests: one per choice, all with the question as their context.
Each context is drafted once and goes through the layers as for an answer. The last layer would write the answer; here
it scores every choice as a continuation of the aggregation prompt.

- The context becomes a chat. Under ``--apply_chat_template`` it has the task's own turns. Otherwise the whole string is
  one user turn, with its few-shot examples and its "Answer:". Choices continue a ``gen_prefix``; drafts do not.
- ``draft_max_tokens`` bounds the drafts, or ``max_gen_toks`` if it is not given. These tasks set no bound.
- A choice is the task's, with its delimiter, which lm-eval leaves out under a chat template. lm-eval's own rule splits
  the prompt's end and the choice into tokens, so a score is what ``--model hf`` gives for that prompt.
- If the scorer shares prompts, a prompt runs through the model once for all its choices.
- With ``mcq_orders`` above 1, log-probabilities are means over as many orders of the texts: as written, then shuffled.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from lm_eval.api.instance import Instance

from lm_eval_aft.core.config import AFTConfig
from lm_eval_aft.core.engine import Engine, Score, Scorer
from lm_eval_aft.core.prompts import Template, aggregate_prompt
from lm_eval_aft.core.records import Question, Trace
from lm_eval_aft.core.usage import ModelShape, Usage, reading_usage, total
from lm_eval_aft.inference.dialogue import without_thinking
from lm_eval_aft.inference.probes import apply_probe
from lm_eval_aft.inference.requests import make_question
from lm_eval_aft.inference.shown_prompts import given_args

# vLLM writes a token after what it scores, and a choice may have one more token beside a prompt than alone.
SPARE_TOKENS = 2


@dataclass(frozen=True, slots=True)
class ChoiceQuestion:
    """A multiple-choice question.

    Attributes:
        question: The question.
        choices: For each choice, the positions of its requests. Several processes repeat a request as padding; the
            choice is scored and counted once.
    """

    question: Question
    choices: dict[str, list[int]]


@dataclass(frozen=True, slots=True)
class _ScoringPrompt:
    """A question after its texts in one order, as tokens.

    Attributes:
        prompt: Token ids of the aggregation prompt.
        choices: Token ids of each choice.
        cut_tokens: Tokens cut from each text so that the prompt fits.
        draft_tokens: Tokens of all texts before the cut; 0 if none was cut.
    """

    prompt: tuple[int, ...]
    choices: tuple[tuple[int, ...], ...]
    cut_tokens: tuple[int, ...]
    draft_tokens: int


def questions_with_choices(requests: Sequence[Instance], config: AFTConfig) -> list[ChoiceQuestion]:
    """The questions of loglikelihood requests, in the order of their documents. Equal contexts share their drafts.

    A request without a context asks for the prior probability of a choice. It is not a question and is left out.
    """
    questions: dict[tuple[Any, ...], ChoiceQuestion] = {}
    for position, request in enumerate(requests):
        context, choice = given_args(request)
        if context:
            # Two documents may have one context and different choices.
            key = context, request.task_name, request.doc_id
            question = questions.setdefault(key, ChoiceQuestion(make_question(request, {}, 0, config), {}))
            question.choices.setdefault(choice, []).append(position)
    return list(questions.values())


def score_questions(
    questions: Sequence[ChoiceQuestion],
    traces: Sequence[Trace],
    engine: Engine,
    scorer: Scorer,
    template: Template,
    config: AFTConfig,
    *,
    quiet: bool = False,
) -> tuple[dict[int, Score], list[Trace]]:
    """Score every choice after the texts of the last layer.

    Args:
        questions: Questions with their choices.
        traces: The trace of each question, without an answer.
        engine: Renders prompts.
        scorer: The engine's scorer.
        template: Its aggregate block is used.
        config: ``layers``, ``mcq_orders``, ``probe`` and ``seed`` are read.
        quiet: No progress bar.

    Returns:
        The score of each request by its position, and the traces. Each trace gets the likeliest choice as its answer,
        the log-probability of each choice as its scores, and the cost of scoring.

    Raises:
        PromptTooLong: If a question with its longest choice does not fit.
    """
    prompts = [
        _scoring_prompt(question, texts, engine, scorer, template)
        for question, trace in zip(questions, traces, strict=True)
        for texts in orders(trace, config)
    ]
    scored = _score(prompts, scorer, quiet)
    scores: dict[int, Score] = {}
    answered = []
    for number, (question, trace) in enumerate(zip(questions, traces, strict=True)):
        own = slice(number * config.mcq_orders, (number + 1) * config.mcq_orders)
        means = [_mean(of_choice) for of_choice in zip(*scored[own], strict=True)]
        for positions, mean in zip(question.choices.values(), means, strict=True):
            scores |= dict.fromkeys(positions, mean)
        cost = total([_scoring_usage(prompt, scorer, engine.shape) for prompt in prompts[own]])
        answered.append(_with_answer(trace, list(question.choices), means, prompts[own], cost))
    return scores, answered


def orders(trace: Trace, config: AFTConfig) -> list[list[str]]:
    """The texts of the last layer in ``mcq_orders`` orders: as they were written, then shuffled by the run's seed."""
    last = max(draft.layer for draft in trace.drafts)
    written = [without_thinking(trace.question, draft) for draft in trace.layer(last)]
    texts = apply_probe(written, config, trace.question, config.layers)
    rng = random.Random(f"{config.seed}/{trace.question.chat.identity}/orders")
    return [texts, *(rng.sample(texts, len(texts)) for _ in range(config.mcq_orders - 1))]


def plain_cost(requests: Sequence[Instance], scorer: Scorer, shape: ModelShape | None) -> Usage:
    """The cost of scoring requests without drafts.

    A scorer that shares prompts computes requests that differ in their last token only once.
    """
    pairs = [scorer.encode_pair(*request.args) for request in requests]
    lines = [(*context, *continuation) for context, continuation in pairs]
    if not scorer.shares_prompts:
        return total([reading_usage(len(line), [len(line)], shape) for line in lines])
    counts = Counter(line[:-1] for line in lines)
    return total([reading_usage(len(line), [len(line) + 1] * count, shape) for line, count in counts.items()])


def _scoring_prompt(
    question: ChoiceQuestion, texts: Sequence[str], engine: Engine, scorer: Scorer, template: Template
) -> _ScoringPrompt:
    renderer = engine.renderer
    budget = engine.max_length - SPARE_TOKENS - max(map(renderer.count, question.choices))
    fitted = aggregate_prompt(template, renderer, question.question.chat, texts, budget, final=True)
    text = scorer.render(fitted.prompt.chat)
    pairs = [scorer.encode_pair(text, choice) for choice in question.choices]
    choices = tuple(choice for _, choice in pairs)
    return _ScoringPrompt(pairs[0][0], choices, fitted.cut_tokens, fitted.draft_tokens)


def _score(prompts: Sequence[_ScoringPrompt], scorer: Scorer, quiet: bool) -> list[list[Score]]:
    """The scores of each prompt's choices, in their order."""
    token_ids, choices = [prompt.prompt for prompt in prompts], [prompt.choices for prompt in prompts]
    scores = dict(scorer.score_choices(token_ids, choices, quiet=quiet))
    return [scores[index] for index in range(len(prompts))]


def _mean(scores: Sequence[Score]) -> Score:
    """The mean log-probability. Greedy if the choice is greedy in every order."""
    return sum(value for value, _ in scores) / len(scores), all(greedy for _, greedy in scores)


def _with_answer(
    trace: Trace, choices: Sequence[str], means: Sequence[Score], prompts: Sequence[_ScoringPrompt], cost: Usage
) -> Trace:
    """The trace with the likeliest choice, the scores, the cuts and the cost."""
    best = max(range(len(means)), key=lambda index: means[index][0])
    return replace(
        trace,
        answer=choices[best],
        scores=tuple(value for value, _ in means),
        cut_tokens=(*trace.cut_tokens, prompts[0].cut_tokens),
        draft_tokens=(*trace.draft_tokens, prompts[0].draft_tokens),
        usage=trace.usage + cost,
        computed_usage=trace.computed_usage + cost,
    )


def _scoring_usage(prompt: _ScoringPrompt, scorer: Scorer, shape: ModelShape | None) -> Usage:
    start, ends = len(prompt.prompt), [len(prompt.prompt) + len(choice) for choice in prompt.choices]
    if scorer.shares_prompts:
        return reading_usage(start, ends, shape)
    return total([reading_usage(start, [end], shape) for end in ends])
