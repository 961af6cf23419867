"""Which drafts of a row are kept: the best by a score, a matched mean, or only rows that have enough.

Scores come from a reward model (``lm_eval_aft.inference.reward_model``), a verifier, or the row itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from math import comb
from random import Random
from typing import Any

from lm_eval_aft.core.errors import ConfigError
from lm_eval_aft.core.records import Message
from lm_eval_aft.inference.reward_model import RewardModel
from trainers.generation.drafts import keep_drafts
from trainers.generation.verifiers import Verifier
from trainers.rows.row import query_chat, visible

MOST_SETS = 5000  # sets of k drafts that are compared for a matched mean


def reward_all(rows: Sequence[Mapping[str, Any]], model: RewardModel) -> list[dict[str, Any]]:
    """The rows with ``scores``, one a draft.

    Raises:
        ChatError: If the reward model's chat template refuses a query.
    """
    chats = [query_chat(row, f"row {number}") for number, row in enumerate(rows, 1)]
    dialogues = [
        [(*chat.messages, Message("assistant", draft)) for draft in row["drafts"]]
        for chat, row in zip(chats, rows, strict=True)
    ]
    scores = model.score(dialogues)
    return [{**row, "scores": own} for row, own in zip(rows, scores, strict=True)]


def verify_all(rows: Sequence[Mapping[str, Any]], verifier: Verifier) -> list[dict[str, Any]]:
    """The rows with ``right``, one flag a draft: whether what a prompt shows of it is."""
    return [{**row, "right": [bool(verifier(visible(draft), row)) for draft in row["drafts"]]} for row in rows]


def keep_long(rows: Sequence[Mapping[str, Any]], least: int) -> list[dict[str, Any]]:
    """The rows that have so many drafts with text, as they are."""
    return [dict(row) for row in rows if sum(bool(visible(draft)) for draft in row["drafts"]) >= least]


def keep_best(rows: Sequence[Mapping[str, Any]], k: int, *, right_first: bool = False) -> list[dict[str, Any]]:
    """The k best drafts of each row by score (else by being right), in their old order; shorter rows are left out.

    Args:
        rows: With ``scores`` or ``right``.
        k: Drafts kept.
        right_first: Right drafts come before wrong ones, whatever their scores.
    """
    made = []
    for row in rows:
        values = row.get("scores") or row.get("right") or [0.0] * len(row["drafts"])
        usable = [i for i, draft in enumerate(row["drafts"]) if visible(draft)]
        first = row["right"] if right_first else [True] * len(values)
        best = sorted(usable, key=lambda i: (not first[i], -values[i]))[:k]
        if len(best) == k:
            made.append(keep_drafts(row, sorted(best)))
    return made


def keep_matched(rows: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]], k: int) -> list[dict[str, Any]]:
    """For each query that another file has too, the k drafts whose mean score is nearest to the other file's there.

    Of more than MOST_SETS sets so many are drawn, from a generator that depends on the row alone.

    Raises:
        ConfigError: If either file has rows without scores, or they share no query.
    """
    there: dict[str, list[float]] = {}
    for number, row in enumerate(other, 1):
        if row["drafts"]:
            there.setdefault(query_chat(row, "the other file").identity, []).extend(
                _scores(row, f"row {number} of the other file")
            )
    goals = {identity: _mean(scores) for identity, scores in there.items()}
    made = []
    for number, row in enumerate(rows, 1):
        identity = query_chat(row, "a row").identity
        goal = goals.get(identity)
        usable = [i for i, draft in enumerate(row["drafts"]) if visible(draft)]
        if goal is None or len(usable) < k:
            continue
        scores = _scores(row, f"row {number}")
        random = Random(f"{identity}/{row['drafts']}")
        sets = (
            combinations(usable, k)
            if comb(len(usable), k) <= MOST_SETS
            else (sorted(random.sample(usable, k)) for _ in range(MOST_SETS))
        )
        nearest = min(sets, key=lambda chosen: abs(_mean([scores[i] for i in chosen]) - goal))
        made.append(keep_drafts(row, nearest))
    if not made:
        raise ConfigError("the two files share no query with enough drafts: they must ask the same.")
    return made


def shared(rows: Sequence[Mapping[str, Any]], kept: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The rows whose query is one of those kept."""
    asked = {query_chat(row, "a row").identity for row in kept}
    return [row for row in rows if query_chat(row, "a row").identity in asked]


def _scores(row: Mapping[str, Any], where: str) -> list[float]:
    if not row.get("scores"):
        raise ConfigError(f"{where} has no scores: run aft data select --reward_model MODEL on both files first.")
    return list(row["scores"])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / max(1, len(values))
