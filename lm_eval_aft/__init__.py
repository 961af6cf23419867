"""lm_eval_aft: evaluate and train propose-and-aggregate language models with lm-evaluation-harness.

Every start of Python imports this file (see ``_autoload``), so its top level must stay light. docs/reference/python.md
shows the public names.
"""

from lm_eval_aft._autoload import register, tasks_path

# mypy treats this name as typing's own. Importing typing would slow every start.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from lm_eval_aft.analysis.api import compare, diagnose, read_runs, votes
    from lm_eval_aft.analysis.frames import frames
    from lm_eval_aft.core.errors import AFTError
    from lm_eval_aft.model import AFTLM
    from lm_eval_aft.storage.traces import read_traces

    __version__: str

__all__ = [
    "AFTLM",
    "AFTError",
    "__version__",
    "compare",
    "diagnose",
    "frames",
    "read_runs",
    "read_traces",
    "register",
    "tasks_path",
    "votes",
]

_ON_FIRST_USE = {
    "AFTError": "lm_eval_aft.core.errors",
    "AFTLM": "lm_eval_aft.model",
    "compare": "lm_eval_aft.analysis.api",
    "diagnose": "lm_eval_aft.analysis.api",
    "frames": "lm_eval_aft.analysis.frames",
    "read_runs": "lm_eval_aft.analysis.api",
    "read_traces": "lm_eval_aft.storage.traces",
    "votes": "lm_eval_aft.analysis.api",
}


def __getattr__(name: str) -> object:
    """Import a public name on first use. ``AFTLM`` needs torch and lm_eval, and ``frames`` needs pandas."""
    if name == "__version__":
        return _version()
    if name not in _ON_FIRST_USE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_ON_FIRST_USE[name]), name)


def _version() -> str:
    """The installed version. A folder of sources that is not installed does not know its own."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("lm_eval_aft")
    except PackageNotFoundError:
        return "unknown"
