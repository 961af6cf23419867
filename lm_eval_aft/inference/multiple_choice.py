"""``mcq=drafts``: multiple-choice questions scored after the model has read drafts of its own.

lm-eval asks a multiple-choice task as loglikelihood requests, one a choice, all with the question as their context.
Here each context is drafted once, k texts and ``layers`` - 1 passes over them, exactly as an answer would be; the
last pass, which would write the answer, scores every choice as a continuation of the aggregation prompt instead.

- The context becomes a chat as everywhere: the task's own turns under ``--apply_chat_template``; otherwise the whole
  string, few-shot examples, "Answer:" or half a sentence, is one user turn. A ``gen_prefix`` is continued by the
  choices, not by the drafts.
- ``draft_max_tokens`` bounds the drafts, else ``max_gen_toks``: these tasks set no bound of their own.
- A choice is the task's, with its delimiter, which lm-eval leaves out under a chat template. It is split into tokens
  together with the prompt's end, by lm-eval's own rule: a score here is what ``--model hf`` gives for that prompt.
- Where the engine can (``score_choices``) the prompt runs through the model once for all choices.
- With ``mcq_orders`` above 1 log-probabilities are means over as many orders of the texts: as written, then shuffled.

Knows nothing of how texts are generated. Called by ``model``.
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
from lm_eval_aft.core.usage import ModelShape, Usage, read_only, total
from lm_eval_aft.inference.probes import apply_probe
from lm_eval_aft.inference.requests import make_question

SPARE_TOKENS = 2  # vLLM writes a token after what it scores; a choice may have one more beside a prompt than alone


@dataclass(frozen=True, slots=True)
class ChoiceQuestion:
    """One question and what was asked about it: the positions among the requests of each choice.

    Several processes repeat a request as padding; the repeat is scored and counted once.
    """

    question: Question
    choices: dict[str, list[int]]


@dataclass(frozen=True, slots=True)
class _ScoringPrompt:
    """The choices of a question after its texts in one order, in tokens."""

    prompt: tuple[int, ...]
    choices: tuple[tuple[int, ...], ...]
    cut_tokens: tuple[int, ...]


def questions_with_choices(requests: Sequence[Instance], config: AFTConfig) -> list[ChoiceQuestion]:
    """The requests by document, in the order in which documents come first; equal contexts share their drafts.

    A request without a context (a choice on its own, for its prior probability) is no question and is left out.
    """
    found: dict[tuple[Any, ...], ChoiceQuestion] = {}
    for position, request in enumerate(requests):
        context, choice = request.args
        if context:
            key = context, request.task_name, request.doc_id  # documents may ask the same of other choices
            quiz = found.setdefault(key, ChoiceQuestion(make_question(request, {}, 0, config), {}))
            quiz.choices.setdefault(choice, []).append(position)
    return list(found.values())


def score_questions(
    asked: Sequence[ChoiceQuestion],
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
        asked: Questions with their choices.
        traces: What was written about each, its last layer last.
        engine: Renders prompts.
        scorer: Its scorer.
        template: Its aggregate block is used.
        config: ``layers``, ``mcq_orders``, ``probe`` and ``seed`` are read.
        quiet: No progress bar.

    Returns:
        The score of each request by its position, and the traces with the likeliest choice as their answer, a
        log-probability a choice as their scores, and the cost of scoring added.

    Raises:
        PromptTooLong: If a question with its longest choice does not fit.
    """
    sheets = [
        _sheet(quiz, texts, engine, scorer, template)
        for quiz, trace in zip(asked, traces, strict=True)
        for texts in orders(trace, config)
    ]
    scored = _score(sheets, scorer, quiet)
    scores: dict[int, Score] = {}
    done = []
    for number, (quiz, trace) in enumerate(zip(asked, traces, strict=True)):
        own = slice(number * config.mcq_orders, (number + 1) * config.mcq_orders)
        means = [_mean(column) for column in zip(*scored[own], strict=True)]
        for positions, mean in zip(quiz.choices.values(), means, strict=True):
            scores |= dict.fromkeys(positions, mean)
        cost = total([_sheet_cost(sheet, scorer, engine.shape) for sheet in sheets[own]])
        done.append(_finished(trace, list(quiz.choices), means, sheets[own], cost))
    return scores, done


def orders(trace: Trace, config: AFTConfig) -> list[list[str]]:
    """The texts of the last layer in ``mcq_orders`` orders: as they were written, then shuffled by the run's seed."""
    last = max(draft.layer for draft in trace.drafts)
    written = [draft.completion.text for draft in trace.layer(last)]
    texts = apply_probe(written, config, trace.question, config.layers)
    rng = random.Random(f"{config.seed}/{trace.question.chat.identity}/orders")
    return [texts, *(rng.sample(texts, len(texts)) for _ in range(config.mcq_orders - 1))]


def plain_cost(requests: Sequence[Instance], scorer: Scorer, shape: ModelShape | None) -> Usage:
    """What scoring requests at once reads: the hf engine computes those that differ in their last token once."""
    read = [scorer.encode_pair(*request.args) for request in requests]
    lines = [(*context, *continuation) for context, continuation in read]
    if not scorer.shares_prompts:
        return total([read_only(len(line), [len(line)], shape) for line in lines])
    counts = Counter(line[:-1] for line in lines)
    return total([read_only(len(line), [len(line) + 1] * count, shape) for line, count in counts.items()])


def _sheet(
    quiz: ChoiceQuestion, texts: Sequence[str], engine: Engine, scorer: Scorer, template: Template
) -> _ScoringPrompt:
    renderer = engine.renderer
    room = engine.max_length - SPARE_TOKENS - max(map(renderer.count, quiz.choices))
    fitted = aggregate_prompt(template, renderer, quiz.question.chat, texts, room, final=True)
    text = scorer.render(fitted.prompt.chat)
    pairs = [scorer.encode_pair(text, choice) for choice in quiz.choices]
    return _ScoringPrompt(pairs[0][0], tuple(choice for _, choice in pairs), fitted.cut_tokens)


def _score(sheets: Sequence[_ScoringPrompt], scorer: Scorer, quiet: bool) -> list[list[Score]]:
    """The scores of each sheet's choices, in their order."""
    prompts, choices = [sheet.prompt for sheet in sheets], [sheet.choices for sheet in sheets]
    scores = dict(scorer.score_choices(prompts, choices, quiet=quiet))
    return [scores[index] for index in range(len(sheets))]


def _mean(scores: Sequence[Score]) -> Score:
    """The mean log-probability; greedy where every order would have it so."""
    return sum(value for value, _ in scores) / len(scores), all(greedy for _, greedy in scores)


def _finished(
    trace: Trace, choices: Sequence[str], means: Sequence[Score], sheets: Sequence[_ScoringPrompt], cost: Usage
) -> Trace:
    """The trace with its scores, the choice they elect, what was cut to fit, and the cost."""
    best = max(range(len(means)), key=lambda index: means[index][0])
    return replace(
        trace,
        answer=choices[best],
        scores=tuple(value for value, _ in means),
        cut_tokens=(*trace.cut_tokens, sheets[0].cut_tokens),
        usage=trace.usage + cost,
        computed_usage=trace.computed_usage + cost,
    )


def _sheet_cost(sheet: _ScoringPrompt, scorer: Scorer, shape: ModelShape | None) -> Usage:
    start, ends = len(sheet.prompt), [len(sheet.prompt) + len(choice) for choice in sheet.choices]
    if scorer.shares_prompts:
        return read_only(start, ends, shape)
    return total([read_only(start, [end], shape) for end in ends])
