"""GPRegressor: predictions, units, invariances, and the habits that scikit-learn expects."""

import io
import pickle
import sys
import warnings
from copy import deepcopy

import gpytorch
import joblib
import numpy as np
import pytest
import torch
from sklearn.datasets import load_diabetes
from sklearn.exceptions import ConvergenceWarning as SklearnConvergenceWarning
from sklearn.exceptions import NotFittedError
from sklearn.gaussian_process import kernels as sklearn_kernels
from sklearn.model_selection import train_test_split

from gpvi.approximations import Exact, InducingPoints
from gpvi.estimators import GPRegressor
from gpvi.exceptions import (
    ConvergenceWarning,
    DataWarning,
    ExtrapolationWarning,
    InputError,
    UnsupportedError,
)
from gpvi.likelihoods import PoissonLikelihood, StudentTLikelihood


def data(size: int = 60, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    X = generator.uniform(-2, 2, size=(size, 2))
    return X, np.sin(2 * X[:, 0]) + 0.5 * X[:, 1] + 0.1 * generator.normal(size=size)


X, Y = data()
NEW, NEW_Y = data(40, seed=1)


def regressor(**options) -> GPRegressor:
    return GPRegressor(**{"random_state": 0, "max_iter": 60, **options})


def score(model: GPRegressor) -> float:
    return float(np.sqrt(np.mean((model.predict(NEW) - NEW_Y) ** 2)))


@pytest.fixture(scope="module")
def fitted() -> GPRegressor:
    return regressor().fit(X, Y)


class TestPredictions:
    def test_learns_the_function_and_the_noise(self, fitted):
        assert score(fitted) < 0.2
        mean, std = fitted.predict(NEW, return_std=True)
        assert mean.shape == std.shape == (40,) and mean.dtype == std.dtype == np.float64
        assert np.mean(np.abs(NEW_Y - mean) < 2 * std) > 0.8
        assert 0.05 < std.min() < 0.2
        with pytest.warns(ExtrapolationWarning, match="1 of 1 rows"):
            far = fitted.predict(np.array([[50.0, -50.0]]), return_std=True)[1]
        assert far[0] > 2 * std.max()

    @pytest.mark.parametrize(
        "options",
        [
            {"approximation": "inducing", "num_inducing": 25},
            {"approximation": Exact()},
            {"approximation": InducingPoints(25)},
            {"kernel": "rbf + linear"},
            {"kernel": sklearn_kernels.Matern(nu=1.5)},
            {"kernel": gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel(ard_num_dims=2))},
            {"ard": False},
            {"mean": "zero"},
            {"mean": gpytorch.means.LinearMean(2)},
            {"likelihood": StudentTLikelihood(scale=0.2), "max_iter": 15},
            {"likelihood": gpytorch.likelihoods.GaussianLikelihood()},
            {"objective": "elbo", "approximation": "inducing", "num_inducing": 25},
            {"standardize": False},
            {"dtype": "float32"},
        ],
        ids=str,
    )
    @pytest.mark.filterwarnings("ignore:The fit is not converged")
    def test_options(self, options):
        assert score(regressor(**options).fit(X, Y)) < 0.25

    def test_heavy_tails_resist_outliers(self):
        y = Y.copy()
        y[::10] += 15.0
        robust = regressor(likelihood=StudentTLikelihood(scale=0.2), max_iter=40)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            robust.fit(X, y)
            plain = regressor().fit(X, y)
        assert score(robust) < 0.5 * score(plain)

    def test_more_inducing_points_than_rows_is_exact(self, fitted):
        model = regressor(approximation="inducing", num_inducing=500)
        with pytest.warns(DataWarning, match="num_inducing is 500, but X holds 60 distinct rows"):
            model.fit(X, Y)
        assert model.approximation_.inducing_points.shape == (60, 2)
        assert model.elbo_ == pytest.approx(fitted.elbo_, abs=0.5)
        assert np.allclose(model.predict(NEW), fitted.predict(NEW), atol=0.05)

    @pytest.mark.filterwarnings("ignore:The fit is not converged")
    def test_auto(self, fitted, monkeypatch):
        assert isinstance(fitted.approximation_, Exact)
        monkeypatch.setattr("gpvi.estimators.choosing._MAX_EXACT_ROWS", 50)
        model = regressor(num_inducing=20, max_iter=5).fit(X, Y)
        assert isinstance(model.approximation_, InducingPoints)

    def test_prediction_in_pieces(self, fitted, monkeypatch):
        whole = fitted.predict(NEW, return_std=True)
        monkeypatch.setattr("gpvi.estimators.model._PREDICTION_ROWS", 7)
        pieces = fitted.predict(NEW, return_std=True)
        assert np.allclose(whole, pieces, rtol=1e-10)

    @pytest.mark.filterwarnings("ignore:The fit is not converged")
    def test_minibatches(self):
        options = {"batch_size": 20, "max_iter": 120, "num_inducing": 15, "learning_rate": 0.05}
        first, second = (regressor(**options).fit(X, Y) for _ in range(2))
        assert score(first) < 0.3
        assert np.array_equal(first.predict(NEW), second.predict(NEW))
        other = regressor(**options | {"random_state": 1, "max_iter": 20}).fit(X, Y)
        assert not np.array_equal(first.predict(NEW), other.predict(NEW))
        assert len(first.history_) == first.n_iter_ == 120

    @pytest.mark.filterwarnings("ignore:The fit is not converged")
    def test_diabetes(self):
        features, targets = load_diabetes(return_X_y=True)
        split = train_test_split(features, targets, test_size=0.25, random_state=0)
        for options in (
            {"approximation": "exact", "max_iter": 30},
            {"approximation": "inducing", "num_inducing": 40, "max_iter": 30},
            {"batch_size": 64, "num_inducing": 40, "max_iter": 200, "learning_rate": 0.03},
        ):
            model = regressor(**options).fit(split[0], split[2])
            error = np.sqrt(np.mean((model.predict(split[1]) - split[3]) ** 2))
            assert error < 59.0  # a linear model has 57, the standard deviation is 73


