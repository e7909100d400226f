"""Reliability diagrams: curves, bars and histograms."""

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
from sklearn.exceptions import NotFittedError

from gpvi.exceptions import InputError
from gpvi.metrics import calibration_error, expected_calibration_error, gaussian_pit
from gpvi.plotting import ReliabilityDisplay

RNG = np.random.default_rng(0)
X = RNG.normal(size=(400, 1))
Y = X[:, 0] + 2.0 * RNG.normal(size=400)


def test_calibrated_regression_is_close_to_the_diagonal(regressor: Any) -> None:
    model = regressor().fit(X, Y)
    for kind in ("quantile", "interval"):
        display = ReliabilityDisplay.from_estimator(model, X, Y, kind=kind, label="model")
        np.testing.assert_allclose(display.observed, display.nominal, atol=0.07)
        np.testing.assert_array_equal(
            display.line_.get_xydata(), np.stack([display.nominal, display.observed], axis=1)
        )
        assert display.line_.get_label() == f"model (error {display.error:.3f})"
        assert display.bars_ is None
    assert display.ax_.get_ylabel() == "share inside the interval"


def test_quantiles_show_bias_and_intervals_do_not_mistake_it() -> None:
    y = np.random.default_rng(1).normal(size=20_000)
    biased = gaussian_pit(y, np.full_like(y, 1.0), np.ones_like(y))
    display = ReliabilityDisplay.from_pit(biased)
    assert (display.observed >= display.nominal - 0.02).all()
    assert display.error == calibration_error(biased)
    narrow = gaussian_pit(y, np.zeros_like(y), np.full_like(y, 0.5))
    interval = ReliabilityDisplay.from_pit(narrow, kind="interval")
    assert (interval.observed <= interval.nominal + 0.02).all() and interval.error > 0.15


def test_extras_reach_the_estimator(regressor: Any) -> None:
    model = regressor().fit(X, Y)
    wide = ReliabilityDisplay.from_estimator(model, X, Y, noise_variance=np.full(400, 60.0))
    assert wide.error > 0.1
    doubled = 2 * X[:, 0] + (Y - X[:, 0])
    right = ReliabilityDisplay.from_estimator(model, X, doubled, exposure=np.full(400, 2.0))
    assert right.error < 0.05


def test_histogram_of_the_pit(regressor: Any) -> None:
    display = ReliabilityDisplay.from_estimator(regressor().fit(X, Y), X, Y)
    _, ax = plt.subplots()
    display.plot_pit(ax=ax, num_bins=8)
    assert display.ax_ is ax
    heights = np.array([bar.get_height() for bar in display.bars_])
    assert heights.mean() == pytest.approx(1.0) and len(heights) == 8
    assert heights.min() > 0.5


def test_binary_classes(classifier: Any) -> None:
    probability = 1 / (1 + np.exp(-X[:, 0]))
    labels = np.where(RNG.uniform(size=400) < probability, "yes", "no")
    model = classifier().fit(X, labels)
    display = ReliabilityDisplay.from_estimator(model, X, labels, num_bins=5)
    exact = expected_calibration_error(labels == "yes", probability, num_bins=5)
    assert display.error == pytest.approx(exact)
    assert display.bins is not None and display.bars_ is not None
    heights = [bar.get_height() for bar in display.bars_]
    np.testing.assert_allclose(heights, display.bins.weight / 400)
    assert sum(heights) == pytest.approx(1.0)
    assert display.ax_.get_xlabel() == "predicted probability of yes"
    other = ReliabilityDisplay.from_estimator(model, X, labels, target_class="no", num_bins=5)
    np.testing.assert_allclose(other.nominal, 1 - display.nominal[::-1])
    with pytest.raises(InputError, match="no PIT values"):
        display.plot_pit()


def test_several_classes_show_the_most_probable_one(classifier: Any) -> None:
    labels = RNG.choice(["a", "b", "c"], size=400)
    model = classifier().fit(X, labels)
    display = ReliabilityDisplay.from_estimator(model, X, labels, num_bins=15)
    exact = expected_calibration_error(labels, model.predict_proba(X), classes=model.classes_)
    assert display.error == pytest.approx(exact)
    assert display.ax_.get_xlabel().endswith("the most probable class")
    one = ReliabilityDisplay.from_estimator(model, X, labels, target_class="c")
    np.testing.assert_allclose(one.nominal, [0.2])


def test_weights_repeat_rows(regressor: Any) -> None:
    pit = RNG.uniform(size=50)
    weights = RNG.integers(0, 3, size=50)
    weighted = ReliabilityDisplay.from_pit(pit, sample_weight=weights)
    repeated = ReliabilityDisplay.from_pit(np.repeat(pit, weights))
    np.testing.assert_allclose(weighted.observed, repeated.observed)
    assert weighted.error == pytest.approx(repeated.error)


def test_several_displays_share_axes() -> None:
    _, ax = plt.subplots()
    for seed in range(2):
        pit = np.random.default_rng(seed).uniform(size=50)
        ReliabilityDisplay.from_pit(pit).plot(ax=ax, label=f"run {seed}")
    texts = [text.get_text() for text in ax.get_legend().get_texts()]
    assert len(texts) == 2 and texts[1].startswith("run 1 (error")


def test_refusals(regressor: Any) -> None:
    with pytest.raises(NotFittedError):
        ReliabilityDisplay.from_estimator(regressor(), X, Y)
    with pytest.raises(InputError, match="kind is 'median'"):
        ReliabilityDisplay.from_pit([0.5], kind="median")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="shape"):
        ReliabilityDisplay.from_estimator(regressor().fit(X, Y), X, Y[:-1])
    assert plt.get_fignums() == []
