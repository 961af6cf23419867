"""Installing and uninstalling from a wheel and from a checkout, and what the wheel and the sdist hold.

Each environment sees the packages of the environment that runs the tests, except ours, through a folder of links. So
nothing is downloaded. Builds use the installed hatchling.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from helpers.paths import ROOT

SITE = Path(sysconfig.get_path("purelib"))
PROBE = "aft_install_probe"
TASK_FILES = {path.relative_to(ROOT / "tasks").as_posix() for path in (ROOT / "tasks").rglob("*.yaml")}
TASKS = {name for path in TASK_FILES for name in re.findall(r"^task: (\w+)", (ROOT / "tasks" / path).read_text(), re.M)}
# Prints whether the models are registered, the folders that TaskManager searches, and where the package is.
INSPECT = """
import json
from importlib.metadata import entry_points
import lm_eval.models, lm_eval.tasks.manager as manager
from lm_eval.api.registry import model_registry
searched = []
manager.TaskIndex.build = lambda self, paths, **_: searched.extend(map(str, paths)) or {}
manager.TaskManager()
import lm_eval_aft
print(json.dumps({
    "hf": "hf" in model_registry,
    "aft": "aft" in model_registry,
    "searched": searched[1:],
    "package": lm_eval_aft.__file__,
    "scripts": [p.value for p in entry_points(group="console_scripts", name="aft")],
    "models": [p.value for p in entry_points(group="lm_eval.models", name="aft")],
    "tasks": [str(p.load()()) for p in entry_points(group="lm_eval.tasks", name="aft")],
}))
"""


def run(*command: str | Path, cwd: Path, check: bool = True) -> str:
    # Through PYTHONPATH the environment would see the checkout.
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "LM_EVAL_AFT_AUTOLOAD")}
    process = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=env, capture_output=True, text=True, check=False
    )
    assert process.returncode == 0 or not check, f"{command}\n{process.stdout}\n{process.stderr}"
    return process.stdout


@dataclass(frozen=True)
class Environment:
    folder: Path

    @property
    def site(self) -> Path:
        return self.folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"

    def python(self, *arguments: str | Path, check: bool = True) -> str:
        return run(self.folder / "bin" / "python", *arguments, cwd=self.folder, check=check)

    def pip(self, *arguments: str | Path) -> str:
        """Run the pip of the tests' environment on this one, so that this one needs no pip."""
        return run(sys.executable, "-m", "pip", "--python", self.folder / "bin" / "python", *arguments, cwd=self.folder)

    def install(self, wheel: Path, checkout: Path, *, editable: bool) -> None:
        source = ["--no-build-isolation", "--editable", checkout] if editable else [wheel]
        self.pip("install", "--no-deps", "--no-index", *source)

    def inspect(self) -> dict[str, object]:
        return dict(json.loads(self.python("-c", INSPECT)))

    def files(self) -> set[str]:
        paths = (path for path in self.folder.rglob("*") if path.is_file())
        return {path.relative_to(self.folder).as_posix() for path in paths}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout with one more task, so that builds and installs do not change the real checkout."""
    folder = tmp_path_factory.mktemp("checkout")
    ignore = shutil.ignore_patterns("__pycache__")
    for path in ROOT.iterdir():
        if path.name in {"benchmarks", "docs", "lm_eval_aft", "startup", "tasks", "tests", "trainers"}:
            shutil.copytree(path, folder / path.name, ignore=ignore)
        elif path.name in {"LICENSE", "Makefile"} or path.suffix in {".md", ".toml", ".txt"}:
            shutil.copy(path, folder)
    (folder / "tasks" / PROBE).mkdir(parents=True)
    (folder / "tasks" / PROBE / f"{PROBE}.yaml").write_text(f"task: {PROBE}\ndataset_path: json\n")
    return folder


@pytest.fixture(scope="module")
def archives(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist, and the wheel that `python -m build` builds from it, which shows that the sdist is complete."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, cwd=checkout)
    return folder


@pytest.fixture(scope="module")
def wheel(archives: Path) -> Path:
    (path,) = archives.glob("lm_eval_aft-*-py3-none-any.whl")
    return path


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Links to every package except ours, with one task of lm_eval: reading all of them takes 15 to 35 s a command."""
    folder = tmp_path_factory.mktemp("packages")
    link(SITE, folder, lambda name: "lm_eval_aft" not in name and name not in {"lm_eval", "trainers"})
    link(SITE / "lm_eval", folder / "lm_eval", lambda name: name not in {"tasks", "__pycache__"})
    link(SITE / "lm_eval" / "tasks", folder / "lm_eval" / "tasks", lambda name: name.endswith(".py"))
    # lm_eval does not follow links to folders.
    shutil.copytree(SITE / "lm_eval" / "tasks" / "gsm8k", folder / "lm_eval" / "tasks" / "gsm8k")
    return folder


