"""From rows to samples: which drafts, in which order, and which text is to be learnt.

The four kinds of training differ here and nowhere else. Every draw comes from a generator of its own, seeded with
the run's seed, the row and the number of the draw, so neither the order of rows nor another setting moves it. Knows
nothing of tokens. Called by ``train`` and by ``aft data ppl``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from lm_eval_aft.core.errors import ConfigError
from lm_eval_aft.core.records import Chat
from trainers.rows.row import Row
from trainers.settings import Kind, TrainConfig


@dataclass(frozen=True, slots=True)
class Sample:
    """What one example is made of; without drafts it is a plain answer."""

    chat: Chat
    drafts: tuple[str, ...]
    target: str
    where: str


def make_samples(rows: Sequence[Row], kind: Kind, config: TrainConfig) -> list[Sample]:
    """The samples of a kind of training.

    Raises:
        ConfigError: If a row lacks what the kind needs.
    """
    if kind == "sft":
        return [_plain(row, row.plain_target, "sft_target nor target") for row in rows]
    if kind == "aft-no-drafts":
        return [_plain(row, row.target, "target") for row in rows]
    _check_drafts(rows, config)
    samples = [_aggregate(row, number, kind, config) for row in rows for number in range(config.sets_per_query)]
    return samples + _plain_part(rows, len(samples), config)


def comparable_length(other: str, target: str) -> bool:
    """Whether another target can be compared: of a lone number or label any draft may hold all."""
    return len(other.split()) * 2 >= len(target.split())


def pseudo_samples(rows: Sequence[Row], config: TrainConfig) -> list[Sample]:
    """The draws of ``aft`` with sft_target in the target's place, where it is another as long: the level to beat."""
    rows = [row for row in rows if row.sft_target != row.target and comparable_length(row.sft_target, row.target)]
    return [_aggregate(row, number, "aft-pseudo", config) for row in rows for number in range(config.sets_per_query)]


def _plain(row: Row, target: str, needed: str) -> Sample:
    if not target:
        raise ConfigError(f"{row.where} has no {needed}: every row needs the text that is to be learnt.")
    return Sample(row.chat, (), target, row.where)


def _aggregate(row: Row, number: int, kind: Kind, config: TrainConfig) -> Sample:
    target, name = (row.sft_target, "sft_target") if kind == "aft-pseudo" else (row.target, "target")
    if not target:
        raise ConfigError(f"{row.where} has no {name}: aft train {kind} learns it from the drafts of every row.")
    random = Random(f"{config.seed}/{number}/{row.chat.identity}/{row.drafts}")
    k = random.choice(config.k) if config.k else len(row.drafts)
    return Sample(row.chat, draw_drafts(row, k, random), target, row.where)


def draw_drafts(row: Row, k: int, random: Random) -> tuple[str, ...]:
    """A draw of k drafts of a row in any order, its sources among them wherever they fall."""
    sources = random.sample(row.sources, min(k, len(row.sources)))
    others = [number for number in range(len(row.drafts)) if number not in row.sources]
    chosen = [*sources, *random.sample(others, k - len(sources))]
    random.shuffle(chosen)
    return tuple(row.drafts[number] for number in chosen)


def _check_drafts(rows: Sequence[Row], config: TrainConfig) -> None:
    needed = config.k_max or 1
    short = [row for row in rows if len(row.drafts) < needed]
    if short:
        raise ConfigError(
            f"{len(short)} of {len(rows)} rows have fewer drafts with text than k={needed} ({short[0].where} has "
            f"{len(short[0].drafts)}): lower k, or leave such rows out: aft data select --at-least {needed}."
        )


def _plain_part(rows: Sequence[Row], aggregated: int, config: TrainConfig) -> list[Sample]:
    """So many plain samples that they have their share of all, spread evenly over the rows."""
    count = round(aggregated * config.plain_share / (1 - config.plain_share))
    order = list(rows)
    Random(f"{config.seed}/plain").shuffle(order)
    return [_plain(order[i % len(order)], order[i % len(order)].plain_target, "target") for i in range(count)]
