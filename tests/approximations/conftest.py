"""The problems of the conformance suite as the fixture `problem`, its helpers as `suite`."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

# Tests may run from any folder, so the helper is loaded by its path.
_NAME = "gpvi_conformance_of_approximations"
_SPEC = importlib.util.spec_from_file_location(_NAME, Path(__file__).with_name("conformance.py"))
_SUITE = importlib.util.module_from_spec(_SPEC)
sys.modules[_NAME] = _SUITE
_SPEC.loader.exec_module(_SUITE)


@pytest.fixture(scope="session")
def suite() -> ModuleType:
    """Cases and dense reference formulas."""
    return _SUITE


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that asks for `problem` over every approximation and variant."""
    if "problem" in metafunc.fixturenames:
        metafunc.parametrize("problem", _SUITE.CASES.values(), ids=_SUITE.CASES.keys())
