"""What the tests of the benchmarks share: importing the scripts as they import one another."""

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest

HERE = Path(__file__).resolve().parent


@pytest.fixture
def load(monkeypatch):
    """Import a module of this folder as the scripts do, and forget it afterwards."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(HERE))

    def loader(name: str) -> ModuleType:
        return importlib.import_module(name)

    yield loader
    for name in set(sys.modules) - before:
        if Path(getattr(sys.modules[name], "__file__", None) or "").parent == HERE:
            del sys.modules[name]
