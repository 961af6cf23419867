"""The index of a checkpoint whose weights are in several files: which files it names, and which it must not name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath

from lm_eval_aft.core.files import read_bytes
from lm_eval_aft.core.jsonl import parse_json

SAFE_INDEX, SAFE = ".safetensors.index.json", ".safetensors"


def refused_shard(name: str, *, pickles: bool = False) -> str:
    """Why a checkpoint must not be loaded, or "".

    A loader waits for ever for a pipe. It opens whatever file an index names, and reads a pickle if the name does not
    end in ``.safetensors``.

    Args:
        name: Folder of the checkpoint. The name of a hub repository has no files here and is not looked at.
        pickles: Whether the user trusts weights in pickle files.
    """
    for path in sorted(Path(name).glob("*")):
        if path.exists() and not path.is_file() and not path.is_dir():
            return f"{path.name} is a stream, not a file: give a folder of files."
    for index, shard in _named(Path(name)):
        if _leaves(shard):
            return (
                f"{index.name} names {shard!r:.200}, which is outside the folder: give a folder that holds all its "
                "weights."
            )
        if index.name.endswith(SAFE_INDEX) and not shard.endswith(SAFE) and not pickles:
            return (
                f"{index.name} names {shard!r:.200}, which is not a safetensors file: weights in pickle files can run "
                "code and are refused; save the checkpoint as safetensors."
            )
    return ""


def shards(folder: Path) -> list[Path]:
    """The files that the indexes of a checkpoint name and that exist, sorted."""
    return sorted({path for _, shard in _named(folder) if not _leaves(shard) and (path := folder / shard).is_file()})


def _named(folder: Path) -> Iterator[tuple[Path, str]]:
    """Each index of a folder with each file that it names. An index that cannot be read is left to the loader."""
    for index in sorted(folder.glob("*.index.json")):
        try:
            weight_map = parse_json(read_bytes(index))["weight_map"]
            names = sorted({str(shard) for shard in weight_map.values()})
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
        yield from ((index, shard) for shard in names)


def _leaves(shard: str) -> bool:
    """Whether a name leads out of its folder, on any system."""
    kinds = (PurePosixPath(shard), PureWindowsPath(shard))
    return "\0" in shard or any(path.is_absolute() or path.drive or ".." in path.parts for path in kinds)
