"""Intervals, PIT and calibration errors of regression."""

import numpy as np
import pytest
from scipy import stats

from gpvi.exceptions import InputError
from gpvi.metrics import (
    calibration_error,
    gaussian_pit,
    interval_coverage,
    interval_width,
    pit_from_samples,
    quantile_calibration_error,
)


def test_interval_ends_count_as_covered() -> None:
    assert interval_coverage([0.0, 1.0, 1.1], [0.0] * 3, [1.0] * 3) == pytest.approx(2 / 3)
    assert interval_coverage([0.0, 9.0], [0.0] * 2, [1.0] * 2, sample_weight=[3, 1]) == 0.75


def test_interval_width_is_the_mean() -> None:
    assert interval_width([0.0, 0.0], [1.0, 3.0]) == 2.0


def test_swapped_ends_are_refused() -> None:
    with pytest.raises(InputError, match="row 1"):
        interval_coverage([0.0, 0.0], [0.0, 2.0], [1.0, 1.0])
    with pytest.raises(InputError, match="swapped"):
        interval_width([2.0], [1.0])


def test_gaussian_pit_is_the_distribution_function() -> None:
    y = np.linspace(-3, 3, 7)
    expected = stats.norm.cdf(y, 0.5, 2.0)
    np.testing.assert_allclose(gaussian_pit(y, np.full(7, 0.5), np.full(7, 2.0)), expected)
    with pytest.raises(InputError, match="holds 0"):
        gaussian_pit([0.0], [0.0], [0.0])


@pytest.mark.parametrize("rate", [0.2, 3.0])
def test_randomised_pit_of_counts_is_uniform(rate: float) -> None:
    draws = np.random.default_rng(3).poisson(rate, size=(4000, 21))
    pit = pit_from_samples(draws[:, 0], draws[:, 1:], random_state=1)
    assert stats.kstest(pit, "uniform").pvalue > 0.01
    assert pit.min() >= 0 and pit.max() <= 1


def test_pit_from_quantiles_is_close_to_the_distribution_function() -> None:
    size = 199
    levels = (np.arange(size) + 0.5) / size
    y = np.random.default_rng(4).normal(size=300)
    quantiles = np.tile(stats.norm.ppf(levels), (300, 1))
    pit = pit_from_samples(y, quantiles)
    np.testing.assert_allclose(pit, stats.norm.cdf(y), atol=1.5 / size)


def test_pit_follows_its_seed_and_leaves_the_global_generator_alone() -> None:
    samples = np.random.default_rng(5).poisson(1.0, size=(20, 10))
    state = np.random.get_state()[1].copy()  # type: ignore[union-attr]  # noqa: NPY002
    first = pit_from_samples(np.ones(20), samples, random_state=7)
    again = pit_from_samples(np.ones(20), samples, random_state=np.random.default_rng(7))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, pit_from_samples(np.ones(20), samples, random_state=8))
    np.testing.assert_array_equal(state, np.random.get_state()[1])  # type: ignore[arg-type]  # noqa: NPY002


def test_calibration_error_of_calibrated_rows_has_the_size_that_its_docstring_says() -> None:
    errors = [calibration_error(np.random.default_rng(s).uniform(size=400)) for s in range(200)]
    assert np.mean(errors) == pytest.approx(0.3 / 20, rel=0.15)


def test_calibration_error_of_error_bars_twice_too_wide() -> None:
    y = np.random.default_rng(6).normal(size=200_000)
    pit = gaussian_pit(y, np.zeros_like(y), np.full_like(y, 2.0))
    levels = np.arange(1, 100) / 100
    exact = np.abs(levels - stats.norm.cdf(2 * stats.norm.ppf(levels))).mean()
    assert calibration_error(pit) == pytest.approx(exact, abs=0.003)


def test_both_calibration_errors_agree() -> None:
    rng = np.random.default_rng(7)
    y, mean, std = rng.normal(size=50), rng.normal(size=50), rng.uniform(0.5, 1, size=50)
    levels = np.array([0.1, 0.35, 0.8])
    quantiles = mean[:, None] + std[:, None] * stats.norm.ppf(levels)
    weights = rng.uniform(size=50)
    from_quantiles = quantile_calibration_error(y, quantiles, levels, sample_weight=weights)
    from_pit = calibration_error(gaussian_pit(y, mean, std), levels=levels, sample_weight=weights)
    assert from_quantiles == pytest.approx(from_pit)


def test_quantiles_of_counts_look_biased_and_their_randomised_pit_does_not() -> None:
    rng = np.random.default_rng(8)
    y = rng.poisson(0.5, size=5000)
    levels = (np.arange(99) + 0.5) / 99
    quantiles = np.tile(stats.poisson.ppf(levels, 0.5), (5000, 1))
    assert quantile_calibration_error(y, quantiles, levels) > 0.15
    assert calibration_error(pit_from_samples(y, quantiles)) < 0.02


@pytest.mark.parametrize(
    ("pit", "levels", "message"),
    [
        ([0.5, 1.2], None, r"\[0.5, 1.2\]"),
        ([0.5], [0.0, 0.5], "strictly between"),
        ([0.5], [], "at least one"),
    ],
)
def test_bad_pit_is_refused(pit: list, levels: list | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        calibration_error(pit, levels=levels)


def test_quantiles_and_levels_must_match() -> None:
    with pytest.raises(InputError, match="2 columns for 1 levels"):
        quantile_calibration_error([0.0], [[0.0, 1.0]], [0.5])
    with pytest.raises(InputError, match="strictly between"):
        quantile_calibration_error([0.0], [[0.0]], [1.0])
