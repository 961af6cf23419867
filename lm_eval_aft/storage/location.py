"""Where a run keeps what lm-eval does not write: its traces, its answers, and what a judge said of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lm_eval_aft.storage.results import EvalRun

# How many folders above the results file are searched for a folder that was moved.
SEARCHED_FOLDERS = 4


def record_folders(run: EvalRun) -> Iterator[Path]:
    """The folders that record= may have named, the likeliest first. Only folders that exist are returned.

    If the results and the folder were moved together, the end of its path is found below one of the folders that hold
    the results file.
    """
    model_args = run.config.get("model_args")
    record = model_args.get("record") if isinstance(model_args, dict) else None
    if not record:
        return
    path = Path(str(record))
    candidates = [path]
    for folder in run.path.absolute().parents[:SEARCHED_FOLDERS]:
        parts = [part for part in path.parts if part not in (path.anchor, ".", "..")]
        candidates += [folder.joinpath(*parts[start:]) for start in range(len(parts))]
    yield from (each for each in dict.fromkeys(candidates) if each.is_dir())


def run_folders(run: EvalRun) -> Iterator[Path]:
    """The folders in which a run may have left files, the likeliest first: those of record=, then those near it."""
    # aft sweep puts the traces into the folder above that of the results.
    near = (run.path.parent, *(above / "traces" for above in run.path.parents[1:2]))
    yield from dict.fromkeys((*record_folders(run), *(folder for folder in near if folder.is_dir())))


def benchmark_folder(run: EvalRun, benchmark: str, cache: str) -> Path:
    """The folder for the files of a judged benchmark, in which a run has one cache of judgements.

    Args:
        run: The run.
        benchmark: Name of the folder, such as mt_bench.
        cache: Name of the file that keeps judgements.

    Returns:
        The folder that holds such a file; else the one in the folder that record= named, where a judge within the run
        keeps its judgements; else the one beside the results file.
    """
    folders = [folder / benchmark for folder in run_folders(run)]
    used = (folder for folder in folders if (folder / cache).is_file())
    return next(used, folders[0] if folders else run.path.parent / benchmark)
