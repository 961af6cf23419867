"""The package alpaca_eval, and the difficulty file that its length control downloads.

The package is imported on first use: its import takes seconds, sets the root logger to INFO and warns about
pkg_resources.
"""

from __future__ import annotations

import csv
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_eval_aft.core.errors import JudgeError
from lm_eval_aft.core.files import file_digest, read_bytes
from lm_eval_aft.judging.alpaca_eval.data import INSTRUCTIONS

HUB = "tatsu-lab/alpaca_eval"
GAMED, DIFFICULTY = "df_gamed", "instruction_difficulty"
GAMED_COLUMNS = ("model", "index", "preference", "std_delta_len", DIFFICULTY, "not_gamed_baseline")
WITHOUT_HUB = (
    "give its folder with --difficulty DIR, or leave length control out with --no-lc (in a run: --metadata "
    "alpaca_difficulty=DIR or alpaca_no_lc=true)"
)
# SHA-256 of the hub's df_gamed.csv
PUBLISHED_GAMED = "97aeec3f1c7de6dee6fd31fe66f1702623f4614c3efe1c6fc5f4927cd5fd674d"


@dataclass(frozen=True, slots=True)
class Difficulty:
    """The file that length control is fitted with.

    Attributes:
        file: The file.
        published: Whether it is the hub's df_gamed.csv, byte for byte.
    """

    file: Path
    published: bool


@contextmanager
def package() -> Iterator[Any]:
    """The alpaca_eval package. Within the block it cannot change the root logger or sklearn's settings.

    Raises:
        JudgeError: If the package, or something it needs, is not installed.
    """
    root = logging.getLogger()
    level = root.level
    # the package logs each failed judgement there; our messages count them
    root.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="pkg_resources is deprecated", category=UserWarning)
            import alpaca_eval
            import sklearn
        # importing the package sets INFO
        root.setLevel(logging.CRITICAL)
        with sklearn.config_context():
            yield alpaca_eval
    except ImportError as error:
        raise JudgeError(
            f"AlpacaEval is scored by the package alpaca_eval, which cannot be imported ({error}): install the extra "
            "with pip install 'lm_eval_aft[alpaca]'."
        ) from error
    finally:
        root.setLevel(level)


def require_package() -> None:
    """Check that the package can be imported.

    Raises:
        JudgeError: If it cannot.
    """
    with package():
        pass


def find_difficulty(folder: Path | None) -> Difficulty:
    """The df_gamed.csv of a folder, or of the hub if ``folder`` is None.

    Raises:
        JudgeError: If the file is missing or damaged, or the folder's two files contradict each other.
    """
    file = _in_folder(folder, GAMED) if folder else from_hub(f"{GAMED}.csv", WITHOUT_HUB)
    difficulties = _difficulties(file, GAMED_COLUMNS)
    if folder and list(folder.glob(f"{DIFFICULTY}*.csv")):
        _compare(file, difficulties, _in_folder(folder, DIFFICULTY))
    return Difficulty(file, file_digest(file) == PUBLISHED_GAMED)


def from_hub(name: str, otherwise: str) -> Path:
    """A file of the hub's data set, from its cache or downloaded.

    Args:
        name: The file's name.
        otherwise: What the user can do without the hub, for the message.

    Raises:
        JudgeError: If the file is not in the cache and cannot be downloaded.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(repo_id=HUB, filename=name, repo_type="dataset"))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise JudgeError(
            f"{name} of the hub's data set {HUB} is neither in the hub's cache nor can it be downloaded "
            f"({type(error).__name__}): {otherwise}."
        ) from error


def _in_folder(folder: Path, stem: str) -> Path:
    exact = folder / f"{stem}.csv"
    files = [exact] if exact.is_file() else sorted(folder.glob(f"{stem}*.csv"))
    if len(files) != 1:
        raise JudgeError(
            f"{folder} holds {len(files)} files {stem}*.csv where one is needed: give the folder with {stem}.csv of "
            f"the hub's data set {HUB}."
        )
    return files[0]


def _compare(gamed: Path, difficulties: Mapping[int, float], other: Path) -> None:
    """Refuse two files that contradict each other: both hold the difficulty of each instruction."""
    others = _difficulties(other, ("index", DIFFICULTY))
    rows = [row for row in sorted(difficulties) if abs(difficulties[row] - others[row]) > 1e-4]
    if rows:
        raise JudgeError(f"{gamed} and {other} give row {rows[0]} two difficulties: take both from one release.")


def _difficulties(file: Path, columns: Sequence[str]) -> dict[int, float]:
    """Difficulty by row of the eval set.

    Raises:
        JudgeError: If the file lacks a column or a row.
    """
    try:
        reader = csv.DictReader(io.StringIO(read_bytes(file).decode("utf-8-sig"), newline=""))
        # pandas writes its index under an empty name
        names = ["index" if name == "" else name for name in reader.fieldnames or []]
        reader.fieldnames = names
        rows = list(reader)
        difficulties = {int(row["index"]): float(row[DIFFICULTY]) for row in rows}
    except (OSError, ValueError, KeyError, TypeError, OverflowError, csv.Error) as error:
        raise JudgeError(
            f"{file} cannot be read ({type(error).__name__}: {error}): get it from {HUB} again."
        ) from error
    absent = [name for name in columns if name not in names]
    if absent or set(difficulties) != set(range(INSTRUCTIONS)):
        raise JudgeError(
            f"{file} must have the columns {', '.join(columns)} and the rows 0 to {INSTRUCTIONS - 1}: get it from "
            f"{HUB} again."
        )
    return difficulties
