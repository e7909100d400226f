"""What regression estimators predict, against closed forms, quadrature and brute force."""

from typing import Any

import numpy as np
import pytest
import scipy.stats
from scipy.spatial.distance import cdist

from gpvi.estimators import Fixed, GPRegressor, LeaveOneOut
from gpvi.exceptions import InputError, UnsupportedError

pytestmark = [
    pytest.mark.filterwarnings("ignore:The fit is not converged"),
    pytest.mark.filterwarnings("ignore::gpvi.exceptions.ExtrapolationWarning"),
]

GENERATOR = np.random.default_rng(0)
X = GENERATOR.uniform(10, 18, size=(40, 1))
Y = 300 + 50 * np.sin(X[:, 0]) + 10 * GENERATOR.normal(size=40)
NEW = np.linspace(10, 18, 25)[:, None]
KNOWN = GENERATOR.uniform(0, 400, size=40)

#: All hyperparameters of a model, in the units of the data.
LENGTHSCALE, AMPLITUDE, NOISE, MEAN = 1.3, 40.0**2, 11.0**2, 290.0
ALL_FIXED = {
    "lengthscale": Fixed(LENGTHSCALE),
    "outputscale": Fixed(AMPLITUDE),
    "noise": Fixed(NOISE),
    "mean.constant": Fixed(MEAN),
}


def regressor(**options: Any) -> GPRegressor:
    return GPRegressor(**{"random_state": 0, "max_iter": 40, "kernel": "rbf", **options})


def closed_form(
    train: np.ndarray, y: np.ndarray, new: np.ndarray, noise: Any = 0.0
) -> tuple[np.ndarray, np.ndarray, float]:
    """Mean and covariance of f, and the log evidence, by dense linear algebra."""

    def covariance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return AMPLITUDE * np.exp(-0.5 * cdist(a, b, "sqeuclidean") / LENGTHSCALE**2)

    total = covariance(train, train) + np.diag(NOISE + np.broadcast_to(noise, len(y)))
    cross = covariance(new, train)
    mean = MEAN + cross @ np.linalg.solve(total, y - MEAN)
    posterior = covariance(new, new) - cross @ np.linalg.solve(total, cross.T)
    evidence = scipy.stats.multivariate_normal(np.full(len(y), MEAN), total).logpdf(y)
    return mean, posterior, float(evidence)


@pytest.fixture(scope="module")
def fitted() -> GPRegressor:
    return regressor().fit(X, Y)


@pytest.fixture(scope="module")
def robust() -> GPRegressor:
    y = Y.copy()
    y[5] += 400
    return regressor(likelihood="student_t", max_iter=20).fit(X, y)


