"""The result of a data command, and the files that hold it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_eval_aft import __version__
from lm_eval_aft.core.files import file_digest, write_text
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

    def write(self, out: Path, write_rows: Callable[[Path, Sequence[DataRow]], object] = write_jsonl) -> str:
        """Write the rows to ``out``, and digests, settings and facts to ``out.card.json``.

        Args:
            out: The file.
            write_rows: Writes the rows.

        Returns:
            SHA-256 of the rows' file.

        Raises:
            RecordError: If a file cannot be written.
        """
        # The output may replace a source, so its digest is taken first.
        inputs = {str(source): file_digest(source) for source in self.sources}
        write_rows(out, self.rows)
        card = {
            "version": __version__,
            "inputs": inputs,
            "settings": {name: value for name, value in self.settings.items() if value not in (None, "")},
            "rows": len(self.rows),
            "facts": list(self.facts),
            "sha256": file_digest(out),
        }
        write_text(Path(f"{out}.card.json"), json.dumps(card, indent=2, ensure_ascii=False) + "\n")
        return str(card["sha256"])
