"""The dense formulas as a fixture `dense`."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

# Tests may run from any folder, so the helper is loaded by its path.
_NAME = "gpvi_dense_markov"
_SPEC = importlib.util.spec_from_file_location(_NAME, Path(__file__).with_name("dense.py"))
_DENSE = importlib.util.module_from_spec(_SPEC)
sys.modules[_NAME] = _DENSE
_SPEC.loader.exec_module(_DENSE)


@pytest.fixture(scope="session")
def dense() -> ModuleType:
    """Dense formulas, models, stamps and sites."""
    return _DENSE


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test with an argument `markov_model` over all models."""
    if "markov_model" in metafunc.fixturenames:
        metafunc.parametrize("markov_model", _DENSE.MODELS.values(), ids=_DENSE.MODELS.keys())
