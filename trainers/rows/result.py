"""The result of a data command, and the files that hold it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_eval_aft import __version__
from lm_eval_aft.core.errors import ConfigError
from lm_eval_aft.core.files import atomic_write, file_digest
from lm_eval_aft.core.jsonl import write_jsonl
from trainers.rows.row import DataRow


@dataclass(frozen=True, slots=True)
class DataResult:
    """Rows that a data command made.

    Attributes:
        rows: The rows.
        facts: Counts and warnings, in sentences.
        settings: Settings that the rows depend on. The card leaves out those that are None or "".
        sources: Files that were read.
    """

    rows: Sequence[DataRow]
    facts: Sequence[str]
    settings: Mapping[str, Any]
    sources: Sequence[Path]

    def write(self, out: Path) -> str:
        """Write the rows to ``out``, and digests, settings and facts to ``out.card.json``.

        Returns:
            SHA-256 of the rows' file.

        Raises:
            RecordError: If the rows cannot be written.
            ConfigError: If the card cannot be written.
        """
        # The output may replace a source, so its digest is taken first.
        inputs = {str(source): file_digest(source) for source in self.sources}
        write_jsonl(out, self.rows)
        card = {
            "version": __version__,
            "inputs": inputs,
            "settings": {name: value for name, value in self.settings.items() if value not in (None, "")},
            "rows": len(self.rows),
            "facts": list(self.facts),
            "sha256": file_digest(out),
        }
        try:
            with atomic_write(Path(f"{out}.card.json")) as partial:
                partial.write_text(json.dumps(card, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        except OSError as error:
            raise ConfigError(
                f"{out} is written, its card {out}.card.json cannot be ({error}): make room for it."
            ) from error
        return str(card["sha256"])
