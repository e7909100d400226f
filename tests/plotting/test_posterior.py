"""Posterior along one input: the artists hold what the estimator predicts."""

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import polars as pl
import pytest
from scipy.special import ndtri
from sklearn.exceptions import NotFittedError

from gpvi.exceptions import InputError, UnsupportedError
from gpvi.plotting import Band, PosteriorDisplay

X1 = np.array([[0.0], [2.0], [10.0]])
X2 = np.array([[0.0, 1.0], [2.0, 3.0], [4.0, 8.0]])
Y = np.array([1.0, 2.0, 3.0])


def band_ends(collection: Any) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper ends of a drawn band, in the order of the grid."""
    vertices = collection.get_paths()[0].vertices
    grid = np.unique(vertices[:, 0])
    ends = [vertices[vertices[:, 0] == x, 1] for x in grid]
    return np.array([e.min() for e in ends]), np.array([e.max() for e in ends])


def test_one_input(regressor: Any) -> None:
    model = regressor().fit(X1, Y)
    display = PosteriorDisplay.from_estimator(model, X1, Y, num_points=11)
    np.testing.assert_allclose(display.grid, np.linspace(-0.5, 10.5, 11))
    np.testing.assert_allclose(display.line_.get_xydata(), np.stack([display.grid] * 2, axis=1))
    assert [band.coverage for band in display.bands] == [0.95, 0.5]
    for band, drawn in zip(display.bands, display.bands_, strict=True):
        width = 2.0 * ndtri(0.5 + band.coverage / 2)
        np.testing.assert_allclose(band.upper - display.mean, width)
        lower, upper = band_ends(drawn)
        np.testing.assert_allclose(lower, display.mean - width)
        np.testing.assert_allclose(upper, display.mean + width)
    assert display.points_ is not None
    np.testing.assert_array_equal(display.points_.get_offsets(), np.column_stack([X1, Y]))
    assert (display.ax_.get_xlabel(), display.ax_.get_ylabel()) == ("x0", "y")
    assert display.figure_ is display.ax_.get_figure()
    assert plt.get_fignums() == [display.figure_.number]


def test_given_axes_are_used_and_nothing_else_is_opened(regressor: Any) -> None:
    figure, axes = plt.subplots(1, 2)
    model = regressor().fit(X1, Y)
    display = PosteriorDisplay.from_estimator(model, X1, ax=axes[1])
    assert display.ax_ is axes[1] and display.figure_ is figure
    assert not axes[0].lines and display.points_ is None
    display.plot(ax=axes[0], color="C3", label="again", line_options={"linewidth": 4})
    assert len(plt.get_fignums()) == 1
    assert axes[0].lines[0].get_linewidth() == 4 and axes[0].lines[0].get_label() == "again"


def test_latent_bands_lie_within_those_of_observations(regressor: Any) -> None:
    model = regressor().fit(X1, Y)
    display = PosteriorDisplay.from_estimator(
        model, X1, coverage=0.9, latent_coverage=0.9, target_name="signal"
    )
    outer, inner = display.bands
    assert (outer.latent, inner.latent) == (False, True)
    np.testing.assert_allclose(inner.upper - inner.lower, (outer.upper - outer.lower) / 2)
    assert display.ax_.get_ylabel() == "signal"


def test_latent_response(regressor: Any) -> None:
    model = regressor("log").fit(X1, Y)
    display = PosteriorDisplay.from_estimator(
        model, X1, Y, response="latent", coverage=0.5, num_points=5
    )
    np.testing.assert_allclose(display.mean, display.grid)
    np.testing.assert_allclose(display.bands[0].upper - display.mean, ndtri(0.75))
    assert display.bands[0].latent
    assert display.data is None, "counts do not belong on the axis of the log rate"
    same = PosteriorDisplay.from_estimator(regressor().fit(X1, Y), X1, Y, response="latent")
    assert same.data is not None


def test_sampled_functions_follow_the_covariance(regressor: Any) -> None:
    model = regressor().fit(X1, Y)
    display = PosteriorDisplay.from_estimator(model, X1, num_functions=150, num_points=4)
    assert display.functions is not None and display.functions.shape == (150, 4)
    # The covariance is one everywhere: every function is the mean plus one constant.
    shifts = display.functions - display.mean
    np.testing.assert_allclose(shifts, shifts[:, :1] * np.ones(4), atol=1e-6)
    assert shifts[:, 0].std() == pytest.approx(1.0, abs=0.15)
    assert len(display.function_lines_) == 150
    again = PosteriorDisplay.from_estimator(
        model, X1, num_functions=150, num_points=4, random_state=np.random.default_rng(0)
    )
    np.testing.assert_array_equal(again.functions, display.functions)


@pytest.mark.parametrize("option", ["num_functions", "latent_coverage"])
def test_functions_on_another_scale_are_refused(regressor: Any, option: str) -> None:
    model = regressor("log").fit(X1, Y)
    with pytest.raises(UnsupportedError, match=f"{option} and response='observation'"):
        PosteriorDisplay.from_estimator(
            model, X1, **{option: 2 if option == "num_functions" else 0.9}
        )


def test_other_inputs_are_held_at_their_lower_median(regressor: Any) -> None:
    X = np.array([[0.0, 1.0], [2.0, 3.0], [4.0, 8.0], [6.0, 9.0]])
    model = regressor().fit(X, np.zeros(4))
    display = PosteriorDisplay.from_estimator(model, X, feature=0, limits=(0.0, 1.0))
    np.testing.assert_allclose(display.mean, display.grid + 30.0)
    assert (display.grid[0], display.grid[-1]) == (0.0, 1.0)
    held = PosteriorDisplay.from_estimator(model, X, feature=-1, held={0: 5.0})
    np.testing.assert_allclose(held.mean, 5.0 + 10.0 * held.grid)
    assert held.ax_.get_xlabel() == "x1"


@pytest.mark.parametrize("make", [pd.DataFrame, pl.DataFrame])
def test_data_frames_keep_their_kind(regressor: Any, make: Any) -> None:
    frame = make({"dose": X2[:, 0], "age": X2[:, 1]})
    model = regressor().fit(frame, Y)
    display = PosteriorDisplay.from_estimator(model, frame, Y, feature="age", held={"dose": 7})
    np.testing.assert_allclose(display.mean, 7.0 + 10.0 * display.grid)
    assert display.ax_.get_xlabel() == "age"


def test_columns_that_hold_labels_keep_their_dtype(regressor: Any) -> None:
    class Labelled(regressor):
        def _function(self, X: Any) -> np.ndarray:
            kinds = X["kind"].to_numpy() if isinstance(X, pl.DataFrame) else X["kind"].astype(str)
            assert str(X["kind"].dtype) == self.dtype
            return np.asarray(X["dose"]) + np.where(np.asarray(kinds) == "b", 100.0, 0.0)

    kind = ["b", "a", "b"]
    for frame in (
        pd.DataFrame({"dose": Y, "kind": pd.Categorical(kind)}),
        pl.DataFrame({"dose": Y, "kind": pl.Series(kind, dtype=pl.Categorical)}),
    ):
        model = Labelled()
        model.dtype, model.fitted_, model.n_features_in_ = str(frame["kind"].dtype), True, 2
        typical = PosteriorDisplay.from_estimator(model, frame, feature="dose")
        np.testing.assert_allclose(typical.mean, typical.grid + 100.0)
        held = PosteriorDisplay.from_estimator(model, frame, feature="dose", held={"kind": "a"})
        np.testing.assert_allclose(held.mean, held.grid)
        with pytest.raises(InputError, match="held at 'c'"):
            PosteriorDisplay.from_estimator(model, frame, feature="dose", held={"kind": "c"})
        with pytest.raises(InputError, match="'kind' does not hold numbers"):
            PosteriorDisplay.from_estimator(model, frame, feature="kind")


def test_classifier_shows_the_probability_of_a_class(classifier: Any) -> None:
    labels = np.array(["no", "yes", "no"])
    model = classifier().fit(X1, labels)
    display = PosteriorDisplay.from_estimator(model, X1, labels)
    np.testing.assert_allclose(display.mean, 1 / (1 + np.exp(-display.grid)))
    assert display.ax_.get_ylabel() == "probability of yes"
    assert display.data is not None
    np.testing.assert_array_equal(display.data[1], [0, 1, 0])
    other = PosteriorDisplay.from_estimator(model, X1, labels, target_class="no")
    np.testing.assert_allclose(other.mean, 1 - display.mean)


def test_classifier_refuses_what_it_cannot_give(classifier: Any) -> None:
    model = classifier().fit(X1, ["a", "b", "c"])
    with pytest.raises(InputError, match=r"3 classes; pass target_class, one of \['a', 'b', 'c'\]"):
        PosteriorDisplay.from_estimator(model, X1)
    with pytest.raises(InputError, match="target_class is 'd'"):
        PosteriorDisplay.from_estimator(model, X1, target_class="d")
    with pytest.raises(UnsupportedError, match="response='latent'"):
        PosteriorDisplay.from_estimator(model, X1, response="latent")
    with pytest.raises(UnsupportedError, match="num_functions or latent_coverage"):
        PosteriorDisplay.from_estimator(model, X1, target_class="a", num_functions=3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "2 columns; pass feature="),
        ({"feature": "dose"}, "no column 'dose'; there are x0, x1"),
        ({"feature": 2}, "no column 2; X has 2 columns"),
        ({"feature": 0.5}, "named by 0.5"),
        ({"feature": 0, "held": {0: 1.0}}, "x0: a column is either varied or held"),
        ({"feature": 0, "num_points": 1}, "num_points is 1"),
        ({"feature": 0, "limits": (1.0, 1.0)}, "limits are"),
        ({"feature": 0, "coverage": (0.5, 1.0)}, "coverage is"),
        ({"feature": 0, "response": "mean"}, "response is 'mean'"),
        ({"feature": 0, "num_functions": -1}, "num_functions is -1"),
        ({"feature": 0, "y": Y[:2]}, r"y has shape \(2,\); X has 3 rows"),
    ],
)
def test_bad_options_are_refused_before_a_figure_opens(
    regressor: Any, options: dict[str, Any], message: str
) -> None:
    model = regressor().fit(X2, Y)
    with pytest.raises(InputError, match=message):
        PosteriorDisplay.from_estimator(model, X2, **options)
    assert plt.get_fignums() == []


def test_inputs_must_fit_the_estimator(regressor: Any) -> None:
    with pytest.raises(NotFittedError):
        PosteriorDisplay.from_estimator(regressor(), X1)
    with pytest.raises(InputError, match="2 columns; KnownRegressor was fitted with 1"):
        PosteriorDisplay.from_estimator(regressor().fit(X1, Y), X2)
    with pytest.raises(InputError, match=r"shape \(3,\)"):
        PosteriorDisplay.from_estimator(regressor().fit(X1, Y), X1[:, 0])


def test_a_constant_column_still_has_a_grid(regressor: Any) -> None:
    X = np.full((3, 1), 4.0)
    display = PosteriorDisplay.from_estimator(regressor().fit(X, Y), X)
    assert (display.grid[0], display.grid[-1]) == (3.5, 4.5)


def test_made_by_hand() -> None:
    grid = np.linspace(0, 1, 5)
    display = PosteriorDisplay(grid, grid, (Band(0.8, grid - 1, grid + 1, latent=True),)).plot()
    assert display.bands_[0].get_label() == "80% of the function"
