"""Coresets that estimators hand back."""

import copy
import pickle

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from gpvi import GPClassifier, GPCountRegressor, GPRegressor
from gpvi.approximations import Exact, GaussianProcess, Sites
from gpvi.exceptions import InputError
from gpvi.plotting import CoresetDisplay

# Pseudo inputs and hyperparameters take more than the default number of iterations to settle together.
pytestmark = pytest.mark.filterwarnings("ignore::gpvi.exceptions.ConvergenceWarning")

RNG = np.random.default_rng(0)
X = np.c_[RNG.uniform(100, 110, 120), RNG.uniform(-0.01, 0.01, 120)]
Y = 50 + 20 * np.sin(X[:, 0]) + 500 * X[:, 1] + RNG.standard_normal(120)
OPTIONS = dict(approximation="coreset", num_inducing=15, random_state=0)


@pytest.fixture(scope="module")
def model():
    return GPRegressor(**OPTIONS).fit(X, Y)


def test_points_are_in_the_units_of_the_data(model):
    points = model.coreset_
    assert points.inputs.shape == (15, 2) and points.targets.shape == points.weights.shape == (15,)
    assert (points.inputs.min(0) > X.min(0) - 2).all() and (
        points.inputs.max(0) < X.max(0) + 2
    ).all()
    heavy = points.weights > np.median(points.weights)
    predicted = model.predict(points.inputs[heavy])
    assert np.abs(points.targets[heavy] - predicted).max() < 30


@pytest.mark.parametrize("standardize", [True, False])
def test_a_process_given_the_points_is_the_fit(standardize):
    """Exact regression on the pseudo-observations in the units of the data, with the fitted kernel."""
    x, y = (X - X.mean(0)) / X.std(0), (Y - 50) / 10
    model = GPRegressor(**OPTIONS, standardize=standardize, mean="zero", ard=False)
    if standardize:
        x, y = X, Y
        model.set_params(mean="constant", ard=True)
    model.fit(x, y)
    points = model.coreset_
    new = x[:7]
    inner, scale = model._model, float(model._model.y_map.scale)
    process = GaussianProcess(model.kernel_, model._model.posterior.prior.gp.mean_module)
    weights = torch.tensor(points.weights * scale**2)
    targets = torch.tensor(inner.y_map(points.targets))
    prior = Exact().prior(process, torch.tensor(inner.x_map(points.inputs)))
    posterior = prior.condition(Sites(weights * targets, weights))
    moments = posterior.predict(torch.tensor(inner.x_map(new)))
    mean, variance = model.predict(new), inner.latent(new)[1]
    assert inner.y_map.inverse(moments.mean.detach().numpy()) == pytest.approx(mean, rel=1e-5)
    assert scale**2 * moments.variance.detach().numpy() == pytest.approx(variance, rel=1e-4)


def test_scaling_the_targets_scales_the_points(model):
    other = GPRegressor(**OPTIONS).fit(X, 1_024 * Y).coreset_
    assert other.targets == pytest.approx(1_024 * model.coreset_.targets, rel=1e-3)
    assert other.weights == pytest.approx(model.coreset_.weights / 1_024**2, rel=1e-3)


def test_points_survive_copies_and_files(model, tmp_path):
    model.save(tmp_path / "model.gpvi")
    for again in (
        pickle.loads(pickle.dumps(model)),
        copy.deepcopy(model),
        GPRegressor.load(tmp_path / "model.gpvi"),
    ):
        assert again.coreset_.inputs == pytest.approx(model.coreset_.inputs)
        assert again.coreset_.weights == pytest.approx(model.coreset_.weights)


def test_other_approximations_have_none():
    model = GPRegressor(**OPTIONS).fit(X, Y)
    model.set_params(approximation="exact").fit(X, Y)
    assert not hasattr(model, "coreset_") and not hasattr(GPRegressor(), "coreset_")
    with pytest.raises(InputError, match="coreset"):
        CoresetDisplay.from_estimator(model)


def test_latent_scales_and_several_latents():
    counts = GPCountRegressor(**OPTIONS).fit(X, np.round(Y / 10).clip(0))
    assert np.exp(np.median(counts.coreset_.targets)) == pytest.approx(5, rel=0.5)
    classes = GPClassifier(**OPTIONS).fit(X, np.digitize(Y, [40, 60]))
    assert classes.coreset_.targets.shape == (3, 15)
    for latent in range(3):
        CoresetDisplay.from_estimator(classes, latent=latent)
    with pytest.raises(InputError, match="latent is 3"):
        CoresetDisplay.from_estimator(classes, latent=3)
    plt.close("all")


def test_display_over_data(model):
    display = CoresetDisplay.from_estimator(model, X, Y, largest=30.0)
    assert display.data_ is not None
    np.testing.assert_allclose(display.points_.get_array(), model.coreset_.targets)
    with pytest.raises(InputError, match="neither"):
        CoresetDisplay.from_estimator(model, X)
    plt.close("all")
