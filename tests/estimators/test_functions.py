"""Functions drawn from the posterior of an estimator."""

import pickle
import warnings
from typing import Any

import gpytorch
import numpy as np
import pytest

from gpvi.estimators import FunctionSamples, GPClassifier, GPCountRegressor, GPRegressor
from gpvi.exceptions import ExtrapolationWarning, InputError, UnsupportedError

pytestmark = pytest.mark.filterwarnings("ignore:The fit is not converged")

GENERATOR = np.random.default_rng(0)
X = GENERATOR.uniform(100, 104, size=(40, 2))
F = np.sin(2 * X[:, 0]) + 0.5 * X[:, 1]
NEW = GENERATOR.uniform(100, 104, size=(12, 2))
MODELS = {
    "regression": (GPRegressor(), 1e3 * F + 20 * GENERATOR.normal(size=40)),
    "inducing": (GPRegressor(approximation="inducing", num_inducing=20), F),
    "two classes": (GPClassifier(), F > F.mean()),
    "three classes": (GPClassifier(), np.digitize(F, np.quantile(F, [0.3, 0.6]))),
    "counts": (GPCountRegressor(), np.round(np.exp(F - F.mean() + 1))),
}


@pytest.fixture(scope="module", params=list(MODELS))
def model(request: pytest.FixtureRequest) -> Any:
    estimator, y = MODELS[request.param]
    return estimator.set_params(max_iter=5, random_state=0).fit(X, y)


def test_moments_are_those_of_f(model: Any) -> None:
    functions = model.sample_functions(3_000, random_state=0, num_features=3_000)
    assert isinstance(functions, FunctionSamples)
    values = functions(NEW)
    mean, std = model.predict(NEW, latent=True, return_std=True)
    values = values if mean.ndim == 2 else values[..., None]
    mean, std = mean.reshape(12, -1), std.reshape(12, -1)
    assert values.shape == (12, 3_000, mean.shape[1])
    assert (np.abs(values.mean(1) - mean) < 0.12 * std.max()).all()
    assert np.abs(values.std(1) / std - 1).max() < 0.25


def test_a_function_has_one_value_at_one_place(model: Any) -> None:
    functions = model.sample_functions(4, random_state=0, num_features=200)
    whole = functions(NEW)
    assert np.array_equal(functions(NEW), whole)
    pieces = np.concatenate([functions(NEW[:5]), functions(NEW[5:])])
    assert np.allclose(pieces, whole, rtol=1e-7, atol=1e-9 * np.abs(whole).max())
    order = GENERATOR.permutation(12)
    assert np.allclose(functions(NEW[order]), whole[order], rtol=1e-7)
    again = model.sample_functions(4, random_state=0, num_features=200)
    assert np.array_equal(again(NEW), whole)
    other = model.sample_functions(4, random_state=1, num_features=200)
    assert not np.allclose(other(NEW), whole)


def test_functions_are_continuous_and_correlated(model: Any) -> None:
    functions = model.sample_functions(5, random_state=0, num_features=500)
    step = functions(NEW + 1e-6) - functions(NEW)
    assert np.abs(step).max() < 1e-3 * np.ptp(functions(NEW))


def test_they_survive_pickle_and_a_refit(model: Any) -> None:
    functions = model.sample_functions(2, random_state=0, num_features=100)
    values = functions(NEW)
    assert np.array_equal(pickle.loads(pickle.dumps(functions))(NEW), values)
    y = MODELS["two classes"][1] if isinstance(model, GPClassifier) else np.abs(F)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        twin = type(model)(max_iter=1, random_state=0).fit(X, y)
        before = twin.sample_functions(2, random_state=0, num_features=100)
        expected = before(NEW)
        twin.fit(X[:20], y[:20])
    assert np.array_equal(before(NEW), expected)


def test_frames_and_lists() -> None:
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(X, columns=["a", "b"])
    frame["kind"] = pd.Categorical(np.where(F > F.mean(), "up", "down"))
    model = GPRegressor(max_iter=2, random_state=0)
    plain = GPRegressor(max_iter=2, random_state=0).fit(X, F)
    functions = plain.sample_functions(2, random_state=0, num_features=50)
    assert np.array_equal(functions(X.tolist()), functions(X))
    with pytest.raises(InputError, match=r"3 features.*expecting 2"):
        functions(np.ones((2, 3)))
    with pytest.raises(InputError, match="NaN"):
        functions(np.full((2, 2), np.nan))
    model.fit(frame, F)
    values = model.sample_functions(3_000, random_state=0)(frame[:6])
    mean, std = model.predict(frame[:6], latent=True, return_std=True)
    assert (np.abs(values.mean(1) - mean) < 0.12 * std.max()).all()
    assert np.abs(values.std(1) / std - 1).max() < 0.25


def test_kernels_without_random_features() -> None:
    for kernel in ("rbf + white", gpytorch.kernels.PiecewisePolynomialKernel(ard_num_dims=2)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = GPRegressor(kernel=kernel, max_iter=1, random_state=0).fit(X, F)
        with pytest.raises(UnsupportedError, match=r"White|PiecewisePolynomial"):
            model.sample_functions(1)


def test_inputs_are_checked_as_for_predict() -> None:
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(X, columns=["a", "b"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = GPRegressor(max_iter=1, random_state=0).fit(frame, F)
    functions = model.sample_functions(2, random_state=0, num_features=50)
    values = functions(frame)
    for wrong in (frame[["b", "a"]], frame.rename(columns={"a": "c"})):
        messages = []
        for call in (model.predict, functions):
            with pytest.raises(InputError, match="feature names should match") as caught:
                call(wrong)
            messages.append(str(caught.value))
        assert messages[0] == messages[1]
    with pytest.warns(UserWarning, match="FunctionSamples was fitted with feature names"):
        assert np.allclose(functions(X), values, rtol=1e-9)
    # What a later fit of the estimator sees is another matter.
    model.fit(frame.rename(columns={"a": "c"}), F)
    assert np.array_equal(functions(frame), values)


def test_far_inputs_and_unseen_categories_warn() -> None:
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({"a": X[:, 0], "kind": pd.Categorical(np.where(F > 0, "up", "down"))})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = GPRegressor(max_iter=1, random_state=0).fit(frame, F)
    functions = model.sample_functions(2, random_state=0, num_features=50)
    with pytest.warns(ExtrapolationWarning, match="far outside the inputs of the fit"):
        functions(frame.assign(a=1e3))
    new = pd.Categorical(["sideways"] * len(frame))
    with pytest.warns(ExtrapolationWarning, match="a category that the fit did not see"):
        functions(frame.assign(kind=new))