class TestClosedForms:
    @pytest.mark.parametrize("standardize", [True, False])
    @pytest.mark.parametrize("noise", [None, KNOWN])
    def test_exact_regression(self, standardize: bool, noise: Any) -> None:
        """Whatever the fit standardises, fixed hyperparameters mean what they say in data units."""
        model = regressor(standardize=standardize, hyperparameters=ALL_FIXED)
        model.fit(X, Y, noise_variance=noise)
        mean, covariance, evidence = closed_form(X, Y, NEW, 0.0 if noise is None else noise)
        found_mean, found_covariance = model.predict(NEW, return_cov=True, latent=True)
        assert np.allclose(found_mean, mean, rtol=1e-6)
        assert np.allclose(found_covariance, covariance, atol=1e-4 * AMPLITUDE)
        assert model.elbo_ == pytest.approx(evidence, abs=1e-3)
        std = model.predict(NEW, return_std=True)[1]
        assert np.allclose(std**2, np.diag(covariance) + NOISE, rtol=1e-4)

    def test_inducing_points_at_all_rows_are_exact(self) -> None:
        model = regressor(hyperparameters=ALL_FIXED, optimizer=None, approximation="inducing")
        model.fit(X, Y)
        mean, covariance, evidence = closed_form(X, Y, NEW)
        found, std = model.predict(NEW, latent=True, return_std=True)
        assert np.allclose(found, mean, atol=0.05)
        assert np.allclose(std**2, np.diag(covariance), atol=0.5)
        assert model.elbo_ == pytest.approx(evidence, abs=0.05)

    @pytest.mark.parametrize("standardize", [True, False])
    @pytest.mark.parametrize("noise", [None, KNOWN])
    def test_leave_one_out(self, standardize: bool, noise: Any) -> None:
        options = {"standardize": standardize, "hyperparameters": ALL_FIXED, "optimizer": None}
        known = np.zeros(40) if noise is None else noise
        found = regressor(**options).fit(X, Y, noise_variance=noise).leave_one_out()
        assert isinstance(found, LeaveOneOut)
        for row in range(40):
            rest = np.delete(np.arange(40), row)
            mean, covariance, _ = closed_form(X[rest], Y[rest], X[[row]], known[rest])
            std = float(np.sqrt(covariance[0, 0] + NOISE + known[row]))
            assert found.mean[row] == pytest.approx(mean[0], rel=1e-6)
            assert found.std[row] == pytest.approx(std, rel=1e-6)
            density = scipy.stats.norm(mean[0], std).logpdf(Y[row])
            assert found.log_density[row] == pytest.approx(density, abs=1e-6)
        assert found.total_log_density == pytest.approx(found.log_density.sum())

    def test_leave_one_out_by_refits(self) -> None:
        options = {"hyperparameters": ALL_FIXED, "optimizer": None}
        found = regressor(**options).fit(X, Y).leave_one_out()
        for row in (0, 17, 39):
            rest = np.delete(np.arange(40), row)
            refit = regressor(**options).fit(X[rest], Y[rest])
            mean, std = refit.predict(X[[row]], return_std=True)
            assert found.mean[row] == pytest.approx(mean[0], rel=1e-6)
            assert found.std[row] == pytest.approx(std[0], rel=1e-6)

    def test_leave_one_out_of_a_heavy_row_leaves_all_its_repeats(self) -> None:
        weights = np.ones(40)
        weights[7] = 3.0
        options = {"hyperparameters": ALL_FIXED, "optimizer": None}
        found = regressor(**options).fit(X, Y, weights).leave_one_out()
        rest = np.delete(np.arange(40), 7)
        mean, _, _ = closed_form(X[rest], Y[rest], X[[7]])
        assert found.mean[7] == pytest.approx(mean[0], rel=1e-6)

    def test_leave_one_out_marks_rows_that_were_not_fitted(self) -> None:
        weights = np.ones(40)
        weights[3] = 0.0
        found = regressor(max_iter=3).fit(X, Y, weights).leave_one_out()
        for values in (found.mean, found.std, found.log_density):
            assert values.shape == (40,) and np.flatnonzero(np.isnan(values)).tolist() == [3]

    @pytest.mark.parametrize("likelihood", ["gaussian", "student_t"])
    def test_leave_one_out_of_inducing_points(self, likelihood: str) -> None:
        model = regressor(
            approximation="inducing", num_inducing=15, likelihood=likelihood, max_iter=10
        ).fit(X, Y)
        found = model.leave_one_out()
        assert np.corrcoef(found.mean, Y)[0, 1] > 0.9
        inside = model.log_predictive_density(X, Y)
        assert found.total_log_density < inside.sum()

    def test_minibatches_have_no_rows_to_leave_out(self) -> None:
        model = regressor(batch_size=10, num_inducing=8, max_iter=3).fit(X, Y)
        with pytest.raises(UnsupportedError, match="leave_one_out and this fit of GPRegressor"):
            model.leave_one_out()


class TestNoise:
    def test_known_noise_is_added_to_the_learned_one(self, fitted: GPRegressor) -> None:
        plain = fitted.predict(NEW, return_std=True)[1]
        noisy = fitted.predict(NEW, return_std=True, noise_variance=100.0)[1]
        assert np.allclose(noisy**2, plain**2 + 100.0)
        covariance = fitted.predict(NEW, return_cov=True, noise_variance=np.arange(25.0))[1]
        assert np.allclose(np.diag(covariance), plain**2 + np.arange(25.0))
        latent = fitted.predict(NEW, return_cov=True, latent=True)[1]
        off = ~np.eye(25, dtype=bool)
        assert np.allclose(covariance[off], latent[off])

    def test_known_noise_of_the_rows_says_nothing_about_new_ones(self) -> None:
        model = regressor(hyperparameters=ALL_FIXED).fit(X, Y, noise_variance=KNOWN)
        std = model.predict(NEW, return_std=True)[1]
        latent = model.predict(NEW, return_std=True, latent=True)[1]
        assert np.allclose(std**2, latent**2 + NOISE)

    def test_rows_with_more_noise_count_less(self) -> None:
        y = Y.copy()
        y[:10] += 500.0
        noise = np.where(np.arange(40) < 10, 1e8, 0.0)
        clean = regressor().fit(X[10:], Y[10:])
        model = regressor().fit(X, y, noise_variance=noise)
        assert np.allclose(model.predict(X[10:]), clean.predict(X[10:]), atol=2.0)

    def test_one_number_for_all_rows(self) -> None:
        by_number = regressor(max_iter=3).fit(X, Y, noise_variance=25.0)
        by_row = regressor(max_iter=3).fit(X, Y, noise_variance=np.full(40, 25.0))
        assert by_number.elbo_ == by_row.elbo_


