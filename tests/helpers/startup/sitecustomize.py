"""Caches lm-eval's index of its own tasks. Every Python that a test starts runs this file first (see conftest.py).

At each start lm-eval 0.4.13 finds and parses the fourteen thousand files of its own tasks. That takes up to sixteen
seconds of processor time, more than the rest of most commands. This module keeps the index in .pytest_cache, separately
for each installation of lm-eval. lm-eval still builds the index of every other folder.
"""

from __future__ import annotations

from contextlib import suppress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path
    from types import ModuleType
    from typing import Any


def index_once(module: ModuleType) -> None:
    """Make lm_eval.tasks._index read the index of lm-eval's own tasks from the cache."""
    from pathlib import Path

    build, own, kept = module.TaskIndex.build, Path(module.__file__ or "").parent, []
    if hasattr(build, "indexes_once"):
        return

    def cached_build(paths: Iterable[Path], **options: Any) -> dict[str, Any]:
        first, *others = [*paths] or [None]
        if first != own or options:
            return dict(build([first, *others] if first else [], **options))
        if not kept:
            kept.append(_content(own, build))
        # Each caller gets objects of its own.
        index = _loaded(kept[0])
        for path in others:
            for name, entry in build([path]).items():
                if name in index:
                    places = entry.yaml_path, index[name].yaml_path
                    module.log.warning("Task '%s' from %s overrides existing task from %s", name, *places)
                index[name] = entry
        return index

    vars(cached_build)["indexes_once"] = True
    module.TaskIndex.build = staticmethod(cached_build)


def _loaded(content: bytes) -> dict[str, Any]:
    """The index. Without the garbage collector, a million new objects take a third of the time."""
    import gc
    import pickle

    enabled = gc.isenabled()
    gc.disable()
    try:
        return dict(pickle.loads(content))
    finally:
        if enabled:
            gc.enable()


def _content(own: Path, build: Callable[..., Any]) -> bytes:
    """The pickled index of lm-eval's own tasks, from the cache if it is there."""
    import pickle
    from hashlib import sha256
    from importlib.metadata import version
    from pathlib import Path

    from lm_eval_aft.core.files import atomic_write

    folder = Path(__file__).resolve().parents[3] / ".pytest_cache"
    installation = sha256(f"{own} {version('lm_eval')}".encode()).hexdigest()[:16]
    file = folder / f"stock-index-{installation}.pickle"
    with suppress(OSError):
        return file.read_bytes()
    content = pickle.dumps(build([own]))
    # If nothing can be written, each process builds the index.
    with suppress(OSError):
        folder.mkdir(exist_ok=True)
        with atomic_write(file) as partial:
            partial.write_bytes(content)
    return content


# A Python without the package needs no cache.
with suppress(ImportError):
    from lm_eval_aft._autoload import ADDITIONS

    ADDITIONS["lm_eval.tasks._index"] = index_once
