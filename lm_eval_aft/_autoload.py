"""Makes ``--model aft`` and our tasks known to a version of lm-eval that discovers no plugins.

``install`` runs at every start of Python. lm_eval_aft.pth calls it, and from Python 3.15 on lm_eval_aft.start. It
imports only sys and puts a finder on ``sys.meta_path``, which acts on the import of three modules:

    lm_eval                 If the command line names our model, a signal ends the program in order from here on.
    lm_eval.models          "aft" joins the registry after lm-eval's own table, which it would hide otherwise. An error
                            of ours that ends the program becomes one sentence and exit code 2.
    lm_eval.tasks.manager   Every TaskManager with the built-in tasks searches our folder too.

``register`` does the same for programs that call it.
"""

import sys

# mypy treats this name as typing's own. Importing typing would slow every start.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.abc import Loader
    from importlib.machinery import ModuleSpec
    from pathlib import Path
    from types import ModuleType, TracebackType
    from typing import Any

SWITCH = "LM_EVAL_AFT_AUTOLOAD"
MODEL_NAME = "aft"
# lm-eval imports the class, and torch with it, when it needs the model.
MODEL_TARGET = "lm_eval_aft.model:AFTLM"


class PluginFinder:
    """A finder that finds nothing itself, and adds our part to some of lm-eval's modules right after they have run."""

    def find_spec(
        self, name: str, path: "Sequence[str] | None" = None, target: "ModuleType | None" = None
    ) -> "ModuleSpec | None":
        """Return the other finders' spec for the modules in ``ADDITIONS``, and None for all other modules."""
        if name not in ADDITIONS or self not in sys.meta_path:
            return None
        # Only the finders behind this one: another finder may ask all others, and both would call each other for ever.
        for finder in sys.meta_path[sys.meta_path.index(self) + 1 :]:
            spec = finder.find_spec(name, path, target)
            if spec is not None:
                if spec.loader is not None:
                    _run_after(spec.loader, name)
                return spec
        return None


def install() -> None:
    """Add the finder, unless ``LM_EVAL_AFT_AUTOLOAD=0``. A second call changes nothing."""
    # site has imported os before it reads any start-up file.
    from os import environ

    if environ.get(SWITCH) != "0":
        _add_finder()


def register() -> None:
    """Make the model ``aft`` and our tasks known to lm-eval in this process, even if ``LM_EVAL_AFT_AUTOLOAD=0``.

    You need this only if the start-up file is switched off or banned. A second call changes nothing.

    Raises:
        ConfigError: If lm-eval is missing, or is not a version that the plugin knows.
    """
    from lm_eval_aft.core.errors import ConfigError

    try:
        import lm_eval.models  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"lm_eval cannot be imported ({error}): pip install 'lm-eval>=0.4.13'") from error
    try:
        # An addition may run twice.
        for name in ADDITIONS.keys() & sys.modules.keys():
            ADDITIONS[name](sys.modules[name])
    except (AttributeError, ImportError, LookupError, TypeError, ValueError) as error:
        raise ConfigError(_explain(error)) from error
    # For modules that are not imported yet. If the finder were there before, it would report the same errors first.
    _add_finder()


def print_error(error: BaseException) -> None:
    """Print an error of ours as every command does. One that ends a command as planned is no error to the user."""
    planned = getattr(error, "exit_code", 2) == 0
    _print(str(error) if planned else f"error: {error}")


