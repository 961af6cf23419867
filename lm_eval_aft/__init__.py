"""lm_eval_aft: evaluate and train propose-and-aggregate language models with lm-evaluation-harness.

This file is imported at every interpreter start (see ``_autoload``), so it imports nothing at its top level and must
stay that light. Python users start at ``register``; everybody else types ``lm_eval --model aft``.
"""

TYPE_CHECKING = False  # mypy takes this for typing's own, and typing is not paid for at every start
if TYPE_CHECKING:
    from pathlib import Path

__version__ = "0.1.0"
__all__ = ["__version__", "register", "tasks_path"]


def register() -> None:
    """Make the model ``aft`` and our tasks known to lm-eval in this process.

    Only needed where the start-up file is switched off or banned; calling it twice, or beside it, does no harm.

    Raises:
        ConfigError: lm-eval is missing or its version is not one we know.
    """
    from lm_eval_aft import _autoload

    _autoload.register()


def tasks_path() -> "Path":
    """Return the folder of our task YAML files: inside the package when installed, beside it in a checkout.

    Raises:
        ConfigError: neither folder exists, so the installation is damaged.
    """
    from pathlib import Path

    package = Path(__file__).resolve().parent
    for folder in (package / "tasks", package.parent / "tasks"):
        if folder.is_dir():
            return folder

    from lm_eval_aft.core.errors import ConfigError

    raise ConfigError(f"there is no folder of tasks in {package} or beside it: install lm_eval_aft again")