class TestDistributions:
    def test_covariance_and_deviation_agree(self, fitted: GPRegressor, robust: GPRegressor) -> None:
        for model in (fitted, robust):
            for latent in (False, True):
                mean, std = model.predict(NEW, return_std=True, latent=latent)
                same, covariance = model.predict(NEW, return_cov=True, latent=latent)
                assert np.allclose(same, mean, rtol=1e-6)
                assert np.allclose(np.sqrt(np.diag(covariance)), std, rtol=1e-4)
                assert np.allclose(covariance, covariance.T)
                assert np.linalg.eigvalsh(covariance).min() > -1e-6 * covariance.max()
            assert np.array_equal(model.predict(NEW), model.predict(NEW, return_std=True)[0])

    def test_quantiles_of_gaussian_noise(self, fitted: GPRegressor) -> None:
        mean, std = fitted.predict(NEW, return_std=True)
        levels = (0.001, 0.25, 0.5, 0.9)
        found = fitted.predict_quantiles(NEW, levels)
        expected = mean[:, None] + std[:, None] * scipy.stats.norm.ppf(levels)
        assert found.shape == (25, 4) and np.allclose(found, expected, rtol=1e-8)
        lower, upper = fitted.predict_interval(NEW, 0.8)
        assert np.allclose(
            np.column_stack([lower, upper]), fitted.predict_quantiles(NEW, (0.1, 0.9))
        )
        assert fitted.predict_quantiles(NEW).shape == (25, 3)

    def test_quantiles_of_heavy_tails(self, robust: GPRegressor) -> None:
        samples = robust.sample_y(NEW[:3], 20_000, random_state=0)
        levels = np.array([0.05, 0.5, 0.95])
        found = robust.predict_quantiles(NEW[:3], levels)
        reached = (samples[:, :, None] <= found[:, None]).mean(1)
        assert np.abs(reached - levels).max() < 0.01
        outer = robust.predict_interval(NEW, 0.99)
        inner = robust.predict_interval(NEW, 0.5)
        assert (outer[0] < inner[0]).all() and (inner[1] < outer[1]).all()

    def test_intervals_cover(self, fitted: GPRegressor) -> None:
        generator = np.random.default_rng(9)
        grid = generator.uniform(10, 18, size=(400, 1))
        y = 300 + 50 * np.sin(grid[:, 0]) + 10 * generator.normal(size=400)
        for coverage in (0.5, 0.9):
            lower, upper = fitted.predict_interval(grid, coverage)
            assert np.mean((lower <= y) & (y <= upper)) == pytest.approx(coverage, abs=0.1)

    def test_log_density_of_gaussian_noise(self, fitted: GPRegressor) -> None:
        mean, std = fitted.predict(X, return_std=True)
        expected = scipy.stats.norm(mean, std).logpdf(Y)
        assert np.allclose(fitted.log_predictive_density(X, Y), expected, rtol=1e-8)

    def test_log_density_of_heavy_tails_by_quadrature(self, robust: GPRegressor) -> None:
        mean, std = robust.predict(X, latent=True, return_std=True)
        table = {row.name.split(".")[-1]: row.value for row in robust.summary().hyperparameters}
        noise = scipy.stats.t(table["degrees_of_freedom"], scale=table["scale"])
        nodes, weights = np.polynomial.hermite_e.hermegauss(300)
        f = mean[:, None] + std[:, None] * nodes
        values = np.log((noise.pdf(Y[:, None] - f) * weights).sum(1) / weights.sum())
        assert np.allclose(robust.log_predictive_density(X, Y), values, atol=1e-4)

    def test_densities_integrate_to_one(self, robust: GPRegressor) -> None:
        grid = np.linspace(-3000, 3600, 6001)
        density = robust.log_predictive_density(np.repeat(X[:1], 6001, axis=0), grid)
        assert np.trapezoid(np.exp(density), grid) == pytest.approx(1.0, abs=1e-3)

    def test_score_is_r_squared(self, fitted: GPRegressor) -> None:
        residual = Y - fitted.predict(X)
        expected = 1 - (residual**2).sum() / ((Y - Y.mean()) ** 2).sum()
        assert fitted.score(X, Y) == pytest.approx(expected)

    @pytest.mark.parametrize("size", [1, 7, 10_000])
    def test_pieces_do_not_matter(self, fitted: GPRegressor, size: int) -> None:
        whole = fitted.predict(NEW, return_std=True)
        assert np.allclose(fitted.predict(NEW, return_std=True, batch_size=size), whole, rtol=1e-9)
        for call in (fitted.predict_quantiles, fitted.predict_interval):
            assert np.allclose(call(NEW, batch_size=size), call(NEW), rtol=1e-9)
        noise = np.arange(25.0)
        pieces = fitted.predict(NEW, return_std=True, noise_variance=noise, batch_size=size)
        assert np.allclose(
            pieces, fitted.predict(NEW, return_std=True, noise_variance=noise), rtol=1e-9
        )


