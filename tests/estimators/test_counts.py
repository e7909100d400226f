"""GPCountRegressor: rates, exposures, quasi-likelihood, quantiles of counts."""

import warnings
from typing import Any

import numpy as np
import pytest
import scipy.stats
from sklearn.metrics import d2_tweedie_score

from gpvi.estimators import Fixed, GPCountRegressor
from gpvi.exceptions import ExtrapolationWarning
from gpvi.likelihoods import PoissonLikelihood

pytestmark = pytest.mark.filterwarnings("ignore:The fit is not converged")

GENERATOR = np.random.default_rng(0)
X = np.sort(GENERATOR.uniform(0, 10, size=(60, 1)), axis=0)
RATE = np.exp(1 + np.sin(X[:, 0]))
Y = GENERATOR.poisson(RATE)
EXPOSURE = GENERATOR.uniform(0.5, 20, size=60)
EXPOSED = GENERATOR.poisson(RATE * EXPOSURE)
FIXED = {"lengthscale": Fixed(1.5), "outputscale": Fixed(1.0), "mean.constant": Fixed(1.0)}


def counter(**options: Any) -> GPCountRegressor:
    return GPCountRegressor(**{"random_state": 0, "max_iter": 20, **options})


@pytest.fixture(scope="module")
def fitted() -> GPCountRegressor:
    return counter().fit(X, Y)


@pytest.fixture(scope="module")
def exposed() -> GPCountRegressor:
    return counter().fit(X, EXPOSED, exposure=EXPOSURE)


class TestRates:
    def test_learns_the_rate(self, fitted: GPCountRegressor) -> None:
        mean, std = fitted.predict(X, return_std=True)
        assert np.abs(mean / RATE - 1).mean() < 0.25
        assert (std**2 > mean).all(), "the noise of the counts, and that of the rate"

    def test_moments_in_closed_form(self, fitted: GPCountRegressor) -> None:
        centre, spread = fitted.predict(X, latent=True, return_std=True)
        mean, std = fitted.predict(X, return_std=True)
        expected = np.exp(centre + 0.5 * spread**2)
        assert np.allclose(mean, expected, rtol=1e-6)
        variance = expected + expected**2 * np.expm1(spread**2)
        assert np.allclose(std**2, variance, rtol=1e-6)

    def test_covariance_in_closed_form(self, fitted: GPCountRegressor) -> None:
        centre, covariance = fitted.predict(X[:20], latent=True, return_cov=True)
        mean = np.exp(centre + 0.5 * np.diag(covariance))
        expected = np.outer(mean, mean) * np.expm1(covariance) + np.diag(mean)
        found_mean, found = fitted.predict(X[:20], return_cov=True)
        assert np.allclose(found_mean, mean, rtol=1e-6)
        assert np.allclose(found, expected, rtol=1e-5, atol=1e-8)
        assert np.allclose(np.sqrt(np.diag(found)), fitted.predict(X[:20], return_std=True)[1])

    def test_log_density_by_quadrature(self, fitted: GPCountRegressor) -> None:
        centre, spread = fitted.predict(X, latent=True, return_std=True)
        nodes, weights = np.polynomial.hermite_e.hermegauss(120)
        rate = np.exp(centre[:, None] + spread[:, None] * nodes)
        mass = (scipy.stats.poisson.pmf(Y[:, None], rate) * weights).sum(1) / weights.sum()
        assert np.allclose(fitted.log_predictive_density(X, Y), np.log(mass), atol=1e-6)

    def test_probabilities_sum_to_one(self, fitted: GPCountRegressor) -> None:
        counts = np.arange(80)
        row = np.repeat(X[:1], 80, axis=0)
        logs = fitted.log_predictive_density(row, counts)
        assert np.exp(logs).sum() == pytest.approx(1.0, abs=1e-6)
        distribution = np.cumsum(np.exp(logs))
        for level in (0.1, 0.5, 0.9, 0.99):
            (quantile,) = fitted.predict_quantiles(X[:1], [level])[0]
            assert quantile == np.searchsorted(distribution, level)

    def test_intervals_are_whole_numbers_that_cover(self, fitted: GPCountRegressor) -> None:
        lower, upper = fitted.predict_interval(X, 0.9)
        assert np.array_equal(lower, np.floor(lower)) and (lower >= 0).all()
        fresh = np.random.default_rng(5).poisson(RATE, size=(200, 60))
        assert 0.85 < np.mean((lower <= fresh) & (fresh <= upper)) <= 1.0

    def test_samples(self, fitted: GPCountRegressor) -> None:
        samples = fitted.sample_y(X[:10], 20_000, random_state=0)
        mean, covariance = fitted.predict(X[:10], return_cov=True)
        assert np.array_equal(samples, np.floor(samples)) and (samples >= 0).all()
        assert np.allclose(samples.mean(1), mean, rtol=0.05)
        spread = np.sqrt(np.outer(np.diag(covariance), np.diag(covariance)))
        assert np.abs((np.cov(samples) - covariance) / spread).max() < 0.08

    def test_pieces_do_not_matter(self, exposed: GPCountRegressor) -> None:
        whole = exposed.predict(X, return_std=True, exposure=EXPOSURE)
        pieces = exposed.predict(X, return_std=True, exposure=EXPOSURE, batch_size=7)
        assert np.allclose(whole, pieces)


