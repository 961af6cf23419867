"""The package alpaca_eval and the difficulty file its length control downloads, each found before it is needed.

The package is imported on first use: its import takes seconds, sets the root logger to INFO and warns about
pkg_resources. Knows nothing of scores or judges. Called by ``alpaca``, ``alpaca_judge`` and ``alpaca_score``.
"""

from __future__ import annotations

import csv
import hashlib
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_eval_aft.core.errors import JudgeError
from lm_eval_aft.judging.alpaca_eval.data import INSTRUCTIONS

HUB = "tatsu-lab/alpaca_eval"
GAMED, DIFFICULTY = "df_gamed", "instruction_difficulty"
GAMED_COLUMNS = ("model", "index", "preference", "std_delta_len", DIFFICULTY, "not_gamed_baseline")
WITHOUT = (
    "give its folder with --difficulty DIR, or leave length control out with --no-lc (in a run: --metadata "
    "alpaca_difficulty=DIR or alpaca_no_lc=true)"
)
PUBLISHED_GAMED = "97aeec3f1c7de6dee6fd31fe66f1702623f4614c3efe1c6fc5f4927cd5fd674d"  # sha256 of the hub's df_gamed.csv


@dataclass(frozen=True, slots=True)
class Difficulty:
    """The file that length control is fitted with, and whether it is the published one."""

    file: Path
    published: bool


@contextmanager
def package() -> Iterator[Any]:
    """The alpaca_eval package, kept from the root logger and from sklearn's settings while it works.

    Raises:
        JudgeError: If it, or something it needs, is not installed.
    """
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.CRITICAL)  # it reports each failure there, which we count and name ourselves
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="pkg_resources is deprecated", category=UserWarning)
            import alpaca_eval
            import sklearn
        root.setLevel(logging.CRITICAL)  # its import sets INFO
        with sklearn.config_context():
            yield alpaca_eval
    except ImportError as error:
        raise JudgeError(
            f"AlpacaEval is scored by the package alpaca_eval, which cannot be imported ({error}): install the extra "
            "with pip install 'lm_eval_aft[alpaca]'."
        ) from error
    finally:
        root.setLevel(level)


def find_difficulty(folder: Path | None) -> Difficulty:
    """The df_gamed.csv of a folder, else the hub's; looked for before a judge is called.

    Raises:
        JudgeError: If it cannot be had, or the folder's two files contradict each other.
    """
    file = _in_folder(folder, GAMED) if folder else from_hub(f"{GAMED}.csv", WITHOUT)
    hard = _difficulties(file, GAMED_COLUMNS)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    if folder and list(folder.glob(f"{DIFFICULTY}*.csv")):
        _compare(file, hard, _in_folder(folder, DIFFICULTY))
    return Difficulty(file, digest == PUBLISHED_GAMED)


def from_hub(name: str, otherwise: str) -> Path:
    """A file of the hub's data set, from its cache or downloaded.

    Args:
        name: The file.
        otherwise: What to do without the hub, for the message.

    Raises:
        JudgeError: If it cannot be had.
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
    found = [exact] if exact.is_file() else sorted(folder.glob(f"{stem}*.csv"))
    if len(found) != 1:
        raise JudgeError(
            f"{folder} holds {len(found)} files {stem}*.csv where one is needed: give the folder with {stem}.csv of "
            f"the hub's data set {HUB}."
        )
    return found[0]


def _compare(gamed: Path, hard: Mapping[int, float], other: Path) -> None:
    """Both files hold the difficulty of each instruction; the fit reads the first, a reader would trust the second."""
    theirs = _difficulties(other, ("index", DIFFICULTY))
    apart = [row for row in sorted(hard) if abs(hard[row] - theirs[row]) > 1e-4]
    if apart:
        raise JudgeError(f"{gamed} and {other} give row {apart[0]} two difficulties: take both from one release.")


def _difficulties(file: Path, columns: Sequence[str]) -> dict[int, float]:
    """Difficulty by row of the eval set; a file that lacks a column or a row is refused here, not while scoring."""
    try:
        with file.open(encoding="utf-8", newline="") as lines:
            reader = csv.DictReader(lines)
            names = ["index" if name == "" else name for name in reader.fieldnames or []]  # as pandas writes an index
            reader.fieldnames = names
            rows = list(reader)
        hard = {int(row["index"]): float(row[DIFFICULTY]) for row in rows}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise JudgeError(
            f"{file} cannot be read ({type(error).__name__}: {error}): get it from {HUB} again."
        ) from error
    absent = [name for name in columns if name not in names]
    if absent or set(hard) != set(range(INSTRUCTIONS)):
        raise JudgeError(
            f"{file} must have the columns {', '.join(columns)} and the rows 0 to {INSTRUCTIONS - 1}: get it from "
            f"{HUB} again."
        )
    return hard
