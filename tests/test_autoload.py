"""The start-up hook: what it adds to lm-eval, and that it breaks nothing.

Each test runs a Python of its own, since the hook changes a whole process. Most tests use a stand-in for lm_eval: a few
files in the shape of version 0.4.13, of a newer one or of a broken one. The last tests use the installed lm_eval and
the installed start-up file.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.paths import ROOT

INSTALL = "from lm_eval_aft import _autoload; _autoload.install()\n"

REGISTRY = """
class Registry(dict):
    def register(self, name, *, target):
        if name in self and self[name] != target:
            raise ValueError(f"{name} is registered already")
        self[name] = target

model_registry = Registry()
"""
MODELS = """
from lm_eval.api.registry import model_registry

if len(model_registry) == 0:
    model_registry.register("hf", target="lm_eval.models.huggingface:HFLM")
"""
MANAGER = """
class TaskManager:
    def __init__(self, verbosity=None, include_path=None, include_defaults=True, metadata=None):
        self.include_path = include_path
        given = include_path if isinstance(include_path, (list, tuple)) else [include_path]
        self.searched = ["built-in"] * include_defaults + [str(path) for path in given if path]
"""
# lm-eval's pull request 4013: names come from entry points, and a name that is taken stays. The real one ignores a
# second registration; this one raises, so that a test notices it.
DISCOVERY = """
from importlib.metadata import entry_points

def load_plugins(group, registry):
    for point in entry_points(group=group):
        if point.name in registry:
            raise ValueError(f"{point.name} is registered already")
        registry.register(point.name, target=point)

def get_model(name):
    if name not in model_registry:
        load_plugins("lm_eval.models", model_registry)
    return model_registry[name]
