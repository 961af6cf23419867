"""The door into lm-eval: makes ``--model aft`` and our tasks known to a version that discovers no plugins itself.

``install`` runs at every interpreter start: lm_eval_aft.pth calls it, from Python 3.15 on lm_eval_aft.start. It
therefore imports only sys, and does no more than put a finder on ``sys.meta_path`` that waits for two modules:

    lm_eval.models          then "aft" joins the registry; behind lm-eval's own table, which it would hide otherwise;
                            and an error of ours that ends the program becomes one sentence and exit code 2
    lm_eval.tasks.manager   then every TaskManager with the built-in tasks searches our folder too

Knows nothing of models, tasks and command lines. ``register`` is the same door for programs that call it themselves.
Over 200 lines by a few: it may import nothing that would share them.
"""

import sys

TYPE_CHECKING = False  # mypy takes this for typing's own, and typing is not paid for at every start
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.abc import Loader
    from importlib.machinery import ModuleSpec
    from pathlib import Path
    from types import ModuleType, TracebackType
    from typing import Any

SWITCH = "LM_EVAL_AFT_AUTOLOAD"
MODEL_NAME = "aft"
MODEL_TARGET = "lm_eval_aft.model:AFTLM"  # a string: the class, and torch with it, is loaded when it is asked for


class Door:
    """A finder that finds nothing itself, and adds our part to lm-eval's modules right after they have run."""

    def find_spec(
        self, name: str, path: "Sequence[str] | None" = None, target: "ModuleType | None" = None
    ) -> "ModuleSpec | None":
        """Answer for the two modules in ``ADDITIONS``, with the other finders' answer; for all others say None."""
        if name not in ADDITIONS or self not in sys.meta_path:
            return None
        # Only those behind this one, so that another finder which asks all the others cannot send us round in circles.
        for finder in sys.meta_path[sys.meta_path.index(self) + 1 :]:
            spec = finder.find_spec(name, path, target)
            if spec is not None:
                if spec.loader is not None:
                    _run_after(spec.loader, name)
                return spec
        return None


def install() -> None:
    """Open the door at interpreter start, unless ``LM_EVAL_AFT_AUTOLOAD=0``; a second call changes nothing."""
    from os import environ  # site has imported os before any start-up file is read

    if environ.get(SWITCH) != "0":
        _open()


def register() -> None:
    """Open the door whatever the switch says, and complain where ``install`` keeps quiet.

    Raises:
        ConfigError: lm-eval is missing or its version is not one we know.
    """
    from lm_eval_aft.core.errors import ConfigError

    try:
        import lm_eval.models  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"lm_eval cannot be imported ({error}): pip install 'lm-eval>=0.4.13,<0.5'") from error
    try:
        for name in ADDITIONS.keys() & sys.modules.keys():  # adding twice does no harm
            ADDITIONS[name](sys.modules[name])
    except (AttributeError, ImportError, LookupError, TypeError, ValueError) as error:
        raise ConfigError(_explain(error)) from error
    _open()  # for what is not imported yet; only now, or the door would have said the same before us


def print_error(error: BaseException) -> None:
    """Print an error of ours the way every command of ours does."""
    _say(f"error: {error}")


def _open() -> None:
    if not any(isinstance(finder, Door) for finder in sys.meta_path):
        sys.meta_path.insert(0, Door())


def _run_after(loader: "Loader", name: str) -> None:
    """Let ``ADDITIONS[name]`` run when this loader has executed the module ``name``.

    Only this loader object is touched, not its class, and only until then: ``module.__loader__`` stays what it was,
    so importlib.resources, inspect and the like see nothing unusual.
    """
    execute = loader.exec_module

    def exec_module(module: "ModuleType") -> None:
        execute(module)
        if module.__name__ == name:  # some tools share one loader between modules
            vars(loader).pop("exec_module", None)
            _add_quietly(name, module)

    loader.exec_module = exec_module  # type: ignore[method-assign]


def _add_quietly(name: str, module: "ModuleType") -> None:
    try:
        ADDITIONS[name](module)
    except Exception as error:  # someone else's import is under way, and --model hf must work whatever befalls us
        _say(f"lm_eval_aft: {_explain(error)}")