def _add_finder() -> None:
    if not any(isinstance(finder, PluginFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, PluginFinder())


def _run_after(loader: "Loader", name: str) -> None:
    """Run ``ADDITIONS[name]`` once this loader has executed the module ``name``.

    Only this loader object changes, not its class, and only until then. ``module.__loader__`` stays the same object,
    so importlib.resources, inspect and the like see nothing unusual.
    """
    execute = loader.exec_module

    def exec_module(module: "ModuleType") -> None:
        execute(module)
        # Some tools share one loader between modules.
        if module.__name__ == name:
            vars(loader).pop("exec_module", None)
            _add_quietly(name, module)

    loader.exec_module = exec_module  # type: ignore[method-assign]


def _add_quietly(name: str, module: "ModuleType") -> None:
    try:
        ADDITIONS[name](module)
    # An import of another package is running, and --model hf must work even if our part fails.
    except Exception as error:
        _print(f"lm_eval_aft: {_explain(error)}")


def _prepare(module: "ModuleType") -> None:
    if _names_our_model(sys.argv):
        from lm_eval_aft.core.program import prepare_program

        _catch_our_errors()
        prepare_program()


def _add_model(module: "ModuleType") -> None:
    from lm_eval.api import registry

    _catch_our_errors()
    if MODEL_NAME not in registry.model_registry and not _discovered_by_lm_eval(registry):
        registry.model_registry.register(MODEL_NAME, target=MODEL_TARGET)


def _names_our_model(words: "list[str]") -> bool:
    """Whether a command line chooses our model. If a file of settings does, the model prepares the program later."""
    return any(word == MODEL_NAME or word.endswith(f"={MODEL_NAME}") for word in words)


def _discovered_by_lm_eval(registry: "ModuleType") -> bool:
    """Whether this lm-eval reads our entry point itself (its pull request 4013)."""
    from importlib.metadata import entry_points

    # A checkout that was never installed has no entry point.
    return hasattr(registry, "load_plugins") and bool(entry_points(group="lm_eval.models", name=MODEL_NAME))


def _add_tasks(module: "ModuleType") -> None:
    manager = module.TaskManager
    if not hasattr(manager.__init__, "searches_lm_eval_aft"):
        manager.__init__ = _with_our_folder(tasks_path(), manager.__init__)


def _with_our_folder(ours: "Path", init: "Callable[..., None]") -> "Callable[..., None]":
    """Wrap TaskManager's constructor. It searches the built-in tasks, then ours, then the user's; the last one wins."""
    from functools import wraps
    from inspect import signature

    parameters = signature(init)
    if not {"include_path", "include_defaults"} <= parameters.parameters.keys():
        raise TypeError(f"TaskManager takes {parameters}")

    @wraps(init)
    def __init__(self: "Any", *args: "Any", **kwargs: "Any") -> None:
        call = parameters.bind(self, *args, **kwargs)
        call.apply_defaults()
        include_path = call.arguments["include_path"]
        if call.arguments["include_defaults"]:
            call.arguments["include_path"] = _put_first(ours, include_path)
        init(*call.args, **call.kwargs)
        # Readers of the attribute get what the user gave.
        self.include_path = include_path

    vars(__init__)["searches_lm_eval_aft"] = True
    return __init__


def _put_first(ours: "Path", include_path: "Any") -> "list[Any]":
    """Our folder, followed by the user's folders. Only the user's folders if one of them is ours or contains it."""
    from pathlib import Path

    folders = list(include_path) if isinstance(include_path, (list, tuple)) else [include_path] if include_path else []
    if any(ours.is_relative_to(Path(folder).resolve()) for folder in folders):
        return folders
    return [ours, *folders]


def _catch_our_errors() -> None:
    """Print an error of ours, or a stop, that ends the program as one sentence and use its exit code.

    Plain ``lm_eval`` catches nothing. All other errors go to the hook that was there before.
    """
    previous = sys.excepthook
    if hasattr(previous, "catches_lm_eval_aft"):
        return

    def excepthook(kind: "type[BaseException]", error: BaseException, trace: "TracebackType | None") -> None:
        errors = sys.modules.get("lm_eval_aft.core.errors")
        if errors is None or not isinstance(error, (errors.AFTError, errors.Stopped)):
            previous(kind, error, trace)
            return
        print_error(error)
        # An interactive session continues. Otherwise CPython ends the program with the code of a hook's SystemExit.
        if not hasattr(sys, "ps1"):
            raise SystemExit(error.exit_code)

    vars(excepthook)["catches_lm_eval_aft"] = True
    sys.excepthook = excepthook


def _explain(error: Exception) -> str:
    if type(error).__module__ == "lm_eval_aft.core.errors":
        return str(error)
    cause = f"{type(error).__name__}: {error}"
    return (
        f"this lm_eval is not one the plugin knows ({cause}): use a newer lm_eval_aft, or pip install lm-eval==0.4.13"
    )


def _print(sentence: str) -> None:
    from io import StringIO

    # torch.distributed calls sys.excepthook with a StringIO as stderr, and drops what it holds if the hook raises.
    stream = sys.__stderr__ if isinstance(sys.stderr, StringIO) else sys.stderr
    try:
        print(sentence, file=stream)
    except (OSError, ValueError):
        # Nobody can read stderr. The exit code still says that the program failed.
        return


def tasks_path() -> "Path":
    """The folder of our tasks: inside an installed package, or beside the package in a checkout.

    Raises:
        ConfigError: If neither folder exists, so the installation is damaged.
    """
    from pathlib import Path

    package = Path(__file__).resolve().parent
    for folder in (package / "tasks", package.parent / "tasks"):
        if folder.is_dir():
            return folder

    from lm_eval_aft.core.errors import ConfigError

    raise ConfigError(f"there is no folder of tasks in {package} or beside it: install lm_eval_aft again")


ADDITIONS: "dict[str, Callable[[ModuleType], None]]" = {
    "lm_eval": _prepare,
    "lm_eval.models": _add_model,
    "lm_eval.tasks.manager": _add_tasks,
}