def link(source: Path, target: Path, wanted: Callable[[str], bool]) -> None:
    target.mkdir(exist_ok=True)
    for path in source.iterdir():
        if wanted(path.name):
            (target / path.name).symlink_to(path)


@pytest.fixture
def environment(packages: Path, tmp_path: Path) -> Environment:
    environment = Environment(tmp_path / "env")
    venv.create(environment.folder, with_pip=False, symlinks=True)
    (environment.site / "packages.pth").write_text(f"{packages}\n")
    code = "import importlib.util as u; print(u.find_spec('lm_eval_aft'), bool(u.find_spec('lm_eval')))"
    assert environment.python("-c", code) == "None True\n"
    return environment


class TestArchives:
    def test_the_wheel_holds_the_packages_the_tasks_and_the_startup_files(self, wheel: Path) -> None:
        names = set(zipfile.ZipFile(wheel).namelist())
        top = {name.partition("/")[0] for name in names if ".dist-info/" not in name}
        assert top - {"trainers"} == {"lm_eval_aft", "lm_eval_aft.pth", "lm_eval_aft.start"}
        assert {"lm_eval_aft/py.typed", "lm_eval_aft/_autoload.py", "lm_eval_aft/cli/__init__.py"} <= names
        assert {f"lm_eval_aft/tasks/{name}" for name in {f"{PROBE}/{PROBE}.yaml", *TASK_FILES}} <= names
        sources = {path.relative_to(ROOT).as_posix() for path in (ROOT / "trainers").rglob("*.py")}
        assert sources <= names
        assert not [name for name in names if "__pycache__" in name or name.startswith("tests")]

    def test_the_wheel_holds_the_page_and_the_checkpoints_and_no_other_large_file(self, wheel: Path) -> None:
        with zipfile.ZipFile(wheel) as archive:
            sizes = {info.filename: info.file_size for info in archive.infolist()}
        for folder in ("analysis/report/page/assets", "bundled/checkpoints"):
            source = ROOT / "lm_eval_aft" / folder
            files = {path.relative_to(ROOT).as_posix() for path in source.rglob("*") if path.is_file()}
            assert files
            assert files <= set(sizes)
        large = {name for name, size in sizes.items() if size > 200_000}
        assert large == {f"lm_eval_aft/bundled/checkpoints/{name}/model.safetensors" for name in ("aft", "base", "sft")}
        assert sum(sizes[name] for name in large) < 12_000_000
        kinds = {Path(name).suffix for name in sizes if ".dist-info/" not in name}
        sources = {".py", ".yaml", ".txt", ".md", ".json", ".jinja", ".safetensors", ".js", ".css", ".html"}
        assert kinds <= sources | {".typed", ".pth", ".start"}, kinds

    def test_its_metadata_name_the_entry_points_and_the_extras(self, wheel: Path) -> None:
        with zipfile.ZipFile(wheel) as archive:
            (info,) = {name.partition("/")[0] for name in archive.namelist() if ".dist-info/" in name}
            points = archive.read(f"{info}/entry_points.txt").decode()
            metadata = archive.read(f"{info}/METADATA").decode()
            assert f"{info}/licenses/LICENSE" in archive.namelist()
        assert "[lm_eval.models]\naft = lm_eval_aft.model:AFTLM" in points
        assert "[lm_eval.tasks]\naft = lm_eval_aft:tasks_path" in points
        assert "[console_scripts]\naft = lm_eval_aft.cli:main" in points
        extras = {line.split(": ")[1] for line in metadata.splitlines() if line.startswith("Provides-Extra")}
        assert {"vllm", "alpaca", "ifeval", "report", "dev"} <= extras
        assert "Requires-Python: >=3.11" in metadata

    def test_both_startup_files_call_the_same_function(self, wheel: Path) -> None:
        with zipfile.ZipFile(wheel) as archive:
            pth, start = archive.read("lm_eval_aft.pth").decode(), archive.read("lm_eval_aft.start").decode()
        assert pth == "import lm_eval_aft._autoload; lm_eval_aft._autoload.install()\n"
        assert start == "lm_eval_aft._autoload:install\n"

    def test_the_sdist_holds_what_tests_and_builds_need(self, archives: Path) -> None:
        (sdist,) = archives.glob("lm_eval_aft-*.tar.gz")
        with tarfile.open(sdist) as archive:
            names = {name.partition("/")[2] for name in archive.getnames()}
        assert {"pyproject.toml", "LICENSE", "startup/lm_eval_aft.pth", "tests/test_install.py", "Makefile"} <= names
        assert not [name for name in names if name.startswith((".venv", ".git/"))]


