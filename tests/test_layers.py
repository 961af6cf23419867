"""The direction of imports: no module imports, even inside a function, one that leads back to it."""

from __future__ import annotations

from graphlib import CycleError, TopologicalSorter

import pytest

from helpers.paths import ROOT

grimp = pytest.importorskip("grimp", reason="import-linter, of the extra dev, is not installed")

PACKAGES = ("__init__", "__main__", "_autoload", "model")
FOLDERS = ("analysis", "bundled", "cli", "core", "engines", "inference", "judging", "storage")


@pytest.fixture(scope="module")
def graph():
    return grimp.build_graph("lm_eval_aft", "trainers", cache_dir=None, exclude_type_checking_imports=True)


def test_the_package_has_twelve_entries():
    entries = {path.name for path in (ROOT / "lm_eval_aft").iterdir() if path.name != "__pycache__"}
    assert entries == {*(f"{name}.py" for name in PACKAGES), *FOLDERS, "py.typed"}


def test_no_module_imports_itself_by_way_of_others(graph):
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))
