"""Without matplotlib, displays say what to install, before they compute anything."""

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from gpvi.exceptions import MissingDependencyError
from gpvi.plotting import (
    ConvergenceDisplay,
    PosteriorDisplay,
    PosteriorMapDisplay,
    RelevanceDisplay,
    ReliabilityDisplay,
    TimeSeriesDisplay,
)

X = np.zeros((2, 1))


@pytest.fixture(autouse=True)
def _without_matplotlib(monkeypatch: pytest.MonkeyPatch, _clean_figures: None) -> None:
    class Hidden:
        @staticmethod
        def find_spec(name: str, *_: Any) -> None:
            if name.partition(".")[0] == "matplotlib":
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Hidden(), *sys.meta_path])


@pytest.mark.parametrize(
    "call",
    [
        lambda: ConvergenceDisplay.from_estimator(None),
        lambda: PosteriorDisplay.from_estimator(None, X),
        lambda: PosteriorMapDisplay.from_estimator(None, X),
        lambda: RelevanceDisplay.from_estimator(None),
        lambda: ReliabilityDisplay.from_estimator(None, X, X[:, 0]),
        lambda: TimeSeriesDisplay.from_estimator(None),
        lambda: PosteriorDisplay(X[:, 0], X[:, 0]).plot(),
        lambda: ReliabilityDisplay.from_pit([0.5]).plot_pit(),
    ],
)
def test_displays_name_the_command(call: Callable[[], Any]) -> None:
    with pytest.raises(MissingDependencyError, match=r'Display needs .*pip install "gpvi\[plot\]"'):
        call()