def test_rates_that_overflow_are_announced() -> None:
    rng = np.random.default_rng(0)
    inputs, counts = rng.uniform(-1, 1, (25, 1)), rng.poisson(3, 25)
    model = counter(kernel="matern32 * linear", mean="zero", optimizer=None).fit(inputs, counts)
    far = np.array([[0.5], [1e4]])
    with pytest.warns(ExtrapolationWarning) as caught:
        mean = model.predict(far)
    assert any("infinite mean or variance, the first in row 1" in str(w.message) for w in caught)
    assert np.isfinite(mean[0]) and np.isinf(mean[1])


class TestExposure:
    def test_rates_are_those_of_one_unit(self, exposed: GPCountRegressor) -> None:
        rate = exposed.predict(X)
        assert np.abs(rate / RATE - 1).mean() < 0.15
        assert np.allclose(exposed.predict(X, exposure=EXPOSURE), rate * EXPOSURE, rtol=1e-8)
        assert np.array_equal(exposed.predict(X, exposure=1.0), rate)
        latent = exposed.predict(X, latent=True)
        assert np.abs(np.exp(latent) / RATE - 1).mean() < 0.15

    def test_a_common_exposure_is_an_offset_of_the_mean(self) -> None:
        shifted = {**FIXED, "mean.constant": Fixed(1.0 + np.log(7.0))}
        options = {"optimizer": None, "hyperparameters": FIXED}
        by_exposure = counter(**options).fit(X, Y * 7, exposure=7.0)
        by_mean = counter(**options | {"hyperparameters": shifted}).fit(X, Y * 7)
        # log(t^y) is in both densities, whichever side it is counted on.
        assert by_exposure.elbo_ == pytest.approx(by_mean.elbo_, abs=1e-6)
        assert np.allclose(
            by_exposure.predict(X, latent=True), by_mean.predict(X, latent=True) - np.log(7.0)
        )
        assert np.allclose(by_exposure.predict(X, exposure=7.0), by_mean.predict(X))

    def test_predictions_with_exposure(self, exposed: GPCountRegressor) -> None:
        centre, spread = exposed.predict(X, latent=True, return_std=True)
        nodes, weights = np.polynomial.hermite_e.hermegauss(120)
        rate = EXPOSURE[:, None] * np.exp(centre[:, None] + spread[:, None] * nodes)
        mass = (scipy.stats.poisson.pmf(EXPOSED[:, None], rate) * weights).sum(1) / weights.sum()
        found = exposed.log_predictive_density(X, EXPOSED, exposure=EXPOSURE)
        assert np.allclose(found, np.log(mass), atol=1e-5)
        lower, upper = exposed.predict_interval(X, 0.95, exposure=EXPOSURE)
        assert np.mean((lower <= EXPOSED) & (upper >= EXPOSED)) > 0.9
        samples = exposed.sample_y(X[:5], 20_000, random_state=0, exposure=EXPOSURE[:5])
        expected = exposed.predict(X[:5], exposure=EXPOSURE[:5])
        assert np.allclose(samples.mean(1), expected, rtol=0.03)

    def test_score(self, fitted: GPCountRegressor, exposed: GPCountRegressor) -> None:
        assert fitted.score(X, Y) == pytest.approx(d2_tweedie_score(Y, fitted.predict(X), power=1))
        assert fitted.score(X, Y, np.arange(1.0, 61.0)) == pytest.approx(
            d2_tweedie_score(Y, fitted.predict(X), sample_weight=np.arange(1.0, 61.0), power=1)
        )
        found = exposed.score(X, EXPOSED, exposure=EXPOSURE)
        assert 0.5 < found <= 1.0
        common = EXPOSED.sum() / EXPOSURE.sum()
        rate = exposed.predict(X)

        def deviance(mean: Any) -> float:
            log = np.where(EXPOSED > 0, EXPOSED * np.log(np.maximum(EXPOSED, 1) / mean), 0.0)
            return float(2 * (log - EXPOSED + mean).sum())

        expected = 1 - deviance(rate * EXPOSURE) / deviance(common * EXPOSURE)
        assert found == pytest.approx(expected, rel=1e-8)


