"""Identifies a checkpoint. The result is the part of a store key that says which weights wrote a text.

A hub repository is identified by its name and commit. A folder is identified by its config files and by parts of its
weight files: the size, both ends of the file, and in safetensors files both ends of every tensor. These parts change
if a single layer is trained further, and reading them takes no gigabytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256
from itertools import chain
from pathlib import Path

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

from lm_eval_aft.core.jsonl import parse_json
from lm_eval_aft.core.shards import shards

WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.gguf")
# What a training run leaves beside its weights to resume from. It changes no text.
TRAINING_STATE = ("optimizer.pt", "optimizer.bin", "scheduler.pt", "scaler.pt")
CONFIGS = ("config.json", "adapter_config.json", "generation_config.json")
# Bytes read at each end of a file, and at each end of a tensor.
FILE_END_BYTES, TENSOR_END_BYTES = 1 << 20, 1 << 12
# Blocks of TENSOR_END_BYTES read from a file whose tensors are unknown.
BLOCKS = 1024


def checkpoint_fingerprint(name: str, revision: str | None, commit: str | None) -> str:
    """Identify a checkpoint.

    Args:
        name: Folder, or name of a hub repository.
        revision: Requested branch, tag or commit.
        commit: Commit that was loaded, or None to search the hub's cache.

    Returns:
        "folder:<sha256>" or "hub:<name>@<commit or revision>".
    """
    folder = Path(name)
    if not folder.is_dir():
        return f"hub:{name}@{commit or _cached_commit(name, revision) or revision or 'main'}"
    digest = sha256()
    for piece in _pieces(folder):
        digest.update(piece)
    return f"folder:{digest.hexdigest()}"


def _cached_commit(name: str, revision: str | None) -> str | None:
    """The commit whose files are in the hub's cache: the name of the folder that holds them."""
    for config in CONFIGS:
        try:
            path = try_to_load_from_cache(name, config, revision=revision)
        except HFValidationError:
            # No repository can have this name.
            return None
        if isinstance(path, str):
            return Path(path).parent.name
    return None


def _pieces(folder: Path) -> Iterator[bytes]:
    """The bytes that identify a folder."""
    for config in CONFIGS:
        if (folder / config).is_file():
            yield (folder / config).read_bytes()
    weights = {path for pattern in WEIGHTS for path in folder.glob(pattern)}
    # An index may name files in subfolders, or with other endings.
    for path in sorted({path for path in weights if path.name not in TRAINING_STATE} | set(shards(folder))):
        size = path.stat().st_size
        yield f"{path.relative_to(folder).as_posix()}:{size}".encode()
        with path.open("rb") as file:
            file_ends = ((0, FILE_END_BYTES), (max(0, size - FILE_END_BYTES), FILE_END_BYTES))
            for start, length in chain(file_ends, _samples(path, size)):
                file.seek(start)
                yield file.read(length)


def _samples(path: Path, size: int) -> Iterator[tuple[int, int]]:
    """The parts of a weight file to read, as (start, length) in bytes.

    They are both ends of each tensor, or blocks at even distances if the tensors are unknown.
    """
    tensors = _tensor_offsets(path, size) if path.suffix == ".safetensors" else []
    for start, end in tensors:
        yield start, min(TENSOR_END_BYTES, end - start)
        yield max(start, end - TENSOR_END_BYTES), min(TENSOR_END_BYTES, end - start)
    if not tensors:
        yield from ((size * block // BLOCKS, TENSOR_END_BYTES) for block in range(BLOCKS))


def _tensor_offsets(path: Path, size: int) -> list[tuple[int, int]]:
    """Start and end of each tensor in a safetensors file. Empty if the file is something else, such as a pointer.

    The file begins with the length of its header in eight bytes, little-endian. The header is a JSON object that holds
    each tensor's offsets from the end of the header (https://huggingface.co/docs/safetensors, "Format").
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > size:
            return []
        try:
            header = parse_json(file.read(length))
            offsets = [row["data_offsets"] for name, row in header.items() if name != "__metadata__"]
            return sorted((8 + length + start, 8 + length + end) for start, end in offsets)
        except (ValueError, KeyError, TypeError, AttributeError):
            return []
