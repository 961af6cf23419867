"""What identifies a checkpoint: the part of a store key that says which weights wrote a text.

A hub repository is its name and commit. A folder is its config and, for each weight file, size, first and last MiB:
enough to tell checkpoints apart (the head holds the safetensors header) without reading gigabytes. Called by the
engines that load weights themselves.
"""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.gguf")
CONFIGS = ("config.json", "adapter_config.json", "generation_config.json")
MIB = 1 << 20


def checkpoint_fingerprint(name: str, revision: str | None, commit: str | None) -> str:
    """Identify a checkpoint.

    Args:
        name: Folder, or name of a hub repository.
        revision: Branch, tag or commit asked for.
        commit: Commit that was loaded, where the loader tells.

    Returns:
        "folder:<sha256>" or "hub:<name>@<commit or revision>".
    """
    folder = Path(name)
    if not folder.is_dir():
        return f"hub:{name}@{commit or revision or 'main'}"
    digest = sha256()
    for piece in _pieces(folder):
        digest.update(piece)
    return f"folder:{digest.hexdigest()}"


def _pieces(folder: Path) -> Iterator[bytes]:
    for config in CONFIGS:
        if (folder / config).is_file():
            yield (folder / config).read_bytes()
    for path in sorted(path for pattern in WEIGHTS for path in folder.glob(pattern)):
        size = path.stat().st_size
        yield f"{path.name}:{size}".encode()
        with path.open("rb") as file:
            yield file.read(MIB)
            file.seek(max(0, size - MIB))
            yield file.read(MIB)
