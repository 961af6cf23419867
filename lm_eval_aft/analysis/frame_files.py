"""Frames of runs as files: Parquet, JSON lines and CSV."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lm_eval_aft.analysis.frames import (
    DRAFT_COLUMNS,
    FLAG,
    REAL,
    RUN_COLUMNS,
    SAMPLE_COLUMNS,
    TEXT,
    WHOLE,
    FrameColumn,
    Frames,
)
from lm_eval_aft.core.errors import ConfigError
from lm_eval_aft.core.files import atomic_write, writing
from lm_eval_aft.core.jsonl import write_jsonl
from lm_eval_aft.core.terminal import spreadsheet_text

if TYPE_CHECKING:
    import pandas as pd

FrameForm = Literal["parquet", "jsonl", "csv"]
FRAME_FORMS: tuple[FrameForm, ...] = ("parquet", "jsonl", "csv")
FRAMES: Mapping[str, Mapping[str, FrameColumn]] = {
    "runs": RUN_COLUMNS,
    "samples": SAMPLE_COLUMNS,
    "drafts": DRAFT_COLUMNS,
}
_ARROW_TYPES = {TEXT: "string", WHOLE: "int64", REAL: "float64", FLAG: "bool"}


def write_frames(folder: Path, frames: Frames, form: FrameForm) -> tuple[Path, ...]:
    """Write the frames of runs, samples and drafts, a file each, such as ``FOLDER/drafts.parquet``.

    Dictionaries in a column are written as JSON. Half a surrogate pair, which no file can hold, is written as ``?``.

    Args:
        folder: Made if it does not exist.
        frames: The frames.
        form: The form of the files. In CSV a text has one line and cannot be a formula.

    Returns:
        The files.

    Raises:
        ConfigError: A file cannot be written, or pyarrow is missing.
        RecordError: A file of a run cannot be read.
    """
    write = _WRITERS[form]
    tables = plain_tables(frames)
    paths = []
    for name, columns in FRAMES.items():
        path = folder / f"{name}.{form}"
        with writing(path, ConfigError):
            folder.mkdir(parents=True, exist_ok=True)
            write(tables[name], columns, path)
        paths.append(path)
    return tuple(paths)


def plain_tables(frames: Frames) -> dict[str, pd.DataFrame]:
    """The frames of runs, samples and drafts by name. Dictionaries in a column are JSON.

    Raises:
        RecordError: A file of a run cannot be read.
    """
    made = {"runs": frames.runs, "samples": frames.samples, "drafts": frames.drafts}
    return {name: _plain(made[name], columns) for name, columns in FRAMES.items()}


def _plain(frame: pd.DataFrame, columns: Mapping[str, FrameColumn]) -> pd.DataFrame:
    """The frame with texts alone in its columns of texts."""
    names = [name for name, column in columns.items() if column.dtype == TEXT]
    return frame.assign(**{name: frame[name].map(_text, na_action="ignore") for name in names})


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text.encode("utf-8", "replace").decode("utf-8")


def _write_parquet(frame: pd.DataFrame, columns: Mapping[str, FrameColumn], path: Path) -> None:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ConfigError(
            f"Parquet needs pyarrow, which cannot be imported ({error}): pip install pyarrow, or give --format jsonl."
        ) from error
    types = [(name, pyarrow.type_for_alias(_ARROW_TYPES[column.dtype])) for name, column in columns.items()]
    table = pyarrow.Table.from_pandas(frame, pyarrow.schema(types), preserve_index=False)
    with atomic_write(path) as partial:
        parquet.write_table(table, partial)


def _write_jsonl(frame: pd.DataFrame, columns: Mapping[str, FrameColumn], path: Path) -> None:
    """JSON has no NaN and no infinity: such a number is null, as a missing value is."""
    values = [frame[name].astype(object).where(frame[name].notna(), None) for name in columns]
    rows = zip(*values, strict=True)
    write_jsonl(path, (dict(zip(columns, map(_finite, row), strict=True)) for row in rows))


def _write_csv(frame: pd.DataFrame, columns: Mapping[str, FrameColumn], path: Path) -> None:
    texts = [name for name, column in columns.items() if column.dtype == TEXT]
    safe = {name: frame[name].map(spreadsheet_text, na_action="ignore") for name in texts}
    with atomic_write(path) as partial:
        frame.assign(**safe).to_csv(partial, index=False)


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not isfinite(value) else value


_WRITERS: Mapping[str, Callable[[Any, Mapping[str, FrameColumn], Path], None]] = {
    "parquet": _write_parquet,
    "jsonl": _write_jsonl,
    "csv": _write_csv,
}
