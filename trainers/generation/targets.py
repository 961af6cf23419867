"""Targets: a teacher reads the query and a set of drafts through the prompt of inference and writes the answer.

A target so made depends on its drafts; a verifier may judge it, and a wrong one is kept, left out, tried again or
repaired. Knows nothing of files. Called by ``aft data aggregate``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from math import comb
from random import Random
from typing import Any

from lm_eval_aft.core.errors import ConfigError, PromptTooLong
from lm_eval_aft.core.prompts import aggregate_prompt
from lm_eval_aft.core.records import Chat, Completion, Message, Prompt
from trainers.generation.drafts import keep_drafts
from trainers.generation.generator import TextGenerator
from trainers.generation.verifiers import Verifier
from trainers.rows.row import naming, query_chat, visible

REPAIR = (
    "That answer is wrong. The right result is:\n\n{gold}\n\nWrite the complete answer again so that it arrives there "
    "by sound steps. Answer as if for the first time, without a word about this correction."
)
REJECTION_REASONS = ("did not fit", "cut or empty", "wrong", "too short")  # why a target is not kept
TARGET_FIELDS = ("sources", "target_right", "repaired")  # what a row says of its target
ECHO = "Write the complete answer again"


@dataclass(slots=True)
class TargetJob:
    """One draft set on its way to a target."""

    row: dict[str, Any]
    chat: Chat
    prompt: Prompt | None
    asked: Chat | None = None  # what the first prompt shows: drafts cleaned and fitted
    target: str = ""
    right: bool | None = None
    repaired: bool = False
    ended: bool = False

    @property
    def repeat(self) -> int:
        """What makes the seeds of the draft sets of one query differ."""
        return int.from_bytes(sha256(json.dumps(self.row["drafts"]).encode()).digest()[:4])

    @property
    def usable(self) -> bool:
        """It has a whole text that nobody has found wrong."""
        return bool(self.target) and self.ended and self.right is not False


def draft_sets(rows: Sequence[Mapping[str, Any]], k: int, sets: int, seed: int) -> list[dict[str, Any]]:
    """Up to ``sets`` different draws of k drafts a row, each in a free order; rows with fewer drafts give none."""
    made = []
    for row in rows:
        usable = [i for i, draft in enumerate(row["drafts"]) if visible(draft)]
        random = Random(f"{seed}/{k}/{row['query']}")
        seen: set[frozenset[int]] = set()
        while len(seen) < min(sets, comb(len(usable), k)):
            chosen = random.sample(usable, k)
            if frozenset(chosen) not in seen:
                seen.add(frozenset(chosen))
                made.append(keep_drafts(row, chosen))
    return made


def is_mixed(row: Mapping[str, Any]) -> bool:
    """Whether a row has right and wrong drafts."""
    return any(row["right"]) and not all(row["right"])


def balance_mixed(rows: Sequence[dict[str, Any]], share: float, seed: int) -> list[dict[str, Any]]:
    """Leave out sets whose drafts are all right or all wrong until the others have at least their share.

    Raises:
        ConfigError: If no set is mixed.
    """
    mixed = [is_mixed(row) for row in rows]
    if not any(mixed):
        raise ConfigError(
            "--mixed: in every set the drafts are all right or all wrong: sample more drafts, or larger k."
        )
    room = int(sum(mixed) * (1 - share) / share + 1e-9)  # 4 * (1 - 0.8) / 0.8 is 0.9999999999999998
    others = [number for number, either in enumerate(mixed) if not either]
    kept = set(Random(f"{seed}/mixed").sample(others, min(room, len(others))))
    return [row for number, row in enumerate(rows) if mixed[number] or number in kept]


def write_targets(
    rows: Sequence[dict[str, Any]],
    writer: TextGenerator,
    verifier: Verifier | None,
    wrong: str,
    retries: int,
    right_answer: Callable[[Mapping[str, Any]], str],
) -> list[TargetJob]:
    """Let the teacher write a target for each row.

    Args:
        rows: With the drafts the teacher reads.
        writer: The teacher.
        verifier: Judges targets, or None.
        wrong: What becomes of a wrong one: keep, drop, retry or repair.
        retries: How often at most.
        right_answer: What a row's answer should be, for repair.

    Returns:
        All work, usable or not, in the order of the rows.
    """
    works = [_begin(row, number, writer) for number, row in enumerate(rows, 1)]
    _round([work for work in works if work.prompt], writer, verifier, 0)
    for attempt in range(1, retries + 1 if wrong in ("retry", "repair") else 1):
        again = [work for work in works if work.prompt and not work.usable]
        if not again:
            break
        if wrong == "repair":
            for work in again:
                work.prompt, work.repaired = _repair_prompt(work, writer, right_answer(work.row)), True
        _round([work for work in again if work.prompt], writer, verifier, attempt)
    return works


def _begin(row: dict[str, Any], number: int, writer: TextGenerator) -> TargetJob:
    chat, template, renderer = query_chat(row, f"row {number}"), writer.template, writer.engine.renderer
    try:
        with naming(f"row {number}"):
            fitted = aggregate_prompt(template, renderer, chat, row["drafts"], writer.budget, final=True)
    except PromptTooLong:
        return TargetJob(row, chat, None)
    return TargetJob(row, chat, fitted.prompt, fitted.prompt.chat)


def _round(works: Sequence[TargetJob], writer: TextGenerator, verifier: Verifier | None, attempt: int) -> None:
    requests = [writer.request(work.prompt, work.chat, 1, attempt, work.repeat) for work in works if work.prompt]
    name = f"targets, attempt {attempt + 1}" if attempt else "targets"
    for work, completion in zip(works, writer.write(requests, name), strict=True):
        _take(work, completion, writer, verifier)


def _take(work: TargetJob, completion: Completion, writer: TextGenerator, verifier: Verifier | None) -> None:
    work.target = writer.engine.renderer.clean(completion.text).strip()
    work.ended = completion.finish_reason == "stop"
    work.right = bool(verifier(work.target, work.row)) if verifier else None
    if work.repaired and ECHO in work.target:  # small teachers quote the request instead of following it
        work.right = False


def _repair_prompt(work: TargetJob, writer: TextGenerator, right_answer: str) -> Prompt | None:
    """The first prompt, the wrong answer, and what is right; the drafts make room, None where that is not enough."""
    renderer, asked = writer.engine.renderer, work.asked or work.chat
    turns = (Message("assistant", work.target or "..."), Message("user", REPAIR.format(gold=right_answer)))

    def with_turns(chat: Chat) -> Prompt:
        return renderer.encode(replace(chat, messages=(*chat.messages, *turns)))

    prompt = with_turns(asked)
    if prompt.prompt_tokens > writer.budget:
        room = writer.budget - (prompt.prompt_tokens - renderer.encode(asked).prompt_tokens)
        try:
            fitted = aggregate_prompt(writer.template, renderer, work.chat, work.row["drafts"], room, final=True)
        except PromptTooLong:
            return None
        prompt = with_turns(fitted.prompt.chat)
    return prompt if prompt.prompt_tokens <= writer.budget else None


def is_terse(work: TargetJob, shortest: float) -> bool:
    """Whether a target has fewer words than this share of its drafts' mean: told the result, a teacher may state it."""
    words = [len(visible(draft).split()) for draft in work.row["drafts"]]
    return len(work.target.split()) < shortest * sum(words) / len(words)


def outcome(work: TargetJob, wrong: str, shortest: float) -> str:
    """What became of it: ``kept``, or the one of ``REJECTION_REASONS`` that says why not."""
    if not (work.target and work.ended):
        return "cut or empty" if work.prompt else "did not fit"
    if work.right is False and wrong != "keep":
        return "wrong"
    return "too short" if is_terse(work, shortest) else "kept"


def finished_rows(works: Sequence[TargetJob], wrong: str, shortest: float = 0.0) -> list[dict[str, Any]]:
    """The rows with targets that are to be kept (see ``outcome``).

    Their ``sources`` and what was said of its correctness go: they are of the target before, this one was made from all
    drafts.
    """
    made = []
    for work in works:
        if outcome(work, wrong, shortest) == "kept":
            judged = {} if work.right is None else {"target_right": work.right, "repaired": work.repaired}
            rest = {name: value for name, value in work.row.items() if name not in TARGET_FIELDS}
            made.append({**rest, "target": work.target, **judged})
    return made
