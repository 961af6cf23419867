"""Run at the start of every Python that a test starts (conftest.py): lm-eval's own task files are parsed once.

At each start lm-eval 0.4.13 parses the fourteen thousand files of its own tasks, some with others that they include:
up to sixteen seconds of a processor, more than all else that most of our commands do. What they hold is kept in
.pytest_cache, for this lm-eval in this place; lm-eval finds the files and builds its index from them as ever.
"""

from __future__ import annotations

from contextlib import suppress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path
    from types import ModuleType
    from typing import Any

AS_INDEXED = {"resolve_func": False, "recursive": True}


def parse_once(module: ModuleType) -> None:
    """Let lm_eval.tasks._index take what its own files hold from what was kept."""
    from pathlib import Path
    from pickle import loads

    parse, stock, kept = module.load_yaml, Path(module.__file__ or "").parent, dict[Path, bytes]()
    if hasattr(parse, "parses_once"):
        return

    def load_yaml(path: Path, **options: Any) -> Any:
        if options != AS_INDEXED or stock not in path.parents:
            return parse(path, **options)
        if not kept:
            kept.update(_contents(stock, module.TaskIndex._iter_yaml_files(stock), parse))
        return loads(kept[path]) if path in kept else parse(path, **options)

    vars(load_yaml)["parses_once"] = True
    module.load_yaml = load_yaml  # type: ignore[attr-defined]


def _contents(stock: Path, files: Iterable[Path], parse: Callable[..., Any]) -> dict[Path, bytes]:
    """Each file's content, pickled by itself: whoever changes one changes it for nobody else."""
    import pickle
    from hashlib import sha256
    from importlib.metadata import version
    from pathlib import Path

    from lm_eval_aft.core.files import atomic_write

    folder = Path(__file__).resolve().parents[3] / ".pytest_cache"
    of_this = sha256(f"{stock} {version('lm_eval')}".encode()).hexdigest()[:16]
    file, made = folder / f"stock-tasks-{of_this}.pickle", dict[Path, bytes]()
    with suppress(OSError, EOFError, pickle.UnpicklingError):
        return dict(pickle.loads(file.read_bytes()))
    for path in files:
        with suppress(Exception):  # it is parsed again when it is asked for, and lm-eval says what it says then
            made[path] = pickle.dumps(parse(path, **AS_INDEXED))
    with suppress(OSError):  # where nothing can be written each process parses for itself
        folder.mkdir(exist_ok=True)
        with atomic_write(file) as partial:
            partial.write_bytes(pickle.dumps(made))
    return made


with suppress(ImportError):  # a Python without the package has nothing that could be faster
    from lm_eval_aft._autoload import ADDITIONS

    ADDITIONS["lm_eval.tasks._index"] = parse_once
