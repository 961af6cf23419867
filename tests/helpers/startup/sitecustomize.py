"""Caches lm-eval's parsed task files. Every Python that a test starts runs this file first, because of conftest.py.

At each start lm-eval 0.4.13 parses the fourteen thousand files of its own tasks. That takes up to sixteen seconds of
processor time, more than the rest of most commands. This module keeps the parsed files in .pytest_cache, separately for
each installation of lm-eval. lm-eval still finds the files and builds its index.
"""

from __future__ import annotations

from contextlib import suppress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path
    from types import ModuleType
    from typing import Any

# Options with which lm-eval parses files for its index.
INDEX_OPTIONS = {"resolve_func": False, "recursive": True}


def parse_once(module: ModuleType) -> None:
    """Make lm_eval.tasks._index read the parsed files of its own tasks from the cache."""
    from pathlib import Path
    from pickle import loads

    parse, tasks, cache = module.load_yaml, Path(module.__file__ or "").parent, dict[Path, bytes]()
    if hasattr(parse, "parses_once"):
        return

    def load_yaml(path: Path, **options: Any) -> Any:
        if options != INDEX_OPTIONS or tasks not in path.parents:
            return parse(path, **options)
        if not cache:
            cache.update(_contents(tasks, module.TaskIndex._iter_yaml_files(tasks), parse))
        return loads(cache[path]) if path in cache else parse(path, **options)

    vars(load_yaml)["parses_once"] = True
    module.load_yaml = load_yaml  # type: ignore[attr-defined]


def _contents(tasks: Path, files: Iterable[Path], parse: Callable[..., Any]) -> dict[Path, bytes]:
    """The content of each file, pickled on its own, so that each caller gets a new object."""
    import pickle
    from hashlib import sha256
    from importlib.metadata import version
    from pathlib import Path

    from lm_eval_aft.core.files import atomic_write

    folder = Path(__file__).resolve().parents[3] / ".pytest_cache"
    installation = sha256(f"{tasks} {version('lm_eval')}".encode()).hexdigest()[:16]
    file, contents = folder / f"stock-tasks-{installation}.pickle", dict[Path, bytes]()
    with suppress(OSError, EOFError, pickle.UnpicklingError):
        return dict(pickle.loads(file.read_bytes()))
    for path in files:
        # lm-eval parses a damaged file itself and reports its error.
        with suppress(Exception):
            contents[path] = pickle.dumps(parse(path, **INDEX_OPTIONS))
    # If nothing can be written, each process parses the files.
    with suppress(OSError):
        folder.mkdir(exist_ok=True)
        with atomic_write(file) as partial:
            partial.write_bytes(pickle.dumps(contents))
    return contents


# A Python without the package needs no cache.
with suppress(ImportError):
    from lm_eval_aft._autoload import ADDITIONS

    ADDITIONS["lm_eval.tasks._index"] = parse_once
