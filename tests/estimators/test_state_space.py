"""`approximation="state_space"`: the answers of exact conditioning, in linear time, for one column."""

from pathlib import Path
from typing import Any

import gpytorch
import numpy as np
import pytest
import torch

from gpvi.approximations import Exact, InducingPoints, SparseInverseCholesky, StateSpace
from gpvi.estimators import GPClassifier, GPCountRegressor, GPRegressor
from gpvi.estimators.choosing import choose, dense_limit, exact_states
from gpvi.exceptions import InputError, UnsupportedError
from gpvi.kernels import parse_kernel

pytestmark = pytest.mark.filterwarnings("ignore::gpvi.exceptions.GPVIWarning")

ESTIMATORS = (GPRegressor, GPCountRegressor, GPClassifier)
NEW = np.array([[-4.0], [-1.0], [0.3], [0.3], [2.9], [4.5]])


def data(cls: type, size: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Unsorted stamps, some of them twice."""
    generator = np.random.default_rng(0)
    X = generator.uniform(-3, 3, (size, 1))
    X[5:9] = X[:4]
    f = np.sin(2 * X[:, 0])
    if cls is GPRegressor:
        return X, f + 0.2 * generator.standard_normal(size)
    if cls is GPCountRegressor:
        return X, generator.poisson(np.exp(1 + f))
    return X, np.digitize(f, [-0.4, 0.4])


def pair(cls: Any, kernel: Any = "matern52", **options: Any) -> tuple[Any, Any]:
    X, y = data(cls)
    options = {"kernel": kernel, "max_iter": 5, "random_state": 0} | options
    return tuple(cls(approximation=a, **options).fit(X, y) for a in ("state_space", "exact"))


def predictions(model: Any, X: np.ndarray = NEW) -> np.ndarray:
    if isinstance(model, GPClassifier):
        return model.predict_proba(X)
    return np.stack(model.predict(X, return_std=True))


class TestEqualsExact:
    @pytest.mark.parametrize("cls", ESTIMATORS)
    @pytest.mark.parametrize("kernel", ["matern32 + linear", "matern12 * constant + constant"])
    def test_predictions(self, cls: type, kernel: str) -> None:
        fast, exact = pair(cls, kernel)
        assert isinstance(fast.approximation_, StateSpace)
        assert fast.elbo_ == pytest.approx(exact.elbo_, abs=1e-7)
        np.testing.assert_allclose(predictions(fast), predictions(exact), atol=1e-7)

    @pytest.mark.parametrize("cls", ESTIMATORS)
    def test_leave_one_out(self, cls: type) -> None:
        fast, exact = (model.leave_one_out() for model in pair(cls))
        np.testing.assert_allclose(fast.log_density, exact.log_density, atol=1e-7)

    def test_covariance_and_joint_samples(self) -> None:
        fast, exact = pair(GPRegressor)
        for latent in (False, True):
            found, wanted = (
                model.predict(NEW, return_cov=True, latent=latent)[1] for model in (fast, exact)
            )
            np.testing.assert_allclose(found, wanted, atol=1e-9)
        samples = fast.sample_y(NEW, 20_000, random_state=1)
        np.testing.assert_allclose(
            np.cov(samples), fast.predict(NEW, return_cov=True)[1], atol=0.04
        )
        # New observations at one stamp differ by their noise.
        assert not np.allclose(samples[2], samples[3])

    @pytest.mark.parametrize("cls", ESTIMATORS)
    def test_many_rows_are_sampled_as_paths(self, cls: type) -> None:
        """Beyond some hundred rows no covariance matrix is formed; the law stays the same."""
        fast, _ = pair(cls)
        many = np.linspace(NEW.min(), NEW.max(), 600)[:, None]
        samples = fast.sample_y(many, 600, random_state=1)
        assert samples.shape == (600, 600)
        np.testing.assert_array_equal(samples, fast.sample_y(many, 600, random_state=1))
        if cls is GPRegressor:
            mean, std = fast.predict(many, return_std=True)
            np.testing.assert_allclose(samples.mean(1), mean, atol=6 * std.max() / 600**0.5)
            np.testing.assert_allclose(samples.std(1), std, rtol=0.2)
            covariance = fast.predict(many[::100], return_cov=True)[1]
            np.testing.assert_allclose(
                np.cov(samples[::100]), covariance, atol=0.3 * std.max() ** 2
            )

    @pytest.mark.parametrize("cls", ESTIMATORS)
    def test_functions(self, cls: type) -> None:
        fast, _ = pair(cls)
        functions = fast.sample_functions(400, random_state=0, num_features=200)
        values = functions(NEW)
        assert np.isfinite(values).all()
        np.testing.assert_array_equal(values[2], values[3])
        if cls is GPRegressor:
            mean, std = fast.predict(NEW, return_std=True, latent=True)
            np.testing.assert_allclose(values.mean(1), mean, atol=0.25 * std.max())

    def test_weights_noise_and_missing_targets(self) -> None:
        X, y = data(GPRegressor)
        y[[3, 17]] = np.nan
        generator = np.random.default_rng(1)
        extras = {
            "sample_weight": generator.integers(0, 3, len(y)),
            "noise_variance": generator.uniform(0, 0.1, len(y)),
        }
        models = [
            GPRegressor(
                approximation=a, allow_missing_targets=True, max_iter=5, random_state=0
            ).fit(X, y, **extras)
            for a in ("state_space", "exact")
        ]
        np.testing.assert_allclose(*(predictions(model) for model in models), atol=1e-7)
        assert np.isnan(models[0].leave_one_out().mean[[3, 17]]).all()

    def test_a_missing_target_is_a_row_that_is_not_there(self) -> None:
        X, y = data(GPRegressor)
        options = {"approximation": "state_space", "max_iter": 5, "random_state": 0}
        without = GPRegressor(**options).fit(np.delete(X, 7, 0), np.delete(y, 7))
        y[7] = np.nan
        with_it = GPRegressor(**options, allow_missing_targets=True).fit(X, y)
        np.testing.assert_allclose(predictions(with_it), predictions(without), rtol=1e-12)

    def test_single_precision(self) -> None:
        fast, exact = pair(GPRegressor, dtype="float32")
        np.testing.assert_allclose(predictions(fast), predictions(exact), atol=1e-2)

    @pytest.mark.parametrize("cls", ESTIMATORS)
    def test_saving(self, cls: Any, tmp_path: Path) -> None:
        X, y = data(cls)
        model = cls("matern32 + linear", approximation="state_space", max_iter=3).fit(X, y)
        model.save(tmp_path / "model.gpvi")
        loaded = cls.load(tmp_path / "model.gpvi")
        np.testing.assert_array_equal(predictions(loaded), predictions(model))
        np.testing.assert_array_equal(
            loaded.leave_one_out().log_density, model.leave_one_out().log_density
        )

    def test_rows_at_a_time(self) -> None:
        fast, _ = pair(GPRegressor)
        whole = fast.predict(NEW, return_std=True)
        pieces = fast.predict(NEW, return_std=True, batch_size=2)
        np.testing.assert_allclose(pieces, whole, rtol=1e-12)


def choice(spec: Any = "auto", kernel: str = "matern52", columns: int = 1, **changes: Any) -> Any:
    options = {
        "num_rows": 600,
        "num_inducing": None,
        "batch_size": None,
        "gaussian": True,
        "num_latents": 1,
    }
    return choose(
        spec,
        kernel=parse_kernel(kernel, columns),
        num_features=columns,
        **(options | changes),
    )


class TestChoice:
    def test_auto_takes_it_above_the_limit(self) -> None:
        assert isinstance(choice(num_rows=500).approximation, Exact)
        found = choice(num_rows=501)
        assert isinstance(found.approximation, StateSpace)
        assert found.reason.startswith("auto: one column, 501 rows are more than 500")

    def test_auto_with_other_likelihoods(self) -> None:
        assert isinstance(choice(num_rows=292, gaussian=False).approximation, Exact)
        assert isinstance(choice(num_rows=293, gaussian=False).approximation, StateSpace)

    def test_many_states_wait_longer(self) -> None:
        assert dense_limit(True, 3) == dense_limit(True, 15) == 500
        assert dense_limit(True, 120) == 2_000

    @pytest.mark.parametrize(
        "kernel", ["matern12", "matern32 + linear", "periodic", "matern52 * periodic + constant"]
    )
    def test_exact_forms(self, kernel: str) -> None:
        assert exact_states(parse_kernel(kernel, 1)) is not None

    @pytest.mark.parametrize("kernel", ["rbf", "matern52 + rbf", "rational_quadratic", "hamming"])
    def test_other_kernels(self, kernel: str) -> None:
        assert exact_states(parse_kernel(kernel, 1)) is None
        assert isinstance(choice(kernel=kernel).approximation, Exact)
        assert isinstance(choice(kernel=kernel, num_rows=2_001).approximation, InducingPoints)

    def test_spectral_mixtures_are_approximated(self) -> None:
        assert exact_states(gpytorch.kernels.SpectralMixtureKernel(num_mixtures=2)) is None

    def test_several_columns_never_take_it(self) -> None:
        assert isinstance(choice(columns=2).approximation, Exact)
        assert isinstance(choice(columns=2, num_rows=2_001).approximation, SparseInverseCholesky)
        assert isinstance(choice(columns=4, num_rows=2_001).approximation, InducingPoints)

    def test_what_speaks_of_inducing_points_gets_them(self) -> None:
        changes = {"num_rows": 5_000}
        assert isinstance(choice(**changes, num_inducing=50).approximation, InducingPoints)
        assert isinstance(choice(**changes, batch_size=50).approximation, InducingPoints)

    def test_by_name(self) -> None:
        found = choice("state_space", num_rows=10, num_inducing=5)
        assert isinstance(found.approximation, StateSpace)
        assert found.reason == "asked for; num_inducing=5 is not used"

    def test_rbf_by_name(self) -> None:
        assert isinstance(choice("state_space", kernel="rbf").approximation, StateSpace)

    def test_summary(self) -> None:
        X, y = data(GPRegressor)
        summary = GPRegressor(approximation="state_space", max_iter=0).fit(X, y).summary()
        assert summary.approximation == "StateSpace with 3 states"
        assert "asked for" in str(summary)

    def test_auto_of_an_estimator(self) -> None:
        generator = np.random.default_rng(0)
        X = generator.uniform(0, 50, (600, 1))
        y = np.sin(X[:, 0]) + 0.1 * generator.standard_normal(600)
        model = GPRegressor(max_iter=2, random_state=0).fit(X, y)
        assert isinstance(model.approximation_, StateSpace)
        exact = GPRegressor(approximation="exact", max_iter=2, random_state=0).fit(X, y)
        np.testing.assert_allclose(predictions(model), predictions(exact), atol=1e-6)


class TestRefusals:
    def test_several_columns(self) -> None:
        X, y = data(GPRegressor)
        with pytest.raises(InputError, match="X with 2 columns: state space is for one column"):
            GPRegressor(approximation="state_space").fit(np.hstack([X, X]), y)

    def test_one_column_of_several_by_an_object(self) -> None:
        X, y = data(GPRegressor)
        kernel = gpytorch.kernels.MaternKernel(nu=1.5, active_dims=(1,))
        wide = np.hstack([np.zeros_like(X), X])
        model = GPRegressor(kernel, approximation=StateSpace(time_dim=1), max_iter=2).fit(wide, y)
        assert np.isfinite(model.predict(wide)).all()

    @pytest.mark.parametrize("kernel", ["rational_quadratic", "matern52 + white"])
    def test_kernels_without_a_form(self, kernel: str) -> None:
        X, y = data(GPRegressor)
        with pytest.raises(UnsupportedError, match="has no state-space form"):
            GPRegressor(kernel, approximation="state_space").fit(X, y)

    def test_a_column_of_categories(self) -> None:
        X, y = data(GPRegressor)
        codes = np.round(X)
        with pytest.raises(UnsupportedError, match="categories have no time axis"):
            GPRegressor(approximation="state_space", categorical_features=[0]).fit(codes, y)
        assert GPRegressor(categorical_features=[0], max_iter=1).fit(codes, y).elbo_

    def test_minibatches(self) -> None:
        X, y = data(GPRegressor)
        with pytest.raises(UnsupportedError, match="batch_size and StateSpace"):
            GPRegressor(approximation="state_space", batch_size=10).fit(X, y)

    def test_unknown_name(self) -> None:
        X, y = data(GPRegressor)
        with pytest.raises(InputError, match="'state_space'"):
            GPRegressor(approximation="state space").fit(X, y)

    def test_times_that_are_not_finite(self) -> None:
        X, y = data(GPRegressor)
        X[2] = np.nan
        with pytest.raises(InputError, match="NaN"):
            GPRegressor(approximation="state_space").fit(X, y)


def test_latents_of_a_classifier_are_a_batch() -> None:
    X, y = data(GPClassifier)
    model = GPClassifier(approximation="state_space", max_iter=1).fit(X, y)
    moments = model.posterior_.predict(torch.zeros(4, 1, dtype=torch.float64))
    assert moments.mean.shape == (3, 4)
