"""lm-eval's generate_until requests as questions, and answers cut as lm-eval expects them.

Knows lm-eval's ``Instance`` and its hash of a document; nothing of engines or layers. Called by ``model``.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.utils import handle_non_serializable, hash_string

from lm_eval_aft.core.arguments import strings
from lm_eval_aft.core.chat import Renderer, TokenizerRenderer, decode
from lm_eval_aft.core.config import TOKEN_ALIASES, AFTConfig, samplings
from lm_eval_aft.core.log import log, warn_once
from lm_eval_aft.core.records import Question
from lm_eval_aft.inference.dialogue import TURNS, Dialogue

UNDERSTOOD = {"until", "do_sample", "temperature", "top_p", "top_k", TURNS, *TOKEN_ALIASES}


def read_dialogues(requests: Sequence[Instance], config: AFTConfig, renderer: Renderer) -> list[Dialogue]:
    """One dialogue per request, in their order. Equal questions share one dialogue.

    Raises:
        ChatError: If a context cannot be read.
        ConfigError: If a task's generation settings are out of range.
    """
    shared: dict[Question, Dialogue] = {}
    dialogues = []
    for request, question in zip(requests, read_questions(requests, config), strict=True):
        question = stop_at_tokens(question, renderer)
        dialogues.append(shared.setdefault(question, Dialogue(question, later_turns(request))))
    return dialogues


def read_questions(requests: Sequence[Instance], config: AFTConfig) -> list[Question]:
    """One question per request, in their order.

    lm-eval lists the same Instance once per repeat, so occurrences are counted; under several processes it also
    pads with the last Instance, and a question beyond its repeats is then equal to an earlier one.

    Raises:
        ChatError: If a context cannot be read.
        ConfigError: If a task's generation settings are out of range.
    """
    seen: Counter[int] = Counter()
    questions = []
    for request in requests:
        repeat = seen[id(request)] % (request.repeats or 1)
        seen[id(request)] += 1
        questions.append(make_question(request, request.args[1], repeat, config))
    return questions


def make_question(request: Instance, gen_kwargs: Mapping[str, Any], repeat: int, config: AFTConfig) -> Question:
    """What a request asks, and how its texts are drawn."""
    unknown = sorted(set(gen_kwargs) - UNDERSTOOD)
    if unknown:
        warn_once(f"Generation settings {unknown} of {request.task_name} are not used by --model aft.")
    drafts, final = samplings(config, gen_kwargs)
    doc = json.dumps(request.doc, indent=2, default=handle_non_serializable, ensure_ascii=False)
    return Question(
        chat=decode(request.args[0]),
        drafts=drafts,
        final=final,
        task=request.task_name or "",
        doc_id=request.doc_id or 0,
        doc_hash=hash_string(doc),  # as lm-eval computes it for its sample logs
        repeat=repeat,
        until=_until(gen_kwargs.get("until")),
        think_end=config.think_end_token or "",
    )


def _until(given: Any) -> tuple[str, ...]:
    """A task's stop strings; tasks give None, one text or several, and empty ones that stop nothing."""
    return strings("until", [stop for stop in given if stop] if isinstance(given, list | tuple) else given or ())


def stop_at_tokens(question: Question, renderer: Renderer) -> Question:
    """Let the answer end at those of the task's stop strings that are control tokens: its text does not show them."""
    if not isinstance(renderer, TokenizerRenderer) or not question.until:
        return question
    tokenizer = renderer.tokenizer
    control = {str(token): number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    ends = {tokenizer.eos_token_id, *renderer.turn_end_ids}  # they end it anyway
    unseen = tuple(stop for stop in question.until if control.get(stop, tokenizer.eos_token_id) not in ends)
    return replace(question, final=replace(question.final, until=question.final.until + unseen))


def later_turns(request: Instance) -> tuple[str, ...] | None:
    """What the user says after each answer, or None if the request is a single question.

    Raises:
        ConfigError: If the task gives anything but strings.
    """
    gen_kwargs = request.args[1]
    return tuple(strings(TURNS, gen_kwargs[TURNS])) if TURNS in gen_kwargs else None


def announce(questions: Sequence[Question], config: AFTConfig, processes: int = 1) -> None:
    """Say what is sampled how, once per setting, and what is shared or wrapped."""
    if processes > 1 and any(len(question.chat.messages) > 1 or question.chat.wrapped for question in questions):
        warn_once(
            f"{processes} processes: a task that draws its shots at random draws others than with one process, so its "
            "prompts differ; zero-shot and fixed-shot tasks keep theirs."
        )
    for task, drafts, final in dict.fromkeys((q.task, q.drafts, q.final) for q in questions):
        if config.layers:
            log.info("%s: drafts %s", task, drafts)
        log.info("%s: answer %s", task, final)
    if any(question.chat.wrapped for question in questions):
        warn_once("Bare prompts become one user turn; add --apply_chat_template to keep a task's own turns.")
    asked = Counter((question.chat.identity, question.repeat) for question in questions)
    shared = sum(count - 1 for count in asked.values())
    if shared:
        log.info("%d questions repeat the prompt of another and share its drafts.", shared)
