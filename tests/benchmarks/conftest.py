"""The fixture with which the tests import benchmark scripts."""

from __future__ import annotations

import importlib
import sys

import pytest

from helpers.paths import ROOT


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch):
    """A function that imports a benchmark script by name."""
    folder = ROOT / "benchmarks"
    monkeypatch.syspath_prepend(str(folder))
    yield importlib.import_module
    for path in folder.glob("*.py"):
        sys.modules.pop(path.stem, None)
