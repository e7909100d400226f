"""Coresets drawn over their data."""

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest

from gpvi.exceptions import InputError
from gpvi.plotting.coreset import CoresetDisplay, plot_coreset

X = np.linspace(0.0, 1.0, 9)[:, None]
POINTS = np.array([[0.1], [0.5], [0.9]])
TARGETS = np.array([1.0, 2.0, 3.0])
WEIGHTS = np.array([1.0, 4.0, 0.0])


def test_points_over_one_input() -> None:
    _, ax = plt.subplots()
    data, curve = (X, X[:, 0]), (X[:, 0], 2.0 * X[:, 0])
    display = plot_coreset(POINTS, TARGETS, WEIGHTS, data=data, curve=curve, ax=ax, largest=40.0)
    assert display.ax_ is ax and display.figure_ is ax.figure and display.colorbar_ is None
    np.testing.assert_allclose(display.points_.get_offsets(), np.c_[POINTS[:, 0], TARGETS])
    np.testing.assert_allclose(display.points_.get_sizes(), [10.0, 40.0, 0.0])
    np.testing.assert_allclose(display.data_.get_offsets(), np.c_[X[:, 0], X[:, 0]])
    np.testing.assert_allclose(display.curve_.get_ydata(), 2.0 * X[:, 0])
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("x", "y")
    assert ax.get_legend_handles_labels()[1] == ["data", "mean", "coreset"]


def test_a_map_of_two_columns() -> None:
    points = np.c_[POINTS, 2.0 * POINTS, 3.0 * POINTS]
    data = np.c_[X, X, X], X[:, 0]
    display = plot_coreset(points, TARGETS, WEIGHTS, data=data, features=(2, 0), names=("a", "b"))
    np.testing.assert_allclose(display.points_.get_offsets(), points[:, [2, 0]])
    np.testing.assert_allclose(display.points_.get_array(), TARGETS)
    assert display.colorbar_ is not None and display.curve_ is None
    assert (display.ax_.get_xlabel(), display.ax_.get_ylabel()) == ("a", "b")
    again = display.plot(colorbar=False)
    assert again is display and display.colorbar_ is None
    assert (display.ax_.get_xlabel(), display.ax_.get_ylabel()) == ("x0", "x1")


def test_points_alone() -> None:
    display = CoresetDisplay(POINTS, TARGETS, WEIGHTS).plot()
    assert display.data_ is None and display.curve_ is None


@pytest.mark.parametrize(
    ("arrays", "options", "message"),
    [
        ((POINTS[:, 0], TARGETS, WEIGHTS), {}, r"inputs has shape \(3,\)"),
        ((POINTS[:0], TARGETS[:0], WEIGHTS[:0]), {}, "at least one point"),
        ((POINTS, TARGETS[:2], WEIGHTS), {}, "targets has shape"),
        ((POINTS, TARGETS, WEIGHTS[:2]), {}, "weights has shape"),
        ((POINTS, np.full(3, np.nan), WEIGHTS), {}, "targets holds 3 values"),
        ((np.full((3, 1), np.inf), TARGETS, WEIGHTS), {}, "inputs holds 3 values"),
        ((POINTS, TARGETS, -WEIGHTS), {}, "none may be negative"),
        ((POINTS, TARGETS, 0.0 * WEIGHTS), {}, "one must be positive"),
        ((POINTS, TARGETS, WEIGHTS), {"data": (X, X)}, "data has shapes"),
        ((np.c_[POINTS, POINTS], TARGETS, WEIGHTS), {"curve": (X, X)}, "curve is for one input"),
        ((np.c_[POINTS, POINTS], TARGETS, WEIGHTS), {"features": (0, 2)}, "there is no column 2"),
        ((np.c_[POINTS, POINTS], TARGETS, WEIGHTS), {"features": (1, 1)}, "two different columns"),
        ((POINTS, TARGETS, WEIGHTS), {"largest": 0.0}, "largest is 0.0"),
        ((POINTS, TARGETS, WEIGHTS), {"names": ("x",)}, "one for each"),
    ],
)
def test_refusals(arrays: tuple[Any, ...], options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        plot_coreset(*arrays, **options)
    assert plt.get_fignums() == []


def test_unknown_options_raise() -> None:
    with pytest.raises(TypeError, match="colour"):
        plot_coreset(POINTS, TARGETS, WEIGHTS, colour="red")