def _add_model(module: "ModuleType") -> None:
    from lm_eval.api import registry

    _catch_our_errors()
    if MODEL_NAME not in registry.model_registry and not _discovered_by_lm_eval(registry):
        registry.model_registry.register(MODEL_NAME, target=MODEL_TARGET)


def _discovered_by_lm_eval(registry: "ModuleType") -> bool:
    """Whether this lm-eval reads our entry point itself, now or later (its pull request 4013)."""
    from importlib.metadata import entry_points

    # A checkout that was never installed has no entry point to be read.
    return hasattr(registry, "load_plugins") and bool(entry_points(group="lm_eval.models", name=MODEL_NAME))


def _add_tasks(module: "ModuleType") -> None:
    manager = module.TaskManager
    if not hasattr(manager.__init__, "searches_lm_eval_aft"):
        manager.__init__ = _searching_also(tasks_path(), manager.__init__)


def _searching_also(ours: "Path", init: "Callable[..., None]") -> "Callable[..., None]":
    """Wrap TaskManager's constructor: built-in tasks first, then ours, then the user's, where the last one wins."""
    from functools import wraps
    from inspect import signature

    parameters = signature(init)
    if not {"include_path", "include_defaults"} <= parameters.parameters.keys():
        raise TypeError(f"TaskManager takes {parameters}")

    @wraps(init)
    def __init__(self: "Any", *args: "Any", **kwargs: "Any") -> None:
        call = parameters.bind(self, *args, **kwargs)
        call.apply_defaults()
        asked = call.arguments["include_path"]
        if call.arguments["include_defaults"]:
            call.arguments["include_path"] = _put_first(ours, asked)
        init(*call.args, **call.kwargs)
        self.include_path = asked  # whoever reads it back gets what the user gave

    vars(__init__)["searches_lm_eval_aft"] = True
    return __init__


def _put_first(ours: "Path", asked: "Any") -> "list[Any]":
    """Return the user's folders with ours before them, unless one of them is ours or lies above it."""
    from pathlib import Path

    listed = list(asked) if isinstance(asked, (list, tuple)) else [asked] if asked else []
    if any(ours.is_relative_to(Path(folder).resolve()) for folder in listed):
        return listed
    return [ours, *listed]


def _catch_our_errors() -> None:
    """Give plain ``lm_eval``, which catches nothing, our one sentence and exit code; other errors pass untouched."""
    previous = sys.excepthook
    if hasattr(previous, "catches_lm_eval_aft"):
        return

    def excepthook(kind: "type[BaseException]", error: BaseException, trace: "TracebackType | None") -> None:
        errors = sys.modules.get("lm_eval_aft.core.errors")
        if errors is None or not isinstance(error, errors.AFTError):
            previous(kind, error, trace)
            return
        print_error(error)
        if not hasattr(sys, "ps1"):  # at the interactive prompt the session goes on
            raise SystemExit(error.exit_code)  # CPython heeds it: a hook may end the program with its own code

    vars(excepthook)["catches_lm_eval_aft"] = True
    sys.excepthook = excepthook


def _explain(error: Exception) -> str:
    if type(error).__module__ == "lm_eval_aft.core.errors":
        return str(error)
    seen = f"{type(error).__name__}: {error}"
    return f"this lm_eval is not one the plugin knows ({seen}): pip install 'lm-eval>=0.4.13,<0.5'"


def _say(sentence: str) -> None:
    if sys.stderr is not None:
        print(sentence, file=sys.stderr)


def tasks_path() -> "Path":
    """Return the folder of our task YAML files: inside the package when installed, beside it in a checkout.

    Raises:
        ConfigError: Neither folder exists, so the installation is damaged.
    """
    from pathlib import Path

    package = Path(__file__).resolve().parent
    for folder in (package / "tasks", package.parent / "tasks"):
        if folder.is_dir():
            return folder

    from lm_eval_aft.core.errors import ConfigError

    raise ConfigError(f"there is no folder of tasks in {package} or beside it: install lm_eval_aft again")


ADDITIONS: "dict[str, Callable[[ModuleType], None]]" = {
    "lm_eval.models": _add_model,
    "lm_eval.tasks.manager": _add_tasks,
}
