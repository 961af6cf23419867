"""Runs the tests that touch lm-eval with several versions of it, and prints a table of what ran: make test-lm-eval.

Each version goes into a folder of its own, which PYTHONPATH puts before the environment's packages. So a row takes
seconds to install and changes no environment. These variables choose the rows:

    LM_EVAL_VERSIONS      Versions from the registry, beside the installed one. Default: 0.5.0.dev1.
    LM_EVAL_SOURCE        Folder of a checkout of lm-eval; no row without it.
    LM_EVAL_ENVIRONMENTS  Environments with this package, such as ".venv .venv-newest". Default: that of this Python.

Arguments go to pytest.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TOUCHES = re.compile(r"(from|import) (lm_eval\b|helpers\.(lm_eval_runs|graded_tasks|group_tasks|instances))")
# Builds environments of its own from the installed packages, or runs commands of pages for minutes.
OTHER_TARGETS = {"test_install.py", "test_readme_commands.py"}
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
SHOWN = ("lm_eval", "torch", "transformers", "datasets", "peft")
VERSIONS = f"from importlib.metadata import version as v; print(*(v(n) for n in {SHOWN}))"
PLATFORM = "import platform; print(platform.python_version())"


@dataclass(frozen=True)
class Row:
    """The outcome of the tests in one environment.

    Attributes:
        python: Version of Python.
        versions: Versions of the packages in ``SHOWN``.
        passed, skipped, failed: Numbers of tests.
    """

    python: str
    versions: tuple[str, ...]
    passed: int
    skipped: int
    failed: int

    def line(self) -> str:
        """The row of the table."""
        cells = (self.python, *self.versions, self.passed, self.skipped, self.failed)
        return "| " + " | ".join(map(str, cells)) + " |"


def touching_files() -> list[str]:
    """The test files that use lm-eval."""
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    return [str(file) for file in files if file.name not in OTHER_TARGETS and TOUCHES.search(file.read_text())]


def run_row(python: Path, lm_eval: str, folder: Path, arguments: Sequence[str]) -> Row:
    """Run the tests with one Python and one lm-eval.

    Args:
        python: The interpreter of an environment with this package.
        lm_eval: What pip installs; "" for the version that the environment has.
        folder: Empty folder for it, and for the report.
        arguments: For pytest; the files that use lm-eval if empty.
    """
    environment = {**os.environ, "PYTHONPATH": str(folder / "packages") if lm_eval else ""}
    if lm_eval:
        install = ["-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder / "packages"), lm_eval]
        subprocess.run([python, *install], check=True)
    report = folder / "report.xml"
    options = ["-q", f"--junit-xml={report}", *(arguments or touching_files())]
    subprocess.run([python, "-m", "pytest", *options], cwd=ROOT, env=environment, check=False)
    return Row(
        _output(python, PLATFORM, environment)[0],
        tuple(_output(python, VERSIONS, environment)),
        *_counts(report),
    )


def _output(python: Path, code: str, environment: dict[str, str]) -> list[str]:
    done = subprocess.run([python, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return done.stdout.split()


def _counts(report: Path) -> tuple[int, int, int]:
    """Passed, skipped and failed tests of a report of pytest."""
    (suite,) = ElementTree.parse(report).getroot().iter("testsuite")
    tests, skipped, failed, errors = (int(suite.attrib[name]) for name in ("tests", "skipped", "failures", "errors"))
    return tests - skipped - failed - errors, skipped, failed + errors


def main() -> int:
    """Run all rows and print the table. The result is 1 if a test failed."""
    default = str(Path(sys.executable).parents[1])
    environments = [Path(name) for name in os.environ.get("LM_EVAL_ENVIRONMENTS", default).split()]
    versions = [f"lm-eval=={version}" for version in os.environ.get("LM_EVAL_VERSIONS", "0.5.0.dev1").split()]
    source = os.environ.get("LM_EVAL_SOURCE", "")
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for environment in environments:
            for lm_eval in ("", *versions, *([source] if source else [])):
                folder = Path(tempfile.mkdtemp(dir=scratch))
                rows.append(run_row((environment / "bin" / "python").absolute(), lm_eval, folder, sys.argv[1:]))
                print(rows[-1].line(), flush=True)
    heads = ("Python", *SHOWN, "passed", "skipped", "failed")
    print("\n| " + " | ".join(heads) + " |\n" + "|---" * len(heads) + "|")
    print("\n".join(row.line() for row in rows))
    for version in PYTHONS:
        if not any(row.python.startswith(f"{version}.") for row in rows):
            here = "is here, without an environment" if shutil.which(f"python{version}") else "is not on this machine"
            print(f"Python {version} did not run: it {here}.")
    return int(any(row.failed for row in rows))


if __name__ == "__main__":
    sys.exit(main())
