"""The estimators inside scikit-learn: its own checks, searches, pipelines, processes, routing."""

from typing import Any

import gpytorch
import joblib
import numpy as np
import pytest
import sklearn
import torch
from sklearn.base import BaseEstimator, clone, is_classifier, is_regressor
from sklearn.gaussian_process import kernels as sklearn_kernels
from sklearn.model_selection import GridSearchCV, cross_val_predict, cross_val_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import get_tags
from sklearn.utils.estimator_checks import parametrize_with_checks

from gpvi.approximations import Exact, InducingPoints
from gpvi.estimators import Fixed, Free, GPClassifier, GPCountRegressor, GPRegressor

pytestmark = pytest.mark.filterwarnings("ignore::gpvi.exceptions.GPVIWarning")

ESTIMATORS = (GPRegressor, GPClassifier, GPCountRegressor)
MINIBATCH = {"batch_size": 20, "num_inducing": 10, "max_iter": 3}


def data(cls: type, size: int = 50, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    X = generator.uniform(-2, 2, size=(size, 2))
    f = 2 * np.sin(2 * X[:, 0]) + 0.5 * X[:, 1]
    if cls is GPRegressor:
        return X, f + 0.1 * generator.normal(size=size)
    if cls is GPClassifier:
        return X, np.where(f + 0.3 * generator.normal(size=size) > 0, "up", "down")
    return X, generator.poisson(np.exp(1 + 0.5 * f))


def expected_failures(estimator: BaseEstimator) -> dict[str, str]:
    """Minibatches are drawn from the rows that there are, repeated or weighted."""
    if estimator.batch_size is None:
        return {}
    reason = "minibatches of repeated rows are other minibatches than those of weighted rows"
    return {"check_sample_weight_equivalence_on_dense_data": reason}


@parametrize_with_checks(
    [
        GPRegressor(max_iter=3),
        GPRegressor(approximation="inducing", num_inducing=10, max_iter=2),
        GPClassifier(max_iter=1),
        GPCountRegressor(max_iter=2),
    ],
    expected_failed_checks=expected_failures,
)
def test_checks(estimator: BaseEstimator, check: Any) -> None:
    check(estimator)


@pytest.mark.slow
@parametrize_with_checks(
    [
        GPRegressor(**MINIBATCH),
        GPRegressor(likelihood="student_t", max_iter=2),
        GPRegressor(optimizer=None),
        GPRegressor(optimizer="adam", max_iter=2),
        GPRegressor(num_restarts=1, max_iter=1),
        GPClassifier(approximation="inducing", num_inducing=10, max_iter=2),
        GPClassifier(**MINIBATCH),
        GPCountRegressor(approximation="inducing", num_inducing=10, max_iter=2),
        GPCountRegressor(**MINIBATCH | {"max_iter": 40, "learning_rate": 0.1}),
    ],
    expected_failed_checks=expected_failures,
)
def test_checks_of_more_options(estimator: BaseEstimator, check: Any) -> None:
    check(estimator)


class TestParameters:
    @pytest.mark.parametrize("cls", ESTIMATORS)
    def test_clone(self, cls: type) -> None:
        model = cls(
            kernel=gpytorch.kernels.RBFKernel(),
            approximation=InducingPoints(7),
            hyperparameters={"lengthscale": Fixed(1.0), "noise": Free(bounds=(0.1, None))},
            callbacks=[print],
        )
        twin = clone(model)
        assert type(twin) is cls and twin.get_params().keys() == model.get_params().keys()
        assert twin.approximation is not model.approximation
        assert twin.approximation.num_inducing == 7
        assert twin.hyperparameters == model.hyperparameters
        assert twin.set_params(kernel="linear").kernel == "linear"
        assert model.kernel != "linear"

    @pytest.mark.parametrize("cls", ESTIMATORS)
    def test_constructors_only_store(self, cls: type) -> None:
        given = {name: object() for name in cls().get_params()}
        model = cls(**given)
        assert vars(model) == given

    @pytest.mark.parametrize("cls", ESTIMATORS)
    def test_clone_of_a_fitted_model_is_not_fitted(self, cls: type) -> None:
        model = cls(max_iter=1, random_state=0).fit(*data(cls))
        assert set(vars(clone(model))) == set(model.get_params())

    def test_repr_names_what_was_changed(self) -> None:
        assert repr(GPRegressor(kernel="rbf")) == "GPRegressor(kernel='rbf')"

    def test_kinds(self) -> None:
        assert is_regressor(GPRegressor()) and is_regressor(GPCountRegressor())
        assert is_classifier(GPClassifier()) and not is_classifier(GPRegressor())
        assert get_tags(GPCountRegressor()).target_tags.positive_only
        assert not get_tags(GPRegressor()).target_tags.positive_only
        for cls in ESTIMATORS:
            tags = get_tags(cls())
            assert tags.target_tags.required and not tags.input_tags.sparse

    def test_equal_and_different_parameters_fit_again(self) -> None:
        X, y = data(GPRegressor)
        model = GPRegressor(max_iter=2, random_state=0).fit(X, y)
        first = model.predict(X)
        assert np.array_equal(model.fit(X, y).predict(X), first)
        wide = model.set_params(kernel="linear").fit(np.column_stack([X, X[:, 0] ** 2]), y)
        assert wide is model and model.n_features_in_ == 3


class TestSearches:
    def test_grid_over_kernel_strings(self) -> None:
        X, y = data(GPRegressor)
        grid = {"kernel": ["linear", "rbf", "matern32 + linear"]}
        search = GridSearchCV(GPRegressor(max_iter=10, random_state=0), grid, cv=2)
        search.fit(X, y)
        assert search.best_params_["kernel"] != "linear"
        assert search.best_score_ > 0.8

    def test_grid_over_objects_and_hyperparameters(self) -> None:
        X, y = data(GPRegressor)
        grid = [
            {"hyperparameters": [{"lengthscale": Fixed(value)} for value in (1e-3, 1.0)]},
            {"approximation": [Exact(), InducingPoints(20)]},
            {"kernel": [sklearn_kernels.RBF(), gpytorch.kernels.RBFKernel()]},
        ]
        search = GridSearchCV(
            GPRegressor(max_iter=5, random_state=0), grid, cv=2, error_score="raise"
        ).fit(X, y)
        by_lengthscale = search.cv_results_["mean_test_score"][:2]
        assert by_lengthscale[1] > by_lengthscale[0] + 0.5
        assert len(search.cv_results_["mean_test_score"]) == 6

    def test_grid_through_a_pipeline(self) -> None:
        X, y = data(GPClassifier)
        pipeline = Pipeline([("scale", StandardScaler()), ("gp", GPClassifier(max_iter=3))])
        search = GridSearchCV(
            pipeline,
            {"gp__kernel": ["linear", "matern52"], "gp__likelihood": ["probit", "logit"]},
            cv=2,
            scoring="neg_log_loss",
            error_score="raise",
        ).fit(X, y)
        assert search.best_params_["gp__kernel"] == "matern52"
        assert search.predict(X[:3]).dtype.kind == "U"

    def test_pipeline_passes_arguments_of_predict(self) -> None:
        X, y = data(GPRegressor)
        pipeline = make_pipeline(StandardScaler(), GPRegressor(max_iter=5)).fit(X, y)
        mean, std = pipeline.predict(X, return_std=True)
        assert mean.shape == std.shape == (50,) and pipeline.score(X, y) > 0.9


@pytest.mark.slow
class TestProcesses:
    @pytest.mark.slow
    @pytest.mark.parametrize("cls", ESTIMATORS)
    def test_cross_validation(self, cls: type) -> None:
        X, y = data(cls)
        model = cls(max_iter=3, random_state=0)
        alone = cross_val_score(model, X, y, cv=2)
        assert np.allclose(cross_val_score(model, X, y, cv=2, n_jobs=2), alone, rtol=1e-6)

    @pytest.mark.slow
    @pytest.mark.filterwarnings("default")
    def test_parallel_fits_and_predictions(self) -> None:
        models = [cls(max_iter=3, random_state=0) for cls in ESTIMATORS]
        with joblib.parallel_config("loky", n_jobs=2):
            fitted = joblib.Parallel()(
                joblib.delayed(type(model).fit)(model, *data(type(model))) for model in models
            )
            there = joblib.Parallel()(
                joblib.delayed(type(model).predict)(model, data(type(model))[0]) for model in fitted
            )
        for model, twin, predicted in zip(models, fitted, there, strict=True):
            X, y = data(type(model))
            here = model.fit(X, y)
            assert twin.elbo_ == pytest.approx(here.elbo_, rel=1e-9)
            if isinstance(model, GPClassifier):
                assert np.array_equal(predicted, here.predict(X))
            else:
                assert np.allclose(predicted, here.predict(X), rtol=1e-6, atol=1e-8)

    def test_threads_share_one_model(self) -> None:
        X, y = data(GPRegressor)
        model = GPRegressor(max_iter=3, random_state=0).fit(X, y)
        with joblib.parallel_config("threading", n_jobs=4):
            found = joblib.Parallel()(joblib.delayed(model.predict)(X) for _ in range(8))
        assert all(np.array_equal(values, found[0]) for values in found)

    def test_grad_mode_and_inference_mode_do_not_matter(self) -> None:
        X, y = data(GPRegressor)
        model = GPRegressor(max_iter=3, random_state=0).fit(X, y)
        before = model.predict(X, return_cov=True)[1]
        with torch.no_grad():
            assert np.array_equal(model.predict(X, return_cov=True)[1], before)
        with torch.inference_mode():
            assert np.array_equal(model.predict(X, return_cov=True)[1], before)


class TestRouting:
    @pytest.fixture(autouse=True)
    def routing(self) -> Any:
        with sklearn.config_context(enable_metadata_routing=True):
            yield

    def test_weights_through_a_pipeline(self) -> None:
        X, y = data(GPRegressor)
        weights = np.where(X[:, 0] > 0, 1.0, 0.0)
        options = {"max_iter": 3, "random_state": 0}
        model = GPRegressor(**options).set_fit_request(sample_weight=True)
        scaler = StandardScaler().set_fit_request(sample_weight=False)
        pipeline = make_pipeline(scaler, model).fit(X, y, sample_weight=weights)
        inner = pipeline[-1].summary()
        assert inner.num_rows == int(weights.sum())

    def test_noise_variance_through_a_search(self) -> None:
        X, y = data(GPRegressor)
        noise = np.full(50, 0.3)
        model = GPRegressor(max_iter=3, random_state=0).set_fit_request(
            noise_variance=True, sample_weight=False
        )
        search = GridSearchCV(model, {"kernel": ["rbf", "matern52"]}, cv=2, error_score="raise")
        search.fit(X, y, noise_variance=noise)
        direct = clone(search.best_estimator_).fit(X, y, noise_variance=noise)
        assert search.best_estimator_.elbo_ == pytest.approx(direct.elbo_, rel=1e-9)

    def test_exposure_through_cross_validation(self) -> None:
        X, _ = data(GPCountRegressor)
        exposure = np.linspace(1.0, 20.0, 50)
        y = np.random.default_rng(1).poisson(exposure * 3.0)
        model = GPCountRegressor(max_iter=5, random_state=0).set_fit_request(exposure=True)
        rates = cross_val_predict(model, X, y, cv=2, params={"exposure": exposure})
        assert np.abs(rates - 3.0).max() < 1.0
        model.set_score_request(exposure=True)
        scores = cross_val_score(model, X, y, cv=2, params={"exposure": exposure})
        assert np.isfinite(scores).all()

    def test_what_nobody_asked_for_is_refused(self) -> None:
        X, y = data(GPCountRegressor)
        pipeline = make_pipeline(StandardScaler(), GPCountRegressor(max_iter=1))
        with pytest.raises(ValueError, match="exposure"):
            pipeline.fit(X, y, exposure=np.ones(50))
