"""What is drawn of a time series."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from gpvi import TimeSeriesGP
from gpvi.exceptions import InputError
from gpvi.plotting import TimeSeriesDisplay

pytestmark = pytest.mark.filterwarnings("ignore::gpvi.exceptions.ConvergenceWarning")


@pytest.fixture(scope="module")
def model() -> TimeSeriesGP:
    index = pd.date_range("2001-01-01", periods=40, freq="D")
    y = pd.Series(np.sin(np.arange(40) / 3), index)
    y.iloc[4] = np.nan
    return TimeSeriesGP("matern32", max_iter=5, random_state=0).fit(y)


def test_history_only(model: TimeSeriesGP) -> None:
    display = model.plot()
    assert isinstance(display, TimeSeriesDisplay)
    assert len(display.times) == len(display.data[1]) == 39
    assert display.boundary_ is None
    np.testing.assert_allclose(display.mean, model.predict(display.times))
    assert display.ax_.get_xlabel() == "time"


def test_with_a_forecast(model: TimeSeriesGP) -> None:
    display = model.plot(7, coverage=0.5, num_history=10, target_name="level")
    forecast = model.forecast(7, coverage=0.5)
    assert len(display.times) == 17 and len(display.data[1]) == 10
    np.testing.assert_allclose(display.upper[-7:], forecast.upper)
    np.testing.assert_allclose(display.line_.get_ydata(), display.mean)
    assert display.times[-1] == forecast.times.to_numpy()[-1]
    assert display.boundary_ is not None and display.ax_.get_ylabel() == "level"
    labels = display.ax_.get_legend_handles_labels()[1]
    assert labels == ["50% band", "prediction", "data"]


def test_long_histories_are_thinned(model: TimeSeriesGP) -> None:
    display = TimeSeriesDisplay.from_estimator(model, num_points=5)
    assert len(display.times) == 5 and len(display.data[1]) == 39
    assert display.times[-1] == display.data[0][-1]


def test_given_axes_and_numbers() -> None:
    import matplotlib.pyplot as plt

    t = np.arange(12.0)
    model = TimeSeriesGP("trend", max_iter=3).fit(t, t).update([12.0], [12.0])
    ax = plt.figure().add_subplot()
    display = model.plot(3, ax=ax)
    assert display.ax_ is ax and display.times[-1] == 15.0
    assert display.last == 12.0
    assert display.plot(color="C3").ax_ is not ax


@pytest.mark.parametrize("options", [{"num_points": 0}, {"num_history": 2.5}, {"num_points": True}])
def test_refusals(model: TimeSeriesGP, options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="integer of at least 1"):
        model.plot(**options)
