"""Reliability curves and the expected calibration error of classifiers."""

from typing import Any

import numpy as np
import pytest
from sklearn.calibration import calibration_curve

from gpvi.exceptions import InputError
from gpvi.metrics import expected_calibration_error, reliability_curve, top_label

RNG = np.random.default_rng(0)
PROBABILITY = RNG.uniform(size=500)
EVENT = RNG.uniform(size=500) < PROBABILITY**2


@pytest.mark.parametrize("strategy", ["uniform", "quantile"])
def test_curve_agrees_with_scikit_learn(strategy: Any) -> None:
    curve = reliability_curve(EVENT, PROBABILITY, num_bins=8, strategy=strategy)
    frequency, predicted = calibration_curve(EVENT, PROBABILITY, n_bins=8, strategy=strategy)
    np.testing.assert_allclose(curve.frequency, frequency)
    np.testing.assert_allclose(curve.probability, predicted)
    assert curve.weight.sum() == 500
    assert (curve.lower < curve.probability).all() and (curve.probability <= curve.upper).all()


def test_empty_bins_are_left_out() -> None:
    curve = reliability_curve([0, 1, 1], [0.0, 1.0, 1.0], num_bins=5)
    np.testing.assert_array_equal(curve.probability, [0.0, 1.0])
    np.testing.assert_array_equal(curve.lower, [0.0, 0.8])
    assert curve.error == 0.0


def test_binary_error_is_its_definition() -> None:
    total = 0.0
    for low in np.arange(10) / 10:
        rows = (PROBABILITY > low) & (PROBABILITY <= low + 0.1)
        total += abs(EVENT[rows].sum() - PROBABILITY[rows].sum())
    error = expected_calibration_error(EVENT, PROBABILITY, num_bins=10)
    assert error == pytest.approx(total / 500)


def test_calibrated_probabilities_have_a_small_error() -> None:
    probability = RNG.uniform(size=50_000)
    event = RNG.uniform(size=50_000) < probability
    assert expected_calibration_error(event, probability) < 0.01


def test_top_label_error_of_several_classes() -> None:
    probability = RNG.dirichlet(np.ones(3), size=300)
    labels = np.array(["b", "a", "c"])
    y = labels[RNG.integers(0, 3, size=300)]
    right, confidence = top_label(y, probability, classes=labels)
    np.testing.assert_array_equal(confidence, probability.max(1))
    np.testing.assert_array_equal(right, labels[probability.argmax(1)] == y)
    error = expected_calibration_error(y, probability, classes=labels)
    assert error == reliability_curve(right, confidence, num_bins=15).error


def test_labels_of_two_classes() -> None:
    y = np.where(EVENT, "yes", "no")
    named = expected_calibration_error(y, PROBABILITY, classes=["no", "yes"])
    assert named == expected_calibration_error(EVENT.astype(int), PROBABILITY)


def test_rounding_beyond_one_is_forgiven() -> None:
    assert expected_calibration_error([1], [1.0 + 1e-9]) == 0.0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: expected_calibration_error([0, 2], [0.1, 0.2]), "the label 2"),
        (lambda: expected_calibration_error(["a"], [0.5], classes=["a"]), "2 classes"),
        (lambda: expected_calibration_error([0], [1.5]), r"\[1.5, 1.5\]"),
        (lambda: expected_calibration_error([0], [[0.5, 0.2]]), "sums to 0.7"),
        (lambda: expected_calibration_error([[0]], [0.5]), r"\(1, 1\)"),
        (lambda: expected_calibration_error([0], [0.5], num_bins=0), "num_bins is 0"),
        (lambda: expected_calibration_error([0], [0.5], num_bins=True), "num_bins is True"),
        (lambda: expected_calibration_error([0], [0.5], strategy="equal"), "strategy is 'equal'"),  # type: ignore[arg-type]
        (lambda: reliability_curve([0.5], [0.5]), "bool or 0 and 1"),
        (lambda: reliability_curve([0, 1], [0.5]), "1 rows where 2"),
    ],
)
def test_bad_input_is_refused(call: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()
