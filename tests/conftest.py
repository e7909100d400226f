"""What every test shares: where the sources lie, repeatable hypothesis runs, and the `gpu` mark."""

import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

# Derandomised: a run of the suite is a statement about this commit, not about today's draw. No
# deadline: the first call of a compiled engine includes its compilation.
settings.register_profile("gpvi", derandomize=True, deadline=None, print_blob=True)
settings.load_profile("gpvi")


@pytest.fixture(scope="session")
def source_root() -> Path:
    """Root of the repository, also when the tests run elsewhere against an installed wheel."""
    root = os.environ.get("GPVI_SOURCE_ROOT")
    return Path(root) if root else Path(__file__).resolve().parents[1]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests marked `gpu` where there is no CUDA device."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
