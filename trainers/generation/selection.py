"""Selection of drafts: the k best by score, those with a matched mean score, or rows that have enough.

Scores come from a reward model, a verifier or the rows themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from math import comb, inf
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Any

from lm_eval_aft.core.errors import ConfigError
from lm_eval_aft.core.log import log
from lm_eval_aft.core.records import Message
from lm_eval_aft.inference.reward_model import RewardModel
from lm_eval_aft.storage.draft_store import open_store
from trainers.generation.verifiers import load_verifier
from trainers.rows.grades import Verifier, is_right
from trainers.rows.result import DataResult
from trainers.rows.row import DataRow, keep_drafts, query_chat, read_drafted_rows, shown_text

# Sets of k drafts that are compared to match a mean score.
MOST_SETS = 5000


def select_drafts(
    source: Path,
    *,
    k: int | None = None,
    at_least: int | None = None,
    reward_model: str | None = None,
    match: Path | None = None,
    verifier: str | None = None,
    gold: str = "gold",
    store: Path | None = None,
    device: str = "cuda:0",
    batch_size: int = 8,
) -> DataResult:
    """Score the drafts of each row, and keep the best. The options are those of ``aft data select``.

    ``store`` is the file that keeps the scores of the reward model.

    Raises:
        AFTError: If an option, a row or a model is wrong, or no row is left.
    """
    if match and not k:
        raise ConfigError("--match needs --k: how many drafts are kept a row.")
    every: Sequence[DataRow] = read_drafted_rows(source)
    rows = with_enough_drafts(every, at_least) if at_least else every
    if reward_model:
        rows = reward_all(rows, RewardModel(reward_model, open_store(None, store), device, batch_size))
    if verifier:
        rows = verify_all(rows, load_verifier(verifier, gold))
    others = read_drafted_rows(match) if match else []
    unscored = sum(not (row.get("scores") or row.get("right")) for row in rows if len(row["drafts"]) > (k or inf))
    if k:
        # With a verifier alone, scores that the file already had must not outrank correctness.
        right_first = bool(verifier) and not reward_model
        rows = keep_matched(rows, others, k) if match else keep_best(rows, k, right_first=right_first)
    if not rows:
        raise ConfigError(
            f"no row of {source} has {max(k or 0, at_least or 0)} drafts with text: lower --k or --at-least."
        )
    queries = {query_chat(row, "a row").identity for row in rows}
    matched = [row for row in others if query_chat(row, "a row").identity in queries]
    facts = [f"{len(rows)} of {len(every)} rows kept", *_means(rows, "the file"), *_means(matched, "--match")]
    if unscored:
        facts.append(f"warning: {unscored} rows have neither scores nor right: their first {k} drafts were kept")
    settings = {"k": k, "at_least": at_least, "reward_model": reward_model, "verifier": verifier, "gold": gold}
    return DataResult(rows, facts, settings, [source, *([match] if match else [])])


def _means(rows: Sequence[DataRow], name: str) -> list[str]:
    """Mean scores as facts. Each query has the same weight, as in ``keep_matched``."""
    facts = []
    for key, what in (("scores", "score"), ("right", "share of right drafts")):
        known = ([float(each) for each in row.get(key) or () if each is not None] for row in rows)
        means = [fmean(values) for values in known if values]
        if means:
            facts.append(f"mean {what} in {name}: {fmean(means):.3f}")
    return facts


def reward_all(rows: Sequence[DataRow], model: RewardModel) -> list[dict[str, Any]]:
    """The rows with ``scores``, one a draft.

    Raises:
        ChatError: If the reward model's chat template refuses a query.
    """
    chats = [query_chat(row, f"row {number}") for number, row in enumerate(rows, 1)]
    dialogues = [
        [(*chat.messages, Message("assistant", shown_text(draft))) for draft in row["drafts"]]
        for chat, row in zip(chats, rows, strict=True)
    ]
    scores = model.score(dialogues)
    return [{**row, "scores": row_scores} for row, row_scores in zip(rows, scores, strict=True)]


def verify_all(rows: Sequence[DataRow], verifier: Verifier) -> list[dict[str, Any]]:
    """The rows with ``right``: for each draft, whether its visible part is right.

    Raises:
        ConfigError: If a row has no right answer, or the verifier fails for every draft.
    """
    found = [[is_right(verifier, shown_text(draft), row) for draft in row["drafts"]] for row in rows]
    failures = [(number, reason) for number, drafts in enumerate(found, 1) for _, reason in drafts if reason]
    if failures:
        number, reason = failures[0]
        total = sum(map(len, found))
        if len(failures) == total:
            raise ConfigError(f"the verifier failed for all of {total} drafts ({reason}): correct it.")
        log.warning(
            f"The verifier failed for {len(failures)} of {total} drafts, the first in row {number} ({reason}). "
            "They count as wrong."
        )
    return [{**row, "right": [right for right, _ in drafts]} for row, drafts in zip(rows, found, strict=True)]


def with_enough_drafts(rows: Sequence[DataRow], least: int) -> list[dict[str, Any]]:
    """The rows that have at least ``least`` drafts with text, unchanged."""
    return [dict(row) for row in rows if sum(bool(shown_text(draft)) for draft in row["drafts"]) >= least]


def keep_best(rows: Sequence[DataRow], k: int, *, right_first: bool = False) -> list[dict[str, Any]]:
    """Keep the k best drafts of each row, in their old order.

    Args:
        rows: With ``scores`` or ``right``; without both, the first drafts are the best.
        k: Drafts to keep. Rows with fewer are left out.
        right_first: Right drafts come before wrong ones, whatever their scores.
    """
    kept = []
    for row in rows:
        values = row.get("scores") or row.get("right") or [0.0] * len(row["drafts"])
        usable = [i for i, draft in enumerate(row["drafts"]) if shown_text(draft)]
        first = row["right"] if right_first else [True] * len(values)
        # Drafts without a score come last.
        best = sorted(usable, key=lambda i: (not first[i], inf if values[i] is None else -values[i]))[:k]
        if len(best) == k:
            kept.append(keep_drafts(row, sorted(best)))
    return kept


def keep_matched(rows: Sequence[DataRow], others: Sequence[DataRow], k: int) -> list[dict[str, Any]]:
    """For each query that both files have, keep the k drafts whose mean score is nearest to the other file's.

    If there are more than ``MOST_SETS`` sets of k drafts, that many are drawn. The draw depends on the row alone.

    Raises:
        ConfigError: If either file has rows without scores, or they share no query.
    """
    scores_there: dict[str, list[float]] = {}
    for number, row in enumerate(others, 1):
        if row["drafts"]:
            known = scores_there.setdefault(query_chat(row, "the other file").identity, [])
            scores = _scores(row, f"row {number} of the other file")
            known.extend(score for score in scores if score is not None)
    goals = {identity: sum(known) / len(known) for identity, known in scores_there.items()}
    kept = []
    for number, row in enumerate(rows, 1):
        identity = query_chat(row, "a row").identity
        goal = goals.get(identity)
        usable = [i for i, draft in enumerate(row["drafts"]) if shown_text(draft)]
        if goal is None or len(usable) < k:
            continue
        scores = _scores(row, f"row {number}")
        usable = [i for i in usable if scores[i] is not None]
        if len(usable) < k:
            continue
        random = Random(f"{identity}/{row['drafts']}")
        few = comb(len(usable), k) <= MOST_SETS
        sets = combinations(usable, k) if few else (sorted(random.sample(usable, k)) for _ in range(MOST_SETS))
        nearest = min(sets, key=lambda chosen: abs(sum(scores[i] for i in chosen) / k - goal))
        kept.append(keep_drafts(row, nearest))
    if not kept:
        raise ConfigError("the two files share no query with enough drafts: give two files of the same queries.")
    return kept


def _scores(row: DataRow, where: str) -> list[float | None]:
    """The score of each draft; None for a draft without one."""
    if all(score is None for score in row.get("scores") or ()):
        raise ConfigError(f"{where} has no scores: run aft data select --reward_model MODEL on both files first.")
    return list(row["scores"])