class TestCounts:
    def test_fractions_are_taken(self) -> None:
        model = counter(max_iter=5).fit(X, Y + 0.5)
        assert np.isfinite(model.elbo_) and model.score(X, Y + 0.5) > 0.3
        assert np.isfinite(model.log_predictive_density(X, Y + 0.5)).all()

    def test_zeros_only(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = counter().fit(X, np.zeros(60))
        rate = model.predict(X)
        assert (rate >= 0).all() and rate.max() < 0.5

    def test_large_counts(self) -> None:
        y = np.round(1e6 * RATE)
        model = counter(max_iter=10).fit(X, y)
        assert np.allclose(model.predict(X), y, rtol=0.02)

    def test_likelihood_objects(self, fitted: GPCountRegressor) -> None:
        assert counter(likelihood=PoissonLikelihood()).fit(X, Y).elbo_ == fitted.elbo_
        assert counter(likelihood="poisson").fit(X, Y).elbo_ == fitted.elbo_

    @pytest.mark.parametrize("approximation", ["exact", "inducing"])
    def test_integer_weights_are_repeated_rows(self, approximation: str) -> None:
        weights = np.random.default_rng(2).integers(0, 4, size=60)
        options = {"approximation": approximation, "num_inducing": 15, "max_iter": 5}
        by_weight = counter(**options).fit(X, EXPOSED, weights, exposure=EXPOSURE)
        repeated = counter(**options).fit(
            np.repeat(X, weights, axis=0),
            np.repeat(EXPOSED, weights),
            exposure=np.repeat(EXPOSURE, weights),
        )
        assert by_weight.elbo_ == pytest.approx(repeated.elbo_, rel=1e-6)
        assert np.allclose(by_weight.predict(X), repeated.predict(X), rtol=1e-4)

    def test_leave_one_out_against_refits(self) -> None:
        options = {"optimizer": None, "hyperparameters": FIXED}
        model = counter(**options).fit(X, EXPOSED, exposure=EXPOSURE)
        found = model.leave_one_out()
        for row in range(3, 57, 9):
            rest = np.delete(np.arange(60), row)
            refit = counter(**options).fit(X[rest], EXPOSED[rest], exposure=EXPOSURE[rest])
            extras = {"exposure": EXPOSURE[[row]]}
            mean, std = refit.predict(X[[row]], return_std=True, **extras)
            assert found.mean[row] == pytest.approx(mean[0], rel=0.05)
            assert found.std[row] == pytest.approx(std[0], rel=0.05)
            density = refit.log_predictive_density(X[[row]], EXPOSED[[row]], **extras)
            assert found.log_density[row] == pytest.approx(density[0], abs=0.05)
