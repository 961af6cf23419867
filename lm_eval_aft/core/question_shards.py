"""Shards: equal parts of a run's questions, which several processes or machines answer without knowing of each other.

The shard of a question follows from the hash of its document alone. So it depends on neither the order of the questions
nor on ``--limit``, and all repeats and turns of a document are in one shard.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from lm_eval_aft.core.errors import ConfigError
from lm_eval_aft.core.secrets import public


@dataclass(frozen=True, slots=True)
class Shard:
    """One of ``count`` parts of the questions.

    Attributes:
        number: Which part, from 1.
        count: Number of parts.
    """

    number: int
    count: int

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def holds(self, document_hash: str) -> bool:
        """Whether a document belongs to this part."""
        digest = sha256(document_hash.encode()).digest()
        return int.from_bytes(digest[:8]) % self.count == self.number - 1


def parse_shard(name: str, value: Any) -> Shard:
    """A part of the questions, such as 1/4."""
    if isinstance(value, Shard):
        return value
    match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", value) if isinstance(value, str) else None
    number, count = map(int, match.groups()) if match else (0, 0)
    if not 1 <= number <= count:
        raise ConfigError(
            f"{name}={public(name, value)} is not allowed: give the number of this part, from 1, and the number of "
            "parts, such as 1/4."
        )
    return Shard(number, count)
