"""Posterior over two inputs: orientation, colours, data and refusals."""

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import QuadMesh
from matplotlib.contour import QuadContourSet
from sklearn.exceptions import NotFittedError

from gpvi.exceptions import InputError, UnsupportedError
from gpvi.plotting import PosteriorMapDisplay

X2 = np.array([[0.0, 1.0], [2.0, 3.0], [-4.0, 8.0]])
X3 = np.column_stack([X2, [5.0, 6.0, 9.0]])
Y = np.array([1.0, 2.0, 3.0])


def test_rows_of_the_map_belong_to_the_second_input(regressor: Any) -> None:
    model = regressor().fit(X2, Y)
    display = PosteriorMapDisplay.from_estimator(model, X2, Y, num_points=7, style="heatmap")
    expected = display.first[None, :] + 10 * display.second[:, None]
    np.testing.assert_allclose(display.mean, expected)
    assert display.std is not None and (display.std == 2.0).all()
    assert isinstance(display.surface_, QuadMesh)
    np.testing.assert_allclose(np.asarray(display.surface_.get_array()).reshape(7, 7), expected)
    np.testing.assert_array_equal(display.points_[0].get_offsets(), X2)
    assert (display.ax_.get_xlabel(), display.ax_.get_ylabel()) == ("x0", "x1")
    assert display.colorbar_ is not None and display.colorbar_.ax.get_ylabel() == "y"
    assert display.boundary_ is None


def test_standard_deviation_is_drawn_without_computing_again(regressor: Any) -> None:
    _, axes = plt.subplots(1, 2)
    model = regressor().fit(X2, Y)
    display = PosteriorMapDisplay.from_estimator(model, X2, ax=axes[0], style="heatmap")
    model.predict = None
    display.plot(ax=axes[1], quantity="std", style="heatmap", colorbar=False)
    assert display.ax_ is axes[1] and display.colorbar_ is None and display.points_ == []
    assert set(np.asarray(display.surface_.get_array()).ravel()) == {2.0}
    assert len(plt.get_fignums()) == 1


def test_contours_and_cuts_through_more_inputs(regressor: Any) -> None:
    frame = pd.DataFrame(X3, columns=["a", "b", "c"])
    model = regressor().fit(frame, Y)
    display = PosteriorMapDisplay.from_estimator(
        model, frame, features=("c", 0), held={"b": 1.0}, limits=(None, (0.0, 1.0)), num_points=5
    )
    assert isinstance(display.surface_, QuadContourSet)
    expected = display.second[:, None] + 10.0 + 100 * display.first[None, :]
    np.testing.assert_allclose(display.mean, expected)
    assert display.feature_names == ("c", "a")


def test_latent_map(regressor: Any) -> None:
    model = regressor("log").fit(X2, Y)
    display = PosteriorMapDisplay.from_estimator(
        model, X2, response="latent", quantity="std", num_points=4, style="heatmap"
    )
    assert set(np.asarray(display.surface_.get_array()).ravel()) == {1.0}
    assert display.colorbar_ is not None
    assert display.colorbar_.ax.get_ylabel() == "std of latent function"


def test_classes(classifier: Any) -> None:
    labels = np.array(["no", "yes", "no"])
    model = classifier().fit(X2, labels)
    display = PosteriorMapDisplay.from_estimator(model, X2, labels)
    np.testing.assert_allclose(display.mean[0], 1 / (1 + np.exp(-display.first)))
    assert display.std is None and display.boundary_ is not None
    # The boundary is where x0 is zero.
    crossing = np.vstack([p.vertices for p in display.boundary_.get_paths()])
    np.testing.assert_allclose(crossing[:, 0], 0.0, atol=0.05)
    assert [points.get_label() for points in display.points_] == ["no", "yes"]
    assert [len(points.get_offsets()) for points in display.points_] == [2, 1]
    assert display.surface_.get_clim() == (0.0, 1.0)
    with pytest.raises(InputError, match="'std', but there is none of a class"):
        display.plot(quantity="std")


def test_several_classes_need_a_name(classifier: Any) -> None:
    labels = np.array(["a", "b", "c"])
    model = classifier().fit(X2, labels)
    with pytest.raises(InputError, match="pass target_class"):
        PosteriorMapDisplay.from_estimator(model, X2, labels)
    display = PosteriorMapDisplay.from_estimator(model, X2, labels, target_class="b")
    assert [points.get_label() for points in display.points_] == ["a", "c", "b"]
    with pytest.raises(UnsupportedError, match="response='latent'"):
        PosteriorMapDisplay.from_estimator(model, X2, target_class="b", response="latent")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"features": (0, 0)}, "twice the same column"),
        ({"features": (0, -2)}, "twice the same column"),
        ({"features": (0,)}, "pass two columns"),
        ({"features": "ab"}, "pass two columns"),
        ({"features": (0, 2)}, "no column 2"),
        ({"quantity": "variance"}, "quantity is 'variance'"),
        ({"style": "surface"}, "style is 'surface'"),
        ({"limits": (None,)}, "limits has 1 entries"),
        ({"y": Y[:2]}, r"y has shape \(2,\)"),
    ],
)
def test_bad_options_are_refused_before_a_figure_opens(
    regressor: Any, options: dict[str, Any], message: str
) -> None:
    model = regressor().fit(X2, Y)
    with pytest.raises(InputError, match=message):
        PosteriorMapDisplay.from_estimator(model, X2, **options)
    assert plt.get_fignums() == []


def test_inputs_must_fit_the_estimator(regressor: Any) -> None:
    with pytest.raises(NotFittedError):
        PosteriorMapDisplay.from_estimator(regressor(), X2)
    with pytest.raises(InputError, match="fitted with 2"):
        PosteriorMapDisplay.from_estimator(regressor().fit(X2, Y), X3)
    with pytest.raises(InputError, match="PosteriorDisplay draws along one input"):
        PosteriorMapDisplay.from_estimator(regressor().fit(X2[:, :1], Y), X2[:, :1])
