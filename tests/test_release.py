"""What a release needs: a version by tag, pins without addresses, workflows, Dockerfiles, and torch without CUDA."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.version import Version

import lm_eval_aft
from helpers.paths import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
CPU_INDEX = "https://download.pytorch.org/whl/cpu"


def run(*command: str | Path, cwd: Path, **variables: str) -> str:
    ours = ("GIT_", "MAKE", "MFLAGS", "PIP_", "SETUPTOOLS_SCM", "TORCH")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env={**kept, **variables}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The files from which the version follows."""
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def commit(folder: Path) -> None:
    run("git", "init", "--quiet", cwd=folder)
    run("git", "add", ".", cwd=folder)
    identity = ("-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false")
    run("git", *identity, "commit", "--quiet", "--message", "m", cwd=folder)


def version(folder: Path) -> str:
    return run(sys.executable, "-m", "hatchling", "version", cwd=folder)


def test_the_tag_is_the_version(checkout: Path):
    commit(checkout)
    run("git", "tag", "v9.8.7", cwd=checkout)
    assert version(checkout) == "9.8.7"


def test_versions_without_tags_sort_after_the_newest_release(checkout: Path):
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    released = re.findall(r"^## \[([\d.]+)\]", changelog, re.MULTILINE)[0]
    without_git = version(checkout)
    commit(checkout)
    without_tags = version(checkout)
    assert re.fullmatch(r"[\d.]+\.dev1\+g[0-9a-f]+(\.d\d+)?", without_tags)
    assert Version(released) < Version(without_git) < Version(without_tags)


def test_the_installed_version_is_the_packages_own():
    assert re.match(r"\d+\.\d+", lm_eval_aft.__version__)


def test_sources_that_are_not_installed_have_no_version(tmp_path: Path):
    (tmp_path / "lm_eval_aft").symlink_to(ROOT / "lm_eval_aft")
    code = "import lm_eval_aft; print(lm_eval_aft.__version__)"
    assert run(sys.executable, "-S", "-c", code, cwd=tmp_path, PYTHONPATH=str(tmp_path)) == "unknown"


@pytest.mark.parametrize("name", ["constraints.txt", "constraints-vllm.txt"])
def test_pins_hold_no_address(name: str):
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert len(pins) > 100
    for pin in pins:
        assert re.fullmatch(r"[A-Za-z0-9][\w.-]*==[\w.]+", pin), pin
    names = [re.sub(r"[-_.]+", "-", pin.partition("==")[0]).lower() for pin in pins]
    assert len(names) == len(set(names))


def test_make_installs_torch_without_cuda_by_one_variable():
    show = "show: ; @echo $$PIP_EXTRA_INDEX_URL"
    line = ("make", "--no-print-directory", f"--eval={show}", "show")
    assert run(*line, cwd=ROOT) == ""
    assert run(*line, "TORCH=cpu", cwd=ROOT, PIP_EXTRA_INDEX_URL="https://mine.example") == (
        f"{CPU_INDEX} https://mine.example"
    )
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"pip install . --extra-index-url {CPU_INDEX}" in readme
    assert "`make TORCH=cpu demo`" in readme


def test_the_matrix_has_every_python_of_the_project():
    ci = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    named = [line.rpartition(" ")[2] for line in PROJECT["classifiers"] if "Python :: 3." in line]
    matrix = ci["jobs"]["matrix"]["strategy"]["matrix"]
    assert matrix["python"] == named == ["3.11", "3.12", "3.13", "3.14"]
    assert matrix["resolution"] == ["lowest-direct", "highest"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_says_that_it_has_not_run_and_starts_only_make_and_tools(path: Path):
    assert path.read_text(encoding="utf-8").startswith("# Not run yet")
    targets = set(re.findall(r"^(\S+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for job in yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"].values():
        assert job["timeout-minutes"] <= 120
        made = [target for step in job["steps"] for target in re.findall(r"\bmake (\S+)", step.get("run", ""))]
        assert set(made) <= targets


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_actionlint_passes(path: Path):
    if shutil.which("actionlint") is None:
        pytest.skip("actionlint is not installed")
    run("actionlint", path, cwd=ROOT)


@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.cuda"])
def test_hadolint_passes(name: str):
    if shutil.which("hadolint") is None:
        pytest.skip("hadolint is not installed")
    run("hadolint", name, cwd=ROOT)


@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.cuda"])
def test_an_image_runs_as_a_user_and_installs_known_extras(name: str):
    text = (ROOT / name).read_text(encoding="utf-8")
    assert "\nUSER 10001\n" in text
    (extras,) = re.findall(r"'\.\[([\w,]+)\]'", text)
    assert set(extras.split(",")) <= set(PROJECT["optional-dependencies"])
