"""Bad input gets one clear sentence and leaves the estimator bit for bit as it was."""

import pickle
import warnings
from typing import Any

import gpytorch
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch
from sklearn.exceptions import NotFittedError

from gpvi.approximations import Exact
from gpvi.estimators import GPClassifier, GPCountRegressor, GPRegressor
from gpvi.exceptions import (
    DataWarning,
    GPVIError,
    InputError,
    InputTypeError,
    JitterWarning,
    PriorCollapseWarning,
    UnsupportedError,
)
from gpvi.likelihoods import PoissonLikelihood

pytestmark = pytest.mark.filterwarnings("ignore:The fit is not converged")

GENERATOR = np.random.default_rng(0)
X = GENERATOR.uniform(-2, 2, size=(30, 2))
F = np.sin(2 * X[:, 0]) + 0.5 * X[:, 1]
TARGETS = {
    GPRegressor: F + 0.1 * GENERATOR.normal(size=30),
    GPClassifier: np.where(F > 0, "up", "down"),
    GPCountRegressor: GENERATOR.poisson(np.exp(1 + F)).astype(float),
}
ESTIMATORS = tuple(TARGETS)


def replaced(values: np.ndarray, position: Any, value: Any, dtype: Any = None) -> np.ndarray:
    values = values.astype(dtype) if dtype else values.copy()
    values[position] = value
    return values


def estimator(cls: type = GPRegressor, **options: Any) -> Any:
    return cls(**{"random_state": 0, "max_iter": 2, **options})


