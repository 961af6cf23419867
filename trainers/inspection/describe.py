"""What a data file holds, in figures: lengths, duplicates, diversity, quality, targets beside drafts, contamination.

Lengths are in words: no tokenizer is needed. Called by ``aft data stats``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from statistics import mean, median
from typing import Any

from trainers.inspection.overlap import WORD, measure, ngrams, warnings
from trainers.rows.row import Row, query_chat
from trainers.rows.samples import Sample, comparable_length

MOST_DRAFTS = 8  # of a row that are compared in pairs


def describe_rows(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The figures of a file, a line each."""
    drafts = [list(row.get("drafts") or []) for row in rows]
    every = [draft for row in drafts for draft in row]
    asked = [query_chat(row, f"row {number}").identity for number, row in enumerate(rows, 1)]
    lines = [
        f"rows                  {len(rows):,}, {len(rows) - len(set(asked)):,} with a query that came before",
        f"drafts                {len(every):,}: {_spread([len(row) for row in drafts])} a row",
        f"words a query         {_spread([len(_question(row).split()) for row in rows])}",
    ]
    if every:
        equal = sum(len(row) - len({draft.strip() for draft in row}) for row in drafts)
        lines += [
            f"words a draft         {_spread([len(draft.split()) for draft in every])}",
            f"empty drafts          {sum(not draft.strip() for draft in every):,}",
            f"cut drafts            {sum(_cut(row) for row in rows if row.get('drafts')):,}",
            f"equal drafts          {equal:,} repeat another of their row ({equal / len(every):.1%})",
            f"diversity             {_diversity(drafts):.2f} (1 - Jaccard of word n-grams, mean over pairs)",
        ]
    return lines + _quality(rows) + _targets(rows)


def _cut(row: Mapping[str, Any]) -> int:
    return list(row.get("ends") or ()).count("length")


def _question(row: Mapping[str, Any]) -> str:
    return query_chat(row, "a row").messages[-1].content


def _spread(values: Sequence[int]) -> str:
    return f"{mean(values):.1f} (median {median(values):g}, {min(values)} to {max(values)})"


def _diversity(drafts: Iterable[Sequence[str]]) -> float:
    pairs = []
    for row in drafts:
        grams = [ngrams(draft) for draft in row[:MOST_DRAFTS]]
        pairs += [1 - len(a & b) / len(a | b) for a, b in combinations(grams, 2) if a | b]
    return mean(pairs) if pairs else 0.0


def _quality(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = []
    rows = [row for row in rows if row.get("drafts")]
    scored = [mean(row["scores"]) for row in rows if row.get("scores")]
    if scored:
        lines.append(f"score of a draft      {mean(scored):.3f} (mean of {len(scored)} rows)")
    right = [row["right"] for row in rows if row.get("right")]
    if right:
        share = mean(mean(map(float, row)) for row in right)
        mixed = mean(float(0 < sum(row) < len(row)) for row in right)
        any_right = mean(float(any(row)) for row in right)
        lines.append(
            f"right drafts          {share:.1%}; rows with one {any_right:.1%}, of mixed correctness {mixed:.1%}"
        )
    return lines


def _targets(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    done = [row for row in rows if row.get("target")]
    lines = (
        [f"targets               {len(done):,}: {_spread([len(row['target'].split()) for row in done])} words"]
        if done
        else []
    )
    judged = [row["target_right"] for row in done if "target_right" in row]
    if judged:
        lines.append(f"right targets         {mean(float(bool(right)) for right in judged):.1%}")
    with_drafts = [Row.of(row, "a row") for row in done if row.get("drafts")]
    if not with_drafts:
        return lines
    samples = [Sample(row.chat, row.drafts, row.target, "") for row in with_drafts]
    pseudo = [
        Sample(row.chat, row.drafts, row.sft_target, "")
        for row in with_drafts
        if row.sft_target != row.target and comparable_length(row.sft_target, row.target)
    ]
    found, same = measure(samples), all(row.sft_target == row.target for row in with_drafts)
    if pseudo:
        lines.append(f"overlap of sft_target {measure(pseudo).overlap:.2f} with its nearest draft (not made from them)")
    return [*lines, *found.lines(), *(f"warning: {text}" for text in warnings(found, samples, pseudo, same))]


def contamination(rows: Sequence[Mapping[str, Any]], texts: Sequence[str], words: int) -> list[str]:
    """How many queries (any of their messages) and targets of either kind share a run of words with an evaluation set.

    Args:
        rows: Training data.
        texts: Questions of the evaluation set.
        words: Length of the run; a shorter question counts where a text holds all of it.
    """
    seen = {gram for text in texts for gram in _runs(text, words)}
    sizes = {len(gram) for gram in seen}

    def shares(text: str) -> bool:
        return any(seen & ngrams(text.lower(), size, size) for size in sizes)

    asked = [[message.content for message in query_chat(row, "a row").messages] for row in rows]
    learnt = [[str(row.get(name) or "") for name in ("target", "sft_target")] for row in rows]
    queries = [n for n, parts in enumerate(asked, 1) if any(map(shares, parts))]
    targets = [n for n, parts in enumerate(learnt, 1) if any(map(shares, parts))]
    first = f" (first: row {queries[0]})" if queries else ""
    return [
        f"contamination         {len(queries)} of {len(rows)} queries{first} and {len(targets)} targets share {words} "
        f"words in a row with one of {len(texts)} evaluation questions, or hold a shorter one"
    ]


def _runs(text: str, words: int) -> frozenset[tuple[str, ...]]:
    size = min(words, len(WORD.findall(text)))
    return ngrams(text.lower(), size, size) if size else frozenset()
