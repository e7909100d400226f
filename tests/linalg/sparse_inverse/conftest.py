"""The dense formulas as a fixture `dense`."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

# Tests may run from any folder, so the helper is loaded by its path.
_NAME = "gpvi_dense_sparse_inverse"
_SPEC = importlib.util.spec_from_file_location(_NAME, Path(__file__).with_name("dense.py"))
_DENSE = importlib.util.module_from_spec(_SPEC)
sys.modules[_NAME] = _DENSE
_SPEC.loader.exec_module(_DENSE)


@pytest.fixture(scope="session")
def dense() -> ModuleType:
    """Patterns, columns and dense formulas."""
    return _DENSE