class TestUnits:
    def test_elbo_is_the_log_evidence_of_the_data_as_given(self):
        y = 40.0 + 7.0 * Y
        model = regressor().fit(X, y)
        with torch.no_grad():
            scaled = torch.as_tensor((X - X.mean(0)) / X.std(0))
            noise = model.likelihood_.noise * torch.eye(60).double()
            covariance = (model.kernel_(scaled).to_dense() + noise) * y.std() ** 2
            constant = model.posterior_.prior.gp.mean(scaled) * y.std() + y.mean()
            density = torch.distributions.MultivariateNormal(constant, covariance)
            evidence = density.log_prob(torch.as_tensor(y)).item()
        assert model.elbo_ == pytest.approx(evidence, abs=1e-4)

    @pytest.mark.parametrize("approximation", ["exact", "inducing"])
    @pytest.mark.parametrize(
        ("x_scale", "x_offset", "y_scale", "y_offset"),
        [
            (1e12, 0.0, 1e-12, 0.0),
            (1e-12, 0.0, 1e12, 0.0),
            (3.0, 1e4, 2.0, -1e4),
        ],
    )
    @pytest.mark.filterwarnings("ignore:The fit is not converged")
    def test_affine_maps_do_not_matter(self, approximation, x_scale, x_offset, y_scale, y_offset):
        options = {"approximation": approximation, "num_inducing": 20, "max_iter": 20}
        plain = regressor(**options).fit(X, Y)
        moved = regressor(**options).fit(x_scale * X + x_offset, y_scale * Y + y_offset)
        mean, std = plain.predict(NEW, return_std=True)
        other_mean, other_std = moved.predict(x_scale * NEW + x_offset, return_std=True)
        assert np.allclose((other_mean - y_offset) / y_scale, mean, atol=2e-3)
        assert np.allclose(other_std / abs(y_scale), std, atol=2e-3)
        jacobian = -60 * np.log(abs(y_scale))
        assert moved.elbo_ - jacobian == pytest.approx(plain.elbo_, abs=1e-2)

    def test_columns_of_different_units(self):
        units = np.array([1e-9, 1e9])
        plain, moved = regressor().fit(X, Y), regressor().fit(X * units, Y)
        assert np.allclose(moved.predict(NEW * units), plain.predict(NEW), atol=1e-3)

    def test_common_scale_keeps_distances(self):
        turn = np.array([[0.6, -0.8], [0.8, 0.6]])
        wide = np.array([1.0, 1.2])
        options = {"ard": False, "kernel": "rbf"}
        plain = regressor(**options).fit(X * wide, Y)
        turned = regressor(**options).fit(X * wide @ turn, Y)
        assert np.allclose(turned.predict(NEW * wide @ turn), plain.predict(NEW * wide), atol=1e-3)

    def test_constant_column_changes_nothing(self, fitted):
        wide = np.column_stack([X, np.full(60, 0.1)])
        model = regressor().fit(wide, Y)
        new = np.column_stack([NEW, np.full(40, 0.1)])
        assert np.allclose(model.predict(new), fitted.predict(NEW), atol=2e-3)

    def test_constant_targets(self):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = regressor().fit(X, np.full(60, 3.5))
        mean, std = model.predict(NEW, return_std=True)
        assert np.allclose(mean, 3.5) and np.isfinite(std).all()
        assert np.isfinite(model.elbo_)

    def test_two_rows(self):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = regressor().fit(X[:2], Y[:2])
            assert np.isfinite(model.predict(NEW)).all()


