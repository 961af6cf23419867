"""Samples: the drafts, their order and the target text that one training example shows.

The four kinds of training differ in this module only. Each draw has its own generator, seeded with the run's seed, the
row and the number of the draw. So a draw does not depend on other rows, their order or other settings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random

from lm_eval_aft.core.arguments import refuse_count
from lm_eval_aft.core.errors import ConfigError
from lm_eval_aft.core.records import Chat
from trainers.rows.row import DataRow, TrainingRow, shown_text
from trainers.settings import Kind, TrainConfig

# Examples of a run. Each is in memory with its tokens.
MAX_SAMPLES = 10_000_000


@dataclass(frozen=True, slots=True)
class Sample:
    """The parts of one training example; without drafts it trains a single answer.

    Attributes:
        chat: The query.
        drafts: The drafts that the prompt shows, in their order.
        target: Text to learn; "" if the example is a prompt only.
        where: File and row number, for messages.
        data: The row, with all its keys.
    """

    chat: Chat
    drafts: tuple[str, ...]
    target: str
    where: str
    data: DataRow = field(default_factory=dict, repr=False)


def make_samples(rows: Sequence[TrainingRow], kind: Kind, config: TrainConfig) -> list[Sample]:
    """The samples of a kind of training.

    Raises:
        ConfigError: If a row lacks what the kind needs.
    """
    if kind == "sft":
        return [_single_answer(row, row.single_answer_target, "sft_target nor target") for row in rows]
    if kind == "aft-no-drafts":
        return [_single_answer(row, row.target, "target") for row in rows]
    samples = [
        _aggregate(row, number, kind, config)
        for row in _drawable(rows, config)
        for number in range(config.sets_per_query)
    ]
    return samples + _single_answers(rows, len(samples), config)


def make_prompts(rows: Sequence[TrainingRow], config: TrainConfig) -> list[Sample]:
    """The samples of ``aft`` without their targets: draft sets, and queries alone by ``plain_share``.

    Raises:
        ConfigError: If a row has too few drafts.
    """
    if config.plain_share == 1:
        return [Sample(row.chat, (), "", row.where, row.data) for row in rows]
    drawn = [_draw(row, n, "", config) for row in _drawable(rows, config) for n in range(config.sets_per_query)]
    plain = [Sample(row.chat, (), "", row.where, row.data) for row in _plain_rows(rows, len(drawn), config)]
    return drawn + plain


def _drawable(rows: Sequence[TrainingRow], config: TrainConfig) -> Sequence[TrainingRow]:
    """The rows, checked: each has enough drafts, and they make no more examples than fit into memory."""
    _check_drafts(rows, config)
    refuse_count(
        len(rows) * config.sets_per_query,
        MAX_SAMPLES,
        f"sets_per_query={config.sets_per_query} of {len(rows):,} rows would be {{}} examples",
        "lower it",
    )
    return rows


def copied_drafts(text: str, sample: Sample) -> list[int]:
    """The positions of the drafts that a text repeats, white space aside; an empty text repeats none."""
    words = text.split()
    return [place for place, draft in enumerate(sample.drafts) if words and shown_text(draft).split() == words]


def comparable_length(other: str, target: str) -> bool:
    """Whether ``other`` has at least half as many words as ``target``.

    Any draft may hold a lone number or label, so the overlap with a shorter text means nothing.
    """
    return len(other.split()) * 2 >= len(target.split())


def pseudo_samples(rows: Sequence[TrainingRow], config: TrainConfig) -> list[Sample]:
    """The draws of ``aft`` with sft_target as their target, where it differs from the target and is comparable.

    Targets should overlap with their drafts more than these do.
    """
    rows = [row for row in rows if row.sft_target != row.target and comparable_length(row.sft_target, row.target)]
    return [_aggregate(row, number, "aft-pseudo", config) for row in rows for number in range(config.sets_per_query)]


def _single_answer(row: TrainingRow, target: str, needed: str) -> Sample:
    if not target:
        raise ConfigError(f"{row.where} has no {needed}: add the text that the model should learn.")
    return Sample(row.chat, (), target, row.where, row.data)


def _aggregate(row: TrainingRow, number: int, kind: Kind, config: TrainConfig) -> Sample:
    target, name = (row.sft_target, "sft_target") if kind == "aft-pseudo" else (row.target, "target")
    if not target:
        raise ConfigError(f"{row.where} has no {name}: aft train {kind} learns it from the drafts of every row.")
    return _draw(row, number, target, config)


def _draw(row: TrainingRow, number: int, target: str, config: TrainConfig) -> Sample:
    random = Random(f"{config.seed}/{number}/{row.chat.identity}/{row.drafts}")
    k = random.choice(config.k) if config.k else len(row.drafts)
    return Sample(row.chat, draw_drafts(row, k, random), target, row.where, row.data)


def draw_drafts(row: TrainingRow, k: int, random: Random) -> tuple[str, ...]:
    """Draw k drafts of a row in a random order, with as many of its sources as k allows."""
    sources = random.sample(row.sources, min(k, len(row.sources)))
    others = [number for number in range(len(row.drafts)) if number not in row.sources]
    chosen = [*sources, *random.sample(others, k - len(sources))]
    random.shuffle(chosen)
    return tuple(row.drafts[number] for number in chosen)


def _check_drafts(rows: Sequence[TrainingRow], config: TrainConfig) -> None:
    needed = max(config.k, default=1)
    short = [row for row in rows if len(row.drafts) < needed]
    if short:
        raise ConfigError(
            f"{len(short)} of {len(rows)} rows have fewer drafts with text than k={needed} ({short[0].where} has "
            f"{len(short[0].drafts)}): lower k, or leave such rows out: aft data select --at-least {needed}."
        )


def _single_answers(rows: Sequence[TrainingRow], aggregated: int, config: TrainConfig) -> list[Sample]:
    chosen = _plain_rows(rows, aggregated, config)
    return [_single_answer(row, row.single_answer_target, "target") for row in chosen]


def _plain_rows(rows: Sequence[TrainingRow], aggregated: int, config: TrainConfig) -> list[TrainingRow]:
    """As many rows as ``plain_share`` requires, spread evenly."""
    count = round(aggregated * config.plain_share / (1 - config.plain_share))
    refuse_count(
        count, MAX_SAMPLES, f"plain_share={config.plain_share} would be {{}} examples without drafts", "lower it"
    )
    order = list(rows)
    Random(f"{config.seed}/plain").shuffle(order)
    return [order[i % len(order)] for i in range(count)]