@pytest.fixture(scope="module")
def fitted() -> dict[type, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {cls: estimator(cls).fit(X, y) for cls, y in TARGETS.items()}


def refuse(model: Any, error: type[Exception], match: str, *args: Any, **kwargs: Any) -> None:
    """A fit is refused by one sentence, and the model is what it was, fitted or not."""
    before = {name: id(value) for name, value in vars(model).items()}
    contents = pickle.dumps(vars(model))
    with pytest.raises(error, match=match) as caught:
        model.fit(*args, **kwargs)
    assert isinstance(caught.value, GPVIError)
    text = str(caught.value)
    assert text and len(text) < 600 and text.endswith(".") and "\n" not in text
    assert {name: id(value) for name, value in vars(model).items()} == before
    assert pickle.dumps(vars(model)) == contents


def refuse_both(
    fitted: dict[type, Any],
    cls: type,
    error: type[Exception],
    match: str,
    *args: Any,
    options: dict[str, Any] | None = None,
    **kwargs: Any,
) -> None:
    """The same for a model that was never fitted and for one that was."""
    options = options or {}
    fresh = estimator(cls, **options)
    refuse(fresh, error, match, *args, **kwargs)
    with pytest.raises(NotFittedError):
        fresh.predict(X)
    model = fitted[cls]
    kept = model.get_params(deep=False)
    expected = model.predict(X)
    try:
        model.set_params(**options)
        refuse(model, error, match, *args, **kwargs)
    finally:
        model.set_params(**kept)
    assert np.array_equal(model.predict(X), expected)


@pytest.mark.parametrize("cls", ESTIMATORS)
@pytest.mark.parametrize(
    ("bad", "match"),
    [
        (replaced(X, (3, 1), np.nan), r"X of GP\w+ holds 1 NaN .*first \(NaN\) in row 3, column 1"),
        (replaced(X, (4, 0), np.inf), r"first \(inf\) in row 4, column 0"),
        (replaced(X, (slice(5), 0), -np.inf), r"holds 5 NaN or inf"),
        (X[:, 0], r"has shape \(30,\).*Reshape"),
        (X[None], r"has shape \(1, 30, 2\)"),
        (X[:20], r"30 values for 20 rows"),
        (X[:1], r"1 sample"),
        (X[:0], r"0 sample|no rows"),
        (X[:, :0], r"0 feature"),
        (X + 1j, r"Complex data not supported: X of"),
        (scipy.sparse.csr_array(X), r"[Ss]parse"),
        (X.astype(str).astype(object) + "a", r"could not convert"),
        (replaced(X, (0, 0), {}, object), r"dict"),
        (np.array([["a", "b"]] * 30), r"could not convert"),
        (None, r"shape \(\)"),
        (3.0, r"shape \(\)"),
        ([[1.0, 2.0], [3.0]], r"inhomogeneous"),
        (X.astype("datetime64[s]"), r"dates or times \(datetime64"),
    ],
    ids=lambda value: None if isinstance(value, str) else "",
)
def test_inputs(fitted: dict[type, Any], cls: type, bad: Any, match: str) -> None:
    y = TARGETS[cls]
    if isinstance(bad, np.ndarray) and bad.ndim and len(bad) in (0, 1):
        y = y[: len(bad)]
    refuse_both(fitted, cls, InputError, match, bad, y)


@pytest.mark.parametrize("cls", ESTIMATORS)
@pytest.mark.parametrize(
    ("bad", "match"),
    [
        (replaced(X, (3, 1), np.nan), r"row 3, column 1"),
        (X[:, :1], r"1 feature"),
        (np.hstack([X, X]), r"4 features"),
        (X[:, 0], r"shape \(30,\).*Reshape your data"),
        (X[:0], r"0 sample"),
        (scipy.sparse.csr_array(X), r"[Ss]parse"),
    ],
    ids=["nan", "narrow", "wide", "flat", "empty", "sparse"],
)
def test_new_inputs(fitted: dict[type, Any], cls: type, bad: Any, match: str) -> None:
    model = fitted[cls]
    before = pickle.dumps(model)
    for call in (
        model.predict,
        lambda values: model.sample_y(values, random_state=0),
        lambda values: model.log_predictive_density(values, TARGETS[cls]),
        model.sample_functions(1, random_state=0, num_features=5),
    ):
        with pytest.raises(InputError, match=match if call == model.predict else None) as caught:
            call(bad)
        assert "\n" not in str(caught.value)
    assert pickle.dumps(model) == before


class TestTargets:
    @pytest.mark.parametrize("cls", [GPRegressor, GPCountRegressor])
    @pytest.mark.parametrize(
        ("bad", "match"),
        [
            (replaced(F, 7, np.nan), r"1 NaN value.*row 7.*allow_missing_targets"),
            (replaced(F, 7, np.inf), r"1 infinite \(inf\) value.*row 7"),
            (np.full(30, np.nan), r"30 NaN"),
            (np.column_stack([F, F]), r"y should be a 1d array.*\(30, 2\)"),
            (F[:20], r"20 values for 30 rows"),
            (F + 1j, r"complex"),
            (np.array(["a"] * 30), r"not numeric"),
            (replaced(F, 2, None, object), r"NaN value|not numeric"),
            (replaced(F, 2, "a", object), r"not numeric"),
            (None, r"y"),
            (3.0, r"y should be a 1d array"),
        ],
        ids=lambda value: None if isinstance(value, str) else "",
    )
    def test_numbers(self, fitted: dict[type, Any], cls: type, bad: Any, match: str) -> None:
        refuse_both(fitted, cls, InputError, match, X, bad)

    @pytest.mark.parametrize(
        ("bad", "match"),
        [
            (replaced(TARGETS[GPClassifier], 7, None, object), r"1 missing label.*row 7"),
            (replaced(TARGETS[GPClassifier], 7, np.nan, object), r"1 missing label.*row 7"),
            (pd.array([True, False, pd.NA] * 10, dtype="boolean"), r"missing label|NA"),
            (F, r"Unknown label type: continuous"),
            (np.where(F > 0, np.inf, 0.0), r"inf"),
            (np.full(30, "up"), r"one class only \('up'\).*at least two classes"),
            (TARGETS[GPClassifier][:20], r"20 values for 30 rows"),
            (np.eye(30)[:, :2], r"y should be a 1d array"),
            (None, r"y"),
        ],
        ids=lambda value: None if isinstance(value, str) else "",
    )
    def test_labels(self, fitted: dict[type, Any], bad: Any, match: str) -> None:
        refuse_both(fitted, GPClassifier, InputError, match, X, bad)

    def test_negative_counts(self, fitted: dict[type, Any]) -> None:
        bad = replaced(TARGETS[GPCountRegressor], [1, 2], [-3.0, -1.0])
        match = r"2 negative value\(s\) such as -3.*Use GPRegressor"
        refuse_both(fitted, GPCountRegressor, InputError, match, X, bad)

    def test_targets_of_another_likelihood(self, fitted: dict[type, Any]) -> None:
        match = r"PoissonLikelihood.* standardize=False"
        options = {"likelihood": PoissonLikelihood()}
        y = TARGETS[GPCountRegressor]
        refuse_both(fitted, GPRegressor, InputError, match, X, y, options=options)

    @pytest.mark.parametrize("cls", ESTIMATORS)
    def test_missing_targets_are_rows_left_out(self, cls: type) -> None:
        y = TARGETS[cls]
        lost = [0, 4, 29]
        gaps = replaced(y, lost, np.nan, object if cls is GPClassifier else float)
        keep = np.delete(np.arange(30), lost)
        model = estimator(cls, allow_missing_targets=True).fit(X, gaps)
        same = estimator(cls).fit(X[keep], y[keep])
        assert model.elbo_ == same.elbo_
        assert np.array_equal(model.predict(X[keep]), same.predict(X[keep]))
        density = model.leave_one_out().log_density
        assert np.array_equal(np.flatnonzero(np.isnan(density)), lost)
        assert np.allclose(density[keep], same.leave_one_out().log_density)

    def test_missing_targets_everywhere_but_one(self) -> None:
        gaps = replaced(F, slice(1, None), np.nan)
        refuse(
            estimator(allow_missing_targets=True), InputError, r"1 row\(s\) with a target", X, gaps
        )
        refuse(estimator(allow_missing_targets=True), InputError, r"no target", X, F * np.nan)

    def test_new_targets(self, fitted: dict[type, Any]) -> None:
        density = fitted[GPRegressor].log_predictive_density(X, replaced(F, 3, np.nan))
        assert np.flatnonzero(np.isnan(density)).tolist() == [3]
        with pytest.raises(InputError, match=r"label 'left'.*classes are \['down', 'up'\]"):
            fitted[GPClassifier].log_predictive_density(X, ["left"] * 30)
        for bad in (F[:3], np.column_stack([F, F]), ["a"] * 30):
            with pytest.raises(InputError):
                fitted[GPRegressor].log_predictive_density(X, bad)
        with pytest.raises(InputError, match=r"negative.*-1"):
            fitted[GPCountRegressor].log_predictive_density(X, np.full(30, -1.0))


class TestRowExtras:
    @pytest.mark.parametrize("cls", ESTIMATORS)
    @pytest.mark.parametrize(
        ("bad", "match"),
        [
            (replaced(np.ones(30), 4, -0.5), r"sample_weight .*non-negative, got -0\.5 in row 4"),
            (replaced(np.ones(30), 4, np.nan), r"finite.*got nan in row 4"),
            (replaced(np.ones(30), 4, np.inf), r"got inf in row 4"),
            (np.zeros(30), r"zero in all 30 rows"),
            (replaced(np.zeros(30), 3, 1.0), r"1 row\(s\) with a target and a positive"),
            (np.ones(20), r"shape \(20,\) for 30 rows"),
            (np.ones((30, 1)), r"shape \(30, 1\)"),
            (["a"] * 30, r"not numeric"),
            (np.ones(30) + 1j, r"complex"),
        ],
        ids=lambda value: None if isinstance(value, str) else "",
    )
    def test_weights(self, fitted: dict[type, Any], cls: type, bad: Any, match: str) -> None:
        refuse_both(fitted, cls, InputError, match, X, TARGETS[cls], bad)

    @pytest.mark.parametrize(
        ("bad", "match"),
        [
            (-1.0, r"noise_variance .* got -1\.0 in row 0 \(30 such"),
            (replaced(np.ones(30), 2, np.nan), r"got nan in row 2"),
            (np.ones(3), r"shape \(3,\) for 30 rows"),
        ],
        ids=["negative", "nan", "short"],
    )
    def test_noise(self, fitted: dict[type, Any], bad: Any, match: str) -> None:
        y = TARGETS[GPRegressor]
        refuse_both(fitted, GPRegressor, InputError, match, X, y, noise_variance=bad)
        with pytest.raises(InputError, match=match):
            fitted[GPRegressor].predict(X, noise_variance=bad)

    @pytest.mark.parametrize(
        ("bad", "match"),
        [
            (0.0, r"exposure .*positive, got 0\.0 in row 0"),
            (replaced(np.ones(30), 2, -3.0), r"positive, got -3\.0 in row 2"),
            (np.ones(31), r"shape \(31,\) for 30 rows"),
        ],
        ids=["zero", "negative", "long"],
    )
    def test_exposure(self, fitted: dict[type, Any], bad: Any, match: str) -> None:
        y = TARGETS[GPCountRegressor]
        refuse_both(fitted, GPCountRegressor, InputError, match, X, y, exposure=bad)
        with pytest.raises(InputError, match=match):
            fitted[GPCountRegressor].predict(X, exposure=bad)

    def test_extras_of_another_likelihood(self, fitted: dict[type, Any]) -> None:
        for cls, name in (
            (GPRegressor, "exposure"),
            (GPClassifier, "exposure"),
            (GPClassifier, "noise_variance"),
            (GPCountRegressor, "noise_variance"),
        ):
            match = rf"Likelihood has no use for {name}"
            refuse_both(fitted, cls, InputError, match, X, TARGETS[cls], **{name: np.ones(30)})
        with pytest.raises(InputError, match="no use for exposure"):
            fitted[GPRegressor].predict(X, exposure=np.ones(30))


OPTIONS: list[tuple[str, Any, str]] = [
    ("kernel", "matern", r"'matern'"),
    ("kernel", 5, r"got 5"),
    ("kernel", gpytorch.kernels.RBFKernel(ard_num_dims=3), r"ard_num_dims=3"),
    ("ard", "no", r"ard is 'no'"),
    ("standardize", "no", r"standardize is 'no'"),
    ("standardize", None, r"standardize is None"),
    ("allow_missing_targets", "yes", r"allow_missing_targets is 'yes'"),
    ("verbose", 2.5, r"verbose is 2\.5"),
    ("categorical_features", 3, r"categorical_features .*is 3"),
    ("mean", "linear", r"mean is 'linear'"),
    ("mean", 1.0, r"mean is 1\.0"),
    ("likelihood", "cauchy", r"likelihood is 'cauchy'"),
    ("likelihood", 2, r"likelihood is 2"),
    ("approximation", "sparse", r"approximation is 'sparse'"),
    ("approximation", Exact, r"approximation is "),
    ("num_inducing", 0, r"num_inducing is 0"),
    ("num_inducing", 2.5, r"num_inducing is 2\.5"),
    ("num_inducing", True, r"num_inducing is True"),
    ("hyperparameters", [1], r"hyperparameters is \[1\]"),
    ("hyperparameters", {"lengthscales": 1.0}, r"hyperparameters\['lengthscales'\] is 1\.0"),
    ("objective", "likelihood", r"objective is 'likelihood'"),
    ("inference", "mcmc", r"inference is 'mcmc'"),
    ("optimizer", "sgd", r"optimizer is 'sgd'"),
    ("optimizer", torch.optim.Adam, r"optimizer is "),
    ("max_iter", -1, r"max_iter is -1"),
    ("max_iter", 2.0, r"max_iter is 2\.0"),
    ("max_iter", None, r"max_iter is None"),
    ("batch_size", 0, r"batch_size is 0"),
    ("batch_size", "auto", r"batch_size is 'auto'"),
    ("learning_rate", 0.0, r"learning_rate is 0\.0"),
    ("learning_rate", "fast", r"learning_rate is 'fast'"),
    ("learning_rate", float("nan"), r"learning_rate is nan"),
    ("num_restarts", -2, r"num_restarts is -2"),
    ("num_restarts", None, r"num_restarts is None"),
    ("random_state", "zero", r"'zero'"),
    ("random_state", -3, r"-3|random_state"),
    ("device", "gpu", r"device is 'gpu'"),
    ("device", 1.5, r"device is 1\.5"),
    ("dtype", "float16", r"dtype is 'float16'"),
    ("dtype", torch.float64, r"dtype is torch\.float64"),
    ("callbacks", print, r"callbacks is <built-in function print>"),
    ("callbacks", [3], r"callbacks .* 3"),
    ("callbacks", None, r"callbacks is None"),
    ("checkpoint", 3, r"checkpoint is 3"),
]


@pytest.mark.parametrize(("name", "value", "match"), OPTIONS, ids=lambda value: repr(value)[:30])
@pytest.mark.parametrize("cls", ESTIMATORS)
def test_options(fitted: dict[type, Any], cls: type, name: str, value: Any, match: str) -> None:
    refuse_both(fitted, cls, InputError, match, X, TARGETS[cls], options={name: value})


def test_every_option_has_a_wrong_value_here() -> None:
    assert {name for name, _, _ in OPTIONS} == set(GPRegressor().get_params())


class TestCombinations:
    def test_minibatches(self, fitted: dict[type, Any]) -> None:
        y = TARGETS[GPRegressor]
        for options, match in (
            ({"batch_size": 10, "approximation": "exact"}, "batch_size and Exact"),
            ({"batch_size": 10, "optimizer": "lbfgs"}, "optimizer='lbfgs' and batch_size=10"),
            ({"batch_size": 10, "optimizer": None}, "optimizer=None and batch_size=10"),
        ):
            refuse_both(fitted, GPRegressor, UnsupportedError, match, X, y, options=options)

    def test_checkpoints_need_a_seed(self, fitted: dict[type, Any], tmp_path: Any) -> None:
        options = {"checkpoint": tmp_path / "fit", "random_state": None}
        match = "checkpoint is .*random_state None"
        refuse_both(fitted, GPRegressor, InputError, match, X, F, options=options)

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
    def test_cuda_without_cuda(self, fitted: dict[type, Any]) -> None:
        match = "device is 'cuda', which torch cannot use here"
        refuse_both(fitted, GPRegressor, InputError, match, X, F, options={"device": "cuda"})

    def test_an_interrupted_fit_leaves_everything(self, fitted: dict[type, Any]) -> None:
        def interrupt(record: Any) -> None:
            raise KeyboardInterrupt

        for cls, model in fitted.items():
            before, kept = pickle.dumps(vars(model)), model.callbacks
            model.callbacks = [interrupt]
            with pytest.raises(KeyboardInterrupt):
                model.fit(np.hstack([X, X]), TARGETS[cls])
            model.callbacks = kept
            assert pickle.dumps(vars(model)) == before

    def test_parts_given_as_objects_are_not_touched_by_a_failed_fit(self) -> None:
        kernel = gpytorch.kernels.RBFKernel(ard_num_dims=2)
        before = pickle.dumps(kernel)
        with pytest.raises(InputError):
            estimator(kernel=kernel).fit(X, F * np.nan)
        assert pickle.dumps(kernel) == before


class TestPredictionArguments:
    @pytest.mark.parametrize(
        ("call", "match"),
        [
            (lambda m: m.predict(X, return_std=True, return_cov=True), r"both True"),
            (lambda m: m.predict(X, batch_size=0), r"batch_size is 0"),
            (lambda m: m.predict(X, batch_size=2.5), r"batch_size is 2\.5"),
            (lambda m: m.predict(X, latent=True, noise_variance=1.0), r"latent=True and noise"),
            (lambda m: m.predict_interval(X, 1.0), r"coverage is 1\.0"),
            (lambda m: m.predict_interval(X, float("nan")), r"coverage is nan"),
            (lambda m: m.predict_interval(X, "wide"), r"coverage is 'wide'"),
            (lambda m: m.predict_quantiles(X, [0.5, 1.0]), r"1\.0"),
            (lambda m: m.predict_quantiles(X, ["a"]), r"level"),
            (lambda m: m.predict_quantiles(X, 0.5), r"level"),
            (lambda m: m.sample_y(X, 0), r"n_samples is 0"),
            (lambda m: m.sample_y(X, random_state="zero"), r"'zero'"),
            (lambda m: m.sample_functions(0), r"n_functions is 0"),
            (lambda m: m.sample_functions(num_features=0), r"num_features is 0"),
        ],
    )
    def test_refusals(self, fitted: dict[type, Any], call: Any, match: str) -> None:
        with pytest.raises(InputError, match=match):
            call(fitted[GPRegressor])

    def test_labels_have_no_deviation(self, fitted: dict[type, Any]) -> None:
        for options in ({"return_std": True}, {"return_cov": True}):
            with pytest.raises(InputError, match="latent=True"):
                fitted[GPClassifier].predict(X, **options)

    @pytest.mark.parametrize("cls", ESTIMATORS)
    def test_before_the_fit(self, cls: type) -> None:
        model = cls()
        calls = [model.predict, model.sample_functions, model.leave_one_out, model.summary]
        calls += [lambda X: model.save("file"), lambda X: model.log_predictive_density(X, X[:, 0])]
        for call in calls:
            with pytest.raises(NotFittedError):
                call(X) if call not in (model.leave_one_out, model.summary) else call()


class TestOddData:
    """Data that look wrong but can be used."""

    @pytest.mark.parametrize("cls", ESTIMATORS)
    @pytest.mark.parametrize("approximation", ["exact", "inducing"])
    def test_constant_columns_and_duplicate_rows(self, cls: type, approximation: str) -> None:
        wide = np.column_stack([np.full(60, 3.0), np.repeat(X, 2, axis=0), np.zeros(60)])
        y = np.repeat(TARGETS[cls], 2)
        options = {"approximation": approximation, "num_inducing": 20, "max_iter": 10}
        model = estimator(cls, **options).fit(wide, y)
        probe = model.predict(wide, latent=True, return_std=True)
        assert all(np.isfinite(values).all() for values in probe) and (probe[1] > 0).all()
        assert model.score(wide, y) > 0.5

    @pytest.mark.parametrize("cls", ESTIMATORS)
    def test_more_inducing_points_than_distinct_rows(self, cls: type) -> None:
        twice, y = np.repeat(X[:15], 2, axis=0), np.repeat(TARGETS[cls][:15], 2)
        model = estimator(cls, approximation="inducing", num_inducing=20)
        with pytest.warns(DataWarning, match="num_inducing is 20, but X holds 15 distinct rows"):
            model.fit(twice, y)
        assert model.approximation_.inducing_points.shape == (15, 2)
        assert any("DataWarning" in text for text in model.summary().warnings)

    @pytest.mark.parametrize("value", [0.0, 3.5, 1e12, -1e-12])
    def test_constant_targets(self, value: float) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = estimator(max_iter=20).fit(X, np.full(30, value))
        mean, std = model.predict(X, return_std=True)
        assert np.allclose(mean, value, rtol=1e-9, atol=1e-12)
        assert np.isfinite(std).all() and np.isfinite(model.elbo_)

    @pytest.mark.parametrize("cls", ESTIMATORS)
    def test_all_inputs_equal(self, cls: type) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = estimator(cls).fit(np.ones((30, 2)), TARGETS[cls])
            assert np.isfinite(model.predict(np.ones((3, 2)), latent=True)).all()

    def test_noise_alone_is_called_the_prior(self) -> None:
        y = np.random.default_rng(5).normal(size=30)
        with pytest.warns(PriorCollapseWarning, match="practically the prior"):
            estimator(max_iter=200, kernel="rbf").fit(X, y)

    @pytest.mark.parametrize("cls", ESTIMATORS)
    @pytest.mark.parametrize("approximation", ["exact", "inducing"])
    @pytest.mark.parametrize(("scale", "offset"), [(1e12, -3e12), (1e-12, 2e-11), (2.0, 1e5)])
    def test_units_of_the_inputs(
        self, cls: type, approximation: str, scale: float, offset: float
    ) -> None:
        options = {"approximation": approximation, "num_inducing": 15, "max_iter": 5}
        plain = estimator(cls, **options).fit(X, TARGETS[cls])
        moved = estimator(cls, **options).fit(scale * X + offset, TARGETS[cls])
        assert moved.elbo_ == pytest.approx(plain.elbo_, abs=1e-3)
        expected = plain.predict(X, latent=True)
        assert np.allclose(moved.predict(scale * X + offset, latent=True), expected, atol=1e-3)

    @pytest.mark.parametrize(("scale", "offset"), [(1e12, -3e12), (1e-12, 2e-11), (-2.0, 1e5)])
    def test_units_of_the_targets(self, scale: float, offset: float) -> None:
        y = TARGETS[GPRegressor]
        plain = estimator(max_iter=5).fit(X, y)
        moved = estimator(max_iter=5).fit(X, scale * y + offset)
        mean, std = plain.predict(X, return_std=True)
        other, spread = moved.predict(X, return_std=True)
        assert np.allclose((other - offset) / scale, mean, atol=1e-4)
        assert np.allclose(spread / abs(scale), std, rtol=1e-3)
        low, high = moved.predict_interval(X)
        expected = sorted([np.mean(b) for b in plain.predict_interval(X)], reverse=scale < 0)
        assert np.allclose((np.mean([low, high], 1) - offset) / scale, expected, atol=1e-3)

    def test_numbers_that_do_not_fit_into_float32(self) -> None:
        match = r"X has values that do not fit into torch\.float32.*use float64"
        model = estimator(dtype="float32", standardize=False)
        refuse(model, InputError, match, X * 1e300, F)

    @pytest.mark.parametrize("cls", ESTIMATORS)
    @pytest.mark.parametrize("approximation", ["exact", "inducing"])
    def test_float32_with_a_badly_conditioned_kernel(self, cls: type, approximation: str) -> None:
        """A dense grid and a smooth kernel: the kernel matrix has no more than ten digits of rank."""
        grid = np.linspace(0, 1, 150)[:, None]
        f = np.sin(6 * grid[:, 0])
        y = {GPRegressor: f, GPClassifier: f > 0, GPCountRegressor: np.round(np.exp(f + 1))}[cls]
        model = estimator(
            cls, kernel="rbf", dtype="float32", approximation=approximation, num_inducing=60,
            max_iter=10,
        )  # fmt: skip
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", JitterWarning)
            warnings.simplefilter("ignore", DataWarning)
            model.fit(grid, y)
        mean, std = model.predict(grid, latent=True, return_std=True)
        assert np.isfinite(mean).all() and np.isfinite(std).all() and (std >= 0).all()
        assert model.score(grid, y) > 0.9

    def test_a_type_that_cannot_be_used_is_a_type_error(self) -> None:
        with pytest.raises(InputTypeError):
            estimator().fit(scipy.sparse.csr_array(X), F)
        with pytest.raises(TypeError):
            estimator().fit(scipy.sparse.csr_array(X), F)