class TestHabits:
    def test_predict_changes_nothing(self, fitted):
        before = pickle.dumps(fitted)
        first = fitted.predict(NEW, return_std=True)
        second = fitted.predict(NEW, return_std=True)
        assert np.array_equal(first, second)
        assert pickle.dumps(fitted) == before

    def test_copies_predict_the_same(self, fitted, tmp_path):
        joblib.dump(fitted, tmp_path / "model")
        for twin in (
            pickle.loads(pickle.dumps(fitted)),
            deepcopy(fitted),
            joblib.load(tmp_path / "model"),
        ):
            assert np.array_equal(
                twin.predict(NEW, return_std=True), fitted.predict(NEW, return_std=True)
            )

    def test_sparse_models_do_not_keep_the_data(self):
        model = regressor(approximation="inducing", num_inducing=5, max_iter=40)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            small = len(pickle.dumps(model.fit(*data(60)).posterior_))
            large = len(pickle.dumps(model.fit(*data(600)).posterior_))
        assert large < small + 2_000

    def test_parameters_are_not_touched_by_fit(self):
        parts = {
            "kernel": gpytorch.kernels.RBFKernel(ard_num_dims=2),
            "mean": gpytorch.means.ConstantMean(),
            "likelihood": gpytorch.likelihoods.GaussianLikelihood(),
            "approximation": InducingPoints(10),
        }
        before = {name: pickle.dumps(part) for name, part in parts.items()}
        model = regressor(**parts, max_iter=5)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(X, Y)
        for name, part in parts.items():
            assert getattr(model, name) is part
            assert pickle.dumps(part) == before[name]
        assert model.approximation_.inducing_points is not None

    def test_random_states(self):
        options = {"approximation": "inducing", "num_inducing": 6, "max_iter": 3}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            by_seed = [regressor(**options).fit(X, Y).elbo_ for _ in range(2)]
            states = [np.random.RandomState(3) for _ in range(2)]
            by_state = [
                regressor(**options | {"random_state": state}).fit(X, Y).elbo_ for state in states
            ]
            rng = torch.get_rng_state()
            numpy_state = np.random.get_state()[1].copy()  # noqa: NPY002
            regressor(**options).fit(X, Y)
        assert by_seed[0] == by_seed[1] != by_state[0] == by_state[1]
        assert torch.equal(torch.get_rng_state(), rng)
        assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002

    def test_fitted_attributes(self, fitted):
        assert fitted.n_features_in_ == 2
        assert fitted.n_iter_ >= 1 and len(fitted.history_) >= fitted.n_iter_
        assert fitted.kernel_ is not fitted.kernel
        assert not fitted.posterior_.marginals().mean.requires_grad

    def test_callbacks_and_convergence_warning(self):
        records = []
        with pytest.warns(SklearnConvergenceWarning, match="max_iter"):
            model = regressor(max_iter=2, callbacks=[records.append]).fit(X, Y)
        assert records == model.history_
        stopped = regressor(callbacks=[lambda record: True]).fit(X, Y)
        assert len(stopped.history_) == 1

    def test_verbose(self, monkeypatch):
        class Terminal(io.StringIO):
            def isatty(self) -> bool:
                return True

        for stream, shown in ((io.StringIO(), False), (Terminal(), True)):
            monkeypatch.setattr(sys, "stderr", stream)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)
                regressor(verbose=True, max_iter=3).fit(X, Y)
            assert ("objective" in stream.getvalue()) == shown