def check_that_uninstalling_leaves(before: set[str], environment: Environment) -> None:
    environment.pip("uninstall", "--yes", "lm_eval_aft")
    assert environment.files() == before
    code = "import sys; print([type(f).__name__ for f in sys.meta_path if type(f).__name__ == 'PluginFinder'])"
    assert environment.python("-c", code) == "[]\n"


class TestInstalls:
    def test_a_wheel(self, wheel: Path, checkout: Path, environment: Environment) -> None:
        before = environment.files()
        environment.install(wheel, checkout, editable=False)
        package = environment.site / "lm_eval_aft"
        assert environment.inspect() == {
            "hf": True,
            "aft": True,
            "searched": [str(package / "tasks")],
            "package": str(package / "__init__.py"),
            "scripts": ["lm_eval_aft.cli:main"],
            "models": ["lm_eval_aft.model:AFTLM"],
            "tasks": [str(package / "tasks")],
        }
        assert run(environment.folder / "bin" / "aft", "--version", cwd=environment.folder).startswith("lm_eval_aft, ")
        # This compiled modules, so pip has to remove __pycache__ folders too.
        assert list(package.rglob("*.pyc"))
        check_that_uninstalling_leaves(before, environment)

    def test_an_editable_install_copies_only_the_startup_files(
        self, wheel: Path, checkout: Path, environment: Environment
    ) -> None:
        before = environment.files()
        environment.install(wheel, checkout, editable=True)
        copied = {Path(name).name for name in environment.files() - before if ".dist-info/" not in name}
        assert copied == {"_lm_eval_aft.pth", "lm_eval_aft.pth", "lm_eval_aft.start", "aft"}
        state = environment.inspect()
        assert (state["hf"], state["aft"]) == (True, True)
        assert state["searched"] == state["tasks"] == [str(checkout / "tasks")]
        assert state["package"] == str(checkout / "lm_eval_aft" / "__init__.py")
        check_that_uninstalling_leaves(before, environment)

    @pytest.mark.parametrize("editable", [False, True], ids=["wheel", "editable"])
    @pytest.mark.long
    def test_lm_eval_lists_our_tasks_beside_its_own(
        self, wheel: Path, checkout: Path, environment: Environment, editable: bool
    ) -> None:
        environment.install(wheel, checkout, editable=editable)
        listed = names_in(environment.python("-m", "lm_eval", "ls", "tasks"))
        assert {"gsm8k", PROBE, *TASKS} <= listed
        environment.pip("uninstall", "--yes", "lm_eval_aft")
        listed = names_in(environment.python("-m", "lm_eval", "ls", "tasks"))
        assert "gsm8k" in listed
        assert not listed & {PROBE, *TASKS}


def names_in(table: str) -> set[str]:
    """The first column of the table that ``lm_eval ls`` prints."""
    return {line.strip("| ").partition("|")[0].strip() for line in table.splitlines()}