class TestSamples:
    def test_moments(self, fitted: GPRegressor, robust: GPRegressor) -> None:
        samples = fitted.sample_y(NEW, 20_000, random_state=0)
        mean, covariance = fitted.predict(NEW, return_cov=True)
        assert samples.shape == (25, 20_000)
        error = np.sqrt(np.diag(covariance) / 20_000)
        assert np.abs((samples.mean(1) - mean) / error).max() < 4.5
        spread = np.sqrt(np.outer(np.diag(covariance), np.diag(covariance)))
        assert np.abs((np.cov(samples) - covariance) / spread).max() < 0.05
        heavy = robust.sample_y(NEW, 5_000, random_state=0)
        assert np.allclose(np.median(heavy, 1), robust.predict(NEW), atol=3.0)

    def test_known_noise(self, fitted: GPRegressor) -> None:
        noise = np.where(np.arange(25) < 12, 0.0, 1e4)
        samples = fitted.sample_y(NEW, 4_000, random_state=0, noise_variance=noise)
        _, std = fitted.predict(NEW, return_std=True, noise_variance=noise)
        assert np.allclose(samples.std(1), std, rtol=0.06)

    def test_seeds(self, fitted: GPRegressor) -> None:
        first, second = (fitted.sample_y(NEW, 3, random_state=5) for _ in range(2))
        assert np.array_equal(first, second)
        assert not np.array_equal(first, fitted.sample_y(NEW, 3, random_state=6))
        state = np.random.RandomState(5)
        draws = [fitted.sample_y(NEW, 3, random_state=state) for _ in range(2)]
        assert not np.array_equal(*draws)

    def test_a_row_twice_has_one_function_value_and_two_noises(self, fitted: GPRegressor) -> None:
        samples = fitted.sample_y(np.repeat(NEW[:1], 2, axis=0), 4_000, random_state=0)
        latent = fitted.predict(NEW[:1], latent=True, return_std=True)[1][0] ** 2
        total = fitted.predict(NEW[:1], return_std=True)[1][0] ** 2
        assert np.cov(samples)[0, 1] == pytest.approx(latent, abs=0.05 * total)
        assert np.var(samples[0] - samples[1]) == pytest.approx(2 * (total - latent), rel=0.1)


def test_latent_predictions_have_neither_noise_nor_extras(fitted: GPRegressor) -> None:
    mean, std = fitted.predict(NEW, return_std=True)
    f, spread = fitted.predict(NEW, return_std=True, latent=True)
    assert np.allclose(f, mean) and (spread < std).all()
    with pytest.raises(InputError, match="latent=True and noise_variance:"):
        fitted.predict(NEW, latent=True, noise_variance=1.0)