class TestErrors:
    @pytest.mark.parametrize(
        ("options", "error", "match"),
        [
            ({"kernel": "matern"}, InputError, "matern"),
            ({"mean": "linear"}, InputError, "mean is 'linear'.*'constant'"),
            ({"likelihood": "poisson"}, InputError, "likelihood is 'poisson'"),
            ({"approximation": "sparse"}, InputError, "approximation is 'sparse'.*'inducing'"),
            ({"approximation": "inducing", "num_inducing": 0}, InputError, "num_inducing is 0"),
            ({"approximation": "inducing", "num_inducing": 2.5}, InputError, "num_inducing is 2.5"),
            ({"dtype": "float16"}, InputError, "dtype is 'float16'.*float64"),
            ({"objective": "likelihood"}, InputError, "objective is 'likelihood'"),
            ({"max_iter": -1}, InputError, "max_iter is -1"),
            ({"batch_size": 0}, InputError, "batch_size is 0"),
            ({"batch_size": 10, "approximation": "exact"}, UnsupportedError, "Exact"),
            ({"random_state": "zero"}, ValueError, "zero"),
        ],
    )
    def test_clear_sentences_and_nothing_fitted(self, options, error, match):
        model = regressor(**options)
        with pytest.raises(error, match=match):
            model.fit(X, Y)
        assert not [name for name in vars(model) if name.endswith("_")]
        with pytest.raises(NotFittedError):
            model.predict(NEW)

    def test_targets_that_the_likelihood_does_not_know(self):
        counts = np.floor(5 * (Y - Y.min()))
        with pytest.raises(InputError, match=r"PoissonLikelihood.* standardize=False"):
            regressor(likelihood=PoissonLikelihood()).fit(X, counts)
        with pytest.raises(InputError, match=r"got -3\.0"):
            regressor(likelihood=PoissonLikelihood()).fit(X, counts - 3)
        model = regressor(likelihood=PoissonLikelihood(), standardize=False).fit(X, counts)
        assert np.corrcoef(model.predict(X), counts)[0, 1] > 0.9

    @pytest.mark.parametrize("fault", ["option", "data"])
    def test_a_failed_refit_leaves_the_model(self, fault):
        model = regressor().fit(X, Y)
        before = model.predict(NEW)
        if fault == "option":
            model.set_params(dtype="float16")
        wide = np.column_stack([X, X])
        with pytest.raises(ValueError, match=r"float16|NaN"):
            model.fit(wide, Y if fault == "option" else Y * np.nan)
        assert model.n_features_in_ == 2
        assert np.array_equal(model.set_params(dtype="float64").predict(NEW), before)

    def test_interrupted_fit(self):
        def interrupt(record):
            raise KeyboardInterrupt

        model = regressor(callbacks=[interrupt])
        with pytest.raises(KeyboardInterrupt):
            model.fit(X, Y)
        assert not hasattr(model, "n_features_in_")

    def test_wrong_columns(self, fitted):
        with pytest.raises(ValueError, match="3 features"):
            fitted.predict(np.ones((2, 3)))


def test_given_inducing_points_are_in_the_units_of_x() -> None:
    X = np.linspace(1000.0, 2000.0, 60)[:, None]
    y = np.sin(X[:, 0] / 100.0)
    points = torch.tensor(X[::6])
    given = InducingPoints(inducing_points=points, learn=False)
    model = GPRegressor(approximation=given, random_state=0).fit(X, y)
    found = model.approximation_.inducing_points.detach().numpy()
    np.testing.assert_allclose(found, (X[::6] - X.mean()) / X.std(), rtol=1e-12)
    torch.testing.assert_close(given.inducing_points.detach(), points)
    assert model.score(X, y) > 0.9
