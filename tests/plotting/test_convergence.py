"""The history of a fit, by stage and restart."""

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
from sklearn.base import BaseEstimator
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LinearRegression

from gpvi.exceptions import InputError
from gpvi.inference import FitRecord
from gpvi.plotting import ConvergenceDisplay


def record(
    stage: str, number: int, value: float, best: float, seconds: float, restart: int = 0
) -> FitRecord:
    return FitRecord(
        stage, number, value, best, 0.1, seconds, failed=bool(np.isnan(value)), restart=restart
    )


HISTORY = [
    record("warm start", 1, -50.0, -50.0, 0.1),
    record("warm start", 2, -40.0, -40.0, 0.2),
    record("full batch", 1, -90.0, -90.0, 0.4),
    record("full batch", 2, np.nan, -90.0, 0.5),
    record("full batch", 3, -80.0, -80.0, 0.7),
    record("warm start", 1, -45.0, -45.0, 0.1, restart=1),
    record("full batch", 1, -75.0, -75.0, 0.3, restart=1),
]


class Fitted(BaseEstimator):
    def __init__(self, history: Any = None) -> None:
        self.history = history
        self.history_ = history

    def fit(self, X: Any, y: Any) -> "Fitted":
        return self


def test_one_line_for_each_stage_of_each_restart() -> None:
    display = ConvergenceDisplay.from_estimator(Fitted(HISTORY))
    names = [(trace.stage, trace.restart) for trace in display.traces]
    assert names == [("warm start", 0), ("full batch", 0), ("warm start", 1), ("full batch", 1)]
    np.testing.assert_array_equal(display.lines_[1].get_xdata(), [3, 4, 5])
    np.testing.assert_array_equal(display.lines_[1].get_ydata(), [-90.0, np.nan, -80.0])
    np.testing.assert_array_equal(display.lines_[3].get_xdata(), [2])
    colors = [line.get_color() for line in display.lines_]
    assert colors[0] == colors[2] != colors[1] == colors[3]
    legend = display.ax_.get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["warm start", "full batch"]


def test_failed_evaluations_are_marked_at_the_best_value() -> None:
    display = ConvergenceDisplay.from_estimator(Fitted(HISTORY))
    (failure,) = display.failures_
    np.testing.assert_array_equal(failure.get_xydata(), [[4, -90.0]])


def test_seconds_and_gap() -> None:
    figure, ax = plt.subplots()
    display = ConvergenceDisplay.from_estimator(Fitted(HISTORY), against="seconds", gap=True, ax=ax)
    assert display.ax_ is ax and display.figure_ is figure
    np.testing.assert_array_equal(display.lines_[1].get_xdata(), [0.4, 0.5, 0.7])
    # The best of the full batch, in any restart, is -75; that of the warm start -40.
    np.testing.assert_array_equal(display.lines_[1].get_ydata(), [15.0, np.nan, 5.0])
    np.testing.assert_array_equal(display.lines_[0].get_ydata(), [10.0, np.nan])
    np.testing.assert_array_equal(display.lines_[3].get_ydata(), [np.nan])
    assert ax.get_yscale() == "log" and ax.get_xlabel() == "seconds"
    assert display.failures_ == []
    figure.canvas.draw()


def test_a_stage_that_only_failed_is_drawn_empty() -> None:
    history = [record("full batch", 1, np.nan, -np.inf, 0.1)]
    display = ConvergenceDisplay.from_estimator(Fitted(history), gap=True)
    assert np.isnan(display.lines_[0].get_ydata()).all()
    display.plot()
    assert np.isnan(display.failures_[0].get_ydata()).all()


def test_refusals() -> None:
    with pytest.raises(NotFittedError):
        ConvergenceDisplay.from_estimator(LinearRegression())
    with pytest.raises(InputError, match="history_ is empty"):
        ConvergenceDisplay.from_estimator(Fitted([]))
    with pytest.raises(InputError, match="against is 'time'"):
        ConvergenceDisplay.from_estimator(Fitted(HISTORY), against="time")  # type: ignore[arg-type]
    assert plt.get_fignums() == []
