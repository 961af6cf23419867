"""Statistics of a data file: lengths, duplicates, diversity, correctness, targets and contamination.

Lengths are in words, so no tokenizer is needed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations
from pathlib import Path
from statistics import mean, median

from lm_eval_aft.core.errors import ConfigError
from lm_eval_aft.core.files import file_digest
from lm_eval_aft.core.jsonl import read_jsonl
from trainers.generation.selection import verify_all
from trainers.generation.verifiers import load_verifier
from trainers.inspection.overlap import WORD, measure, ngrams, warnings
from trainers.rows.row import DataRow, TrainingRow, query_chat, read_rows, shown_text
from trainers.rows.samples import Sample, comparable_length

# Drafts of a row that are compared in pairs.
MOST_DRAFTS = 8


def describe(
    source: Path,
    *,
    against: Path | None = None,
    field: str = "question",
    words: int = 13,
    verifier: str | None = None,
    gold: str = "gold",
) -> list[str]:
    """The statistics of a data file, as lines. The options are those of ``aft data stats``.

    Raises:
        AFTError: If a file, a row or an option is wrong.
    """
    rows = read_rows(source)
    if verifier:
        rows = verify_all([{**row, "drafts": row.get("drafts") or []} for row in rows], load_verifier(verifier, gold))
    lines = _counts(rows) + _correctness(rows) + _targets(rows)
    if against:
        questions = [row.get(field) for row in read_jsonl(against, strict=True)]
        texts = [question for question in questions if isinstance(question, str)]
        if len(texts) < len(questions):
            raise ConfigError(
                f"{against} has rows without the key {field!r}: name the key of the questions with --field."
            )
        lines.append(_contamination(rows, texts, words))
    return [*lines, f"sha256                {file_digest(source)}"]


def _counts(rows: Sequence[DataRow]) -> list[str]:
    drafts = [[shown_text(draft) for draft in row.get("drafts") or []] for row in rows]
    every = [draft for row in drafts for draft in row]
    chats = [query_chat(row, f"row {number}") for number, row in enumerate(rows, 1)]
    queries, questions = {chat.identity for chat in chats}, [chat.messages[-1].content for chat in chats]
    lines = [
        f"rows                  {len(rows):,}, {len(rows) - len(queries):,} with a query that came before",
        f"drafts                {len(every):,}: {_spread([len(row) for row in drafts])} a row",
        f"words a query         {_spread([len(question.split()) for question in questions])}",
    ]
    if not every:
        return lines
    equal = sum(len(row) - len(set(row)) for row in drafts)
    cut = sum(list(row.get("ends") or ()).count("length") for row in rows if row.get("drafts"))
    return [
        *lines,
        f"words a draft         {_spread([len(draft.split()) for draft in every])}",
        f"empty drafts          {sum(not draft for draft in every):,}",
        f"cut drafts            {cut:,}",
        f"equal drafts          {equal:,} repeat another of their row ({equal / len(every):.1%})",
        f"diversity             {_diversity(drafts):.2f} (1 - Jaccard of word n-grams, mean over pairs)",
    ]


def _spread(values: Sequence[int]) -> str:
    return f"{mean(values):.1f} (median {median(values):g}, {min(values)} to {max(values)})"


def _diversity(drafts: Iterable[Sequence[str]]) -> float:
    pairs = []
    for row in drafts:
        grams = [ngrams(draft) for draft in row[:MOST_DRAFTS]]
        pairs += [1 - len(a & b) / len(a | b) for a, b in combinations(grams, 2) if a | b]
    return mean(pairs) if pairs else 0.0


def _correctness(rows: Sequence[DataRow]) -> list[str]:
    lines = []
    rows = [row for row in rows if row.get("drafts")]
    known = ([score for score in row.get("scores") or () if score is not None] for row in rows)
    scored = [mean(scores) for scores in known if scores]
    if scored:
        lines.append(f"score of a draft      {mean(scored):.3f} (mean of {len(scored)} rows)")
    right = [row["right"] for row in rows if row.get("right")]
    if right:
        share = mean(mean(map(float, row)) for row in right)
        mixed = mean(float(0 < sum(row) < len(row)) for row in right)
        some = mean(float(any(row)) for row in right)
        lines.append(f"right drafts          {share:.1%}; rows with one {some:.1%}, of mixed correctness {mixed:.1%}")
    return lines


def _targets(rows: Sequence[DataRow]) -> list[str]:
    done = [row for row in rows if row.get("target")]
    spread = _spread([len(row["target"].split()) for row in done]) if done else ""
    lines = [f"targets               {len(done):,}: {spread} words"] if done else []
    grades = [row["target_right"] for row in done if "target_right" in row]
    if grades:
        lines.append(f"right targets         {mean(float(bool(right)) for right in grades):.1%}")
    drafted = [TrainingRow.of(row, "a row") for row in done if row.get("drafts")]
    if not drafted:
        return lines
    samples = [Sample(row.chat, row.drafts, row.target, "") for row in drafted]
    pseudo = [
        Sample(row.chat, row.drafts, row.sft_target, "")
        for row in drafted
        if row.sft_target != row.target and comparable_length(row.sft_target, row.target)
    ]
    overlap, same = measure(samples), all(row.sft_target == row.target for row in drafted)
    if pseudo:
        lines.append(f"overlap of sft_target {measure(pseudo).overlap:.2f} with its nearest draft (not made from them)")
    return [*lines, *overlap.lines(), *(f"warning: {text}" for text in warnings(overlap, samples, pseudo, same))]


def _contamination(rows: Sequence[DataRow], texts: Sequence[str], words: int) -> str:
    """How many queries and targets share a run of words with an evaluation question.

    All messages of a query count, and both kinds of targets. A question with fewer words counts if all of it occurs.
    """
    seen = {gram for text in texts for gram in _runs(text, words)}
    sizes = {len(gram) for gram in seen}

    def shares(text: str) -> bool:
        return any(seen & ngrams(text.lower(), size, size) for size in sizes)

    queries_of = [[message.content for message in query_chat(row, "a row").messages] for row in rows]
    targets_of = [[str(row.get(name) or "") for name in ("target", "sft_target")] for row in rows]
    queries = [number for number, parts in enumerate(queries_of, 1) if any(map(shares, parts))]
    targets = sum(any(map(shares, parts)) for parts in targets_of)
    first = f" (first: row {queries[0]})" if queries else ""
    return (
        f"contamination         {len(queries)} of {len(rows)} queries{first} and {targets} targets share {words} "
        f"words in a row with one of {len(texts)} evaluation questions, or hold a shorter one"
    )


def _runs(text: str, words: int) -> frozenset[tuple[str, ...]]:
    size = min(words, len(WORD.findall(text)))
    return ngrams(text.lower(), size, size) if size else frozenset()
