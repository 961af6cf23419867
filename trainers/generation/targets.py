"""Targets: a teacher reads the query and a set of drafts through the prompt of inference, and writes the answer.

A target depends on its drafts. A verifier can check it; a wrong one is kept, dropped, drawn again or repaired.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from math import comb
from pathlib import Path
from random import Random
from typing import Any

from lm_eval_aft.core.arguments import refuse_count
from lm_eval_aft.core.errors import ConfigError, PromptTooLong
from lm_eval_aft.core.log import log
from lm_eval_aft.core.prompts import aggregate_prompt
from lm_eval_aft.core.records import Chat, Message, Prompt
from trainers.generation.generator import MAX_TEXTS, GeneratorOptions, TextGenerator
from trainers.generation.selection import verify_all, with_enough_drafts
from trainers.generation.verifiers import load_verifier, right_answer
from trainers.rows.grades import Verifier, is_right
from trainers.rows.result import DataResult
from trainers.rows.row import (
    DataRow,
    keep_drafts,
    query_chat,
    read_drafted_rows,
    shown_text,
    template_errors_name,
)

REPAIR = (
    "That answer is wrong. The right result is:\n\n{gold}\n\nWrite the complete answer again so that it arrives there "
    "by sound steps. Answer as if for the first time, without a word about this correction."
)
ECHO = "Write the complete answer again"
REJECTION_REASONS = ("did not fit", "cut or empty", "wrong", "too short")
# Keys of a row that describe its target. They do not hold for a new one.
TARGET_FIELDS = ("sources", "target_right", "repaired")


def aggregate(
    source: Path,
    model: GeneratorOptions,
    *,
    ks: Sequence[int] = (5,),
    sets: int = 1,
    mixed: float | None = None,
    wrong: str = "drop",
    retries: int = 2,
    shortest: float = 0.0,
    seed: int = 0,
    verifier: str | None = None,
    gold: str = "gold",
) -> DataResult:
    """Let a teacher write targets from queries and sets of drafts. The options are those of ``aft data aggregate``.

    Raises:
        AFTError: If an option, a row or a model is wrong, or no target can be used.
    """
    if verifier is None and (mixed or wrong in ("retry", "repair")):
        raise ConfigError("--mixed, --wrong retry and --wrong repair need --verifier, which says what is right.")
    verify = load_verifier(verifier, gold) if verifier else None
    every = read_drafted_rows(source)
    wanted = sum(min(sets, comb(len(row["drafts"]), k)) for k in ks for row in every)
    refuse_count(wanted, MAX_TEXTS, f"--sets {sets} of {len(every):,} rows would be {{}} generations", "lower it")
    drawn = [row for k in ks for row in draft_sets(every, k, sets, seed)]
    if not drawn:
        raise ConfigError(f"no row of {source} has {min(ks)} drafts with text: lower --k.")
    rows = verify_all(drawn, verify) if verify else drawn
    rows = balance_mixed(rows, mixed, seed) if mixed else rows
    generator = model.open()
    jobs = write_targets(rows, generator, verify, wrong, retries, lambda row: right_answer(verifier, row, gold))
    outcomes = Counter(outcome(job, wrong, shortest) for job in jobs)
    finished = finished_rows(jobs, wrong, shortest)
    usable = len(finished)
    if not (any(map(is_mixed, finished)) if mixed else finished):
        raise _nothing_usable(outcomes, mixed)
    # A rejected target takes its set along, so the shares are balanced again.
    finished = balance_mixed(finished, mixed, seed) if mixed else finished
    few = len(every) - len(with_enough_drafts(every, max(ks)))
    facts = [f"{len(every)} rows, {few} with fewer than {max(ks)} drafts; {len(drawn)} draft sets"]
    left_out = f"left out for --mixed: {len(drawn) - len(rows)} sets, {usable - len(finished)} targets"
    facts += [left_out] if mixed else []
    settings = {"k": list(ks), "sets": sets, "mixed": mixed, "wrong": wrong, "retries": retries, "shortest": shortest}
    settings |= {"seed": seed, "verifier": verifier, "writer": generator.facts()}
    return DataResult(finished, [*facts, *_target_facts(outcomes, finished)], settings, [source])


def _nothing_usable(outcomes: Mapping[str, int], mixed: float | None) -> ConfigError:
    subject = "set of mixed correctness has a target that" if mixed else "target"
    return ConfigError(
        f"no {subject} could be used ({_rejected(outcomes)}): allow more tokens (max_gen_toks), take another teacher "
        "or verifier, retry or keep wrong ones (--wrong), or lower --shortest."
    )


def _rejected(outcomes: Mapping[str, int]) -> str:
    return ", ".join(f"{reason} {outcomes.get(reason, 0)}" for reason in REJECTION_REASONS)


def _target_facts(outcomes: Mapping[str, int], finished: Sequence[DataRow]) -> list[str]:
    repaired = sum(bool(row.get("repaired")) for row in finished)
    wrong = sum(row.get("target_right") is False for row in finished)
    facts = [
        f"{sum(outcomes.values())} targets requested, {outcomes['kept']} kept; {_rejected(outcomes)}; of those written "
        f"repaired {repaired}, wrong {wrong}"
    ]
    if all(row.get("right") for row in finished):
        share = sum(map(is_mixed, finished)) / len(finished)
        facts.append(f"right and wrong drafts in {share:.1%} of the kept sets")
    return facts


@dataclass(slots=True)
class TargetJob:
    """A draft set for which the teacher writes a target.

    Attributes:
        row: The row with its set of drafts.
        chat: The query.
        prompt: Prompt of the next attempt; None if it does not fit.
        first_prompt: Chat of the first prompt, with cleaned and fitted drafts.
        target: Text of the last attempt.
        right: Grade by the verifier; None without one.
        repaired: The last attempt was a repair.
        ended: The last attempt was not cut at the token limit.
    """

    row: dict[str, Any]
    chat: Chat
    prompt: Prompt | None
    first_prompt: Chat | None = None
    target: str = ""
    right: bool | None = None
    repaired: bool = False
    ended: bool = False

    @property
    def repeat(self) -> int:
        """Number that gives each draft set of a query its own seeds."""
        return int.from_bytes(sha256(json.dumps(self.row["drafts"]).encode()).digest()[:4])

    @property
    def usable(self) -> bool:
        """Whether the target is a whole text that is not known to be wrong."""
        return bool(self.target) and self.ended and self.right is not False


def draft_sets(rows: Sequence[DataRow], k: int, sets: int, seed: int) -> list[dict[str, Any]]:
    """Up to ``sets`` different draws of k drafts a row, each in a random order; rows with fewer drafts give none."""
    drawn = []
    for row in rows:
        usable = [i for i, draft in enumerate(row["drafts"]) if shown_text(draft)]
        random = Random(f"{seed}/{k}/{row['query']}")
        seen: set[frozenset[int]] = set()
        while len(seen) < min(sets, comb(len(usable), k)):
            chosen = random.sample(usable, k)
            if frozenset(chosen) not in seen:
                seen.add(frozenset(chosen))
                drawn.append(keep_drafts(row, chosen))
    return drawn


def is_mixed(row: DataRow) -> bool:
    """Whether a row has right and wrong drafts."""
    return any(row["right"]) and not all(row["right"])


def balance_mixed(rows: Sequence[dict[str, Any]], share: float, seed: int) -> list[dict[str, Any]]:
    """Leave out sets whose drafts are all right or all wrong until mixed sets have at least this share.

    Raises:
        ConfigError: If no set is mixed.
    """
    mixed = [is_mixed(row) for row in rows]
    if not any(mixed):
        raise ConfigError(
            "no draft set is mixed: in every one the drafts are all right or all wrong. Sample more drafts, raise k, "
            "or leave mixed out."
        )
    # 4 * (1 - 0.8) / 0.8 is 0.9999999999999998.
    room = int(sum(mixed) * (1 - share) / share + 1e-9)
    others = [number for number, row_mixed in enumerate(mixed) if not row_mixed]
    kept = set(Random(f"{seed}/mixed").sample(others, min(room, len(others))))
    return [row for number, row in enumerate(rows) if mixed[number] or number in kept]


def write_targets(
    rows: Sequence[dict[str, Any]],
    generator: TextGenerator,
    verifier: Verifier | None,
    wrong: str,
    retries: int,
    answer_of: Callable[[DataRow], str],
) -> list[TargetJob]:
    """Let the teacher write a target for each row.

    Args:
        rows: With the drafts that the teacher reads.
        generator: The teacher.
        verifier: Checks targets, or None.
        wrong: Treatment of wrong targets: keep, drop, retry or repair.
        retries: Most attempts of retry or repair.
        answer_of: The right answer of a row, for a repair.

    Returns:
        A job for each row, usable or not.
    """
    jobs = [_first_job(row, number, generator) for number, row in enumerate(rows, 1)]
    _attempt([job for job in jobs if job.prompt], generator, verifier, 0)
    for attempt in range(1, retries + 1 if wrong in ("retry", "repair") else 1):
        failed = [job for job in jobs if job.prompt and not job.usable]
        if not failed:
            break
        if wrong == "repair":
            for job in failed:
                job.prompt, job.repaired = _repair_prompt(job, generator, answer_of(job.row)), True
        _attempt([job for job in failed if job.prompt], generator, verifier, attempt)
    return jobs


def _first_job(row: dict[str, Any], number: int, generator: TextGenerator) -> TargetJob:
    chat, renderer = query_chat(row, f"row {number}"), generator.engine.renderer
    try:
        with template_errors_name(f"row {number}"):
            fitted = aggregate_prompt(generator.template, renderer, chat, row["drafts"], generator.budget, final=True)
    except PromptTooLong:
        return TargetJob(row, chat, None)
    return TargetJob(row, chat, fitted.prompt, fitted.prompt.chat)


def _attempt(jobs: Sequence[TargetJob], generator: TextGenerator, verifier: Verifier | None, attempt: int) -> None:
    requests = [generator.request(job.prompt, job.chat, 1, attempt, job.repeat) for job in jobs if job.prompt]
    name = f"targets, attempt {attempt + 1}" if attempt else "targets"
    reasons: list[str] = []
    for job, request, completion in zip(jobs, requests, generator.write(requests, name), strict=True):
        job.target = generator.engine.renderer.clean(request.prompt.unshown_mark + completion.text).strip()
        job.ended = completion.finish_reason == "stop"
        job.right, reason = is_right(verifier, job.target, job.row) if verifier else (None, "")
        reasons += [reason] if reason else []
        # Small teachers quote the request instead of following it.
        if job.repaired and ECHO in job.target:
            job.right = False
    if reasons:
        failed = f"{len(reasons)} of {len(requests)} targets"
        log.warning(f"The verifier failed for {failed}, the first with {reasons[0]}. They count as wrong.")


def _repair_prompt(job: TargetJob, generator: TextGenerator, answer: str) -> Prompt | None:
    """The first prompt, the wrong answer and the right result. Drafts are cut to fit; None if that is not enough."""
    renderer, first = generator.engine.renderer, job.first_prompt or job.chat
    turns = (Message("assistant", job.target or "..."), Message("user", REPAIR.format(gold=answer)))

    def with_turns(chat: Chat) -> Prompt:
        return renderer.encode(replace(chat, messages=(*chat.messages, *turns)))

    prompt = with_turns(first)
    if prompt.prompt_tokens > generator.budget:
        room = generator.budget - (prompt.prompt_tokens - renderer.encode(first).prompt_tokens)
        try:
            fitted = aggregate_prompt(generator.template, renderer, job.chat, job.row["drafts"], room, final=True)
        except PromptTooLong:
            return None
        prompt = with_turns(fitted.prompt.chat)
    return prompt if prompt.prompt_tokens <= generator.budget else None


def outcome(job: TargetJob, wrong: str, shortest: float) -> str:
    """``kept``, or the one of ``REJECTION_REASONS`` that holds for a target."""
    if not (job.target and job.ended):
        return "cut or empty" if job.prompt else "did not fit"
    if job.right is False and wrong != "keep":
        return "wrong"
    # A teacher that knows the right result may state it without reasons.
    words = [len(shown_text(draft).split()) for draft in job.row["drafts"]]
    return "too short" if len(job.target.split()) < shortest * sum(words) / len(words) else "kept"


def finished_rows(jobs: Sequence[TargetJob], wrong: str, shortest: float = 0.0) -> list[dict[str, Any]]:
    """The rows of the targets that are kept (see ``outcome``), without ``TARGET_FIELDS`` of an earlier target."""
    finished = []
    for job in jobs:
        if outcome(job, wrong, shortest) == "kept":
            grade = {} if job.right is None else {"target_right": job.right, "repaired": job.repaired}
            rest = {name: value for name, value in job.row.items() if name not in TARGET_FIELDS}
            finished.append({**rest, "target": job.target, **grade})
    return finished
