"""The reference pages, made from the code.

``python tests/helpers/reference.py`` writes them.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2])]

from helpers.paths import ROOT
from lm_eval_aft.analysis import frames
from lm_eval_aft.analysis.frames import FrameColumn

FOLDER = ROOT / "docs" / "reference"


def between_marks(page: str, name: str, text: str) -> str:
    """The page with this text between the two comments that carry a name."""
    begin, end = f"<!-- {name}: made by tests/helpers/reference.py -->\n", f"<!-- /{name} -->\n"
    before, _, rest = page.partition(begin)
    return before + begin + text + end + rest.partition(end)[2]


def frame_tables() -> str:
    """A table of columns for each frame."""
    tables = (
        ("runs", "One row for each run, task or group, and metric.", frames.RUN_COLUMNS),
        ("samples", "One row for each logged question and filter.", frames.SAMPLE_COLUMNS),
        ("drafts", "One row for each generation: drafts, hidden layers and answers.", frames.DRAFT_COLUMNS),
        ("judgements", "One row for each judged turn. It is empty if no run is judged.", frames.JUDGEMENT_COLUMNS),
    )
    return "".join(f"\n### {name}\n\n{sentence}\n\n{_columns(columns)}" for name, sentence, columns in tables) + "\n"


def _columns(columns: Mapping[str, FrameColumn]) -> str:
    rows = [f"| `{name}` | {column.dtype} | {column.meaning} |\n" for name, column in columns.items()]
    return "| column | type | meaning |\n|---|---|---|\n" + "".join(rows)


def pages() -> dict[Path, str]:
    """Each page with its text."""
    python = FOLDER / "python.md"
    return {python: between_marks(python.read_text(encoding="utf-8"), "frames", frame_tables())}


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
