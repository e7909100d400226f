"""`approximation="sic"`: predictions near the exact ones, from a few neighbours of every row."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpvi.approximations import Exact, InducingPoints, SparseInverseCholesky, StateSpace
from gpvi.estimators import GPClassifier, GPCountRegressor, GPRegressor, choosing
from gpvi.estimators.choosing import choose
from gpvi.exceptions import AccuracyWarning, InputError
from gpvi.kernels import parse_kernel

pytestmark = pytest.mark.filterwarnings(
    "ignore::gpvi.exceptions.ConvergenceWarning", "ignore::gpvi.exceptions.EngineWarning"
)

ESTIMATORS = (GPRegressor, GPClassifier, GPCountRegressor)
NEW = np.random.default_rng(1).uniform(-2, 2, size=(40, 2))


def surface(X: np.ndarray) -> np.ndarray:
    return np.sin(2 * X[:, 0]) + 0.5 * np.cos(3 * X[:, 1])


def data(cls: type, size: int = 300) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    X = generator.uniform(-2, 2, size=(size, 2))
    f = surface(X)
    if cls is GPRegressor:
        return X, 10 + 3 * (f + 0.2 * generator.standard_normal(size))
    if cls is GPCountRegressor:
        return X, generator.poisson(np.exp(1 + f))
    return X, np.where(f + 0.3 * generator.standard_normal(size) > 0, "up", "down")


def model(cls: Any, approximation: Any = "sic", **options: Any) -> Any:
    # Few iterations do: both see the same data and start from the same values.
    settings = {"kernel": "matern32", "max_iter": 15, "random_state": 0} | options
    return cls(approximation=approximation, **settings)


def predictions(fitted: Any, X: np.ndarray = NEW) -> np.ndarray:
    if isinstance(fitted, GPClassifier):
        return fitted.predict_proba(X)
    return np.stack(fitted.predict(X, return_std=True))


class TestPredictions:
    @pytest.mark.parametrize("cls", ESTIMATORS)
    def test_are_near_the_exact_ones(self, cls: type) -> None:
        X, y = data(cls)
        fast, exact = (model(cls, name).fit(X, y) for name in ("sic", "exact"))
        assert isinstance(fast.approximation_, SparseInverseCholesky)
        scale = {GPRegressor: 3.0, GPClassifier: 1.0, GPCountRegressor: 3.0}[cls]
        assert np.abs(predictions(fast) - predictions(exact)).max() < 0.05 * scale
        assert fast.elbo_ == pytest.approx(exact.elbo_, abs=0.01 * len(y))

    def test_three_classes(self) -> None:
        X, _ = data(GPClassifier, 200)
        y = np.digitize(surface(X), [-0.4, 0.4])
        fast, exact = (model(GPClassifier, name, max_iter=3).fit(X, y) for name in ("sic", "exact"))
        assert fast.elbo_ == pytest.approx(exact.elbo_, abs=1.0)
        np.testing.assert_allclose(predictions(fast), predictions(exact), atol=0.02)

    def test_covariance_is_full(self) -> None:
        X, y = data(GPRegressor)
        fast, exact = (model(GPRegressor, name).fit(X, y) for name in ("sic", "exact"))
        near = np.stack([NEW[0], NEW[0] + 0.02, NEW[1]])
        for latent in (True, False):
            found, wanted = (
                m.predict(near, return_cov=True, latent=latent)[1] for m in (fast, exact)
            )
            np.testing.assert_allclose(found, wanted, rtol=0.1, atol=0.02)
        covariance = fast.predict(near, return_cov=True, latent=True)[1]
        assert covariance[0, 1] > 0.8 * covariance[0, 0]
        samples = fast.sample_y(near, 5_000, random_state=0)
        np.testing.assert_allclose(
            np.cov(samples), fast.predict(near, return_cov=True)[1], rtol=0.15, atol=0.04
        )

    @pytest.mark.parametrize("cls", ESTIMATORS)
    def test_leave_one_out_and_functions(self, cls: type) -> None:
        X, y = data(cls, 150)
        fast, exact = (model(cls, name, max_iter=5).fit(X, y) for name in ("sic", "exact"))
        found, wanted = (m.leave_one_out().log_density for m in (fast, exact))
        assert np.abs(found - wanted).mean() < 0.05
        functions = fast.sample_functions(3, random_state=0)
        assert np.isfinite(np.asarray(functions(NEW))).all()

    def test_single_precision(self) -> None:
        X, y = data(GPRegressor)
        single, double = (
            model(GPRegressor, dtype=dtype).fit(X, y) for dtype in ("float32", "float64")
        )
        mean = single.predict(NEW)
        assert np.abs(mean - double.predict(NEW)).max() < 0.1
        covariance = single.predict(NEW, return_cov=True)[1]
        assert np.isfinite(covariance).all() and np.linalg.eigvalsh(covariance).min() > 0


class TestRows:
    def test_missing_targets(self) -> None:
        X, y = data(GPRegressor, 150)
        gone = np.arange(150) % 4 == 0
        partly = model(GPRegressor, allow_missing_targets=True, max_iter=6)
        partly.fit(X, np.where(gone, np.nan, y))
        rest = model(GPRegressor, max_iter=6).fit(X[~gone], y[~gone])
        # Inputs are scaled by all rows, and their order is that of all rows.
        assert np.abs(partly.predict(NEW) - rest.predict(NEW)).max() < 0.3

    def test_integer_weights_are_repeated_rows(self) -> None:
        X, y = data(GPRegressor, 120)
        weights = 1 + (np.arange(120) % 3 == 0)
        options = {"standardize": False, "max_iter": 6}
        weighted = model(GPRegressor, **options).fit(X, y, sample_weight=weights)
        index = np.repeat(np.arange(120), weights)
        repeated = model(GPRegressor, **options).fit(X[index], y[index])
        assert weighted.elbo_ == pytest.approx(repeated.elbo_, rel=1e-4)
        np.testing.assert_allclose(predictions(weighted), predictions(repeated), rtol=1e-3)

    def test_zero_weights_leave_rows_out(self) -> None:
        X, y = data(GPRegressor, 120)
        weights = np.ones(120)
        weights[:30] = 0.0
        wrong = y.copy()
        wrong[:30] = 1e3
        options = {"max_iter": 6, "standardize": False}
        first, second = (
            model(GPRegressor, **options).fit(X, targets, sample_weight=weights)
            for targets in (y, wrong)
        )
        np.testing.assert_allclose(predictions(first), predictions(second), rtol=1e-6)

    def test_noise_per_row(self) -> None:
        X, y = data(GPRegressor, 150)
        noise = np.linspace(0.01, 3.0, 150)
        fast, exact = (
            model(GPRegressor, name, max_iter=8).fit(X, y, noise_variance=noise)
            for name in ("sic", "exact")
        )
        assert np.abs(fast.predict(NEW) - exact.predict(NEW)).max() < 0.2

    def test_duplicates(self) -> None:
        X, y = data(GPRegressor, 120)
        X[100:] = X[:20]
        fast, exact = (model(GPRegressor, name, max_iter=8).fit(X, y) for name in ("sic", "exact"))
        assert fast.posterior_.prior.num_basis == 100
        assert np.abs(fast.predict(NEW) - exact.predict(NEW)).max() < 0.15
        assert "100 locations of 120 rows" in str(fast.summary())

    def test_many_columns(self) -> None:
        X, y = data(GPRegressor, 60)
        wide = np.concatenate([X, np.random.default_rng(2).normal(size=(60, 12))], -1)
        with pytest.warns(AccuracyWarning, match="14 input columns"):
            fitted = model(GPRegressor, max_iter=2).fit(wide, y)
        assert np.isfinite(fitted.predict(wide[:3])).all()


class TestReports:
    @pytest.mark.parametrize("cls", ESTIMATORS)
    def test_saving(self, cls: type, tmp_path: Path) -> None:
        X, y = data(cls, 100)
        approximation = SparseInverseCholesky(9, refresh_every=2, seed=2)
        fitted = model(cls, approximation, max_iter=4).fit(X, y)
        fitted.save(tmp_path / "model")
        loaded = cls.load(tmp_path / "model")
        np.testing.assert_array_equal(predictions(loaded), predictions(fitted))
        assert loaded.approximation_.options == fitted.approximation_.options
        assert str(loaded.summary()) == str(fitted.summary())
        if cls is GPRegressor:
            np.testing.assert_array_equal(
                *(m.predict(NEW, return_cov=True)[1] for m in (loaded, fitted))
            )

    def test_summary(self) -> None:
        X, y = data(GPRegressor, 100)
        summary = model(GPRegressor, max_iter=3).fit(X, y).summary()
        wanted = "SparseInverseCholesky with 30 neighbours at 100 locations of 100 rows"
        assert summary.approximation == wanted
        assert wanted in str(summary)

    def test_same_seed_same_fit(self) -> None:
        X, y = data(GPRegressor, 100)
        first, second = (model(GPRegressor, max_iter=5).fit(X, y) for _ in range(2))
        np.testing.assert_array_equal(predictions(first), predictions(second))

    def test_an_object_is_copied(self) -> None:
        X, y = data(GPRegressor, 80)
        approximation = SparseInverseCholesky(5)
        fitted = model(GPRegressor, approximation, max_iter=2).fit(X, y)
        assert fitted.approximation_ is not approximation
        assert fitted.approximation_.options == approximation.options


class TestChoice:
    def chosen(self, kernel: str, columns: int, **options: Any) -> Any:
        settings = {"num_rows": 101, "num_inducing": None, "batch_size": None}
        settings |= {"gaussian": True, "num_latents": 1}
        return choose(
            "auto",
            kernel=parse_kernel(kernel, columns),
            num_features=columns,
            **(settings | options),
        )

    @pytest.fixture(autouse=True)
    def small_limit(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(choosing, "_MAX_EXACT_ROWS", 100)

    @pytest.mark.parametrize("kernel", ["matern12", "matern32", "matern52", "matern32 * matern52"])
    @pytest.mark.parametrize("columns", [2, 3])
    def test_few_columns_and_rough_kernels(self, kernel: str, columns: int) -> None:
        choice = self.chosen(kernel, columns)
        assert isinstance(choice.approximation, SparseInverseCholesky)
        assert "101 rows are more than 100" in choice.reason and "neighbours" in choice.reason
        assert isinstance(self.chosen(kernel, columns, num_rows=100).approximation, Exact)

    @pytest.mark.parametrize(
        ("kernel", "columns"),
        [
            ("rbf", 2),
            ("matern32 + rbf", 2),
            ("matern32 + linear", 2),
            ("matern32", 4),
            ("linear", 2),
        ],
    )
    def test_elsewhere_inducing_points(self, kernel: str, columns: int) -> None:
        assert isinstance(self.chosen(kernel, columns).approximation, InducingPoints)

    @pytest.mark.parametrize("options", [{"num_inducing": 20}, {"batch_size": 20}])
    def test_options_of_inducing_points(self, options: dict[str, int]) -> None:
        assert isinstance(self.chosen("matern32", 2, **options).approximation, InducingPoints)

    def test_one_column_is_a_state_space(self) -> None:
        choice = self.chosen("matern32", 1, num_rows=1_000)
        assert isinstance(choice.approximation, StateSpace)

    def test_a_fit(self) -> None:
        X, y = data(GPRegressor, 120)
        fitted = model(GPRegressor, "auto", max_iter=3).fit(X, y)
        assert isinstance(fitted.approximation_, SparseInverseCholesky)
        labels = data(GPClassifier, 120)[1]
        fitted = model(GPClassifier, "auto", max_iter=2).fit(X, labels)
        assert isinstance(fitted.approximation_, SparseInverseCholesky)

    def test_points_that_are_not_used(self) -> None:
        choice = choose(
            "sic",
            kernel=parse_kernel("rbf", 4),
            num_features=4,
            num_rows=10,
            num_inducing=7,
            batch_size=None,
            gaussian=True,
            num_latents=1,
        )
        assert isinstance(choice.approximation, SparseInverseCholesky)
        assert choice.reason == "asked for; num_inducing=7 is not used"


class TestBadInput:
    def test_leaves_the_estimator_as_it_was(self) -> None:
        X, y = data(GPRegressor, 60)
        fitted = model(GPRegressor, max_iter=2).fit(X, y)
        before = predictions(fitted)
        wrong = X.copy()
        wrong[3, 0] = np.nan
        with pytest.raises(ValueError):
            fitted.predict(wrong)
        with pytest.raises(ValueError):
            fitted.fit(wrong, y)
        np.testing.assert_array_equal(predictions(fitted), before)

    def test_kernel_without_a_lengthscale(self) -> None:
        X, y = data(GPRegressor, 60)
        with pytest.raises(InputError, match="neighbors='correlation'"):
            model(GPRegressor, SparseInverseCholesky(5), kernel="linear", max_iter=2).fit(X, y)
        approximation = SparseInverseCholesky(5, neighbors="correlation")
        fitted = model(GPRegressor, approximation, kernel="linear", max_iter=2).fit(X, y)
        assert np.isfinite(predictions(fitted)).all()

    @pytest.mark.parametrize("kernel", ["linear", "periodic", "matern32 + periodic"])
    def test_the_name_takes_the_neighbours_that_a_kernel_needs(self, kernel: str) -> None:
        X, y = data(GPRegressor, 60)
        fitted = model(GPRegressor, "sic", kernel=kernel, max_iter=2).fit(X, y)
        assert fitted.approximation_.options.neighbors == "correlation"
        assert "correlation" in fitted.summary().reason

    def test_unknown_name(self) -> None:
        X, y = data(GPRegressor, 20)
        with pytest.raises(InputError, match="'sic'"):
            model(GPRegressor, "vecchia").fit(X, y)