"""


class Sandbox:
    """A folder with a stand-in for lm_eval, and a Python that sees it and this checkout but no installed package."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.write("lm_eval/__init__.py", "")
        self.write("lm_eval/api/__init__.py", "")
        self.write("lm_eval/api/registry.py", REGISTRY)
        self.write("lm_eval/models/__init__.py", MODELS)
        self.write("lm_eval/tasks/__init__.py", "from lm_eval.tasks.manager import TaskManager\n")
        self.write("lm_eval/tasks/manager.py", MANAGER)

    def write(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def run(self, code: str, *options: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Run code without site-packages. There is no start-up file, so the code calls ``install`` itself."""
        path = f"import os, sys; sys.path[:0] = [{str(self.folder)!r}, {str(ROOT)!r}]\n"
        return python("-I", "-S", *options, "-c", path + code, **env)

    def show(self, code: str, **env: str) -> object:
        """Run code and return the value of its variable ``shown``."""
        done = self.run(f"{code}\nimport json; print(json.dumps(shown))", **env)
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        return json.loads(done.stdout)


def python(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if name != "LM_EVAL_AFT_AUTOLOAD"}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=clean | env, check=False)


@pytest.fixture
def sandbox(tmp_path: Path) -> Sandbox:
    return Sandbox(tmp_path)


def test_starting_up_imports_our_two_files_and_nothing_else(sandbox: Sandbox) -> None:
    new = sandbox.show(f"before = set(sys.modules)\n{INSTALL}\nshown = sorted(set(sys.modules) - before)")
    assert new == ["lm_eval_aft", "lm_eval_aft._autoload"]


def test_the_model_comes_after_the_built_in_table(sandbox: Sandbox) -> None:
    shown = sandbox.show(f"{INSTALL}import lm_eval.models as m; shown = dict(m.model_registry)")
    assert shown == {"hf": "lm_eval.models.huggingface:HFLM", "aft": "lm_eval_aft.model:AFTLM"}
    assert list(shown) == ["hf", "aft"]


def test_a_model_of_that_name_is_left_alone(sandbox: Sandbox) -> None:
    sandbox.write("lm_eval/models/__init__.py", MODELS + "\nmodel_registry.register('aft', target='other:LM')\n")
    shown = sandbox.show(f"{INSTALL}import lm_eval.models as m; shown = m.model_registry['aft']")
    assert shown == "other:LM"


@pytest.mark.parametrize(("value", "finders"), [("0", 0), ("1", 1), ("", 1)])
def test_the_switch(sandbox: Sandbox, value: str, finders: int) -> None:
    code = INSTALL + "import lm_eval.models as m\n"
    code += "shown = [sum(type(f).__name__ == 'PluginFinder' for f in sys.meta_path), "
    code += "'aft' in m.model_registry, sys.excepthook is not sys.__excepthook__]"
    assert sandbox.show(code, LM_EVAL_AFT_AUTOLOAD=value) == [finders, bool(finders), bool(finders)]


def test_the_finder_is_added_once(sandbox: Sandbox) -> None:
    code = f"{INSTALL * 3}import lm_eval_aft; lm_eval_aft.register(); lm_eval_aft.register()\n"
    code += "import lm_eval.models as m, lm_eval.tasks as t\n"
    code += "shown = [sum(type(f).__name__ == 'PluginFinder' for f in sys.meta_path), len(m.model_registry)]\n"
    code += "lm_eval_aft.register(); shown.append(len(t.TaskManager().searched))"
    assert sandbox.show(code) == [1, 2, 2]


class TestTaskManager:
    CODE = INSTALL + "import lm_eval_aft\nfrom lm_eval.tasks import TaskManager\nours = str(lm_eval_aft.tasks_path())\n"

    @pytest.mark.parametrize(
        ("arguments", "searched"),
        [
            ("", ["built-in", "OURS"]),
            ("include_path='user'", ["built-in", "OURS", "user"]),
            ("include_path=['user', 'more']", ["built-in", "OURS", "user", "more"]),
            ("None, 'user', True", ["built-in", "OURS", "user"]),
            ("include_path='user', include_defaults=False", ["user"]),
            ("include_defaults=False", []),
            ("include_path=['user', ours]", ["built-in", "user", "OURS"]),
            ("include_path=os.path.relpath(ours) + '/'", ["built-in", "OURS"]),
            ("include_path=os.path.dirname(ours)", ["built-in", "ABOVE"]),
        ],
    )
    def test_our_folder_lies_between_the_built_in_and_the_users(
        self, sandbox: Sandbox, arguments: str, searched: list[str]
    ) -> None:
        shown = sandbox.show(f"{self.CODE}shown = [TaskManager({arguments}).searched, ours, os.getcwd()]")
        assert isinstance(shown, list)
        found, ours, cwd = shown
        names = {ours: "OURS", str(Path(ours).parent): "ABOVE"}
        resolved = [name if name == "built-in" else os.path.normpath(os.path.join(cwd, name)) for name in found]
        assert [names.get(path, os.path.basename(path)) for path in resolved] == searched

    def test_the_users_path_is_handed_back_unchanged(self, sandbox: Sandbox) -> None:
        assert sandbox.show(f"{self.CODE}shown = TaskManager(include_path='user').include_path") == "user"
        assert sandbox.show(f"{self.CODE}shown = TaskManager().include_path") is None

    def test_the_constructor_looks_as_before(self, sandbox: Sandbox) -> None:
        code = f"{self.CODE}import inspect; shown = [list(inspect.signature(TaskManager).parameters), "
        shown = sandbox.show(code + "TaskManager.__init__.__qualname__]")
        assert shown == [["verbosity", "include_path", "include_defaults", "metadata"], "TaskManager.__init__"]

    def test_a_wrong_argument_is_still_a_type_error(self, sandbox: Sandbox) -> None:
        done = sandbox.run(f"{self.CODE}TaskManager(includepath='user')")
        assert done.returncode == 1
        assert "TypeError" in done.stderr
        assert "includepath" in done.stderr

    def test_a_task_manager_of_another_shape_works_as_its_author_meant(self, sandbox: Sandbox) -> None:
        sandbox.write(
            "lm_eval/tasks/manager.py", "class TaskManager:\n    def __init__(self, paths=()): self.paths = paths"
        )
        done = sandbox.run(f"{INSTALL}from lm_eval.tasks import TaskManager; print(TaskManager(['user']).paths)")
        assert done.stdout == "['user']\n"
        assert done.stderr.startswith("lm_eval_aft: this lm_eval is not one the plugin knows (TypeError: ")
        assert len(done.stderr.splitlines()) == 1


class TestNewerVersions:
    """lm-eval's main branch reads the entry point of our package itself."""

    @staticmethod
    def install(sandbox: Sandbox) -> None:
        sandbox.write(
            "lm_eval_aft-0.1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: lm_eval_aft\nVersion: 0.1.0\n"
        )
        points = "[lm_eval.models]\naft = lm_eval_aft.model:AFTLM\n"
        sandbox.write("lm_eval_aft-0.1.0.dist-info/entry_points.txt", points)

    @pytest.mark.parametrize(
        "found_by",
        [
            pytest.param("load_plugins('lm_eval.models', model_registry)", id="while its models are imported"),
            pytest.param("", id="when the model is requested"),
        ],
    )
    def test_discovery_registers_once_and_we_do_not(self, sandbox: Sandbox, found_by: str) -> None:
        self.install(sandbox)
        sandbox.write("lm_eval/api/registry.py", REGISTRY + DISCOVERY)
        sandbox.write(
            "lm_eval/models/__init__.py", f"{MODELS}\nfrom lm_eval.api.registry import load_plugins\n{found_by}\n"
        )
        code = f"{INSTALL}import lm_eval_aft; lm_eval_aft.register()\nfrom lm_eval.api import registry\n"
        code += "shown = [registry.get_model('aft').value, sorted(registry.model_registry)]"
        assert sandbox.show(code) == ["lm_eval_aft.model:AFTLM", ["aft", "hf"]]

    def test_a_checkout_without_entry_points_registers_itself(self, sandbox: Sandbox) -> None:
        sandbox.write("lm_eval/api/registry.py", REGISTRY + DISCOVERY)
        code = f"{INSTALL}import lm_eval.models\nfrom lm_eval.api import registry\nshown = registry.get_model('aft')"
        assert sandbox.show(code) == "lm_eval_aft.model:AFTLM"

    def test_a_version_that_finds_our_folder_itself_may_search_it_twice(self, sandbox: Sandbox) -> None:
        """lm-eval's pull request 4015 finds folders by entry points. The later of two equal tasks counts."""
        sandbox.write("lm_eval/tasks/manager.py", MANAGER.replace('["built-in"]', '["built-in", "found"]'))
        assert sandbox.show(f"{TestTaskManager.CODE}shown = TaskManager().searched[:2]") == ["built-in", "found"]


class TestOtherImports:
    def test_what_python_knows_of_the_modules_is_as_without_the_hook(self, sandbox: Sandbox) -> None:
        look = (
            "import importlib, importlib.resources, inspect\n"
            "import lm_eval.models as m, lm_eval.tasks.manager as t\n"
            "importlib.reload(m)\n"
            "shown = [[type(x.__spec__.loader).__name__, sorted(vars(x.__loader__)), x.__spec__.origin, x.__file__,"
            " inspect.getsource(x), x.__loader__ is x.__spec__.loader] for x in (m, t)]\n"
            "shown.append(importlib.resources.files('lm_eval.models').joinpath('__init__.py').read_text())\n"
            "shown.append(importlib.util.find_spec('lm_eval.models').origin)\n"
        )
        assert sandbox.show(INSTALL + look) == sandbox.show(look)

    def test_it_answers_for_three_modules_only(self, sandbox: Sandbox) -> None:
        code = INSTALL + "finder = sys.meta_path[0]\n"
        code += (
            "shown = [finder.find_spec(n) for n in ('json', 'lm_eval.api', 'lm_eval.tasks', 'lm_eval_aft.model', 'x')]"
        )
        assert sandbox.show(code) == [None] * 5

    @pytest.mark.parametrize(
        ("words", "taken"),
        [
            (["/bin/lm_eval", "--model", "aft"], True),
            (["/bin/lm-eval", "run", "--model=aft"], True),
            (["/packages/lm_eval/__main__.py", "--model", "aft"], True),
            (["/bin/lm_eval", "--model", "hf"], False),
            (["/bin/own_program", "--model", "aft"], False),
            (["/own/__main__.py", "--model", "aft"], False),
        ],
    )
    def test_signals_are_taken_in_runs_of_our_model_only(self, sandbox: Sandbox, words: list[str], taken: bool) -> None:
        code = (
            f"sys.argv = {words}\n{INSTALL}import signal\nbefore = signal.getsignal(signal.SIGTERM)\nimport lm_eval\n"
        )
        assert sandbox.show(f"{code}shown = signal.getsignal(signal.SIGTERM) != before") == taken

    def test_two_finders_that_ask_each_other_come_to_an_end(self, sandbox: Sandbox) -> None:
        code = INSTALL + (
            "class Other:\n"
            "    def find_spec(self, name, path=None, target=None):\n"
            "        found = (f.find_spec(name, path, target) for f in sys.meta_path if f is not self)\n"
            "        return next((spec for spec in found if spec), None) if name.startswith('lm_eval') else None\n"
            "sys.meta_path.insert(0, Other()); sys.meta_path.append(Other())\n"
            "import lm_eval.models as m; shown = 'aft' in m.model_registry"
        )
        assert sandbox.show(code) is True

    def test_a_finder_taken_off_the_path_finds_nothing(self, sandbox: Sandbox) -> None:
        code = INSTALL + "finder = sys.meta_path.pop(0); shown = finder.find_spec('lm_eval.models')"
        assert sandbox.show(code) is None


class TestBrokenLmEval:
    def test_an_absent_one_is_an_ordinary_import_error(self, tmp_path: Path) -> None:
        done = python("-I", "-S", "-c", f"import sys; sys.path.append({str(ROOT)!r})\n{INSTALL}import lm_eval.models")
        assert done.stderr.splitlines()[-1] == "ModuleNotFoundError: No module named 'lm_eval'"

    @pytest.mark.parametrize("name", ["lm_eval/__init__.py", "lm_eval/models/__init__.py"])
    def test_a_damaged_one_breaks_only_itself(self, sandbox: Sandbox, name: str) -> None:
        sandbox.write(name, "raise RuntimeError('damaged')")
        assert sandbox.show(f"{INSTALL}shown = 1") == 1
        done = sandbox.run(f"{INSTALL}import lm_eval.models")
        assert done.stderr.splitlines()[-1] == "RuntimeError: damaged"

    @pytest.mark.parametrize("registry", ["", "model_registry = {'hf': 'here'}", "model_registry = None"])
    def test_an_unknown_registry_costs_one_sentence_and_nothing_else(self, sandbox: Sandbox, registry: str) -> None:
        sandbox.write("lm_eval/api/registry.py", registry)
        sandbox.write("lm_eval/models/__init__.py", "HERE = True")
        done = sandbox.run(f"{INSTALL}import lm_eval.models; print(lm_eval.models.HERE)")
        assert (done.returncode, done.stdout) == (0, "True\n")
        assert len(done.stderr.splitlines()) == 1
        assert "use a newer lm_eval_aft, or pip install lm-eval==0.4.13" in done.stderr

    def test_without_a_stderr_it_keeps_silent(self, sandbox: Sandbox) -> None:
        sandbox.write("lm_eval/api/registry.py", "")
        sandbox.write("lm_eval/models/__init__.py", "")
        assert sandbox.run(f"{INSTALL}sys.stderr = None\nimport lm_eval.models").returncode == 0

    def test_register_complains_of_one_that_cannot_be_imported(self, sandbox: Sandbox) -> None:
        sandbox.write("lm_eval/__init__.py", "raise ImportError('no numpy')")
        done = sandbox.run("import lm_eval_aft; lm_eval_aft.register()")
        assert done.returncode == 1
        assert done.stderr.splitlines()[-1].startswith(
            "lm_eval_aft.core.errors.ConfigError: lm_eval cannot be imported (no numpy)"
        )

    def test_register_complains_of_one_it_does_not_know(self, sandbox: Sandbox) -> None:
        sandbox.write("lm_eval/api/registry.py", "model_registry = None")
        sandbox.write("lm_eval/models/__init__.py", "")
        done = sandbox.run("import lm_eval_aft; lm_eval_aft.register()")
        assert done.returncode == 2
        assert done.stderr.startswith("error: this lm_eval is not one the plugin knows (TypeError: ")
        assert len(done.stderr.splitlines()) == 1


class TestRegister:
    def test_it_works_with_the_switch_off_and_after_lm_eval(self, sandbox: Sandbox) -> None:
        code = "import lm_eval.models as m, lm_eval.tasks as t\nimport lm_eval_aft\nlm_eval_aft.register()\n"
        code += "shown = ['aft' in m.model_registry, len(t.TaskManager().searched)]"
        assert sandbox.show(code, LM_EVAL_AFT_AUTOLOAD="0") == [True, 2]

    def test_and_before_it(self, sandbox: Sandbox) -> None:
        code = "import lm_eval_aft\nlm_eval_aft.register()\nimport lm_eval.models as m, lm_eval.tasks as t\n"
        code += "shown = ['aft' in m.model_registry, len(t.TaskManager().searched)]"
        assert sandbox.show(code, LM_EVAL_AFT_AUTOLOAD="0") == [True, 2]

    def test_a_missing_tasks_folder_is_named(self, sandbox: Sandbox) -> None:
        core = [f"core/{name}.py" for name in ("__init__", "errors", "secrets", "terminal")]
        for name in ("__init__.py", "_autoload.py", *core):
            sandbox.write(f"lm_eval_aft/{name}", (ROOT / "lm_eval_aft" / name).read_text())
        done = sandbox.run(INSTALL + "import lm_eval.tasks as t; print(t.TaskManager().searched)")
        assert done.stdout == "['built-in']\n"
        assert done.stderr.startswith("lm_eval_aft: there is no folder of tasks in ")
        assert len(done.stderr.splitlines()) == 1


class TestErrorsOfOurs:
    RAISE = INSTALL + "import lm_eval.models\nfrom lm_eval_aft.core.errors import ConfigError\n"

    def test_end_a_plain_program_with_one_sentence_and_code_2(self, sandbox: Sandbox) -> None:
        done = sandbox.run(self.RAISE + "raise ConfigError('k=0: give 1 or more')")
        assert (done.returncode, done.stdout, done.stderr) == (2, "", "error: k=0: give 1 or more\n")

    @pytest.mark.parametrize(("error", "code"), [("ValueError('x')", 1), ("SystemExit(7)", 7), ("KeyError('x')", 1)])
    def test_leave_other_errors_alone(self, sandbox: Sandbox, error: str, code: int) -> None:
        ours, plain = sandbox.run(f"{self.RAISE}raise {error}"), sandbox.run(f"1\n2\n3\n4\nraise {error}")
        assert ours.returncode == plain.returncode == code
        assert [line for line in ours.stderr.splitlines() if "line" not in line] == [
            line for line in plain.stderr.splitlines() if "line" not in line
        ]

    def test_keep_the_hook_that_was_there(self, sandbox: Sandbox) -> None:
        before = "sys.excepthook = lambda *error: print('previous hook', error[0].__name__)\n"
        done = sandbox.run(f"{before}{self.RAISE}raise ValueError")
        assert (done.returncode, done.stdout, done.stderr) == (1, "previous hook ValueError\n", "")
        assert sandbox.run(f"{before}{self.RAISE}raise ConfigError('x')").returncode == 2

    def test_are_left_to_python_where_lm_eval_is_not_used(self, sandbox: Sandbox) -> None:
        done = sandbox.run(f"{INSTALL}from lm_eval_aft.core.errors import ConfigError\nraise ConfigError('x')")
        assert done.returncode == 1
        assert done.stderr.startswith("Traceback")

    def test_do_not_end_an_interactive_session(self, sandbox: Sandbox) -> None:
        done = sandbox.run(
            f"{self.RAISE}sys.ps1 = '>>> '\nsys.excepthook(ConfigError, ConfigError('x'), None)\nprint('on')"
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "on\n", "error: x\n")


class TestModule:
    """``python -m lm_eval_aft`` registers and runs lm-eval's command line."""

    def run(self, sandbox: Sandbox, body: str) -> subprocess.CompletedProcess[str]:
        sandbox.write("lm_eval/__main__.py", f"import sys\ndef cli_evaluate():\n    {body}\n")
        code = "import runpy; sys.argv = ['x', 'ls', 'tasks']; runpy.run_module('lm_eval_aft', run_name='__main__')"
        return sandbox.run(code, LM_EVAL_AFT_AUTOLOAD="0")

    def test_registers_and_hands_the_arguments_over(self, sandbox: Sandbox) -> None:
        body = "from lm_eval.api.registry import model_registry as r; print(sys.argv[1:], sorted(r))"
        assert self.run(sandbox, body).stdout == "['ls', 'tasks'] ['aft', 'hf']\n"

    def test_prints_our_errors_as_one_sentence(self, sandbox: Sandbox) -> None:
        done = self.run(sandbox, "from lm_eval_aft.core.errors import EngineError; raise EngineError('no such model')")
        assert (done.returncode, done.stderr) == (2, "error: no such model\n")

    def test_says_so_when_lm_eval_is_missing(self, tmp_path: Path) -> None:
        code = (
            f"import runpy, sys; sys.path.append({str(ROOT)!r}); runpy.run_module('lm_eval_aft', run_name='__main__')"
        )
        done = python("-I", "-S", "-c", code)
        assert done.returncode == 2
        assert done.stderr == (
            "error: lm_eval cannot be imported (No module named 'lm_eval'): pip install 'lm-eval>=0.4.13'\n"
        )


class TestInstalledLmEval:
    """The lm_eval and the start-up file of the environment in which the tests run."""

    def test_knows_the_model_and_searches_our_folder_without_torch(self, tmp_path: Path) -> None:
        code = (
            "import json, sys\n"
            "from pathlib import Path\n"
            "import lm_eval.models, lm_eval.tasks.manager as manager, lm_eval_aft\n"
            "from lm_eval.api.registry import model_registry\n"
            "manager.TaskIndex.build = lambda self, paths, **_: shown.append([str(p) for p in paths]) or {}\n"
            "shown = [sorted(set(model_registry) - set(lm_eval.models.MODEL_MAPPING)), 'torch' in sys.modules]\n"
            "manager.TaskManager(include_path='user')\n"
            "shown.append([str(Path(manager.__file__).parent), str(lm_eval_aft.tasks_path()), 'user'])\n"
            "print(json.dumps(shown))"
        )
        done = python("-c", code)
        assert done.returncode == 0, done.stderr
        added, torch, searched, expected = json.loads(done.stdout)
        assert added == ["aft"]
        assert not torch
        assert searched == expected

    def test_loads_our_model_and_still_its_own(self) -> None:
        code = "import lm_eval.models; from lm_eval.api.registry import get_model\n"
        code += "print(get_model('hf').__name__, get_model('aft').__name__)"
        assert python("-c", code).stdout == "HFLM AFTLM\n"

    def test_the_switch(self) -> None:
        code = "import sys, lm_eval.models as m; print('aft' in sys.modules['lm_eval.api.registry'].model_registry)"
        assert python("-c", code).stdout == "True\n"
        assert python("-c", code, LM_EVAL_AFT_AUTOLOAD="0").stdout == "False\n"


def test_starting_up_is_cheap() -> None:
    """A loose bound. benchmarks/startup.py with 200 runs measures the 2 ms that are promised."""
    done = python(str(ROOT / "benchmarks" / "startup.py"), "--runs", "15")
    assert done.stdout, done.stderr
    report = json.loads(done.stdout)
    assert report["runs"] == 15
    assert report["with_file_ms"] > report["without_file_ms"] / 2
    assert report["extra_ms"] < 10
