"""The problems of the conformance suite as arguments of tests, its helpers as `suite`."""

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
# Tests of neighbour-given inducing points import theirs by this name.
_CASES = importlib.util.spec_from_file_location(
    "gpvi_neighbor_cases", Path(__file__).with_name("neighbor_cases.py")
)
sys.modules[_CASES.name] = importlib.util.module_from_spec(_CASES)
_CASES.loader.exec_module(sys.modules[_CASES.name])


@pytest.fixture(scope="session")
def suite() -> ModuleType:
    """Cases and dense reference formulas."""
    return _SUITE


# Which problems a test runs over, by the name of the argument that asks for them.
_SELECTIONS = {
    "problem": lambda problem: True,
    "grouped_problem": lambda problem: problem.groups is not None,
    "ungrouped_problem": lambda problem: problem.groups is None,
    "latent_problem": lambda problem: len(problem.gp.batch_shape) > 0,
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test over every approximation and variant that its arguments name."""
    for name in _SELECTIONS.keys() & set(metafunc.fixturenames):
        chosen = {key: case for key, case in _SUITE.CASES.items() if _SELECTIONS[name](case)}
        metafunc.parametrize(name, chosen.values(), ids=chosen.keys())
