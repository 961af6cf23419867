"""lm_eval_aft: evaluate and train propose-and-aggregate language models with lm-evaluation-harness.

Every start of Python imports this file (see ``_autoload``), so its top level must stay light. Python users call
``register``; all others type ``lm_eval --model aft``.
"""

from lm_eval_aft._autoload import register, tasks_path

# mypy treats this name as typing's own. Importing typing would slow every start.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from lm_eval_aft.core.errors import AFTError
    from lm_eval_aft.model import AFTLM

__version__ = "0.1.0"
__all__ = ["AFTLM", "AFTError", "__version__", "register", "tasks_path"]

_ON_FIRST_USE = {"AFTError": "lm_eval_aft.core.errors", "AFTLM": "lm_eval_aft.model"}


def __getattr__(name: str) -> object:
    """Import ``AFTLM`` and ``AFTError`` on first use: the class needs torch and lm_eval."""
    if name not in _ON_FIRST_USE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_ON_FIRST_USE[name]), name)
