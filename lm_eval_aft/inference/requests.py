"""From lm-eval's generate_until requests to questions and dialogues."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.utils import handle_non_serializable, hash_string

from lm_eval_aft.core.arguments import refuse_count, strings
from lm_eval_aft.core.chat import Renderer, TokenizerRenderer, decode
from lm_eval_aft.core.config import EXTRAS, MAX_RUN_GENERATIONS, TOKEN_ALIASES, AFTConfig, samplings
from lm_eval_aft.core.log import log, warn_once
from lm_eval_aft.core.names import plain_task
from lm_eval_aft.core.records import Question
from lm_eval_aft.inference.dialogue import TURNS, Dialogue
from lm_eval_aft.inference.shown_prompts import given_args

# Generation settings that are used. A warning names the others.
KNOWN_SETTINGS = {"until", "do_sample", "temperature", "top_p", "top_k", TURNS, *TOKEN_ALIASES, *EXTRAS}


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

    lm-eval lists the same Instance once per repeat, so the occurrences of an Instance are its repeats. Under several
    processes lm-eval also repeats the last Instance as padding. The question of such a copy equals an earlier one.

    Raises:
        ChatError: If a context cannot be read.
        ConfigError: If a task's generation settings are out of range.
    """
    occurrences: Counter[int] = Counter()
    questions = []
    for request in requests:
        repeat = occurrences[id(request)] % (request.repeats or 1)
        occurrences[id(request)] += 1
        questions.append(make_question(request, given_args(request)[1], repeat, config))
    return questions


def make_question(request: Instance, gen_kwargs: Mapping[str, Any], repeat: int, config: AFTConfig) -> Question:
    """The question of a request, with the sampling of its texts.

    Args:
        request: lm-eval's request.
        gen_kwargs: The task's generation settings.
        repeat: Which of the task's repeats this is.
        config: Sampling, and the mark that ends thinking.
    """
    unknown = sorted(set(gen_kwargs) - KNOWN_SETTINGS)
    if unknown:
        warn_once(f"Generation settings {unknown} of {request.task_name} are not used by --model aft.")
    drafts, final = samplings(config, gen_kwargs)
    return Question(
        chat=decode(given_args(request)[0]),
        drafts=drafts,
        final=final,
        task=plain_task(request.task_name or ""),
        doc_id=request.doc_id or 0,
        doc_hash=document_hash(request.doc),
        repeat=repeat,
        until=_stop_strings(gen_kwargs.get("until")),
        think_end=config.think_end_token or "",
    )


def document_hash(document: Any) -> str:
    """The hash of a document in lm-eval's sample logs."""
    return str(hash_string(json.dumps(document, indent=2, default=handle_non_serializable, ensure_ascii=False)))


def _stop_strings(until: Any) -> tuple[str, ...]:
    """A task's stop strings. Tasks give None, one string or several. An empty string stops nothing."""
    return strings("until", [stop for stop in until if stop] if isinstance(until, list | tuple) else until or ())


def stop_at_tokens(question: Question, renderer: Renderer) -> Question:
    """The question, with generation of its answer stopped at those stop strings that are control tokens.

    The text does not show control tokens, so nothing could cut it there afterwards.
    """
    if not isinstance(renderer, TokenizerRenderer) or not question.until:
        return question
    tokenizer = renderer.tokenizer
    control = {str(token): number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    # These end every text.
    ends = {tokenizer.eos_token_id, *renderer.turn_end_ids}
    stops = tuple(stop for stop in question.until if control.get(stop, tokenizer.eos_token_id) not in ends)
    return replace(question, final=replace(question.final, until=question.final.until + stops))


def later_turns(request: Instance) -> tuple[str, ...] | None:
    """What the user says after each answer, or None if the request is a single question.

    Raises:
        ConfigError: If the task gives anything but strings.
    """
    gen_kwargs = given_args(request)[1]
    return tuple(strings(TURNS, gen_kwargs[TURNS])) if TURNS in gen_kwargs else None


def announce(questions: Sequence[Question], config: AFTConfig, turns: int, processes: int = 1) -> None:
    """Log the sampling of each task, warn of what changes prompts or is shared, and refuse a run without end.

    Args:
        questions: The questions of a run.
        config: ``layers`` is read.
        turns: Number of the questions with all their later turns. Each is answered.
        processes: Number of processes of the run.

    Raises:
        ConfigError: If the questions need more than ``max_generations``, or than ``MAX_RUN_GENERATIONS``.
    """
    total = turns * config.generations
    shown = f"{len(questions):,} questions"
    shown = shown if turns == len(questions) else f"{turns:,} turns of {shown}"
    most = min(config.max_generations or MAX_RUN_GENERATIONS, MAX_RUN_GENERATIONS)
    advice = " or raise max_generations" if most < MAX_RUN_GENERATIONS else ""
    refuse_count(
        total,
        most,
        f"{shown} would be {{}} generations",
        f"lower k, layers, the task's repeats or --limit{advice}",
    )
    if questions:
        bound = "at most " * (config.stop_when is not None or config.strategy == "rsa")
        log.info(
            "%s, %s%s generations each: %s%s generations.",
            shown,
            bound,
            f"{config.generations:,}",
            bound,
            f"{total:,}",
        )
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
    prompts = Counter((question.chat.identity, question.repeat) for question in questions)
    shared = sum(count - 1 for count in prompts.values())
    if shared:
        log.info("%d questions repeat the prompt of another and share its drafts.", shared)
