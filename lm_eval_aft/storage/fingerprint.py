"""What identifies a checkpoint: the part of a store key that says which weights wrote a text.

A hub repository is its name and commit. A folder is its config and its weight files; of these the size, both ends, and
in safetensors both ends of every tensor: enough to notice that one layer was trained further, without reading
gigabytes. Called by the engines that load weights themselves, and for reward models.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from hashlib import sha256
from itertools import chain
from pathlib import Path

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.gguf")
CONFIGS = ("config.json", "adapter_config.json", "generation_config.json")
END, TENSOR_END = 1 << 20, 1 << 12  # bytes read at each end of a file, and of a tensor
BLOCKS = 1024  # of the size of a tensor's end that are read of a file whose tensors are not known


def checkpoint_fingerprint(name: str, revision: str | None, commit: str | None) -> str:
    """Identify a checkpoint.

    Args:
        name: Folder, or name of a hub repository.
        revision: Branch, tag or commit asked for.
        commit: Commit that was loaded, where the loader tells; else it is looked for in the hub's cache.

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
    """The commit whose files lie in the cache, as the last folder but the file's name."""
    for config in CONFIGS:
        try:
            path = try_to_load_from_cache(name, config, revision=revision)
        except HFValidationError:  # no name that a repository can have
            return None
        if isinstance(path, str):
            return Path(path).parent.name
    return None


def _pieces(folder: Path) -> Iterator[bytes]:
    for config in CONFIGS:
        if (folder / config).is_file():
            yield (folder / config).read_bytes()
    for path in sorted(path for pattern in WEIGHTS for path in folder.glob(pattern)):
        size = path.stat().st_size
        yield f"{path.name}:{size}".encode()
        with path.open("rb") as file:
            ends = chain(((0, END), (max(0, size - END), END)), _places(path, size))
            for start, length in ends:
                file.seek(start)
                yield file.read(length)


def _places(path: Path, size: int) -> Iterator[tuple[int, int]]:
    """Where to read within a file, as (start, length): both ends of each tensor, else blocks at even distances."""
    tensors = _tensors(path, size) if path.suffix == ".safetensors" else []
    for start, end in tensors:
        yield start, min(TENSOR_END, end - start)
        yield max(start, end - TENSOR_END), min(TENSOR_END, end - start)
    if not tensors:
        yield from ((size * block // BLOCKS, TENSOR_END) for block in range(BLOCKS))


def _tensors(path: Path, size: int) -> list[tuple[int, int]]:
    """Where each tensor begins and ends; none where the file is no safetensors file but, say, a pointer to one.

    The head of such a file (https://huggingface.co/docs/safetensors, "Format") is its length in eight bytes,
    little-endian, and a JSON object that holds each tensor's offsets from the end of the head.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > size:
            return []
        try:
            head = json.loads(file.read(length))
            offsets = [row["data_offsets"] for name, row in head.items() if name != "__metadata__"]
            return sorted((8 + length + start, 8 + length + end) for start, end in offsets)
        except (ValueError, KeyError, TypeError, AttributeError):
            return []
