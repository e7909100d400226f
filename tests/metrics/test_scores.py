"""Scores against their definitions, and the bad input that every metric refuses."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, stats

from gpvi import metrics
from gpvi.exceptions import InputError
from gpvi.metrics import (
    continuous_ranked_probability_score,
    crps_from_samples,
    gaussian_nlpd,
    negative_log_predictive_density,
    root_mean_squared_error,
)

RNG = np.random.default_rng(0)
Y = RNG.normal(size=40)
MEAN = RNG.normal(size=40)
STD = RNG.uniform(0.3, 2.0, size=40)
COUNTS = RNG.integers(0, 4, size=40)

# Every function with rows and weights, on valid arguments.
WEIGHTED: dict[str, tuple[Callable[..., float], tuple[np.ndarray, ...]]] = {
    "root_mean_squared_error": (root_mean_squared_error, (Y, MEAN)),
    "negative_log_predictive_density": (
        negative_log_predictive_density,
        (stats.norm.logpdf(Y, MEAN, STD),),
    ),
    "gaussian_nlpd": (gaussian_nlpd, (Y, MEAN, STD)),
    "continuous_ranked_probability_score": (continuous_ranked_probability_score, (Y, MEAN, STD)),
    "crps_from_samples": (crps_from_samples, (Y, RNG.normal(size=(40, 7)))),
    "interval_coverage": (metrics.interval_coverage, (Y, MEAN - STD, MEAN + STD)),
    "interval_width": (metrics.interval_width, (MEAN - STD, MEAN + STD)),
    "calibration_error": (metrics.calibration_error, (metrics.gaussian_pit(Y, MEAN, STD),)),
    "expected_calibration_error": (
        metrics.expected_calibration_error,
        (COUNTS // 2, RNG.uniform(size=40)),
    ),
}


@pytest.mark.parametrize("name", WEIGHTED)
def test_integer_weights_repeat_rows(name: str) -> None:
    function, arrays = WEIGHTED[name]
    weighted = function(*arrays, sample_weight=COUNTS)
    repeated = function(*(np.repeat(a, COUNTS, axis=0) for a in arrays))
    assert weighted == pytest.approx(repeated, rel=1e-12)
    assert isinstance(weighted, float)
    assert function(*arrays, sample_weight=2.5 * np.ones(40)) == pytest.approx(function(*arrays))


@pytest.mark.parametrize("name", WEIGHTED)
@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (-np.ones(40), "negative"),
        (np.zeros(40), "zero in every row"),
        (np.ones(39), "39 rows"),
        (np.full(40, np.nan), "not finite"),
    ],
)
def test_bad_weights_are_refused(name: str, weights: np.ndarray, message: str) -> None:
    function, arrays = WEIGHTED[name]
    with pytest.raises(InputError, match=message):
        function(*arrays, sample_weight=weights)


@pytest.mark.parametrize("name", WEIGHTED)
def test_bad_rows_are_refused(name: str) -> None:
    function, arrays = WEIGHTED[name]
    for position in range(len(arrays)):
        if position:
            shorter = [a[:-1] if i == position else a for i, a in enumerate(arrays)]
            with pytest.raises(InputError):
                function(*shorter)
        broken = [a.astype(float).copy() for a in arrays]
        broken[position][3] = np.nan
        with pytest.raises(InputError):
            function(*broken)
        empty = [a[:0] if i == position else a for i, a in enumerate(arrays)]
        with pytest.raises(InputError):
            function(*empty)


def test_rows_must_be_numbers_in_one_column() -> None:
    with pytest.raises(InputError, match=r"\(40, 1\)"):
        root_mean_squared_error(Y[:, None], MEAN)
    with pytest.raises(InputError, match="numbers"):
        root_mean_squared_error(["a", "b"], [0.0, 1.0])


def test_root_mean_squared_error() -> None:
    assert root_mean_squared_error(Y, MEAN) == pytest.approx(np.sqrt(np.mean((Y - MEAN) ** 2)))


def test_gaussian_nlpd_is_that_of_the_log_densities() -> None:
    density = stats.norm.logpdf(Y, MEAN, STD)
    assert gaussian_nlpd(Y, MEAN, STD) == pytest.approx(-density.mean())
    assert negative_log_predictive_density(density) == pytest.approx(-density.mean())


def test_impossible_observations_have_infinite_nlpd_unless_their_weight_is_zero() -> None:
    density = np.array([0.0, -np.inf])
    assert negative_log_predictive_density(density) == np.inf
    assert negative_log_predictive_density(density, sample_weight=[1.0, 0.0]) == 0.0
    with pytest.raises(InputError, match="not finite"):
        negative_log_predictive_density([0.0, np.inf])


def test_standard_deviations_must_fit() -> None:
    with pytest.raises(InputError, match="holds 0"):
        gaussian_nlpd([0.0], [0.0], [0.0])
    with pytest.raises(InputError, match="-1"):
        continuous_ranked_probability_score([0.0], [0.0], [-1.0])


def test_certain_predictions_have_the_absolute_error_as_crps() -> None:
    assert continuous_ranked_probability_score([2.0, 0.0], [0.0, 1.0], [0.0, 0.0]) == 1.5


@pytest.mark.parametrize("y", [-3.0, 0.0, 0.4, 5.0])
def test_gaussian_crps_is_the_integral(y: float) -> None:
    law = stats.norm(0.3, 1.7)
    below, _ = integrate.quad(lambda t: law.cdf(t) ** 2, -30, y)
    above, _ = integrate.quad(lambda t: law.sf(t) ** 2, y, 30)
    assert continuous_ranked_probability_score([y], [0.3], [1.7]) == pytest.approx(below + above)


def test_crps_from_samples_is_its_double_sum() -> None:
    samples = RNG.normal(size=(40, 6))
    pairs = np.abs(samples[:, :, None] - samples[:, None, :]).sum((1, 2))
    first = np.abs(samples - Y[:, None]).mean(1)
    fair = (first - pairs / (2 * 6 * 5)).mean()
    empirical = (first - pairs / (2 * 36)).mean()
    assert crps_from_samples(Y, samples) == pytest.approx(fair)
    assert crps_from_samples(Y, samples, fair=False) == pytest.approx(empirical)


def test_fair_crps_is_unbiased_with_few_samples() -> None:
    rng = np.random.default_rng(1)
    draws = rng.normal(size=(200_000, 3))
    y = np.full(200_000, 0.7)
    exact = continuous_ranked_probability_score([0.7], [0.0], [1.0])
    assert crps_from_samples(y, draws) == pytest.approx(exact, abs=0.004)
    assert crps_from_samples(y, draws, fair=False) > exact + 0.1


def test_crps_from_samples_keeps_digits_far_from_zero() -> None:
    samples = RNG.integers(0, 1024, size=(5, 9)) / 1024
    near = crps_from_samples(np.zeros(5), samples)
    far = crps_from_samples(np.full(5, 2.0**40), samples + 2.0**40)
    assert far == pytest.approx(near, rel=1e-13)


def test_samples_must_fit() -> None:
    with pytest.raises(InputError, match="at least two"):
        crps_from_samples([0.0], [[1.0]])
    assert crps_from_samples([0.0], [[1.0]], fair=False) == 1.0
    with pytest.raises(InputError, match=r"\[40, S\]"):
        crps_from_samples(Y, np.zeros((39, 5)))


@given(
    scale=st.floats(1e-3, 1e3),
    shift=st.floats(-100, 100),
    seed=st.integers(0, 100),
)
def test_crps_follows_the_units_of_y(scale: float, shift: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    y, mean, std = rng.normal(size=5), rng.normal(size=5), rng.uniform(0.1, 2, size=5)
    before = continuous_ranked_probability_score(y, mean, std)
    after = continuous_ranked_probability_score(
        scale * y + shift, scale * mean + shift, scale * std
    )
    assert after == pytest.approx(scale * before, rel=1e-8)
    assert before > 0


def test_scores_are_proper() -> None:
    """On data from the model, no other mean or spread scores better on average."""
    y = np.random.default_rng(2).normal(size=100_000)
    for score in (gaussian_nlpd, continuous_ranked_probability_score):
        best = score(y, np.zeros_like(y), np.ones_like(y))
        for mean, std in ((0.1, 1.0), (0.0, 0.85), (0.0, 1.2)):
            assert score(y, np.full_like(y, mean), np.full_like(y, std)) > best
